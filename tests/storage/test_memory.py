"""Memory for what is read, the threads that fill it, and where the bytes of a file are."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from safeweights.storage import allocate, read_ahead, syscalls
from safeweights.storage.memory import blank_bytes, copied, joined
from safeweights.storage.parallel import in_parallel, thread_count

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) - 1, 1 << 20, (9 << 20) + 1])
def test_allocate(size: int) -> None:
    memory = allocate(size)
    assert (memory.nbytes, memory.format, memory.readonly) == (size, "B", False)
    if size >= 1 << 20:  # direct reads go to whole pages
        assert np.frombuffer(memory, np.uint8).ctypes.data % 4096 == 0


@pytest.mark.parametrize("size", [0, 1000, (17 << 20) + 3])
def test_copies_are_independent(size: int) -> None:
    data = bytearray(os.urandom(size))
    copy = copied(memoryview(data))
    assert copy == data
    data[:1] = bytes(byte ^ 1 for byte in data[:1])
    assert size == 0 or copy != data


@pytest.mark.parametrize("total", [0, 1, 10, 11, 20, 1000])
def test_chunks_cover_everything_once(total: int) -> None:
    seen: list[tuple[int, int]] = []
    in_parallel(lambda begin, end: seen.append((begin, end)), total, chunk=10)
    places = [place for begin, end in sorted(seen) for place in range(begin, end)]
    assert places == list(range(total))


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_nothing_runs_after_a_failure(error: type[BaseException]) -> None:
    begun: list[int] = []
    running = threading.active_count()

    def work(begin: int, end: int) -> None:
        begun.append(begin)
        if begin == 0:
            raise error
        time.sleep(0.001)

    with pytest.raises(error):
        in_parallel(work, 100_000, chunk=10)
    assert len(begun) < 10_000
    assert threading.active_count() == running


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals of POSIX")
@pytest.mark.parametrize("interrupts", [1, 5])
def test_an_interrupt_waits_for_work_under_way(interrupts: int) -> None:
    """Who is interrupted may let go of the memory: nobody touches it any more. Who insists is let go."""
    under_way, release, done = threading.Event(), threading.Event(), threading.Event()
    main = threading.current_thread()

    def work(begin: int, end: int) -> None:
        if threading.current_thread() is main:
            under_way.wait(10)
        else:
            under_way.set()
            release.wait(10)
            done.set()

    left = iter(range(interrupts))

    def interrupt(*_: object) -> None:
        if next(left, None) is None:
            release.set()
        else:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
        with pytest.raises(KeyboardInterrupt):
            in_parallel(work, 30, chunk=10, threads=2)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert done.is_set() is (interrupts == 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        release.set()
    done.wait(10)


def test_what_sees_blank_bytes_keeps_them() -> None:
    data, memory = blank_bytes(1 << 20) or pytest.skip("only of CPython")
    gone = weakref.ref(memory.obj)
    references = sys.getrefcount(data)
    del memory
    assert gone() is None
    assert sys.getrefcount(data) == references - 1


@pytest.mark.parametrize("available", [0, 1])
def test_work_is_done_without_threads(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    """At the interpreter's end none can be started, in a full container no more."""
    start, started = threading.Thread.start, []

    def refuse(thread: threading.Thread) -> None:
        if len(started) == available:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    in_parallel(lambda begin, end: done.extend(range(begin, end)), 100, chunk=10, threads=4)
    assert sorted(done) == list(range(100))
    assert len(started) == available
    assert list(read_ahead(iter([b"a", b"b"]))) == [b"a", b"b"]


def test_an_index_error_of_the_work_is_raised() -> None:
    with pytest.raises(IndexError, match="pop from empty list"):
        in_parallel(lambda begin, end: [][begin:end].pop(), 100, chunk=10)


@pytest.mark.parametrize("processors", [None, 1, 3, 64])
def test_thread_count(monkeypatch: pytest.MonkeyPatch, processors: int | None) -> None:
    if processors is None:
        monkeypatch.delattr(os, "sched_getaffinity")
        monkeypatch.setattr(os, "cpu_count", lambda: None)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(processors), raising=False)
    assert thread_count() == {None: 2, 1: 2, 3: 3, 64: 16}[processors]


