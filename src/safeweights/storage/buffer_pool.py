"""A pool of large buffers, each of which comes back when the last array or tensor over it is gone.

Why: fresh memory costs a page fault for every page, in which the system finds and clears it. That takes as
long as copying the bytes out of the page cache, or longer. With the pool a load takes 1.07 times as long as
read(2) into memory that was used before (docs/performance.md). A virtual machine may also have given its
free memory back to its host, and waits for it then: huge pages come at 1 to 2 GiB/s. The heap also keeps
memory that was freed, but in small pages, and the system cannot take it back when memory is short.

Rules:
- A buffer is lent to one lease at a time. Everything that sees its memory (memoryview, array, tensor,
  storage) holds the lease through the buffer protocol; only the end of the lease returns the buffer.
- The lease is a NumPy array, which the cycle collector does not track: it ends when its last reference
  does. An object that the collector tracks would not do: its weak references are called back while
  finalizers (``__del__``) of the same cycle may still use it, or bring it back to life.
- A lease may end in any thread at any moment, also in the middle of a function of this module. Buffers
  therefore move by single operations of a deque, which are atomic; there is no lock to wait for.
- Idle buffers are bounded, and the system may take them when memory is short (madvise(2), MADV_FREE).
  What it took comes back in huge pages: a durable save from small ones takes half as long again.
- A buffer holds the bytes of its previous user, or zeros: the borrower must fill all that it hands on.
- A forked child begins with an empty pool and keeps no buffer that it inherited: it would have to copy
  those pages before it could write to them.
- Where the system lacks any of this nothing is lent, and the caller takes memory from elsewhere.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections import deque
from contextlib import suppress
from typing import Final

from .syscalls import keep_secret, restore_huge_pages, unlock

__all__ = ["SMALLEST", "borrow", "release_idle"]

SMALLEST: Final = 1 << 24
"""Smallest buffer that is worth a mapping of its own; below that the heap is as fast."""

_IDLE_MAX: Final = 1 << 31
_SHARE: Final = 8  # an eighth of the machine's memory may be idle
_HUGE_PAGE: Final = 1 << 21
_LENDS: Final = sys.platform == "linux" and hasattr(mmap, "MADV_FREE")  # Linux 4.5

_idle: Final[deque[mmap.mmap]] = deque()


def _idle_limit() -> int:
    """How many bytes may be idle."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
    return min(_IDLE_MAX, memory // _SHARE)


_LIMIT: Final = _idle_limit()


def borrow(nbytes: int, *, secret: bool = False) -> memoryview | None:
    """Writable memory of `nbytes` that begins at a page, its contents undefined; None if none can be lent.

    Cost: nothing if a buffer of about that size is idle; else a mapping, and page faults when it is filled.

    Args:
        nbytes: Less than `SMALLEST` is never lent.
        secret: Not swapped while it is lent, and not part of a core dump, where the system allows it.
    """
    if not _LENDS or nbytes < SMALLEST:
        return None
    import numpy as np  # here, so that `import safeweights` does not load it

    pages = _reused(nbytes) or _mapped(nbytes)
    if pages is None:
        return None
    lease = np.frombuffer(pages, np.uint8, nbytes)
    locked = secret and keep_secret(lease.ctypes.data, len(pages))
    weakref.finalize(lease, _give_back, pages, os.getpid(), locked).atexit = False
    return lease.data


def release_idle() -> int:
    """Return all idle buffers to the system now; returns how many bytes they had.

    Buffers that are lent are not touched. The system takes idle buffers by itself when memory is short;
    until then it counts them as memory of this process.
    """
    return sum(map(len, _all_idle()))


def _all_idle() -> list[mmap.mmap]:
    """Take all idle buffers; the one that has been idle longest comes first."""
    found: list[mmap.mmap] = []
    with suppress(IndexError):
        while True:
            found.append(_idle.popleft())
    return found


def _reused(nbytes: int) -> mmap.mmap | None:
    """Take the smallest idle buffer that is large enough, if at least half of it will be used."""
    found = _all_idle()
    fitting = [pages for pages in found if nbytes <= len(pages) <= 2 * nbytes]
    chosen = min(fitting, key=len, default=None)
    _keep([pages for pages in found if pages is not chosen])
    if chosen is not None:
        with memoryview(chosen) as memory, memory[:nbytes] as wanted:
            restore_huge_pages(wanted)
    return chosen


def _mapped(nbytes: int) -> mmap.mmap | None:
    """A new private buffer, in huge pages where the system has them.

    What does not fill the last huge page is in small ones: all of it would count as used memory.
    """
    size = nbytes + -nbytes % _HUGE_PAGE
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        return None
    with suppress(OSError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE, 0, nbytes - nbytes % _HUGE_PAGE)
    return pages


def _give_back(pages: mmap.mmap, owner: int, locked: bool = False) -> None:
    """Called when the lease has ended: keep the buffer, if it was this process that borrowed it."""
    if os.getpid() != owner:
        return
    if locked:  # else the system could not take it; pages it may take are freed, not swapped
        unlock(ctypes.addressof(ctypes.c_char.from_buffer(pages)), len(pages))
    with suppress(OSError):  # the system cannot take locked memory (mlockall(2)), so it is not kept
        pages.madvise(mmap.MADV_FREE)
        _keep([*_all_idle(), pages])


def _keep(pieces: list[mmap.mmap]) -> None:
    """Make the newest of `pieces` idle, as many as the limit allows; the others are unmapped."""
    while pieces:
        kept: deque[mmap.mmap] = deque()
        room = _LIMIT
        for pages in reversed(pieces):
            if len(pages) <= room:
                kept.appendleft(pages)
                room -= len(pages)
        _idle.extend(kept)
        # If there are more, another thread added some, too, and together they may exceed the limit.
        pieces = _all_idle() if len(_idle) > len(kept) else []


with suppress(AttributeError):  # not on Windows
    os.register_at_fork(after_in_child=_idle.clear)
