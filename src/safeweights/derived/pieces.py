"""A tensor whose elements are in several places: boxes that different files or processes wrote.

`PiecewiseTensor` reads only what is asked for, from the pieces that hold it. `check_cover` proves
that the pieces make up the whole tensor: none reaches outside, none overlaps another, none is missing.

Knows nothing of files, formats or ranks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..checkpoint import FileTensor, Tensor
from ..errors import FormatError, UnsupportedError, quote
from ..format.dtypes import BITS
from ..storage import Source, allocate
from .boxes import Box, BoxTable, boxes_of_range, first_gap, first_overlap
from .element_types import item_size
from .layout import Strided, contiguous_strides, format_shape, raw_type, size_in_file
from .strided import read_elements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..format.indexing import Selection
    from ..storage import Buffer

__all__ = ["Piece", "PiecewiseTensor", "as_strided", "check_cover"]

_AXES_MAX: Final = 32
_SIZE_MAX: Final = 1 << 62
_CHUNK: Final = 8 << 20


class Piece:
    """A box of a tensor, and where its elements are.

    Args:
        box: Its place in the tensor.
        find: Gives the array of its elements, of the box's lengths. Called once, when it is first needed.
        label: What to call it in messages.
    """

    __slots__ = ("_array", "_find", "box", "label")

    def __init__(self, box: Box, find: Callable[[], Strided], label: str) -> None:
        self.box = box
        self.label = label
        self._find = find
        self._array: Strided | None = None

    @property
    def array(self) -> Strided:
        """The elements.

        Raises:
            FormatError: What is there is not what it should be.
        """
        if self._array is None:
            self._array = self._find()
        return self._array


def check_cover(name: str, grid: Sequence[int], pieces: Sequence[Piece], path: str) -> None:
    """Check that `pieces` make up a tensor of shape `grid`.

    Cost: n log n for pieces in a row; see `first_overlap`.

    Raises:
        FormatError: A number is impossible (rule ``pieces-bounds``), a piece reaches outside, two overlap
            (``pieces-overlap``), or an element is in none (``pieces-gap``).
    """

    def fault(rule: str, message: str) -> FormatError:
        return FormatError(message, rule=rule, path=path, tensor=name)

    boxes = [piece.box for piece in pieces]
    numbers = [*grid, *(n for box in boxes for n in (*box.offsets, *box.lengths))]
    if len(grid) > _AXES_MAX or any(not 0 <= n < _SIZE_MAX for n in numbers):
        raise fault("pieces-bounds", f"tensor {quote(name)} has an impossible shape")
    if math.prod(grid) >= _SIZE_MAX:
        raise fault("pieces-bounds", f"tensor {quote(name)} is too large")
    for piece in pieces:
        box = piece.box
        same = len(box.offsets) == len(box.lengths) == len(grid)
        if not same or any(end > size for end, size in zip(box.ends, grid, strict=True)):
            message = (
                f"{piece.label}, {_describe(box)}, reaches outside of tensor {quote(name)} of shape "
                f"{list(grid)}"
            )
            raise fault("pieces-bounds", message)
    if (pair := first_overlap(boxes)) is not None:
        one, other = (pieces[place] for place in pair)
        message = (
            f"two pieces of tensor {quote(name)} overlap: {one.label}, {_describe(one.box)}, and "
            f"{other.label}, {_describe(other.box)}"
        )
        raise fault("pieces-overlap", message)
    if (gap := first_gap(grid, boxes)) is not None:
        total, there = math.prod(grid), sum(box.volume for box in boxes)
        message = (
            f"tensor {quote(name)} is incomplete: {there:,} of its {total:,} elements are there; the "
            f"first missing one is {list(gap)}"
        )
        raise fault("pieces-gap", message)


def _describe(box: Box) -> str:
    return f"{list(box.lengths)} at {list(box.offsets)}"


class PiecewiseTensor(Tensor):
    """A tensor made up of pieces, in C order and little-endian.

    Cost: a read opens and reads only the pieces that hold what is asked for, straight into the caller's
    memory where both are contiguous, otherwise with at most 16 MiB besides.

    Args:
        name: Its name.
        dtype: Code of the element type.
        shape: Elements along each axis; bytes for a packed type, as in PyTorch.
        pieces: What `check_cover` accepts for `grid`.
        grid: The shape in which the boxes count, if it is not `shape`: as many elements, in the same order.
    """

    __slots__ = ("_table", "grid", "pieces")

    def __init__(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        pieces: Sequence[Piece],
        grid: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(name, dtype, format_shape(dtype, shape), size_in_file(dtype, shape))
        self.grid = shape if grid is None else grid
        self.pieces = tuple(piece for piece in pieces if piece.box.volume)
        self._table = BoxTable([piece.box for piece in self.pieces])

    def prepare(self) -> None:
        """Open every piece, which reads what describes it and no element.

        Raises:
            FormatError: One is not what it should be.
            OSError: One cannot be read.
        """
        for piece in self.pieces:
            _ = piece.array

    def chunks(self, size: int = _CHUNK) -> Iterator[Buffer]:
        """All bytes in order, at most `size` at a time: smaller pieces than of one file.

        A writer has some four chunks in memory, besides what reading takes.
        """
        return super().chunks(size)

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        target = self._within(buffer, offset)
        width = item_size(self.dtype)
        begin, end = offset // width, -(-(offset + len(target)) // width)
        if (end - begin) * width != len(target):  # parts of elements at the ends
            memory = allocate((end - begin) * width)
            self._read_range_into(begin, end, memory)
            skip = offset - begin * width
            target[:] = memory[skip : skip + len(target)]
        else:
            self._read_range_into(begin, end, target)

    def read_selection(self, selection: Selection) -> memoryview:
        if self.grid != self.shape or BITS.get(self.dtype, 8) < 8:
            return super().read_selection(selection)
        width = item_size(self.dtype)
        out = allocate(math.prod(selection.counts) * width)
        array = np.frombuffer(out, raw_type(width)).reshape(selection.counts)
        self._fill(selection.starts, selection.counts, selection.steps, array)
        return out

    def _read_range(self, offset: int, length: int) -> memoryview:
        if len(self.pieces) == 1:
            array = self.pieces[0].array
            if array.contiguous and not array.reordered:
                return array.source.view(array.start + offset, length)
        return super()._read_range(offset, length)

    def _read_range_into(self, begin: int, end: int, target: memoryview) -> None:
        width = item_size(self.dtype)
        for box in boxes_of_range(self.grid, begin, end):
            memory, target = target[: box.volume * width], target[box.volume * width :]
            array = np.frombuffer(memory, raw_type(width)).reshape(box.lengths)
            self._fill(box.offsets, box.lengths, (1,) * len(box.lengths), array)

    def _fill(
        self,
        starts: tuple[int, ...],
        counts: tuple[int, ...],
        steps: tuple[int, ...],
        output: np.ndarray[Any, Any],
    ) -> None:
        """Read the elements from `starts` on, `counts` along each axis, every `steps` of them."""
        if 0 in counts:
            return
        ends = [
            start + (count - 1) * step + 1
            for start, count, step in zip(starts, counts, steps, strict=True)
        ]
        for place in self._table.touching(starts, ends):
            piece = self.pieces[place]
            found = [_common(*axis) for axis in zip(starts, counts, steps, *piece.box, strict=True)]
            some = tuple(low_high[1] - low_high[0] for low_high, _ in found)
            if all(count > 0 for count in some):
                part = piece.array.part([first for _, first in found], some, steps)
                # The dots make it a view of an array without axes, too, not a copy of its element.
                target: Any = (*(slice(*low_high) for low_high, _ in found), ...)
                read_elements(part, output[target])


def _common(
    start: int, count: int, step: int, offset: int, length: int
) -> tuple[tuple[int, int], int]:
    """Which of `count` elements are in a piece, and where in the piece the first of them is."""
    low = max(0, -(-(offset - start) // step))
    high = min(count, -(-(offset + length - start) // step))
    return (low, high), start + low * step - offset


class _TensorSource(Source):
    """The bytes of a tensor that is not contiguous in a file: cast, computed, put together."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.name = tensor.name
        self.size = tensor.nbytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._tensor.read_into(buffer, offset)


def as_strided(tensor: Tensor) -> Strided:
    """The array of a tensor; F4 counts bytes.

    Raises:
        UnsupportedError: It is of another packed type, or cannot be read.
    """
    tensor.check_readable()
    info = tensor.info
    shape = info.shape
    if BITS[info.dtype] == 6:
        raise UnsupportedError(f"pieces of type {info.dtype} cannot be put together")
    if format_shape(info.dtype, (1,)) != (1,):
        shape = (*shape[:-1], shape[-1] // 2)
    strides = contiguous_strides(shape)
    if isinstance(tensor, FileTensor):
        start = tensor.data_start + info.begin
        return Strided(tensor.source, start, info.dtype, shape, strides)
    return Strided(_TensorSource(tensor), 0, info.dtype, shape, strides)
