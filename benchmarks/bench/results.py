"""From samples to verdicts. Pure functions on plain values: what is in the JSON is all they use."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

from .rows import BEST, OURS, Reach

__all__ = [
    "DOUBTFUL", "LONGER", "NEAR", "NOISY", "RowResult", "Sampled", "deciding", "judge",
    "slowest", "undisturbed",
]  # fmt: skip

_NEVER_PEERS: Final = (OURS,)

NOISY: Final = 0.15
"""Spread, as a share of the median, above which a figure is too noisy to publish."""

LONGER: Final = 3
"""How many times as long in all is sampled what misses its mark, or is too noisy to tell."""

DOUBTFUL: Final = frozenset({"FAIL", "noisy"})
"""Verdicts after which there is a second sitting, when everything else was measured: a state of the machine
that lasts for minutes then decides on a part of the samples only."""

NEAR: Final = 1.2
"""Ours divided by the bound, up to which the bound is the reason that a mark is missed."""


@dataclass
class Sampled:
    """What one contender, or one limit, was seen to need in a row.

    Attributes:
        values: One a sample, in the row's unit.
        missing: Why there are none.
        way: Which of its ways the contender took: an engine's name, or ``"default"``.
        processor_seconds: What its process used of processors, one a sample that is a time. Where a
            sample is slow, they tell work from waiting, for a disk, say.
    """

    values: list[float] = field(default_factory=list)
    missing: str | None = None
    way: str | None = None
    processor_seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        return median(self.values) if self.values else None

    @property
    def spread(self) -> float:
        """Median absolute deviation from the median: half of the samples are nearer to it."""
        if not self.values:
            return 0.0
        middle = median(self.values)
        return median(abs(value - middle) for value in self.values)

    @property
    def least(self) -> float | None:
        return min(self.values, default=None)

    @property
    def quartile(self) -> float | None:
        """The lower one: a quarter of the samples are below it."""
        return sorted(self.values)[(len(self.values) - 1) // 4] if self.values else None

    @property
    def disturbed(self) -> bool:
        """Whether the lower quartile is more than `NOISY` below the median."""
        middle, quartile = self.median, self.quartile
        return middle is not None and quartile is not None and quartile < (1 - NOISY) * middle

    @property
    def noise(self) -> float:
        """The spread as a share of the median; 0 for values that may be 0 or below."""
        middle = self.median
        return self.spread / middle if middle and middle > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        if not self.values:
            return {"missing": self.missing or "not measured"}
        return {
            "median": self.median,
            "mad": self.spread,
            "least": min(self.values),
            "way": self.way,
            "samples": self.values,
            "processor_seconds": self.processor_seconds,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Sampled:
        """The inverse of `as_json`."""
        return cls(
            data.get("samples", []),
            data.get("missing"),
            data.get("way"),
            data.get("processor_seconds", []),
        )


@dataclass
class RowResult:
    """A row of the table, measured.

    Attributes:
        ratio: Ours by that of `compared`, the contender that the row is measured against.
        limit_ratio: Ours by the machine's limit: 1 is all the machine can do.
        failures: What was to be reached and was not; None where nothing was asked.
        noise: The larger spread of ours and of what it has to reach, as a share of the median; 0 if
            nothing was asked of a comparison.
        unsure: It is above `NOISY`, and undisturbed samples give another verdict than the medians.
        bound: The limit that any implementation has to wait for; see `bench.rows.Row`.
        memory_rates: At which free memory was touched before samples, in bytes a second; none for rows
            that need too little of it.
        sittings: 2 if it was measured again when everything else had been.
        limited: The bound, in the place of ours, would miss the mark too, or meet it by less than it
            spreads, and ours is near it.
    """

    name: str
    title: str
    unit: str
    nbytes: int
    tensors: int
    reach: str
    versus: str
    contenders: dict[str, Sampled]
    limits: dict[str, Sampled]
    notes: list[str] = field(default_factory=list)
    compared: str | None = None
    ratio: float | None = None
    limit_ratio: float | None = None
    failures: list[str] | None = None
    noise: float = 0.0
    unsure: bool = False
    bound: str | None = None
    limited: bool = False
    memory_rates: list[float] = field(default_factory=list)
    sittings: int = 1

    @property
    def memory_rate(self) -> float | None:
        """The median of `memory_rates`."""
        return median(self.memory_rates) if self.memory_rates else None

    @property
    def verdict(self) -> str:
        if self.failures is None:
            return ""
        if self.unsure:
            return "noisy"
        if self.failures and self.limited:
            return "limit"
        return "FAIL" if self.failures else "pass"

    def as_json(self) -> dict[str, Any]:
        plain = {
            key: value for key, value in asdict(self).items() if key not in {"contenders", "limits"}
        }
        return {
            **plain,
            "verdict": self.verdict,
            "contenders": {name: found.as_json() for name, found in self.contenders.items()},
            "limits": {name: found.as_json() for name, found in self.limits.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RowResult:
        """The inverse of `as_json`."""
        rest = {key: value for key, value in data.items() if key != "verdict"}
        for group in ("contenders", "limits"):
            rest[group] = {name: Sampled.from_json(found) for name, found in data[group].items()}
        return cls(**rest)


def undisturbed(*compared: Sampled) -> tuple[float | None, ...]:
    """The median of each; the lower quartile of each, if samples of one are disturbed.

    What disturbs samples makes them longer: where it met many, those that it did not meet tell more.
    The fastest one tells less the more samples there are, and the luckier it was. What is compared is
    the same of all: the quartile of one is not compared with the median of another.
    """
    if any(each.disturbed for each in compared):
        return tuple(each.quartile for each in compared)
    return tuple(each.median for each in compared)


def slowest(found: Sampled, value: float | None) -> float:
    """A figure of it and its spread, of which no more counts than `NOISY`: a time that is as likely."""
    return (value or 0.0) * (1 + min(found.noise, NOISY))


def judge(result: RowResult, reach: Reach | None) -> RowResult:
    """Fill in the ratios and whether the row reached what it is to reach."""
    ours = result.contenders[OURS]
    result.compared = _opponent(result)
    theirs = result.contenders[result.compared] if result.compared else Sampled()
    limit = next(iter(result.limits.values())) if result.limits else Sampled()
    bound = result.limits.get(result.bound or "", limit)
    result.ratio = _quotient(ours.median, theirs.median)
    result.limit_ratio = _quotient(ours.median, limit.median)
    if reach is None:
        return result
    if ours.median is None:
        result.failures = [f"not measured: {ours.missing}"]
        return result
    missed = _missed(result, reach, ours.median, theirs.median, limit.median)
    result.failures = [*missed.values()]
    others = [theirs] * (reach.ratio is not None) + [limit] * (reach.limit_share is not None)
    mine, least, *rest = undisturbed(ours, bound, *others)
    instead = rest[0] if others else None, rest[-1] if others else None
    if others:
        result.noise = max(each.noise for each in (ours, *others))
        missed_instead = _missed(result, reach, mine or 0.0, *instead)
        result.unsure = result.noise > NOISY and bool(missed_instead) != bool(missed)
    if missed and all(each.values for each in (bound, *others)):
        # Not the medians of all: what disturbs a limit makes it longer, and would excuse ours. But the
        # bound is measured, too: with one that meets the mark by 2 %, and spreads by 6 %, the next run
        # may tell the opposite of this one.
        of_the_bound = _missed(result, reach, slowest(bound, least), *instead)
        near = (mine or 0.0) <= NEAR * (least or 0.0)
        result.limited = near and missed.keys() <= of_the_bound.keys()
    return result


def deciding(result: RowResult) -> set[str]:
    """The columns on which the verdict of a judged row depends: also those that may yet be the best."""
    columns = {OURS, *result.limits}
    compared = result.contenders.get(result.compared or "", Sampled())
    if compared.median is None:
        return columns
    if result.versus != BEST:
        return columns | {result.versus}
    return columns | {
        name
        for name, found in result.contenders.items()
        if found.least is not None and found.least <= compared.median
    }


def _opponent(result: RowResult) -> str | None:
    if result.versus != BEST:
        return result.versus if result.versus in result.contenders else None
    medians = {
        name: found.median
        for name, found in result.contenders.items()
        if name not in _NEVER_PEERS and found.median is not None
    }
    return min(medians, key=lambda name: medians[name] or 0.0) if medians else None


def _quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _missed(
    result: RowResult, reach: Reach, value: float, theirs: float | None, limit: float | None
) -> dict[str, str]:
    """What of `reach` a contender that needs `value` misses: which part of it -> why."""
    missed = {}
    # Two decimals, as the table shows them: no verdict hangs on a third.
    ratio = _quotient(value, theirs)
    if reach.ratio is not None and not (ratio is not None and round(ratio, 2) <= reach.ratio):
        shown = "unknown" if ratio is None else f"{ratio:.3f}"
        missed["ratio"] = f"{shown} of {result.compared}, {reach.ratio:g} wanted"
    share = _quotient(limit, value) or 0.0
    if reach.limit_share is not None and round(share, 2) < reach.limit_share:
        missed["limit"] = f"{share:.2f} of the limit's rate, {reach.limit_share:g} wanted"
    slack = reach.slack / result.nbytes if result.nbytes else 0.0
    if reach.most is not None and round((value - slack) / reach.most, 2) > 1:
        missed["most"] = f"{value:.4g}, at most {reach.most:g} wanted"
    return missed
