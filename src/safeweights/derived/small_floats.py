"""Floats of 4, 8 and 16 bits that NumPy lacks: decoded to F32, which holds their values exactly, and back.

BF16 is the upper half of an F32; the others have at most 256 values, so that a table decodes them.
Encoding rounds the bits of an F32 as integers. No other package is needed; results are those of ml_dtypes,
bit by bit. Sources of the layouts: OCP 8-bit Floating Point Specification (E4M3, E5M2), OCP
Microscaling Formats (E2M1, E8M0), Noune et al. 2022 (arXiv:2206.02915: the FNUZ types).
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ..storage import Buffer

__all__ = ["CODES", "NARROWED", "FloatLimits", "limits", "narrowed", "widened"]

Array = np.ndarray[Any, Any]


class _Layout(NamedTuple):
    """Sign bit, exponent, mantissa, from the highest bit down.

    Attributes:
        exponent: Bits of the exponent.
        mantissa: Bits of the mantissa.
        bias: Is subtracted from the exponent.
        nans: The bit patterns, without the sign, that are NaN; those of infinity are not among them.
        infinity: The bit pattern of infinity, without the sign; None where there is none.
    """

    exponent: int
    mantissa: int
    bias: int
    nans: frozenset[int] = frozenset()
    infinity: int | None = None


_LAYOUTS: Final = {
    "F4": _Layout(2, 1, 1),
    "F8_E5M2": _Layout(5, 2, 15, frozenset({0x7D, 0x7E, 0x7F}), 0x7C),
    "F8_E4M3": _Layout(4, 3, 7, frozenset({0x7F})),
    "F8_E5M2FNUZ": _Layout(5, 2, 16),
    "F8_E4M3FNUZ": _Layout(4, 3, 8),
}
_NEGATIVE_ZERO_IS_NAN: Final = {"F8_E5M2FNUZ", "F8_E4M3FNUZ"}

CODES: Final = frozenset({"BF16", "F8_E8M0", *_LAYOUTS})
"""Element types that `widened` decodes."""


def widened(code: str, data: Buffer) -> Array:
    r"""All values, as a flat writable array of float32.

    Args:
        code: One of `CODES`.
        data: Bytes in the order of the format; of F4 the first value of a byte is in its low half.

    >>> widened("BF16", b"\x80\x3f\x00\xc0").tolist(), widened("F4", b"\x21").tolist()
    ([1.0, -2.0], [0.5, 1.0])
    """
    if code == "BF16":
        bits = np.frombuffer(data, "<u2").astype("<u4")
        bits <<= 16
        return bits.view("<f4")
    values = np.frombuffer(data, np.uint8)
    if code == "F4":
        halves = np.empty((len(values), 2), np.uint8)
        np.bitwise_and(values, 15, out=halves[:, 0])
        np.right_shift(values, 4, out=halves[:, 1])
        values = halves.reshape(-1)
    return _table(code)[values]


NARROWED: Final = CODES - {"F4"}
"""Element types that `narrowed` encodes."""


def narrowed(code: str, values: Array) -> Array:
    """Values rounded to the nearest value of a type of `NARROWED`, as its bit patterns.

    Ties go to the even pattern; of F8_E8M0, which has only powers of two, to the larger value. What is
    too large becomes infinity, or NaN where the type has none: nothing is saturated. In F8_E8M0, which has
    no sign and no zero, what is not positive becomes NaN. NaN keeps its sign, not its payload.

    Cost: 1 (BF16) to 10 ns a value, and the memory of the result.

    Args:
        code: The type.
        values: Real numbers of any NumPy type, in one dimension. Those that F32 cannot hold are first
            rounded to F32, as ml_dtypes and torch do.

    Returns:
        Little-endian unsigned integers as wide as the type.

    >>> narrowed("BF16", np.array([1.0, -2.0])).tolist()
    [16256, 49152]
    """
    found = np.empty(values.shape, "<u2" if code == "BF16" else np.uint8)
    encode = _ENCODERS.get(code) or partial(_as_small, code)
    for start in range(0, len(values), _BLOCK):
        part = slice(start, start + _BLOCK)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            bits = values[part].astype("<f4", copy=False).view("<u4")
        found[part] = encode(bits)
    return found


_BLOCK: Final = 1 << 15
"""Values at a time: their temporary arrays stay in the processor's cache, three times as fast."""

_INFINITY: Final = 0x7F80_0000


def _rounded(magnitude: Array, shift: int) -> Array:
    """Integers without their lowest `shift` bits, rounded to the nearest, ties to even."""
    rounded: Array = magnitude >> shift  # in place from here on: a third faster
    rounded &= 1
    rounded += (1 << (shift - 1)) - 1
    rounded += magnitude
    rounded >>= shift
    return rounded


