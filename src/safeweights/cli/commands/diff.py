"""`safeweights diff`: compare two checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from ...conversion.opening import open_checkpoint
from ...reports.problems import NO, UNREADABLE, YES
from ...text import escape, human_bytes, plural
from ..app import json_option
from ..identities import identity_option
from ..watching import watched

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...checkpoint import Checkpoint
    from ...reports.documents import ChangedRecord, DiffDocument, DifferenceRecord, DiffTensorRecord
    from ..output import Output
    from ..terminal import Terminal

__all__ = ["command"]

_PATH: Final = click.Path(allow_dash=True, readable=False, path_type=str)
_ROWS: Final = 200
"""Most rows of a table in Markdown: a comment on a pull request has at most 65,536 characters."""


@click.command("diff")
@click.argument("before", metavar="A", type=_PATH)
@click.argument("after", metavar="B", type=_PATH)
@click.option("--values", is_flag=True, help="Compute how much values differ.")
@click.option(
    "--rtol", metavar="R", type=float, default=0.0,
    help="Relative tolerance: allow differences of R times the value in A.",
)  # fmt: skip
@click.option(
    "--atol", metavar="D", type=float, default=0.0,
    help="Absolute tolerance: allow differences of D.",
)  # fmt: skip
@click.option(
    "--only", metavar="GLOB", multiple=True, help="Compare only tensors with matching names."
)
@click.option(
    "--skip", metavar="GLOB", multiple=True, help="Leave out tensors with matching names."
)
@click.option("--no-metadata", is_flag=True, help="Do not compare metadata.")
@click.option("--markdown", is_flag=True, help="Print Markdown, for a pull request.")
@identity_option
@json_option
@click.pass_obj
def command(
    out: Output,
    before: str,
    after: str,
    *,
    values: bool,
    rtol: float,
    atol: float,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    no_metadata: bool,
    markdown: bool,
) -> int:
    """Compare two checkpoints, tensor by tensor.

    A and B are files, folders or indexes of any format. Two tensors are the same if name, type, shape and
    bytes are equal. If B has the bytes of a tensor of A under another name, the tensor is reported as
    renamed. Both checkpoints are read piece by piece, and never held in memory.

    With --values or a tolerance, the differences of the values are computed: the largest, the mean, the
    relative difference (norm of the difference divided by the norm of the values in A) and, in --json, a
    histogram by powers of ten. Values that differ by at most D + R * abs(value in A) are the same.

    The exit status is 0 if nothing differs, 1 if something differs, and 3 if nothing differs but a
    checkpoint or tensor could not be read.

    Piped, each line is one of these, separated by tabs: added or removed, NAME, TYPE, SHAPE; renamed, NAME,
    NAME; retyped, changed or (within the tolerance) close, NAME, TYPE, SHAPE, TYPE, SHAPE and, if computed,
    the number of different elements, MAX, MEAN, RELATIVE; metadata, KEY, VALUE, VALUE.

    \b
    Examples:
      safeweights diff old.safetensors new.safetensors
      safeweights diff base/ tuned/ --values --json | jq '.changed[].values.max'
      safeweights diff model.bin model.safetensors --rtol 1e-3 --no-metadata
    """
    from ...reports.difference import Tolerance, compare

    if markdown and out.json:
        raise click.UsageError("--markdown and --json exclude each other")
    sides = [open_checkpoint(path).filter(only=only, skip=skip) for path in (before, after)]
    with watched("comparing", _size(sides[0])) as progress:
        found = compare(
            *sides,
            values=values,
            tolerance=Tolerance(rtol, atol),
            metadata=not no_metadata,
            progress=progress,
        )
    if out.json:
        out.document(found)
    elif markdown:
        out.lines([line] for line in _markdown(found))
    elif out.terminal:
        _draw(out.pretty(), found)
    else:
        out.lines(_plain(found))
    if found["same"] and found["unreadable"]:
        return UNREADABLE
    return YES if found["same"] else NO


def _size(checkpoint: Checkpoint) -> int:
    return sum(tensor.nbytes for tensor in checkpoint.values())


def _number(value: float | None) -> str:
    return "inf" if value is None else f"{value:.3g}"


def _shape(tensor: DiffTensorRecord) -> str:
    return _shape_of(tensor["shape"])


def _figures(values: DifferenceRecord | None) -> tuple[str, str, str, str]:
    if values is None:
        return "", "", "", ""
    most, mean, relative = map(_number, (values["max"], values["mean"], values["relative"]))
    return str(values["different"]), most, mean, relative


def _plain(found: DiffDocument) -> Iterator[tuple[str, ...]]:
    for kind, tensors in (("added", found["added"]), ("removed", found["removed"])):
        for tensor in tensors:
            yield kind, escape(tensor["name"]), tensor["dtype"], _shape(tensor)
    for pair in found["renamed"]:
        yield "renamed", escape(pair["before"]), escape(pair["after"])
    for kind, records in (("retyped", found["retyped"]), ("changed", found["changed"])):
        for each in records:
            old, new = each["before"], each["after"]
            shapes = (old["dtype"], _shape(old), new["dtype"], _shape(new))
            figures = _figures(each["values"]) if each["values"] is not None else ()
            yield "close" if each["close"] else kind, escape(each["name"]), *shapes, *figures
    for key, values in _metadata_pairs(found):
        yield "metadata", escape(key), *(escape(each or "") for each in values)
    for name, reason in found["unreadable"].items():
        yield "unreadable", escape(name), escape(reason)


def _metadata_pairs(found: DiffDocument) -> Iterator[tuple[str, tuple[str | None, str | None]]]:
    """Each key of metadata that differs, with its values; None where there is no such key."""
    metadata = found["metadata"]
    if metadata is None:
        return
    for key, value in metadata["removed"].items():
        yield key, (value, None)
    for key, value in metadata["added"].items():
        yield key, (None, value)
    for key, (old, new) in metadata["changed"].items():
        yield key, (old, new)


def _summary(found: DiffDocument) -> str:
    close = sum(each["close"] for each in found["changed"])
    counts = [
        (len(found["added"]), "added"),
        (len(found["removed"]), "removed"),
        (len(found["renamed"]), "renamed"),
        (len(found["retyped"]), "of another type or shape"),
        (len(found["changed"]) - close, "changed"),
        (close, "within the tolerance"),
    ]
    parts = [f"{count:,} {what}" for count, what in counts if count]
    if entries := len(list(_metadata_pairs(found))):
        parts.append(f"{entries:,} metadata {'entry' if entries == 1 else 'entries'}")
    return ", ".join([*parts, f"{plural(found['unchanged'], 'tensor')} unchanged"])


def _rows(found: DiffDocument) -> Iterator[tuple[str, ...]]:
    """What, tensor, type and shape, different elements, max, mean, relative."""
    nothing = ("", "", "", "")
    for kind, tensors in (("removed", found["removed"]), ("added", found["added"])):
        for tensor in tensors:
            yield kind, escape(tensor["name"]), f"{tensor['dtype']} {_shape(tensor)}", *nothing
    for pair in found["renamed"]:
        names = f"{escape(pair['before'])} -> {escape(pair['after'])}"
        yield "renamed", names, f"{pair['dtype']} {_shape_of(pair['shape'])}", *nothing
    for each in found["retyped"]:
        yield "retyped", escape(each["name"]), _kinds(each), *_figures(each["values"])
    for each in found["changed"]:
        kind = "close" if each["close"] else "changed"
        about = f"{each['after']['dtype']} {_shape(each['after'])}"
        yield kind, escape(each["name"]), about, *_figures(each["values"])


def _shape_of(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _kinds(each: ChangedRecord) -> str:
    old, new = each["before"], each["after"]
    return f"{old['dtype']} {_shape(old)} -> {new['dtype']} {_shape(new)}"


_TITLES: Final = ("", "tensor", "type", "different", "max", "mean", "relative")


def _markdown(found: DiffDocument) -> Iterator[str]:
    yield f"**{'No difference' if found['same'] else 'Weights differ'}**: {_summary(found)}."
    rows = list(_rows(found))
    computed = any(row[3] for row in rows)
    width = len(_TITLES) if computed else 3
    if rows:
        yield ""
        yield "| " + " | ".join(_TITLES[:width]) + " |"
        yield "|" + "---|" * width
        for row in rows[:_ROWS]:
            kind, name, *more = row[:width]
            yield f"| {kind} | {_code(name)} | " + " | ".join(more) + " |"
        if len(rows) > _ROWS:
            yield f"\nand {len(rows) - _ROWS:,} more."
    entries = list(_metadata_pairs(found))
    if entries:
        yield ""
        yield "| metadata | before | after |"
        yield "|---|---|---|"
        for key, (old, new) in entries[:_ROWS]:
            cells = (_code(escape(each or "")[:200]) for each in (key, old, new))
            yield "| " + " | ".join(cells) + " |"


def _code(text: str) -> str:
    """Text as code in a table, where it cannot be anything else: names may be hostile."""
    if not text:
        return ""
    return f"`{text.replace('`', chr(0x2018)).replace('|', chr(0x2223))}`"


def _draw(screen: Terminal, found: DiffDocument) -> None:
    from ..terminal import Column

    rows = list(_rows(found))
    width = len(_TITLES) if any(row[3] for row in rows) else 3
    if rows:
        ordered = [(row[1], row[0], *row[2:width]) for row in rows]
        titles = ("tensor", "what", *_TITLES[2:width])
        columns = [
            Column(title, right=place > 2, style="bold" if not place else "", widest=40)
            for place, title in enumerate(titles)
        ]
        screen.table(columns, ordered)
    _draw_histogram(screen, found)
    for key, values in _metadata_pairs(found):
        before, after = (("(none)", "dim") if each is None else escape(each) for each in values)
        screen.text(("metadata ", "yellow"), escape(key), ": ", before, " -> ", after)
    for name, reason in found["unreadable"].items():
        screen.text(("not compared ", "yellow"), escape(name), ": ", escape(reason))
    size = sum(each["after"]["bytes"] for each in found["changed"])
    about = f" ({human_bytes(size)} of changed tensors)" if size else ""
    screen.text((_summary(found), "green" if found["same"] else "yellow"), about)


def _draw_histogram(screen: Terminal, found: DiffDocument) -> None:
    """The differences of all values together, by order of magnitude."""
    counts: dict[float, int] = {}
    for each in [*found["changed"], *found["retyped"]]:
        for decade in each["values"]["histogram"] if each["values"] else ():
            counts[decade["least"]] = counts.get(decade["least"], 0) + decade["elements"]
    if not counts:
        return
    screen.text(("difference of values", "bold"))
    most = max(counts.values())
    for least, count in sorted(counts.items()):
        label = "equal" if not least else f"{least:.0e} and more"
        bar = "█" * max(1, round(24 * count / most))
        screen.raw(f"  {label:>15}  {count:>15,}  {bar}")
