"""OpenSSF Model Signing v1.0 bundles: bytes to claims and back.

A bundle has four layers, each of another specification: a Sigstore bundle v0.3 (JSON) holds a DSSE
envelope, which signs an in-toto Statement v1, whose predicate (OMS section 5) lists the files and
their digests. Parsing is stricter than the specifications require: exactly one signature and one
kind of verification material, unique and sorted names, no empty list, no path outside the model,
and a subject digest that is recomputed.

Extensions of this package are in the ``annotations`` of a resource, which the specification tells
verifiers to ignore: the root of the file's block tree, a release number, the model's id, and the name
of a single file.

Rules: no I/O, and no cryptography but SHA-256. `parse_bundle` reads the container of a signature
that is not verified yet, so its cost is bounded; `parse_statement` is called only for a payload
whose signature was verified. A parsed bundle is a claim.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal

from ...errors import quote
from ..content.resources import Part, Resource, TreeReference
from ..documents import Field, parse_json
from ..errors import DocumentError
from ..files import check_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "DEFAULT_IGNORED",
    "MAX_BUNDLE",
    "Bundle",
    "Statement",
    "build_bundle",
    "build_statement",
    "covers",
    "pae",
    "parse_bundle",
    "parse_statement",
    "root_digest",
]

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
MEDIA_TYPES: Final = (MEDIA_TYPE, "application/vnd.dev.sigstore.bundle+json;version=0.3")
"""Both spellings of version 0.3 (sigstore_bundle.proto)."""

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
ANNOTATION: Final = "safeweights"
SINGLE_FILE: Final = "."
"""The name that the reference implementation gives to the one resource of a single file."""

DEFAULT_IGNORED: Final = (".git", ".gitattributes", ".github", ".gitignore")
"""Top-level names that no manifest lists (OMS section 6.2)."""

MAX_BUNDLE: Final = 64 << 20
"""Largest signature file in bytes: room for the digests of about 300,000 files."""

_MAX_TOKENS: Final = 20_000
"""Most punctuation of a bundle's JSON. A container has under 1,000 such characters, since the
statement is a base64 string in it; 60 MB of nested arrays would take 100 s and 2 GB to parse."""

MAX_ID: Final = 1024
"""Longest id of a model, in characters."""

_MAX_SIGNATURE: Final = 4096
_MAX_CERTIFICATE: Final = 1 << 16
_MAX_TIMESTAMP: Final = 1 << 16
_MAX_CERTIFICATES: Final = 10
_MAX_TIMESTAMPS: Final = 32
_DIGEST_SIZES: Final = {"sha256": 32, "blake2b": 64, "blake3": 32}
_SHARD_NAME = re.compile(r"(.+):(0|[1-9][0-9]*):([1-9][0-9]*)", re.DOTALL)

Method = Literal["key", "certificate", "keyless"]


@dataclass(frozen=True)
class Statement:
    """A signed list of files.

    Attributes:
        subject: The model's name as the signer knew it; informational.
        root: SHA-256 over all digests (OMS section 6.5.1), hexadecimal: identifies the contents.
        resources: By name.
        ignored: Paths that the signer left out, those of the specification included.
        allow_symlinks: Whether the signer followed symbolic links.
        sharded: Whether files were hashed in shards.
        release: The highest release number recorded.
        model_id: The model's id, where the signer recorded one.
    """

    subject: str
    root: str
    resources: dict[str, Resource]
    ignored: tuple[str, ...]
    allow_symlinks: bool
    sharded: bool
    release: int | None
    model_id: str | None = None


@dataclass(frozen=True)
class Bundle:
    """A signature file, parsed but not verified.

    Attributes:
        method: The kind of verification material.
        hint: Of the key, where given.
        raw_key: The public key itself, as bundles before v1.1 carry it.
        certificates: DER, leaf first.
        timestamps: RFC 3161 responses in DER.
        payload: The signed bytes.
        signature: DER of the ECDSA signature.
        source: The whole file, for verifiers that parse it themselves.
        path: Where it was read.
    """

    method: Method
    hint: str | None
    raw_key: bytes | None
    certificates: tuple[bytes, ...]
    timestamps: tuple[bytes, ...]
    payload: bytes
    signature: bytes
    source: bytes
    path: str | None = None


def pae(payload: bytes) -> bytes:
    """The bytes that are signed: DSSE's pre-authentication encoding of an in-toto payload.

    >>> pae(b"{}")
    b'DSSEv1 28 application/vnd.in-toto+json 2 {}'
    """
    return b"DSSEv1 %d %b %d %b" % (
        len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload,
    )  # fmt: skip


def parse_bundle(data: bytes, *, path: str | None = None) -> Bundle:
    """Parse the bundle in `data`; nothing in it is verified.

    Cost: linear, about 0.1 s for the largest bundle; at most `MAX_BUNDLE` bytes are taken.

    Raises:
        DocumentError: Not a v0.3 bundle with one DSSE signature; names the field.
    """
    if len(data) > MAX_BUNDLE:
        raise DocumentError(f"longer than {MAX_BUNDLE} bytes", reason="too-large", path=path)
    if sum(map(data.count, (b'"', b",", b":", b"[", b"{", b"\\"))) > _MAX_TOKENS:
        raise DocumentError(
            f"more than {_MAX_TOKENS} values; a signature bundle has few",
            reason="too-large",
            path=path,
        )
    document = parse_json(data, path=path)
    document.member("mediaType").choice(*MEDIA_TYPES)
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
        keyid.text(limit=4096)  # an unauthenticated hint, which DSSE tells verifiers not to rely on
    material = document.member("verificationMaterial")
    method, hint, raw_key, certificates = _material(material)
    return Bundle(
        method=method,
        hint=hint,
        raw_key=raw_key,
        certificates=certificates,
        timestamps=_timestamps(material.get("timestampVerificationData")),
        payload=envelope.member("payload").base64(limit=MAX_BUNDLE),
        signature=signatures[0].member("sig").base64(limit=_MAX_SIGNATURE),
        source=data,
        path=path,
    )


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
        return "keyless", None, None, (found.member("rawBytes").base64(limit=_MAX_CERTIFICATE),)
    if kinds[0] == "publicKey":
        hint, raw = found.get("hint"), found.get("rawBytes")
        if not hint and not raw:
            raise found.error("has neither hint nor rawBytes")
        key = raw.base64(limit=_MAX_CERTIFICATE) if raw else None
        return "key", hint.text(limit=256) if hint else None, key, ()
    chain = found.member("certificates").items()
    if not 1 <= len(chain) <= _MAX_CERTIFICATES:
        raise found.member("certificates").error(f"expected 1 to {_MAX_CERTIFICATES} certificates")
    return (
        "certificate", None, None,
        tuple(entry.member("rawBytes").base64(limit=_MAX_CERTIFICATE) for entry in chain),
    )  # fmt: skip


def _timestamps(data: Field | None) -> tuple[bytes, ...]:
    listed = data.get("rfc3161Timestamps") if data else None
    found = listed.items() if listed else []
    if listed and len(found) > _MAX_TIMESTAMPS:
        raise listed.error(f"expected at most {_MAX_TIMESTAMPS} timestamps")
    return tuple(entry.member("signedTimestamp").base64(limit=_MAX_TIMESTAMP) for entry in found)


def parse_statement(payload: bytes, *, path: str | None = None) -> Statement:
    """Parse the statement in a bundle's payload, whose signature must have been verified before.

    Cost: linear, about 18 us for each file listed.

    Raises:
        DocumentError: Not an OMS v1.0 statement, or inconsistent in itself; names the field.
    """
    document = parse_json(payload, path=path)
    document.member("_type").equals(STATEMENT_TYPE)
    document.member("predicateType").equals(PREDICATE_TYPE)
    predicate = document.member("predicate")
    options = predicate.member("serialization")
    sharded = options.member("method").choice("files", "shards") == "shards"
    if not sharded and (size := options.get("shard_size")):
        raise size.error("must be absent where the method is files (OMS section 5.2.2)")
    places = _places(predicate.member("resources"), options, sharded=sharded)
    resources = _resources(places, options, sharded=sharded)
    ignored = _ignored(options.get("ignore_paths"))
    left_out = (*DEFAULT_IGNORED, *ignored)
    for name in resources:
        if name != SINGLE_FILE and covers(left_out, name):
            raise options.error(f"{quote(name)} is both listed and ignored")
    releases = [r.release for r in resources.values() if r.release is not None]
    return Statement(
        subject=_subject(document.member("subject"), places),
        root=root_digest(part.digest for _, part, _ in places),
        resources=resources,
        ignored=ignored,
        allow_symlinks=options.member("allow_symlinks").boolean(),
        sharded=sharded,
        release=max(releases, default=None),
        model_id=_model_id(resources, predicate.member("resources")),
    )


def root_digest(digests: Iterable[bytes]) -> str:
    """SHA-256 over raw digests in the order of their resources (OMS section 6.5.1), hexadecimal."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


