"""`safeweights show`: summarise a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from ...checkpoint.opening import kind_of
from ...conversion.opening import open_checkpoint
from ...reports.calls import loading_calls
from ...reports.inventory import rows, total, unreadable
from ...storage.pipes import STDIN
from ...text import count, escape, human_bytes, human_count, plural, printable
from ..app import checkpoint_path, json_option
from ..calls import draw_unreadable, say_calls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...checkpoint import Checkpoint, SafetensorsFile
    from ...reports.documents import DTypeRecord, FileRecord, ShowDocument
    from ...reports.inventory import Row
    from ..output import Output

__all__ = ["command"]

_SHOWN: Final = 20
"""Maximum number of files, and of metadata keys, on a terminal."""


@click.command("show")
@checkpoint_path()
@json_option
@click.pass_obj
def command(out: Output, path: str) -> None:
    """Summarise a model: tensors, parameters, size, metadata.

    Only headers are read. Piped, each line is a key and its values, separated by tabs.

    \b
    Examples:
      safeweights show model.safetensors
      safeweights show model.safetensors.index.json
      safeweights show folder/ --json | jq .total.parameters
      curl -s https://example.org/model.safetensors | safeweights show -
    """
    found = _document(path, open_checkpoint(path, headers_only=True))
    if out.json:
        out.document(found)
    elif out.terminal:
        _draw(out, found)
    else:
        out.lines(_plain(found))
    say_calls(out, path, found["calls"])


def _document(path: str, checkpoint: Checkpoint) -> ShowDocument:
    found = list(rows(checkpoint))
    return {
        "schema": "safeweights.show/1",
        "path": path,
        "kind": "stdin" if path == STDIN else kind_of(path),
        "format": checkpoint.format,
        "total": total(found),
        "dtypes": _by_dtype(found),
        "files": [_file(file) for file in checkpoint.files],
        "metadata": checkpoint.metadata,
        "unreadable": unreadable(found),
        "calls": loading_calls(checkpoint),
    }


def _by_dtype(found: Iterable[Row]) -> list[DTypeRecord]:
    kinds: dict[str, list[Row]] = {}
    for row in found:
        kinds.setdefault(row.dtype, []).append(row)
    records: list[DTypeRecord] = [{"dtype": dtype, **total(some)} for dtype, some in kinds.items()]
    return sorted(records, key=lambda record: (-record["parameters"], record["dtype"]))


def _file(file: SafetensorsFile) -> FileRecord:
    return {
        "path": file.name,
        "bytes": file.source.size,
        "header_bytes": file.header.size,
        "tensors": len(file.header.tensors),
    }


def _plain(found: ShowDocument) -> Iterator[tuple[str, ...]]:
    sums = found["total"]
    yield "path", escape(found["path"])
    yield "kind", found["kind"]
    yield "format", escape(found["format"])
    yield "tensors", str(sums["tensors"])
    yield "parameters", str(sums["parameters"])
    yield "bytes", str(sums["bytes"])
    for kind in found["dtypes"]:
        numbers = (kind["tensors"], kind["parameters"], kind["bytes"])
        yield "dtype", kind["dtype"], *map(str, numbers)
    for file in found["files"]:
        sizes = (file["bytes"], file["header_bytes"], file["tensors"])
        yield "file", escape(file["path"]), *map(str, sizes)
    for some in found["unreadable"]:
        numbers = (some["tensors"], some["parameters"], some["bytes"])
        yield "unreadable", printable(some["reason"]), *map(str, numbers)
    for key, value in (found["metadata"] or {}).items():
        yield "metadata", escape(key), escape(value)


def _draw(out: Output, found: ShowDocument) -> None:
    sums, files = found["total"], found["files"]
    screen = out.pretty()
    screen.text((escape(found["path"]), "bold"))
    parameters = sums["parameters"]
    about = human_count(parameters)
    shown = count(parameters) if about == str(parameters) else f"{count(parameters)} ({about})"
    items = [
        ("format", escape(found["format"])),
        ("tensors", count(sums["tensors"])),
        ("parameters", shown),
        ("size", human_bytes(sums["bytes"])),
    ]
    if len(files) == 1:
        items.append(("header", human_bytes(files[0]["header_bytes"])))
    elif files:
        size = human_bytes(sum(file["bytes"] for file in files))
        items.append(("files", f"{plural(len(files), 'file')}, {size}"))
    screen.pairs(items)
    _draw_dtypes(out, found)
    if len(files) > 1:
        _draw_files(out, files)
    draw_unreadable(out, found["unreadable"])
    _draw_metadata(out, found["metadata"])


def _draw_dtypes(out: Output, found: ShowDocument) -> None:
    from ..terminal import Column

    whole = found["total"]["parameters"] or 1
    screen = out.pretty()
    screen.blank()
    screen.table(
        (
            Column("dtype", style="cyan"),
            Column("tensors", right=True),
            Column("parameters", right=True),
            Column("share", right=True),
            Column("size", right=True, style="green"),
        ),
        (
            (
                kind["dtype"],
                count(kind["tensors"]),
                count(kind["parameters"]),
                f"{kind['parameters'] / whole:.1%}",
                human_bytes(kind["bytes"]),
            )
            for kind in found["dtypes"]
        ),
    )


def _draw_files(out: Output, files: list[FileRecord]) -> None:
    from ..terminal import Column

    screen = out.pretty()
    screen.blank()
    screen.table(
        (
            Column("file"),
            Column("tensors", right=True),
            Column("size", right=True, style="green"),
        ),
        (
            (escape(file["path"]), count(file["tensors"]), human_bytes(file["bytes"]))
            for file in files[:_SHOWN]
        ),
    )
    _draw_rest(out, len(files), "file")


def _draw_metadata(out: Output, metadata: dict[str, str] | None) -> None:
    if not metadata:
        return
    screen = out.pretty()
    screen.blank()
    screen.text(("metadata", "bold"))
    screen.pairs((escape(key), escape(metadata[key])) for key in list(metadata)[:_SHOWN])
    _draw_rest(out, len(metadata), "key")


def _draw_rest(out: Output, number: int, noun: str) -> None:
    if number > _SHOWN:
        out.pretty().text((f"  and {plural(number - _SHOWN, noun)} more: see --json", "dim"))
