"""Is this what was signed, and by whom: bundle, signature, and every file of the model.

Stricter than the specification asks and than its reference implementation is: certificates must be
valid now and belong to a named identity, a folder holds nothing that is not listed or declared
ignored, links are refused unless the signer followed them, and what was ignored is reported, so
that nobody takes it for signed. Every problem of a folder is found before the refusal, which names
the first in its `reason`.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ...errors import quote
from ...storage.parallel import in_threads
from ..content.digests import FileDigest, hash_file
from ..content.resources import PartHasher, Resource, changed
from ..errors import DocumentError, VerificationError, refusing
from ..files import Entry, list_folder, read_document
from .bundle import (
    DEFAULT_IGNORED,
    SINGLE_FILE,
    Bundle,
    Statement,
    covers,
    pae,
    parse_bundle,
    parse_statement,
)
from .certificates import CertificateTrust, certified_key, verify_chain
from .keyless import KeylessTrust, verify_keyless
from .keys import PublicKey, load_public_key
from .signing import signature_path

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "SignedBy",
    "Trust",
    "Verification",
    "check_signature",
    "find_signature",
    "key_hints",
    "read_bundle",
    "resource_of",
    "verify",
]

Trust = PublicKey | CertificateTrust | KeylessTrust
"""Who must have signed."""

_PARENTS = 4
"""How many folders upwards the signature of a folder is looked for, from one file in it."""


@dataclass(frozen=True)
class SignedBy:
    """A verified signer.

    Attributes:
        method: ``"key"``, ``"certificate"`` or ``"keyless"``.
        key_hint: SHA-256 of the public key's PEM, but for keyless.
        subject: Of the certificate.
        issuer: Of the certificate.
        certificate_sha256: The certificate's fingerprint.
        identity: The keyless identity.
        oidc_issuer: Who vouched for it.
        recorded: When the transparency log recorded it (RFC 3339).
    """

    method: str
    key_hint: str | None = None
    subject: str | None = None
    issuer: str | None = None
    certificate_sha256: str | None = None
    identity: str | None = None
    oidc_issuer: str | None = None
    recorded: str | None = None

    def fingerprint(self) -> str:
        """One line that stays the same as long as the same party signs."""
        if self.method == "key":
            return f"key:{self.key_hint}"
        if self.method == "certificate":
            return f"certificate:{self.issuer}/{self.subject}"
        return f"keyless:{self.oidc_issuer}/{self.identity}"

    def to_dict(self) -> dict[str, Any]:
        """What is known, for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Verification:
    """A model whose every listed file is what was signed.

    Attributes:
        path: The file or folder.
        signature: The signature file.
        signed_by: Who signed.
        statement: What was signed.
        files: What was read, by name; ``sha256`` is of the bytes that were compared.
        unsigned: Files that are there but not covered: ignored by the signer, or by the caller.
    """

    path: str
    signature: str
    signed_by: SignedBy
    statement: Statement
    files: dict[str, FileDigest]
    unsigned: tuple[str, ...]


def read_bundle(path: str) -> Bundle:
    """The signature file at `path`, parsed but not verified.

    Raises:
        VerificationError: ``signature-missing``, or ``not-a-file``.
        DocumentError: Not a bundle.
    """
    try:
        return parse_bundle(read_document(path), path=path)
    except FileNotFoundError:
        raise VerificationError(
            "there is no signature file", reason="signature-missing", path=path
        ) from None
    except DocumentError as error:
        if error.reason != "not-a-file":
            raise
        raise VerificationError(
            "there is no signature file, but something else in its place",
            reason=error.reason, path=path,
        ) from None  # fmt: skip


def check_signature(bundle: Bundle, trust: Trust) -> SignedBy:
    """Who signed `bundle`, once that is known to be who was asked for.

    Raises:
        VerificationError: ``wrong-method``, ``wrong-key``, ``bad-signature``, or what
            `certificates` and `keyless` refuse.
    """
    wanted = {PublicKey: "key", CertificateTrust: "certificate", KeylessTrust: "keyless"}
    if type(trust) not in wanted:
        kind = type(trust).__name__
        raise TypeError(
            f"a {kind} is nobody who can have signed; give a public key (`load_public_key`), a "
            "CertificateTrust or a KeylessTrust"
        )
    if bundle.method != wanted[type(trust)]:
        raise VerificationError(
            f"signed by the {bundle.method} method, expected {wanted[type(trust)]}",
            reason="wrong-method", path=bundle.path,
        )  # fmt: skip
    if isinstance(trust, KeylessTrust):
        recorded = verify_keyless(bundle, trust)
        return SignedBy(
            "keyless", identity=trust.identity, oidc_issuer=trust.issuer, recorded=recorded
        )
    if isinstance(trust, CertificateTrust):
        key, facts = verify_chain(bundle.certificates, trust, path=bundle.path)
        key.verify(bundle.signature, pae(bundle.payload), path=bundle.path)
        return SignedBy(
            "certificate", key_hint=key.hint, subject=facts.subject, issuer=facts.issuer,
            certificate_sha256=facts.sha256,
        )  # fmt: skip
    _check_hint(bundle, trust)
    trust.verify(bundle.signature, pae(bundle.payload), path=bundle.path)
    return SignedBy("key", key_hint=trust.hint)


