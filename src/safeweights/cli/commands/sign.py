"""`safeweights sign`: sign a file or a folder."""

from __future__ import annotations

import os
import shlex
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from ...reports.problems import NO, YES
from ...storage.places import shown
from ...text import escape, human_bytes, plural, printable
from ..app import FILE, json_option
from ..passphrases import ask, passphrase_option, read
from ..watching import watched_files
from ..writing import check_replaceable, not_stdout

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...reports.documents import CheckedSignatureRecord, SignCheckDocument, SignDocument
    from ...trust import KeylessSigner, PublicKey, Signed
    from ...trust.signatures.keys import FileSigner, Signer
    from ..output import Output

__all__ = ["command"]


def _key_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select the key or identity to sign with."""
    options = (
        click.option("--key", metavar="KEY", type=FILE, help="The private key, in PEM."),
        passphrase_option,
        click.option(
            "--key-command", metavar="COMMAND",
            help="Sign with a program: it reads the digest from standard input and prints the signature.",
        ),
        click.option(
            "--public-key", metavar="FILE", type=FILE,
            help="The public key that belongs to --key-command, or that --check uses, in PEM.",
        ),
        click.option(
            "--whole-message", is_flag=True,
            help="Pass the whole message to --key-command instead of its digest.",
        ),
        click.option(
            "--certificate", metavar="FILE", type=FILE, multiple=True,
            help="The key's certificate and its chain up to the root, in PEM.",
        ),
        click.option(
            "--timestamp-url", metavar="URL", help="Add a timestamp by this RFC 3161 authority."
        ),
        click.option(
            "--keyless", is_flag=True,
            help="Sign with a Sigstore identity [default: the identity of this CI job].",
        ),
        click.option(
            "--login", type=click.Choice(["browser", "code"]),
            help="Log in for --keyless: in a web browser on this machine, or with a link and a code.",
        ),
        click.option(
            "--identity-token-file", metavar="FILE", type=FILE,
            help="The OpenID Connect token for --keyless; - for standard input.",
        ),
        click.option(
            "--trust-config", metavar="FILE", type=FILE,
            help="Use the Sigstore instance that FILE describes instead of the public one.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command("sign")
@click.argument("paths", metavar="PATH...", type=FILE, nargs=-1, required=True)
@_key_options
@click.option(
    "--check", is_flag=True,
    help="Write nothing; exit with status 1 if a PATH has no signature that matches it.",
)  # fmt: skip
@click.option(
    "--signature", metavar="OUT", type=FILE,
    help="The file to write [default: PATH/model.sig or PATH.sig].",
)  # fmt: skip
@click.option("--ignore", metavar="NAME", multiple=True, help="Leave out a file or folder in PATH.")
@click.option(
    "--id", "model_id", metavar="NAME", help="The model's id, which policies can require."
)
@click.option(
    "--release", metavar="NUMBER", type=click.IntRange(0),
    help="Release number; a policy with a lock file later refuses lower numbers.",
)  # fmt: skip
@click.option(
    "--no-trees", is_flag=True,
    help="Do not write FILE.swtree; reading a part of FILE then requires hashing all of it.",
)  # fmt: skip
@click.option("--allow-symlinks", is_flag=True, help="Follow symbolic links to files.")
@click.option("--force", is_flag=True, help="Replace another signature, or any other file.")
@json_option
@click.pass_obj
def command(out: Output, /, paths: tuple[str, ...], **given: Any) -> int:
    """Sign a file or a folder, or check that the signature is up to date.

    Writes a bundle in the format of OpenSSF Model Signing, which other tools can verify. In a folder,
    every file is signed. Special files are an error, and so are symbolic links, except those of the Hub's
    cache. An existing signature by the same key is replaced; any other file is replaced only with --force.

    Sign in one of three ways: with a key file (--key; if it is encrypted, you are asked for its
    passphrase), with a program that uses a key (--key-command, for hardware modules and key management
    services), or with an identity (--keyless), which is published.

    With --check and --public-key, the signature of each PATH is verified, or of the folder that contains
    PATH, if that folder is signed. Nothing is written. Use this in a pre-commit hook.

    Piped, the lines are signature and its path; signer, method and key hint; root and the digest of all
    digests; and signed, SHA-256, BYTES and NAME for each file, separated by tabs. With --check, each line
    is ok, missing or invalid, PATH and the reason.

    \b
    Examples:
      safeweights sign model/ --key ~/.keys/models --id org/name --release 3
      safeweights sign model.safetensors --key key --signature model.oms
      safeweights sign model/ --key leaf.key --certificate chain.pem \\
        --timestamp-url https://tsa.example.org
      safeweights sign model/ --public-key kms.pub \\
        --key-command "pkcs11-tool --sign --mechanism ECDSA --id 01"
      safeweights sign model/ --keyless --login browser
      safeweights sign --check model/ --public-key models.pub
    """
    if given.pop("check"):
        return _check(out, paths, given)
    if len(paths) != 1:
        raise click.UsageError("one PATH is signed at a time")
    return _sign(out, paths[0], given)


def _sign(out: Output, path: str, given: dict[str, Any]) -> int:
    from ...trust import load_certificates, sign, signature_path
    from ...trust.files import check_model

    signature = given["signature"]
    not_stdout("--signature", signature)
    signer = _signer(given)
    check_model(path)
    check_replaceable(
        signature or signature_path(path), partial(_check_own, signer),
        "a signature by this key", force=given["force"],
    )  # fmt: skip
    chain = [der for file in given["certificate"] for der in load_certificates(file)]
    with watched_files("signing", [path]) as progress:
        done = sign(
            path, signer, signature=signature, certificates=chain, ignore=given["ignore"],
            trees=not given["no_trees"], release=given["release"], model_id=given["model_id"],
            allow_symlinks=given["allow_symlinks"], timestamp=_timestamper(given["timestamp_url"]),
            force=given["force"], progress=progress,
        )  # fmt: skip
    if out.json:
        out.document(_document(path, done))
    elif out.terminal:
        size = human_bytes(sum(file.size for file in done.files))
        who = f"with the key {done.key_hint[:16]}…" if done.key_hint else "without a key"
        about = f"  {plural(len(done.files), 'file')}, {size}, {who}"
        out.pretty().text(("signed", "green"), "  ", (escape(shown(path)), "bold"), about)
        out.pretty().text(("wrote", "green"), "  ", (escape(done.signature), "bold"))
    else:
        out.line("signature", escape(done.signature))
        out.line("signer", done.method, done.key_hint or "")
        out.line("root", done.root)
        out.lines(("signed", f.sha256, str(f.size), escape(f.name)) for f in done.files)
    return YES


# ---- --check


def _check(out: Output, paths: tuple[str, ...], given: dict[str, Any]) -> int:
    """Verify the signatures of the models that the paths are, or are in."""
    from ...trust import load_public_key

    used = {name for name, value in given.items() if value} - {"public_key"}
    if used or not given["public_key"]:
        also = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(used))
        wrong = f" and excludes {also}" if used else ""
        raise click.UsageError(f"--check goes with --public-key, the key of the signer{wrong}")
    key = load_public_key(given["public_key"])
    results = [_checked(path, key) for path in dict.fromkeys(map(_model_of, paths))]
    whole = all(each["status"] == "ok" for each in results)
    if out.json:
        document: SignCheckDocument = {
            "schema": "safeweights.sign-check/1",
            "ok": whole,
            "results": results,
        }
        out.document(document)
    elif out.terminal:
        for each in results:
            style = "green" if each["status"] == "ok" else "bold red"
            out.pretty().text((each["status"], style), "  ", (escape(each["path"]), "bold"))
            if each["message"]:
                out.pretty().text(printable(each["message"]), indent=2)
    else:
        out.lines(
            (each["status"], escape(each["path"]), printable(each["message"] or ""))
            for each in results
        )
    for each in results:
        if each["status"] != "ok":
            out.message(f"sign it again: safeweights sign {shlex.quote(each['path'])} --key KEY")
    return YES if whole else NO


def _model_of(path: str) -> str:
    """The folder whose signature covers a path, or the path itself."""
    from ...trust.files import check_model
    from ...trust.signatures.discovery import locate

    check_model(path)
    whole = os.path.abspath(path)
    located = locate(whole)
    if located.alone or not os.path.exists(located.signature):
        return path
    return path if located.base == whole else os.path.relpath(located.base)


def _checked(path: str, key: PublicKey) -> CheckedSignatureRecord:
    from ...trust import VerificationError, verify
    from ...trust.signatures.discovery import find_signature

    found: CheckedSignatureRecord = {
        "path": path,
        "signature": find_signature(path),
        "status": "ok",
        "message": None,
    }
    try:
        with watched_files("verifying", [path]) as progress:
            verify(path, key, progress=progress)
    except VerificationError as error:
        found["status"] = "missing" if error.reason == "signature-missing" else "invalid"
        found["message"] = str(error)
    return found


def _check_own(signer: Signer | KeylessSigner, data: bytes) -> None:
    """Raise an error unless the signature's key hint is this key's. The signature is not verified."""
    from ...trust import KeylessSigner, VerificationError
    from ...trust.signatures.bundle import parse_bundle
    from ...trust.signatures.verifying import key_hints

    # Whose identity a keyless signature will be by is known only when it was made.
    hint = None if isinstance(signer, KeylessSigner) else signer.public_key.hint
    if key_hints(parse_bundle(data)) != {hint}:
        raise VerificationError("made with another key", reason="wrong-key")


_MAX_TOKEN: Final = 1 << 16

_BELONGS: Final = {
    "passphrase_file": ("key",),
    "public_key": ("key_command",),
    "whole_message": ("key_command",),
    "certificate": ("key", "key_command"),
    "timestamp_url": ("key", "key_command"),
    "identity_token_file": ("keyless",),
    "login": ("keyless",),
    "trust_config": ("keyless",),
}
"""Option -> what it goes with."""


def _signer(given: dict[str, Any]) -> Signer | KeylessSigner:
    """What signs, as the options say."""
    ways = [way for way in ("key", "key_command", "keyless") if given[way]]
    if len(ways) != 1:
        raise click.UsageError("give one of --key, --key-command and --keyless")
    for option, allowed in _BELONGS.items():
        if given[option] and ways[0] not in allowed:
            shown = " or ".join(f"--{name.replace('_', '-')}" for name in allowed)
            raise click.UsageError(f"--{option.replace('_', '-')} goes with {shown}")
    if ways == ["key"]:
        return _file_signer(given["key"], given["passphrase_file"])
    if ways == ["key_command"]:
        return _command_signer(given)
    from ...trust import KeylessSigner

    path = given["identity_token_file"]
    if path and given["login"]:
        raise click.UsageError("--login excludes --identity-token-file")
    token = read(path, what="token", limit=_MAX_TOKEN) if path else None
    return KeylessSigner(token, given["trust_config"], given["login"])


def _command_signer(given: dict[str, Any]) -> Signer:
    from ...trust import command_signer, load_public_key

    if not given["public_key"]:
        raise click.UsageError("--key-command needs --public-key, the key that it signs with")
    try:
        command = shlex.split(given["key_command"])
    except ValueError as error:
        raise click.UsageError(f"--key-command: {error}") from None
    if not command:
        raise click.UsageError("--key-command is empty")
    key = load_public_key(given["public_key"])
    return command_signer(command, key, prehashed=not given["whole_message"])


def _file_signer(key: str, passphrase_file: str | None) -> FileSigner:
    """The private key; asks for a passphrase only if the key is encrypted."""
    from ...trust import DocumentError, load_private_key

    secret = read(passphrase_file) if passphrase_file else None
    try:
        return load_private_key(key, secret)
    except DocumentError as error:
        if error.reason != "password" or secret is not None:
            raise
    return load_private_key(key, ask())


def _timestamper(url: str | None) -> Callable[[bytes], bytes] | None:
    if url is None:
        return None
    if urlsplit(url).scheme not in {"http", "https"}:
        raise click.UsageError("--timestamp-url takes an http or https URL")
    from ...trust import request_timestamp

    return partial(request_timestamp, url=url)


def _document(path: str, done: Signed) -> SignDocument:
    return {
        "schema": "safeweights.sign/1",
        "path": shown(path),
        "subject": done.subject,
        "root": done.root,
        "signature": shown(done.signature),
        "method": done.method,
        "key_hint": done.key_hint,
        "files": [{"path": f.name, "bytes": f.size, "sha256": f.sha256} for f in done.files],
        "sidecars": list(done.sidecars),
    }
