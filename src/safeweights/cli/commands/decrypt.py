"""`safeweights decrypt`: write the plaintext of an encrypted model to a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...storage.places import shown
from ...text import escape, human_bytes, plural
from ..app import FILE, json_option
from ..identities import identity_option
from ..watching import watched_writing
from ..writing import not_stdout

if TYPE_CHECKING:
    from ...reports.documents import DecryptDocument
    from ...trust import Keyring
    from ..output import Output

__all__ = ["command"]


@click.command("decrypt")
@click.argument("path", metavar="PATH", type=FILE)
@click.option(
    "-o", "--output", metavar="OUT", type=FILE, help="Where to write [default: PATH without .age]."
)
@click.option(
    "--policy", metavar="FILE", type=FILE, help="What the encrypted files must fulfil first."
)
@identity_option
@json_option
@click.pass_obj
def command(
    out: Output, /, path: str, *, output: str | None, policy: str | None, keyring: Keyring | None
) -> None:
    """Write the plaintext of an encrypted model.

    You do not need this to read a model: every command that reads one has -i. No file is replaced: all
    files are written, or none.

    Piped, the lines are output and its path, and decrypted and NAME for each file, separated by tabs.

    \b
    Examples:
      safeweights decrypt model.age/ -i ~/.keys/me -o model/
      safeweights decrypt model.safetensors.age -p
    """
    from ...trust import decrypt

    not_stdout("-o", output)
    if keyring is None:
        raise click.UsageError("say who opens it: -i FILE or -p")
    with watched_writing("decrypting") as progress:
        done = decrypt(path, keyring, output, trust=policy, progress=progress)
    if out.json:
        document: DecryptDocument = {
            "schema": "safeweights.decrypt/1",
            "path": shown(path),
            "output": done.path,
            "files": list(done.files),
            "bytes": done.size,
        }
        out.document(document)
    elif out.terminal:
        about = f"  {plural(len(done.files), 'file')}, {human_bytes(done.size)}"
        out.pretty().text(("decrypted", "green"), "  ", (escape(shown(path)), "bold"), about)
        out.pretty().text(("wrote", "green"), "  ", (escape(done.path), "bold"))
    else:
        out.line("output", escape(done.path))
        out.lines(("decrypted", escape(each)) for each in done.files)
