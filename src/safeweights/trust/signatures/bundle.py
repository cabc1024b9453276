"""OpenSSF Model Signing v1.0 bundles: bytes <-> what they claim.

Four layers, each of another specification: a Sigstore bundle v0.3 (JSON) holds a DSSE envelope,
which signs an in-toto Statement v1, whose predicate (OMS section 5) lists the files and their
digests. Parsing is stricter than the specification asks: exactly one signature and one kind of
verification material, no name twice, no empty list, no path that leaves the model, the subject
digest recomputed.

What this package adds lives in the ``annotations`` of a resource, which the specification tells
verifiers to ignore: the root of the file's block tree, a release number, the name of a single file.

Pure: no I/O and no cryptography but SHA-256; a parsed bundle is a claim, not yet verified.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from ...errors import quote
from ..content.resources import Part, Resource, TreeReference
from ..documents import Field, parse_json
from ..files import check_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "DEFAULT_IGNORED",
    "Bundle",
    "Statement",
    "build_bundle",
    "build_statement",
    "covers",
    "pae",
    "parse_bundle",
    "parse_statement",
]

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
ANNOTATION: Final = "safeweights"
SINGLE_FILE: Final = "."
"""How the reference implementation names the one resource of a single file."""

DEFAULT_IGNORED: Final = (".git", ".gitattributes", ".github", ".gitignore")
"""Top-level names that no manifest lists (OMS section 6.2)."""

_DIGEST_SIZES: Final = {"sha256": 32, "blake2b": 64}
_SHARD_NAME = re.compile(r"(.+):(0|[1-9][0-9]*):([1-9][0-9]*)", re.DOTALL)

Method = Literal["key", "certificate", "keyless"]


@dataclass(frozen=True)
class Statement:
    """A signed list of files.

    Attributes:
        subject: The model's name as the signer knew it; informational.
        root: SHA-256 over all digests (OMS section 6.5.1), hexadecimal: an identity for the whole.
        resources: By name.
        ignored: Paths the signer left out, the specification's own included.
        allow_symlinks: Whether the signer followed symbolic links.
        sharded: Whether files were hashed in shards.
        release: The highest release number recorded.
    """

    subject: str
    root: str
    resources: dict[str, Resource]
    ignored: tuple[str, ...]
    allow_symlinks: bool
    sharded: bool
    release: int | None


@dataclass(frozen=True)
class Bundle:
    """A signature file, taken apart but not verified.

    Attributes:
        method: Which kind of verification material it has.
        hint: Of the key, where given.
        raw_key: The public key itself, as bundles before v1.1 carry it.
        certificates: DER, leaf first.
        payload: The signed bytes.
        signature: DER of the ECDSA signature.
        source: The whole file, for verifiers that want to parse it themselves.
        path: Where it was read.
    """

    method: Method
    hint: str | None
    raw_key: bytes | None
    certificates: tuple[bytes, ...]
    payload: bytes
    signature: bytes
    source: bytes
    path: str | None = None


def pae(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding of an in-toto payload.

    >>> pae(b"{}")
    b'DSSEv1 28 application/vnd.in-toto+json 2 {}'
    """
    return b"DSSEv1 %d %b %d %b" % (
        len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload,
    )  # fmt: skip


def parse_bundle(data: bytes, *, path: str | None = None) -> Bundle:
    """The bundle in `data`.

    Raises:
        DocumentError: Not a v0.3 bundle with one DSSE signature; names the field.
    """
    document = parse_json(data, path=path)
    document.member("mediaType").equals(MEDIA_TYPE)
    if document.get("messageSignature"):
        raise document.member("messageSignature").error("this is not a signature of a model")
    envelope = document.member("dsseEnvelope")
    envelope.member("payloadType").equals(PAYLOAD_TYPE)
    signatures = envelope.member("signatures").items()
    if len(signatures) != 1:
        raise envelope.member("signatures").error(
            f"expected exactly one signature, found {len(signatures)}", reason="signature-count"
        )
    if keyid := signatures[0].get("keyid"):
        keyid.equals("")
    method, hint, raw_key, certificates = _material(document.member("verificationMaterial"))
    return Bundle(
        method, hint, raw_key, certificates, envelope.member("payload").base64(),
        signatures[0].member("sig").base64(limit=4096), data, path,
    )  # fmt: skip


