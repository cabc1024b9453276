"""Memory for what is read, and the work of filling it shared among threads.

Large pieces come from NumPy, which asks the system for huge pages (madvise(2), MADV_HUGEPAGE) and does
not clear what will be overwritten: first touch, page by page, is what makes owned loads slow. System
calls and large copies release the GIL, so that a few threads fill a piece together; on two cores that
is worth a factor of two, on cold disks and networks more.
"""

from __future__ import annotations

import os
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CHUNK", "PAGE", "allocate", "copied", "in_parallel"]

CHUNK: Final = 1 << 23
"""Bytes that one thread handles at a time: Python's share of the work is lost in it."""

_LARGE: Final = 1 << 20
PAGE: Final = 4096
"""What direct I/O and the page cache count in."""


def allocate(nbytes: int) -> memoryview:
    """Writable memory of `nbytes`, contents undefined; from 1 MiB on it begins at a page."""
    if nbytes < _LARGE:
        return memoryview(bytearray(nbytes))
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


def in_parallel(work: Callable[[int, int], object], total: int, *, chunk: int = CHUNK) -> None:
    """Call ``work(begin, end)`` for chunks that cover 0 to `total`, in ascending order of begin.

    Runs in the calling thread where there are one or two. The first exception is raised after the
    chunks that are under way have ended, so that no thread touches the memory afterwards; chunks not
    begun are not begun any more. The same holds for an interrupt (Ctrl-C).
    """
    starts = range(0, total, chunk)
    if len(starts) <= 2:
        work(0, total)
        return
    with ThreadPoolExecutor(min(len(starts), thread_count())) as pool:
        futures: list[Future[object]] = []
        try:
            for begin in starts:
                future = pool.submit(work, begin, min(begin + chunk, total))
                futures.append(future)
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
    for future in futures:
        future.result()  # those cancelled come after one that failed


def thread_count() -> int:
    """Threads that share a transfer: as many as processors this process may use, from 2 to 16."""
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        processors = os.cpu_count() or 1
    return max(2, min(16, processors))