def key_hints(bundle: Bundle) -> set[str]:
    """The hints of the keys that `bundle` says it was made with; nothing of that is verified.

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
        shown = ", ".join(sorted(quote(hint, 70) for hint in named))
        raise VerificationError(
            f"signed with the key {shown}, expected {quote(key.hint)}", reason="wrong-key",
            path=bundle.path,
        )  # fmt: skip


def find_signature(path: str) -> str:
    """The signature that covers `path`, by convention: `signature_path`, or model.sig above a file.

    Where there is none, the path at which there should be one. Which one is found decides nothing: a
    file that an attacker puts nearer must still be signed by whom the caller trusts, and list the
    file.
    """
    path = os.path.abspath(path)
    own = signature_path(path)
    if os.path.lexists(own) or os.path.isdir(path):
        return own
    folder = path
    for _ in range(_PARENTS):
        folder = os.path.dirname(folder)
        if os.path.lexists(candidate := os.path.join(folder, "model.sig")):
            return candidate
    return own


def verify(
    path: str | os.PathLike[str],
    trust: Trust,
    *,
    signature: str | os.PathLike[str] | None = None,
    ignore_unsigned: bool = False,
    allow_symlinks: bool = False,
    trees: bool = False,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Verification:
    """Verify a file or a folder against its signature, reading every listed byte.

    Args:
        path: A file or a folder.
        trust: Who must have signed.
        signature: The signature file; found by convention unless told.
        ignore_unsigned: Allow files that are not listed; they are reported as `unsigned`.
        allow_symlinks: Follow links to files also where the signer did not; their content must
            be what was signed all the same.
        trees: Build block trees of the weights on the way, for later partial reads.
        workers: Files read at a time; the number of cores unless told.
        progress: Called with the bytes read so far, from the calling thread.

    Raises:
        VerificationError: Not signed by them, or not what they signed.
        RefusedDocumentError: The signature file is malformed; it is a `VerificationError` too.
        DocumentError: A certificate or root to trust is.
        OSError: As the operating system has it.
    """
    path = os.path.abspath(path)
    signature = os.path.abspath(signature or find_signature(path))
    with refusing(signature):
        bundle = read_bundle(signature)
        signed_by = check_signature(bundle, trust)
        statement = parse_statement(bundle.payload, path=signature)
    if os.path.isdir(path):
        follow = allow_symlinks or statement.allow_symlinks
        wanted, unsigned = _match_folder(path, signature, statement, ignore_unsigned)
    else:
        resource = resource_of(statement, path, signature)
        wanted, follow, unsigned = {os.path.basename(path): resource}, True, ()
    base = path if os.path.isdir(path) else os.path.dirname(path)

    def one(item: tuple[str, Resource], tell: Callable[[int], object]) -> FileDigest:
        return hash_resource(
            os.path.join(base, item[0]), *item, tree=trees, follow=follow, progress=tell
        )

    found = in_threads(one, wanted.items(), workers=workers, progress=progress)
    files = {file.name: file for file in found}
    return Verification(path, signature, signed_by, statement, files, unsigned)


def _match_folder(
    root: str, signature: str, statement: Statement, ignore_unsigned: bool
) -> tuple[dict[str, Resource], tuple[str, ...]]:
    """Every file of the folder is listed or left out, and every listed one is there."""
    problems: list[tuple[str, str]] = []
    unsigned: list[str] = []
    present = set()
    if SINGLE_FILE in statement.resources:
        raise VerificationError(
            "the signature is that of a single file, not of a folder", reason="wrong-model",
            path=signature,
        )  # fmt: skip
    for entry in list_folder(root):
        if os.path.join(root, entry.name) == signature:
            continue
        if entry.name in statement.resources:
            present.add(entry.name)
        elif covers((*DEFAULT_IGNORED, *statement.ignored), entry.name) or ignore_unsigned:
            unsigned.append(entry.name)
        elif statement.sharded and _is_empty(root, entry):
            unsigned.append(entry.name)  # shards cannot list a file without bytes
        else:
            problems.append(("extra-file", f"{quote(entry.name)} is not part of what was signed"))
    missing = sorted(statement.resources.keys() - present)
    problems += [("missing-file", f"{quote(name)} is missing") for name in missing]
    if problems:
        shown = "; ".join(text for _, text in problems[:10])
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise VerificationError(shown + more, reason=problems[0][0], path=root)
    return dict(statement.resources), tuple(unsigned)


def _is_empty(root: str, entry: Entry) -> bool:
    path = os.path.join(root, entry.name)
    return entry.kind == "file" and os.stat(path, follow_symlinks=False).st_size == 0


def resource_of(statement: Statement, path: str, signature: str) -> Resource:
    """What `statement`, read from `signature`, says about the file at `path`.

    Raises:
        VerificationError: ``not-listed``, or ``renamed``: signed as a file of another name.
    """
    base = os.path.basename(path)
    if single := statement.resources.get(SINGLE_FILE):
        if single.bound_name not in {None, base}:
            raise VerificationError(
                f"the file was signed under the name {quote(str(single.bound_name))}", reason="renamed",
                path=path,
            )  # fmt: skip
        return single
    inside = os.path.relpath(path, os.path.dirname(signature)).replace(os.sep, "/")
    found = statement.resources.get(inside)
    if found is None and len(statement.resources) == 1:
        found = statement.resources.get(base)  # the signature of one file, kept elsewhere
    if found is None:
        raise VerificationError(
            f"the signature {quote(signature, 300)} does not list it", reason="not-listed",
            path=path,
        )  # fmt: skip
    return found


def hash_resource(
    path: str,
    name: str,
    resource: Resource,
    *,
    tree: bool = False,
    follow: bool = True,
    progress: Callable[[int], object] | None = None,
) -> FileDigest:
    """Read a file once; it must be what `resource` says. The options are those of `hash_file`.

    Raises:
        VerificationError: ``digest-mismatch`` or ``size-mismatch``.
        OSError: As the operating system has it.
    """
    parts = None if resource.sha256 else PartHasher(resource)
    wants = tree and name.endswith(".safetensors")
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
            "the signed block tree is not that of the signed content", reason="tree-mismatch",
            path=path,
        )  # fmt: skip
    return file
