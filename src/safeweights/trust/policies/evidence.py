"""Collecting what a policy needs to know about a model: the only part of deciding that does I/O.

Every file is read once, from which come its digest and, for weights, the block tree that a later
load verifies against. A signature that fails is evidence as well; it is not an exception here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ..content.digests import hash_files
from ..content.sidecars import SIDECAR
from ..errors import TrustError, VerificationError
from ..files import list_folder
from ..signatures.bundle import DEFAULT_IGNORED, covers
from ..signatures.signing import WEIGHTS
from ..signatures.verifying import check_signature, find_signature, read_bundle, verify
from .examination import examine, examine_file
from .policy import Evidence, FileFact

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..content.blocktree import BlockTree
    from ..signatures.bundle import Bundle
    from ..signatures.verifying import SignedBy, Trust, Verification
    from .examination import Finding
    from .policy import Policy, Rule

__all__ = ["Gathered", "gather", "who_signed"]

_NOT_THEM = frozenset({"wrong-method", "wrong-key"})


@dataclass(frozen=True)
class Gathered:
    """Evidence, and what was made on the way that is worth keeping.

    Attributes:
        evidence: For `policy.decide`.
        trees: Block trees of the weights, by file name.
    """

    evidence: Evidence
    trees: dict[str, BlockTree] = field(repr=False)


def gather(
    path: str,
    policy: Policy,
    *,
    name: str | None = None,
    signature: str | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Gathered:
    """Everything `policy` asks to know about the file or folder at `path`.

    Args:
        path: A file or a folder.
        policy: Whose rules and signers to look for.
        name: What the rules call the model; its absolute path unless told.
        signature: The signature file; found by convention unless told.
        workers: Files read at a time; the number of cores unless told.
        progress: Called with the bytes read so far, from the calling thread.

    Raises:
        OSError: As the operating system has it.
        VerificationError: A file name that cannot be dealt with.
    """
    path = os.path.abspath(path)
    subject = name or path.replace(os.sep, "/")
    signature = os.path.abspath(signature or find_signature(path))
    rule = policy.rule_for(subject)
    told = _Forwards(progress)
    read = partial(
        verify, path, signature=signature, ignore_unsigned=True, allow_symlinks=True, trees=True,
        workers=workers, progress=told,
    )  # fmt: skip
    status, signer, found = _signature(signature, policy, rule, read)
    files = dict(found.files) if found else {}
    rest = [item for item in _files(path, signature) if item[0] not in files]
    before = told.reached if found else 0
    for digest in hash_files(
        rest, tree=lambda each: each.endswith(WEIGHTS), workers=workers,
        progress=lambda done: told(before + done),
    ):  # fmt: skip
        files[digest.name] = digest
    listed = set(found.files) if found else set()
    evidence = Evidence(
        subject=subject,
        files={
            each: FileFact(digest.sha256, digest.size, signed=each in listed)
            for each, digest in sorted(files.items())
        },
        signer=signer,
        signed_by=found.signed_by if found else None,
        signature=status,
        release=found.statement.release if found else None,
        findings=tuple(_findings(path)),
    )
    return Gathered(evidence, {each: d.tree for each, d in files.items() if d.tree})


class _Forwards:
    """Tells of progress, and never of going back: what was refused half-way is read from its start."""

    def __init__(self, progress: Callable[[int], object] | None) -> None:
        self.reached = 0
        self._progress = progress

    def __call__(self, done: int) -> None:
        if done > self.reached:
            self.reached = done
            if self._progress is not None:
                self._progress(done)


def _signature(
    signature: str, policy: Policy, rule: Rule | None, read: Callable[[Trust], Verification]
) -> tuple[str, str | None, Verification | None]:
    """(status, the policy's name of the signer, what was verified)."""
    if rule is None or not rule.signers:
        return "unchecked", None, None
    try:
        signer, _ = who_signed(read_bundle(signature), policy, rule)
        return "valid", signer, read(policy.signers[signer])
    except TrustError as error:
        return ("missing" if error.reason == "signature-missing" else str(error)), None, None


def who_signed(bundle: Bundle, policy: Policy, rule: Rule) -> tuple[str, SignedBy]:
    """Which of the rule's signers signed `bundle`: the policy's name, and who that is.

    Raises:
        TrustError: None did; the refusal of the one that came nearest.
    """
    nearest: TrustError | None = None
    for name in rule.signers:
        try:
            return name, check_signature(bundle, policy.signers[name])
        except TrustError as error:  # noqa: PERF203 - a handful of signers
            if nearest is None or nearest.reason in _NOT_THEM:
                nearest = error
    raise nearest or VerificationError("the rule names no signer", reason="no-signer")


def _files(path: str, signature: str) -> list[tuple[str, str]]:
    """(name, path) of every regular file, links to files included; not the signature."""
    if not os.path.isdir(path):
        return [(os.path.basename(path), path)]
    found = []
    for entry in list_folder(path):
        full = os.path.join(path, entry.name)
        if full != signature and not covers(DEFAULT_IGNORED, entry.name) and os.path.isfile(full):
            found.append((entry.name, full))
    return found


def _findings(path: str) -> list[Finding]:
    if os.path.isdir(path):
        return [f for f in examine(path) if not f.file.endswith((SIDECAR, "model.sig"))]
    return list(examine_file(path, os.path.basename(path)))
