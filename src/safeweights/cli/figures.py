"""Numbers as people read them: significant digits, histograms of one line."""

from __future__ import annotations

from typing import Final

__all__ = ["bars", "digits"]

_LEVELS: Final = " ▁▂▃▄▅▆▇█"
_BARS: Final = 12
"""Characters of a histogram."""


def digits(value: float | list[float] | None, number: int) -> str:
    """A value with at most `number` significant digits; integers exactly, complex ones as NumPy's.

    >>> digits(0.012345678, 4), digits(12, 4), digits(2**60, 4), digits(None, 4)
    ('0.01235', '12', '1152921504606846976', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, list):
        return f"{value[0]:.{number}g}{value[1]:+.{number}g}j"
    return str(value) if isinstance(value, int) else f"{value:.{number}g}"


def bars(bins: list[int]) -> str:
    """A histogram as a line of bars; those that are not empty can be seen.

    >>> bars([0, 0, 1, 0, 4, 4, 8, 8])
    '  ▁ ▄▄██'
    """
    step = max(1, len(bins) // _BARS)
    sums = [sum(bins[at : at + step]) for at in range(0, len(bins), step)]
    most = max(sums, default=0) or 1
    return "".join(_LEVELS[-(-8 * each // most)] for each in sums)
