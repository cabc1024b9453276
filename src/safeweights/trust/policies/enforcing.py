"""Loading under a policy: what a loader opens its files through.

A loader that has a `PolicyVerifier` (or a `Warrant`) calls it with every source it opens and its
path, and reads from what it returns. It knows nothing else of trust.

The signature is checked before a byte of the file is read. With a block tree in the signed
statement, blocks are then verified as they are read; otherwise the file is copied and hashed first.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Final

from ...storage.places import basename, exists, join
from ..content.reading import VerifiedCopy, VerifiedSource
from ..content.sidecars import read_sidecar
from ..errors import DocumentError, PolicyViolationError, TrustError
from ..files import read_document
from ..signatures.bundle import SINGLE_FILE
from ..signatures.certificates import CertificateTrust
from ..signatures.keyless import KeylessTrust
from ..signatures.keys import PublicKey, load_public_key
from ..signatures.timestamps import KeyTrust
from .admission import Warrant
from .claims import Claims, digests_of
from .evidence import aliases_of, model_of
from .lockfile import lock_of, settle
from .policy import Evidence, FileFact, Policy, Rule
from .policy_file import load_policy, parse_policy
from .subjects import relative

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...storage.source import Source
    from ..content.resources import Resource
    from .audit import AuditLog
    from .claims import Claim
    from .evidence import Model
    from .lockfile import LockFile
    from .policy import Decision
    from .subjects import Place

__all__ = ["PolicyVerifier", "UnverifiedWarning", "as_verifier", "shared_verifier"]


class UnverifiedWarning(UserWarning):
    """A policy in mode ``warn`` let something pass that it would refuse."""


class PolicyVerifier:
    """Lets a loader read only what a policy admits, file by file.

    Files that are not opened are not read: a loader of safetensors runs none of them. But every file
    that the signature lists must be there. To decide about a whole folder, `admission.admit` it and
    load under its warrant.

    A verifier keeps to the first signed statement that it meets for each model; to load a model
    again after it was updated, make a new one.

    Args:
        policy: A policy, or the path of one.
        name: What the rules call the model, in place of its path below the policy's root.
        signature: The signature file; by default the rule's, or found by convention.
        base: The folder that names in `signature` are relative to, where that is not the folder of
            the file, or one above it that holds the signature.
        lock: What was accepted before, remembered by model; by default the policy's own.
        log: Where every decision is recorded.

    Attributes:
        policy: The policy.
        log: See above.

    Raises:
        DocumentError: The policy is malformed.
    """

    def __init__(
        self,
        policy: Policy | str,
        *,
        name: str | None = None,
        signature: str | None = None,
        base: str | None = None,
        lock: LockFile | None = None,
        log: AuditLog | None = None,
    ) -> None:
        self.policy = load_policy(policy) if isinstance(policy, str) else policy
        self._name = name
        self._signature = signature
        self._base = base
        self._lock = lock_of(self.policy, lock)
        self.log = log
        self._claims = Claims(self.policy)
        self._complete: set[tuple[str, str | None]] = set()

    def for_checkpoint(self) -> PolicyVerifier:
        """A verifier for the files of one checkpoint, all of which one statement must cover."""
        one = PolicyVerifier(
            self.policy, name=self._name, signature=self._signature, base=self._base,
            lock=self._lock, log=self.log,
        )  # fmt: skip
        one._claims = self._claims.for_checkpoint()
        return one

    def rule_of(self, path: str) -> Rule | None:
        """The rule that applies to the file at `path`.

        Raises:
            OSError: Its folder does not exist.
        """
        return self._model_of(self.policy.place_of(path)).rule

    def _model_of(self, place: Place) -> Model:
        return model_of(
            place, self.policy, name=self._name, signature=self._signature, base=self._base
        )

    def __call__(self, source: Source, path: str) -> Source:
        """A source that reads only admitted bytes of `source`, which was opened from `path`.

        Cost: one signature check for all files it covers; then blocks as they are read, or one
        read of the whole file where it was signed without a block tree.

        Raises:
            PolicyViolationError: The policy refuses the file.
            VerificationError: The bytes are not what was signed; also from reads.
        """
        if self.policy.mode == "off":
            return source
        place = self.policy.place_of(path)
        model = self._model_of(place)
        self._check_access(source, path)
        status, claim, resource = self._claim(place.path, model)
        try:
            admitted, fact = self._open(source, place.path, resource)
        except TrustError as error:
            if self.log:
                self.log.append(
                    "refused", {"path": path, "reason": error.reason, "why": str(error)}
                )
            raise
        if self.policy.mode == "warn" and claim and not fact.signed:
            status, claim = "the content is not what was signed", None
        inside = None if model.alone else relative(place.path, model.folder)
        # The files of a checkpoint are opened one after another: once all were there, they were.
        complete = (model.folder, claim.statement.root if claim else None)
        listed = {} if complete in self._complete else _listed(claim, model)
        evidence = Evidence(
            subject=model.subject,
            files={inside or basename(place.path): fact},
            signer=claim.signer if claim else None,
            signed_by=claim.signed_by if claim else None,
            signature=status,
            release=claim.statement.release if claim else None,
            model=claim.model if claim else None,
            root_digest=claim.statement.root if claim else None,
            statement_files=digests_of(listed),
            scope="file" if model.alone else "part",
            path=None if self._name is not None else place.name,
            problem=None if self._name is not None else place.problem,
            policy_root=self.policy.base,
            aliases=() if self._name is not None else aliases_of(place, model),
        )
        decision = self._decide(evidence, path, model, frozenset(listed), inside)
        if self._claims.one_statement and decision.verdict == "allow":
            self._complete.add(complete)
        return admitted

    def _check_access(self, source: Source, path: str) -> None:
        """Refuse plaintext where the policy requires ciphertext, and key files for others."""
        problem = self.policy.access and self.policy.access.problem(path, source)
        if not problem:
            return
        code, text = problem
        if self.policy.mode == "warn":
            warnings.warn(text, UnverifiedWarning, stacklevel=4)
            return
        if self.log:
            self.log.append("refused", {"path": path, "reason": code, "why": text})
        raise PolicyViolationError(text, reason=code, path=path)

    def _claim(self, path: str, model: Model) -> tuple[str, Claim | None, Resource | None]:
        """(status, the verified signature, what it says about the file)."""
        if model.rule is None or not model.rule.signers:
            return "unchecked", None, None
        try:
            claim = self._claims.read(model.located, model.rule, path)
            return "valid", claim, claim.resource(path)
        except TrustError as error:
            return ("missing" if error.reason == "signature-missing" else str(error)), None, None

    def _open(
        self, source: Source, path: str, resource: Resource | None
    ) -> tuple[Source, FileFact]:
        """The source to read from, and what is known of the file."""
        if resource is None:
            copy = VerifiedCopy(source)
            return copy, FileFact(copy.sha256, copy.size)
        try:
            tree = resource.tree and read_sidecar(path, resource.tree.root, source.size)
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

    def _decide(
        self,
        evidence: Evidence,
        path: str,
        model: Model,
        signed: frozenset[str],
        opened: str | None,
    ) -> Decision:
        """The decision, recorded; `opened` is the file's name in the model, which need not be asked for."""

        def record(decision: Decision) -> None:
            if self.log:
                self.log.append("load", {"path": path, **decision.to_dict()})

        decision = settle(
            self.policy, evidence, self._lock, signed=signed, record=record,
            present=lambda name: name == opened or exists(join(model.folder, name)),
        )  # fmt: skip
        if decision.verdict == "warn":
            warnings.warn(decision.explain(), UnverifiedWarning, stacklevel=3)
        try:
            decision.require()
        except PolicyViolationError as error:
            error.path = path
            raise
        return decision


