"""Verification: the bundle, its signature, and every file of the model.

Verification is stricter than OMS v1.0 and its reference implementation: a certificate must be valid
at the time of the signature and belong to a named identity; a folder may hold only files that are
listed or declared ignored; links are refused unless the signer followed them (or they are those of
the Hub's cache, see `linked`); and unsigned files are reported. All problems of a folder are found
before it is refused; `reason` names the first.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from ...display import Displayed
from ...errors import quote
from ...storage import is_url, open_source
from ...storage.parallel import in_threads
from ...storage.places import absolute, basename, is_folder, join, parent, shown
from ...text import plural
from ..content.digests import FileDigest, file_cost, hash_file
from ..content.resources import PartHasher, Resource, changed
from ..errors import DocumentError, TrustError, VerificationError, refusing
from ..files import KEY_FILE, KEY_SIGNATURE, Entry, is_bookkeeping, list_folder, read_document
from .bundle import (
    DEFAULT_IGNORED,
    MAX_BUNDLE,
    SINGLE_FILE,
    Bundle,
    Statement,
    covers,
    pae,
    parse_bundle,
    parse_statement,
)
from .certificates import CertificateTrust, certified_key, verify_chain
from .discovery import FOLDER_LEVELS, Located, locate
from .keyless import KeylessTrust, verify_keyless
from .keys import PublicKey, load_public_key
from .linked import is_blob_link
from .patterns import is_pattern
from .signing import SIGNATURE, WEIGHTS
from .timestamps import KeyTrust, TimestampTrust, verify_timestamps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

__all__ = [
    "SignedBy",
    "Trust",
    "Verification",
    "check_signature",
    "key_hints",
    "read_bundle",
    "read_located",
    "resource_of",
    "verify",
]

Trust = PublicKey | KeyTrust | CertificateTrust | KeylessTrust
"""The signers that can be required."""

_CACHED = 1 << 22
"""Largest signature file in bytes whose parsed form is kept; it takes about three times as much."""


@dataclass(frozen=True)
class SignedBy:
    """A verified signer.

    Attributes:
        method: ``"key"``, ``"certificate"`` or ``"keyless"``.
        key_hint: SHA-256 of the public key's PEM; None for keyless.
        subject: Of the certificate.
        issuer: Of the certificate.
        certificate_sha256: The certificate's fingerprint.
        identity: The keyless identity.
        oidc_issuer: The OpenID Connect provider that vouched for the identity.
        recorded: When the transparency log recorded the signature (RFC 3339).
        timestamp: The earliest trusted timestamp over the signature (RFC 3339).
        pattern: The pattern that the keyless identity matched, where one was required.
        revocable: Fingerprints by which a certificate signature can be revoked.
    """

    method: str
    key_hint: str | None = None
    subject: str | None = None
    issuer: str | None = None
    certificate_sha256: str | None = None
    identity: str | None = None
    oidc_issuer: str | None = None
    recorded: str | None = None
    timestamp: str | None = None
    pattern: str | None = None
    revocable: frozenset[str] = field(default=frozenset(), repr=False)

    def fingerprint(self) -> str:
        """One line that stays the same as long as the same signer signs.

        Of a keyless identity that matched a pattern, it is the pattern: the identity of a workflow
        names the tag, and is another one in each release.
        """
        if self.method == "key":
            return f"key:{self.key_hint}"
        if self.method == "certificate":
            return f"certificate:{self.issuer}/{self.subject}"
        return f"keyless:{self.oidc_issuer}/{self.pattern or self.identity}"

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not None, for JSON."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        del found["revocable"]
        return found


@dataclass(frozen=True, repr=False)
class Verification(Displayed):
    """A model of which every listed file is as signed.

    Attributes:
        path: The file or folder.
        signature: The signature file.
        signed_by: The verified signer.
        statement: The signed list of files.
        files: The files that were read, by name; ``sha256`` is of the bytes that were compared.
        unsigned: Files that are present but not covered: ignored by the signer, or by the caller.
    """

    path: str
    signature: str
    signed_by: SignedBy
    statement: Statement
    files: dict[str, FileDigest]
    unsigned: tuple[str, ...]

    def _summary(self) -> str:
        unsigned = f", {plural(len(self.unsigned), 'file')} not signed" if self.unsigned else ""
        files = plural(len(self.files), "file")
        return f"{quote(self.path, 300)}, {files} as signed by {self.signed_by.fingerprint()}{unsigned}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
        signed = (("signed", name, each.sha256) for name, each in self.files.items())
        return ("", "file", "sha256"), chain(signed, (("unsigned", n, "") for n in self.unsigned))


def read_located(located: Located, *, beneath: str | None = None) -> Bundle:
    """`read_bundle` of a signature that was looked up; of a URL, the answer then is the answer now."""
    path = located.signature
    if located.found is False and is_url(path):
        raise _missing(path)
    return read_bundle(path, beneath=beneath, data=located.data)


def _missing(path: str) -> VerificationError:
    return VerificationError("there is no signature file", reason="signature-missing", path=path)


def read_bundle(path: str, *, beneath: str | None = None, data: bytes | None = None) -> Bundle:
    """Parse the signature file at `path`, in the folder `beneath`; nothing is verified.

    Args:
        path: The file.
        beneath: See `read_document`.
        data: The bytes of the file, if they were read already: only of a URL.

    Cost: the file is read each time, and parsed again only where its bytes are other ones: loading
    the shards of a model reads one signature many times.

    Raises:
        VerificationError: ``signature-missing``, or ``not-a-file``.
        DocumentError: Not a bundle.
    """
    try:
        if data is None or beneath is not None:
            data = read_document(path, limit=MAX_BUNDLE, beneath=beneath, elsewhere=True)
        return _parsed(data, path) if len(data) <= _CACHED else parse_bundle(data, path=path)
    except FileNotFoundError:
        raise _missing(path) from None
    except DocumentError as error:
        if error.reason != "not-a-file":
            raise
        raise VerificationError(
            "the signature is not a regular file",
            reason=error.reason, path=path,
        ) from None  # fmt: skip


def _parsed(data: bytes, path: str) -> Bundle:
    # Comparing the bytes with those of the last time takes a tenth of hashing them for a cache.
    known = _RECENT.get(path)
    if known is None or known.source != data:
        known = parse_bundle(data, path=path)
        if len(_RECENT) >= _KEPT:
            _RECENT.clear()
        _RECENT[path] = known
    return known


_KEPT = 4
_RECENT: dict[str, Bundle] = {}


def check_signature(bundle: Bundle, trust: Trust) -> SignedBy:
    """Verify that the signer required by `trust` signed `bundle`; nothing of the payload is parsed.

    Raises:
        TypeError: `trust` is none of the four kinds.
        VerificationError: ``wrong-method``, ``wrong-key``, ``bad-signature``, ``timestamp``, or what
            `certificates` and `keyless` refuse.
    """
    wanted = _METHODS.get(type(trust))
    if wanted is None:
        raise TypeError(
            "trust must be a PublicKey, KeyTrust, CertificateTrust or KeylessTrust, "
            f"not {type(trust).__name__}; load_public_key reads the first from a file"
        )
    if bundle.method != wanted:
        raise VerificationError(
            f"the signing method is {bundle.method}, but {wanted} is required",
            reason="wrong-method", path=bundle.path,
        )  # fmt: skip
    if isinstance(trust, KeylessTrust):
        return _check_keyless(bundle, trust)
    if isinstance(trust, CertificateTrust):
        return _check_certificate(bundle, trust)
    key = trust if isinstance(trust, PublicKey) else trust.key
    _check_hint(bundle, key)
    key.verify(bundle.signature, pae(bundle.payload), path=bundle.path)
    if isinstance(trust, PublicKey):
        return SignedBy("key", key_hint=key.hint)
    times = _times(bundle, trust.timestamps)
    trust.check(times, path=bundle.path)
    return SignedBy("key", key_hint=key.hint, timestamp=_first(times))


_METHODS = {
    PublicKey: "key",
    KeyTrust: "key",
    CertificateTrust: "certificate",
    KeylessTrust: "keyless",
}


def _check_keyless(bundle: Bundle, trust: KeylessTrust) -> SignedBy:
    facts = verify_keyless(bundle, trust)
    return SignedBy(
        "keyless", identity=facts.identity, oidc_issuer=trust.issuer, recorded=facts.recorded,
        pattern=trust.identity if is_pattern(trust.identity) else None,
    )  # fmt: skip


def _check_certificate(bundle: Bundle, trust: CertificateTrust) -> SignedBy:
    times = _times(bundle, trust.timestamps) if trust.timestamps else ()
    key, facts = verify_chain(bundle.certificates, trust, times=times, path=bundle.path)
    key.verify(bundle.signature, pae(bundle.payload), path=bundle.path)
    return SignedBy(
        "certificate", key_hint=key.hint, subject=facts.subject, issuer=facts.issuer,
        certificate_sha256=facts.sha256, timestamp=_first(times), revocable=facts.fingerprints,
    )  # fmt: skip


def _times(bundle: Bundle, trust: TimestampTrust) -> tuple[datetime, ...]:
    return verify_timestamps(bundle.timestamps, bundle.signature, trust, path=bundle.path)


def _first(times: tuple[datetime, ...]) -> str | None:
    return times[0].isoformat() if times else None


def key_hints(bundle: Bundle) -> set[str]:
    """The hints of the keys that `bundle` claims to be signed with; nothing is verified.

    Raises:
        DocumentError: A key or certificate that cannot be read.
    """
    named = {bundle.hint} if bundle.hint is not None else set()
    if bundle.raw_key is not None:
        named.add(load_public_key(bundle.raw_key, path=bundle.path).hint)
    if bundle.certificates:
        named.add(certified_key(bundle.certificates[0], path=bundle.path).hint)
    return named


def _check_hint(bundle: Bundle, key: PublicKey) -> None:
    named = key_hints(bundle)
    if named != {key.hint}:
        listed = ", ".join(sorted(quote(hint, 70) for hint in named))
        raise VerificationError(
            f"signed with the key {listed}, but {quote(key.hint)} is required", reason="wrong-key",
            path=bundle.path,
        )  # fmt: skip


def verify(
    path: str | os.PathLike[str],
    trust: Trust,
    *,
    signature: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    ignore_unsigned: bool = False,
    allow_symlinks: bool = False,
    trees: bool = False,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Verification:
    """Verify a file or a folder against its signature, reading every listed byte.

    Of an encrypted model that is the ciphertext, so that no key is needed. Its key files change with the
    recipients; each must have a signature of its own by the same signer.

    Args:
        path: A file or a folder.
        trust: The signer that is required.
        signature: The signature file; by default, the one that `discovery` finds.
        base: For one file of a signed folder, that folder, where the signature is kept elsewhere; by
            default, the folder of the signature.
        ignore_unsigned: Allow files that are not listed; they are reported as `unsigned`.
        allow_symlinks: Follow links to files even if the signer did not; their content must be as
            signed all the same.
        trees: Also build block trees of the weights, for later partial reads.
        workers: Files read at a time; by default, the number of cores.
        progress: Called with the bytes read so far, from the calling thread.

    Raises:
        VerificationError: Not signed by the required signer, or changed since.
        RefusedDocumentError: The signature file is malformed; it is a `VerificationError` too.
        DocumentError: A certificate or root in `trust` is malformed.
        OSError: A file cannot be read.
    """
    path = absolute(os.fspath(path))
    is_whole = is_folder(path)
    if signature is None:
        located = locate(path, above=0 if is_whole else FOLDER_LEVELS)
        base = base or (None if located.alone else located.base)
    else:
        located = Located(os.fspath(signature), path)
    signature = absolute(located.signature)
    with refusing(signature):
        bundle = read_located(located._replace(signature=signature))
        signed_by = check_signature(bundle, trust)
        statement = parse_statement(bundle.payload, path=signature)
    if is_whole:
        root, follow = path, allow_symlinks or statement.allow_symlinks
        wanted, unsigned = _match_folder(path, signature, statement, ignore_unsigned)
    else:
        root, follow = parent(path), True
        resource = resource_of(statement, path, signature, base=base)
        wanted, unsigned = {basename(path): resource}, ()

    def one(item: tuple[str, Resource], tell: Callable[[int], object]) -> FileDigest:
        file = join(root, item[0])
        linked = follow or is_blob_link(file)
        return hash_resource(file, *item, tree=trees, follow=linked, progress=tell)

    found = in_threads(
        one, wanted.items(), cost=lambda item: file_cost(join(root, item[0])),
        workers=workers, progress=progress,
    )  # fmt: skip
    files = {file.name: file for file in found}
    keys = [name for name in unsigned if name.endswith(KEY_FILE)]
    for name in keys:  # of an encrypted model: each is signed on its own, because it changes
        key_file = join(root, name)
        own = verify(key_file, trust, signature=f"{key_file}.sig", workers=workers)
        files[name] = own.files[os.path.basename(name)]
    rest = tuple(name for name in unsigned if not name.endswith((KEY_FILE, KEY_SIGNATURE)))
    return Verification(path, signature, signed_by, statement, files, rest)


def _match_folder(
    root: str, signature: str, statement: Statement, ignore_unsigned: bool
) -> tuple[dict[str, Resource], tuple[str, ...]]:
    """Match the folder's files with the statement: (the files to hash, the unsigned ones).

    Raises:
        VerificationError: ``extra-file``, ``missing-file``, or ``wrong-model``.
    """
    problems: list[tuple[str, str]] = []
    unsigned: list[str] = []
    present = set()
    if SINGLE_FILE in statement.resources:
        raise VerificationError(
            "the signature is that of a single file, not of a folder", reason="wrong-model",
            path=signature,
        )  # fmt: skip
    left_out = (*DEFAULT_IGNORED, *statement.ignored)
    for entry in list_folder(root):
        if entry.name in statement.resources:
            present.add(entry.name)
        elif _same_file(join(root, entry.name), signature):
            continue
        elif entry.name.endswith((KEY_FILE, KEY_SIGNATURE)):
            unsigned.append(entry.name)  # each key file has a signature of its own, see `verify`
        elif ignore_unsigned or covers(left_out, entry.name) or is_bookkeeping(entry.name):
            unsigned.append(entry.name)
        elif statement.sharded and _is_empty(root, entry):
            unsigned.append(entry.name)  # shards cannot list an empty file
        elif entry.name == SIGNATURE and _is_signature(root, entry):
            unsigned.append(entry.name)  # another signer's, beside the detached one in use
        else:
            problems.append(("extra-file", f"{quote(entry.name)} is not part of what was signed"))
    missing = sorted(statement.resources.keys() - present)
    problems += [("missing-file", f"{quote(name)} is missing") for name in missing]
    if problems:
        listed = "; ".join(text for _, text in problems[:10])
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise VerificationError(listed + more, reason=problems[0][0], path=root)
    return dict(statement.resources), tuple(unsigned)


def _same_file(path: str, signature: str) -> bool:
    """Whether both names are of the signature file itself, which no manifest lists (OMS 6.2).

    The folder may be given by another spelling, or through a link.
    """
    if is_url(path):
        return path == signature
    if os.path.basename(path) != os.path.basename(signature) or os.path.islink(path):
        return False
    return os.path.realpath(path) == os.path.realpath(signature)


def _is_signature(root: str, entry: Entry) -> bool:
    if entry.kind != "file":
        return False
    try:
        read_bundle(join(root, entry.name))
    except TrustError:
        return False
    return True


def _is_empty(root: str, entry: Entry) -> bool:
    path = join(root, entry.name)
    if is_url(path):
        return open_source(path).size == 0
    return entry.kind == "file" and os.stat(path, follow_symlinks=False).st_size == 0


def resource_of(
    statement: Statement,
    path: str,
    signature: str,
    *,
    base: str | os.PathLike[str] | None = None,
) -> Resource:
    """Find what `statement`, read from `signature`, lists for the file at `path`.

    Args:
        statement: A verified statement.
        path: The file.
        signature: The signature file.
        base: The folder that the statement's names are relative to; by default, the signature's.

    Raises:
        VerificationError: ``not-listed``, or ``renamed``: signed as a file of another name.
    """
    name = basename(path)
    if single := statement.resources.get(SINGLE_FILE):
        if single.bound_name not in {None, name}:
            raise VerificationError(
                f"the file was signed under the name {quote(str(single.bound_name))}",
                reason="renamed", path=path,
            )  # fmt: skip
        return single
    inside = _relative(path, os.fspath(base) if base else parent(signature))
    found = statement.resources.get(inside)
    if found is None and base is None and len(statement.resources) == 1:
        found = statement.resources.get(name)  # the signature of one file, kept elsewhere
    if found is None:
        raise VerificationError(
            f"the signature {quote(shown(signature), 300)} does not list the file {quote(inside, 300)}",
            reason="not-listed", path=path,
        )  # fmt: skip
    return found


def _relative(path: str, base: str) -> str:
    """`path` relative to `base`, both of which may be reached through links.

    The last part is the name that was signed, also where it is a link to the content.
    """
    if is_url(path):
        path, folder = shown(path), shown(absolute(base))
        return path.removeprefix(f"{folder}/") if path.startswith(f"{folder}/") else path
    folder, name = os.path.split(os.path.abspath(path))
    try:
        inside = os.path.relpath(os.path.realpath(folder), os.path.realpath(base))
    except ValueError:  # another drive of Windows
        return name
    return os.path.normpath(os.path.join(inside, name)).replace(os.sep, "/")


def hash_resource(
    path: str,
    name: str,
    resource: Resource,
    *,
    tree: bool = False,
    follow: bool = True,
    progress: Callable[[int], object] | None = None,
) -> FileDigest:
    """Read a file once and compare it with `resource`. The options are those of `hash_file`.

    Raises:
        VerificationError: ``digest-mismatch``, ``size-mismatch`` or ``tree-mismatch``.
        OSError: The file cannot be read.
    """
    parts = None if resource.sha256 else PartHasher(resource)
    wants = tree and (resource.tree is not None or name.endswith(WEIGHTS))
    file = hash_file(
        path, name=name, tree=wants, follow=follow, also=parts.update if parts else None,
        progress=progress,
    )  # fmt: skip
    if parts:
        parts.finish(file.size, path)
    elif file.sha256 != resource.sha256:
        raise changed(path, file.sha256, resource)
    if resource.tree and file.tree and file.tree.root != resource.tree.root:
        raise VerificationError(
            "the signed block tree does not match the signed content", reason="tree-mismatch",
            path=path,
        )  # fmt: skip
    return file