def _material(material: Field) -> tuple[Method, str | None, bytes | None, tuple[bytes, ...]]:
    kinds = [k for k in ("publicKey", "x509CertificateChain", "certificate") if material.get(k)]
    if len(kinds) != 1:
        raise material.error(
            "expected exactly one of publicKey, x509CertificateChain and certificate"
        )
    found = material.member(kinds[0])
    if kinds[0] == "certificate":
        if not (entries := material.get("tlogEntries")) or not entries.items():
            raise material.error("a keyless signature needs a transparency log entry in "
                                 "tlogEntries", reason="no-log-entry")  # fmt: skip
        return "keyless", None, None, (found.member("rawBytes").base64(limit=65536),)
    if kinds[0] == "publicKey":
        hint, raw = found.get("hint"), found.get("rawBytes")
        if not hint and not raw:
            raise found.error("has neither hint nor rawBytes")
        return "key", hint.text(limit=256) if hint else None, raw.base64() if raw else None, ()
    chain = found.member("certificates").items()
    if not 1 <= len(chain) <= 10:
        raise found.member("certificates").error("expected 1 to 10 certificates")
    return (
        "certificate", None, None,
        tuple(entry.member("rawBytes").base64(limit=65536) for entry in chain),
    )  # fmt: skip


def parse_statement(payload: bytes, *, path: str | None = None) -> Statement:
    """The statement in a bundle's payload.

    Raises:
        DocumentError: Not an OMS v1.0 statement, or inconsistent in itself; names the field.
    """
    document = parse_json(payload, path=path)
    document.member("_type").equals(STATEMENT_TYPE)
    document.member("predicateType").equals(PREDICATE_TYPE)
    predicate = document.member("predicate")
    options = predicate.member("serialization")
    sharded = options.member("method").choice("files", "shards") == "shards"
    resources = _resources(predicate.member("resources"), options, sharded=sharded)
    ignored = _ignored(options.get("ignore_paths"))
    for name in resources:
        if name != SINGLE_FILE and covers((*DEFAULT_IGNORED, *ignored), name):
            raise options.error(f"{quote(name)} is both listed and ignored")
    subject, root = _subject(document.member("subject"), predicate.member("resources"))
    releases = [r.release for r in resources.values() if r.release is not None]
    return Statement(
        subject, root, resources, ignored, options.member("allow_symlinks").boolean(), sharded,
        max(releases, default=None),
    )  # fmt: skip


def _subject(subject: Field, resources: Field) -> tuple[str, str]:
    entries = subject.items()
    if len(entries) != 1:
        raise subject.error(f"expected exactly one subject, found {len(entries)}")
    claimed = entries[0].member("digest").member("sha256")
    state = hashlib.sha256()
    for resource in resources.items():
        state.update(bytes.fromhex(resource.member("digest").text()))
    if claimed.hex(32) != state.digest():
        raise claimed.error("is not the digest of the resources", reason="root-mismatch")
    return entries[0].member("name").text(limit=4096), state.hexdigest()


def _resources(listed: Field, options: Field, *, sharded: bool) -> dict[str, Resource]:
    hash_type = options.member("hash_type")
    algorithm = hash_type.text()
    if algorithm not in _DIGEST_SIZES:
        raise hash_type.error(
            f"cannot verify {quote(algorithm)} digests; supported: {', '.join(_DIGEST_SIZES)}",
            reason="unsupported-algorithm",
        )
    entries = listed.items()
    if not entries:
        raise listed.error("lists no file", reason="empty-resources")
    shard_size = options.member("shard_size").integer(1) if sharded else None
    parts: dict[str, list[tuple[Part, Field]]] = {}
    for entry in entries:
        # The reference implementation writes the shard size into the algorithm's name.
        entry.member("algorithm").choice(algorithm, f"{algorithm}-sharded-{shard_size}")
        digest = entry.member("digest").hex(_DIGEST_SIZES[algorithm])
        name, begin, end = _place(entry.member("name"), sharded=sharded, alone=len(entries) == 1)
        if name in parts and not sharded:
            raise entry.member("name").error(
                f"{quote(name)} is listed twice", reason="duplicate-resource"
            )
        parts.setdefault(name, []).append((Part(begin, end, digest), entry))
    return {name: _resource(name, algorithm, found, shard_size) for name, found in parts.items()}


