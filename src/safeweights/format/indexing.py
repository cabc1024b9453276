"""Index expression + shape -> the bytes to read. NumPy's basic indexing, without I/O.

`select` turns an expression into a `Selection`: start, count and step along each axis. `runs` turns that
into byte ranges of the tensor: runs of equal length, repeated at regular distances. A column of a large
matrix has millions of runs, so `Runs` describes them by loops (count, distance) instead of a list.

Index arrays and masks are not basic indexing. Callers that accept them read the whole tensor first.
Source: "Basic indexing" in the documentation of NumPy; error texts and bounds as in safetensors 0.8.
"""

from __future__ import annotations

import math
from operator import index as as_index
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import SelectionError, StepError, UnsupportedError
from .dtypes import BITS
from .rules import MAX_RANK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Runs", "Selection", "require_reversible", "runs", "select"]


class Selection(NamedTuple):
    """What an index expression selects.

    Attributes:
        starts: First element to read along each axis of the tensor.
        counts: Number of elements to read along each axis.
        steps: Distance between elements along each axis, at least 1: reading is always ascending.
        reversed: Axes that must be reversed after reading, because their step is negative.
        shape: Shape of the result, without axes indexed by an integer, with 1 for each None.
    """

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    steps: tuple[int, ...]
    reversed: tuple[int, ...]
    shape: tuple[int, ...]


class Runs(NamedTuple):
    """Byte ranges of a tensor: runs of `length` bytes, the first at `offset`.

    Attributes:
        offset: Byte offset of the first run in the tensor.
        length: Bytes of each run.
        loops: (repetitions, distance in bytes) of nested loops over the runs, outermost first.
    """

    offset: int
    length: int
    loops: tuple[tuple[int, int], ...]

    @property
    def run_count(self) -> int:
        """Number of runs: the product of all repetitions."""
        return math.prod(repetitions for repetitions, _ in self.loops)

    @property
    def nbytes(self) -> int:
        """Number of selected bytes."""
        return self.length * self.run_count

    @property
    def span(self) -> int:
        """Number of bytes from the first selected byte to the last, inclusive."""
        if self.nbytes == 0:
            return 0
        return self.length + sum((repetitions - 1) * stride for repetitions, stride in self.loops)

    def offsets(self) -> Iterator[int]:
        """The byte offset of each run, ascending."""
        return _offsets(self.offset, self.loops)

    def offset_of(self, index: int) -> int:
        """The byte offset of one run.

        >>> Runs(5, 1, ((2, 100), (3, 10))).offset_of(4)
        115
        """
        place = self.offset
        for repetitions, distance in reversed(self.loops):
            index, step = divmod(index, repetitions)
            place += step * distance
        return place


def select(expression: Any, shape: Sequence[int], *, clamp: bool = False) -> Selection:
    """Resolve ``tensor[expression]`` for a tensor of `shape`.

    Args:
        expression: Integers, slices with any step other than 0, at most one ``...``, and None, as in
            NumPy's basic indexing.
        shape: Elements along each axis of the tensor.
        clamp: Clamp slice bounds to the axis, as NumPy does. By default a bound beyond the end of the
            axis is an error, as in the reference.

    Raises:
        SelectionError: The expression does not fit the shape, or the result would have more than
            `MAX_RANK` dimensions.

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
            # Not len(): it fails above 2^63, which a dimension may exceed if another one is 0.
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
            f"the result would have {len(result)} dimensions, at most {MAX_RANK} are possible"
        )
    return Selection(tuple(starts), tuple(counts), tuple(steps), tuple(flipped), tuple(result))


def runs(selection: Selection, shape: Sequence[int], dtype: str) -> Runs:
    """The byte ranges of `selection` in a tensor of `shape` and `dtype`, in C order.

    Adjacent ranges are joined: a selection of whole rows is one run.

    Raises:
        SelectionError: A run of a sub-byte type does not begin or end at a byte boundary.

    >>> runs(select((slice(None), 1), (4, 3)), (4, 3), "F32")
    Runs(offset=4, length=4, loops=((4, 12),))
    """
    if 0 in selection.counts:
        return Runs(0, 0, ())
    stride = BITS[
        dtype
    ]  # distance in bits between neighbours along the current axis, the last one first
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
            length = (
                count * stride
            )  # the inner axes are read completely, so the run extends over this one
        elif count > 1:
            distance = step * stride
            if loops and loops[-1][0] * loops[-1][1] == distance:
                loops[-1] = (loops[-1][0] * count, loops[-1][1])  # same distance: one longer loop
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
    """Check that `selection` can be reversed by moving whole bytes.

    Raises:
        UnsupportedError: It reverses the last axis of a sub-byte type, whose elements share bytes.
    """
    if BITS[dtype] < 8 and len(selection.counts) - 1 in selection.reversed:
        raise UnsupportedError(
            f"a negative step along the last axis is not supported for {dtype}: elements share bytes"
        )


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
    """The items of an expression: one per axis of the tensor, and None for each new axis."""
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
    """`item` if it is a slice, None or ``...``, else as an int."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    # A bool and an array with one element have __index__ too, but NumPy gives them another meaning.
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
        message = str(_error(expression, shape, "slice step cannot be zero"))
        raise StepError(message) from error
    except TypeError as error:
        raise _error(expression, shape, "slice bounds must be integers or None") from error
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
