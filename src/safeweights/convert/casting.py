"""Element types as NumPy computes with them, and tensors converted from one to another.

Types that NumPy lacks come from ml_dtypes, an optional package, asked for only when a value of such
a type has to be computed rather than copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from safeweights.checkpoint import Tensor
from safeweights.convert.element_types import FLOATS, FOREIGN, item_size
from safeweights.dtypes import BITS, DTYPES, byte_count
from safeweights.errors import MissingDependencyError, UnsupportedError, quote

__all__ = ["CastTensor", "cast", "numpy_type", "parse_casts"]

_BLOCK_ELEMENTS: Final = 1 << 20


def numpy_type(code: str) -> np.dtype[Any]:
    """The NumPy type, little-endian, that computes with elements of `code`.

    Raises:
        MissingDependencyError: ml_dtypes is needed.
        UnsupportedError: The type is packed or NumPy cannot compute with it.
    """
    if code == "C128":
        return np.dtype("<c16")
    row = DTYPES.get(code)
    if row is None or row.bits < 8:
        raise UnsupportedError(f"values of type {quote(code)} cannot be converted")
    if not row.ml_dtypes:
        return np.dtype(row.numpy).newbyteorder("<")
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingDependencyError(
            f"values of type {code} are computed with ml_dtypes: "
            "pip install 'safeweights[ml-dtypes]'"
        ) from error
    kind: np.dtype[Any] = np.dtype(getattr(ml_dtypes, row.numpy))
    return kind


def parse_casts(text: str) -> dict[str, str]:
    """The conversions that a request such as ``"BF16"`` or ``"F64=F32,C128=C64"`` stands for.

    One type alone converts all real floating-point types; ``FROM=TO`` converts that type only.
    128-bit complex, which the format lacks, is converted only by naming it.

    Raises:
        UnsupportedError: A name is no element type, or a conversion would change the kind of value.

    >>> parse_casts("C128=C64")
    {'C128': 'C64'}
    """
    casts: dict[str, str] = {}
    for part in text.upper().split(","):
        source, _, target = part.strip().rpartition("=")
        _check_cast(source, target)
        sources = [source] if source else [c for c in FLOATS if BITS[c] >= 8 and c != target]
        casts.update(dict.fromkeys(sources, target))
    return casts


def _check_cast(source: str, target: str) -> None:
    for code in (source, target):
        if code and code not in BITS and code not in FOREIGN:
            raise UnsupportedError(f"{quote(code)} is no element type")
    if target not in BITS or BITS[target] < 8:
        raise UnsupportedError(f"values cannot be converted to {quote(target)}")
    from_complex, to_complex = source in ("C64", "C128"), target == "C64"
    if from_complex != to_complex or (not source and target not in FLOATS):
        raise UnsupportedError(
            f"converting {quote(source or 'floating-point types')} to {quote(target)} "
            "would lose part of each value"
        )


def cast(tensor: Tensor, casts: Mapping[str, str]) -> Tensor:
    """`tensor`, converted if `casts` has a type for its own."""
    target = casts.get(tensor.dtype, tensor.dtype)
    return tensor if target == tensor.dtype else CastTensor(tensor, target)


class CastTensor(Tensor):
    """`tensor` converted to another element type.

    Rounds to nearest, ties to even, as NumPy's and ml_dtypes' casts do. Cost: a block of a million
    elements at a time.
    """

    def __init__(self, tensor: Tensor, dtype: str) -> None:
        super().__init__(
            tensor.name, dtype, tensor.shape, byte_count(dtype, math.prod(tensor.shape))
        )
        self.original = tensor
        self._from, self._to = numpy_type(tensor.dtype), numpy_type(dtype)

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        """Fill `buffer` with the converted tensor's bytes from `offset` on."""
        target = memoryview(buffer).cast("B")
        width = self._to.itemsize
        position = 0
        while position < len(target):
            first, skip = divmod(offset + position, width)
            end = min(-(-(offset + len(target)) // width), first + _BLOCK_ELEMENTS)
            data = self._elements(first, end - first)[skip:]
            count = min(len(data), len(target) - position)
            target[position : position + count] = data[:count]
            position += count

    def _elements(self, first: int, count: int) -> memoryview:
        width = item_size(self.original.dtype)
        data = bytearray(count * width)
        self.original.read_into(memoryview(data), first * width)
        with np.errstate(over="ignore", invalid="ignore"):
            converted = np.frombuffer(data, self._from).astype(self._to)
        return memoryview(converted.tobytes())
