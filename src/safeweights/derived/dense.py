"""Convert sparse and quantised tensors to dense arrays, which the format can hold.

Only on request, because the dense array may be much larger than the data in the file, and dequantised
values replace the integers. Indices come from the file: each is checked against the shape before anything
is written.

Source of the layouts and of the affine map: PyTorch's documentation of torch.sparse and
torch.ao.quantization.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, UnsupportedError, quote
from ..format.dtypes import DTYPES
from .casting import numpy_type
from .element_types import item_size
from .layout import Strided, raw_type
from .strided import ComputedTensor, StridedTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..checkpoint import Tensor

__all__ = ["dequantize", "from_sparse", "read_array"]

Array = np.ndarray[Any, Any]


def read_array(array: Strided) -> Array:
    """Read all elements of `array`, with a NumPy type of the right width; values are not interpreted."""
    data = bytearray(array.nbytes)
    StridedTensor("", array).read_into(memoryview(data))
    return np.frombuffer(data, raw_type(item_size(array.dtype))).reshape(array.shape)


def _fault(name: str, message: str) -> FormatError:
    return FormatError(
        f"sparse tensor {quote(name)} is malformed: {message}", rule="sparse-tensor", tensor=name
    )


def from_sparse(name: str, layout: str, parts: Sequence[Strided], shape: tuple[int, ...]) -> Tensor:
    """The dense form of a sparse tensor, computed when it is read.

    Args:
        name: Name of the tensor.
        layout: ``sparse_coo`` with parts (indices, values), or ``sparse_csr``, ``_csc``, ``_bsr``,
            ``_bsc`` with parts (compressed indices, plain indices, values).
        parts: The arrays, as above.
        shape: The dense shape.

    Raises:
        FormatError: The parts do not fit together. Indices are checked when the tensor is read.
        UnsupportedError: It is a batch of compressed matrices.
    """
    values = parts[-1]
    for part in parts[:-1]:
        if part.dtype not in ("I64", "I32"):
            raise _fault(name, f"its indices are of type {part.dtype}")
    place = _place_coo if layout == "sparse_coo" else _place_compressed

    def compute(target: memoryview) -> None:
        target[:] = bytes(1) * len(target)
        out = np.frombuffer(target, raw_type(item_size(values.dtype))).reshape(shape)
        place(name, layout, parts, out)

    return ComputedTensor(name, values.dtype, shape, compute)


def _indices(array: Strided) -> Array:
    return read_array(array).view("<i8" if array.dtype == "I64" else "<i4").astype(np.int64)


def _check_range(name: str, indices: Array, bound: int) -> None:
    if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= bound):
        raise _fault(name, f"an index is outside the range 0 to {bound - 1}")


def _place_coo(name: str, _: str, parts: Sequence[Strided], out: Array) -> None:
    indices, values = _indices(parts[0]), read_array(parts[1])
    if indices.ndim != 2 or indices.shape[0] > out.ndim or values.ndim < 1:
        raise _fault(name, "its index array does not fit its shape")
    axes, count = indices.shape
    if values.shape != (count, *out.shape[axes:]):
        raise _fault(name, "its values do not fit its shape")
    for axis in range(axes):
        _check_range(name, indices[axis], out.shape[axis])
    rows = out.reshape(math.prod(out.shape[:axes]), *out.shape[axes:])
    flat = np.zeros(count, np.int64)
    for axis in range(axes):
        flat = flat * out.shape[axis] + indices[axis]
    if len(np.unique(flat)) == count:
        rows[flat] = values
        return
    # Values with equal indices are added: PyTorch calls such a tensor uncoalesced.
    code = parts[1].dtype
    if code not in DTYPES or DTYPES[code].ml_dtypes or code == "BOOL":
        raise UnsupportedError(
            f"sparse tensor {quote(name)} of type {code} repeats indices; coalesce it first"
        )
    kind = numpy_type(code)
    np.add.at(rows.view(kind), flat, values.view(kind))


def _place_compressed(name: str, layout: str, parts: Sequence[Strided], out: Array) -> None:
    pointers, plain, values = _indices(parts[0]), _indices(parts[1]), read_array(parts[2])
    if pointers.ndim != 1 or plain.ndim != 1 or out.ndim < 2:
        raise UnsupportedError(f"sparse tensor {quote(name)} is a batch of matrices")
    if values.ndim == 1 or layout in ("sparse_csr", "sparse_csc"):
        values = values.reshape(len(values), 1, 1, *values.shape[1:])
    block = values.shape[1:3]
    blocks = tuple(n // b if b else 0 for n, b in zip(out.shape, block, strict=False))
    by_row = layout in ("sparse_csr", "sparse_bsr")
    count = blocks[0] if by_row else blocks[1]
    steps = np.diff(pointers)
    whole = all(b and n % b == 0 for n, b in zip(out.shape, block, strict=False))
    valid = len(pointers) == count + 1 and int(pointers[0]) == 0 and not (steps < 0).any()
    if not whole or not valid or int(pointers[-1]) != len(plain) or len(values) != len(plain):
        raise _fault(name, "its compressed indices do not fit its shape")
    if values.shape[3:] != out.shape[2:]:
        raise _fault(name, "its values do not fit its shape")
    _check_range(name, plain, blocks[1] if by_row else blocks[0])
    compressed = np.repeat(np.arange(count), steps)
    rows, columns = (compressed, plain) if by_row else (plain, compressed)
    grid = out.reshape(blocks[0], block[0], blocks[1], block[1], *out.shape[2:])
    grid.swapaxes(1, 2)[rows, columns] = values


def dequantize(
    name: str, array: Strided, scale: Array, zero_point: Array, axis: int | None
) -> Tensor:
    """The values of a quantised tensor as F32: (q - zero_point) * scale.

    Args:
        name: Name of the tensor.
        array: The integers q.
        scale: One number, or one per index along `axis`.
        zero_point: One number, or one per index along `axis`.
        axis: Axis with a scale and a zero point per index; None for one of each.

    Raises:
        FormatError: The number of scales or zero points is not the length of the axis.
    """
    kinds = {"QI8": "i1", "QU8": "u1", "QI32": "<i4"}
    if array.dtype not in kinds:
        raise FormatError(f"tensor {quote(name)} does not have a quantised type", rule="quantised")
    if axis is not None and {scale.shape, zero_point.shape} != {(array.shape[axis],)}:
        raise FormatError(
            f"quantised tensor {quote(name)} has {scale.size} scales and {zero_point.size} zero "
            f"points for {array.shape[axis]} channels",
            rule="quantised",
            tensor=name,
        )
    extent = [1] * len(array.shape)
    if axis is not None:
        extent[axis] = array.shape[axis]

    # As PyTorch: one scale multiplies in single precision, a scale per channel in double precision.
    precision = "<f4" if axis is None else "<f8"

    def compute(target: memoryview) -> None:
        integers = read_array(array).view(kinds[array.dtype])
        out = np.frombuffer(target, "<f4").reshape(array.shape)
        zeros, scales = (part.reshape(extent or ()) for part in (zero_point, scale))
        np.subtract(integers.astype("<f4"), zeros.astype("<f4"), out=out)
        np.multiply(out, scales.astype(precision), out=out, dtype=precision, casting="unsafe")

    return ComputedTensor(name, "F32", array.shape, compute)
