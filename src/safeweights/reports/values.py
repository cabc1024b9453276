"""Values of a part of a tensor as NumPy arrays, in bounded memory: read in blocks, printed, saved.

Types that NumPy lacks come from ml_dtypes; if it is not installed, they are decoded to F32.
"""

from __future__ import annotations

import io
import math
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..checkpoint.tensor import FileTensor
from ..errors import SelectionError
from ..format import indexing
from ..format.dtypes import BITS, DTYPES
from ..format.indexing import Selection
from ..frameworks.numpy import WIDENING, dtype_of_values, numpy_dtype
from ..storage.memory import allocate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..checkpoint import Tensor

__all__ = [
    "blocks",
    "first_values",
    "npy",
    "npy_dtype",
    "pieces",
    "read",
    "render",
    "single",
    "spelt",
    "split",
    "widen",
]

BLOCK: Final = 1 << 19
"""Elements of a block: a few megabytes for every type."""

_WHOLE_MAX: Final = 1 << 26
"""Maximum size of a sub-byte tensor that is read as a whole if a part does not fill whole bytes."""

_HALF_INFINITY: Final = 0x7C00
"""Bits of infinity in F16; those of NaNs are larger."""

_EDGES: Final = {1: 3, 2: 3, 3: 3, 4: 2, 5: 1, 6: 1}
"""Rank -> values printed at both ends of a long axis, so that fewer than 1,000 are printed in total."""


def read(tensor: Tensor, selection: Selection) -> Any:
    """The selected values, as an array of the selection's shape.

    Raises:
        UnsupportedError: NumPy cannot represent the type (F6).
        SelectionError: Selected elements of a sub-byte type do not fill whole bytes, and the tensor is
            too large to be read as a whole.
    """
    try:
        data = tensor.read_selection(selection)
    except SelectionError:
        if BITS[tensor.dtype] >= 8 or tensor.nbytes > _WHOLE_MAX:
            raise
        whole = WIDENING.decode(tensor.view(), tensor.dtype, tensor.shape, None)
        found = whole[_slices(selection)]
    else:
        found = WIDENING.decode(data, tensor.dtype, selection.counts, None)
    return np.flip(found, selection.reversed).reshape(selection.shape)


def _slices(selection: Selection) -> tuple[slice, ...]:
    return tuple(
        slice(start, start + count * step, step)
        for start, count, step in zip(
            selection.starts, selection.counts, selection.steps, strict=True
        )
    )


def blocks(tensor: Tensor, selection: Selection, size: int = BLOCK) -> Iterator[Any]:
    """The selected values in C order, as consecutive flat arrays of at most `size` elements."""
    for part in split(selection, size):
        yield read(tensor, part).reshape(-1)


