"""Minimum, maximum, mean, deviation and oddities of values that come in blocks.

Memory is that of a few blocks. Means and squared deviations of blocks are combined as in Chan, Golub
and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979), so
that a large mean does not drown the deviation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .records import StatisticsRecord

__all__ = ["describe"]


def describe(blocks: Iterable[Any]) -> StatisticsRecord:
    """The statistics of all blocks together; see `StatisticsRecord` for what they mean.

    Args:
        blocks: Flat arrays of one type; any that NumPy or ml_dtypes has.

    >>> describe([np.float32([1, 2]), np.float32([3, np.nan])])["mean"]
    2.0
    """
    summary = _Summary()
    # Sums of huge values may overflow, and a signalling NaN is still only a NaN.
    with np.errstate(all="ignore"):
        for block in blocks:
            summary.add(block)
    return summary.record()


class _Summary:
    def __init__(self) -> None:
        self.finite = self.zeros = self.nan = self.inf = 0
        self.low: Any = None
        self.high: Any = None
        self.mean: Any = 0.0
        self.squares = 0.0

    def add(self, block: Any) -> None:
        kind = block.dtype.kind
        if kind == "b":
            block = block.view(np.uint8) != 0  # whatever bytes stand for true
        if kind == "c":
            values = block.astype(np.complex128)
        elif kind in "biu":
            values = block.astype(np.float64)
        else:
            block = values = block.astype(np.float64)
        self.zeros += int(values.size - np.count_nonzero(values))
        finite = np.isfinite(values)
        if not finite.all():
            nan = int(np.count_nonzero(np.isnan(values)))
            self.nan += nan
            self.inf += int(values.size - np.count_nonzero(finite)) - nan
            block = values = values[finite]
        if values.size:
            if kind != "c":
                self._extend(block.min().item(), block.max().item())
            self._combine(values)

    def _extend(self, low: Any, high: Any) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)

    def _combine(self, values: Any) -> None:
        mean = values.mean().item()
        deviations = values - mean
        squares = float(np.vdot(deviations, deviations).real)
        total = self.finite + values.size
        distance = mean - self.mean
        self.mean += distance * (values.size / total)
        self.squares += squares + abs(distance) ** 2 * (self.finite * (values.size / total))
        self.finite = total

    def record(self) -> StatisticsRecord:
        mean: float | list[float] | None = None
        std: float | None = None
        if self.finite:
            parts = [self.mean.real, self.mean.imag]
            if all(map(math.isfinite, parts)):
                mean = parts if isinstance(self.mean, complex) else self.mean
                std = math.sqrt(self.squares / self.finite)
        return {
            "min": _number(self.low),
            "max": _number(self.high),
            "mean": mean,
            "std": std if std is not None and math.isfinite(std) else None,
            "zeros": self.zeros,
            "nan": self.nan,
            "inf": self.inf,
        }


def _number(value: Any) -> int | float | None:
    return int(value) if isinstance(value, bool) else value
