"""Large memory that is lent, comes back when the last array or tensor over it is gone, and is lent again.

Reading into memory that was in use before spares the page faults, in which the system finds and clears
fresh pages: they cost as much as copying the bytes out of the page cache, or more. A heap that keeps
what was freed spares them too, but has small pages, and keeps them when memory is short.

Rules:
- A piece is lent to one lease at a time. Whatever sees its memory (memoryview, array, tensor, storage)
  holds the lease through the buffer protocol; the lease's end, and nothing else, brings the piece back.
- The lease is a NumPy array, which the cycle collector does not know: it ends when its last reference
  does. Of objects that the collector does know, weak references are called back while the finalizers
  (``__del__``) of the same cycle may still use them, or bring them back to life.
- A lease may end in any thread at any moment, in the middle of this module too. Pieces therefore move
  by single operations of a deque, which are atomic; there is no lock to wait for.
- What is idle is bounded, and the system's to take when memory is short (madvise(2), MADV_FREE).
- A piece has the bytes of whoever had it before, or zeros: who borrows fills all that it hands on.
- A child that was forked begins with nothing idle, and keeps nothing of what it inherited: it would
  have to copy those pages before it writes to them.
- Where the system lacks any of this nothing is lent, and the caller takes memory from elsewhere.
"""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections import deque
from contextlib import suppress
from typing import Final

__all__ = ["SMALLEST", "borrow", "release_idle"]

SMALLEST: Final = 1 << 24
"""Bytes from which on a piece is worth a mapping of its own; smaller ones the heap serves as well."""

_IDLE_MAX: Final = 1 << 31
_SHARE: Final = 16  # of the machine's memory, one part in so many may be idle
_HUGE_PAGE: Final = 1 << 21
_LENDS: Final = sys.platform == "linux" and hasattr(mmap, "MADV_FREE")  # Linux 4.5

_idle: Final[deque[mmap.mmap]] = deque()


def _idle_limit() -> int:
    """Bytes that may be idle."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
    return min(_IDLE_MAX, memory // _SHARE)


_LIMIT: Final = _idle_limit()


def borrow(nbytes: int) -> memoryview | None:
    """Writable memory of `nbytes` that begins at a page, contents undefined; None where there is none.

    Cost: nothing if a piece of about that size is idle; else a mapping, and page faults when it is filled.

    Args:
        nbytes: Less than `SMALLEST` is never lent.
    """
    if not _LENDS or nbytes < SMALLEST:
        return None
    import numpy as np  # whoever reads so much has the time

    pages = _reused(nbytes) or _mapped(nbytes)
    if pages is None:
        return None
    lease = np.frombuffer(pages, np.uint8, nbytes)
    weakref.finalize(lease, _give_back, pages, os.getpid()).atexit = False
    return lease.data


def release_idle() -> int:
    """Return all idle pieces to the system at once; how many bytes they were.

    What is lent is not touched. The system takes idle pieces by itself when memory is short, and until
    then counts them as this process's.
    """
    return sum(map(len, _all_idle()))


def _all_idle() -> list[mmap.mmap]:
    """All idle pieces, taken; the one that has waited longest comes first."""
    found: list[mmap.mmap] = []
    with suppress(IndexError):
        while True:
            found.append(_idle.popleft())
    return found


def _reused(nbytes: int) -> mmap.mmap | None:
    """The smallest idle piece that is large enough, if at least half of it will be used."""
    found = _all_idle()
    fitting = [pages for pages in found if nbytes <= len(pages) <= 2 * nbytes]
    chosen = min(fitting, key=len, default=None)
    _keep([pages for pages in found if pages is not chosen])
    return chosen


def _mapped(nbytes: int) -> mmap.mmap | None:
    """A piece of fresh pages that are nobody else's, huge ones where there are any."""
    size = nbytes + -nbytes % _HUGE_PAGE
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        return None
    with suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _give_back(pages: mmap.mmap, owner: int) -> None:
    """Nobody sees the piece any more: keep it, if that is allowed."""
    if os.getpid() != owner:
        return
    with suppress(OSError):  # locked memory (mlockall(2)) cannot be offered to the system, nor kept
        pages.madvise(mmap.MADV_FREE)
        _keep([*_all_idle(), pages])


def _keep(pieces: list[mmap.mmap]) -> None:
    """Let the newest of `pieces` be idle, as many as may; the others are unmapped."""
    while pieces:
        kept: deque[mmap.mmap] = deque()
        room = _LIMIT
        for pages in reversed(pieces):
            if len(pages) <= room:
                kept.appendleft(pages)
                room -= len(pages)
        _idle.extend(kept)
        # More than was kept: another thread was at it too, and both together may be too much.
        pieces = _all_idle() if len(_idle) > len(kept) else []


with suppress(AttributeError):  # not on Windows
    os.register_at_fork(after_in_child=_idle.clear)
