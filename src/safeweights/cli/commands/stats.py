"""`safeweights stats`: statistics of many tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import click

from ...conversion.opening import open_checkpoint
from ...errors import quote
from ...reports.problems import NO, YES
from ...storage.places import shown
from ...text import count, escape, plural, printable
from ..app import FILE, checkpoint_path, json_option
from ..figures import bars, digits
from ..identities import identity_option
from ..watching import watched

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...checkpoint import Checkpoint
    from ...reports.documents import (
        ComparedStatisticsRecord,
        StatisticsChangeRecord,
        StatisticsRecord,
        StatsCompareDocument,
        StatsDocument,
        TensorStatisticsRecord,
    )
    from ..output import Output

__all__ = ["command"]

_NUMBERS: Final = ("min", "max", "mean", "std")
_COUNTS: Final = ("zeros", "nan", "inf", "dead_rows")
_NAMES: Final = 5
"""Names of tensors in a message."""


@click.command("stats")
@checkpoint_path()
@click.argument("patterns", metavar="[NAME]...", nargs=-1)
@click.option(
    "--compare", "other", metavar="OTHER", type=FILE,
    help="Compare PATH with OTHER, a newer checkpoint.",
)  # fmt: skip
@click.option("--finite", is_flag=True, help="Exit with status 1 if a value is NaN or infinite.")
@identity_option
@json_option
@click.pass_obj
def command(
    out: Output, path: str, patterns: tuple[str, ...], *, other: str | None, finite: bool
) -> int:
    """Compute statistics of all tensors; find NaNs and dead rows.

    NAME is the name of a tensor, or a pattern: * matches anything, ? one character. Without NAME, all
    tensors are read. On a terminal, rows are printed as soon as they are computed.

    Every value is read. Minimum, maximum, mean and standard deviation are computed from the finite values.
    Quantiles and the histogram are computed from an even sample of about 32,768 values of each tensor. A
    dead row is a row along the last axis in which every value is zero.

    With --compare, the statistics of each tensor are printed for PATH (before) and OTHER (after), with the
    change: after minus before. A terminal shows only the tensors whose statistics changed.

    Piped, each line is NAME, TYPE, SHAPE, MIN, MAX, MEAN, STD, ZEROS, NANS, INFINITIES, DEAD ROWS, and the
    quantiles 0.01, 0.25, 0.5, 0.75 and 0.99, separated by tabs. A field that does not apply is -. With
    --compare, each line begins with before, after or change.

    \b
    Examples:
      safeweights stats model.safetensors
      safeweights stats model/ '*.mlp.*' --finite
      safeweights stats base/ --compare tuned/
      safeweights stats model/ --json | jq '.tensors[].statistics.std'
    """
    before = _opened(path, patterns)
    broken = _Broken()
    if other is None:
        _survey(out, path, before, broken)
    else:
        after = _opened(other, patterns, needed=False)
        _compare(out, (path, other), before, after, broken)
    if not (finite and broken.number):
        return YES
    if not out.terminal or out.json:  # a table has its own remarks
        out.message(broken.message())
    return NO


@dataclass
class _Broken:
    """The tensors that have NaNs or infinities."""

    number: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, record: TensorStatisticsRecord | None) -> None:
        """Note a tensor if it has."""
        from ...reports.surveys import is_finite

        if record is not None and not is_finite(record):
            self.number += 1
            if len(self.names) < _NAMES:
                self.names.append(quote(record["name"]))

    def message(self) -> str:
        """Which they are, the first of them by name."""
        more = " ..." if self.number > len(self.names) else ""
        verb = "has" if self.number == 1 else "have"
        what = plural(self.number, "tensor")
        return f"{what} {verb} NaNs or infinities: {', '.join(self.names)}{more}"


def _opened(path: str, patterns: tuple[str, ...], *, needed: bool = True) -> Checkpoint:
    checkpoint = open_checkpoint(path)
    chosen = checkpoint.filter(only=patterns) if patterns else checkpoint
    if patterns and needed and not len(chosen):
        raise click.UsageError(f"no tensor in {escape(shown(path))} is called {quote(patterns[0])}")
    return chosen


def _sizes(*checkpoints: Checkpoint) -> tuple[int, int]:
    """Bytes, and values, that are read."""
    readable = [
        tensor
        for checkpoint in checkpoints
        for tensor in checkpoint.values()
        if tensor.unreadable is None
    ]
    return (
        sum(tensor.nbytes for tensor in readable),
        sum(math.prod(tensor.shape) for tensor in readable),
    )


# ---- one checkpoint


def _survey(out: Output, path: str, chosen: Checkpoint, broken: _Broken) -> None:
    """Print the statistics."""
    from ...reports.surveys import survey

    if out.terminal and not out.json:
        _draw(out, survey(chosen), broken)  # the rows show the progress
        return
    with watched("reading", *_sizes(chosen)) as progress:
        records = survey(chosen, progress)
        if not out.json:
            out.lines(_line(record, broken) for record in records)
            return
        found = list(records)
    for record in found:
        broken.add(record)
    document: StatsDocument = {
        "schema": "safeweights.stats/1",
        "path": shown(path),
        "finite": not broken.number,
        "tensors": found,
    }
    out.document(document)


def _line(record: TensorStatisticsRecord, broken: _Broken) -> list[str]:
    broken.add(record)
    return _fields_of(record)


def _fields_of(record: TensorStatisticsRecord) -> list[str]:
    shape = str(record["shape"]).replace(" ", "")
    return [escape(record["name"]), record["dtype"], shape, *_fields(record["statistics"])]


def _fields(found: StatisticsRecord | None) -> Iterator[str]:
    if found is None:
        yield from ["-"] * 13
        return
    distribution = found["distribution"]
    yield from _values(found, distribution["quantiles"] if distribution else {})


def _values(
    found: StatisticsRecord | StatisticsChangeRecord, quantiles: dict[str, float]
) -> Iterator[str]:
    for key in _NUMBERS:
        yield digits(found[key], 6)
    for key in _COUNTS:
        number = found[key]  # type: ignore[literal-required]
        yield "-" if number is None else str(number)
    yield from (digits(value, 6) for value in quantiles.values())
    yield from ["-"] * (5 - len(quantiles))


def _draw(out: Output, records: Iterable[TensorStatisticsRecord], broken: _Broken) -> None:
    """Draw the statistics while they are computed."""
    from ..terminal import Column

    screen, remarks = out.pretty(), list[str]()

    def rows() -> Iterator[tuple[str, ...]]:
        for record in records:
            broken.add(record)
            remarks.extend(_remarks(record))
            yield escape(record["name"]), record["dtype"], *_cells(record["statistics"])

    titles = ("mean", "std", "min", "max", "zeros")
    screen.table(
        (
            Column("tensor"),
            Column("type", style="cyan"),
            *(Column(title, right=True) for title in titles),
            Column("values", style="green"),
        ),
        rows(),
    )
    for remark in remarks:
        screen.text((remark, "yellow"))


def _cells(found: StatisticsRecord | None) -> Iterator[str]:
    if found is None:
        yield from ["-"] * 6
        return
    for value in (found["mean"], found["std"], found["min"], found["max"]):
        yield digits(value, 4)
    yield str(found["zeros"]) if found["zeros"] else ""
    yield bars(found["distribution"]["bins"]) if found["distribution"] else ""


def _remarks(record: TensorStatisticsRecord, side: str = "") -> Iterator[str]:
    """What a person should know of a tensor beside the table."""
    found, name = record["statistics"], f"{escape(record['name'])}{side}"
    if found is None:
        yield f"{name}: not read: {printable(record['unreadable'] or '')}"
        return
    broken = [(found["nan"], "NaN"), (found["inf"], "infinity")]
    if any(number for number, _ in broken):
        what = ", ".join(f"{number:,} x {what}" for number, what in broken if number)
        yield f"{name}: {what}"
    if found["dead_rows"]:
        yield f"{name}: {plural(found['dead_rows'], 'row')} of zeros only"


# ---- two checkpoints


def _compare(
    out: Output, paths: tuple[str, str], before: Checkpoint, after: Checkpoint, broken: _Broken
) -> None:
    """Print the statistics side by side."""
    from ...reports.surveys import compare

    def checked(found: Iterable[ComparedStatisticsRecord]) -> Iterator[ComparedStatisticsRecord]:
        for each in found:
            broken.add(each["before"])
            broken.add(each["after"])
            yield each

    if out.terminal and not out.json:
        _draw_compared(out, checked(compare(before, after)))
        return
    with watched("reading", *_sizes(before, after)) as progress:
        records = checked(compare(before, after, progress))
        if not out.json:
            out.lines(line for record in records for line in _compared_lines(record))
            return
        tensors = list(records)
    document: StatsCompareDocument = {
        "schema": "safeweights.stats-compare/1",
        "before": shown(paths[0]),
        "after": shown(paths[1]),
        "finite": not broken.number,
        "tensors": tensors,
    }
    out.document(document)


def _compared_lines(record: ComparedStatisticsRecord) -> Iterator[list[str]]:
    for side in ("before", "after"):
        found = record[side]
        if found is not None:
            yield [side, *_fields_of(found)]
    change = record["change"]
    if change is not None:
        values = _values(change, change["quantiles"])
        yield ["change", escape(record["name"]), "-", "-", *values]


def _draw_compared(out: Output, records: Iterable[ComparedStatisticsRecord]) -> None:
    from ..terminal import Column

    screen, remarks, same = out.pretty(), list[str](), 0

    def rows() -> Iterator[tuple[str, ...]]:
        nonlocal same
        for record in records:
            old, new = record["before"], record["after"]
            for side, each in (("before", old), ("after", new)):
                remarks.extend(_remarks(each, f" ({side})") if each else ())
            if old and new and old["statistics"] == new["statistics"]:
                same += 1
                continue
            name = escape(record["name"])
            for side, each in (("before", old), ("after", new)):
                if each is not None:
                    only = "" if old and new else "only "
                    yield name, f"{only}{side}", *_cells(each["statistics"])
                    name = ""
            if record["change"] is not None:
                yield "", "change", *_change_cells(record["change"])

    titles = ("mean", "std", "min", "max", "zeros")
    screen.table(
        (
            Column("tensor", style="bold"),
            Column("", style="cyan"),
            *(Column(title, right=True) for title in titles),
            Column("values", style="green"),
        ),
        rows(),
    )
    for remark in remarks:
        screen.text((remark, "yellow"))
    if same:
        noun = "tensor has" if same == 1 else "tensors have"
        screen.text(f"{count(same)} {noun} the same statistics in both")


def _change_cells(change: StatisticsChangeRecord) -> Iterator[str]:
    for value in (change["mean"], change["std"], change["min"], change["max"]):
        yield "" if not value else f"{value:+.4g}"
    yield f"{change['zeros']:+d}" if change["zeros"] else ""
    yield ""
