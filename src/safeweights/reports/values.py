"""Parts of a tensor as NumPy arrays, within bounded memory: read, cut into blocks, summarised, saved.

Types that NumPy does not have come from ml_dtypes; where it is not installed, they are decoded to F32.
"""

from __future__ import annotations

import io
import math
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import SelectionError
from ..format.dtypes import BITS, DTYPES
from ..format.indexing import Selection
from ..frameworks.numpy import WIDENING, dtype_of_values, numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..checkpoint import Tensor

__all__ = [
    "blocks",
    "first_values",
    "npy",
    "npy_dtype",
    "read",
    "render",
    "spelt",
    "split",
    "widen",
]

BLOCK: Final = 1 << 19
"""Elements of one block: some megabytes, whatever the type."""

_WHOLE_MAX: Final = 1 << 26
"""Bytes up to which a tensor of a sub-byte type is read whole for a part not made of whole bytes."""

_EDGES: Final = {1: 3, 2: 3, 3: 3, 4: 2, 5: 1, 6: 1}
"""Rank -> values shown at both ends of a long axis, so that under 1,000 are shown altogether."""


def read(tensor: Tensor, selection: Selection) -> Any:
    """The selected values, as an array of the selection's shape.

    Raises:
        UnsupportedError: NumPy cannot have the type (F6).
        SelectionError: Elements of a sub-byte type that do not fill whole bytes, in a tensor too
            large to be read whole for them.
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
    """The selected values in C order, flat arrays of at most `size` elements one after another."""
    for part in split(selection, size):
        yield read(tensor, part).reshape(-1)


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
    # Elements are selected ascending; an axis that is wanted descending is cut from its end.
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
    """The selected values as NumPy prints them; of more than `limit`, those at the corners.

    Cost: reads what it shows, a thousand values at most beyond `limit`.
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
    """An array that looks, with its middle left out, like the whole one."""
    parts = [_ends(count, edges, exact=BITS[tensor.dtype] >= 8) for count in selection.counts]
    shape = [sum(count for _, count in ends) for ends in parts]
    corners = np.empty(shape, dtype_of_values(tensor.dtype))
    for choice in product(*(_placed(ends) for ends in parts)):
        part = selection
        for axis, (_, first, count) in enumerate(choice):
            part = _narrow(part, axis, first, count)
        target = tuple(slice(at, at + count) for at, _, count in choice)
        # Within the corners every axis ascends; they are turned round together.
        corners[target] = read(tensor, part._replace(reversed=()))
    # Axes of one element come and go with integers and None; the others keep their order.
    long_axes = iter(size for size, count in zip(shape, selection.counts, strict=True) if count > 1)
    result = [1 if size == 1 else next(long_axes) for size in selection.shape]
    return np.flip(corners, selection.reversed).reshape(result)


def _ends(count: int, edges: int, *, exact: bool) -> list[tuple[int, int]]:
    """(first, number) of the elements that are shown of an axis of `count`."""
    # One more than is shown makes NumPy write the dots; types below a byte are read by whole bytes.
    begin, end = (edges + 1, edges) if exact else (8, 8)
    return [(0, count)] if count <= begin + end else [(0, begin), (count - end, end)]


def _placed(ends: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(position among the corners, first, number) of each end."""
    at = 0
    placed = []
    for first, count in ends:
        placed.append((at, first, count))
        at += count
    return placed


def widen(array: Any, kind: Any = np.float64) -> Any:
    """An array in a wider type; NaNs of any kind stay NaNs, without a warning."""
    with np.errstate(all="ignore"):
        return array.astype(kind, copy=False)


def spelt(array: Any) -> Iterator[str]:
    """Each value with the digits that it takes to be read as the same number again.

    Types of fewer than 32 bits are spelt as float32, which holds each of their values exactly: their
    own fewest digits (6.55e+04 for the 65504 of F16) are another number to whoever reads them as more.
    """
    if array.dtype.kind not in "biuc" and array.dtype.itemsize < 4:
        array = widen(array, np.float32)
    return map(str, array)


def npy_dtype(tensor: Tensor) -> Any:
    """The type in which `npy` writes a tensor.

    Those that NumPy itself does not have (BF16, F8, F4) are written as float32, which holds each of
    their values exactly.
    """
    return np.dtype("<f4") if DTYPES[tensor.dtype].ml_dtypes else numpy_dtype(tensor.dtype)


def npy(tensor: Tensor, selection: Selection) -> Iterator[bytes | memoryview]:
    """The bytes of a ``.npy`` file (NumPy format 1.0) with the selected values, a block at a time."""
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
