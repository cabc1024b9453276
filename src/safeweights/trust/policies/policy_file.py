"""Policies as people write them: TOML, described field by field in ``docs/policy.md``.

    mode = "enforce"                       # off | warn | enforce
    lock = "models.lock.json"              # what was accepted before; rules with first_use need it

    [signers.releases]
    public_key = "keys/releases.pub"       # a file beside the policy, or the PEM text itself

    [[rules]]
    pattern = "vendor/*"                   # of the model's path below the policy's folder
    signers = ["releases"]

    [[rules]]
    pattern = "*"
    level = "known"
    first_use = true

Every setting is checked and an unknown one refused, so that a misspelt setting is not ignored. Files
are named relative to the policy's own folder, models relative to its `root`.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import datetime, timezone
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from ...errors import quote
from ..documents import Field, parse_toml
from ..errors import DocumentError
from ..files import check_name, read_document
from ..signatures.certificates import CertificateTrust, load_certificates
from ..signatures.keyless import KeylessTrust
from ..signatures.keys import load_public_key
from ..signatures.timestamps import KeyTrust, TimestampTrust
from .policy import DENIABLE, LEVELS, Mode, Policy, Revocations, Rule, check_pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..access.rules import AccessRules
    from ..signatures.verifying import Trust

__all__ = ["load_policy", "parse_policy"]

MAX_POLICY: Final = 1 << 20


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """The policy in a TOML file; files that it names are relative to its folder.

    Raises:
        DocumentError: Malformed, an unknown setting, a pattern that can never match, or a key that
            cannot be read; names the file and the field.
        OSError: The file, or one it names, cannot be read.
    """
    path = os.fspath(path)
    return parse_policy(read_document(path, limit=MAX_POLICY), path=path)


def parse_policy(data: bytes, *, path: str | None = None) -> Policy:
    """The policy in TOML text; see `load_policy`."""
    if len(data) > MAX_POLICY:
        raise DocumentError(f"longer than {MAX_POLICY} bytes", path=path)
    if data.lstrip().startswith(b"-----BEGIN "):
        raise DocumentError(
            "this is PEM; a policy is TOML, in which a signer's `public_key` names such a file",
            path=path,
        )
    document = parse_toml(data, path=path).only(
        "mode",
        "root",
        "signers",
        "rules",
        "deny",
        "minimum_level",
        "lock",
        "revoked",
        "access",
    )
    base = os.path.dirname(path) if path else ""
    signers: dict[str, Trust] = {}
    if table := document.get("signers"):
        signers = {name: _signer(entry, base) for name, entry in table.members()}
    mode: Mode = "enforce"
    if found := document.get("mode"):
        mode = found.choice("off", "warn", "enforce")  # type: ignore[assignment]
    least = found.choice(*LEVELS) if (found := document.get("minimum_level")) else None
    root = None
    if found := document.get("root"):
        root = os.path.join(base, os.path.expanduser(found.text(limit=4096)))
    rules = document.get("rules")
    if rules is None and mode != "off":
        raise document.error("the policy has no [[rules]]; without rules it refuses everything")
    rooted = path is not None or root is not None
    read = tuple(_rule(entry, signers, least, rooted) for entry in rules.items()) if rules else ()
    lock = document.get("lock")
    if lock is None and any(rule.first_use for rule in read):
        raise document.error("`first_use` needs a `lock` file: without one, every use is the first")
    return Policy(
        read, signers, mode, _deny(document.get("deny")),
        os.path.abspath(os.path.join(base, lock.text(limit=4096))) if lock else None, path, root,
        _revoked(document.get("revoked")), _access(document.get("access")),
    )  # fmt: skip


def _access(table: Field | None) -> AccessRules | None:
    """The section ``[access]``."""
    if table is None:
        return None
    from ..access.recipients import parse_recipient
    from ..access.rules import AccessRules

    table.only("encrypted", "recipients")
    found = table.get("recipients")
    recipients = [
        parse_recipient(each.text(), path=table.path, field=each.place)
        for each in (found.items() if found else ())
    ]
    return AccessRules(_patterns(table.get("encrypted")), tuple(recipients))


def _rule(entry: Field, signers: dict[str, Trust], least: str | None, rooted: bool) -> Rule:
    entry.only(
        "pattern", "signers", "level", "digests", "templates", "first_use", "allow", "optional",
        "models", "root_digests", "minimum_release", "signature", "base",
    )  # fmt: skip
    pattern = entry.member("pattern")
    if problem := check_pattern(pattern.text(limit=4096), rooted=rooted):
        raise pattern.error(problem)
    level = found.choice(*LEVELS) if (found := entry.get("level")) else least or "signed"
    if least and LEVELS.index(level) < LEVELS.index(least):
        raise entry.member("level").error(f"is below the policy's minimum_level {least}")
    names = found.strings() if (found := entry.get("signers")) else ()
    for name in names:
        if name not in signers:
            near = get_close_matches(name, signers, 1)
            meant = f"; did you mean {quote(near[0])}?" if near else ""
            raise entry.member("signers").error(f"{quote(name)} is not one of [signers]{meant}")
    if not names:
        for field in ("models", "root_digests", "minimum_release", "signature", "base"):
            if pinned := entry.get(field):
                raise pinned.error("needs `signers`: only a signed statement says this")
        if LEVELS.index(level) >= LEVELS.index("signed"):
            raise entry.error(f"level {level} needs `signers`: no model could fulfil this rule")
    return Rule(
        pattern.text(), names, level,
        digests=_pins(entry.get("digests")),
        templates=_digests(entry.get("templates")),
        first_use=found.boolean() if (found := entry.get("first_use")) else False,
        allow=_patterns(entry.get("allow")),
        optional=_patterns(entry.get("optional")),
        models=found.strings() if (found := entry.get("models")) else (),
        root_digests=_digests(entry.get("root_digests")),
        minimum_release=found.integer() if (found := entry.get("minimum_release")) else None,
        signature=_path(entry.get("signature")),
        base=_path(entry.get("base")),
    )  # fmt: skip


def _pins(table: Field | None) -> dict[str, str]:
    pins = {}
    for name, value in table.members() if table else ():
        if problem := check_name(name):
            raise value.error(f"the file name {problem}; no file of a model has it")
        pins[name] = _digest(value)
    return pins


def _patterns(value: Field | None) -> tuple[str, ...]:
    """Patterns of file names, none of which is useless."""
    for item in value.items() if value else ():
        if problem := check_pattern(item.text(limit=4096), rooted=True):
            raise item.error(problem.replace("subject", "file name"))
    return value.strings() if value else ()


def _path(value: Field | None) -> str | None:
    """A path in which ``{subject}`` may stand for the subject, and nothing else is special."""
    if value is None:
        return None
    text = value.text(limit=4096)
    if any(char in text.replace("{subject}", "") for char in "{}"):
        raise value.error("only `{subject}` may stand in braces")
    return text


def _digests(value: Field | None) -> tuple[str, ...]:
    return tuple(_digest(item) for item in value.items()) if value else ()


def _revoked(table: Field | None) -> Revocations:
    if table is None:
        return Revocations()
    table.only("keys", "certificates", "files", "root_digests")
    found = {name: frozenset(_digests(value)) for name, value in table.members()}
    return Revocations(**found)


def _digest(value: Field) -> str:
    text = value.text()
    return Field(text.removeprefix("sha256:"), value.path, value.place).hex(32).hex()


def _deny(table: Field | None) -> frozenset[str]:
    denied = set(DENIABLE)
    for name, value in table.only(*DENIABLE).members() if table else ():
        if not value.boolean():
            denied.discard(name)
    return frozenset(denied)


_KEY_FIELDS: Final = ("public_key", "key_hint", "timestamp_roots", "until")
_CERTIFICATE_FIELDS: Final = (
    "roots", "certificate_subject", "certificate_issuer", "certificate_name", "certificate_sha256",
    "signed_at", "timestamp_roots",
)  # fmt: skip
_KEYLESS_FIELDS: Final = ("identity", "issuer", "trusted_root")


def _signer(entry: Field, base: str) -> Trust:
    kinds = {"public_key": _key, "roots": _certificate, "identity": _keyless}
    present = [kind for kind in kinds if entry.get(kind)]
    if not present:
        entry.only(*_KEY_FIELDS, *_CERTIFICATE_FIELDS, *_KEYLESS_FIELDS)  # a misspelt one
    if len(present) != 1:
        raise entry.error(f"give exactly one of {', '.join(kinds)}")
    return kinds[present[0]](entry, base)


def _key(entry: Field, base: str) -> Trust:
    entry.only(*_KEY_FIELDS)
    given = entry.member("public_key")
    with _named_by(given):
        key = load_public_key(_text_or_file(given, base), path=entry.path)
    if (hint := entry.get("key_hint")) and hint.text() != key.hint:
        raise hint.error(f"the public key has the hint {key.hint}", reason="wrong-key")
    timestamps, until = _timestamps(entry, base), _moment(entry.get("until"))
    if timestamps is None:
        if until is not None:
            raise entry.error("`until` needs `timestamp_roots`: a signature proves no time")
        return key
    return KeyTrust(key, timestamps, until)


def _certificate(entry: Field, base: str) -> Trust:
    entry.only(*_CERTIFICATE_FIELDS)
    found = entry.member("roots")
    paths = [found] if isinstance(found.value, str) else found.items()
    texts = {
        name: given.text() if (given := entry.get(f"certificate_{name}")) else None
        for name in ("subject", "issuer", "name", "sha256")
    }
    if not (texts["subject"] or texts["name"] or texts["sha256"]):
        raise entry.error(
            "a root alone does not say who must have signed: give certificate_subject, "
            "certificate_name or certificate_sha256"
        )
    roots = _certificates(paths, base)
    return CertificateTrust(
        tuple(roots), texts["subject"], texts["issuer"], texts["name"], texts["sha256"],
        _moment(entry.get("signed_at")), _timestamps(entry, base),
    )  # fmt: skip


def _timestamps(entry: Field, base: str) -> TimestampTrust | None:
    """The timestamp authorities of a signer, where it names some."""
    found = entry.get("timestamp_roots")
    if found is None:
        return None
    paths = [found] if isinstance(found.value, str) else found.items()
    roots = _certificates(paths, base)
    return TimestampTrust(tuple(roots))


def _moment(value: Field | None) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value.value, datetime) or value.value.tzinfo is None:
        raise value.error("expected a date and time with an offset, as 2026-01-31T12:00:00Z")
    return value.value.astimezone(timezone.utc)


def _keyless(entry: Field, base: str) -> Trust:
    entry.only(*_KEYLESS_FIELDS)
    root = entry.get("trusted_root")
    return KeylessTrust(
        entry.member("identity").text(), entry.member("issuer").text(),
        os.path.abspath(os.path.join(base, root.text())) if root else None,
    )  # fmt: skip


def _certificates(paths: list[Field], base: str) -> list[bytes]:
    found: list[bytes] = []
    for given in paths:
        with _named_by(given):
            found += load_certificates(_text_or_file(given, base), path=given.path)
    return found


@contextmanager
def _named_by(field: Field) -> Iterator[None]:
    """Say of a file that cannot be read which field of which policy names it."""
    try:
        yield
    except OSError as error:
        policy = f"the policy {quote(field.path, 400)}" if field.path else "the policy"
        message = f"{error.strerror}; {field.place} of {policy} names this file"
        raise OSError(error.errno, message, error.filename) from error


def _text_or_file(value: Field, base: str) -> str | bytes:
    text = value.text(limit=1 << 20)
    return text.encode() if text.startswith("-----BEGIN ") else os.path.join(base, text)
