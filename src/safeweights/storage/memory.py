"""Memory for what is read, and the work of filling it shared among threads.

First touch, page by page, is what makes owned loads slow: large pieces are in huge pages, and are used
again when nobody sees them any more (`arenas`). System calls and large copies release the GIL, so that a
few threads fill a piece together; on two cores that is worth a factor of two, on cold disks and
networks more.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from functools import cache
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Final

from . import arenas
from .placement import prefer_huge_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["CHUNK", "PAGE", "allocate", "blank_bytes", "copied", "in_parallel", "joined"]

CHUNK: Final = 1 << 23
"""Bytes that one thread handles at a time: Python's share of the work is lost in it."""

_LARGE: Final = 1 << 20
_PARALLEL: Final = 1 << 24
PAGE: Final = 4096
"""What direct I/O counts in; the system's own pages may be larger."""


def allocate(nbytes: int) -> memoryview:
    """Writable memory of `nbytes`; from 1 MiB on it begins at a page.

    Its contents are undefined, another file's perhaps: whoever hands it on has filled it.
    """
    if nbytes < _LARGE:
        return memoryview(bytearray(nbytes))
    recycled = arenas.borrow(nbytes)
    if recycled is not None:
        return recycled
    import numpy as np  # whoever reads a megabyte has the time

    memory = np.empty(nbytes + PAGE, np.uint8)
    begin = -memory.ctypes.data % PAGE
    return memory[begin : begin + nbytes].data


def copied(data: memoryview) -> memoryview:
    """A copy of `data` (flat, of bytes) in memory of its own."""
    target = allocate(len(data))
    if len(data) < _LARGE:
        target[:] = data
        return target
    import numpy as np

    into, source = np.frombuffer(target, np.uint8), np.frombuffer(data, np.uint8)
    in_parallel(lambda begin, end: np.copyto(into[begin:end], source[begin:end]), len(data))
    return target


def joined(buffers: Iterable[bytes | bytearray | memoryview], nbytes: int) -> bytes:
    """The buffers (flat, of bytes, `nbytes` together) one after another; one copy.

    Large results are made of huge pages, and filled by several threads before anybody sees them: five
    times as fast as ``b"".join``, most of whose time is the first touch of small pages.

    Raises:
        ValueError: The buffers have more or fewer bytes than `nbytes`.
    """
    pieces = [buffer for buffer in buffers if len(buffer)]
    if sum(map(len, pieces)) != nbytes:
        raise ValueError(f"the buffers have {sum(map(len, pieces))} bytes together, not {nbytes}")
    blank = blank_bytes(nbytes) if nbytes >= _PARALLEL else None
    if blank is None:
        return b"".join(pieces)
    import numpy as np

    result, memory = blank
    target = np.frombuffer(memory, np.uint8)
    batches: list[list[tuple[int, memoryview]]] = [[]]
    position, size = 0, 0
    for piece in pieces:
        if size >= CHUNK:
            batches.append([])
            size = 0
        batches[-1].append((position, memoryview(piece)))
        position += len(piece)
        size += len(piece)

    def fill(first: int, end: int) -> None:
        for begin, piece in (item for batch in batches[first:end] for item in batch):
            np.copyto(target[begin : begin + len(piece)], np.frombuffer(piece, np.uint8))

    in_parallel(fill, len(batches), chunk=1)
    return result


def blank_bytes(nbytes: int) -> tuple[bytes, memoryview] | None:
    """An object whose bytes are still to be filled in, and its memory; None where there is none.

    That is how the C API makes bytes for extensions (PyBytes_FromStringAndSize), here in huge pages. Nobody
    else may see the object before it is filled, nor may the memory be written to afterwards.
    """
    if sys.implementation.name != "cpython":
        return None
    make, address_of = _bytes_of_the_c_api()
    result: bytes = make(None, nbytes)
    address = address_of(result)
    prefer_huge_pages(address, nbytes)
    memory: Any = (ctypes.c_ubyte * nbytes).from_address(address)
    memory.owner = result  # whoever sees the memory keeps it
    return result, memoryview(memory).cast("B")


@cache
def _bytes_of_the_c_api() -> tuple[Callable[..., bytes], Callable[[bytes], int]]:
    api = ctypes.pythonapi
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)
    address_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)
    return make(("PyBytes_FromStringAndSize", api)), address_of(("PyBytes_AsString", api))


def in_parallel(
    work: Callable[[int, int], object], total: int, *, chunk: int = CHUNK, threads: int = 0
) -> None:
    """Call ``work(begin, end)`` for chunks that cover 0 to `total`, in ascending order of begin.

    With `threads` as many share the work, else `thread_count()`; the calling thread is one of them, and
    the only one for up to two chunks, and where the system has no more: at the interpreter's end, or in
    a full container.

    The first exception is raised after the chunks that are under way have ended, so that no thread
    touches the memory afterwards; chunks not begun are not begun any more. The same holds for an
    interrupt (Ctrl-C); another one meanwhile ends the waiting, since a dead mount may never answer.
    """
    starts = deque(range(0, total, chunk))
    if len(starts) <= 2:
        work(0, total)
        return
    failures: list[BaseException] = []
    locks: list[Lock] = []  # each held by a thread as long as it works
    others: list[Thread] = []

    def share(working: Lock) -> None:
        with working:
            try:
                while (begin := _next_of(starts)) is not None:
                    work(begin, min(begin + chunk, total))
            except BaseException as error:  # noqa: BLE001 - raised below
                starts.clear()
                failures.append(error)

    try:
        for _ in range(min(len(starts), threads or thread_count()) - 1):
            locks.append(Lock())
            thread = Thread(target=share, args=locks[-1:], name="safeweights-share")
            try:
                thread.start()
            except RuntimeError:
                break
            others.append(thread)
        share(Lock())
    finally:
        # A thread that begins only now, as one may whose start was interrupted, finds nothing to do.
        starts.clear()
        interrupts = [error for lock in locks if (error := _wait_for(lock))]
        for thread in others:
            thread.join()
    for error in (*failures, *interrupts):
        raise error


def _wait_for(lock: Lock) -> BaseException | None:
    """Return when nobody holds `lock`; one interrupt meanwhile is the result, the next one is raised."""
    interrupt = None
    while True:
        try:
            with lock:
                return interrupt
        except BaseException as error:  # noqa: PERF203 - the first is raised by the caller
            if interrupt is not None:
                raise
            interrupt = error


def _next_of(starts: deque[int]) -> int | None:
    try:
        return starts.popleft()
    except IndexError:
        return None


def thread_count() -> int:
    """Threads that share a transfer: as many as processors this process may use, from 2 to 16."""
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        processors = os.cpu_count() or 1
    return max(2, min(16, processors))
