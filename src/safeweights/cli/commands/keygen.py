"""`safeweights keygen`: create a key pair, for signing models or for reading encrypted ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...text import escape
from ..app import FILE, json_option
from ..passphrases import ask, passphrase_option, read
from ..writing import not_stdout

if TYPE_CHECKING:
    from ...reports.documents import KeygenAgeDocument, KeygenDocument
    from ..output import Output

__all__ = ["command"]


@click.command("keygen")
@click.argument("path", metavar="PATH", type=FILE)
@click.option(
    "--curve", type=click.Choice(["p256", "p384", "p521"]), default="p384", show_default=True,
    help="The elliptic curve.",
)  # fmt: skip
@click.option("--encrypt", is_flag=True, help="Ask for a passphrase and encrypt the private key.")
@click.option("--age", is_flag=True, help="Create an identity that decrypts encrypted models.")
@click.option("--pq", is_flag=True, help="With --age: secure against quantum computers.")
@passphrase_option
@json_option
@click.pass_obj
def command(
    out: Output,
    /,
    path: str,
    *,
    curve: str,
    encrypt: bool,
    age: bool,
    pq: bool,
    passphrase_file: str | None,
) -> None:
    """Create a key pair, for signing models or reading encrypted ones.

    Writes the private key to PATH, which only you can read, and the public key to PATH.pub. Give PATH.pub
    to the people who verify your models. Both are PEM. Existing files are never replaced.

    With --age, writes an identity in the format of age-keygen to PATH, and its recipient to PATH.pub. Give
    the recipient, which is printed too, to the people who encrypt models for you (-r, or -R PATH.pub).

    Piped, each line is a key and its value, separated by a tab.

    \b
    Examples:
      safeweights keygen ~/.keys/models --encrypt
      safeweights keygen key --passphrase-file <(pass show models)
      safeweights keygen ~/.keys/me --age
    """
    from ...trust.signatures.keys import generate_key

    not_stdout("PATH", path)
    if age:
        if encrypt or passphrase_file:
            raise click.UsageError(
                "an identity has no passphrase: encrypt its file with `encrypt -p`"
            )
        _generate_identity(out, path, pq)
        return
    if pq:
        raise click.UsageError("--pq needs --age")
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


def _generate_identity(out: Output, path: str, pq: bool) -> None:
    from ...trust import generate_identity, write_identity

    identity = generate_identity(post_quantum=pq)
    write_identity(path, identity, recipient=True)
    recipient = identity.recipient.label
    if out.json:
        document: KeygenAgeDocument = {
            "schema": "safeweights.keygen-age/1",
            "identity": path,
            "recipient_file": f"{path}.pub",
            "recipient": recipient,
            "post_quantum": pq,
        }
        out.document(document)
        return
    items = [
        ("identity", escape(path)),
        ("recipient file", escape(f"{path}.pub")),
        ("recipient", recipient),
    ]
    if out.terminal:
        out.pretty().pairs(items, indent=0)
    else:
        out.lines(items)