_Places = list[tuple[str, Part, Field]]
"""Every entry of a statement: the file's name, the byte range and digest, and where it stands."""


def _subject(subject: Field, places: _Places) -> str:
    entries = subject.items()
    if len(entries) != 1:
        raise subject.error(f"expected exactly one subject, found {len(entries)}")
    claimed = entries[0].member("digest").member("sha256")
    if claimed.hex(32).hex() != root_digest(part.digest for _, part, _ in places):
        raise claimed.error("is not the digest of the resources", reason="root-mismatch")
    name = entries[0].member("name")
    if not (text := name.text(limit=4096)):
        raise name.error("must not be empty (OMS section 6.5.1)")
    return text


def _places(listed: Field, options: Field, *, sharded: bool) -> _Places:
    """Every listed entry, in the order of the document, which must be sorted."""
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
    # The reference implementation writes the shard size into the algorithm's name.
    size = options.member("shard_size").integer(1) if sharded else None
    algorithms = (algorithm, f"{algorithm}-sharded-{size}") if sharded else (algorithm,)
    found: _Places = []
    for entry in entries:
        entry.member("algorithm").choice(*algorithms)
        digest = entry.member("digest").hex(_DIGEST_SIZES[algorithm])
        name, begin, end = _place(entry.member("name"), sharded=sharded, alone=len(entries) == 1)
        found.append((name, Part(begin, end, digest), entry))
    _check_order(found, listed)
    return found


