"""Statistics of values, block by block: extremes, mean, deviation, zeros, NaNs, dead rows, distribution.

Memory: a few blocks. Everything but the distribution comes from all values. Values of one byte are counted,
so that only 256 different ones are computed with. Means and squared deviations of blocks are combined as in
Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979),
which is accurate even if the mean is large.

Speed: long blocks of F32 and narrower floats are summed up in F32, in pieces that stay in the processor's
cache (0.6 ns a value, of which minimum and maximum alone take 0.15; in F64 it would be 2 ns). The relative
error of mean and std is about 1e-6 then; pieces whose mean is not small against their deviation are
computed in F64.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ..storage.parallel import in_threads
from .values import read, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..checkpoint import Tensor
    from ..format.indexing import Selection
    from .documents import DistributionRecord, StatisticsRecord

__all__ = ["describe", "statistics_of"]

_PIECE: Final = 1 << 16
"""Values that are summed up at a time: 256 KiB, a part of a core's cache."""

_EXACT: Final = 1 << 14
"""Up to so many values are always computed with in F64."""

_SMALLEST: Final = 1e-30
"""Sums of squares below have lost digits: F32 has none of them below 1e-38."""

_PART: Final = 1 << 20
"""Values that one thread takes at a time."""

_WAVE: Final = 256
"""Parts that are under way or kept at the same time."""

_SAMPLE: Final = 1 << 16
"""Values, at most about, of which the distribution is taken."""

_QUANTILES: Final = (0.01, 0.25, 0.5, 0.75, 0.99)
_BINS: Final = 24


def statistics_of(
    chosen: Iterable[tuple[Tensor, Selection]], progress: Callable[[int], object] | None = None
) -> Iterator[StatisticsRecord]:
    """The statistics of each of several tensors, in their order, computed by several threads.

    Cost: each value is read once; memory for 256 parts of 1,048,576 values is not exceeded, whatever the
    number of tensors.

    Args:
        chosen: Tensors, and what of each is wanted.
        progress: Called now and then with the number of values done so far.

    Raises:
        UnsupportedError: NumPy cannot represent a type (F6).
        OSError: Reading failed.
    """
    whole = _Summary()
    done = 0

    def tell(count: int) -> None:
        if progress is not None:
            progress(done + count)

    for wave in _waves(_parts(chosen)):
        found = in_threads(_Part.summary, wave, cost=lambda part: 4 * part.size, progress=tell)
        done += sum(part.size for part in wave)
        for part, summary in zip(wave, found, strict=True):
            whole.merge(summary)
            if part.last:
                yield whole.record()
                whole = _Summary()


def describe(found: Iterable[Any]) -> StatisticsRecord:
    """The statistics, without the distribution, of flat arrays of the same type.

    >>> describe([np.float32([1, 2]), np.float32([3, np.nan])])["mean"]
    2.0
    """
    whole = _Summary()
    for block in found:
        summary = _Summary()
        summary.add(block, 0)
        whole.merge(summary)
    return whole.record()


class _Part(NamedTuple):
    """A part of a tensor.

    Attributes:
        tensor: The tensor.
        selection: The part.
        every: One of so many values goes into the distribution.
        row: Values in a row of the tensor; 0 if rows say nothing: it has no or one axis.
        last: Whether no part of the same tensor follows.
    """

    tensor: Tensor
    selection: Selection
    every: int
    row: int
    last: bool

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.selection.counts)

    def summary(self, progress: Callable[[int], object]) -> _Summary:
        """The statistics of the part."""
        summary = _Summary()
        if self.size:
            values = read(self.tensor, self.selection).reshape(-1)
            summary.add(values, self.every)
            summary.add_rows(values, self.row)
        progress(self.size)
        return summary


