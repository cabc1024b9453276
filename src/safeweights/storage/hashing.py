"""The SHA-256 of a source, read once, while something else may look at the same bytes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from .parallel import Background

if TYPE_CHECKING:
    from collections.abc import Callable

    from .source import Source

__all__ = ["RUN", "sha256"]

RUN: Final = 4 << 20
"""Bytes that are read and hashed at a time."""


def sha256(
    source: Source,
    *,
    into: memoryview | None = None,
    also: Callable[[memoryview], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> str:
    """The SHA-256 of all of `source`, in hexadecimal.

    Cost: one read. Of a source of more than 4 MiB the next 4 MiB are read, and `also` is called, in two
    more threads while this one hashes. Memory: two buffers of 4 MiB, or none with `into`.

    Args:
        source: What to hash. All its bytes go through `read_into`, so that they are the same for all.
        into: Memory of ``source.size`` bytes that keeps what was hashed.
        also: Given the bytes in order, in runs of 4 MiB that it must not keep. No two calls overlap.
        progress: Called with the number of bytes hashed so far. What it raises ends the work.

    Raises:
        TruncatedError: The source has become shorter.
        OSError: Reading failed.

    >>> from safeweights.storage import BytesSource
    >>> sha256(BytesSource(b"abc"))[:16]
    'ba7816bf8f01cfea'
    """
    state = hashlib.sha256()
    size = source.size
    memory = memoryview(bytearray(min(size, 2 * RUN))) if into is None else into

    def read(begin: int) -> memoryview:
        place = begin if into is not None else begin % (2 * RUN)  # this run and the next one
        run = memory[place : place + min(RUN, size - begin)]
        source.read_into(begin, run)
        return run

    starts = range(0, size, RUN)
    threads = 0 if len(starts) <= 1 else 1 if also is None else 2
    with Background(threads, "safeweights-hash") as beside:
        coming = beside.submit(read, 0)
        for begin in starts:
            run = coming.result()
            if begin + RUN < size:
                coming = beside.submit(read, begin + RUN)
            looking = None if also is None else beside.submit(also, run)
            state.update(run)
            if looking is not None:
                looking.result()
            if progress is not None:
                progress(begin + len(run))
    return state.hexdigest()
