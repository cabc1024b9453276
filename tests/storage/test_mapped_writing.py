"""Threads write through a mapping what one thread writes otherwise, and no fault kills the process."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from safeweights.storage import Computed, appending, mapped_writing, syscalls, write_file
from safeweights.storage.mapped_writing import MappedFile
from safeweights.storage.readahead import InMemory
from small_disks import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files are mapped on Linux only")

BATCH, WINDOW = 1 << 16, 3 << 12
SIZES = [100, BATCH, 3, 70_000, 1, 5000, 5000, 200_000, *[40] * 3000, 4 * BATCH, 1 << 22]
SIZE = sum(SIZES)


def pieces() -> list[bytes]:
    made = random.Random(1)
    return [made.randbytes(size) for size in SIZES]


NEW = b"".join(pieces())


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads share files that are not large, and take many turns."""
    monkeypatch.setattr(appending, "BATCH", BATCH)
    monkeypatch.setattr(appending, "_SHARED", 1 << 20)
    monkeypatch.setattr(appending, "thread_count", lambda: 4)
    monkeypatch.setattr(mapped_writing, "_WINDOW", WINDOW)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The numbers of bytes that were copied through the mapping, in the order of the calls."""
    with (tmp_path / "probe").open("wb+") as file:
        if not (syscalls.reserve(file.fileno(), 4096) and syscalls.keeps_reserved(file.fileno())):
            pytest.skip("the filesystem reserves no space")
    (tmp_path / "probe").unlink()
    found: list[int] = []
    real = MappedFile.copy

    def copy(self: MappedFile, buffers: list[memoryview], position: int) -> int:
        found.append(count := real(self, buffers, position))
        return count

    monkeypatch.setattr(MappedFile, "copy", copy)
    return found


def save(path: Path, buffers: Any = None, **options: Any) -> None:
    write_file(path, InMemory(pieces() if buffers is None else buffers, SIZE), size=SIZE, **options)


def calls_of(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """The numbers of bytes that a system call of this name wrote."""
    found: list[int] = []
    real = getattr(os, name)

    def call(*arguments: Any) -> int:
        found.append(count := real(*arguments))
        return int(count)

    monkeypatch.setattr(os, name, call)
    return found


FAST, SLOW = 0.0, 1e9


def clock(monkeypatch: pytest.MonkeyPatch, *trials: float) -> list[float]:
    """A clock by which the first batch of each trial takes a second, and sharing the next ones so long."""
    times = [time for trial in trials for time in (0.0, 1.0, 0.0, trial)]
    times.reverse()
    monkeypatch.setattr(appending, "perf_counter", times.pop)
    return times


def test_all_but_the_first_batch_goes_through_the_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: list[int]
) -> None:
    clock(monkeypatch, FAST)
    written = calls_of(monkeypatch, "writev")
    told: list[int] = []
    save(tmp_path / "a", progress=told.append)
    assert (tmp_path / "a").read_bytes() == NEW
    assert written == [BATCH]
    assert sum(copies) == SIZE - BATCH
    assert len(copies) >= 20
    assert told == sorted(told)
    assert told[-1] == SIZE
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_several_threads_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: list[int]
) -> None:
    clock(monkeypatch, FAST)
    together, calls = threading.Barrier(2), itertools.count()
    real = syscalls.populate

    def populate(memory: memoryview, *, writing: bool) -> bool:
        if next(calls) < 2:
            together.wait(60)  # until another thread is here, too
        return real(memory, writing=writing)

    monkeypatch.setattr(mapped_writing, "populate", populate)
    save(tmp_path / "a")
    assert next(calls) > len(copies) >= 2
    assert (tmp_path / "a").read_bytes() == NEW


@pytest.mark.parametrize(
    ("trials", "alone"), [([FAST], 1), ([SLOW, FAST], 2), ([SLOW, SLOW], None)]
)
def test_where_sharing_is_slower_one_thread_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    copies: list[int],
    trials: list[float],
    alone: int | None,
) -> None:
    left = clock(monkeypatch, *trials)
    written = calls_of(monkeypatch, "writev")
    save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW
    assert left == []
    assert sum(written) == SIZE - sum(copies)
    if alone is None:
        # Those of the trials, and those that were under way when they ended.
        assert 2 * 8 <= len(copies) <= 2 * (8 + 5)
        assert len(written) > 2
    else:
        assert len(written) == alone


def test_what_is_computed_comes_between_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: list[int]
) -> None:
    clock(monkeypatch, FAST, FAST)
    many = [bytes([number]) * BATCH for number in range(20)]

    def read_into(memory: memoryview) -> None:
        memory[:] = b"c" * len(memory)

    def blocks(memory: memoryview) -> Iterator[memoryview]:
        read_into(memory[:1000])
        yield memory[:1000]

    made: list[Any] = [*many, Computed(1000, blocks, read_into), *many]
    size = 40 * BATCH + 1000
    write_file(tmp_path / "a", InMemory(made, size), size=size)
    assert (tmp_path / "a").read_bytes() == b"".join(many) + b"c" * 1000 + b"".join(many)
    assert sum(copies) > 30 * BATCH


def test_pages_of_the_file_that_cannot_be_had_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: list[int]
) -> None:
    clock(monkeypatch, FAST, FAST)
    monkeypatch.setattr(mapped_writing, "populate", lambda memory, *, writing: not writing)
    save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW
    assert set(copies) == {0}


@pytest.mark.parametrize("sizes", [[WINDOW], [WINDOW, WINDOW // 2, WINDOW // 2], [WINDOW * 5 // 2]])
def test_buffers_are_cut_where_a_window_ends(tmp_path: Path, sizes: list[int]) -> None:
    data = random.Random(1).randbytes(sum(sizes))
    with (tmp_path / "a").open("wb+") as file:
        file.write(bytes(len(data)))
        file.flush()
        mapped = MappedFile.of(file.fileno(), len(data))
        if mapped is None:
            pytest.skip("the filesystem reserves no space")
        ends = [*itertools.accumulate(sizes)]
        buffers = [
            memoryview(data)[end - size : end] for size, end in zip(sizes, ends, strict=True)
        ]
        assert mapped.copy(buffers, 0) == len(data)
        mapped.close()
    assert (tmp_path / "a").read_bytes() == data


def test_more_bytes_than_were_announced_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: list[int]
) -> None:
    clock(monkeypatch, FAST, FAST)
    announced = SIZE - 3 * BATCH - 5
    write_file(tmp_path / "a", InMemory(pieces(), announced), size=announced)
    assert (tmp_path / "a").read_bytes() == NEW
    assert sum(copies) == announced - BATCH


@pytest.mark.parametrize("part", [0, 1000])
def test_what_cannot_be_copied_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: list[int], part: int
) -> None:
    """As where a sandbox forbids the call, or where memory cannot be had."""
    clock(monkeypatch, FAST, FAST)
    real, calls = MappedFile.copy, list[int]()

    def copy(self: MappedFile, buffers: list[memoryview], position: int) -> int:
        calls.append(position)
        if part:
            real(self, [buffers[0][:part]], position)
        return min(part, buffers[0].nbytes)

    monkeypatch.setattr(MappedFile, "copy", copy)
    save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW
    assert 2 <= len(calls) <= 2 * (1 + 5)  # then nothing more is shared
    del copies


def test_neither_durable_nor_small_files_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: list[int]
) -> None:
    save(tmp_path / "a", durable=True)
    write_file(tmp_path / "b", InMemory(pieces()[:4], sum(SIZES[:4])), size=sum(SIZES[:4]))
    write_file(tmp_path / "c", pieces(), size=SIZE)  # made on the way, perhaps
    monkeypatch.setattr(appending, "thread_count", lambda: 2)
    save(tmp_path / "d")
    assert copies == []
    assert (tmp_path / "a").read_bytes() == NEW == (tmp_path / "d").read_bytes()


def test_only_files_that_have_their_space_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: list[int]
) -> None:
    write_file(tmp_path / "a", InMemory(pieces(), SIZE))  # nothing is reserved
    monkeypatch.setattr(mapped_writing, "keeps_reserved", lambda descriptor: descriptor < 0)
    save(tmp_path / "b")

    def refused(*_: Any) -> Any:
        raise OSError(errno.ENOMEM, "no address space")

    monkeypatch.undo()
    monkeypatch.setattr(appending, "_SHARED", 1 << 20)
    monkeypatch.setattr(appending, "thread_count", lambda: 4)
    monkeypatch.setattr(mmap, "mmap", refused)
    save(tmp_path / "c")
    for name in "abc":
        assert (tmp_path / name).read_bytes() == NEW
    assert copies == []


@pytest.mark.parametrize("error", [OSError(errno.EIO, "injected"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    copies: list[int],
    no_leak: None,
    error: BaseException,
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fails(*_: Any) -> int:
        raise error

    clock(monkeypatch, FAST)
    monkeypatch.setattr(MappedFile, "copy", lambda *_: 0)
    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(type(error)) as caught:
        save(tmp_path / "a")
    assert isinstance(error, KeyboardInterrupt) or getattr(caught.value, "filename", None) == str(
        tmp_path / "a"
    )
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert "safeweights-ahead" not in {thread.name for thread in threading.enumerate()}


def test_bytes_that_fail_to_be_made_leave_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: list[int]
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    clock(monkeypatch, FAST)

    def broken() -> Iterator[bytes]:
        yield from pieces()[:8]
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        save(tmp_path / "a", broken())
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert copies


def test_an_interrupt_ends_the_threads_before_the_file_is_unmapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: list[int], no_leak: None
) -> None:
    clock(monkeypatch, FAST)

    def progress(done: int) -> None:
        if done > SIZE // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "a", progress=progress)
    assert "safeweights-ahead" not in {thread.name for thread in threading.enumerate()}
    assert [*tmp_path.iterdir()] == []
    assert copies


def test_little_of_the_file_is_mapped_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: list[int]
) -> None:
    released: list[int] = []
    real = syscalls.release

    def release(memory: memoryview) -> None:
        released.append(len(memory))
        real(memory)

    clock(monkeypatch, FAST)
    monkeypatch.setattr(mapped_writing, "release", release)
    save(tmp_path / "a")
    assert sum(released) == sum(copies)
    assert max(released) == WINDOW


TRUNCATED = """
import mmap, os, sys
from safeweights.storage import appending, write_file
from safeweights.storage.readahead import InMemory
folder = sys.argv[1]
appending.thread_count = lambda: 4
appending._SHARED = appending.BATCH = 1 << 16
appending.perf_counter = iter([0.0, 1.0, 0.0] + [0.0] * 99).__next__
size = 1 << 20
with open(folder + "/source", "wb+") as file:
    file.write(bytes(size))
    file.flush()
    mapped = memoryview(mmap.mmap(file.fileno(), size))
    os.truncate(folder + "/source", size // 2)
    try:
        write_file(folder + "/a", InMemory([mapped], size), size=size)
    except OSError as error:
        print(error)
"""


def test_a_source_that_was_truncated_is_an_error(tmp_path: Path, copies: list[int]) -> None:
    del copies
    (tmp_path / "a").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", TRUNCATED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != -signal.SIGBUS
    assert done.stdout == f"[Errno 14] Bad address: {str(tmp_path / 'a')!r}\n", done.stderr
    assert (tmp_path / "a").read_bytes() == b"old"


FULL = """
import os, sys
from safeweights.storage import mapped_writing
size = 4 << 20
mapped_writing.keeps_reserved = lambda descriptor: True
with open(sys.argv[1], "wb+") as file:
    os.truncate(file.fileno(), size)
    real, status = os.fstat, os.fstat(file.fileno())
    os.fstat = lambda descriptor: type("Status", (), {"st_blocks": size // 512})
    mapped = mapped_writing.MappedFile.of(file.fileno(), size)
    print(mapped.copy([memoryview(bytes(size))], 0) < size)
    mapped_writing.populate = lambda *_, **__: True
    print(mapped.copy([memoryview(bytes(size))], 0) < size)
"""


def test_a_full_disk_is_no_signal_even_where_nothing_was_reserved(tmp_path: Path) -> None:
    with small_disk(tmp_path, "300k"):
        done = subprocess.run(
            [sys.executable, "-c", FULL, str(tmp_path / "a")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode != -signal.SIGBUS
    assert done.stdout == "True\nTrue\n", done.stderr


def test_memory_is_copied_up_to_what_cannot_be_read() -> None:
    import numpy as np

    page = mmap.PAGESIZE
    source, target = np.arange(2 * page, dtype=np.uint8), np.zeros(2 * page, np.uint8)
    address = source.ctypes.data
    vectors = np.array([(address + page, page), (address, 5), (8, page - 5)], np.uintp)
    count = syscalls.copy_memory(target.ctypes.data, 2 * page, vectors.ctypes.data, 3)
    assert count == page + 5
    assert bytes(target[:count]) == bytes(source[page:]) + bytes(source[:5])


def test_elsewhere_no_memory_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "_libc", lambda: None)
    assert syscalls.copy_memory(0, 0, 0, 0) == -1
