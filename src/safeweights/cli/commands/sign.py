"""`safeweights sign`: sign a file or a folder."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from ...text import escape, human_bytes, plural
from ..app import FILE, json_option
from ..passphrases import ask, passphrase_option, read
from ..watching import watched_files
from ..writing import check_replaceable, not_stdout

if TYPE_CHECKING:
    from ...reports.documents import SignDocument
    from ...trust import Signed
    from ...trust.signatures.keys import FileSigner
    from ..output import Output

__all__ = ["command"]


@click.command("sign")
@click.argument("path", metavar="PATH", type=FILE)
@click.option("--key", metavar="KEY", type=FILE, required=True, help="The private key, in PEM.")
@passphrase_option
@click.option(
    "--certificate", metavar="FILE", type=FILE, multiple=True,
    help="The key's certificate and its chain up to the root, in PEM.",
)  # fmt: skip
@click.option(
    "--signature", metavar="OUT", type=FILE,
    help="The file to write [default: PATH/model.sig or PATH.sig].",
)  # fmt: skip
@click.option("--ignore", metavar="NAME", multiple=True, help="Leave out a file or folder in PATH.")
@click.option(
    "--release", metavar="NUMBER", type=click.IntRange(0),
    help="Release number: a policy with a lock file refuses lower ones later.",
)  # fmt: skip
@click.option(
    "--no-trees", is_flag=True,
    help="Do not write FILE.swtree; reading a part of a file then hashes all of it.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace another signature, or any other file.")
@json_option
@click.pass_obj
def command(
    out: Output,
    /,
    path: str,
    *,
    key: str,
    passphrase_file: str | None,
    certificate: tuple[str, ...],
    signature: str | None,
    ignore: tuple[str, ...],
    release: int | None,
    no_trees: bool,
    force: bool,
) -> None:
    """Sign a file or a folder.

    Writes a bundle as specified by OpenSSF Model Signing, which other tools can verify. In a folder,
    every file is signed; links and special files are an error. If the key is encrypted, the terminal asks
    for its passphrase. An existing signature by the same key is replaced; any other file is replaced only
    with --force.

    Piped, the lines are signature and its path; signer, method and key hint; and signed, SHA-256, BYTES
    and NAME for each file, separated by tabs.

    \b
    Examples:
      safeweights sign model/ --key ~/.keys/models
      safeweights sign model.safetensors --key key --signature model.oms
      safeweights sign model/ --key leaf.key --certificate chain.pem
    """
    from ...trust import load_certificates, sign, signature_path
    from ...trust.files import check_model

    not_stdout("--signature", signature)
    check_model(path)
    signer = _signer(key, passphrase_file)
    check_replaceable(
        signature or signature_path(path), partial(_check_own, signer),
        "a signature by this key", force=force,
    )  # fmt: skip
    chain = [der for file in certificate for der in load_certificates(file)]
    with watched_files("signing", [path]) as progress:
        done = sign(
            path, signer, signature=signature, certificates=chain, ignore=ignore, trees=not no_trees,
            release=release, force=force, progress=progress,
        )  # fmt: skip
    document = _document(path, done, certified=bool(chain))
    if out.json:
        out.document(document)
    elif out.terminal:
        size = human_bytes(sum(file.size for file in done.files))
        about = f"  {plural(len(done.files), 'file')}, {size}, with the key {done.key_hint[:16]}…"
        out.pretty().text(("signed", "green"), "  ", (escape(path), "bold"), about)
        out.pretty().text(("wrote", "green"), "  ", (escape(done.signature), "bold"))
    else:
        out.line("signature", escape(done.signature))
        out.line("signer", document["method"], done.key_hint)
        out.lines(("signed", f.sha256, str(f.size), escape(f.name)) for f in done.files)


def _check_own(signer: FileSigner, data: bytes) -> None:
    """Raise an error unless the signature's key hint is this key's. The signature is not verified."""
    from ...trust import VerificationError
    from ...trust.signatures.bundle import parse_bundle
    from ...trust.signatures.verifying import key_hints

    if key_hints(parse_bundle(data)) != {signer.public_key.hint}:
        raise VerificationError("made with another key", reason="wrong-key")


def _signer(key: str, passphrase_file: str | None) -> FileSigner:
    """The private key; asks for a passphrase only if the key is encrypted."""
    from ...trust import DocumentError, load_private_key

    secret = read(passphrase_file) if passphrase_file else None
    try:
        return load_private_key(key, secret)
    except DocumentError as error:
        if error.reason != "password" or secret is not None:
            raise
    return load_private_key(key, ask())


def _document(path: str, done: Signed, *, certified: bool) -> SignDocument:
    return {
        "schema": "safeweights.sign/1",
        "path": path,
        "subject": done.subject,
        "signature": done.signature,
        "method": "certificate" if certified else "key",
        "key_hint": done.key_hint,
        "files": [{"path": f.name, "bytes": f.size, "sha256": f.sha256} for f in done.files],
        "sidecars": list(done.sidecars),
    }
