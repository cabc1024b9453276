"""`safeweights verify`: verify a model against its signature, or an audit log against itself."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from ...reports.problems import NO, YES
from ...storage.places import shown
from ...text import escape, plural
from ..app import FILE, json_option
from ..decisions import print_decision, record
from ..identities import identity_option
from ..watching import watched_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...reports.documents import SignerRecord, VerifyDocument, VerifyLogDocument
    from ...trust import Decision, Keyring, KeyTrust, PublicKey, SignedBy, TimestampTrust
    from ...trust.policies.policy import Evidence
    from ...trust.signatures.verifying import Trust
    from ..output import Output

__all__ = ["command"]

_SHOWN: Final = 20
"""Maximum number of unsigned files on a terminal."""

_BELONGS: Final = {
    "subject": ("certificate",),
    "alternative_name": ("certificate",),
    "fingerprint": ("certificate",),
    "issuer": ("certificate", "identity"),
    "trusted_root": ("identity",),
    "name": ("policy",),
    "explain": ("policy",),
    "ignore_unsigned": ("key", "certificate", "identity"),
    "allow_symlinks": ("key", "certificate", "identity"),
    "signature": ("key", "certificate", "identity", "policy"),
    "base": ("key", "certificate", "identity"),
    "timestamp_roots": ("key", "certificate"),
    "until": ("key",),
    "head": ("log",),
}
"""Option -> the options it can be combined with, one of which must be given."""


def _signer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that define the required signer."""
    options = (
        click.option(
            "--key", metavar="PUBLIC", type=FILE, help="Signed with the private key of this public key."
        ),
        click.option(
            "--certificate", metavar="ROOTS", type=FILE, multiple=True,
            help="Signed with a certificate issued under one of these root certificates, in PEM;",
        ),
        click.option("--subject", metavar="NAME", help="... with this subject (CN=...,O=...)."),
        click.option(
            "--alternative-name", metavar="NAME",
            help="... with this e-mail address or URI, or pattern of one, as alternative name.",
        ),
        click.option("--fingerprint", metavar="SHA256", help="... with this SHA-256."),
        click.option(
            "--identity", metavar="ID",
            help="Signed by this Sigstore identity: an address or URI, or a pattern of one.",
        ),
        click.option("--issuer", metavar="NAME", help="Issuer of the certificate or identity."),
        click.option(
            "--trusted-root", metavar="FILE", type=FILE,
            help="Trusted root of a Sigstore instance, instead of the public one.",
        ),
        click.option(
            "--timestamp-roots", metavar="FILE", type=FILE, multiple=True,
            help="Root certificates of RFC 3161 authorities, in PEM: accept a signature if its "
            "certificate was valid at the time of their timestamp.",
        ),
        click.option(
            "--until", metavar="TIME",
            help="With --key and --timestamp-roots: the latest timestamp to accept.",
        ),
        click.option("--policy", metavar="FILE", type=FILE, help="Signed as this TOML policy requires."),
        click.option("--log", is_flag=True, help="PATH is an audit log, written by admit --log."),
        click.option("--head", metavar="SHA256", help="With --log: the required hash of the last line."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command("verify")
@click.argument("path", metavar="PATH", type=FILE)
@click.option(
    "--signature", metavar="FILE", type=FILE,
    help="The signature [default: PATH/model.sig or PATH.sig].",
)  # fmt: skip
@click.option(
    "--base", metavar="FOLDER", type=FILE,
    help="With --signature: the signed folder that contains the file PATH.",
)  # fmt: skip
@_signer_options
@click.option(
    "--name",
    help="With --policy: the model's name in its rules [default: its path below the policy's root].",
)
@click.option(
    "--explain", is_flag=True, help="With --policy: also print the reasons for the model."
)
@click.option("--ignore-unsigned", is_flag=True, help="Allow files that are not signed.")
@click.option("--allow-symlinks", is_flag=True, help="Follow symbolic links to signed files.")
@identity_option
@json_option
@click.pass_obj
def command(out: Output, /, path: str, *, keyring: Keyring | None, **given: Any) -> int:
    """Verify a model against its signature.

    One of these options defines the required signer: --key; --certificate with --subject,
    --alternative-name or --fingerprint; --identity with --issuer; or --policy. Every file is read. The exit
    status is 1 if a file is unsigned, missing or changed, or if the certificate has expired or does not
    match.

    In an address or URI, * matches any characters except / and @, and ** any characters except @. With
    --timestamp-roots, a signature is valid after its certificate has expired, if one of these authorities
    timestamped it before that. With --key, --timestamp-roots requires a timestamp.

    With --policy, nothing is written to a lock file or log; use admit for that.

    For an encrypted model, the ciphertext and the signature of each key file are verified. This needs no
    decryption key. With -i, the plaintext is also verified, against the signature inside the model.

    With --log, every line of the audit log must contain the hash of the previous line. The exit status is
    1 if a line was changed, removed or inserted. A log that was truncated is detected only with --head,
    the hash that the last admit printed.

    Piped, the lines are ok, PATH, method and signer; and unsigned and NAME for each file without a
    signature; separated by tabs. With --policy, the lines are those of admit. With --log, the only line is
    ok, PATH, number of lines and hash of the last line.

    \b
    Examples:
      safeweights verify model/ --key models.pub
      safeweights verify model/ --certificate ca.pem --subject CN=models
      safeweights verify model/ --identity me@example.org \\
        --issuer https://accounts.google.com
      safeweights verify model/ --policy policy.toml --explain
      safeweights verify --log audit.jsonl --head 9f86d081...
    """
    way = _way(given)
    if way == "log":
        return _check_log(out, path, given["head"])
    from ...trust import verify
    from ...trust.files import check_model

    check_model(path)
    if way == "policy":
        return _judge(out, path, given)

    with watched_files("verifying", [path]) as progress:
        found = verify(
            path, _trust(way, given), signature=given["signature"], base=given["base"], progress=progress,
            ignore_unsigned=given["ignore_unsigned"], allow_symlinks=given["allow_symlinks"],
        )  # fmt: skip
    if keyring is not None:
        from ...trust.policies.sealed import verify_inside

        with watched_files("verifying the plaintext of", [path]) as progress:
            verify_inside(path, _trust(way, given), keyring, progress=progress)
    document: VerifyDocument = {
        "schema": "safeweights.verify/1",
        "ok": True,
        "path": shown(path),
        "signature": found.signature,
        "signed_by": _signer(found.signed_by),
        "files": [
            {"path": file.name, "bytes": file.size, "sha256": file.sha256}
            for file in found.files.values()
        ],
        "unsigned": list(found.unsigned),
        "decision": None,
    }
    if out.json:
        out.document(document)
    else:
        _print(out, document, found.signed_by)
    return YES


def _way(given: dict[str, Any]) -> str:
    """The one option given that defines the signer, or ``log``."""
    ways = [way for way in ("key", "certificate", "identity", "policy", "log") if given[way]]
    if len(ways) != 1:
        raise click.UsageError("give one of --key, --certificate, --identity, --policy and --log")
    for option, allowed in _BELONGS.items():
        if given[option] and ways[0] not in allowed:
            shown = " or ".join(f"--{name}" for name in allowed)
            raise click.UsageError(f"--{option.replace('_', '-')} needs {shown}")
    return ways[0]


def _check_log(out: Output, path: str, head: str | None) -> int:
    from ...trust.policies.audit import read_log

    lines, found = read_log(path, head=head and head.lower())
    document: VerifyLogDocument = {
        "schema": "safeweights.verify-log/1", "ok": lines > 0, "path": path, "lines": lines,
        "head": found,
    }  # fmt: skip
    if out.json:
        out.document(document)
    if not lines:
        out.message(f"{escape(path)} is empty: admit creates a log together with its first line")
        return NO
    if out.terminal and not out.json:
        about = f"  {plural(lines, 'line')}, each with the hash of the previous one"
        out.pretty().text(("ok", "green"), "  ", (escape(path), "bold"), about)
        out.pretty().pairs([("head", found)])
    elif not out.json:
        out.line("ok", escape(path), str(lines), found)
    return YES


def _trust(way: str, given: dict[str, Any]) -> Trust:
    from ...trust import CertificateTrust, KeylessTrust, load_certificates

    if way == "key":
        return _key(given)
    if way == "identity":
        if not given["issuer"]:
            raise click.UsageError(
                "--identity needs --issuer: an identity depends on who vouches for it"
            )
        return KeylessTrust(given["identity"], given["issuer"], given["trusted_root"])
    if not (given["subject"] or given["alternative_name"] or given["fingerprint"]):
        raise click.UsageError(
            "--certificate needs --subject, --alternative-name or --fingerprint: a root certificate alone "
            "does not define the signer"
        )
    roots = tuple(der for file in given["certificate"] for der in load_certificates(file))
    return CertificateTrust(
        roots, subject=given["subject"], issuer=given["issuer"], name=given["alternative_name"],
        sha256=given["fingerprint"], timestamps=_timestamps(given),
    )  # fmt: skip


def _key(given: dict[str, Any]) -> PublicKey | KeyTrust:
    from ...trust import KeyTrust, load_public_key

    key, timestamps, until = load_public_key(given["key"]), _timestamps(given), given["until"]
    if timestamps is None:
        if until is not None:
            raise click.UsageError("--until needs --timestamp-roots: a signature proves no time")
        return key
    if until is None:
        return KeyTrust(key, timestamps)
    try:
        # Python 3.10 does not know the Z of RFC 3339.
        moment = datetime.fromisoformat(until.replace("Z", "+00:00"))
        if moment.tzinfo is None:
            raise ValueError
    except ValueError:
        raise click.UsageError(
            "--until takes a date and time with an offset, as 2026-01-31T12:00:00Z"
        ) from None
    return KeyTrust(key, timestamps, moment)


def _timestamps(given: dict[str, Any]) -> TimestampTrust | None:
    from ...trust import TimestampTrust, load_certificates

    roots = [der for file in given["timestamp_roots"] for der in load_certificates(file)]
    return TimestampTrust(tuple(roots)) if roots else None


def _signer(found: SignedBy) -> SignerRecord:
    return {
        "method": found.method,  # type: ignore[typeddict-item]
        "key_hint": found.key_hint,
        "subject": found.subject,
        "issuer": found.issuer,
        "certificate_sha256": found.certificate_sha256,
        "identity": found.identity,
        "oidc_issuer": found.oidc_issuer,
        "timestamp": found.timestamp,
        "recorded": found.recorded,
    }


def _print(out: Output, document: VerifyDocument, signed_by: SignedBy) -> None:
    who = signed_by.fingerprint().partition(":")[2]
    unsigned = document["unsigned"]
    if not out.terminal:
        out.line("ok", escape(document["path"]), signed_by.method, escape(who))
        out.lines(("unsigned", escape(name)) for name in unsigned)
        return
    screen = out.pretty()
    about = f"  {plural(len(document['files']), 'file')} verified"
    screen.text(("ok", "green"), "  ", (escape(document["path"]), "bold"), about)
    screen.text(f"  signed by {signed_by.method} ", (escape(who), "cyan"))
    for name in unsigned[:_SHOWN]:
        screen.text(("unsigned", "yellow"), "  ", escape(name), indent=2)
    if len(unsigned) > _SHOWN:
        screen.text((f"and {len(unsigned) - _SHOWN} more: see --json", "dim"), indent=2)


def _judge(out: Output, path: str, given: dict[str, Any]) -> int:
    """Decide as `admit` does, but write neither lock file nor log."""
    from ...reports.admission import findings_of
    from ...trust import load_policy
    from ...trust.policies.evidence import gather
    from ...trust.policies.lockfile import lock_of, settle

    policy = load_policy(given["policy"])
    lock = lock_of(policy, None)
    with watched_files("verifying", [path]) as progress:
        gathered = gather(
            path,
            policy,
            examine=findings_of,
            name=given["name"],
            signature=given["signature"],
            progress=progress,
        )
    evidence = gathered.evidence
    decision = settle(
        policy, evidence, lock, signed=gathered.signed, present=gathered.present,
        remembers=False,
    )  # fmt: skip
    if out.json:
        out.document(_judged(path, gathered.signature, evidence, decision))
    else:
        print_decision(out, record(decision), explain=given["explain"])
    return NO if decision.verdict == "refuse" else YES


def _judged(path: str, signature: str, evidence: Evidence, decision: Decision) -> VerifyDocument:
    return {
        "schema": "safeweights.verify/1",
        "ok": decision.verdict != "refuse",
        "path": shown(path),
        "signature": signature,
        "signed_by": _signer(evidence.signed_by) if evidence.signed_by else None,
        "files": [
            {"path": name, "bytes": fact.size or 0, "sha256": fact.sha256}
            for name, fact in evidence.files.items()
        ],
        "unsigned": [name for name, fact in evidence.files.items() if not fact.signed],
        "decision": record(decision),
    }
