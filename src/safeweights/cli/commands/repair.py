"""`safeweights repair`: repair what can be repaired without guessing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...reports.problems import NO, YES
from ...storage.places import shown
from ...text import escape
from ..app import checkpoint_path, json_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...editing.repairing import Download, Repair
    from ...reports.documents import RepairDocument
    from ..output import Output

__all__ = ["command"]


@click.command("repair")
@checkpoint_path()
@click.option("--plan", is_flag=True, help="Print the repairs, but write nothing.")
@click.option(
    "--format", metavar="NAME", help="Add format=NAME (pt, np ...) to metadata that has none."
)
@click.option("--durable", is_flag=True, help="Wait until all data is on the disk.")
@json_option
@click.pass_obj
def command(out: Output, path: str, *, plan: bool, format: str | None, durable: bool) -> int:  # noqa: A002
    """Repair files and indexes, and report what to download again.

    PATH is a safetensors file or a folder. Bytes after the end of the data are removed. NUL bytes after a
    header are replaced by spaces. A missing or wrong index is written again if the series of shards is
    complete. A format is added to the metadata if --format is given, or if all other shards have the same
    format.

    Missing data cannot be repaired. If a file is too short, or ends in zeros in the middle of a tensor (as
    after an interrupted, preallocated download), the range of bytes to download is printed. The zeros may
    be correct: compare the file with the publisher's digest.

    The exit status is 0 if nothing is left to do, and 1 otherwise.

    Piped, each line is one of these, separated by tabs: mended, FILE and what was done; download, FILE,
    FIRST byte, LAST byte (empty: to the end, or the whole file) and the reason; left, FILE and what is
    wrong.

    \b
    Examples:
      safeweights repair model/ --plan
      safeweights repair model.safetensors --format pt
    """
    from ...editing.repairing import repair

    done = repair(path, format=format, dry_run=plan, durable=durable)
    if out.json:
        out.document(_document(done))
    elif out.terminal:
        screen = out.pretty()
        for kind, style, rows in _drawn(done):
            for row in rows:
                screen.text((kind, style), "  ", (escape(row[0]), "bold"), f"  {escape(row[1])}")
        if done.whole and not done.mended:
            screen.text(("nothing to mend", "green"))
        if plan and done.mended:
            screen.text(("nothing was written (--plan)", "dim"))
    else:
        out.lines(_plain(done))
    return YES if done.whole else NO


def _drawn(done: Repair) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    mended = "would mend" if done.dry_run else "mended"
    yield mended, "green", [(each.file, each.what) for each in done.mended]
    yield (
        "download",
        "yellow",
        [(each.file, f"{_range(each)}: {each.why}") for each in done.downloads],
    )
    yield "left", "red", list(done.left.items())


def _range(each: Download) -> str:
    if each.first is None:
        return "all of it"
    last = "" if each.last is None else str(each.last)
    return f"bytes={each.first}-{last}"


def _plain(done: Repair) -> Iterator[tuple[str, ...]]:
    for mended in done.mended:
        yield "mended", escape(mended.file), escape(mended.what)
    for each in done.downloads:
        ends = ("" if end is None else str(end) for end in (each.first, each.last))
        yield "download", escape(each.file), *ends, escape(each.why)
    for file, what in done.left.items():
        yield "left", escape(file), escape(what)


def _document(done: Repair) -> RepairDocument:
    return {
        "schema": "safeweights.repair/1",
        "path": shown(done.path),
        "dry_run": done.dry_run,
        "whole": done.whole,
        "mended": [{"file": each.file, "what": each.what} for each in done.mended],
        "downloads": [
            {"file": each.file, "first": each.first, "last": each.last, "why": each.why}
            for each in done.downloads
        ],
        "left": done.left,
    }
