"""`safeweights check`: check files against every rule of their format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from ...reports.checking import (
    check_document,
    check_path,
)
from ...reports.problems import NO, UNREADABLE, YES
from ...text import escape, human_bytes, plural, printable
from ..app import checkpoint_path, json_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...reports.documents import CheckResult
    from ..output import Output
    from ..terminal import Terminal

__all__ = ["command"]

_STYLES: Final = {
    "ok": "green",
    "bad": "bold red",
    "unreadable": "yellow",
    "error": "red",
    "warning": "yellow",
    "note": "dim",
}


@click.command("check")
@checkpoint_path(many=True)
@click.option(
    "--strict",
    is_flag=True,
    help="Treat warnings as errors, and report unusual but valid headers.",
)
@click.option(
    "--sarif", is_flag=True, help="Print one SARIF 2.1.0 log, for code scanning services."
)
@json_option
@click.pass_obj
def command(out: Output, paths: tuple[str, ...], strict: bool, sarif: bool) -> int:
    """Check files against every rule of their format.

    Headers are checked against every rule of the format and against the size of the file; the shards of
    a folder or index also against the index. Names that are empty or very long, or that look like paths
    or terminal commands, are warnings. Values of tensors are not checked. For a file of another format,
    every function that loading it would call is reported with its danger, and none is called.

    The exit status is 0 if every path is valid, 1 if one is bad, and 3 if none is bad but one could not
    be read.

    Piped, each line is ok, bad or unreadable and the PATH; or a finding: error, warning or note,
    FILE, RULE, byte OFFSET, TENSOR and message, separated by tabs.

    Do not truncate a file while another program has it mapped: that program is killed when it reads the
    lost part. This command does not map files.

    \b
    Examples:
      safeweights check model.safetensors
      safeweights check --strict folder/ other.safetensors
      safeweights check pytorch_model.bin --sarif > results.sarif
      safeweights check *.safetensors --json | jq .ok
    """
    if sarif and out.json:
        raise click.UsageError("--sarif and --json exclude each other")
    results = []
    for path in dict.fromkeys(paths):
        result = check_path(path, strict=strict)
        results.append(result)
        if not (out.json or sarif):
            _print(out, result)
    statuses = {result["status"] for result in results}
    document = check_document(results, strict=strict)
    if out.json:
        out.document(document)
    elif sarif:
        from ...reports.sarif import log

        out.document(log(results))
    elif out.terminal:
        for note in document["notes"]:
            out.pretty().text((f"note  {note}", "dim"))
    # A bad file takes precedence over one that could not be read.
    return NO if "bad" in statuses else UNREADABLE if "unreadable" in statuses else YES


def _print(out: Output, result: CheckResult) -> None:
    if out.terminal:
        _draw(out.pretty(), result)
    else:
        out.lines(_plain(result))


def _plain(result: CheckResult) -> Iterator[tuple[str, ...]]:
    yield result["status"], escape(result["path"])
    for finding in result["findings"]:
        offset = finding["offset"]
        yield (
            finding["level"],
            escape(finding["file"]),
            finding["rule"],
            "" if offset is None else str(offset),
            escape(finding["tensor"] or ""),
            printable(finding["message"]),
        )
    if result["truncated"]:
        yield (
            "note",
            escape(result["path"]),
            "truncated",
            "",
            "",
            "more findings exist than are listed",
        )


def _draw(screen: Terminal, result: CheckResult) -> None:
    status, sums = result["status"], result["total"]
    about = ""
    if sums is not None:
        about = f"  {plural(sums['tensors'], 'tensor')}, {human_bytes(sums['bytes'])}"
    screen.text((status, _STYLES[status]), "  ", (escape(result["path"]), "bold"), about)
    for finding in result["findings"]:
        level, offset = finding["level"], finding["offset"]
        where = "" if offset is None else f"at byte {offset}"
        if finding["file"] != result["path"]:
            where = f"{escape(finding['file'])} {where}".rstrip()
        heading = f" {finding['rule']}" + (f", {where}" if where else "")
        screen.text((level, _STYLES[level]), (heading, "dim"), indent=4)
        screen.text(printable(finding["message"]), indent=6)
    if result["truncated"]:
        screen.text(("more findings exist than are listed", "dim"), indent=4)
