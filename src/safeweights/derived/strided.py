"""Arrays with strides, as other formats store them, read as tensors of this format.

`Strided` describes an array: source, byte offset, shape, strides. `StridedTensor` reads it in C order,
little-endian, and applies conjugation and negation, which PyTorch files only mark by a bit. A contiguous
array is read directly into the caller's buffer. Any other is gathered block by block in the order of the
source, so that each byte of the source is read once.

Knows nothing of containers or pickles.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..checkpoint import Tensor
from ..errors import FormatError, SafetensorError, UnsupportedError, quote
from ..format.dtypes import BITS, byte_count
from .element_types import FLOATS, FOREIGN, item_size

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from ..storage import Buffer, Source
    from ..storage.limits import Limits

__all__ = ["ComputedTensor", "Strided", "StridedTensor", "contiguous_strides", "raw_type"]

_BLOCK: Final = 16 << 20
"""Bytes of the source that a gather holds in memory at a time."""


def contiguous_strides(shape: tuple[int, ...], *, fortran: bool = False) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous array of `shape`.

    >>> contiguous_strides((2, 3)), contiguous_strides((2, 3), fortran=True)
    ((3, 1), (1, 2))
    """
    order = range(len(shape)) if fortran else range(len(shape) - 1, -1, -1)
    strides = [0] * len(shape)
    step = 1
    for axis in order:
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


@dataclass(frozen=True, eq=False)
class Strided:
    """Position and layout of an array in a source.

    Attributes:
        source: The bytes.
        start: Byte offset of the first element (index 0 along each axis).
        dtype: Code of the format or of `element_types.FOREIGN`.
        shape: Elements along each axis; bytes for a packed type.
        strides: Distance in elements between neighbours along each axis, at least 0.
        swapped: The elements are big-endian.
        conjugate, negative: The values must be conjugated or negated when they are read.
        storage: Identity of the storage; arrays with the same one may share bytes.
    """

    source: Source
    start: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    swapped: bool = False
    conjugate: bool = False
    negative: bool = False
    storage: Hashable = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the contiguous array."""
        return self.elements * item_size(self.dtype)

    @property
    def span(self) -> int:
        """Bytes of the source from the first element to the end of the last one."""
        if not self.elements:
            return 0
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return (last + 1) * item_size(self.dtype)

    @property
    def contiguous(self) -> bool:
        """Whether the elements are contiguous in C order."""
        expected = 1
        for count, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if count > 1 and stride != expected:
                return False
            expected *= count
        return True

    @property
    def identity(self) -> Hashable:
        """A key that is equal for two arrays with the same bytes, type, shape and strides."""
        bits = (self.swapped, self.conjugate, self.negative)
        where = self.storage if self.storage is not None else id(self.source)
        return where, self.start, self.dtype, self.shape, self._significant_strides(), bits

    def _significant_strides(self) -> tuple[int, ...]:
        return tuple(s if n > 1 else 0 for n, s in zip(self.shape, self.strides, strict=True))

    def check(self, name: str, limits: Limits) -> None:
        """Check that the array lies inside its source.

        Raises:
            FormatError: The rank exceeds the limit, a number is negative, or the source is too short.
        """
        path = self.source.name
        if len(self.shape) != len(self.strides) or len(self.shape) > limits.tensor_rank:
            message = f"tensor {quote(name)} has {len(self.shape)} dimensions"
            raise FormatError(message, rule="tensor-geometry", path=path, tensor=name)
        if self.start < 0 or any(n < 0 for n in self.shape) or any(s < 0 for s in self.strides):
            message = f"tensor {quote(name)} has a negative size, stride or offset"
            raise FormatError(message, rule="tensor-geometry", path=path, tensor=name)
        if self.elements and self.start + self.span > self.source.size:
            raise FormatError(
                f"tensor {quote(name)} needs {self.start + self.span} bytes of its storage, "
                f"which has {self.source.size}",
                rule="tensor-geometry",
                path=path,
                tensor=name,
            )


def _format_shape(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a header: PyTorch counts bytes of F4, a header counts elements, two per byte."""
    if dtype in BITS and BITS[dtype] < 8 and shape and BITS[dtype] == 4:
        return (*shape[:-1], shape[-1] * 2)
    return shape