def _as_bfloat16(bits: Array) -> Array:
    """The upper halves. Without NaN, no carry of the rounding reaches the sign."""
    found = _rounded(bits, 16)
    nan = np.isnan(bits.view("<f4"))
    if nan.any():
        found[nan] = 0x7FC0 | (bits[nan] >> 31 << 15)
    return found


def _as_small(code: str, bits: Array) -> Array:
    """A type of `_LAYOUTS`."""
    layout, largest = _LAYOUTS[code], _largest(code)
    magnitude = bits & 0x7FFF_FFFF
    sign = bits >> 31 << 7
    nan = magnitude > _INFINITY
    found = _encoded(layout, magnitude)
    too_large = found > largest
    if code in _NEGATIVE_ZERO_IS_NAN:
        sign[found == 0] = 0
        found |= sign
        found[too_large | nan] = 0x80
        return found
    quiet = 0x7F if layout.infinity is None else 0x7E
    found[too_large] = quiet if layout.infinity is None else layout.infinity
    found[nan] = quiet
    found |= sign
    return found


def _encoded(layout: _Layout, magnitude: Array) -> Array:
    """The patterns of an 8-bit type without their signs; larger than any pattern for what is too large."""
    exponent = 1 - layout.bias  # of the smallest normal value, and of the subnormal ones
    least_normal = (exponent + 127) << 23
    normal = np.clip(magnitude, least_normal, _INFINITY)
    found = _rounded(normal, 23 - layout.mantissa) - ((exponent + 126) << layout.mantissa)
    # The sum with a power of two whose last bit is worth the smallest subnormal value is that multiple of
    # it which is nearest: the addition rounds.
    step = np.float32(math.ldexp(1, exponent - layout.mantissa + 23))
    small = np.minimum(magnitude, least_normal).view("<f4") + step
    subnormal = small.view("<u4") - step.view("<u4")
    return np.where(magnitude < least_normal, subnormal, found)


def _as_powers(bits: Array) -> Array:
    """F8_E8M0: the exponent of the nearest power of two; NaN for what is not positive and finite."""
    found = (bits + (1 << 22)) >> 23
    found[bits == 1 << 22] = 0  # 2**-127; both packages take every larger subnormal for 2**-126
    found[(bits == 0) | (bits >= _INFINITY) | (found > 254)] = 255
    return found


_ENCODERS: Final = {"BF16": _as_bfloat16, "F8_E8M0": _as_powers}


@cache
def _largest(code: str) -> int:
    """The pattern of the largest finite value."""
    return int(np.nanargmax(np.where(np.isfinite(_table(code)), _table(code), np.nan)))


class FloatLimits(NamedTuple):
    """What `numpy.finfo` says of other types.

    Attributes:
        min: Smallest finite value.
        max: Largest finite value.
        nmant: Bits of the mantissa.
    """

    min: float
    max: float
    nmant: int


@cache
def limits(code: str) -> FloatLimits:
    """The range and precision of a type of `CODES`.

    >>> limits("F8_E4M3")
    FloatLimits(min=-448.0, max=448.0, nmant=3)
    """
    if code == "BF16":
        largest = float(widened(code, b"\x7f\x7f")[0])
        return FloatLimits(-largest, largest, 7)
    finite = _table(code)[np.isfinite(_table(code))]
    mantissa = 0 if code == "F8_E8M0" else _LAYOUTS[code].mantissa
    return FloatLimits(float(finite.min()), float(finite.max()), mantissa)


@cache
def _table(code: str) -> Array:
    """Bit pattern -> value."""
    if code == "F8_E8M0":
        values = [math.ldexp(1, pattern - 127) for pattern in range(255)] + [math.nan]
        return np.array(values, "<f4")
    layout = _LAYOUTS[code]
    patterns = range(1 << (layout.exponent + layout.mantissa))
    positive = np.array([_value(layout, pattern) for pattern in patterns], "<f4")
    table = np.concatenate([positive, -positive])
    if code in _NEGATIVE_ZERO_IS_NAN:
        table[len(positive)] = -np.nan  # where other types have -0
    return table


def _value(layout: _Layout, pattern: int) -> float:
    if pattern in layout.nans:
        return math.nan
    if pattern == layout.infinity:
        return math.inf
    exponent, mantissa = divmod(pattern, 1 << layout.mantissa)
    if exponent == 0:  # subnormal
        return math.ldexp(mantissa, 1 - layout.bias - layout.mantissa)
    significand = mantissa + (1 << layout.mantissa)
    return math.ldexp(significand, exponent - layout.bias - layout.mantissa)