# ---- placement


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "a").write_bytes(bytes(100_000))
    with open(tmp_path / "a", "rb") as file:
        file.read()
        yield file.fileno()


@pytest.fixture
def fresh_libc() -> Iterator[None]:
    syscalls._libc.cache_clear()
    yield
    syscalls._libc.cache_clear()


def test_residency(descriptor: int) -> None:
    share = syscalls.resident_share(descriptor, 0, 100_000)
    assert share in {None, 1.0}  # None before Linux 6.5
    assert syscalls.resident_share(descriptor, 0, 0) is None
    assert syscalls.resident_share(-1, 0, 100) is None


def test_remote(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert syscalls.is_remote(descriptor) in {False, True}
    assert syscalls.is_remote(-1) is None

    class Network:
        @staticmethod
        def fstatfs(_: int, status: Any) -> int:
            status._obj[0] = 0x6969  # NFS
            return 0

    monkeypatch.setattr(syscalls, "_libc", Network)
    assert syscalls.is_remote(descriptor) is True


def test_elsewhere_nothing_is_known(
    descriptor: int, monkeypatch: pytest.MonkeyPatch, fresh_libc: None
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert syscalls.resident_share(descriptor, 0, 10) is None
    assert syscalls.is_remote(descriptor) is None


def test_kernels_without_cachestat(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        @staticmethod
        def syscall(*_: Any) -> int:
            return -1

    monkeypatch.setattr(syscalls, "_libc", Old)
    assert syscalls.resident_share(descriptor, 0, 10) is None


def test_space_is_set_aside_without_changing_the_size(descriptor: int, tmp_path: Path) -> None:
    size = os.fstat(descriptor).st_size
    with open(tmp_path / "new", "wb") as file:
        if syscalls.reserve(file.fileno(), 1 << 20):  # not every filesystem can
            assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20
        assert os.fstat(file.fileno()).st_size == 0
    assert syscalls.reserve(descriptor, 1 << 20) is False  # open for reading only
    assert os.fstat(descriptor).st_size == size


def test_where_nothing_can_be_set_aside(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "_libc", lambda: None)
    assert syscalls.reserve(descriptor, 1 << 20) is False


# ---- joined


@pytest.mark.parametrize("sizes", [[], [0], [3, 0, 5], [1 << 20] * 17 + [5], [(1 << 24) + 3]])
def test_joining(sizes: list[int]) -> None:
    pieces = [bytes([number % 251]) * size for number, size in enumerate(sizes, 1)]
    pieces = [memoryview(piece) if len(piece) % 2 else piece for piece in pieces]
    assert joined(iter(pieces), sum(sizes)) == b"".join(pieces)


@pytest.mark.parametrize("wrong", [-1, 1, 1 << 24])
def test_joining_never_shows_memory_that_was_not_filled(wrong: int) -> None:
    with pytest.raises(ValueError, match="17825792 bytes together"):
        joined([bytes(1 << 20)] * 17, 17 * (1 << 20) + wrong)


def test_joining_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [bytes([number]) * (1 << 20) for number in range(17)]
    monkeypatch.setattr(syscalls, "_libc", lambda: None)  # no huge pages to be had
    assert joined(pieces, 17 << 20) == b"".join(pieces)
    monkeypatch.setattr(sys, "implementation", type(sys.implementation)(name="pypy"))
    assert joined(pieces, 17 << 20) == b"".join(pieces)


def test_a_hint_about_less_than_a_page_is_none() -> None:
    syscalls.prefer_huge_pages(4097, 100)


def test_residency_counts_the_pages_of_the_system(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 KiB on some processors."""

    class Large:
        @staticmethod
        def syscall(*arguments: Any) -> int:
            arguments[3]._obj.cached = 2
            return 0

    monkeypatch.setattr(syscalls, "_libc", Large)
    monkeypatch.setattr(syscalls, "_PAGE", 1 << 16)
    assert syscalls.resident_share(descriptor, 0, 100_000) == 1.0
    assert syscalls.resident_share(descriptor, 65_000, 135_000) == 0.5