class WholeTensor(Tensor):
    """A tensor that can only be computed as a whole.

    A read of the whole tensor computes it directly in the caller's buffer. The first read of a part
    computes the whole and keeps it, until as many bytes have been read as the tensor has.
    """

    def __init__(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
        super().__init__(name, dtype, shape, nbytes)
        self._lock = threading.Lock()
        self._whole: memoryview | None = None
        self._served = 0

    def _make(self, target: memoryview) -> None:
        """Fill `target` with the whole tensor."""
        raise NotImplementedError

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        """Fill `buffer` with bytes of the tensor, beginning at byte `offset`."""
        target = self._target(buffer, offset)
        if len(target) == self.nbytes:
            self._make(target)
            return
        with self._lock:
            if self._whole is None:
                self._whole = memoryview(bytearray(self.nbytes))
                self._served = 0
                self._make(self._whole)
            target[:] = self._whole[offset : offset + len(target)]
            self._served += len(target)
            if self._served >= self.nbytes:
                self._whole = None

    def chunks(self, size: int = 1 << 24) -> Iterator[Buffer]:  # noqa: ARG002 - one piece
        """Yield the whole tensor as one piece, because it is computed as a whole."""
        yield self.view()

    def _target(self, buffer: Any, offset: int) -> memoryview:
        target = memoryview(buffer).cast("B")
        if offset < 0 or offset + len(target) > self.nbytes:
            raise SafetensorError(
                f"bytes {offset} to {offset + len(target)} asked of tensor {quote(self.name)}, "
                f"which has {self.nbytes}",
                tensor=self.name,
            )
        return target


class StridedTensor(WholeTensor):
    """A tensor with the elements of a `Strided`, in C order and little-endian.

    Cost: a contiguous array is read directly into the buffer. Any other is gathered as a whole, with at
    most 16 MiB of the source in memory besides.
    """

    def __init__(self, name: str, array: Strided) -> None:
        size = _size_in_file(array)
        super().__init__(name, array.dtype, _format_shape(array.dtype, array.shape), size)
        self.array = array

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        """Fill `buffer` with bytes of the tensor, beginning at byte `offset`."""
        array = self.array
        target = self._target(buffer, offset)
        aligned = self._aligned(offset) and self._aligned(len(target))
        if array.contiguous and (aligned or not self._reordered):
            array.source.read_into(array.start + offset, target)
            self._reorder(target)
        else:
            super().read_into(target, offset)

    def chunks(self, size: int = 1 << 24) -> Iterator[Buffer]:
        """Yield its bytes in order: pieces of at most `size` if it is contiguous, else one piece."""
        return Tensor.chunks(self, size) if self.array.contiguous else super().chunks(size)

    def view(self) -> memoryview:
        """The tensor's bytes: the source's memory if no reordering is needed, else a copy."""
        if self.array.contiguous and not self._reordered:
            return self.array.source.view(self.array.start, self.nbytes)
        return super().view()

    @property
    def _reordered(self) -> bool:
        return self.array.swapped or self.array.conjugate or self.array.negative

    def _aligned(self, offset: int) -> bool:
        return offset % item_size(self.array.dtype) == 0

    def _make(self, target: memoryview) -> None:
        array = self.array
        if array.contiguous:
            array.source.read_into(array.start, target)
        elif array.elements:
            _gather(array, target)
        self._reorder(target)

    def _reorder(self, data: memoryview) -> None:
        """Swap, conjugate and negate in place."""
        code = self.array.dtype
        if self.array.swapped:
            width = item_size(code) // (2 if code in ("C64", "C128", "C32") else 1)
            if width > 1:
                np.frombuffer(data, f"u{width}").byteswap(inplace=True)
        if self.array.negative or self.array.conjugate:
            _flip_signs(data, code, real=self.array.negative, imaginary=self._imaginary_flips)

    @property
    def _imaginary_flips(self) -> bool:
        # Conjugation and negation together leave the imaginary part unchanged.
        return self.array.conjugate != self.array.negative


def _size_in_file(array: Strided) -> int:
    if array.dtype in FOREIGN:
        return array.nbytes
    return byte_count(array.dtype, math.prod(_format_shape(array.dtype, array.shape)))


def _flip_signs(data: memoryview, code: str, *, real: bool, imaginary: bool) -> None:
    """Negate in place: flip the sign bit of floats, take the two's complement of integers."""
    width = item_size(code)
    if code in ("C64", "C128", "C32"):
        parts = np.frombuffer(data, f"u{width // 2}").reshape(-1, 2)
        sign = np.array(1 << (4 * width - 1), parts.dtype)
        parts[:, 0] ^= sign if real else parts.dtype.type(0)
        parts[:, 1] ^= sign if imaginary else parts.dtype.type(0)
    elif not real:
        return
    elif code in FLOATS and width > 1:
        words = np.frombuffer(data, f"u{width}")
        words ^= np.array(1 << (8 * width - 1), words.dtype)
    elif code.startswith("I"):
        values = np.frombuffer(data, f"i{width}")
        np.negative(values, out=values)
    else:
        raise UnsupportedError(f"a tensor of type {code} cannot have its negative bit set")


def raw_type(width: int) -> str:
    """A NumPy type for copying elements of `width` bytes without interpreting them."""
    return f"u{width}" if width in (1, 2, 4, 8) else f"V{width}"


def _gather(array: Strided, target: memoryview) -> None:
    """Copy the elements of `array` into `target` in C order, reading the source in its order."""
    width = item_size(array.dtype)
    # Drop axes of length 1: NumPy before 2.0 allows only 32 axes.
    kept = [axis for axis, count in enumerate(array.shape) if count != 1]
    output = np.frombuffer(target, raw_type(width)).reshape([array.shape[axis] for axis in kept])
    # Axes by descending stride, so that the source is read in its order. Repeated axes (stride 0) come
    # last: their elements are copied within the block.
    order = sorted(range(len(kept)), key=lambda place: -array.strides[kept[place]])
    axes = [(array.shape[kept[place]], array.strides[kept[place]] * width) for place in order]
    _gather_axes(array.source, array.start, axes, output.transpose(order))


def _gather_axes(
    source: Source, start: int, axes: list[tuple[int, int]], output: np.ndarray[Any, Any]
) -> None:
    """Gather block by block along the first of `axes`, pairs (count, stride in bytes), at least one.

    If one step along it spans more than a block, each step is gathered separately, by recursion. Its depth
    is the rank, which `Strided.check` limits.
    """
    count, stride = axes[0]
    inner = sum((n - 1) * step for n, step in axes[1:]) + output.itemsize
    if inner > _BLOCK and axes[1:]:
        for index in range(count):
            _gather_axes(source, start + index * stride, axes[1:], output[index])
        return
    rows = max(1, (_BLOCK - inner) // max(stride, 1))
    strides = tuple(step for _, step in axes)
    for first in range(0, count, rows):
        some = min(rows, count - first)
        block = source.view(start + first * stride, inner + (some - 1) * stride)
        shape = (some, *output.shape[1:])
        output[first : first + some] = np.ndarray(shape, output.dtype, block, 0, strides)


class ComputedTensor(WholeTensor):
    """A tensor that a function computes.

    Cost: as `WholeTensor`: the first read computes the whole tensor.

    Args:
        name: Name of the tensor.
        dtype: Code of the element type.
        shape: Elements along each axis.
        compute: Fills the buffer that it gets with the whole tensor's bytes.
    """

    def __init__(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        compute: Callable[[memoryview], None],
    ) -> None:
        super().__init__(name, dtype, shape, byte_count(dtype, math.prod(shape)))
        self._compute = compute

    def _make(self, target: memoryview) -> None:
        self._compute(target)