def _listed(claim: Claim | None, model: Model) -> dict[str, Resource]:
    """What the statement lists in the model; all of it must be there."""
    if claim is None or model.alone or SINGLE_FILE in claim.statement.resources:
        return {}
    try:
        return claim.resources_in(model.folder)
    except TrustError:  # the signature of one file, kept elsewhere
        return {}


def as_verifier(trust: object) -> Callable[[Source, str], Source]:
    """The verifier for one checkpoint, from what a caller gives a loader as ``trust=``.

    The content of a file, not its name, says what it is: a policy (TOML), a public key (PEM) or a
    warrant (JSON). No file can be two of them. A certificate alone is refused, because it does not
    say whose certificate must have signed: use a policy or a `CertificateTrust`.

    A path is read at each call, and signatures are checked again; to load many files of one model,
    make one `PolicyVerifier` (or `admit` it, for its `Warrant`) and give that.

    Args:
        trust: A policy; a public key, certificate or keyless trust, which must then have signed
            every file; the path of a policy, public key or warrant; a `PolicyVerifier`, a `Warrant`,
            or any callable like them.

    Raises:
        TypeError: Something else.
        DocumentError: The file at a path is none of the three, or malformed.
        OSError: It cannot be read.
    """
    shared = shared_verifier(trust)
    return shared.for_checkpoint() if isinstance(shared, PolicyVerifier) else shared


def shared_verifier(trust: object) -> Callable[[Source, str], Source]:
    """The same for any number of checkpoints; `PolicyVerifier.for_checkpoint` is one for each."""
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

    TOML begins neither with a brace nor with five dashes and a word, so the kinds cannot be
    confused; a policy may contain the PEM of a key further down.
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
"""Fields at which a document of another kind is recognized; `mediaType` is that of a signature."""

_TAKEN: Final = (
    "; a file given as trust= is a policy (TOML), a public key (PEM) or a warrant (JSON, written by "
    "`safeweights admit --warrant`)"
)
