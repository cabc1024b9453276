"""Convert tensors from one element type to another, checking every value.

NumPy computes the values. Types that it lacks are decoded to F32 and encoded from it (`small_floats`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..checkpoint import Tensor
from ..errors import UnsupportedError, quote
from ..format.dtypes import BITS, DTYPES, byte_count
from . import small_floats
from .element_types import FLOATS, item_size, parse_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CastTensor", "cast", "numpy_type", "parse_casts"]

Array = np.ndarray[Any, Any]

_BLOCK_ELEMENTS: Final = 1 << 20


def numpy_type(code: str) -> np.dtype[Any]:
    """The little-endian NumPy type for computing with elements of type `code`.

    Raises:
        UnsupportedError: NumPy has no such type.
    """
    if code == "C128":
        return np.dtype("<c16")
    row = DTYPES.get(code)
    if row is None or row.ml_dtypes:
        raise UnsupportedError(f"values of type {quote(code)} cannot be converted")
    return np.dtype(row.numpy).newbyteorder("<")


def parse_casts(text: str) -> dict[str, str]:
    """Parse a request such as ``"BF16"`` or ``"F64=F32,C128=C64"`` into a mapping from type to type.

    ``TO`` alone converts all real floating-point types; ``FROM=TO`` converts one type. C128, which the
    format lacks, must be named. Types may have their names in PyTorch or NumPy too.

    Raises:
        UnsupportedError: A name is not an element type, or a conversion is between real and complex.

    >>> parse_casts("C128=C64"), parse_casts("float64=half")
    ({'C128': 'C64'}, {'F64': 'F16'})
    """
    casts: dict[str, str] = {}
    for part in text.split(","):
        given, equals, wanted = part.strip().rpartition("=")
        source, target = parse_dtype(given) if equals else "", parse_dtype(wanted)
        _check_cast(source, target)
        sources = [source] if source else [c for c in FLOATS if BITS[c] >= 8 and c != target]
        casts.update(dict.fromkeys(sources, target))
    return casts


def _check_cast(source: str, target: str) -> None:
    if target not in BITS or BITS[target] < 8:
        raise UnsupportedError(f"values cannot be converted to {quote(target)}")
    from_complex, to_complex = source in ("C64", "C128"), target == "C64"
    if from_complex != to_complex or (not source and target not in FLOATS):
        raise UnsupportedError(
            f"converting {quote(source or 'floating-point types')} to {quote(target)} "
            "would lose part of each value"
        )


def cast(tensor: Tensor, casts: Mapping[str, str], path: str | None = None) -> Tensor:
    """`tensor`, converted if `casts` has its element type. `path` is its file, for messages."""
    target = casts.get(tensor.dtype, tensor.dtype)
    return tensor if target == tensor.dtype else CastTensor(tensor, target, path)


class CastTensor(Tensor):
    """A tensor converted to another element type. Every value is checked.

    Between floating-point types, a value becomes the nearest value of the new type, which may be 0 (ties to
    even, as in NumPy and ml_dtypes). Infinity stays infinity, NaN stays NaN; its payload may change.
    Between all other types the number must not change. Memory: a block of a million elements at a time.
    """

    def __init__(self, tensor: Tensor, dtype: str, path: str | None = None) -> None:
        super().__init__(
            tensor.name, dtype, tensor.shape, byte_count(dtype, math.prod(tensor.shape))
        )
        self.original = tensor
        self._path = path
        self._from = _Numbers(tensor.dtype)
        self._to = _Numbers(dtype)
        self._range = _safe_range(tensor.dtype, dtype)

    def prepare(self) -> None:
        self.original.prepare()

    @property
    def may_lose(self) -> bool:
        """Whether a value may be lost, so that only reading all of them tells."""
        return self._range is not None

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        """Fill `buffer` with bytes of the converted tensor, beginning at byte `offset`.

        Raises:
            UnsupportedError: A finite value would become infinite or NaN; an infinity would become NaN; or
                a conversion from or to integers or booleans would change a number.
        """
        target = memoryview(buffer).cast("B")
        width = item_size(self.dtype)
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
        values = self._from.decoded(data)
        with np.errstate(over="ignore", invalid="ignore"):
            encoded = self._to.encoded(values)
            if not self._surely_kept(values):
                converted = self._to.decoded(encoded)
                lost = np.flatnonzero(_lost(values, converted))
                if lost.size:
                    raise self._loss(first, values, converted, lost)
        return encoded.view(np.uint8).data

    def _surely_kept(self, values: Array) -> bool:
        """Whether the minimum and maximum prove that no value is lost; they do not if one is NaN."""
        if self._range is None or not values.size:
            return True
        low, high = self._range
        parts = _parts(values)
        return bool(low <= parts.min().item() and parts.max().item() <= high)

    def _loss(self, first: int, values: Array, converted: Array, lost: Array) -> UnsupportedError:
        """The error for the values at indices `lost` of a block that begins at element `first`."""
        at = int(lost[0])
        index = [int(part) for part in np.unravel_index(first + at, self.shape)]
        least = "" if len(values) == math.prod(self.shape) else "at least "
        were = "value would" if len(lost) == 1 else "values would"
        return UnsupportedError(
            f"tensor {quote(self.name)} cannot be converted from {self.original.dtype} to "
            f"{self.dtype}: {least}{len(lost):,} {were} be lost, the first at {index}: {values[at]} "
            f"would become {converted[at]}. Choose a wider type for {self.original.dtype}, or convert "
            "only other types, with FROM=TO as dtype (--dtype)",
            path=self._path,
            tensor=self.name,
        )


class _Numbers:
    """The elements of one type, as an array that NumPy computes with."""

    def __init__(self, code: str) -> None:
        self._code = code
        if code in small_floats.NARROWED:
            self._dtype: np.dtype[Any] | None = None
        else:
            self._dtype = numpy_type(code)

    def decoded(self, data: Any) -> Array:
        """The values that are in `data`; of types that NumPy lacks in F32."""
        if self._dtype is None:
            return small_floats.widened(self._code, data)
        return np.frombuffer(data, self._dtype)

    def encoded(self, values: Array) -> Array:
        """`values` in this type; of types that NumPy lacks their bit patterns."""
        if self._dtype is None:
            return small_floats.narrowed(self._code, values)
        return values.astype(self._dtype)


def _safe_range(source: str, target: str) -> tuple[float, float] | None:
    """A range of values of type `source` that are not lost in type `target`, apart from rounding.

    The range is empty if every value must be checked, None if no value can be lost.
    """
    if target == "BOOL" or target.startswith(("I", "U")):
        if source in FLOATS:
            return 1, 0  # empty: any value may have a fraction
        if target == "BOOL":
            return 0, 1
        integers = np.iinfo(numpy_type(target))
        return int(integers.min), int(integers.max)
    limits = _finfo(target)
    low, high = (
        float(limits.min),
        float(limits.max),
    )  # low > 0 for E8M0, which has no sign and no zero
    if source in FLOATS or target == "C64":
        wider = low <= float(_finfo(source).min) and float(_finfo(source).max) <= high
        numbers = _Numbers(target)
        infinite = np.isinf(
            _parts(numbers.decoded(numbers.encoded(np.array([np.inf], "<f4"))))
        ).any()
        return None if wider and infinite else (low, high)
    exact = 2 ** (limits.nmant + 1)  # all integers up to this one are values of the float type
    return max(low, -exact), min(high, exact)


def _finfo(code: str) -> Any:
    return small_floats.limits(code) if code in small_floats.CODES else np.finfo(numpy_type(code))


def _parts(values: Array) -> Array:
    """`values` in a type that NumPy computes fast: complex as pairs of reals, short floats as F32."""
    if values.dtype.kind == "c":
        return values.view(values.real.dtype)
    short = values.itemsize < 4 and values.dtype.kind not in "biu"
    return values.astype("<f4") if short else values


def _lost(values: Array, converted: Array) -> Array:
    """Mask of the values that were changed by the conversion, apart from rounding between floats."""
    old, new = _parts(values), _parts(converted)
    if old.dtype.kind == new.dtype.kind == "f":
        parts = (np.isfinite(old) != np.isfinite(new)) | (np.isnan(old) != np.isnan(new))
        lost: Array = parts.reshape(len(values), -1).any(axis=1)
        return lost
    if new.dtype.kind == "f":
        return ~_is_whole(new, old)
    if old.dtype.kind == "f":
        return ~_is_whole(old, new)
    # Converting back undoes a wrap-around, so compare signs too.
    wrapped: Array = (new.astype(old.dtype) != old) | ((new < 0) != (old < 0))
    return wrapped


def _is_whole(floats: Array, integers: Array) -> Array:
    """Mask of the elements where `floats` and `integers` are exactly the same number."""
    bits = 1 if integers.dtype.kind == "b" else integers.dtype.itemsize * 8
    signed = integers.dtype.kind == "i"
    # The bounds are powers of two, which F32 and wider types hold exactly. NaN is not inside.
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1)) if signed else (0.0, 2.0**bits)
    inside = (floats >= low) & (floats < high)
    there: Array = np.where(inside, floats, 0).astype(integers.dtype) == integers
    back: Array = integers.astype(floats.dtype) == floats
    return inside & there & back
