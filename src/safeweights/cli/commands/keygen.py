"""`safeweights keygen`: create a key pair for signing models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...text import escape
from ..app import FILE, json_option
from ..passphrases import ask, passphrase_option, read
from ..writing import not_stdout

if TYPE_CHECKING:
    from ...reports.documents import KeygenDocument
    from ..output import Output

__all__ = ["command"]


@click.command("keygen")
@click.argument("path", metavar="PATH", type=FILE)
@click.option(
    "--curve", type=click.Choice(["p256", "p384", "p521"]), default="p384", show_default=True,
    help="The elliptic curve.",
)  # fmt: skip
@click.option("--encrypt", is_flag=True, help="Ask for a passphrase and encrypt the private key.")
@passphrase_option
@json_option
@click.pass_obj
def command(out: Output, path: str, curve: str, encrypt: bool, passphrase_file: str | None) -> None:
    """Create a key pair for signing models.

    Writes the private key to PATH, readable by you only, and the public key to PATH.pub, for everybody
    who verifies your models. Both are PEM. Existing files are never replaced.

    Piped, each line is a key and its value, separated by a tab.

    \b
    Examples:
      safeweights keygen ~/.keys/models --encrypt
      safeweights keygen key --passphrase-file <(pass show models)
    """
    from ...trust.signatures.keys import generate_key

    not_stdout("PATH", path)
    secret = read(passphrase_file) if passphrase_file else ask(twice=True) if encrypt else None
    public = generate_key(path, curve=curve, password=secret)
    document: KeygenDocument = {
        "schema": "safeweights.keygen/1",
        "private_key": path,
        "public_key": f"{path}.pub",
        "curve": curve,
        "encrypted": secret is not None,
        "key_hint": public.hint,
    }
    if out.json:
        out.document(document)
        return
    about = "encrypted" if secret else "not encrypted: anyone who can read it can sign"
    items = [
        ("private key", f"{escape(path)} ({about})" if out.terminal else escape(path)),
        ("public key", escape(f"{path}.pub")),
        ("key hint", public.hint),
    ]
    if out.terminal:
        out.pretty().pairs(items, indent=0)
    else:
        out.lines(items)
