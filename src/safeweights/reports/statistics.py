"""Statistics of values, block by block: extremes, mean, deviation, zeros, NaNs, dead rows, distribution.

Memory: a few blocks. Everything but the distribution comes from all values. Values of one byte are counted,
so that only 256 different ones are computed with. Means and squared deviations of blocks are combined as in
Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979),
which is accurate even if the mean is large.

Speed: several threads read and sum up pieces, each in memory of its own that it reuses. F32 and narrower
floats are summed up in F32 by dot products; in F64 it would take four times as long. The relative error of
mean and std is about 1e-6 then. Pieces whose mean is not small against their deviation are computed in F64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ..storage.parallel import in_threads
from .values import pieces, single, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..checkpoint import Tensor
    from ..format.indexing import Selection
    from .documents import DistributionRecord, StatisticsRecord

__all__ = ["describe", "statistics_of"]

_PIECE: Final = 1 << 20
"""Values that are summed up at a time.

A thread waits for the others (GIL) after each call of NumPy, so calls should be long; but memory beyond a
core's share of the cache is slow. For 1 GiB of F32 two threads take 0.62 s with 65,536 values, 0.38 s with
262,144, 0.21 s with this number, 0.30 s with four times as many."""

_EXACT: Final = 1 << 14
"""Up to so many values are always computed with in F64."""

_DOT: Final = 1 << 13
"""Values of a dot product: OpenBLAS divides longer ones among threads of its own."""

_SMALLEST: Final = 1e-30
"""Sums of squares below have lost digits: F32 has none of them below 1e-38."""

_PART: Final = 1 << 22
"""Values that one thread takes at a time."""

_WAVE: Final = 256
"""Parts that threads share before the next rows are handed out; fewer, if they have many values."""

_WAVE_VALUES: Final = 1 << 26

_SAMPLE: Final = 1 << 15
"""Values, at most about, of which the distribution is taken.

