"""More files than may be open: the latest stay open, others are opened again and have to be the same."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import safeweights
from safeweights.errors import ChangedError
from safeweights.storage import BytesSource, Handles, LocalStore, handles, too_many

if TYPE_CHECKING:
    from safeweights.storage import Source

resource = pytest.importorskip("resource", reason="limits of open files are POSIX's")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for number in range(10):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 10)
    return [str(number) for number in range(10)]


def opened(folder: Path, names: list[str], most: int) -> tuple[Handles, list[Source]]:
    found = Handles(most)
    store = LocalStore(folder)
    return found, [found.source(partial(store.open, name, backend="pread")) for name in names]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_only_the_latest_stay_open(tmp_path: Path, files: list[str]) -> None:
    before = descriptors()
    pool, sources = opened(tmp_path, files, 3)
    assert descriptors() == before + 3
    for _ in range(2):
        for number, source in enumerate(sources):
            assert source.read(2, 5) == bytes([number]) * 5
            assert source.size == 10
            assert source.name == str(tmp_path / str(number))
    assert descriptors() == before + 3
    del sources, source, pool
    assert descriptors() == before, "they are closed with their `Handles`"


def test_what_is_read_often_is_not_opened_again(tmp_path: Path, files: list[str]) -> None:
    _, sources = opened(tmp_path, files, 3)
    sources[0].read(0, 1)
    for source in sources[1:]:
        os.unlink(source.name) if source is sources[9] else source.read(0, 1)
        sources[0].read(0, 1)
    os.unlink(sources[0].name)
    assert sources[0].read(0, 1) == b"\0"


@pytest.mark.parametrize("how", ["replaced", "written", "longer", "gone"])
def test_a_file_that_is_another_one_is_refused(tmp_path: Path, files: list[str], how: str) -> None:
    _, sources = opened(tmp_path, files, 3)
    path = tmp_path / "0"
    if how == "gone":
        path.unlink()
    elif how == "replaced":
        other = tmp_path / "other"
        other.write_bytes(path.read_bytes())
        other.replace(path)
    else:
        with path.open("r+b") as file:
            file.seek(10 if how == "longer" else 0)
            file.write(b"x")
    with pytest.raises(FileNotFoundError if how == "gone" else ChangedError):
        sources[0].read(0, 1)


def test_reads_of_many_threads_at_once(tmp_path: Path, files: list[str]) -> None:
    _, sources = opened(tmp_path, files, 2)
    wrong: list[int] = []

    def read(shift: int) -> None:
        for turn in range(300):
            number = (turn * 7 + shift) % 10
            if sources[number].read(0, 10) != bytes([number]) * 10:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(shift,)) for shift in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_sources_without_a_descriptor_are_untouched() -> None:
    source = BytesSource(b"abc")
    assert Handles(1).source(lambda: source) is source


def test_pickled_as_the_file_that_it_is(tmp_path: Path, files: list[str]) -> None:
    _, sources = opened(tmp_path, files, 1)
    assert pickle.loads(pickle.dumps(sources[3])).read(0, 1) == b"\3"


def test_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, count, expected in (
        (1024, 512, False), (1024, 513, True), (resource.RLIM_INFINITY, 10**6, False),
    ):  # fmt: skip
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert too_many(count) is expected
    monkeypatch.setitem(sys.modules, "resource", None)
    assert not too_many(handles._UNKNOWN // 2)
    assert too_many(handles._UNKNOWN // 2 + 1)


_CHILD = """
import resource, sys
import safeweights
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
found = safeweights.open(sys.argv[1])
total = sum(int(tensor.view()[0]) for tensor in found.values())
print(len(found), total)
"""


def test_a_model_of_more_shards_than_may_be_open(tmp_path: Path) -> None:
    from safeweights.checkpoint import MemoryTensor, save

    for number in range(100):
        tensors = {f"t{number}": MemoryTensor("t", "U8", (1,), bytes([number]))}
        save(tensors, tmp_path / f"model-{number + 1:05}-of-00100.safetensors")
    environment = {**os.environ, "PYTHONPATH": str(Path(safeweights.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, tmp_path],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["100", str(sum(range(100)))], done.stderr


def test_a_model_of_too_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safeweights.checkpoint import MemoryTensor, opening, save

    for number in range(5):
        tensors = {f"t{number}": MemoryTensor("t", "U8", (1,), bytes([number]))}
        save(tensors, tmp_path / f"model-{number + 1:05}-of-00005.safetensors")
    monkeypatch.setattr(opening, "too_many", lambda count: count == 5)
    found = safeweights.open(tmp_path)
    assert [bytes(found[f"t{number}"].view()) for number in range(5)] == [
        bytes([number]) for number in range(5)
    ]
    assert not any(tensor.in_memory for tensor in found.values())
