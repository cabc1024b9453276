"""Where the elements of an array are: source, offset, shape, strides. Pure arithmetic, without NumPy.

`strided` reads what this describes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import FormatError, quote
from ..format.dtypes import BITS, byte_count
from .element_types import FOREIGN, item_size

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from ..storage import Source
    from ..storage.limits import Limits

__all__ = ["Strided", "contiguous_strides", "format_shape", "raw_type", "size_in_file"]


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

    def transposed(self, order: Sequence[int]) -> Strided:
        """The same elements, with the axes in another order."""
        return replace(
            self,
            shape=tuple(self.shape[axis] for axis in order),
            strides=tuple(self.strides[axis] for axis in order),
        )

    def with_axis(self, axis: int) -> Strided:
        """The same elements, with a new axis of length 1 in front of `axis`."""
        return replace(
            self,
            shape=(*self.shape[:axis], 1, *self.shape[axis:]),
            strides=(*self.strides[:axis], 0, *self.strides[axis:]),
        )

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


def size_in_file(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; `shape` counts bytes of a packed type, as PyTorch does."""
    if dtype in FOREIGN:
        return math.prod(shape) * item_size(dtype)
    return byte_count(dtype, math.prod(format_shape(dtype, shape)))


def raw_type(width: int) -> str:
    """A NumPy type for copying elements of `width` bytes without interpreting them."""
    return f"u{width}" if width in (1, 2, 4, 8) else f"V{width}"
