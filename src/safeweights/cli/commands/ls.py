"""`safeweights ls`: list the tensors of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...checkpoint.mapping import matches
from ...conversion.opening import open_checkpoint
from ...reports.calls import loading_calls
from ...reports.inventory import branches, natural, rows, total, unreadable
from ...reports.problems import NO, YES
from ...storage.places import shown
from ...text import count, escape, human_bytes, human_count, plural, printable
from ..app import checkpoint_path, json_option
from ..calls import draw_unreadable, say_calls
from ..identities import identity_option

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ...reports.documents import LsDocument
    from ...reports.inventory import Branch, Row
    from ..output import Output

__all__ = ["command"]


@click.command("ls")
@checkpoint_path()
@click.argument("globs", metavar="[GLOB]...", nargs=-1)
@click.option("--tree", is_flag=True, help="Group tensors by the dots in their names, with totals.")
@click.option("--depth", type=click.IntRange(1), help="With --tree: number of levels to show.")
@click.option(
    "--sort",
    type=click.Choice(["file", "name", "size"]),
    default="file",
    help="Order: as in the file (default), by name, or by descending size.",
)
@identity_option
@json_option
@click.pass_obj
def command(
    out: Output, path: str, globs: tuple[str, ...], *, tree: bool, depth: int | None, sort: str
) -> int:
    """List tensors with their type, shape and size.

    GLOB is a pattern like *.weight or layers.[0-3].*; * also matches dots. Tensors that match any GLOB are
    listed. If no tensor matches, the exit status is 1.

    Piped, each line is NAME, DTYPE, SHAPE and BYTES, separated by tabs. With --tree, each line also has
    TENSORS and PARAMETERS, and the name of a group ends with a dot. If the values of a tensor cannot be
    read (quantised, sparse ...), its line has one more field, the reason.

    \b
    Examples:
      safeweights ls model.safetensors
      safeweights ls model/ '*attn*' --sort size
      safeweights ls model/ --tree --depth 2
      safeweights ls model.safetensors | awk -F'\\t' '$2 == "F32"'
    """
    if depth is not None and not tree:
        raise click.UsageError("--depth needs --tree")
    checkpoint = open_checkpoint(path, headers_only=True)
    calls = loading_calls(checkpoint)
    found = _sorted(
        [row for row in rows(checkpoint) if not globs or matches(row.name, globs)], sort
    )
    if out.json:
        out.document(_document(path, found, calls, tree=tree, depth=depth))
    elif tree:
        _print_tree(out, found, depth)
    else:
        _print_rows(out, found)
    say_calls(out, path, calls)
    if found or not globs:
        return YES
    out.message(f"no tensor matches {' '.join(map(escape, globs))}")
    return NO


def _sorted(found: list[Row], order: str) -> list[Row]:
    if order == "name":
        found.sort(key=lambda row: natural(row.name))
    elif order == "size":
        found.sort(key=lambda row: -row.nbytes)
    return found


def _document(
    path: str, found: list[Row], calls: list[str], *, tree: bool, depth: int | None
) -> LsDocument:
    return {
        "schema": "safeweights.ls/1",
        "path": shown(path),
        "total": total(found),
        "tensors": [row.record() for row in found],
        "groups": [
            {"path": branch.path, "depth": len(branch.lasts) - 1, **branch.total}
            for branch in branches(found, depth)
            if branch.row is None
        ]
        if tree
        else None,
        "calls": calls,
    }


def _print_rows(out: Output, found: list[Row]) -> None:
    if not out.terminal:
        out.lines(
            (
                escape(row.name),
                row.dtype,
                str(list(row.shape)).replace(" ", ""),
                str(row.nbytes),
                *_why(row),
            )
            for row in found
        )
        return
    from ..terminal import Column

    out.pretty().table(
        (
            Column("name"),
            Column("dtype", style="cyan"),
            Column("shape"),
            Column("size", right=True, style="green"),
        ),
        (
            (_shown(row.name), row.dtype, str(list(row.shape)), human_bytes(row.nbytes))
            for row in found
        ),
    )
    _print_total(out, found)


def _why(row: Row) -> tuple[str, ...]:
    return () if row.unreadable is None else (printable(row.unreadable),)


def _print_tree(out: Output, found: list[Row], depth: int | None) -> None:
    if not out.terminal:
        out.lines(map(_plain_branch, branches(found, depth)))
        return
    from ..terminal import Column

    out.pretty().table(
        (
            Column("name"),
            Column("dtype", style="cyan"),
            Column("shape or tensors"),
            Column("params", right=True),
            Column("size", right=True, style="green"),
        ),
        _drawn(branches(found, depth)),
    )
    _print_total(out, found)


def _plain_branch(branch: Branch) -> Sequence[str]:
    row, sums = branch.row, branch.total
    kind = ("-", "-") if row is None else (row.dtype, str(list(row.shape)).replace(" ", ""))
    return (
        escape(branch.path),
        *kind,
        str(sums["bytes"]),
        str(sums["tensors"]),
        str(sums["parameters"]),
        *(() if row is None else _why(row)),
    )


def _drawn(tree: Iterable[Branch]) -> Iterator[Sequence[str]]:
    for branch in tree:
        row, sums = branch.row, branch.total
        yield (
            _guides(branch.lasts) + _shown(branch.label),
            "" if row is None else row.dtype,
            plural(sums["tensors"], "tensor") if row is None else str(list(row.shape)),
            human_count(sums["parameters"]),
            human_bytes(sums["bytes"]),
        )


def _shown(name: str) -> str:
    return escape(name) or "(empty)"


def _guides(lasts: tuple[bool, ...]) -> str:
    if len(lasts) == 1:
        return ""
    *around, last = lasts[1:]
    return "".join("  " if over else "│ " for over in around) + ("└ " if last else "├ ")


def _print_total(out: Output, found: list[Row]) -> None:
    sums = total(found)
    what = plural(sums["tensors"], "tensor")
    out.pretty().text(
        (
            f"{what}, {count(sums['parameters'])} parameters, {human_bytes(sums['bytes'])}",
            "bold",
        )
    )
    draw_unreadable(out, unreadable(found))