def _parts(chosen: Iterable[tuple[Tensor, Selection]]) -> Iterator[_Part]:
    for tensor, selection in chosen:
        size = math.prod(selection.counts)
        row = selection.counts[-1] if len(selection.counts) > 1 else 0
        every = max(1, size // _SAMPLE)
        while math.gcd(every, row or 1) != 1:  # or some columns would never be sampled
            every += 1
        parts = list(split(selection, _PART)) or [selection]
        for number, part in enumerate(parts, 1):
            whole_rows = part.counts[-1:] == (row,)
            yield _Part(tensor, part, every, row if whole_rows else 0, number == len(parts))


def _waves(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    iterator = iter(parts)
    while wave := list(islice(iterator, _WAVE)):
        yield wave


class _Summary:
    """Statistics of some values, which can be merged with those of others."""

    def __init__(self) -> None:
        self.finite = self.zeros = self.nan = self.inf = 0
        self.low: Any = None
        self.high: Any = None
        self.mean: Any = 0.0
        self.squares = 0.0
        self.dead_rows: int | None = None
        # Finite values in F64, and how often each occurs if that is not once.
        self.kept: list[tuple[Any, Any]] = []

    def merge(self, other: _Summary) -> None:
        """Add the values of another one."""
        self.zeros += other.zeros
        self.nan += other.nan
        self.inf += other.inf
        if other.low is not None:
            self._extend(other.low, other.high)
        if other.finite:
            self._combine(other.finite, other.mean, other.squares)
        if other.dead_rows is not None:
            self.dead_rows = (self.dead_rows or 0) + other.dead_rows
        self.kept += other.kept

    def add(self, block: Any, every: int) -> None:
        """Add the values of a flat array, of which one of `every` goes into the distribution; 0: none."""
        with np.errstate(all="ignore"):  # sums may overflow, and signalling NaNs would warn
            if block.dtype.itemsize == 1:
                counts = np.bincount(block.view(np.uint8), minlength=256)
                self._add_counted(np.flatnonzero(counts), counts[counts > 0], block.dtype)
                return
            if every and block.dtype.kind != "c":
                sample = block[::every].astype(np.float64)
                sample = sample[np.isfinite(sample)]
                self.kept.append((sample, None))
            narrow = block.dtype.kind not in "iuc" and block.dtype.itemsize <= 4
            for start in range(0, block.size, _PIECE):
                piece = block[start : start + _PIECE]
                # F32 holds the narrower types exactly, and NumPy is fastest with it.
                self._add(piece.astype(np.float32, copy=False) if narrow else piece)

    def _add(self, piece: Any) -> None:
        self.zeros += int(np.count_nonzero(piece == 0))
        if piece.dtype.kind == "c":
            piece = self._only_finite(piece)
        else:
            low, high = piece.min(), piece.max()
            if not (np.isfinite(low) and np.isfinite(high)):  # with a NaN, both are NaN
                piece = self._only_finite(piece)
                if piece.size:
                    low, high = piece.min(), piece.max()
            if piece.size:
                self._extend(low.item(), high.item())
        if piece.size and not (piece.dtype == np.float32 and self._add_fast(piece)):
            wide = piece.astype(np.complex128 if piece.dtype.kind == "c" else np.float64)
            mean = wide.mean().item()
            wide -= mean
            self._combine(wide.size, mean, float(np.vdot(wide, wide).real))

    def _add_fast(self, piece: Any) -> bool:
        """Add sums computed in F32, unless that would lose digits."""
        if piece.size <= _EXACT:
            return False
        mean = float(piece.sum()) / piece.size
        around_zero = float(np.dot(piece, piece))
        squares = around_zero - piece.size * mean * mean
        if not 0.9 * around_zero <= squares < math.inf or around_zero < _SMALLEST:
            return False
        self._combine(piece.size, mean, squares)
        return True

    def add_rows(self, values: Any, row: int) -> None:
        """Count the rows of `row` values that are all 0; `values` were added, and are whole rows."""
        if row:
            self.dead_rows = 0
            if self.zeros >= row:
                self.dead_rows = int(np.count_nonzero(~values.reshape(-1, row).any(axis=1)))

    def _add_counted(self, codes: Any, counts: Any, kind: Any) -> None:
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
            self.kept.append((exact.astype(np.float64), counts))

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
        """The statistics as a JSON record."""
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
            "dead_rows": self.dead_rows,
            "distribution": self._distribution(),
        }

    def _distribution(self) -> DistributionRecord | None:
        if not self.kept or self.low is None:
            return None
        values = np.concatenate([values for values, _ in self.kept])
        if not values.size:
            return None
        if self.kept[0][1] is None:
            values = np.sort(values)
            counts = np.ones(values.size, np.int64)
        else:
            order = np.argsort(values)
            counts = np.concatenate([counts for _, counts in self.kept])[order]
            values = values[order]
        below = np.cumsum(counts)
        found = {f"{share:g}": float(_quantile(values, below, share)) for share in _QUANTILES}
        low, high = _quantile(values, below, 0.001), _quantile(values, below, 0.999)
        if not (low < high and math.isfinite(high - low)):
            low, high = float(values[0]), float(values[-1])
        with np.errstate(all="ignore"):
            width = high - low
            places = (
                (values - low) / width * _BINS if 0 < width < math.inf else np.zeros(values.size)
            )
        bins = np.bincount(places.clip(0, _BINS - 1).astype(np.int64), counts, _BINS)
        return {
            "sampled": int(below[-1]),
            "quantiles": found,
            "low": float(low),
            "high": float(high),
            "bins": [int(each) for each in bins],
        }


def _quantile(values: Any, below: Any, share: float) -> Any:
    """The smallest value that at least this share of the sorted values does not exceed."""
    return values[min(int(np.searchsorted(below, share * below[-1])), values.size - 1)]