def _check_order(places: _Places, listed: Field) -> None:
    """Refuse resources that are not in order, or listed twice.

    OMS section 5.2.1 sorts by the code points of the names. The reference implementation sorts by
    the parts of the path, and shards by their first byte, which is accepted too.
    """
    names = [entry.value["name"] for _, _, entry in places]
    if len(set(names)) != len(names):
        seen: set[str] = set()
        for name, (_, _, entry) in zip(names, places, strict=True):
            if name in seen:
                raise entry.member("name").error(
                    f"{quote(name)} is listed twice", reason="duplicate-resource"
                )
            seen.add(name)
    by_parts = [(name.split("/"), part.begin) for name, part, _ in places]
    if not (_ascending(names) or _ascending(by_parts)):
        raise listed.error("is not sorted by name (OMS section 5.2.1)", reason="unsorted-resources")


def _ascending(values: Sequence[Any]) -> bool:
    return all(first < second for first, second in pairwise(values))


def _resources(places: _Places, options: Field, *, sharded: bool) -> dict[str, Resource]:
    algorithm = options.member("hash_type").text()
    shard_size = options.member("shard_size").integer(1) if sharded else None
    parts: dict[str, list[tuple[Part, Field]]] = {}
    for name, part, entry in places:
        parts.setdefault(name, []).append((part, entry))
    return {name: _resource(name, algorithm, found, shard_size) for name, found in parts.items()}


def _model_id(resources: dict[str, Resource], listed: Field) -> str | None:
    """The one id that the resources carry."""
    named = {resource.model_id for resource in resources.values()} - {None}
    if len(named) > 1:
        raise listed.error("the resources belong to models of different ids")
    return next(iter(named), None)


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
    tree = bound_name = release = model_id = None
    if (notes := entry.get("annotations")) and (ours := notes.get(ANNOTATION)):
        if block := ours.get("tree"):
            tree = TreeReference(
                block.member("root").hex(32), block.member("sidecar").text(limit=4096)
            )
            if problem := check_name(tree.sidecar):
                raise block.member("sidecar").error(f"{quote(tree.sidecar)} {problem}")
        bound_name = value.text(limit=4096) if (value := ours.get("name")) else None
        release = value.integer() if (value := ours.get("release")) else None
        model_id = value.text(limit=MAX_ID) if (value := ours.get("id")) else None
    parts = tuple(part for part, _ in found)
    return Resource(name, algorithm, parts, tree, bound_name, release, model_id)


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
    """The paths left out: plain paths inside the model, neither the model itself nor patterns."""
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
    subject: str,
    resources: Sequence[Resource],
    ignored: Iterable[str] = (),
    *,
    allow_symlinks: bool = False,
) -> bytes:
    """Build the payload for whole-file SHA-256 `resources`, sorted by name (OMS section 6)."""
    entries: list[dict[str, Any]] = []
    ordered = sorted(resources, key=lambda item: item.name)
    for resource in ordered:
        digest = resource.parts[0].digest
        entry: dict[str, Any] = {
            "name": resource.name, "digest": digest.hex(), "algorithm": resource.algorithm,
        }  # fmt: skip
        if notes := _annotations(resource):
            entry["annotations"] = {ANNOTATION: notes}
        entries.append(entry)
    root = root_digest(resource.parts[0].digest for resource in ordered)
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": subject, "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": allow_symlinks,
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
    if resource.model_id is not None:
        notes["id"] = resource.model_id
    if resource.tree is not None:
        notes["tree"] = {"root": resource.tree.root.hex(), "sidecar": resource.tree.sidecar}
    return notes


def build_bundle(
    payload: bytes,
    signature: bytes,
    *,
    hint: str | None = None,
    certificates: Iterable[bytes] = (),
    timestamps: Iterable[bytes] = (),
) -> bytes:
    """Build a signature file with the `hint` of a key, or a chain of DER `certificates`.

    The `timestamps` are RFC 3161 responses in DER (sigstore_bundle.proto, TimestampVerificationData).
    """
    material: dict[str, Any] = {"tlogEntries": []}
    if hint is not None:
        material["publicKey"] = {"hint": hint}
    else:
        chain = [{"rawBytes": base64.b64encode(der).decode()} for der in certificates]
        material["x509CertificateChain"] = {"certificates": chain}
    stamps = [{"signedTimestamp": base64.b64encode(der).decode()} for der in timestamps]
    if stamps:
        material["timestampVerificationData"] = {"rfc3161Timestamps": stamps}
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
