"""Making the next pieces while the current one is being used: reading while writing, in one thread more."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .source import Buffer

__all__ = ["read_ahead"]

_DEPTH: Final = 2
_TOGETHER: Final = 1 << 20
"""Bytes made before they are handed over: what is small is not worth a thread's attention."""


def read_ahead(pieces: Iterable[Buffer]) -> Iterator[Buffer]:
    """The same pieces, each made in another thread while those before it are being used.

    Memory: two pieces, or twice a MiB of small ones, more than without.

    Raises:
        Exception: What making one raised; those made before it came first, but for small ones.
    """
    from concurrent.futures import ThreadPoolExecutor  # as slow to import as all of this package

    remaining = iter(pieces)
    pool = ThreadPoolExecutor(1, "safeweights-ahead")
    try:
        try:
            coming = deque([pool.submit(_next, remaining)])
        except RuntimeError:
            # No thread to be had: at the interpreter's end, or in a full container.
            yield from remaining
            return
        coming.extend(pool.submit(_next, remaining) for _ in range(1, _DEPTH))
        while made := coming.popleft().result():
            coming.append(pool.submit(_next, remaining))
            made.reverse()
            while made:
                yield made.pop()  # so that nobody holds it but who uses it
    finally:
        pool.shutdown(cancel_futures=True)


def _next(remaining: Iterator[Buffer]) -> list[Buffer]:
    """Pieces of a MiB together, or one that is larger; none at the end."""
    made: list[Buffer] = []
    size = 0
    for piece in remaining:
        made.append(piece)
        size += memoryview(piece).nbytes
        if size >= _TOGETHER:
            break
    return made
