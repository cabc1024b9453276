"""Durable files are written past the page cache, block by block; what does not fit goes through it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import random
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from kept_files import kept
from safeweights.storage import (
    Run,
    appending,
    direct_writing,
    open_source,
    sink,
    syscalls,
    write_file,
)
from safeweights.storage.direct_writing import _THREADS, _WRITES, DirectFile
from safeweights.storage.readahead import InMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="files are written directly on Linux"
)

BATCH, BLOCK = 1 << 16, 4096
SIZES = [100, BATCH, 3, 70_000, 1, 5000, 5000, 200_000, *[40] * 3000, 4 * BATCH, 1 << 21]
SIZE = sum(SIZES)
assert SIZE % BLOCK


def pieces() -> list[bytes]:
    made = random.Random(1)
    return [made.randbytes(size) for size in SIZES]


NEW = b"".join(pieces())


def borrow(nbytes: int) -> memoryview:
    """Memory as of the pool, which lends no less than 16 MiB."""
    return memoryview(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are not large have many batches."""
    monkeypatch.setattr(appending, "BATCH", BATCH)
    monkeypatch.setattr(sink, "_LARGE", BATCH)
    monkeypatch.setattr(direct_writing, "borrow", borrow)
    monkeypatch.setattr(direct_writing, "has_huge_pages", lambda: True)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[int, int]]:
    """Where direct writes began, and how many bytes they wrote."""
    with (tmp_path / "probe").open("wb+") as file:
        if (probe := DirectFile.of(file.fileno(), 10, batch=BATCH)) is None:
            pytest.skip("the filesystem of temporary files has no direct I/O")
        probe.close()
    (tmp_path / "probe").unlink()
    found: list[tuple[int, int]] = []

    def note(call: Callable[[], int], blocks: memoryview, position: int) -> int:
        found.append((position, count := call()))
        del blocks
        return count

    replace_pwrite(monkeypatch, note)
    return found


def replace_pwrite(
    monkeypatch: pytest.MonkeyPatch,
    instead: Callable[[Callable[[], int], memoryview, int], int],
) -> None:
    """Have direct writes call ``instead(write, blocks, position)``."""
    real = os.pwrite

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        import fcntl

        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            return real(descriptor, data, position)
        return instead(lambda: real(descriptor, data, position), data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)


def save(path: Path, **options: Any) -> None:
    write_file(path, InMemory(pieces(), SIZE), size=SIZE, durable=True, **options)


def test_all_but_a_part_of_a_block_is_written_directly(
    tmp_path: Path, written: list[tuple[int, int]]
) -> None:
    told: list[int] = []
    save(tmp_path / "a", progress=told.append)
    assert (tmp_path / "a").read_bytes() == NEW
    written.sort()
    assert [position for position, _ in written] == [*range(0, SIZE, BATCH)]
    assert {nbytes for _, nbytes in written[:-1]} == {BATCH}
    assert sum(nbytes for _, nbytes in written) == SIZE - SIZE % BLOCK
    assert told == sorted(told)
    assert told[-1] == SIZE
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("size", [3 * BATCH, 3 * BATCH + 1, 3 * BATCH - 1, 2 * BATCH + BLOCK])
def test_files_of_any_length(tmp_path: Path, written: list[tuple[int, int]], size: int) -> None:
    data = random.Random(size).randbytes(size)
    write_file(tmp_path / "a", InMemory([data[:8], data[8:]], size), size=size, durable=True)
    assert (tmp_path / "a").read_bytes() == data
    assert sum(nbytes for _, nbytes in written) == size - size % BLOCK


