"""`safeweights digest`: the root digest of a file or a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...storage.places import shown
from ...text import escape, human_bytes, plural
from ..app import FILE, json_option
from ..identities import identity_option
from ..watching import watched_files

if TYPE_CHECKING:
    from ...reports.documents import DigestDocument
    from ...trust import Keyring
    from ..output import Output

__all__ = ["command"]


@click.command("digest")
@click.argument("path", metavar="PATH", type=FILE)
@click.option(
    "--signature", metavar="FILE", type=FILE,
    help="The signature, which is not hashed [default: PATH/model.sig or PATH.sig].",
)  # fmt: skip
@click.option("--ignore", metavar="NAME", multiple=True, help="Leave out a file or folder in PATH.")
@click.option("--no-trees", is_flag=True, help="Leave out FILE.swtree, as sign --no-trees does.")
@click.option("--allow-symlinks", is_flag=True, help="Follow symbolic links to files.")
@identity_option
@json_option
@click.pass_obj
def command(
    out: Output,
    /,
    path: str,
    *,
    signature: str | None,
    ignore: tuple[str, ...],
    no_trees: bool,
    allow_symlinks: bool,
    keyring: Keyring | None,
) -> None:
    """Print the digest that identifies a model's contents.

    It is the digest that sign writes into the signature if it is called with the same options: the SHA-256
    of the SHA-256 digests of all files, in the order of their names. It covers neither the names nor the
    signature. Every file is read, and no file is written. A policy can require the digest of a signed
    model (root_digests).

    With -i, it is the digest of the plaintext, which the model had before it was encrypted.

    Piped, the output is the digest and PATH, separated by a tab.

    \b
    Examples:
      safeweights digest model/
      safeweights digest model.safetensors --json
    """
    from ...trust import digest
    from ...trust.content.sidecars import SIDECAR
    from ...trust.files import check_model

    check_model(path)
    with watched_files("hashing", [path]) as progress:
        found = digest(
            path, signature=signature, ignore=ignore, trees=not no_trees,
            allow_symlinks=allow_symlinks, identity=keyring, progress=progress,
        )  # fmt: skip
    document: DigestDocument = {
        "schema": "safeweights.digest/1",
        "path": shown(path),
        "subject": found.subject,
        "root": found.root,
        "files": [{"path": f.name, "bytes": f.size, "sha256": f.sha256} for f in found.files],
    }
    if out.json:
        out.document(document)
    elif out.terminal:
        size = human_bytes(sum(file.size for file in found.files))
        trees = sum(file.name.endswith(SIDECAR) for file in found.files)
        # Block trees need not exist: sign writes them.
        more = f", {plural(trees, 'block tree')}" if trees else ""
        about = f"{plural(len(found.files) - trees, 'file')}{more}, {size}"
        out.pretty().pairs(
            [("digest", found.root), ("of", f"{escape(shown(path))}  {about}")], indent=0
        )
    else:
        out.line(found.root, escape(shown(path)))
