"""`safeweights show`: summarise a model."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Final

import click

from ...errors import FormatError
from ...reports.models import show_document
from ...reports.modules import outline
from ...storage.pipes import STDIN
from ...text import count, escape, human_bytes, human_count, plural, printable
from ..app import checkpoint_path, json_option
from ..calls import draw_unreadable, say_calls
from ..figures import byte_strip
from ..identities import identity_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...reports.documents import (
        FileMapRecord,
        FileRecord,
        ModuleRecord,
        PartRecord,
        QuantisedRecord,
        ShowDocument,
        ShowEncryptedDocument,
        TotalRecord,
        UnreadableRecord,
    )
    from ..output import Output

__all__ = ["command"]

_SHOWN: Final = 20
"""Maximum number of files, and of metadata keys, on a terminal."""

_MODULES: Final = 16
"""Maximum number of modules: as many levels of the tree as have no more."""

_REASONS: Final = 5

_BLOCKS: Final = (
    ("░", "dim"),
    ("█", "blue"),
    ("▓", "cyan"),
    ("▒", "green"),
    ("▚", "magenta"),
    ("▞", "yellow"),
    ("▄", "red"),
)
"""Blocks of the line of bytes; those of modules can be told apart without colours too."""


@click.command("show")
@checkpoint_path()
@identity_option
@json_option
@click.pass_obj
def command(out: Output, path: str) -> None:
    """Describe a model: class, size, types, layers, memory.

    Only headers and the configuration files in the same folder are read. Parameters, types and sizes are
    counted. Class, context and cache are taken from the configuration files. For an encrypted model,
    without -i or -p, only the kinds of its recipients are printed.

    Piped, each line is a key and its values, separated by tabs.

    \b
    Examples:
      safeweights show model.safetensors
      safeweights show model.safetensors.index.json
      safeweights show folder/ --json | jq .total.parameters
      curl -s https://example.org/model.safetensors | safeweights show -
    """
    try:
        found = show_document(path)
    except FormatError:
        from ...reports.encrypted import (
            encrypted_document,
        )  # 10 ms, which a plain model does not need

        if path == STDIN or (sealed := encrypted_document(path)) is None:
            raise
        _show_encrypted(out, sealed)
        return
    if out.json:
        out.document(found)
    elif out.terminal:
        _draw(out, found)
    else:
        out.lines(_plain(found))
    say_calls(out, path, found["calls"])


def _show_encrypted(out: Output, found: ShowEncryptedDocument) -> None:
    if out.json:
        out.document(found)
        return
    rows = [
        (each["path"], kind, str(number))
        for each in found["encrypted"]
        for kind, number in Counter(each["types"]).items()
    ]
    if out.terminal:
        screen = out.pretty()
        screen.text((escape(found["path"]), "bold"), "  encrypted")
        for path, kind, number in rows:
            screen.text(f"{escape(path)}: {number} of type {escape(kind)}", indent=2)
        screen.text(("say who opens it: -i FILE or -p", "dim"))
        return
    out.line("path", escape(found["path"]))
    out.line("kind", found["kind"])
    out.lines(("encrypted", escape(path), escape(kind), number) for path, kind, number in rows)


def _plain(found: ShowDocument) -> Iterator[tuple[str, ...]]:
    sums, model = found["total"], found["model"]
    yield "path", escape(found["path"])
    yield "summary", model["summary"]
    yield "kind", found["kind"]
    yield "format", escape(found["format"])
    for key in ("architecture", "layers", "context", "vocabulary", "quantisation", "signature"):
        value = model[key]
        if value is not None:
            yield key, escape(str(value))
    yield from map(_quantised, model["quantised"])
    yield "tensors", str(sums["tensors"])
    yield "parameters", str(sums["parameters"])
    yield "bytes", str(sums["bytes"])
    if model["cache"] is not None:
        yield "cache", str(model["cache"]["bytes_per_token"]), model["cache"]["dtype"]
    yield "code", model["code"]["verdict"]
    for reason in model["code"]["reasons"]:
        yield "code-reason", printable(reason)
    for part in model["parts"]:
        numbers = _numbers(part["total"]) if part["total"] else ()
        yield "part", escape(part["name"]), escape(part["class_name"] or ""), *numbers
    for module in outline(model["modules"], _MODULES):
        yield "module", escape(module["path"]), str(module["copies"]), *_numbers(module)
    for kind in found["dtypes"]:
        yield "dtype", kind["dtype"], *_numbers(kind)
    for file in found["files"]:
        sizes = (file["bytes"], file["header_bytes"], file["tensors"])
        yield "file", escape(file["path"]), *map(str, sizes)
    for some in found["unreadable"]:
        yield "unreadable", printable(some["reason"]), *_numbers(some)
    for key, value in (found["metadata"] or {}).items():
        yield "metadata", escape(key), escape(value)
    for problem in model["problems"]:
        yield "problem", printable(problem)


def _quantised(some: QuantisedRecord) -> tuple[str, ...]:
    bits = some["bits_per_weight"]
    numbers = (str(some[key]) for key in ("weights", "parameters", "bytes"))
    return "quantised", some["scheme"], *numbers, "" if bits is None else f"{bits:g}"


def _numbers(sums: TotalRecord | ModuleRecord | UnreadableRecord) -> tuple[str, str, str]:
    return str(sums["tensors"]), str(sums["parameters"]), str(sums["bytes"])


def _draw(out: Output, found: ShowDocument) -> None:
    screen, model = out.pretty(), found["model"]
    screen.text((escape(found["path"]), "bold"))
    for line in _lines(model["summary"], screen.width):
        screen.text(line)
    screen.blank()
    screen.pairs(_facts(found))
    _draw_parts(out, model["parts"])
    _draw_modules(out, found)
    _draw_map(out, found["map"])
    _draw_dtypes(out, found)
    if len(found["files"]) > 1:
        _draw_files(out, found["files"])
    draw_unreadable(out, found["unreadable"])
    _draw_metadata(out, found["metadata"])
    for problem in model["problems"]:
        screen.text((printable(problem), "yellow"))


def _lines(summary: str, width: int) -> list[str]:
    """The summary in lines of at most `width` characters, which end between its facts if they can."""
    from ..columns import cells

    first, *others = summary.split(" · ")
    lines = [first]
    for fact in others:
        if cells(lines[-1]) + cells(fact) + len(" ·  ·") > width:
            lines[-1] += " ·"
            lines.append(fact)
        else:
            lines[-1] += f" · {fact}"
    return lines


def _facts(found: ShowDocument) -> Iterator[tuple[str, str]]:
    sums, files, model = found["total"], found["files"], found["model"]
    yield "format", escape(found["format"])
    yield "tensors", count(sums["tensors"])
    about, exact = human_count(sums["parameters"]), count(sums["parameters"])
    bits = model["bits_per_parameter"]
    each = f", {bits:g} bits each" if bits is not None else ""
    yield "parameters", f"{exact if about == exact else f'{exact} ({about})'}{each}"
    for scheme in model["quantised"]:
        bits = scheme["bits_per_weight"]
        each = f", {bits:g} bits a weight" if bits is not None else ""
        yield "quantised", f"{plural(scheme['weights'], 'weight')} as {scheme['scheme']}{each}"
    yield "size", human_bytes(sums["bytes"])
    if len(files) == 1:
        yield "header", human_bytes(files[0]["header_bytes"])
    elif files:
        size = human_bytes(sum(file["bytes"] for file in files))
        yield "files", f"{plural(len(files), 'file')}, {size}"
    if model["context"]:
        yield "context", plural(model["context"], "token")
    if model["vocabulary"]:
        yield "vocabulary", plural(model["vocabulary"], "token")
    if (adapter := model["adapter"]) and adapter["targets"]:
        yield "adapts", escape(", ".join(adapter["targets"]))
    if model["tied"]:
        yield "tied", escape(", ".join(model["tied"]))
    kinds = (f"{human_bytes(each['bytes'])} as {each['dtype']}" for each in model["memory"])
    if sums["parameters"]:
        yield "weights take", ", ".join(kinds)
    if cache := model["cache"]:
        yield "KV cache", f"{human_bytes(cache['bytes_per_token'])} a token: {cache['how']}"
    if model["signature"]:
        yield "signature", f"{escape(model['signature'])} (see `safeweights verify`)"
    for number, reason in enumerate(model["code"]["reasons"][:_REASONS]):
        yield "" if number else "code", printable(reason)


def _draw_parts(out: Output, parts: list[PartRecord]) -> None:
    from ..terminal import Column

    if not parts:
        return
    screen = out.pretty()
    screen.blank()
    screen.table(
        (
            Column("part"),
            Column("class", style="cyan"),
            Column("parameters", right=True),
            Column("size", right=True, style="green"),
        ),
        (
            (
                escape(part["name"]),
                escape(part["class_name"] or ""),
                human_count(part["total"]["parameters"]) if part["total"] else "",
                human_bytes(part["total"]["bytes"]) if part["total"] else "",
            )
            for part in parts
        ),
    )
    for part in parts:
        if part["problem"]:
            screen.text((f"{escape(part['name'])}: {printable(part['problem'])}", "yellow"))


def _draw_modules(out: Output, found: ShowDocument) -> None:
    from ..terminal import Column

    shown = outline(found["model"]["modules"], _MODULES)
    if not shown:
        return
    whole = found["total"]["parameters"] or 1
    screen = out.pretty()
    screen.blank()
    screen.table(
        (
            Column("module"),
            Column("copies", right=True),
            Column("parameters", right=True),
            Column("share", right=True),
        ),
        (
            (
                "  " * module["depth"] + escape(_label(module, shown)),
                f"{module['copies']} x" if module["copies"] > 1 else "",
                human_count(module["parameters"]),
                f"{module['parameters'] / whole:.1%}",
            )
            for module in shown
        ),
    )


def _label(module: ModuleRecord, modules: list[ModuleRecord]) -> str:
    """A module's path without that of the module around it."""
    around = (each["path"] for each in modules if each["depth"] == module["depth"] - 1)
    outer = next((path for path in around if module["path"].startswith(f"{path}.")), None)
    return module["path"].removeprefix(f"{outer}.") if outer else module["path"]


def _draw_map(out: Output, files: list[FileMapRecord]) -> None:
    """Draw where the bytes are: a line of blocks, and what each kind of block stands for."""
    if not files:
        return
    screen = out.pretty()
    strip = byte_strip(files, screen.width, len(_BLOCKS))
    blocks = dict(zip(strip.kinds, _BLOCKS, strict=False))
    screen.blank()
    screen.text(("where the bytes are", "bold"))
    line = [(kind, len(list(cells))) for kind, cells in groupby(strip.cells)]
    screen.text(*((blocks[kind][0] * length, blocks[kind][1]) for kind, length in line))
    whole = sum(strip.kinds.values())
    for kind, (block, style) in blocks.items():
        if kind in strip.cells:
            size = strip.kinds[kind]
            about = f" {escape(kind)}  {human_bytes(size)}, {size / whole:.1%}"
            screen.text((block * 2, style), about)


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