def _place(name: Field, *, sharded: bool, alone: bool) -> tuple[str, int, int | None]:
    """A resource's file name and byte range."""
    text, begin, end = name.text(limit=4096), 0, None
    if sharded:
        if not (match := _SHARD_NAME.fullmatch(text)) or max(len(match[2]), len(match[3])) > 19:
            raise name.error("expected the name of a shard, `path:begin:end`")
        text, begin, end = match[1], int(match[2]), int(match[3])
    if text == SINGLE_FILE:
        if not (alone or sharded):
            raise name.error("`.` stands for a single file, and there are several")
    elif problem := check_name(text):
        raise name.error(f"{quote(text)} {problem}", reason="name")
    return text, begin, end


def _resource(
    name: str, algorithm: str, found: list[tuple[Part, Field]], shard_size: int | None
) -> Resource:
    found.sort(key=lambda item: item[0].begin)
    if shard_size is not None:
        _check_shards(found, shard_size)
    entry = found[0][1]
    tree = bound_name = release = None
    if (notes := entry.get("annotations")) and (ours := notes.get(ANNOTATION)):
        if block := ours.get("tree"):
            tree = TreeReference(
                block.member("root").hex(32), block.member("sidecar").text(limit=4096)
            )
            if problem := check_name(tree.sidecar):
                raise block.member("sidecar").error(f"{quote(tree.sidecar)} {problem}")
        bound_name = value.text(limit=4096) if (value := ours.get("name")) else None
        release = value.integer() if (value := ours.get("release")) else None
    parts = tuple(part for part, _ in found)
    return Resource(name, algorithm, parts, tree, bound_name, release)


def _check_shards(found: Sequence[tuple[Part, Field]], shard_size: int) -> None:
    expected = 0
    for number, (part, entry) in enumerate(found, 1):
        assert part.end is not None
        full = part.end - part.begin == shard_size
        last = number == len(found) and 0 < part.end - part.begin < shard_size
        if part.begin != expected or not (full or last):
            raise entry.member("name").error(
                "the shards of this file overlap, leave a gap or have the wrong size",
                reason="shards",
            )
        expected = part.end


def _ignored(paths: Field | None) -> tuple[str, ...]:
    """The paths left out; none may be the model itself, leave it, or be a pattern."""
    found = []
    for path in paths.items() if paths else ():
        text = path.text(limit=4096)
        problem = check_name(text.rstrip("/"))
        if problem or any(c in text for c in "*?["):
            raise path.error(
                f"{quote(text)} {problem or 'is a pattern'}; nothing but plain paths inside the "
                "model can be left out", reason="ignore-paths",
            )  # fmt: skip
        found.append(text.rstrip("/"))
    return tuple(found)


def covers(paths: Iterable[str], name: str) -> bool:
    """Whether `name` is one of `paths` or lies below one."""
    return any(name == path or name.startswith(f"{path}/") for path in paths)


def build_statement(
    subject: str, resources: Sequence[Resource], ignored: Iterable[str] = ()
) -> bytes:
    """The payload for whole-file SHA-256 `resources`, sorted by name (OMS section 6)."""
    entries: list[dict[str, Any]] = []
    root = hashlib.sha256()
    for resource in sorted(resources, key=lambda item: item.name):
        digest = resource.parts[0].digest
        root.update(digest)
        entry: dict[str, Any] = {
            "name": resource.name, "digest": digest.hex(), "algorithm": resource.algorithm,
        }  # fmt: skip
        if notes := _annotations(resource):
            entry["annotations"] = {ANNOTATION: notes}
        entries.append(entry)
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": subject, "digest": {"sha256": root.hexdigest()}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": sorted({*DEFAULT_IGNORED, *ignored}),
            },
            "resources": entries,
        },
    }
    return json.dumps(statement, ensure_ascii=False, separators=(",", ":")).encode()


def _annotations(resource: Resource) -> dict[str, Any]:
    notes: dict[str, Any] = {}
    if resource.bound_name is not None:
        notes["name"] = resource.bound_name
    if resource.release is not None:
        notes["release"] = resource.release
    if resource.tree is not None:
        notes["tree"] = {"root": resource.tree.root.hex(), "sidecar": resource.tree.sidecar}
    return notes


def build_bundle(
    payload: bytes,
    signature: bytes,
    *,
    hint: str | None = None,
    certificates: Iterable[bytes] = (),
) -> bytes:
    """The signature file: with the `hint` of a key, or a chain of DER `certificates`."""
    material: dict[str, Any] = {"tlogEntries": []}
    if hint is not None:
        material["publicKey"] = {"hint": hint}
    else:
        chain = [{"rawBytes": base64.b64encode(der).decode()} for der in certificates]
        material["x509CertificateChain"] = {"certificates": chain}
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": material,
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, separators=(",", ":")).encode() + b"\n"
