"""Boxes in a grid of elements: whether they cover it, where they overlap, which hold a range of it.

A box is (offsets, lengths), one number an axis. Pure arithmetic; knows no tensor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Box", "BoxTable", "boxes_of_range", "first_gap", "first_overlap"]

_FEW: Final = 16
"""Number of boxes up to which a loop is faster than NumPy."""


class Box(NamedTuple):
    """A box of elements: where it begins, and how long it is, along each axis."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def volume(self) -> int:
        """Number of elements."""
        return math.prod(self.lengths)

    @property
    def ends(self) -> tuple[int, ...]:
        """The first index after the box along each axis."""
        return tuple(map(sum, zip(self.offsets, self.lengths, strict=True)))


class BoxTable:
    """Many boxes of one grid, as arrays.

    Args:
        boxes: At least one; all numbers fit 64 bits.
    """

    def __init__(self, boxes: Sequence[Box]) -> None:
        self._boxes = boxes
        self._arrays: tuple[Any, Any] | None = None

    def arrays(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Offsets and ends, an array of (boxes, axes) each."""
        if self._arrays is None:
            shape = len(self._boxes), len(self._boxes[0].offsets)
            starts = np.array([box.offsets for box in self._boxes], np.int64).reshape(shape)
            ends = np.array([box.ends for box in self._boxes], np.int64).reshape(shape)
            self._arrays = starts, ends
        return self._arrays

    def touching(self, first: Sequence[int], end: Sequence[int]) -> Sequence[int]:
        """Positions of the boxes that may hold an element from `first` to `end`, which is excluded."""
        if len(self._boxes) <= _FEW:
            return range(len(self._boxes))
        starts, ends = self.arrays()
        hit = (starts < np.array(end, np.int64)).all(1) & (ends > np.array(first, np.int64)).all(1)
        found: list[int] = np.flatnonzero(hit).tolist()
        return found


def first_overlap(boxes: Sequence[Box]) -> tuple[int, int] | None:
    """Positions of two boxes that have an element in common; None if there are none.

    Cost: n log n for boxes in a row, at worst n**2 comparisons by NumPy.

    >>> first_overlap([Box((0,), (4,)), Box((4,), (4,)), Box((6,), (1,))])
    (1, 2)
    """
    full = [place for place, box in enumerate(boxes) if box.volume]
    if len(full) < 2:
        return None
    starts, ends = BoxTable([boxes[place] for place in full]).arrays()
    if not starts.shape[1]:
        return full[0], full[1]
    axis = max(range(starts.shape[1]), key=lambda each: len(set(starts[:, each].tolist())))
    order = np.argsort(starts[:, axis], kind="stable")
    starts, ends = starts[order], ends[order]
    # Along `axis`, box i can only meet those after it that begin before it ends.
    reach = np.searchsorted(starts[:, axis], ends[:, axis], "left")
    for place in np.flatnonzero(reach > np.arange(1, len(full) + 1)).tolist():
        others = slice(place + 1, int(reach[place]))
        hit = (starts[others] < ends[place]).all(1) & (ends[others] > starts[place]).all(1)
        if hit.any():
            pair = sorted((int(order[place]), int(order[place + 1 + int(hit.argmax())])))
            return full[pair[0]], full[pair[1]]
    return None


def first_gap(grid: Sequence[int], boxes: Sequence[Box]) -> tuple[int, ...] | None:
    """The first element of `grid` that is in none of `boxes`; None if they cover it.

    Args:
        grid: Elements along each axis.
        boxes: Boxes inside the grid that do not overlap.

    >>> first_gap((2, 4), [Box((0, 0), (1, 4)), Box((1, 0), (1, 3))])
    (1, 3)
    """
    if sum(box.volume for box in boxes) == math.prod(grid):
        return None
    if not grid:
        return ()
    full = [box for box in boxes if box.volume]
    for place in sorted({0, *(box.ends[0] for box in full)}):
        if place >= grid[0]:
            break
        across = [
            Box(box.offsets[1:], box.lengths[1:])
            for box in full
            if box.offsets[0] <= place < box.ends[0]
        ]
        inner = first_gap(grid[1:], across)
        if inner is not None:
            return (place, *inner)
    return None  # pragma: no cover - fewer elements than the grid has leave one out


def boxes_of_range(grid: Sequence[int], begin: int, end: int) -> Iterator[Box]:
    """The boxes that make up elements `begin` to `end` of a grid in C order, one after another.

    There are at most two an axis, and the elements of each are contiguous in that order.

    >>> [tuple(box) for box in boxes_of_range((3, 4), 2, 9)]
    [((0, 2), (1, 2)), ((1, 0), (1, 4)), ((2, 0), (1, 1))]
    """
    if begin >= end:
        return
    if not grid:
        yield Box((), ())
        return
    row = math.prod(grid[1:])
    first, head = divmod(begin, row)
    last, tail = divmod(end, row)
    if head:
        stop = row if first < last else tail
        yield from _in_row(grid, first, head, stop)
        first += 1
    if first < last:
        rest = tuple(grid[1:])
        yield Box((first, *(0 for _ in rest)), (last - first, *rest))
    if tail and last >= first:
        yield from _in_row(grid, last, 0, tail)


def _in_row(grid: Sequence[int], row: int, begin: int, end: int) -> Iterator[Box]:
    for offsets, lengths in boxes_of_range(grid[1:], begin, end):
        yield Box((row, *offsets), (1, *lengths))
