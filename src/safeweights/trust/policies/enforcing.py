"""Loading under a policy: what a loader is handed to open its files with.

A loader that is given a `PolicyVerifier` (or a `Warrant`) calls it with every source it opens and
its path, and reads from what comes back. It needs to know nothing else of trust.

The signature is checked before a byte of the file is read. With a block tree in the signed
statement, blocks are then verified as they are read; otherwise the file is copied, hashed and
decided about first.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Final

from ..content.reading import VerifiedCopy, VerifiedSource
from ..content.sidecars import read_sidecar
from ..errors import DocumentError, PolicyViolationError, TrustError
from ..files import read_document
from ..signatures.bundle import parse_statement
from ..signatures.certificates import CertificateTrust
from ..signatures.keyless import KeylessTrust
from ..signatures.keys import PublicKey, load_public_key
from ..signatures.timestamps import KeyTrust
from ..signatures.verifying import find_signature, read_bundle, resource_of
from .admission import Warrant
from .evidence import who_signed
from .lockfile import LockFile, lock_of
from .policy import Evidence, FileFact, Policy, Rule, decide
from .policy_file import load_policy, parse_policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...storage.source import Source
    from ..content.resources import Resource
    from ..signatures.bundle import Statement
    from ..signatures.verifying import SignedBy
    from .audit import AuditLog

__all__ = ["PolicyVerifier", "UnverifiedWarning", "as_verifier"]


class UnverifiedWarning(UserWarning):
    """A policy in mode ``warn`` let something pass that it would refuse."""


class PolicyVerifier:
    """Lets a loader read only what a policy admits, file by file.

    What a folder holds beside the files that are opened is not looked at: a loader of safetensors
    runs none of it. To decide about a whole folder, `admission.admit` it and load under its
    warrant.

    Args:
        policy: A policy, or the path of one.
        name: What the rules call the model; the path of each file unless told.
        signature: The signature file; found by convention unless told.
        lock: What was accepted before, remembered per file; the policy's own unless given.
        log: Where every decision is recorded.

    Raises:
        DocumentError: The policy is malformed.
    """

    def __init__(
        self,
        policy: Policy | str,
        *,
        name: str | None = None,
        signature: str | None = None,
        lock: LockFile | None = None,
        log: AuditLog | None = None,
    ) -> None:
        self.policy = load_policy(policy) if isinstance(policy, str) else policy
        self._name = name
        self._signature = signature
        self._lock = lock_of(self.policy, lock)
        self._log = log
        # A model has many shards and one signature: (its bytes, the rule) -> what it says.
        self._checked: dict[tuple[bytes, str], tuple[str, SignedBy, Statement]] = {}

    def __call__(self, source: Source, path: str) -> Source:
        """`source`, opened from `path`, as something that only gives admitted bytes.

        Cost: one signature check for all files it covers; then blocks as they are read, or one
        read of the whole file where it was signed without a block tree.

        Raises:
            PolicyViolationError: The policy refuses the file.
            VerificationError: From reads: the bytes are not what was signed.
        """
        if self.policy.mode == "off":
            return source
        path = os.path.abspath(path)
        subject = self._name or path.replace(os.sep, "/")
        rule = self.policy.rule_for(subject)
        status, claim = self._claim(path, rule)
        try:
            admitted, fact = self._open(source, path, claim)
        except TrustError as error:
            if self._log:
                self._log.append(
                    "refused", {"path": path, "reason": error.reason, "why": str(error)}
                )
            raise
        if self.policy.mode == "warn" and claim and not fact.signed:
            status, claim = "the content is not what was signed", None
        evidence = Evidence(
            subject=subject,
            files={os.path.basename(path): fact},
            signer=claim[0] if claim else None,
            signed_by=claim[1] if claim else None,
            signature=status,
            release=claim[2].release if claim else None,
        )
        self._decide(evidence, path)
        return admitted

    def _claim(
        self, path: str, rule: Rule | None
    ) -> tuple[str, tuple[str, SignedBy, Statement, Resource] | None]:
        """(status, what a verified signature says about the file)."""
        if rule is None or not rule.signers:
            return "unchecked", None
        signature = self._signature or find_signature(path)
        try:
            bundle = read_bundle(os.path.abspath(signature))
            known = self._checked.get((bundle.source, rule.pattern))
            if known is None:
                signer, signed_by = who_signed(bundle, self.policy, rule)
                known = signer, signed_by, parse_statement(bundle.payload, path=bundle.path)
                self._checked[bundle.source, rule.pattern] = known
            return "valid", (*known, resource_of(known[2], path, str(bundle.path)))
        except TrustError as error:
            return ("missing" if error.reason == "signature-missing" else str(error)), None

    def _open(
        self, source: Source, path: str, claim: tuple[str, SignedBy, Statement, Resource] | None
    ) -> tuple[Source, FileFact]:
        """The source to read from, and what is known of the file."""
        resource = claim[3] if claim else None
        if resource is None:
            copy = VerifiedCopy(source)
            return copy, FileFact(copy.sha256, copy.size)
        try:
            tree = resource.tree and read_sidecar(path, resource.tree.root)
            # Mode `warn` must know before the first read whether the content is right.
            if tree and resource.sha256 and self.policy.mode == "enforce":
                return VerifiedSource(source, tree), FileFact(resource.sha256, tree.size, True)
            copy = VerifiedCopy(source, resource)
        except TrustError:
            if self.policy.mode == "enforce":
                raise
            copy = VerifiedCopy(source)
            return copy, FileFact(copy.sha256, copy.size)
        return copy, FileFact(copy.sha256, copy.size, signed=True)

    def _decide(self, evidence: Evidence, path: str) -> None:
        key = f"{evidence.subject}#{os.path.basename(path)}"
        decision = decide(self.policy, evidence, self._lock.get(key) if self._lock else None)
        if self._log:
            self._log.append("load", {"path": path, **decision.to_dict()})
        if decision.verdict == "warn":
            warnings.warn(decision.explain(), UnverifiedWarning, stacklevel=3)
        try:
            decision.require()
        except PolicyViolationError as error:
            error.path = path
            raise
        if self._lock and decision.lock:
            self._lock.remember(key, decision.lock)


def as_verifier(trust: object) -> Callable[[Source, str], Source]:
    """What a caller may give as ``trust=`` to a loader, as something to call with every source.

    Of a path, the content says which of three things it is, whatever its name: the TOML of a
    policy, the PEM of a public key, or the JSON of a warrant. No file can be two of them, and what
    is none is refused. A certificate is too: not every one that an authority gave out is meant, so
    who it must belong to has to be said, by a policy or a `CertificateTrust`.

    A path is read at each call, and signatures are then checked anew; to load many files of one
    model, make one `PolicyVerifier` (or `admit` it, for its `Warrant`) and give that.

    Args:
        trust: A policy; a public key, certificate or keyless trust, each of which must then have
            signed every file; the path of a policy, public key or warrant; a `PolicyVerifier`, a `Warrant`,
            or any callable like them.

    Raises:
        TypeError: Something else.
        DocumentError: The file at a path is none of the three, or malformed.
        OSError: It cannot be read.
    """
    if isinstance(trust, str | os.PathLike):
        trust = _read_trust(os.fsdecode(trust))
    if isinstance(trust, Policy):
        return PolicyVerifier(trust)
    if isinstance(trust, PublicKey | KeyTrust | CertificateTrust | KeylessTrust):
        return PolicyVerifier(Policy((Rule("*", signers=("trusted",)),), {"trusted": trust}))
    if callable(trust):
        return trust
    msg = (
        f"trust= takes a policy, a key or a warrant, or the path of one, not {type(trust).__name__}"
    )
    raise TypeError(msg)


def _read_trust(path: str) -> Policy | PublicKey | Warrant:
    """The policy, public key or warrant in a file.

    TOML cannot begin with a brace or with five dashes and a word, so nothing can be taken for
    another; a policy may well contain the PEM of a key further down.
    """
    data = read_document(path)
    head = data[:256].removeprefix(b"\xef\xbb\xbf").lstrip()
    try:
        if head.startswith(b"-----BEGIN CERTIFICATE"):
            raise DocumentError(
                "a certificate alone does not say who must have signed; name its owner in a policy "
                '(`roots` and `certificate_subject`), or give trust=CertificateTrust(tuple('
                'load_certificates(path)), subject="...")', reason="certificate", path=path,
            )  # fmt: skip
        if head.startswith(b"-----BEGIN "):
            return load_public_key(data, path=path)
        if head.startswith(b"{"):
            return Warrant.from_json(data, path=path)
        return parse_policy(data, path=path)
    except DocumentError as error:
        if not head.startswith(b"-----") and error.field in _WHOLE:
            error.message += _TAKEN
        raise


_WHOLE: Final = {"", "schema", "mediaType"}
"""Fields at which a document turns out to be of another kind; the last is that of a signature."""

_TAKEN: Final = (
    "; a file given as trust= is a policy (TOML), a public key (PEM) or a warrant (JSON, written by "
    "`safeweights admit --warrant`)"
)