def pieces(tensor: Tensor, selection: Selection, size: int) -> Iterator[Any]:
    """Like `blocks`, but each array is valid only until the next one is asked for.

    Cost: of a file all pieces are read into the same memory, which stays in the processor's cache if it is
    small enough: new memory for each would take as long as reading it.
    """
    bits = BITS[tensor.dtype]
    runs = None
    if isinstance(tensor, FileTensor) and not tensor.in_memory and bits >= 8:
        runs = indexing.runs(selection, tensor.shape, tensor.dtype)
    if runs is None or runs.run_count != 1 or selection.reversed:
        yield from blocks(tensor, selection, size)
        return
    step = size * bits // 8
    buffer = allocate(min(step, runs.nbytes))
    for begin in range(0, runs.nbytes, step):
        data = buffer[: min(step, runs.nbytes - begin)]
        tensor.read_into(data, runs.offset + begin)
        yield WIDENING.decode(data, tensor.dtype, (len(data) * 8 // bits,), None)


def split(selection: Selection, size: int) -> Iterator[Selection]:
    """Cut a selection into consecutive ones, in C order, of at most `size` elements."""
    counts = selection.counts
    if 0 in counts:
        return
    if math.prod(counts) <= size:
        yield selection
        return
    axis = next(place for place, count in enumerate(counts) if count > 1)
    step = max(1, size // math.prod(counts[axis + 1 :]))
    if step > 8:
        step -= step % 8  # whole bytes of any type
    firsts = range(0, counts[axis], step)
    # Selections are ascending. A reversed axis is cut from its end, so that blocks come in result order.
    for first in reversed(firsts) if axis in selection.reversed else firsts:
        yield from split(_narrow(selection, axis, first, min(step, counts[axis] - first)), size)


def _narrow(selection: Selection, axis: int, first: int, count: int) -> Selection:
    starts, counts = list(selection.starts), list(selection.counts)
    starts[axis] += first * selection.steps[axis]
    counts[axis] = count
    return Selection(
        tuple(starts), tuple(counts), selection.steps, selection.reversed, tuple(counts)
    )


def first_values(tensor: Tensor, selection: Selection, limit: int) -> Any:
    """The first `limit` selected values in C order, as one flat array."""
    found: list[Any] = []
    missing = min(limit, math.prod(selection.counts))
    for block in blocks(tensor, selection, max(8, min(limit, BLOCK))):
        found.append(block[:missing])
        missing -= len(found[-1])
        if missing <= 0:
            break
    return np.concatenate(found) if found else np.empty(0, dtype_of_values(tensor.dtype))


def render(tensor: Tensor, selection: Selection, *, limit: int, width: int) -> str:
    """The selected values as NumPy prints them; only the corners if there are more than `limit`.

    Cost: reads only the values that it prints: all, or at most a thousand at the corners.
    """
    total = math.prod(selection.counts)
    long_axes = sum(count > 1 for count in selection.counts)
    if total <= limit:
        shown, edges, threshold = read(tensor, selection), 3, total + 1
    elif long_axes in _EDGES:
        edges, threshold = _EDGES[long_axes], 0
        shown = _corners(tensor, selection, edges)
    else:
        shown, edges, threshold = first_values(tensor, selection, 1000), 3, 0
    return np.array2string(shown, max_line_width=width, edgeitems=edges, threshold=threshold)


def _corners(tensor: Tensor, selection: Selection, edges: int) -> Any:
    """A small array that NumPy prints like the whole one, with the middle left out."""
    parts = [_ends(count, edges, exact=BITS[tensor.dtype] >= 8) for count in selection.counts]
    shape = [sum(count for _, count in ends) for ends in parts]
    corners = np.empty(shape, dtype_of_values(tensor.dtype))
    for choice in product(*(_placed(ends) for ends in parts)):
        part = selection
        for axis, (_, first, count) in enumerate(choice):
            part = _narrow(part, axis, first, count)
        target = tuple(slice(at, at + count) for at, _, count in choice)
        # The corners are read in ascending order; all of them are reversed together below.
        corners[target] = read(tensor, part._replace(reversed=()))
    # Integers remove axes of length 1 and None adds them; the other axes keep their order.
    long_axes = iter(size for size, count in zip(shape, selection.counts, strict=True) if count > 1)
    result = [1 if size == 1 else next(long_axes) for size in selection.shape]
    return np.flip(corners, selection.reversed).reshape(result)


def _ends(count: int, edges: int, *, exact: bool) -> list[tuple[int, int]]:
    """(first, number) of the printed elements at both ends of an axis of `count` elements."""
    # One more than printed makes NumPy print the dots; sub-byte types are read in whole bytes.
    begin, end = (edges + 1, edges) if exact else (8, 8)
    return [(0, count)] if count <= begin + end else [(0, begin), (count - end, end)]


def _placed(ends: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(position in the small array, first, number) of each end."""
    at = 0
    placed = []
    for first, count in ends:
        placed.append((at, first, count))
        at += count
    return placed


def widen(array: Any, kind: Any = np.float64) -> Any:
    """Convert an array to a wider type; NaNs stay NaNs, without a warning."""
    with np.errstate(all="ignore"):
        return array.astype(kind, copy=False)


def single(array: Any) -> Any:
    """A flat array of F32, F16 or BF16 as float32, which holds their values exactly.

    Cost: a copy, unless it is float32 already: 0.3 ns a value for BF16 and 0.7 for F16; value by value, as
    NumPy and ml_dtypes convert them, it would be 1.4 and 5.

    >>> single(np.float16([1.5, -6e-8, np.inf])).tolist() == [1.5, -2.0**-24, math.inf]
    True
    """
    kind = array.dtype.char  # names of types take 5 us
    if kind == "f":
        return array
    if kind != "e":
        bits = array.view(np.uint16).astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    halves = array.view(np.int16)
    if (
        not array.size
        or halves.max() >= _HALF_INFINITY
        or array.view(np.uint16).max() >= _HALF_INFINITY | 1 << 15
    ):
        return array.astype(np.float32)
    # Exponent and mantissa move to their places in 32 bits. The exponent then counts from -127 instead of
    # -15, which the product corrects; subnormals of F16 become subnormals of F32, and get their value too.
    bits = halves.astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70002000)  # without the copies of the sign that the wider integer has
    values = bits.view(np.float32)
    values *= np.float32(2.0**112)
    return values


def spelt(array: Any) -> Iterator[str]:
    """Each value with as many digits as a program needs to read the same number.

    Types of fewer than 32 bits are written as float32, which holds their values exactly. The shortest
    digits of the type itself (6.55e+04 for 65504 in F16) would be another number in a wider type.
    """
    if array.dtype.kind not in "biuc" and array.dtype.itemsize < 4:
        array = widen(array, np.float32)
    return map(str, array)


def npy_dtype(tensor: Tensor) -> Any:
    """The type in which `npy` writes a tensor.

    BF16, F8 and F4, which NumPy lacks, are written as float32, which holds their values exactly.
    """
    return np.dtype("<f4") if DTYPES[tensor.dtype].ml_dtypes else numpy_dtype(tensor.dtype)


def npy(tensor: Tensor, selection: Selection) -> Iterator[bytes | memoryview]:
    """The bytes of a ``.npy`` file (format 1.0) with the selected values, block by block."""
    target = npy_dtype(tensor)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head,
        {
            "descr": np.lib.format.dtype_to_descr(target),
            "fortran_order": False,
            "shape": selection.shape,
        },
    )
    yield head.getvalue()
    for block in blocks(tensor, selection, 8 * BLOCK):
        yield np.ascontiguousarray(widen(block, target)).view(np.uint8).data
