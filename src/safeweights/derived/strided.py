"""Arrays with strides, as other formats store them, read as tensors of this format.

`layout.Strided` describes an array. `StridedTensor` reads it in C order, little-endian, and applies
conjugation and negation, which PyTorch files only mark by a bit. A contiguous array is read directly into
the caller's buffer. Any other is gathered block by block in the order of the source, so that each byte of
the source is read once.

Knows nothing of containers or pickles.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..checkpoint import Tensor
from ..errors import SafetensorError, UnsupportedError, quote
from ..format.dtypes import byte_count
from ..format.indexing import Runs
from ..storage import allocate, gather
from .element_types import FLOATS, item_size
from .layout import Strided, format_shape, raw_type, size_in_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..storage import Buffer, Source

__all__ = ["ComputedTensor", "StridedTensor", "read_elements", "reorder"]

_BLOCK: Final = 16 << 20
"""Bytes of the source that a gather holds in memory at a time."""
_SLAB: Final = 8 << 20
"""Bytes that are read together, to be spread over an array that is not contiguous."""


def reorder(array: Strided, data: memoryview) -> None:
    """Swap, conjugate and negate elements of `array` in place, as the format has them."""
    if array.swapped:
        width = item_size(array.dtype) // (2 if array.dtype in ("C64", "C128", "C32") else 1)
        if width > 1:
            np.frombuffer(data, f"u{width}").byteswap(inplace=True)
    if array.negative or array.conjugate:
        # Conjugation and negation together leave the imaginary part unchanged.
        imaginary = array.conjugate != array.negative
        _flip_signs(data, array.dtype, real=array.negative, imaginary=imaginary)


class WholeTensor(Tensor):
    """A tensor that can only be computed as a whole.

    A read of the whole tensor computes it directly in the caller's buffer. The first read of a part
    computes the whole and keeps it, until as many bytes have been read as the tensor has.
    """

    streams = False

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

    def in_blocks(self, memory: memoryview) -> Iterator[memoryview]:
        size = len(memory)
        whole = memory[: self.nbytes] if self.nbytes <= size else allocate(self.nbytes)
        self.read_into(whole)
        yield from (whole[begin : begin + size] for begin in range(0, self.nbytes, size))

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
        self.streams = array.contiguous

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        """Fill `buffer` with bytes of the tensor, beginning at byte `offset`."""
        array = self.array
        target = self._target(buffer, offset)
        aligned = self._aligned(offset) and self._aligned(len(target))
        if array.contiguous and (aligned or not array.reordered):
            array.source.read_into(array.start + offset, target)
            reorder(array, target)
        else:
            super().read_into(target, offset)

    def chunks(self, size: int = 1 << 24) -> Iterator[Buffer]:
        """Yield its bytes in order: pieces of at most `size` if it is contiguous, else one piece."""
        return Tensor.chunks(self, size) if self.array.contiguous else super().chunks(size)

    def in_blocks(self, memory: memoryview) -> Iterator[memoryview]:
        return (
            Tensor.in_blocks(self, memory) if self.array.contiguous else super().in_blocks(memory)
        )

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
        reorder(array, target)


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
        reorder(array, target)
    elif array.reordered:
        _read_slabs(array, output)
    elif not array.source.in_memory:
        # In the order of the source, so that of a transposed matrix no gap is read either.
        axes = sorted(range(len(array.shape)), key=lambda axis: -array.strides[axis])
        ordered = array.transposed(axes)
        read = _read_slabs if _descending(ordered) else _gather
        read(ordered, output.transpose(axes))
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
    reorder(array, memory)
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

    computed = True

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
