"""`safeweights stats`: statistics of many tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from ...conversion.opening import open_checkpoint
from ...errors import quote
from ...reports.problems import NO, YES
from ...storage.places import shown
from ...text import escape, plural
from ..app import checkpoint_path, json_option
from ..figures import bars, digits
from ..identities import identity_option
from ..watching import watched

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...checkpoint import Checkpoint, Tensor
    from ...reports.documents import StatisticsRecord, StatsDocument, TensorStatisticsRecord
    from ..output import Output

__all__ = ["command"]


@click.command("stats")
@checkpoint_path()
@click.argument("patterns", metavar="[NAME]...", nargs=-1)
@click.option("--finite", is_flag=True, help="Exit with status 1 if a value is NaN or infinite.")
@identity_option
@json_option
@click.pass_obj
def command(out: Output, path: str, patterns: tuple[str, ...], *, finite: bool) -> int:
    """Compute statistics of all tensors; find NaNs and dead rows.

    With NAMEs, only of the tensors called so; NAME may be a pattern: * matches anything, ? one
    character. All values are read, by several threads; min, max, mean and std are those of the finite
    ones. Quantiles and the histogram come from an even sample of some 65,536 values of each tensor. A
    dead row is one along the last axis that is all zeros.

    Piped, each line is name, type, shape, min, max, mean, std, zeros, NaNs, infinities, dead rows, and
    the quantiles 0.01, 0.25, 0.5, 0.75 and 0.99, separated by tabs; - stands for what does not apply.

    \b
    Examples:
      safeweights stats model.safetensors
      safeweights stats model/ '*.mlp.*' --finite
      safeweights stats model/ --json | jq '.tensors[].statistics.std'
    """
    checkpoint = open_checkpoint(path)
    chosen = checkpoint.filter(only=patterns) if patterns else checkpoint
    if patterns and not len(chosen):
        raise click.UsageError(f"no tensor in {escape(path)} is called {quote(patterns[0])}")
    records = _records(chosen)
    if out.json or out.terminal:
        found = list(records)
        if out.json:
            out.document(_document(path, found))
        else:
            _draw(out, found)
    else:
        found = []
        out.lines(_kept(records, found))
    return NO if finite and not _document(path, found)["finite"] else YES


def _records(chosen: Checkpoint) -> Iterator[TensorStatisticsRecord]:
    from ...format.indexing import select
    from ...reports.statistics import statistics_of

    tensors = list(chosen.items())
    readable = [tensor for _, tensor in tensors if tensor.unreadable is None]
    size = sum(tensor.nbytes for tensor in readable)
    with watched("reading", size, sum(math.prod(tensor.shape) for tensor in readable)) as progress:
        computed = statistics_of(((each, select(..., each.shape)) for each in readable), progress)
        for name, tensor in tensors:
            yield _record(name, tensor, None if tensor.unreadable else next(computed))


def _record(
    name: str, tensor: Tensor, statistics: StatisticsRecord | None
) -> TensorStatisticsRecord:
    return {
        "name": name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "statistics": statistics,
        "unreadable": tensor.unreadable,
    }


def _document(path: str, found: list[TensorStatisticsRecord]) -> StatsDocument:
    known = [each["statistics"] for each in found if each["statistics"] is not None]
    return {
        "schema": "safeweights.stats/1",
        "path": shown(path),
        "finite": not any(each["nan"] or each["inf"] for each in known),
        "tensors": found,
    }


def _kept(
    records: Iterable[TensorStatisticsRecord], kept: list[TensorStatisticsRecord]
) -> Iterator[list[str]]:
    """The fields of each record, which is printed as soon as it is there."""
    for record in records:
        kept.append(record)
        shape = str(record["shape"]).replace(" ", "")
        yield [escape(record["name"]), record["dtype"], shape, *_fields(record["statistics"])]


def _fields(found: StatisticsRecord | None) -> Iterator[str]:
    if found is None:
        yield from ["-"] * 13
        return
    for value in (found["min"], found["max"], found["mean"], found["std"]):
        yield digits(value, 6)
    for number in (found["zeros"], found["nan"], found["inf"], found["dead_rows"]):
        yield "-" if number is None else str(number)
    distribution = found["distribution"]
    quantiles = distribution["quantiles"].values() if distribution else [None] * 5
    yield from (digits(value, 6) for value in quantiles)


def _draw(out: Output, found: list[TensorStatisticsRecord]) -> None:
    from ..terminal import Column

    screen = out.pretty()
    titles = ("mean", "std", "min", "max", "zeros")
    screen.table(
        (
            Column("tensor"),
            Column("type", style="cyan"),
            *(Column(title, right=True) for title in titles),
            Column("values", style="green"),
        ),
        (
            (escape(record["name"]), record["dtype"], *_cells(record["statistics"]))
            for record in found
        ),
    )
    for record in found:
        for remark in _remarks(record):
            screen.text((f"{escape(record['name'])}: {remark}", "yellow"))


def _cells(found: StatisticsRecord | None) -> Iterator[str]:
    if found is None:
        yield from ["-"] * 6
        return
    for value in (found["mean"], found["std"], found["min"], found["max"]):
        yield digits(value, 4)
    yield str(found["zeros"]) if found["zeros"] else ""
    yield bars(found["distribution"]["bins"]) if found["distribution"] else ""


def _remarks(record: TensorStatisticsRecord) -> Iterator[str]:
    """What a person should know of a tensor beside the table."""
    found = record["statistics"]
    if found is None:
        yield f"not read: {record['unreadable']}"
        return
    broken = [(found["nan"], "NaN"), (found["inf"], "infinity")]
    if any(number for number, _ in broken):
        yield ", ".join(f"{number:,} x {what}" for number, what in broken if number)
    if found["dead_rows"]:
        yield f"{plural(found['dead_rows'], 'row')} of zeros only"
