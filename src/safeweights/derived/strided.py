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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..checkpoint import Tensor
from ..errors import FormatError, SafetensorError, UnsupportedError, quote
from ..format.dtypes import BITS, byte_count
from ..format.indexing import Runs
from ..storage import allocate, gather
from .element_types import FLOATS, FOREIGN, item_size

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from ..storage import Buffer, Source
    from ..storage.limits import Limits

__all__ = [
    "ComputedTensor", "Strided", "StridedTensor", "contiguous_strides", "format_shape", "raw_type",
    "read_elements", "size_in_file",
]  # fmt: skip

_BLOCK: Final = 16 << 20
"""Bytes of the source that a gather holds in memory at a time."""
_SLAB: Final = 8 << 20
"""Bytes that are read together, to be spread over an array that is not contiguous."""


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

    @property
    def reordered(self) -> bool:
        """Whether the bytes of an element differ from those in a file of the format."""
        return self.swapped or self.conjugate or self.negative

    def part(self, starts: Sequence[int], counts: Sequence[int], steps: Sequence[int]) -> Strided:
        """The elements from `starts` on, `counts` along each axis, every `steps` of them."""
        first = sum(start * stride for start, stride in zip(starts, self.strides, strict=True))
        strides = tuple(step * stride for step, stride in zip(steps, self.strides, strict=True))
        begin = self.start + first * item_size(self.dtype)
        return replace(self, start=begin, shape=tuple(counts), strides=strides)

    def reorder(self, data: memoryview) -> None:
        """Swap, conjugate and negate elements in place, as the format has them."""
        if self.swapped:
            width = item_size(self.dtype) // (2 if self.dtype in ("C64", "C128", "C32") else 1)
            if width > 1:
                np.frombuffer(data, f"u{width}").byteswap(inplace=True)
        if self.negative or self.conjugate:
            # Conjugation and negation together leave the imaginary part unchanged.
            imaginary = self.conjugate != self.negative
            _flip_signs(data, self.dtype, real=self.negative, imaginary=imaginary)

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


def format_shape(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
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
        size = size_in_file(array.dtype, array.shape)
        super().__init__(name, array.dtype, format_shape(array.dtype, array.shape), size)
        self.array = array

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        """Fill `buffer` with bytes of the tensor, beginning at byte `offset`."""
        array = self.array
        target = self._target(buffer, offset)
        aligned = self._aligned(offset) and self._aligned(len(target))
        if array.contiguous and (aligned or not array.reordered):
            array.source.read_into(array.start + offset, target)
            array.reorder(target)
        else:
            super().read_into(target, offset)

    def chunks(self, size: int = 1 << 24) -> Iterator[Buffer]:
        """Yield its bytes in order: pieces of at most `size` if it is contiguous, else one piece."""
        return Tensor.chunks(self, size) if self.array.contiguous else super().chunks(size)

    def view(self) -> memoryview:
        """The tensor's bytes: the source's memory if no reordering is needed, else a copy."""
        if self.array.contiguous and not self.array.reordered:
            return self.array.source.view(self.array.start, self.nbytes)
        return super().view()

    def _aligned(self, offset: int) -> bool:
        return offset % item_size(self.array.dtype) == 0

    def _make(self, target: memoryview) -> None:
        array = self.array
        if array.contiguous:
            array.source.read_into(array.start, target)
        elif array.elements:
            whole = np.frombuffer(target, raw_type(item_size(array.dtype)))
            kept = [count for count in array.shape if count != 1]  # NumPy before 2.0 has 32 axes
            _gather(array, whole.reshape(kept))
        array.reorder(target)


def size_in_file(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; `shape` counts bytes of a packed type, as PyTorch does."""
    if dtype in FOREIGN:
        return math.prod(shape) * item_size(dtype)
    return byte_count(dtype, math.prod(format_shape(dtype, shape)))


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


def read_elements(array: Strided, output: np.ndarray[Any, Any]) -> None:
    """Copy the elements of `array` into `output`, in the byte order of the format.

    Cost: each byte is read once, straight into `output` if both are contiguous; otherwise with at most
    16 MiB of memory besides. Of gaps between elements at most 4 KiB each are read.

    Args:
        array: What to read.
        output: An array of the same shape and of `raw_type`, which may have any strides.
    """
    if not array.elements:
        return
    if array.contiguous and output.flags.c_contiguous:
        target = output.reshape(-1).view(np.uint8).data
        array.source.read_into(array.start, target)
        array.reorder(target)
    elif array.reordered or (_descending(array) and not array.source.in_memory):
        _read_slabs(array, output)
    else:
        _gather(array, output)


def _descending(array: Strided) -> bool:
    """Whether the elements lie in C order, perhaps with gaps."""
    kept = [
        (count, stride)
        for count, stride in zip(array.shape, array.strides, strict=True)
        if count > 1
    ]
    inner = [stride for _, stride in kept[1:]]
    return all(
        stride >= count * below
        for (_, stride), (count, _), below in zip(kept, kept[1:], inner, strict=False)
    ) and (not kept or kept[-1][1] > 0)


def _read_slabs(array: Strided, output: np.ndarray[Any, Any]) -> None:
    """Read pieces of at most `_SLAB` bytes, contiguous in memory, and copy them to their places."""
    axis = next((axis for axis, count in enumerate(array.shape) if count > 1), None)
    if axis is None or array.nbytes <= _SLAB:
        output[...] = _read_slab(array, output.dtype)
        return
    count = array.shape[axis]
    step = max(1, count * _SLAB // array.nbytes)
    ones = (1,) * len(array.shape)
    for first in range(0, count, step):
        some = min(step, count - first)
        starts = tuple(first if each == axis else 0 for each in range(len(array.shape)))
        counts = (*array.shape[:axis], some, *array.shape[axis + 1 :])
        place = (*(slice(None) for _ in range(axis)), slice(first, first + some))
        _read_slabs(array.part(starts, counts, ones), output[place])


def _read_slab(array: Strided, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    memory = allocate(array.nbytes)
    source, slab = array.source, np.frombuffer(memory, dtype).reshape(array.shape)
    if array.contiguous:
        source.read_into(array.start, memory)
    elif _descending(array):
        width = item_size(array.dtype)
        loops = tuple(
            (count, stride * width)
            for count, stride in zip(array.shape, array.strides, strict=True)
            if count > 1
        )
        runs = Runs(array.start, width, loops)
        if loops and loops[-1][1] == width:  # the last axis is contiguous
            runs = Runs(array.start, width * loops[-1][0], loops[:-1])
        gather(runs, lambda buffer, offset: source.read_into(offset, buffer), memory)
    else:
        _gather(array, slab)
    array.reorder(memory)
    return slab


def _gather(array: Strided, output: np.ndarray[Any, Any]) -> None:
    """Copy the elements of `array` into `output`, reading the source in its order."""
    width = item_size(array.dtype)
    # Drop axes of length 1: NumPy before 2.0 allows only 32 axes.
    kept = [axis for axis, count in enumerate(array.shape) if count != 1]
    output = output.reshape([array.shape[axis] for axis in kept])
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
