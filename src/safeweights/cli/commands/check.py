"""`safeweights check`: everything that is wrong with files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from ...reports.findings import check_path
from ...reports.problems import COULD_NOT_LOOK, NO, YES
from ...storage.pipes import STDIN
from ...text import escape, human_bytes, plural, printable
from ..app import checkpoint_path, json_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...reports.documents import CheckDocument, CheckResult
    from ..output import Output
    from ..terminal import Terminal

__all__ = ["command"]

_MAPPED_NOTE: Final = (
    "do not truncate a file while a program has it mapped: touching the lost part kills the program "
    "(SIGBUS); replace files by renaming, or read them with backend='pread'"
)
"""True of every good file, so that it is said once, and not to programs that read lines."""

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
    help="Warnings fail; also report what is allowed but no good writer writes.",
)
@click.option(
    "--sarif", is_flag=True, help="Print one SARIF 2.1.0 log, for code scanning services."
)
@json_option
@click.pass_obj
def command(out: Output, paths: tuple[str, ...], strict: bool, sarif: bool) -> int:
    """Find everything that is wrong with files.

    Headers are checked against every rule of the format and the size of the file; a folder's or
    index's shards also against the index. Names that are empty, huge, or look like paths or terminal
    commands are warnings. Values of tensors are not looked at. In a file of another format, every
    call that loading it would make is reported, with how dangerous it is, and none is made.

    The exit status is 0 if everything is well, 1 if any path is bad, and 3 if none is known to be bad
    but one could not be read.

    Piped, each line is ok, bad or unreadable and the PATH; or a finding: error, warning or note,
    FILE, RULE, byte OFFSET, TENSOR and message, separated by tabs.

    Files that other programs have mapped must not be truncated meanwhile: whoever touches the lost
    part is killed. This command reads instead of mapping, and is not.

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
    notes = [_MAPPED_NOTE] if any(map(_may_be_mapped, results)) else []
    if out.json:
        document: CheckDocument = {
            "schema": "safeweights.check/1",
            "ok": statuses == {"ok"},
            "strict": strict,
            "results": results,
            "notes": notes,
        }
        out.document(document)
    elif sarif:
        from ...reports.sarif import log

        out.document(log(results))
    elif out.terminal:
        for note in notes:
            out.pretty().text((f"note  {note}", "dim"))
    # One bad file settles the question, whatever could not be read.
    return NO if "bad" in statuses else COULD_NOT_LOOK if "unreadable" in statuses else YES


def _may_be_mapped(result: CheckResult) -> bool:
    """Whether there are good safetensors files at the path."""
    return result["status"] == "ok" and result["total"] is not None and result["path"] != STDIN


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
        yield "note", escape(result["path"]), "truncated", "", "", "there is more than is listed"


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
        screen.text(("there is more than is listed", "dim"), indent=4)