def test_many_small_pieces_are_a_batch_like_others(
    tmp_path: Path, written: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many buffers as a system call takes are no reason to cut a batch where no block begins."""
    monkeypatch.setattr(appending, "_SMALL", 10)
    many = [bytes([number % 251]) * 11 for number in range(40_000)]
    size = 11 * len(many)
    write_file(tmp_path / "a", InMemory(many, size), size=size, durable=True)
    assert (tmp_path / "a").read_bytes() == b"".join(many)
    assert sum(nbytes for _, nbytes in written) == size - size % BLOCK


def test_threads_take_turns_at_the_disk_each_with_memory_of_its_own(
    tmp_path: Path, written: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those whose turn it is not have copied their batch meanwhile."""
    together, calls = threading.Barrier(_WRITES), itertools.count()
    copied = threading.Semaphore(0)
    writing: set[int] = set()
    most: list[int] = []
    memories: set[int] = set()
    real = direct_writing.Copier.copy

    def copy(self: Any, pieces: Any, place: memoryview) -> int:
        memories.add(syscalls.address_of(place))
        count = real(self, pieces, place)
        copied.release()
        return count

    def wait(call: Callable[[], int], blocks: memoryview, position: int) -> int:
        del position, blocks
        writing.add(threading.get_ident())
        most.append(len(writing))
        if next(calls) < _WRITES:
            if together.wait(60) == 0:  # when all others are here, too
                for _ in range(_THREADS):
                    assert copied.acquire(timeout=60)
            together.wait(60)
        count = call()
        writing.remove(threading.get_ident())
        return count

    monkeypatch.setattr(direct_writing.Copier, "copy", copy)
    replace_pwrite(monkeypatch, wait)
    save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW
    assert next(calls) == -(-SIZE // BATCH)
    assert max(most) == _WRITES
    assert len(memories) == _THREADS > _WRITES
    del written


def test_no_more_threads_copy_than_there_are_processors(
    tmp_path: Path, written: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them at once would have their first batches ready at the same time, and late."""
    together, calls = threading.Barrier(2), itertools.count()
    copying: set[int] = set()
    most: list[int] = []
    real = direct_writing.Copier.copy

    def copy(self: Any, pieces: Any, place: memoryview) -> int:
        copying.add(threading.get_ident())
        most.append(len(copying))
        if next(calls) < 2:
            together.wait(60)
        try:
            return real(self, pieces, place)
        finally:
            copying.remove(threading.get_ident())

    monkeypatch.setattr(direct_writing, "thread_count", lambda: 2)
    monkeypatch.setattr(direct_writing.Copier, "copy", copy)
    save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW
    assert max(most) == 2
    assert written


def test_memory_that_was_used_is_used_again(
    tmp_path: Path, written: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other memory may have no pages yet."""
    used: list[int] = []
    real = direct_writing.Copier.copy

    def copy(self: Any, pieces: Any, place: memoryview) -> int:
        used.append(syscalls.address_of(place))
        return real(self, pieces, place)

    monkeypatch.setattr(direct_writing.Copier, "copy", copy)
    with (tmp_path / "a").open("wb+") as file:
        direct = DirectFile.of(file.fileno(), SIZE, batch=BATCH)
        assert direct is not None
        with contextlib.closing(direct):
            for begin in range(0, 3 * BATCH, BATCH):
                assert direct.write([memoryview(NEW)[begin : begin + BATCH]], begin) == BATCH
        assert len(written) == len(used) == 3
        assert len(set(used)) == 1


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_disk_that_refuses_gets_all_through_the_page_cache(
    tmp_path: Path, written: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    calls: list[int] = []

    def refuse(call: Callable[[], int], blocks: memoryview, position: int) -> int:
        del call, blocks
        calls.append(position)
        raise OSError(code, "injected")

    replace_pwrite(monkeypatch, refuse)
    save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW
    assert 1 <= len(calls) <= _THREADS + 1  # those that were under way
    assert written == []


def test_a_write_that_stops_half_way_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[tuple[int, int]]
) -> None:
    real = os.pwrite

    def half(descriptor: int, data: memoryview, position: int) -> int:
        return real(descriptor, data[: max(BLOCK, len(data) // 2 // BLOCK * BLOCK)], position)

    monkeypatch.setattr(os, "pwrite", half)
    save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW
    assert sum(nbytes for _, nbytes in written) < SIZE * 2 // 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_what_fails_is_an_error_and_the_old_file_stays(
    tmp_path: Path,
    written: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    no_leak: None,
    code: int,
) -> None:
    def fail(call: Callable[[], int], blocks: memoryview, position: int) -> int:
        del blocks
        if position >= 10 * BATCH:
            raise OSError(code, os.strerror(code))
        return call()

    replace_pwrite(monkeypatch, fail)
    with kept(tmp_path / "a"), pytest.raises(OSError, match=os.strerror(code)) as caught:
        save(tmp_path / "a")
    assert caught.value.errno == code
    assert caught.value.filename == str(tmp_path / "a")
    assert written


def test_ctrl_c_leaves_the_old_file(
    tmp_path: Path, written: list[tuple[int, int]], no_leak: None
) -> None:
    def interrupt(done: int) -> None:
        if done > 5 * BATCH:
            raise KeyboardInterrupt

    with kept(tmp_path / "a"), pytest.raises(KeyboardInterrupt):
        save(tmp_path / "a", progress=interrupt)
    assert "safeweights-ahead" not in {thread.name for thread in threading.enumerate()}
    assert written


def test_a_source_that_is_truncated_is_an_error(
    tmp_path: Path, written: list[tuple[int, int]]
) -> None:
    (tmp_path / "b").write_bytes(NEW)
    with (tmp_path / "b").open("rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))

    def some() -> Iterator[memoryview]:
        yield mapped[: 6 * BATCH]
        os.truncate(tmp_path / "b", 9 * BATCH)
        yield mapped[6 * BATCH :]

    with pytest.raises(OSError, match="Bad address") as caught:
        write_file(tmp_path / "a", InMemory(some(), SIZE), size=SIZE, durable=True)
    assert caught.value.filename == str(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert written


def test_bytes_of_files_may_stand_between(tmp_path: Path, written: list[tuple[int, int]]) -> None:
    """What follows them begins in the middle of a block, up to the next place where a batch is cut."""
    (tmp_path / "b").write_bytes(NEW)
    source = open_source(tmp_path / "b")
    some: list[Any] = [*pieces(), Run(source, 5, SIZE - 10), *pieces()]  # type: ignore[arg-type]
    size = 3 * SIZE - 10
    write_file(tmp_path / "a", InMemory(some, size), size=size, durable=True)
    assert (tmp_path / "a").read_bytes() == NEW + NEW[5:-5] + NEW
    assert 2 * SIZE - 2 * BATCH < sum(nbytes for _, nbytes in written) < 2 * SIZE
    assert all(position % BATCH == 0 for position, _ in written)


def test_more_bytes_than_were_announced_are_written(
    tmp_path: Path, written: list[tuple[int, int]]
) -> None:
    announced = SIZE - 3 * BATCH - 5
    write_file(tmp_path / "a", InMemory(pieces(), announced), size=announced, durable=True)
    assert (tmp_path / "a").read_bytes() == NEW
    assert written


@pytest.mark.parametrize(
    ("module", "name", "answer"),
    [
        (direct_writing, "writes_past_cache", lambda _: False),
        (direct_writing, "has_huge_pages", lambda: False),
        (direct_writing, "borrow", lambda _: None),
    ],
)
def test_where_it_brings_nothing_all_goes_through_the_page_cache(
    tmp_path: Path,
    written: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    answer: Any,
) -> None:
    monkeypatch.setattr(module, name, answer)
    save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW
    assert written == []


def test_a_system_without_proc(
    tmp_path: Path, written: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, no_leak: None
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_DIRECT:
            raise FileNotFoundError(errno.ENOENT, "injected", path)
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW
    assert written == []


def test_a_file_that_may_not_be_so_long_is_an_error_before_anything_is_written(
    tmp_path: Path, written: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, no_leak: None
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
        save(tmp_path / "a")
    assert caught.value.filename == str(tmp_path / "a")
    assert written == []
    assert [*tmp_path.iterdir()] == []


def test_space_that_cannot_be_reserved(
    tmp_path: Path, written: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "reserve", lambda *_: False)
    save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW
    assert written


def test_the_memory_is_given_back(
    tmp_path: Path, written: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lent: list[mmap.mmap] = []

    def lend(nbytes: int) -> memoryview:
        lent.append(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        return memoryview(lent[0])

    monkeypatch.setattr(direct_writing, "borrow", lend)
    save(tmp_path / "a")
    assert len(lent[0]) == _THREADS * BATCH
    lent[0].close()  # a BufferError if anything still refers to it
    assert written


def test_files_in_memory_are_not_written_directly() -> None:
    with open("/dev/shm/safeweights-probe", "wb+") as file:
        os.unlink(file.name)
        assert not syscalls.writes_past_cache(file.fileno())
