"""`safeweights convert`: checkpoints of other formats as safetensors."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from ...errors import UnsupportedError
from ...text import escape, human_bytes, plural
from ..app import FILE, json_option
from ..watching import watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ...conversion import Conversion, Limits, Options
    from ...conversion.record import FileRecord
    from ...reports.documents import ConvertDocument, ConvertedFileRecord
    from ..output import Output
    from ..terminal import Terminal

__all__ = ["command"]

_SHOWN: Final = 20
"""Names of a kind that are shown on a terminal."""


@click.command("convert")
@click.argument("sources", metavar="SRC...", nargs=-1, required=True, type=FILE)
@click.argument("target", metavar="DST", type=FILE)
@click.option("--dtype", metavar="TYPE", help="Convert values: BF16, or F64=F32,C128=C64.")
@click.option("--only", metavar="GLOB", multiple=True, help="Only tensors called like this.")
@click.option("--skip", metavar="GLOB", multiple=True, help="Leave out tensors called like this.")
@click.option(
    "--rename", metavar="OLD=NEW", multiple=True,
    help="Rename tensors; OLD is a regular expression, \\1 in NEW a group of it.",
)  # fmt: skip
@click.option(
    "--shard", metavar="SIZE", help="Split into files of at most 5GB (or so), and an index."
)
@click.option(
    "--metadata", metavar="KEY=VALUE", multiple=True, help="Put a text into the metadata."
)
@click.option(
    "--keep-others", is_flag=True,
    help="Put what is no tensor into the metadata, as JSON under safeweights.others.",
)  # fmt: skip
@click.option(
    "--densify", is_flag=True, help="Write sparse and quantised tensors dense; else refused."
)
@click.option("--keep-ties", is_flag=True, help="Write tied weights once for each of their names.")
@click.option("--format", metavar="NAME", help="The sources' format, where bytes do not tell it.")
@click.option(
    "--limit", metavar="NAME=NUMBER", multiple=True,
    help="Believe a source more; an error names the limit.",
)  # fmt: skip
@click.option(
    "--trust",
    metavar="FILE",
    type=FILE,
    help="Read only what this policy, public key or warrant admits.",
)
@click.option("--no-record", is_flag=True, help="Leave no DST.provenance.json.")
@click.option(
    "--no-digests", is_flag=True, help="Compute no SHA-256 of sources and outputs: quicker."
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@json_option
@click.pass_obj
def command(out: Output, /, sources: tuple[str, ...], target: str, **given: Any) -> None:
    """Turn checkpoints of other formats into safetensors.

    Reads PyTorch, NumPy, joblib, Paddle, Flax, TensorFlow, Keras and GGUF files. Pickles are executed
    symbolically: nothing that a file names is imported or called.

    With one file, DST is a file, or a folder that exists or ends in a slash. With several, or a folder
    with checkpoints and perhaps their index, DST is a folder, in which every source gets its twin.
    Files are written whole or not at all.

    With --dtype, floats are rounded to narrower ones; a value that the new type cannot hold, such as
    one too large, is an error that names it.

    Piped, each line is source or output, PATH, FORMAT, TENSORS, BYTES and SHA-256; tie or renamed,
    NAME and NAME; skipped and NAME; or dropped, FILE, NAME and what it is; separated by tabs.

    \b
    Examples:
      safeweights convert pytorch_model.bin model.safetensors
      safeweights convert old/ new/ --dtype BF16 --skip '*.optimizer.*'
      safeweights convert a.ckpt a.safetensors --rename '^module\\.='
      safeweights convert model.pt big/model.safetensors --shard 5GB
      safeweights convert model.pt x --dry-run --json | jq .dropped
    """
    from ...conversion.converting import convert

    options = _options(given)
    with _progress() as progress:
        done = convert(list(sources), target, options=options, progress=progress)
    if out.json:
        out.document(_document(done))
    elif out.terminal:
        _draw(out.pretty(), done)
    else:
        out.lines(_plain(done))


def _options(given: dict[str, Any]) -> Options:
    from ...checkpoint.sharding import parse_size
    from ...conversion import FORMATS, Options
    from ...conversion.plan import parse_renames
    from ...derived.casting import parse_casts

    for name, parse in (("dtype", parse_casts), ("shard", parse_size), ("rename", parse_renames)):
        if given[name]:
            try:
                parse(given[name])
            except UnsupportedError as error:
                raise click.UsageError(f"--{name}: {error.message}") from error
    if given["format"] not in (None, *FORMATS):
        raise click.UsageError(f"--format: known are {', '.join(sorted(FORMATS))}")
    return Options(
        **{name: given[name] for name in ("dtype", "only", "skip", "rename", "densify", "force")},
        **{
            name: given[name] for name in ("dry_run", "keep_ties", "keep_others", "format", "trust")
        },
        shard_size=given["shard"],
        metadata=dict(_pair("--metadata", text) for text in given["metadata"]),
        record=not given["no_record"],
        digests=not given["no_digests"],
        limits=_limits(given["limit"]),
    )


def _pair(option: str, text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise click.UsageError(f"{option}: {text!r} has no =")
    return name, value


def _limits(given: Sequence[str]) -> Limits:
    from dataclasses import fields

    from ...conversion import Limits

    known = {field.name for field in fields(Limits)}
    numbers = {}
    for text in given:
        name, value = _pair("--limit", text)
        if name not in known:
            raise click.UsageError(f"--limit: known are {', '.join(sorted(known))}")
        if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value)):
            raise click.UsageError(f"--limit: {value!r} is no number from 1 on")
        numbers[name] = int(value)
    return Limits(**numbers)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """What `convert` tells of its progress, which begins when it knows how much there is to do."""
    with ExitStack() as stack:
        shown: Callable[[int], object] | None = None

        def progress(done: int, total: int) -> None:
            nonlocal shown
            if shown is None:
                shown = stack.enter_context(watched("converting", total))
            shown(done)

        yield progress


def _document(done: Conversion) -> ConvertDocument:
    return {
        "schema": "safeweights.convert/1",
        "dry_run": done.dry_run,
        "sources": [_file(file) for file in done.sources],
        "outputs": [_file(file) for file in done.outputs],
        "tensors": done.tensors,
        "bytes": done.nbytes,
        "ties": done.ties,
        "renamed": done.renamed,
        "skipped": done.skipped,
        "dropped": [
            {"source": each.source, "name": each.name, "what": each.what, "reason": each.reason}
            for each in done.dropped
        ],
        "dropped_count": done.dropped_count,
        "calls": done.calls,
    }


def _file(file: FileRecord) -> ConvertedFileRecord:
    return {
        "path": file.path,
        "format": file.format,
        "tensors": file.tensors,
        "bytes": file.size,
        "sha256": file.sha256,
    }


def _plain(done: Conversion) -> Iterator[tuple[str, ...]]:
    for kind, files in (("source", done.sources), ("output", done.outputs)):
        for file in files:
            sizes = (str(file.tensors), str(file.size))
            yield kind, escape(file.path), file.format, *sizes, file.sha256 or ""
    for kind, names in (("tie", done.ties), ("renamed", done.renamed)):
        for name, other in names.items():
            yield kind, escape(name), escape(other)
    for name in done.skipped:
        yield "skipped", escape(name)
    for each in done.dropped:
        yield "dropped", escape(each.source), escape(each.name), escape(each.what)
    if done.dropped_count > len(done.dropped):
        yield "dropped", "", "", f"and {done.dropped_count - len(done.dropped)} more"


def _draw(screen: Terminal, done: Conversion) -> None:
    would = "would write" if done.dry_run else "wrote"
    for kind, files in (("read", done.sources), (would, done.outputs)):
        for file in files[:_SHOWN]:
            held = "" if file.format == "index" else f"{plural(file.tensors, 'tensor')}, "
            about = f"  {file.format}, {held}{human_bytes(file.size)}"
            screen.text((kind, "green"), "  ", (escape(file.path), "bold"), about)
        if len(files) > _SHOWN:
            screen.text((f"  and {plural(len(files) - _SHOWN, 'file')} more", "dim"))
    ties = [f"{escape(name)} is {escape(kept)}" for name, kept in done.ties.items()]
    renamed = [f"{escape(old)} -> {escape(new)}" for old, new in done.renamed.items()]
    dropped = [f"{escape(each.name)}: {escape(each.what)}" for each in done.dropped]
    _draw_list(screen, "tied weights, written once", ties, len(ties))
    _draw_list(screen, "renamed", renamed, len(renamed))
    _draw_list(screen, "left out as asked", list(map(escape, done.skipped)), len(done.skipped))
    _draw_list(screen, "no tensors, left out (see --keep-others)", dropped, done.dropped_count)


def _draw_list(screen: Terminal, title: str, lines: Sequence[str], number: int) -> None:
    if not number:
        return
    screen.text((title, "yellow"), f" ({number:,})")
    for line in lines[:_SHOWN]:
        screen.text(line, indent=2)
    if number > _SHOWN:
        screen.text((f"  and {number - _SHOWN:,} more: see --json", "dim"))