The share of them below any value is within 0.8 % of that of all values, 95 times in 100 (Massart, "The
tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality", 1990). To sort twice as many takes a quarter
of all the time where NumPy sorts slowly (AMD Zen 4)."""

_QUANTILES: Final = (0.01, 0.25, 0.5, 0.75, 0.99)
_BINS: Final = 24


def statistics_of(
    chosen: Iterable[tuple[Tensor, Selection]], progress: Callable[[int], object] | None = None
) -> Iterator[StatisticsRecord]:
    """The statistics of each of several tensors, in their order, computed by several threads.

    Cost: each value is read once; memory for a piece of 1,048,576 values in each thread, and for samples.

    Args:
        chosen: Tensors, and what of each is wanted.
        progress: Called now and then with the number of values done so far.

    Raises:
        UnsupportedError: NumPy cannot represent a type (F6).
        OSError: Reading failed.
    """
    whole = _Summary()
    done = 0

    def record(summary: _Summary, progress: Callable[[int], object]) -> StatisticsRecord:
        del progress
        return summary.record()

    def tell(count: int) -> None:
        if progress is not None:
            progress(done + count)

    for wave in _waves(_parts(chosen)):
        found = in_threads(_Part.computed, wave, cost=lambda part: 4 * part.size, progress=tell)
        done += sum(part.size for part in wave)
        finished: list[_Summary | StatisticsRecord] = []
        for part, each in zip(wave, found, strict=True):
            if not isinstance(each, _Summary):
                finished.append(each)
                continue
            whole.merge(each)
            if part.last:
                finished.append(whole)
                whole = _Summary()
        merged = iter(in_threads(record, [each for each in finished if isinstance(each, _Summary)]))
        yield from (next(merged) if isinstance(each, _Summary) else each for each in finished)


def describe(found: Iterable[Any]) -> StatisticsRecord:
    """The statistics, without the distribution, of flat arrays of the same type.

    >>> describe([np.float32([1, 2]), np.float32([3, np.nan])])["mean"]
    2.0
    """
    whole = _Summary()
    with _quiet():
        for block in found:
            whole.add(block)
    return whole.record()


class _Part(NamedTuple):
    """A part of a tensor.

    Attributes:
        tensor: The tensor.
        selection: The part.
        every: One of so many values goes into the distribution.
        row: Values in a row of the tensor; 0 if rows say nothing: it has no or one axis.
        last: Whether no part of the same tensor follows.
        whole: Whether it is all of the tensor that is wanted.
    """

    tensor: Tensor
    selection: Selection
    every: int
    row: int
    last: bool
    whole: bool

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.selection.counts)

    def computed(self, progress: Callable[[int], object]) -> _Summary | StatisticsRecord:
        """The statistics of the part; as a record if it is all of its tensor."""
        summary = self.summary(progress)
        return summary.record() if self.whole else summary

    def summary(self, progress: Callable[[int], object]) -> _Summary:
        """The statistics of the part."""
        summary = _Summary()
        if self.size:
            # Pieces are whole rows, so that each tells how many are dead.
            rows = max(1, _PIECE // self.row) if self.row else 0
            done = 0
            with _quiet():
                for values in pieces(self.tensor, self.selection, rows * self.row or _PIECE):
                    summary.add(values, self.every, -done % self.every, self.row)
                    done += values.size
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
            yield _Part(
                tensor, part, every, row if whole_rows else 0, number == len(parts), len(parts) == 1
            )


def _waves(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    wave: list[_Part] = []
    size = 0
    for part in parts:
        wave.append(part)
        size += part.size
        if len(wave) == _WAVE or size >= _WAVE_VALUES:
            yield wave
            wave, size = [], 0
    if wave:
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
        # Finite values in F32 or F64, and how often each occurs if that is not once.
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

    def add(self, block: Any, every: int = 0, first: int = 0, row: int = 0) -> None:
        """Add the values of a flat array.

        Args:
            block: The values.
            every: One value of so many goes into the distribution; 0 for none.
            first: Which is the first of those.
            row: Values in a row, if the array is whole rows whose dead ones are to be counted; 0 if not.
        """
        before = self.zeros
        if block.dtype.itemsize == 1:
            counts = np.bincount(block.view(np.uint8), minlength=256)
            self._add_counted(np.flatnonzero(counts), counts[counts > 0], block.dtype)
        else:
            narrow = block.dtype.kind not in "iuc" and block.dtype.itemsize <= 4
            if every and block.dtype.kind != "c":
                sample = block[first::every]
                sample = single(sample) if narrow else sample.astype(np.float64)
                self.kept.append((sample[np.isfinite(sample)], None))
            for start in range(0, block.size, _PIECE):
                piece = block[start : start + _PIECE]
                self._add(single(piece) if narrow else piece)
        if row:
            self.dead_rows = self.dead_rows or 0
            if self.zeros - before >= row:
                self.dead_rows += int(np.count_nonzero(~block.reshape(-1, row).any(axis=1)))

    def _add(self, piece: Any) -> None:
        if piece.dtype.kind == "c":
            self.zeros += int(np.count_nonzero(piece == 0))
            piece = self._only_finite(piece)
        else:
            low, high = piece.min().item(), piece.max().item()
            if not (low > 0 or high < 0):
                self.zeros += int(np.count_nonzero(piece == 0))
            if not (math.isfinite(low) and math.isfinite(high)):  # with a NaN, both are NaN
                piece = self._only_finite(piece)
                if piece.size:
                    low, high = piece.min().item(), piece.max().item()
            if piece.size:
                self._extend(low, high)
        if piece.size and not (piece.dtype == np.float32 and self._add_fast(piece)):
            wide = piece.astype(np.complex128 if piece.dtype.kind == "c" else np.float64)
            mean = wide.mean().item()
            wide -= mean
            self._combine(wide.size, mean, float(np.vdot(wide, wide).real))

    def _add_fast(self, piece: Any) -> bool:
        """Add sums computed in F32, unless that would lose digits."""
        if piece.size <= _EXACT:
            return False
        mean = _dot(piece, None) / piece.size
        around_zero = _dot(piece, piece)
        squares = around_zero - piece.size * mean * mean
        if not 0.9 * around_zero <= squares < math.inf or around_zero < _SMALLEST:
            return False
        self._combine(piece.size, mean, squares)
        return True

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
        self.squares += squares
        if self.finite:  # else the product, of infinity and 0, would be NaN
            # Products overflow to infinity, but `**` and `abs` would raise OverflowError.
            apart = distance.real * distance.real + distance.imag * distance.imag
            self.squares += apart * (self.finite * (size / total))
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
            values.sort()
            below = np.arange(values.size + 1)
        else:
            order = np.argsort(values)
            values = values[order]
            counts = np.concatenate([counts for _, counts in self.kept])
            below = np.concatenate([[0], np.cumsum(counts[order])])
        found = {f"{share:g}": _quantile(values, below, share) for share in _QUANTILES}
        low, high = _quantile(values, below, 0.001), _quantile(values, below, 0.999)
        if not (low < high and math.isfinite(high - low)):
            low, high = float(values[0]), float(values[-1])
        width = high - low
        edges = low + width * (np.arange(1, _BINS) / _BINS)
        # Without a width that can be divided, all values are in the first bin.
        whole = 0 < width < math.inf
        cuts = np.searchsorted(values, edges) if whole else np.full(_BINS - 1, values.size)
        bins = np.diff(below[cuts], prepend=0, append=below[-1])
        return {
            "sampled": int(below[-1]),
            "quantiles": found,
            "low": low,
            "high": high,
            "bins": bins.tolist(),
        }


def _quantile(values: Any, below: Any, share: float) -> float:
    """The smallest value that at least this share of the sorted values does not exceed.

    Args:
        values: The values.
        below: How many there are before each of them, and at the end how many in all.
        share: From 0 to 1.
    """
    place = int(np.searchsorted(below, math.ceil(share * int(below[-1]))))
    found: float = values[min(max(place - 1, 0), values.size - 1)].item()
    return found


def _quiet() -> Any:
    """No warnings: sums may overflow, and signalling NaNs would warn."""
    return np.errstate(all="ignore")


_ONES: Final = np.ones((_DOT, 1), np.float32)


def _dot(values: Any, others: Any) -> float:
    """The sum of products of two flat arrays of F32; of the first alone if the second is None."""
    whole = values.size // _DOT * _DOT
    left = values[:whole].reshape(-1, 1, _DOT)
    right = _ONES if others is None else others[:whole].reshape(-1, _DOT, 1)
    found: float = sum(np.matmul(left, right).ravel().tolist())
    if whole < values.size:
        rest = values[whole:]
        found += float(np.dot(rest, _ONES[: rest.size, 0] if others is None else others[whole:]))
    return found
