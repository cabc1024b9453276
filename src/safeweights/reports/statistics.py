"""Minimum, maximum, mean, deviation and oddities of values that come in blocks.

Memory is that of a few blocks. Values of one byte are counted, and then looked at once each. Means
and squared deviations of blocks are combined as in Chan, Golub and LeVeque, "Updating formulae and a
pairwise algorithm for computing sample variances" (1979), so that a large mean does not drown the
deviation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .documents import StatisticsRecord

__all__ = ["describe"]


def describe(blocks: Iterable[Any]) -> StatisticsRecord:
    """The statistics of all blocks together; see `StatisticsRecord` for what they mean.

    Args:
        blocks: Flat arrays of one type; any that NumPy or ml_dtypes has.

    >>> describe([np.float32([1, 2]), np.float32([3, np.nan])])["mean"]
    2.0
    """
    summary = _Summary()
    counts: Any = 0
    kind: Any = None
    # Sums of huge values may overflow, and a signalling NaN is still only a NaN.
    with np.errstate(all="ignore"):
        for block in blocks:
            if block.dtype.itemsize == 1:
                kind = block.dtype
                counts = counts + np.bincount(block.view(np.uint8), minlength=256)
            else:
                summary.add(block)
        if kind is not None:
            summary.add_counted(np.flatnonzero(counts), counts[counts > 0], kind)
    return summary.record()


class _Summary:
    def __init__(self) -> None:
        self.finite = self.zeros = self.nan = self.inf = 0
        self.low: Any = None
        self.high: Any = None
        self.mean: Any = 0.0
        self.squares = 0.0

    def add(self, block: Any) -> None:
        """Take in values of more than a byte each."""
        if not block.size:
            return
        if block.dtype.kind not in "iuc" and block.dtype.itemsize < 4:
            block = block.astype(np.float32)  # exact, and as fast as NumPy can be
        self.zeros += int(block.size - np.count_nonzero(block))
        if block.dtype.kind == "c":
            block = self._only_finite(block)
        else:
            low, high = block.min(), block.max()
            if not (np.isfinite(low) and np.isfinite(high)):  # a NaN is both
                block = self._only_finite(block)
                if block.size:
                    low, high = block.min(), block.max()
            if block.size:
                self._extend(low.item(), high.item())
        if block.size:
            wide = block.astype(np.complex128 if block.dtype.kind == "c" else np.float64)
            mean = wide.mean().item()
            wide -= mean
            self._combine(wide.size, mean, float(np.vdot(wide, wide).real))

    def add_counted(self, codes: Any, counts: Any, kind: Any) -> None:
        """Take in values of one byte each: `codes` are the bytes, which occur `counts` times."""
        bytes_ = codes.astype(np.uint8)
        # Whatever byte stands for true is true.
        values = (bytes_ != 0) if kind.kind == "b" else bytes_.view(kind)
        exact = values.astype(np.int64 if kind.kind in "biu" else np.float64)
        self.zeros += int(counts[exact == 0].sum())
        self.nan += int(counts[np.isnan(exact)].sum())
        self.inf += int(counts[np.isinf(exact)].sum())
        kept = np.isfinite(exact)
        exact, counts = exact[kept], counts[kept]
        if exact.size:
            self._extend(exact.min().item(), exact.max().item())
            total = int(counts.sum())
            mean = float((exact * counts).sum() / total)
            self._combine(total, mean, float(((exact - mean) ** 2 * counts).sum()))

    def _only_finite(self, block: Any) -> Any:
        finite = np.isfinite(block)
        nan = int(np.count_nonzero(np.isnan(block)))
        self.nan += nan
        self.inf += int(block.size - np.count_nonzero(finite)) - nan
        return block[finite]

    def _extend(self, low: Any, high: Any) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)

    def _combine(self, size: int, mean: Any, squares: float) -> None:
        """Take in `size` finite values of a mean and a sum of squared deviations from it."""
        total = self.finite + size
        distance = mean - self.mean
        self.mean += distance * (size / total)
        # Products become infinite where powers and absolute values raise OverflowError.
        apart = distance.real * distance.real + distance.imag * distance.imag
        self.squares += squares + apart * (self.finite * (size / total))
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
            "min": self.low,
            "max": self.high,
            "mean": mean,
            "std": std if std is not None and math.isfinite(std) else None,
            "zeros": self.zeros,
            "nan": self.nan,
            "inf": self.inf,
        }
