"""`safeweights edit`: change checkpoints without loading them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from ...text import escape, human_bytes, plural
from ..app import FILE, json_option
from ..identities import identity_option
from ..output import Output
from ..rewriting import SHOWN, as_usage, draw_names, dtype_option, pairs, trust_option
from ..watching import watched_writing
from ..writing import not_stdout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ...editing import EditedFile, EditPlan, Edits
    from ...reports.documents import EditDocument, EditedFileRecord
    from ..terminal import Terminal

__all__ = ["command"]

_HOW: Final = {
    "written": "written",
    "header": "new header, the data is copied by the system",
    "patched": "a few bytes of the header overwritten in place",
    "kept": "unchanged",
}


def _list_maps(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from ...editing.keymaps import key_maps

    out = ctx.find_object(Output)
    assert out is not None
    out.lines(key_maps().items())
    ctx.exit()


@click.command("edit")
@click.argument("source", metavar="SRC", type=FILE)
@click.argument("target", metavar="[DST]", required=False, type=FILE)
@click.option("--in-place", is_flag=True, help="Change SRC itself; give no DST.")
@click.option("--plan", is_flag=True, help="Print the changes, but write nothing.")
@click.option(
    "--keep", metavar="GLOB", multiple=True, help="Keep only tensors with matching names."
)
@click.option("--drop", metavar="GLOB", multiple=True, help="Drop tensors with matching names.")
@click.option("--map", metavar="NAME", help="Rename from one known convention to another.")
@click.option(
    "--list-maps", is_flag=True, is_eager=True, expose_value=False, callback=_list_maps,
    help="List the known conventions and exit.",
)  # fmt: skip
@click.option("--rename", metavar="OLD=NEW", multiple=True, help="Rename one tensor.")
@click.option(
    "--rename-re", metavar="RE=NEW", multiple=True,
    help="Rename by a regular expression; \\1 in NEW is its first group, \\= in RE an equals sign.",
)  # fmt: skip
@click.option("--strip-prefix", metavar="TEXT", multiple=True, help="Remove a prefix of names.")
@click.option("--add-prefix", metavar="TEXT", default="", help="Add a prefix to all names.")
@click.option(
    "--add", metavar="FILE[:GLOB]", multiple=True, help="Add the tensors of another checkpoint."
)
@dtype_option
@click.option(
    "--tie", metavar="NAME=KEPT", multiple=True,
    help="Write two equal tensors once, under KEPT, and record NAME in the metadata.",
)  # fmt: skip
@click.option(
    "--untie", metavar="GLOB", multiple=True, help="Write tied names as separate tensors."
)
@click.option(
    "--metadata", metavar="KEY=VALUE", multiple=True, help="Set an entry of the metadata."
)
@click.option("--unset", metavar="KEY", multiple=True, help="Remove an entry of the metadata.")
@click.option("--split", metavar="SIZE", help="Write files of at most SIZE (5GB), and an index.")
@click.option("--merge", is_flag=True, help="Write one file.")
@click.option("--sort", is_flag=True, help="Order tensors by name: layer 2 before layer 10.")
@click.option(
    "--align", metavar="N", type=int,
    help="Begin the data at a multiple of N bytes (4096 for shared blocks and direct reads).",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace existing files and shards.")
@click.option("--durable", is_flag=True, help="Wait until all data is on the disk.")
@trust_option
@identity_option
@json_option
@click.pass_obj
def command(out: Output, /, source: str, target: str | None, plan: bool, **given: Any) -> None:
    """Rename, drop, add, cast, split and merge tensors without loading them.

    SRC is a file, a folder or an index of any format. DST is a file, or a folder for several files. Edits
    are applied in this order: --untie, --keep, --drop, --map, --rename, --rename-re, --strip-prefix,
    --add-prefix, --add, --dtype, --tie, --metadata, --unset, --sort, then --split or --merge. Shards stay
    shards unless --split or --merge is given, or DST is a file whose name ends in .safetensors.

    Everything is checked before any byte is written. It is an error if two tensors get the same name, if a
    tie breaks, if a cast would lose a value, or if an edit matches nothing. All files are written, or none.
    The system copies bytes that do not change, or shares them if the filesystem supports it.

    With --in-place, new names and metadata are written into the space of the header. If they fit, no data
    is read. At every moment, the file is complete: either the old one or the new one.

    With -i, SRC is decrypted while it is read. DST is not encrypted.

    Piped, each line is one of these, separated by tabs: source, PATH, FORMAT, TENSORS, BYTES; output, PATH,
    FORMAT, TENSORS, BYTES, HOW; renamed, OLD, NEW; dropped, NAME; added, NAME, FILE; cast, NAME, OLD, NEW;
    tie, NAME, KEPT; untied, NAME; metadata, KEY, VALUE; unset, KEY, WHY; removed, FILE; note, TEXT.

    \b
    Examples:
      safeweights edit model.safetensors --in-place --rename old.name=new.name
      safeweights edit shards/ model.safetensors
      safeweights edit model.safetensors shards/ --split 5GB
      safeweights edit model.safetensors bf16.safetensors --dtype BF16 --plan
      safeweights edit lora.safetensors --in-place --strip-prefix base_model.
    """
    from ...editing import edit

    options = {name: given.pop(name) for name in ("in_place", "force", "durable", "trust")}
    if options["in_place"] == (target is not None):
        raise click.UsageError("give DST or --in-place, and not both")
    not_stdout("DST", target)
    edits = _edits(given)
    with watched_writing("writing") as progress:
        done = edit(source, target, edits, dry_run=plan, progress=progress, **options)
    if out.json:
        out.document(_document(done))
    elif out.terminal:
        _draw(out.pretty(), done)
    else:
        out.lines(_plain(done))


def _edits(given: Mapping[str, Any]) -> Edits:
    from ...conversion.plan import parse_renames
    from ...editing import Edits

    mappings = {name: pairs(f"--{name}", given[name]) for name in ("rename", "tie", "metadata")}
    with as_usage():
        patterns = {old.pattern: new for old, new in parse_renames(given["rename_re"])}
        return Edits(**{**given, **mappings, "rename_re": patterns})


def _document(done: EditPlan) -> EditDocument:
    return {
        "schema": "safeweights.edit/1",
        "dry_run": done.dry_run,
        "in_place": done.in_place,
        "sources": list(map(_file, done.sources)),
        "outputs": list(map(_file, done.outputs)),
        "removed": done.removed,
        "tensors": done.tensors,
        "bytes": done.nbytes,
        "renamed": done.renamed,
        "dropped": done.dropped,
        "added": done.added,
        "cast": {name: list(types) for name, types in done.cast.items()},
        "ties": done.ties,
        "untied": done.untied,
        "metadata_set": done.metadata_set,
        "metadata_removed": done.metadata_removed,
        "notes": done.notes,
    }


def _file(file: EditedFile) -> EditedFileRecord:
    return {
        "path": file.path,
        "format": file.format,
        "tensors": file.tensors,
        "bytes": file.nbytes,
        "how": file.how,
        "moved": file.moved,
    }


def _plain(done: EditPlan) -> Iterator[tuple[str, ...]]:
    for file in done.sources:
        yield "source", escape(file.path), file.format, str(file.tensors), str(file.nbytes)
    for file in done.outputs:
        sizes = (str(file.tensors), str(file.nbytes))
        yield "output", escape(file.path), file.format, *sizes, file.how
    for path in done.removed:
        yield "removed", escape(path)
    for kind, changes in _changed_pairs(done):
        for name, other in changes.items():
            yield kind, escape(name), escape(other)
    for name, (old, new) in done.cast.items():
        yield "cast", escape(name), old, new
    for kind, names in (("dropped", done.dropped), ("untied", done.untied)):
        for name in names:
            yield kind, escape(name)
    for note in done.notes:
        yield "note", escape(note)


def _changed_pairs(done: EditPlan) -> list[tuple[str, dict[str, str]]]:
    return [
        ("renamed", done.renamed),
        ("added", done.added),
        ("tie", done.ties),
        ("metadata", done.metadata_set),
        ("unset", done.metadata_removed),
    ]


_LINKS: Final = {"added": " from ", "metadata": " = ", "unset": ": "}
"""What stands between the two texts of a line, where it is no arrow."""


def _draw(screen: Terminal, done: EditPlan) -> None:
    for file in done.sources[:SHOWN]:
        about = f"  {file.format}, {plural(file.tensors, 'tensor')}, {human_bytes(file.nbytes)}"
        screen.text(("read", "green"), "  ", (escape(file.path), "bold"), about)
    would = "would be " if done.dry_run else ""
    for file in done.outputs[:SHOWN]:
        held = "" if file.format == "index" else f"{plural(file.tensors, 'tensor')}, "
        verb = f"{'' if file.how == 'kept' else would}{_HOW[file.how]}"
        about = f"  {held}{human_bytes(file.nbytes)}: {verb}"
        screen.text(("output", "green"), "  ", (escape(file.path), "bold"), about)
    for kind, files in (("sources", done.sources), ("outputs", done.outputs)):
        if len(files) > SHOWN:
            screen.text((f"  and {len(files) - SHOWN} more {kind}", "dim"))
    for title, changes in _changed_pairs(done):
        link = _LINKS.get(title, " -> ")
        lines = [f"{escape(name)}{link}{escape(other)}" for name, other in changes.items()]
        draw_names(screen, title, lines)
    casts = [f"{escape(name)}: {old} -> {new}" for name, (old, new) in done.cast.items()]
    draw_names(screen, "cast", casts)
    draw_names(screen, "dropped", list(map(escape, done.dropped)))
    draw_names(screen, "untied", list(map(escape, done.untied)))
    draw_names(screen, "removed files", list(map(escape, done.removed)))
    for note in done.notes:
        screen.text(("note", "yellow"), f"  {escape(note)}")
    if done.dry_run:
        screen.text(("nothing was written (--plan)", "dim"))
