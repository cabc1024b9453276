"""`safeweights push`: write a model into a store, complete or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...storage.places import shown
from ...text import escape, human_bytes, plural
from ..app import FILE, json_option
from ..watching import watched_writing

if TYPE_CHECKING:
    from ...reports.documents import PushDocument
    from ..output import Output

__all__ = ["command"]


@click.command("push")
@click.argument("path", metavar="PATH", type=FILE)
@click.argument("url", metavar="URL")
@click.option("--unsigned", is_flag=True, help="Push a model that has no signature.")
@click.option(
    "--force",
    is_flag=True,
    help="Replace files at URL, and delete weights and signatures that PATH does not have.",
)
@json_option
@click.pass_obj
def command(out: Output, path: str, url: str, *, unsigned: bool, force: bool) -> None:
    """Upload a model to a bucket or a registry.

    The model is uploaded completely or not at all.

    URL is s3://, gs://, az:// or oci://registry/name:tag, or a path. The index and the signature are
    written last, and a failed upload is undone. Sign the folder first (`safeweights sign`). In a registry,
    the signature is also attached to the model's manifest.

    Piped, the lines are pushed, URL, FILES and BYTES; manifest and its digest; signature and its digest;
    separated by tabs.

    \b
    Examples:
      safeweights push model/ s3://bucket/models/model/
      safeweights push model/ oci://registry.example.org/team/model:v1 --force
    """
    import os

    from ...transfer import push

    if not unsigned and not os.path.exists(os.path.join(path, "model.sig")) and os.path.isdir(path):
        raise click.UsageError(f"{path} has no model.sig; sign it first, or give --unsigned")
    with watched_writing("pushing") as progress:
        done = push(path, url, force=force, progress=progress)
    document: PushDocument = {
        "schema": "safeweights.push/1",
        "url": shown(url),
        "files": [{"path": name, "bytes": size} for name, size in done.files.items()],
        "manifest": done.manifest,
        "signature": done.signature,
    }
    total = sum(done.files.values())
    if out.json:
        out.document(document)
        return
    digests = [("manifest", done.manifest), ("signature", done.signature)]
    found = [(name, digest) for name, digest in digests if digest is not None]
    if out.terminal:
        about = f"  {plural(len(done.files), 'file')}, {human_bytes(total)}"
        out.pretty().text(("pushed", "green"), "  ", (escape(shown(url)), "bold"), about)
        out.pretty().pairs(found)
    else:
        out.line("pushed", escape(shown(url)), str(len(done.files)), str(total))
        out.lines(found)
