"""Checkpoints and handles in worker processes: opened there again, and the same file or an error."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import safeweights
import safeweights.numpy
from safeweights.checkpoint import Checkpoint, MemoryTensor
from safeweights.errors import ChangedError, ClosedError, UnsupportedError
from safeweights.storage import BytesSource, open_source
from safeweights.storage.windows import Joined, Window

if TYPE_CHECKING:
    from collections.abc import Callable

ARRAYS = {"a": np.arange(6, dtype="f4").reshape(2, 3), "b": np.ones(3, "f2")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    safeweights.numpy.save_file(ARRAYS, tmp_path / "a.safetensors", {"format": "np"})
    return tmp_path / "a.safetensors"


def again(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def contents(checkpoint: Any) -> dict[str, bytes]:
    return {name: bytes(tensor.view()) for name, tensor in checkpoint.items()}


@pytest.mark.parametrize("backend", ["mmap", "pread", "direct", "read", "auto"])
def test_a_file(path: Path, backend: str, no_leak: None) -> None:
    before = safeweights.open(path, backend=backend)
    after = again(before)
    assert contents(after) == contents(before)
    assert after.metadata == before.metadata == {"format": "np"}
    assert after.name == before.name
    assert after["a"].in_memory == before["a"].in_memory
    assert after.files[0].source.fileno() != before.files[0].source.fileno()


def test_what_is_pickled_is_short(path: Path) -> None:
    big = {f"layer.{n}.weight": np.ones(1, "u1") for n in range(1000)}
    safeweights.numpy.save_file(big, path)
    assert len(pickle.dumps(safeweights.open(path))) < 1000
    assert len(pickle.dumps(safeweights.safe_open(path, "np"))) < 1000


def test_folders_and_views(sharded: Path, path: Path) -> None:
    before = safeweights.open(sharded)
    assert contents(again(before)) == contents(before)
    assert len(again(before).files) == 2
    for view in (
        before.filter(only="a"),
        before.rename(lambda name: f"x.{name}"),
        Checkpoint({"m": MemoryTensor("m", "U8", (2,), b"xy")}, {"k": "v"}, name="memory"),
        safeweights.open(safeweights.numpy.save(ARRAYS)),
    ):
        found = again(view)
        assert contents(found) == contents(view)
        assert found.metadata == view.metadata
        assert found.name == view.name
    tensor = again(safeweights.open(path)["a"])
    assert np.array_equal(tensor.numpy(), ARRAYS["a"])


def test_the_current_folder_does_not_matter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    data = pickle.dumps(safeweights.open(path.name))
    monkeypatch.chdir("/")
    assert "a" in pickle.loads(data)


@pytest.mark.parametrize("change", ["replaced", "written", "longer"])
def test_another_file_is_an_error(path: Path, change: str, no_leak: None) -> None:
    data = pickle.dumps(safeweights.open(path))
    if change == "replaced":
        os.replace(_copied(path), path)
    elif change == "written":
        path.write_bytes(path.read_bytes())
        os.utime(path, ns=(1, 1))
    else:
        with path.open("ab") as file:
            file.write(b"x")
    with pytest.raises(ChangedError):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)


def _copied(path: Path) -> Path:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    return copy


def test_what_cannot_be_opened_there_is_refused(path: Path) -> None:
    opened = safeweights.open(path)
    path.rename(path.with_suffix(".moved"))
    with pytest.raises(UnsupportedError, match="not at its path"):
        pickle.dumps(opened)
    path.write_bytes(b"another")
    with pytest.raises(UnsupportedError, match="not at its path"):
        pickle.dumps(opened)
    stream = safeweights.open(io.BytesIO(safeweights.numpy.save(ARRAYS)))
    with pytest.raises(UnsupportedError, match="open the model in the process"):
        pickle.dumps(stream)
    opened.close()
    with pytest.raises(ClosedError):
        pickle.dumps(opened)


def test_bytes_that_were_verified_are_not_sent_on(path: Path) -> None:
    class Verified(BytesSource):
        pass

    with pytest.raises(UnsupportedError, match="Verified cannot be pickled"):
        pickle.dumps(Verified(b"abc"))


def test_parts_of_sources(path: Path) -> None:
    whole = open_source(path)
    joined = Joined([Window(whole, 2, 5), BytesSource(b"abc")], "both")
    assert bytes(again(joined).view(0, 8)) == path.read_bytes()[2:7] + b"abc"


def test_handles(path: Path) -> None:
    for framework in ("np", "pt") if find_spec("torch") else ("np",):
        handle = safeweights.safe_open(path, framework)
        found = again(handle)
        assert found.keys() == handle.keys()
        assert found.metadata() == {"format": "np"}
        assert np.array_equal(np.asarray(found.get_tensor("a")), ARRAYS["a"])
        assert np.array_equal(np.asarray(found.get_slice("a")[1]), ARRAYS["a"][1])
    handle.close()
    with pytest.raises(ClosedError):
        again(handle).keys()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_in_a_worker(path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"the system cannot start processes by {method}")
    script = """
import multiprocessing, os, sys
import numpy, safeweights

class Rows:
    def __init__(self, path):
        self.file = safeweights.safe_open(path, "np")
        self.checkpoint = safeweights.open(path)
    def __call__(self, index):
        return os.getpid(), self.file.get_slice("a")[index], self.checkpoint["a"][index]

if __name__ == "__main__":
    rows = Rows(sys.argv[1])
    with multiprocessing.get_context(sys.argv[2]).Pool(1) as pool:
        for index, (process, one, two) in enumerate(pool.map(rows, range(2))):
            assert process != os.getpid()
            assert one.tolist() == two.tolist() == rows(index)[1].tolist()
    print("ok")
"""
    program = path.with_name("program.py")
    program.write_text(script)
    done = subprocess.run(
        [sys.executable, program, path, method],
        env={**os.environ, "PYTHONPATH": str(Path(safeweights.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "ok", done.stderr


@pytest.fixture
def no_leak(descriptors: Callable[[], int]) -> Any:
    """Fails if the test leaves a descriptor open."""
    before = descriptors()
    yield
    assert descriptors() == before
