"""Reading ahead: the next pieces are made in another thread while the current one is used."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar

from .background import Background
from .computing import Computed
from .runs import Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .source import Buffer

__all__ = ["read_ahead"]

_DEPTH: Final = 2
_TOGETHER: Final = 1 << 20
"""Bytes that are handed over at a time: for less, waking the other thread costs more than it gains."""


Piece = TypeVar("Piece", bound="Buffer | Run | Computed")


def read_ahead(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same pieces, each made in another thread while those before it are used.

    Memory: two pieces more than without, or two MiB where pieces are small.

    Raises:
        Exception: What making a piece raised, after those before it were handed out. (Small pieces are
            made a MiB at a time: those of the same MiB are lost.)
    """
    remaining = iter(pieces)
    with Background(name="safeweights-ahead") as beside:
        coming = deque(beside.submit(_next, remaining) for _ in range(_DEPTH))
        while made := coming.popleft().result():
            coming.append(beside.submit(_next, remaining))
            made.reverse()
            while made:
                yield made.pop()  # so that only the consumer holds it


def _next(remaining: Iterator[Piece]) -> list[Piece]:
    """Pieces of a MiB together, or one that is larger; none at the end."""
    made: list[Piece] = []
    size = 0
    for piece in remaining:
        made.append(piece)
        size += piece.length if isinstance(piece, Run | Computed) else memoryview(piece).nbytes
        if size >= _TOGETHER:
            break
    return made
