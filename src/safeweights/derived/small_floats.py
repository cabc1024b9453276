"""Floats of 4, 8 and 16 bits that NumPy lacks, decoded to F32, which holds each of their values exactly.

BF16 is the upper half of an F32; the others have at most 256 values, so that a table decodes them. No
other package is needed. Sources of the layouts: OCP 8-bit Floating Point Specification (E4M3, E5M2), OCP
Microscaling Formats (E2M1, E8M0), Noune et al. 2022 (arXiv:2206.02915: the FNUZ types).
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ..storage import Buffer

__all__ = ["CODES", "FloatLimits", "limits", "widened"]

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
