"""Index expression + shape -> which bytes to read. NumPy's basic indexing, without reading anything.

A `Selection` says what an expression means for a shape; `runs` says where its elements stand in the
tensor's bytes: equal runs of contiguous bytes, repeated at regular distances. A column of a large
matrix is millions of runs, so they are described by a few numbers, never listed.

Arrays and masks are not basic indexing; whoever offers them reads first and indexes afterwards.
"""

from __future__ import annotations

import math
from operator import index as as_index
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import SelectionError, UnsupportedError
from .dtypes import BITS
from .rules import MAX_RANK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Runs", "Selection", "require_reversible", "runs", "select"]


class Selection(NamedTuple):
    """What an index expression selects.

    Attributes:
        starts: First element read along each axis of the tensor.
        counts: Elements read along each axis.
        steps: Distance between them, at least 1: elements are read in ascending order.
        reversed: Axes whose elements come in descending order in the result.
        shape: Shape of the result; axes indexed by an integer are gone, new axes are 1.
    """

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    steps: tuple[int, ...]
    reversed: tuple[int, ...]
    shape: tuple[int, ...]


class Runs(NamedTuple):
    """Where selected bytes stand: runs of `length` bytes, the first at `offset`.

    Attributes:
        offset: Byte offset of the first run in the tensor.
        length: Bytes of each run.
        loops: (repetitions, distance in bytes), outermost first; their product is the number of
            runs.
    """

    offset: int
    length: int
    loops: tuple[tuple[int, int], ...]

    @property
    def run_count(self) -> int:
        """Number of runs."""
        return math.prod(repetitions for repetitions, _ in self.loops)

    @property
    def nbytes(self) -> int:
        """Bytes selected."""
        return self.length * self.run_count

    @property
    def span(self) -> int:
        """Bytes from the first selected to one past the last."""
        if self.nbytes == 0:
            return 0
        return self.length + sum((repetitions - 1) * stride for repetitions, stride in self.loops)

    def offsets(self) -> Iterator[int]:
        """The offset of each run, ascending."""
        return _offsets(self.offset, self.loops)


def select(expression: Any, shape: Sequence[int], *, clamp: bool = False) -> Selection:
    """What ``tensor[expression]`` means for a tensor of `shape`.

    Integers, slices with any step, one ``...`` and None, as in NumPy (basic indexing), except
    that a slice whose bounds lie beyond the axis is an error unless `clamp` is set: the reference
    refuses it, and so is a typing mistake found.

    Raises:
        SelectionError: The expression does not fit the shape; the texts are the reference's.

    >>> select((slice(None), -1), (4, 3))
    Selection(starts=(0, 2), counts=(4, 1), steps=(1, 1), reversed=(), shape=(4,))
    """
    items = _expand(expression, shape)
    starts, counts, steps, flipped, result = [], [], [], [], []
    axis = 0
    for item in items:
        if item is None:
            result.append(1)
            continue
        size = shape[axis]
        if isinstance(item, slice):
            places = _places(item, size, axis, expression, shape, clamp=clamp)
            if places.step < 0:
                places = places[::-1]
                flipped.append(axis)
            # len() of a range ends at 2^63, a dimension beside a zero need not.
            count = (places[-1] - places[0]) // places.step + 1 if places else 0
            result.append(count)
            starts.append(places.start if places else 0)
            counts.append(count)
            steps.append(places.step)
        else:
            starts.append(_place(item, size, axis, expression, shape))
            counts.append(1)
            steps.append(1)
        axis += 1
    if len(result) > MAX_RANK:
        raise SelectionError(
            f"the selection would have {len(result)} dimensions, there can be {MAX_RANK}"
        )
    return Selection(tuple(starts), tuple(counts), tuple(steps), tuple(flipped), tuple(result))


