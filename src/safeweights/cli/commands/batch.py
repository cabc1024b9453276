"""`safeweights batch`: one command for many models."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import closing, nullcontext
from copy import copy
from typing import TYPE_CHECKING, Any

import click

from ...batching import ENGINES, BatchReport, ManifestError
from ...batching.reporting import STATUSES
from ...errors import UnsupportedError
from ...storage import write_file
from ...text import escape, plural, printable
from ..app import FILE, json_option
from ..batches import records, units_of
from ..output import can_draw
from ..performing import BATCHED, arguments_of, options_of, work_of
from ..writing import not_stdout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from ...batching import Unit
    from ...reports.documents import BatchUnitRecord
    from ..output import Output

__all__ = ["command"]

_SHOWN = 20
"""Maximum number of units that are not ok on a terminal."""

_WATCHED = 50
"""Number of units above which progress is shown."""

_STYLES = {"ok": "green", "bad": "bold red", "usage": "yellow", "unreadable": "yellow"}

_BATCH_OPTIONS = (
    click.option(
        "--to", metavar="DST", type=FILE, help="The folder or URL of the results (convert, pull, admit)."
    ),
    click.option(
        "--each", type=click.Choice(["model", "file"]), default="model",
        help="The unit below a folder: each model, or each file of weights.",
    ),
    click.option(
        "--engine", type=click.Choice(list(ENGINES)), default="process",
        help="Use processes of this machine, or tasks of a Ray cluster.",
    ),
    click.option(
        "--jobs", type=click.IntRange(1), metavar="N", help="Workers [default: one a processor]."
    ),
    click.option(
        "--resume", metavar="MANIFEST", type=FILE,
        help="Record finished units in this file, and skip the units that it already has, if unchanged.",
    ),
    click.option(
        "--shard", metavar="I/N", help="Run only the I-th of N parts of the units, chosen by their names."
    ),
    click.option("--report", metavar="FILE", type=FILE, help="Write the JSON document to a file."),
    click.option("--junit", metavar="FILE", type=FILE, help="Write the results as JUnit XML."),
)  # fmt: skip


class _Batches(click.Group):
    """A command for each of those that batches have, with its options."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(BATCHED)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        return _command(cmd_name) if cmd_name in BATCHED else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, batched.help) for name, batched in BATCHED.items()])


@click.group("batch", cls=_Batches)
def command() -> None:
    """Run one command on many models, in processes or on a cluster.

    The commands are convert, check, hash, sign, verify, admit and pull, with their usual options.

    SRC is a file, a folder of models, a pattern ('models/*/*.bin'), a URL, or a list of these: @FILE, or -
    for standard input, one SRC per line. Below a folder, each model is a unit: the topmost folder that has
    weights.

    If a model is bad, the batch continues with the others. The exit status is 1 if a model is bad, and 3 if
    none is bad but one could not be read. If a worker is killed, its unit is run again, up to three times
    in total. With --resume, a batch that was killed is resumed.

    Piped, each line is ok, bad, usage or unreadable, SRC, the path of the result and a message, separated
    by tabs, in the order of the sources.

    \b
    Examples:
      safeweights batch check models/ --junit report.xml
      safeweights batch convert models/ --to new/ --dtype BF16 --resume todo.jsonl
      safeweights batch pull @urls.txt --to models/ --policy policy.toml --jobs 4
      safeweights batch hash s3://bucket/models/ --engine ray --report hashes.json
    """


def _command(name: str) -> click.Command:
    """The command of a batch: its own options, and those of the command that it runs."""
    batched = BATCHED[name]

    @click.pass_obj
    def run(out: Output, /, sources: tuple[str, ...], **given: Any) -> int:
        return _run(out, name, sources, given)

    made = json_option(run)
    for option in reversed(_BATCH_OPTIONS):
        made = option(made)
    made = click.argument("sources", metavar="SRC...", nargs=-1, required=True, type=FILE)(made)
    built = click.command(name, help=f"{batched.help} See `safeweights {name} --help`.")(made)
    own = {option for each in built.params for option in each.opts}
    for other in options_of(name).values():
        copied = copy(other)
        copied.opts = [each for each in other.opts if each not in own]
        built.params.append(copied)
    return built


def _run(out: Output, name: str, sources: tuple[str, ...], given: dict[str, Any]) -> int:
    known = options_of(name)
    arguments = arguments_of(name, {key: value for key, value in given.items() if key in known})
    for option in ("report", "junit"):
        not_stdout(f"--{option}", given[option])
    try:
        units = units_of(name, sources, to=given["to"], each=given["each"], shard=given["shard"])
    except UnsupportedError as error:
        raise click.UsageError(str(error)) from None
    found = records(
        units, work_of(name, arguments), engine=given["engine"], jobs=given["jobs"], resume=given["resume"],
        notice=out.message,
    )  # fmt: skip
    done: list[BatchUnitRecord] = []
    with closing(found), _progress(units) as progress:
        try:
            for record in found:
                done.append(record)
                progress(len(done))
                if not (out.json or out.terminal):
                    out.line(*_fields(record))
        except ManifestError as error:  # before the first unit
            raise click.UsageError(f"--resume: {error}") from None
    report = BatchReport(name, tuple(done))
    _write(report, given)
    if out.json:
        out.document(report.document())
    elif out.terminal:
        _draw(out, report)
    if not units and given["shard"] is None:
        out.message("there is nothing to do")
    return report.exit_code


def _progress(units: list[Unit]) -> AbstractContextManager[Callable[[int], object]]:
    terminal = sys.stderr is not None and sys.stderr.isatty() and can_draw()
    if len(units) < _WATCHED or not terminal:
        return nullcontext(lambda _: None)
    from ..terminal import progress

    return progress(plural(len(units), "unit"), len(units))


def _fields(record: BatchUnitRecord) -> Iterator[str]:
    yield record["status"]
    yield escape(record["source"])
    yield escape(record["target"] or "")
    yield printable(record["message"] or "")


def _write(report: BatchReport, given: dict[str, Any]) -> None:
    if given["report"] is not None:
        import json

        text = json.dumps(report.document(), indent=2, allow_nan=False)
        write_file(given["report"], [f"{text}\n".encode()])
    if given["junit"] is not None:
        write_file(given["junit"], [report.junit().encode()])


def _draw(out: Output, report: BatchReport) -> None:
    screen = out.pretty()
    counted = Counter(unit["status"] for unit in report.units)
    numbers = [(f"{counted[each]:,} {each}  ", _STYLES[each]) for each in STATUSES if counted[each]]
    screen.text(*numbers, f"of {plural(len(report.units), 'unit')}")
    bad = [unit for unit in report.units if unit["exit_code"]]
    for unit in bad[:_SHOWN]:
        screen.text(
            (unit["status"], _STYLES[unit["status"]]), "  ", (escape(unit["source"]), "bold")
        )
        screen.text(printable(unit["message"] or ""), indent=4)
    if len(bad) > _SHOWN:
        screen.text((f"and {len(bad) - _SHOWN:,} more: see --json or --report", "dim"))
