"""`safeweights delta`: checkpoints that hold only what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...text import escape, human_bytes, plural
from ..app import FILE, json_option
from ..identities import identity_option
from ..rewriting import trust_option
from ..watching import watched
from ..writing import not_stdout

if TYPE_CHECKING:
    from ...editing import DeltaReport
    from ...reports.documents import DeltaDocument
    from ..output import Output

__all__ = ["command"]


@click.group("delta", no_args_is_help=True)
def command() -> None:
    """Make and apply delta checkpoints: only what changed.

    A delta is a folder in the format of slime, miles and sglang (weight_vNNNNNN). It contains the tensors
    that changed, as old XOR new in zstd frames, with checksums of the new bytes. Another file in the folder
    has the SHA-256 of all tensors, so that a wrong base is refused. Needs the package zstandard
    (safeweights[delta]).

    \b
    Examples:
      safeweights delta make base/ tuned/ out/weight_v000001
      safeweights delta apply out/weight_v000001 tuned.safetensors --base base/
      safeweights delta compact out/ all/weight_v000009 --base base/
    """


_BASE = click.option(
    "--base", metavar="PATH", type=FILE, help="The model that the first delta changes."
)


@command.command("make")
@click.argument("base", metavar="BASE", type=FILE)
@click.argument("new", metavar="NEW", type=FILE)
@click.argument("folder", metavar="DIR", type=FILE)
@click.option("--version", type=int, default=1, show_default=True, help="The version of NEW.")
@click.option("--base-version", type=int, help="The version of BASE [default: one less].")
@click.option(
    "--encoding", type=click.Choice(["xor", "overwrite"]), default="xor", show_default=True,
    help="Store old XOR new, or the positions and values of the bytes that change.",
)  # fmt: skip
@click.option(
    "--checksum",
    type=click.Choice(["adler32", "xxh3-128", "blake3"]),
    default="adler32",
    show_default=True,
    help="The checksum of the new bytes.",
)
@identity_option
@json_option
@click.pass_obj
def make(
    out: Output,
    base: str,
    new: str,
    folder: str,
    *,
    version: int,
    base_version: int | None,
    encoding: str,
    checksum: str,
) -> None:
    """Write the changes from BASE to NEW into a new folder DIR.

    BASE and NEW are files, folders or indexes of any format with the same tensors. Piped, the output is
    delta, DIR, number of changed tensors, number of tensors, BYTES of the delta and BYTES of the model,
    separated by tabs.
    """
    from ...conversion.opening import open_checkpoint
    from ...editing import make_delta

    old, now = (open_checkpoint(path) for path in (base, new))
    size = sum(tensor.nbytes for tensor in now.values())
    with watched("comparing", size) as progress:
        done = make_delta(
            old,
            now,
            folder,
            version=version,
            base_version=base_version,
            encoding=encoding,
            checksum_format=checksum,
            progress=progress,
        )
    _report(out, done)


@command.command("apply")
@click.argument("target", metavar="DIR", type=FILE)
@click.argument("output", metavar="OUT", type=FILE)
@_BASE
@click.option("--force", is_flag=True, help="Replace existing files and shards.")
@trust_option
@identity_option
@json_option
@click.pass_obj
def apply(
    out: Output, target: str, output: str, *, base: str | None, force: bool, trust: str | None
) -> None:
    """Apply the delta in DIR, and write the whole model to OUT.

    DIR is one version, or a folder of versions. If it is a folder of versions, the result is the newest
    version. If earlier versions are in the same folder, they are applied first, and --base is the model
    before the earliest of them. OUT is a file whose name ends in .safetensors, or a folder.
    """
    from ...editing import apply_delta

    not_stdout("OUT", output)
    with watched("writing", 0) as progress:
        done = apply_delta(target, output, base, trust=trust, force=force, progress=progress)
    _report(out, done)


@command.command("compact")
@click.argument("target", metavar="DIR", type=FILE)
@click.argument("output", metavar="OUT", type=FILE)
@_BASE
@identity_option
@json_option
@click.pass_obj
def compact(out: Output, target: str, output: str, base: str | None) -> None:
    """Join the deltas in DIR into one delta, OUT, with the same result."""
    from ...editing import compact_deltas

    not_stdout("OUT", output)
    _report(out, compact_deltas(target, output, base))


def _report(out: Output, done: DeltaReport) -> None:
    if out.json:
        out.document(_document(done))
    elif out.terminal:
        about = f"{plural(done.changed, 'tensor')} of {done.tensors:,} changed, "
        size = human_bytes(done.nbytes)
        if done.nbytes != done.whole:
            size = f"{size} for a model of {human_bytes(done.whole)}"
        screen = out.pretty()
        screen.text(("wrote", "green"), "  ", (escape(done.path), "bold"), f"  {about}{size}")
    else:
        counts = (done.changed, done.tensors, done.nbytes, done.whole)
        out.line("delta", escape(done.path), *map(str, counts))


def _document(done: DeltaReport) -> DeltaDocument:
    return {
        "schema": "safeweights.delta/1",
        "path": done.path,
        "version": done.version,
        "changed": done.changed,
        "tensors": done.tensors,
        "bytes": done.nbytes,
        "whole_bytes": done.whole,
    }
