"""Write many short runs of bytes, at regular distances, into a file that several processes fill.

A pwrite(2) for each run costs more than a microsecond, and the system locks the file for each, so that
the processes wait for each other. Through mappings, which share the pages of the file, NumPy copies
thousands of runs at once. Two processes that each write 128 MiB of one file, in runs of 2 KiB, take 65 ms,
with pwrite(2) 350 ms; as two contiguous halves 50 ms (ext4, Linux 6.18).

Rules:
- A full disk must not become a SIGBUS. So the file has its size and its blocks already, on a filesystem
  that keeps them for it (`keeps_reserved`), and pages are made ready to be written before they are touched.
- Whole pages are written back, with what other processes wrote into them. So all processes must be on one
  machine: those filesystems are local.
- At most 12 MiB are mapped at a time, since mapped pages count as memory of the process.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Final

from .gathering import parts_of, spread_and_packed
from .syscalls import address_of, populate, prefer_huge_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..format.indexing import Runs

__all__ = ["is_worth_mapping", "scatter_mapped"]

_WINDOW: Final = 1 << 23
"""Bytes of a file that are mapped at a time."""

_HUGE: Final = 1 << 21
"""Size of a huge page. Linux maps one with a single fault if the mapping holds all of it, otherwise each of
its 512 pages with one: 128 MiB then take 150 ms instead of 45."""

_MANY: Final = 512
"""Runs in a window for which it pays to map it. As many pwrite(2) take as long as 2,048 page faults, which
they are where the filesystem has no huge pages (tmpfs), and three times as long as 4."""


def is_worth_mapping(runs: Runs) -> bool:
    """Whether runs are so short, and so close to each other, that `scatter_mapped` is faster."""
    return runs.run_count >= _MANY and next(_parts(runs)).run_count >= _MANY


def scatter_mapped(runs: Runs, data: memoryview, descriptor: int) -> int:
    """Write runs of a file; returns how many, counted from the first: fewer than all if mapping it fails.

    Args:
        runs: Where they go.
        data: The bytes of all runs, one after another.
        descriptor: A file that has these bytes, and blocks for them, open for reading and writing.
    """
    done, length = 0, runs.length
    for part in _parts(runs):
        end = done + part.run_count
        if not _scatter(part, data[done * length : end * length], descriptor):
            break
        done = end
    return done


def _parts(runs: Runs) -> Iterator[Runs]:
    return parts_of(runs, nbytes=_WINDOW, span=_WINDOW)


def _scatter(runs: Runs, data: memoryview, descriptor: int) -> bool:
    begin, end = runs.offset - runs.offset % _HUGE, runs.offset + runs.span
    size = os.fstat(descriptor).st_size
    try:
        # Unmapped when it is freed, on return: `close` is an error while arrays use it.
        mapped = mmap.mmap(descriptor, min(end + -end % _HUGE, size) - begin, offset=begin)
    except (OSError, ValueError, OverflowError):  # no address space; the file was truncated
        return False
    window = memoryview(mapped)
    prefer_huge_pages(address_of(window), len(window))
    place = window[runs.offset - begin : end - begin]
    if len(place) < runs.span or not populate(place, writing=True):
        return False
    spread, packed = spread_and_packed(runs._replace(offset=0), place, data)
    spread[...] = packed
    return True
