"""Minimum, maximum, mean, standard deviation, and numbers of zeros, NaNs and infinities, block by block.

Memory: a few blocks. Values of one byte are counted, so that only 256 different ones are computed with.
Means and squared deviations of blocks are combined as in Chan, Golub and LeVeque, "Updating formulae and a
pairwise algorithm for computing sample variances" (1979), which is accurate even if the mean is large.
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
    """The statistics of all blocks together; `StatisticsRecord` describes them.

    Args:
        blocks: Flat arrays of the same type, one of NumPy or ml_dtypes.

    >>> describe([np.float32([1, 2]), np.float32([3, np.nan])])["mean"]
    2.0
    """
    summary = _Summary()
    counts: Any = 0
    kind: Any = None
    # Sums may overflow, and signalling NaNs would warn.
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
        """Add values of more than one byte each."""
        if not block.size:
            return
        if block.dtype.kind not in "iuc" and block.dtype.itemsize < 4:
            block = block.astype(np.float32)  # exact, and NumPy is fastest with it
        self.zeros += int(block.size - np.count_nonzero(block))
        if block.dtype.kind == "c":
            block = self._only_finite(block)
        else:
            low, high = block.min(), block.max()
            if not (np.isfinite(low) and np.isfinite(high)):  # with a NaN, both are NaN
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
        """Add values of one byte each: `codes` are the bytes, which occur `counts` times."""
        bytes_ = codes.astype(np.uint8)
        # Any byte other than 0 is true.
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
        """Add `size` finite values, given by their mean and sum of squared deviations from it."""
        total = self.finite + size
        distance = mean - self.mean
        self.mean += distance * (size / total)
        # Products overflow to infinity, but `**` and `abs` would raise OverflowError.
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
