"""Reading ahead: the next pieces are made in another thread while the current one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

from .background import Background
from .computing import Computed
from .runs import Run

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from .source import Buffer

__all__ = ["InMemory", "ahead", "read_ahead"]

_DEPTH: Final = 2
_TOGETHER: Final = 1 << 20
"""Bytes that are handed over at a time: for less, waking the other thread costs more than it gains."""


Item = TypeVar("Item")
Piece = TypeVar("Piece", bound="Buffer | Run | Computed")


class InMemory(Iterator[Piece]):
    """Pieces that exist already: to take more of them before some are written costs no memory.

    Args:
        pieces: The pieces.
        size: Bytes of all.
    """

    def __init__(self, pieces: Iterable[Piece], size: int) -> None:
        self._pieces = iter(pieces)
        self.size = size

    def __next__(self) -> Piece:
        return next(self._pieces)


def read_ahead(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same pieces, each made in another thread while those before it are used.

    Memory: two pieces more than without, or two MiB where pieces are small.

    Raises:
        Exception: What making a piece raised, after those before it were handed out. (Small pieces are
            made a MiB at a time: those of the same MiB are lost.)
    """
    for made in ahead(_together(pieces), _DEPTH):
        made.reverse()
        while made:
            yield made.pop()  # so that only the consumer holds it


def ahead(items: Iterable[Item], depth: int = 1) -> Generator[Item]:
    """The same items, up to `depth` of them made in another thread while the one before is used.

    Close it, or use it up: it ends the thread.

    Raises:
        Exception: What making an item raised, after those before it were handed out.
    """
    remaining = iter(items)
    with Background(name="safeweights-ahead") as beside:
        coming = deque(beside.submit(_next, remaining) for _ in range(depth))
        while made := coming.popleft().result():
            coming.append(beside.submit(_next, remaining))
            yield made.pop()


def _next(remaining: Iterator[Item]) -> list[Item]:
    """The next item; none at the end. In a list, so that nothing else holds it once it is used."""
    return [*islice(remaining, 1)]


def _together(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces of a MiB together, or one that is larger."""
    made: list[Piece] = []
    size = 0
    for piece in pieces:
        made.append(piece)
        size += piece.length if isinstance(piece, Run | Computed) else memoryview(piece).nbytes
        if size >= _TOGETHER:
            yield made
            made, size = [], 0
    if made:
        yield made
