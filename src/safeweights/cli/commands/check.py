"""`safeweights check`: check files against every rule of their format."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import click

from ...reports.checking import (
    check_document,
    check_path,
)
from ...reports.problems import NO, UNREADABLE, YES
from ...reports.rules import rule_of
from ...text import escape, human_bytes, plural, printable
from ..app import checkpoint_path, json_option
from ..identities import identity_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...reports.documents import CheckResult, FindingRecord
    from ..output import Output
    from ..terminal import Terminal

__all__ = ["command"]

_LEVELS: Final = ("error", "warning", "note")
_SHOWN: Final = 10
"""Maximum number of findings of one rule on a terminal."""

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
    "--format", "form", type=click.Choice(["text", "github", "sarif"]), default="text",
    help="github: annotations of GitHub Actions; sarif: a SARIF 2.1.0 log, for code scanning services.",
)  # fmt: skip
@click.option("--sarif", is_flag=True, help="The same as --format sarif.")
@identity_option
@json_option
@click.pass_obj
def command(out: Output, paths: tuple[str, ...], strict: bool, form: str, sarif: bool) -> int:
    """Check files against every rule of their format.

    Headers are checked against every rule of the format and against the size of the file. The shards of a
    folder or index are also checked against the index. Names that are empty or very long, or that look
    like paths or terminal commands, are warnings. Values of tensors are not checked. For a file of
    another format, every function that loading it would call is reported with its risk. No function is
    called.

    The exit status is 0 if every path is valid, 1 if one is bad, and 3 if none is bad but one could not
    be read.

    Piped, each line is ok, bad or unreadable and the PATH; or a finding: error, warning or note,
    FILE, RULE, byte OFFSET, TENSOR and message, separated by tabs.

    Do not truncate a file while another program has it mapped: the other program is killed when it reads
    the missing part. This command does not map files.

    \b
    Examples:
      safeweights check model.safetensors
      safeweights check --strict folder/ other.safetensors
      safeweights check pytorch_model.bin --sarif > results.sarif
      safeweights check *.safetensors --json | jq .ok
    """
    form = "sarif" if sarif else form
    if form != "text" and out.json:
        raise click.UsageError(f"--format {form} and --json exclude each other")
    results = []
    for path in dict.fromkeys(paths):
        results.append(check_path(path, strict=strict))
        if form == "text" and not (out.json or out.terminal):
            out.lines(_plain(results[-1]))
    statuses = {result["status"] for result in results}
    document = check_document(results, strict=strict)
    if out.json:
        out.document(document)
    elif form == "sarif":
        from ...reports.sarif import log

        out.document(log(results))
    elif form == "github":
        out.lines((line,) for result in results for line in _annotations(result))
    elif out.terminal:
        _draw_all(out.pretty(), results)
        for note in document["notes"]:
            out.pretty().text((f"note  {note}", "dim"))
    # A bad file takes precedence over one that could not be read.
    return NO if "bad" in statuses else UNREADABLE if "unreadable" in statuses else YES


def _annotations(result: CheckResult) -> Iterator[str]:
    """Workflow commands of GitHub Actions, one a finding."""
    kinds = {"error": "error", "warning": "warning", "note": "notice"}
    for finding in result["findings"]:
        file, title = (_property(text) for text in (finding["file"], finding["rule"]))
        yield f"::{kinds[finding['level']]} file={file},title={title}::{_data(finding['message'])}"


def _data(text: str) -> str:
    """Text as a workflow command takes it; nothing in it can begin another command."""
    return printable(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _draw_all(screen: Terminal, results: list[CheckResult]) -> None:
    """Draw what was found: of several paths first how many are bad, then the worst."""
    worst = sorted(results, key=lambda result: ("bad", "unreadable", "ok").index(result["status"]))
    if len(results) > 1:
        number = plural(len(results), "path")
        counted = Counter(result["status"] for result in results)
        if bad := counted["bad"]:
            screen.text((f"{bad:,} of {number} {'is' if bad == 1 else 'are'} bad", _STYLES["bad"]))
        if missed := counted["unreadable"]:
            screen.text((f"{missed:,} of {number} could not be read", _STYLES["unreadable"]))
        if counted["ok"] == len(results):
            screen.text((f"all {number} are ok", _STYLES["ok"]))
    for result in worst:
        _draw(screen, result)


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
    if sums is not None:
        about = f"  {plural(sums['tensors'], 'tensor')}, {human_bytes(sums['bytes'])}"
    else:  # says also of a folder without weights why it is valid
        about = f"  {', '.join(result['formats'])}" if status == "ok" else ""
    screen.text((status, _STYLES[status]), "  ", (escape(result["path"]), "bold"), about)
    if numbers := _numbers(result["findings"]):
        screen.text((numbers, "dim"), indent=4)
    for level in ("error", "warning"):
        same = [finding for finding in result["findings"] if finding["level"] == level]
        for rule in dict.fromkeys(finding["rule"] for finding in same):
            _draw_rule(screen, result, [finding for finding in same if finding["rule"] == rule])
    notes = [finding for finding in result["findings"] if finding["level"] == "note"]
    for rule in dict.fromkeys(finding["rule"] for finding in notes):
        _draw_note(screen, [finding for finding in notes if finding["rule"] == rule])
    if result["truncated"]:
        screen.text(("more findings exist than are listed", "dim"), indent=4)


def _numbers(findings: list[FindingRecord]) -> str:
    """How much was found, if that is more than a look shows."""
    if len(findings) < _SHOWN:
        return ""
    counted = Counter(finding["level"] for finding in findings)
    return ", ".join(plural(counted[level], level) for level in _LEVELS if counted[level])


def _draw_rule(screen: Terminal, result: CheckResult, same: list[FindingRecord]) -> None:
    """Draw the findings of one rule, and what to do about them."""
    level = same[0]["level"]
    for finding in same[:_SHOWN]:
        offset = finding["offset"]
        where = "" if offset is None else f"at byte {offset}"
        if finding["file"] != result["path"]:
            where = f"{escape(finding['file'])} {where}".rstrip()
        heading = f" {finding['rule']}" + (f", {where}" if where else "")
        screen.text((level, _STYLES[level]), (heading, "dim"), indent=4)
        screen.text(printable(finding["message"]), indent=6)
    if len(same) > _SHOWN:
        rest = plural(len(same) - _SHOWN, f"{level} more of {same[0]['rule']}")
        screen.text((f"and {rest}: see --json", "dim"), indent=6)
    if (rule := rule_of(same[0]["rule"])) is not None:
        screen.text(("-> ", "dim"), (rule.cure, "dim"), indent=6)


def _draw_note(screen: Terminal, same: list[FindingRecord]) -> None:
    """Draw all notes of one rule in one line."""
    first = same[0]
    more = f" (and {len(same) - 1:,} more)" if len(same) > 1 else ""
    screen.text(("note  ", "dim"), (f"{printable(first['message'])}{more}", "dim"), indent=4)
