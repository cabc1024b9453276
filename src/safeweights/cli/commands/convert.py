"""`safeweights convert`: convert checkpoints of other formats to safetensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ...text import escape, human_bytes, plural, printable
from ..app import FILE, json_option
from ..identities import identity_option
from ..rewriting import SHOWN, as_usage, draw_names, dtype_option, pairs, trust_option
from ..watching import watched_writing
from ..writing import not_stdout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...conversion import Conversion, Limits, Options
    from ...conversion.record import ConvertedFile
    from ...reports.documents import ConvertDocument, ConvertedFileRecord
    from ..output import Output
    from ..terminal import Terminal

__all__ = ["command"]


@click.command("convert")
@click.argument("sources", metavar="SRC...", nargs=-1, type=FILE)
@click.argument("target", metavar="DST", type=FILE)
@dtype_option
@click.option(
    "--dtype-of", metavar="KIND=TYPE",
    help="Type of arrays whose NumPy type is ambiguous: V2=BF16, or f1=F8_E5M2.",
)  # fmt: skip
@click.option(
    "--only", metavar="GLOB", multiple=True, help="Convert only tensors with matching names."
)
@click.option(
    "--skip", metavar="GLOB", multiple=True, help="Leave out tensors with matching names."
)
@click.option(
    "--strip-prefix", metavar="TEXT", multiple=True,
    help="Remove TEXT from the beginning of names, such as `module.`.",
)  # fmt: skip
@click.option(
    "--rename", metavar="OLD=NEW", multiple=True,
    help="Rename tensors; OLD is a regular expression, \\1 in NEW its first group.",
)  # fmt: skip
@click.option(
    "--max-shard-size", "--shard", metavar="SIZE",
    help="Split into files of at most SIZE (5GB, 2GiB) and an index.",
)  # fmt: skip
@click.option(
    "--metadata", metavar="KEY=VALUE", multiple=True, help="Add an entry to the metadata."
)
@click.option(
    "--keep", type=click.Choice(["optimizer"]), multiple=True,
    help="Also write the optimizer state of a DeepSpeed ZeRO checkpoint.",
)  # fmt: skip
@click.option(
    "--keep-others", is_flag=True,
    help="Store values other than tensors in the metadata, as JSON under safeweights.others.",
)  # fmt: skip
@click.option(
    "--densify", is_flag=True,
    help="Write sparse tensors, and tensors quantised by PyTorch, as dense tensors [default: refuse them].",
)  # fmt: skip
@click.option(
    "--dequantize", is_flag=True,
    help="Write the values of quantised weights, as F32 or the type of --dtype.",
)  # fmt: skip
@click.option(
    "--scheme", metavar="NAME",
    help="The quantisation scheme, if names and settings are ambiguous.",
)  # fmt: skip
@click.option("--keep-ties", is_flag=True, help="Write tied weights under each of their names.")
@click.option("--format", metavar="NAME", help="The format of SRC, if it is not recognised.")
@click.option(
    "--limit", metavar="NAME=NUMBER", multiple=True,
    help="Raise a limit on the input; if a limit is exceeded, the error names it.",
)  # fmt: skip
@trust_option
@click.option("--no-record", is_flag=True, help="Do not write DST.provenance.json.")
@click.option(
    "--no-digests", is_flag=True, help="Do not compute the SHA-256 of sources and outputs."
)
@click.option(
    "--force",
    is_flag=True,
    help="Replace existing files, and all shards of an existing checkpoint.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, but write nothing.")
@identity_option
@json_option
@click.pass_obj
def command(out: Output, /, sources: tuple[str, ...], target: str, **given: Any) -> None:
    """Convert checkpoints of other formats to safetensors.

    Reads PyTorch, NumPy, joblib, Paddle, Flax, TensorFlow, Keras and GGUF files. Pickles are evaluated
    symbolically: no function or class that a file names is imported or called.

    If SRC is one file, DST is a file, or a folder that exists or ends in a slash. If there are several
    files, or SRC is a folder of checkpoints (with or without an index), DST is a folder with one output per
    source, or, if its name ends in .safetensors, one file with all tensors. Missing folders are created.
    All files are written, or none: a conversion that fails or is interrupted changes nothing.

    A DST that ends in .npz, .bin, .pt, .pth or .gguf is written in the format of NumPy, PyTorch or GGUF.
    GGUF is not quantised; set its metadata with --metadata KEY=VALUE or KEY=u32:VALUE (i32, f32, bool
    ...).

    With --dtype, floats are rounded to a narrower type. If the new type cannot hold a value, for example
    because it is too large, the conversion fails and names the value.

    With --dequantize, the values of weights quantised as FP8, MXFP4, NVFP4, GPTQ, AWQ,
    compressed-tensors, bitsandbytes, torchao, HQQ or GGUF are computed from their codes and scales. The
    scheme is found from quantization_config in the config.json beside the weights, and from names and
    types.

    Piped, each line is one of these, separated by tabs: source or output, PATH, FORMAT, TENSORS, BYTES
    and SHA-256; tie or renamed, NAME and NAME; dequantized, SCHEME and the number of weights; skipped and
    NAME; dropped, FILE, NAME and its kind; left-out and FILE, for a file in the folder that is not part
    of the model, such as the state of an optimizer.

    \b
    Examples:
      safeweights convert pytorch_model.bin model.safetensors
      safeweights convert old/ new/ --dtype BF16 --skip '*.optimizer.*'
      safeweights convert a.ckpt a.safetensors --rename '^module\\.='
      safeweights convert model.pt big/model.safetensors --max-shard-size 5GB
      safeweights convert model.gguf model.safetensors --dequantize --dtype BF16
      safeweights convert model.pt x --dry-run --json | jq .dropped
    """
    from ...conversion.converting import convert

    if not sources:  # of one path alone click makes DST, and says that SRC is missing
        raise click.UsageError("Missing argument 'DST'.")
    not_stdout("DST", target)
    options = _options(given)
    with watched_writing("converting") as progress:
        done = convert(list(sources), target, options=options, progress=progress)
    if out.json:
        out.document(_document(done))
    elif out.terminal:
        _draw(out.pretty(), done)
    else:
        out.lines(_plain(done))
    for hint in done.hints:
        out.message(printable(hint))


def _options(given: dict[str, Any]) -> Options:
    from ...checkpoint.sharding import parse_size
    from ...conversion import FORMATS, Options
    from ...conversion.plan import parse_renames, prefix_renames
    from ...derived.casting import parse_casts
    from ...derived.element_types import parse_untold

    checks = {
        "dtype": parse_casts, "dtype_of": parse_untold, "max_shard_size": parse_size,
        "rename": parse_renames,
        "strip_prefix": prefix_renames,
    }  # fmt: skip
    for name, parse in checks.items():
        if given[name]:
            with as_usage(f"--{name.replace('_', '-')}"):
                parse(given[name])
    if given["format"] not in (None, *FORMATS):
        raise click.UsageError(f"--format must be one of {', '.join(sorted(FORMATS))}")
    return Options(
        **{name: given[name] for name in ("dtype", "only", "skip", "rename", "densify", "force")},
        **{name: given[name] for name in ("dry_run", "keep_ties", "keep_others", "format")},
        **{name: given[name] for name in ("trust", "dequantize", "scheme", "dtype_of")},
        strip_prefix=given["strip_prefix"],
        keep=given["keep"],
        max_shard_size=given["max_shard_size"],
        metadata=pairs("--metadata", given["metadata"]),
        record=not given["no_record"],
        digests=not given["no_digests"],
        limits=_limits(given["limit"]),
    )


def _limits(given: Sequence[str]) -> Limits:
    from dataclasses import fields

    from ...conversion import Limits

    known = {field.name for field in fields(Limits) if field.init}
    numbers = {}
    for name, value in pairs("--limit", given).items():
        if name not in known:
            raise click.UsageError(f"--limit: NAME must be one of {', '.join(sorted(known))}")
        if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value)):
            raise click.UsageError(f"--limit: {value!r} is not a positive integer")
        numbers[name] = int(value)
    return Limits(**numbers)


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
            {
                "source": each.source,
                "name": each.name,
                "what": each.what,
                "reason": each.reason,
                "count": each.count,
            }
            for each in done.dropped
        ],
        "dropped_count": done.dropped_count,
        "left_out": done.left_out,
        "hints": done.hints,
        "calls": done.calls,
        "dequantized": done.dequantized,
    }


def _file(file: ConvertedFile) -> ConvertedFileRecord:
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
    for scheme, number in done.dequantized.items():
        yield "dequantized", escape(scheme), str(number)
    for name in done.skipped:
        yield "skipped", escape(name)
    for each in done.dropped:
        yield "dropped", escape(each.source), escape(each.name), escape(each.what)
    if (more := done.dropped_count - sum(each.count for each in done.dropped)) > 0:
        yield "dropped", "", "", f"and {more} more"
    for path in done.left_out:
        yield "left-out", escape(path)


def _draw(screen: Terminal, done: Conversion) -> None:
    would = "would write" if done.dry_run else "wrote"
    for kind, files in (("read", done.sources), (would, done.outputs)):
        for file in files[:SHOWN]:
            held = "" if file.format in ("index", "part") else f"{plural(file.tensors, 'tensor')}, "
            about = f"  {file.format}, {held}{human_bytes(file.size)}"
            screen.text((kind, "green"), "  ", (escape(file.path), "bold"), about)
        if len(files) > SHOWN:
            screen.text((f"  and {plural(len(files) - SHOWN, 'file')} more", "dim"))
    for scheme, number in done.dequantized.items():
        screen.text(("dequantised", "green"), f"  {plural(number, 'weight')}, {escape(scheme)}")
    ties = [f"{escape(name)} is {escape(kept)}" for name, kept in done.ties.items()]
    renamed = [f"{escape(old)} -> {escape(new)}" for old, new in done.renamed.items()]
    dropped = [f"{escape(each.name)}: {escape(each.what)}" for each in done.dropped]
    one_by_one = done.dropped_count - sum(each.count - 1 for each in done.dropped)
    draw_names(screen, "tied weights, written once", ties)
    draw_names(screen, "renamed", renamed)
    draw_names(screen, "skipped", list(map(escape, done.skipped)))
    draw_names(screen, "not tensors, left out (see --keep-others)", dropped, one_by_one)
    left_out = list(map(escape, done.left_out))
    draw_names(screen, "files left out, which are not part of the model", left_out)