def runs(selection: Selection, shape: Sequence[int], dtype: str) -> Runs:
    """Where the elements of `selection` stand in a tensor of `shape` and `dtype`, in C order.

    Raises:
        SelectionError: Elements of a sub-byte type that do not begin and end at byte boundaries.

    >>> runs(select((slice(None), 1), (4, 3)), (4, 3), "F32")
    Runs(offset=4, length=4, loops=((4, 12),))
    """
    if 0 in selection.counts:
        return Runs(0, 0, ())
    stride = BITS[dtype]  # in bits, of the axis at hand
    offset, length = 0, stride
    loops: list[tuple[int, int]] = []
    for start, count, step, size in zip(
        selection.starts[::-1],
        selection.counts[::-1],
        selection.steps[::-1],
        list(shape)[::-1],
        strict=True,
    ):
        offset += start * stride
        if length == stride and not loops and (step == 1 or count == 1):
            length = count * stride  # all that is inside this axis is read: the run grows
        elif count > 1:
            distance = step * stride
            if loops and loops[-1][0] * loops[-1][1] == distance:
                loops[-1] = (loops[-1][0] * count, loops[-1][1])  # the runs go on at the same pace
            else:
                loops.append((count, distance))
        stride *= size
    whole = [offset, length, *(distance for _, distance in loops)]
    if any(bits % 8 for bits in whole):
        raise SelectionError(
            f"The slice is slicing for subbytes dtypes, and the slice does not end up at a byte "
            f"boundary, this is invalid. ({dtype} elements take {BITS[dtype]} bits: select whole bytes)"
        )
    return Runs(offset // 8, length // 8, tuple((n, bits // 8) for n, bits in loops[::-1]))


def require_reversible(selection: Selection, dtype: str) -> None:
    """Refuse bytes as the answer where elements that share them are wanted in descending order.

    Raises:
        UnsupportedError: They are.
    """
    if BITS[dtype] < 8 and len(selection.counts) - 1 in selection.reversed:
        raise UnsupportedError(f"{dtype} elements share bytes: their axis cannot be reversed")


def _offsets(first: int, loops: Sequence[tuple[int, int]]) -> Iterator[int]:
    if not loops:
        yield first
        return
    (repetitions, distance), *inner = loops
    outer = range(first, first + repetitions * distance, distance)
    if not inner:
        yield from outer
        return
    for place in outer:
        yield from _offsets(place, inner)


def _expand(expression: Any, shape: Sequence[int]) -> list[Any]:
    """The items of an expression, one for each axis, and None for each new one."""
    if isinstance(expression, list):
        if expression:
            raise SelectionError("Non empty lists are not implemented")
        expression = slice(0, 0)
    given = expression if isinstance(expression, tuple) else (expression,)
    items = [_basic(item, position) for position, item in enumerate(given)]
    named = sum(item is not None and item is not Ellipsis for item in items)
    ellipses = sum(item is Ellipsis for item in items)
    if ellipses > 1:
        raise SelectionError("Only one ellipsis (...) is allowed in slice index")
    if named > len(shape):
        raise _error(expression, shape, "more slicing indexes than dimensions in tensor")
    if not ellipses:
        items.append(Ellipsis)
    at = next(place for place, item in enumerate(items) if item is Ellipsis)
    items[at : at + 1] = [slice(None)] * (len(shape) - named)
    return items


def _basic(item: Any, position: int) -> Any:
    """A slice, None, ``...`` or int."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    # A truth value or array of one element has __index__ too, but means something else.
    truth = isinstance(item, bool) or str(getattr(item, "dtype", "")).endswith("bool")
    try:
        place = None if truth or getattr(item, "ndim", None) else as_index(item)
    except TypeError:
        place = None
    if place is None:
        raise SelectionError(
            f"Unsupported slice index at position {position}: expected slice, int, or ellipsis, "
            f"found {type(item).__name__}"
        )
    return place


def _place(place: int, size: int, axis: int, expression: Any, shape: Sequence[int]) -> int:
    if place < -size:
        raise SelectionError(f"Invalid index {place} for dimension {axis} of size {size}")
    if place >= size:
        raise _out_of_bounds(place, size, axis, expression, shape)
    return place % size


def _places(
    item: slice, size: int, axis: int, expression: Any, shape: Sequence[int], *, clamp: bool
) -> range:
    try:
        places = range(size)[item]
    except ValueError as error:
        raise _error(expression, shape, "slice step cannot be zero") from error
    except TypeError as error:
        raise _error(expression, shape, f"slice bounds are integers or None: {error}") from error
    start, stop = (None if bound is None else as_index(bound) for bound in (item.start, item.stop))
    if not clamp and start is not None and start > size:
        raise _out_of_bounds(start, size, axis, expression, shape)
    if not clamp and stop is not None and stop > size:
        raise _out_of_bounds(stop - 1, size, axis, expression, shape)
    return places


def _out_of_bounds(
    place: int, size: int, axis: int, expression: Any, shape: Sequence[int]
) -> SelectionError:
    what = f"index {place} out of bounds for tensor dimension #{axis} of size {size}"
    return _error(expression, shape, what)


def _error(expression: Any, shape: Sequence[int], what: str) -> SelectionError:
    return SelectionError(
        f"Error during slicing {_show(expression)} with shape {list(shape)}: {what}"
    )


def _show(expression: Any) -> str:
    items = expression if isinstance(expression, tuple) else (expression,)
    return f"[{', '.join(map(_show_item, items))}]"


def _show_item(item: Any) -> str:
    if item is Ellipsis:
        return "..."
    if not isinstance(item, slice):
        return str(item)
    bounds = [item.start, item.stop] if item.step is None else [item.start, item.stop, item.step]
    return ":".join("" if bound is None else str(bound) for bound in bounds)
