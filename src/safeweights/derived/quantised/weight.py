"""A quantised weight, and the tensor of numbers that it stands for.

A scheme describes a weight as a `Weight`: its shape and a function that computes a rectangle of it in
float32. `DequantizedTensor` makes an unread tensor of that. It computes in tiles of a quarter of a million
elements, which stay in a processor's cache, in several threads, and reads only the stored bytes that the
requested elements need.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ...checkpoint import Tensor
from ...errors import FormatError, UnsupportedError, quote
from ...format.dtypes import BITS, byte_count
from ...format.indexing import Selection
from ...storage import allocate
from ...storage.parallel import in_parallel
from ..small_floats import CODES, narrowed, widened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "DTYPES",
    "DequantizedTensor",
    "Range",
    "Weight",
    "fault",
    "numbers",
    "read_box",
    "require_dtype",
]

Array = np.ndarray[Any, Any]

DTYPES: Final = ("F32", "BF16", "F16", "F64")
"""Element types that dequantised values may have; the first is the default and keeps every value."""

RULE: Final = "quantised"
_TILE: Final = 1 << 18
_THREADS: Final = 4  # each has a few tiles in memory: at most 32 MiB together


def require_dtype(dtype: str) -> None:
    """Check that values can be dequantised to an element type.

    Raises:
        UnsupportedError: It is none of `DTYPES`.
    """
    if dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise UnsupportedError(f"values are dequantised to {known}, not to {quote(str(dtype))}")


class Range(NamedTuple):
    """Indices from `begin` to `end` along an axis."""

    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin

    def blocks(self, size: int) -> Range:
        """The blocks of `size` indices that contain this range."""
        return Range(self.begin // size, -(-self.end // size))


def fault(tensor: Tensor, message: str, *, rule: str = RULE) -> FormatError:
    """The error that a stored part of a quantised weight breaks a rule of its scheme."""
    source = getattr(tensor, "source", None)
    return FormatError(
        f"{quote(tensor.name)}: {message}",
        rule=rule,
        path=getattr(source, "name", None) or None,
        tensor=tensor.name,
    )


_RAW: Final = {
    "BOOL": "u1", "U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4",
    "I64": "<i8", "U64": "<u8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2",
}  # fmt: skip


def read_box(tensor: Tensor, *ranges: Range) -> Array:
    """The elements of a stored tensor in a range along each axis, as they are stored.

    Types that NumPy lacks come as unsigned integers of their width; F4 as bytes of two elements.

    Raises:
        FormatError: The tensor has a type that no scheme uses, such as a complex one.
    """
    kind = _RAW.get(tensor.dtype, "u1" if tensor.dtype in CODES else None)
    if kind is None:
        raise fault(
            tensor, f"no scheme has parts of element type {tensor.dtype}", rule="quantised-type"
        )
    counts = tuple(map(len, ranges))
    starts = tuple(each.begin for each in ranges)
    data = tensor.read_selection(Selection(starts, counts, (1,) * len(counts), (), counts))
    if BITS[tensor.dtype] == 4:
        counts = (*counts[:-1], counts[-1] // 2)
    return np.frombuffer(data, kind).reshape(counts)


def numbers(tensor: Tensor, stored: Array, code: str | None = None) -> Array:
    """What `read_box` gave of a tensor, as float32 values.

    Args:
        tensor: The tensor; for its element type.
        stored: Its elements, as they are stored.
        code: The type that the elements mean, if that is not the tensor's own: E8M0 in a U8 tensor.
    """
    code = code or tensor.dtype
    if code in CODES:
        shape = (*stored.shape[:-1], stored.shape[-1] * 2) if code == "F4" else stored.shape
        return widened(code, np.ascontiguousarray(stored).data).reshape(shape)
    return stored.astype("<f4")


class Weight(ABC):
    """One quantised weight: its stored parts, and how its values are computed.

    The dense tensor is taken for `batches` matrices of `rows` x `columns`; its last axis is the columns.

    Attributes:
        name: Name of the dense tensor.
        scheme: Name of the scheme, such as ``"gptq"``.
        shape: Shape of the dense tensor.
        parts: Role -> stored tensor.
        grain: Rows and columns that `values` computes together; ranges begin at multiples of these.
        tile: Rows that are best computed together, where the stored order is not the dense one; 0: any.
    """

    scheme = ""
    grain = (1, 1)
    tile = 0

    def __init__(self, name: str, shape: tuple[int, ...], parts: Mapping[str, Tensor]) -> None:
        self.name = name
        self.shape = shape
        self.parts = dict(parts)

    @abstractmethod
    def values(self, batch: int, rows: Range, columns: Range) -> Array:
        """The values of a rectangle, as a float32 array of its shape.

        Raises:
            FormatError: A stored part breaks a rule of the scheme.
        """

    @property
    def anchor(self) -> Tensor:
        """The stored tensor that holds the codes."""
        return next(iter(self.parts.values()))

    @property
    def rows(self) -> int:
        """Rows of each matrix."""
        return self.shape[-2] if len(self.shape) > 1 else 1

    @property
    def columns(self) -> int:
        """Columns of each matrix."""
        return self.shape[-1] if self.shape else 1


class DequantizedTensor(Tensor):
    """The values of a quantised weight, computed when they are read.

    Cost: a read computes the tiles that it touches, in up to four threads; at most 32 MiB are in memory
    beside the result. Values are computed in float32; for BF16 and F16 each is then rounded to the
    nearest value, ties to even.

    Args:
        weight: The weight.
        dtype: One of `DTYPES`.

    Raises:
        UnsupportedError: `dtype` is no such type.
    """

    __slots__ = ("weight",)

    def __init__(self, weight: Weight, dtype: str = "F32") -> None:
        require_dtype(dtype)
        size = byte_count(dtype, math.prod(weight.shape))
        super().__init__(weight.name, dtype, weight.shape, size)
        self.weight = weight

    def astype(self, dtype: str) -> DequantizedTensor:
        """The same weight, dequantised to another type."""
        return DequantizedTensor(self.weight, dtype)

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        """Fill a buffer with the tensor's bytes from `offset` on.

        Raises:
            FormatError: A stored part breaks a rule of the scheme.
            UnsupportedError: The element type cannot hold a value.
        """
        target = self._within(buffer, offset)
        width = BITS[self.dtype] // 8
        first, skip = divmod(offset, width)
        end = -(-(offset + len(target)) // width)
        if skip or (end - first) * width != len(target) or not target.contiguous:
            whole = allocate((end - first) * width)
            self._fill(np.frombuffer(whole, _RAW[self.dtype]), first)
            target[:] = whole[skip : skip + len(target)]
        else:
            self._fill(np.frombuffer(target, _RAW[self.dtype]), first)

    def read_selection(self, selection: Selection) -> memoryview:
        """The bytes of the selected elements, ascending along each axis, in C order; see `Tensor`."""
        axes = [
            range(start, start + count * step, step)
            for start, count, step in zip(
                selection.starts, selection.counts, selection.steps, strict=True
            )
        ]
        while len(axes) < 2:
            axes.insert(0, range(1))
        *outer, rows, columns = axes
        counts = tuple(map(len, axes))
        data = allocate(math.prod(counts) * BITS[self.dtype] // 8)
        if not data:
            return data
        out = np.frombuffer(data, _RAW[self.dtype]).reshape(-1, counts[-2], counts[-1])
        shape = self.shape[:-2]
        for place, index in enumerate(np.ndindex(*map(len, outer))):
            batch = 0
            for axis, position in enumerate(index):
                batch = batch * shape[axis] + outer[axis][position]
            self._pick(batch, rows, columns, out[place])
        return data

    # -- computing

    def _pick(self, batch: int, rows: range, columns: range, out: Array) -> None:
        """Every element of `rows` x `columns`, which may have steps, into `out`."""
        width = columns[-1] + 1 - columns.start
        # Rows far apart are computed one by one, close ones together with what lies between them.
        most = max(1, _TILE // (width * rows.step)) if rows.step <= 4 else 1
        for at in range(0, len(rows), most):
            some = rows[at : at + most]
            reach = Range(some.start, some[-1] + 1)
            block = allocate(len(reach) * width * BITS[self.dtype] // 8)
            values = np.frombuffer(block, out.dtype).reshape(len(reach), width)
            self._rectangle(batch, reach, Range(columns.start, columns[-1] + 1), values)
            out[at : at + most] = values[:: rows.step, :: columns.step]

    def _fill(self, out: Array, first: int) -> None:
        """The elements from index `first` on, in C order."""
        columns = self.weight.columns
        done = 0
        while done < len(out):
            row, column = divmod(first + done, columns)
            batch, row = divmod(row, self.weight.rows)
            left = len(out) - done
            if column or left < columns:
                count = min(left, columns - column)
                place, reach = Range(row, row + 1), Range(column, column + count)
            else:
                some = min(left // columns, self.weight.rows - row)
                count = some * columns
                place, reach = Range(row, row + some), Range(0, columns)
            part = out[done : done + count].reshape(len(place), len(reach))
            self._rectangle(batch, place, reach, part)
            done += count

    def _rectangle(self, batch: int, rows: Range, columns: Range, out: Array) -> None:
        tiles = list(self._tiles(rows, columns))

        def work(begin: int, end: int) -> None:
            for some, reach in tiles[begin:end]:
                with np.errstate(all="ignore"):  # schemes look at the numbers themselves
                    values = self._values(batch, some, reach)
                place = (
                    slice(some.begin - rows.begin, some.end - rows.begin),
                    slice(reach.begin - columns.begin, reach.end - columns.begin),
                )
                self._store(values, out[place])

        in_parallel(work, len(tiles), chunk=1, threads=_THREADS)

    def _tiles(self, rows: Range, columns: Range) -> Iterator[tuple[Range, Range]]:
        """Rectangles that cover one, aligned with the grain of the scheme where they meet."""
        tall, wide = self.weight.grain
        most = self.weight.tile or max(1, _TILE // max(1, len(columns)))
        height = max(tall, most // tall * tall)
        width = max(wide, _TILE // min(height, max(1, len(rows))) // wide * wide)
        for row in _steps(rows, height):
            for column in _steps(columns, width):
                yield row, column

    def _values(self, batch: int, rows: Range, columns: Range) -> Array:
        tall, wide = self.weight.grain
        top, left = rows.begin // tall * tall, columns.begin // wide * wide
        bottom = min(-(-rows.end // tall) * tall, self.weight.rows)
        right = min(-(-columns.end // wide) * wide, self.weight.columns)
        found = self.weight.values(batch, Range(top, bottom), Range(left, right))
        return found[rows.begin - top : rows.end - top, columns.begin - left : columns.end - left]

    def _store(self, values: Array, out: Array) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            if self.dtype == "BF16":
                out[...] = narrowed("BF16", values.reshape(-1)).reshape(values.shape)
                lost = (out & 0x7F80) == 0x7F80
            else:
                out[...] = values
                if self.dtype != "F16":
                    return
                lost = ~np.isfinite(out)
            if lost.any() and np.isfinite(values[lost]).any():
                raise UnsupportedError(
                    f"tensor {quote(self.name)} has values beyond the range of {self.dtype}: "
                    f"{float(np.abs(values[lost]).max())!r}; dequantise it to F32",
                    tensor=self.name,
                )


def _steps(reach: Range, size: int) -> Iterator[Range]:
    """Pieces of a range that end at multiples of `size`."""
    begin = reach.begin
    while begin < reach.end:
        end = min(reach.end, (begin // size + 1) * size)
        yield Range(begin, end)
        begin = end
