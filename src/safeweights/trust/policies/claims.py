"""What a verified signature says about the files of a model, for the signers that a rule names.

One statement covers a checkpoint: a `Claims` keeps to the first statement it met for each model, so
that two releases cannot be mixed by exchanging a signature between two files. A signature of one
file covers that file alone: the statement about a folder, copied beside a file, is refused, as is a
shard of a numbered series that was signed alone.

A signature is checked before its statement is parsed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Final

from ...errors import quote
from ...storage.places import absolute, basename, continued, is_url, parent
from ..content.sidecars import SIDECAR
from ..errors import TrustError, VerificationError
from ..files import KEY_FILE
from ..signatures.bundle import SINGLE_FILE, parse_statement
from ..signatures.discovery import Located, locate
from ..signatures.verifying import check_signature, read_located
from .subjects import Place, folders_above, relative

if TYPE_CHECKING:
    from ..content.resources import Resource
    from ..signatures.bundle import Bundle, Statement
    from ..signatures.verifying import SignedBy
    from .policy import Policy, Rule

__all__ = ["Claim", "Claims", "digests_of", "key_signature", "locate_for", "who_signed"]

_NOT_THEM: Final = frozenset({"wrong-method", "wrong-key"})
_KEPT: Final = 16
"""Signatures whose statements are kept, for the next file of the same model."""

_SUBJECT: Final = "{subject}"
_SHARD: Final = re.compile(r".*-\d{5,9}-of-\d{5,9}\..*", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class Claim:
    """A verified signature.

    Attributes:
        signer: The policy's name of the signer.
        signed_by: Who that is.
        statement: What was signed.
        located: The signature file, and the folder that names in the statement are relative to.
    """

    signer: str
    signed_by: SignedBy
    statement: Statement
    located: Located

    @property
    def model(self) -> str:
        """The signed id of the model, or, where the signer gave none, the signed name."""
        return self.statement.model_id or self.statement.subject

    def resource(self, path: str) -> Resource:
        """What was signed about the file at `path`, an absolute path.

        Raises:
            VerificationError: ``not-listed``; ``renamed``: it was signed under another name.
        """
        base = basename(path)
        if single := self.statement.resources.get(SINGLE_FILE):
            if single.bound_name not in {None, base}:
                raise VerificationError(
                    f"the file was signed under the name {quote(str(single.bound_name))}",
                    reason="renamed", path=path,
                )  # fmt: skip
            return single
        name = relative(path, self.located.base)
        found = self.statement.resources.get(name) if name else None
        if found is None:
            raise VerificationError(
                f"the signature {quote(self.located.signature, 300)} does not list the file "
                f"{quote(name or base, 300)}", reason="not-listed", path=path,
            )  # fmt: skip
        return found

    def resources_in(self, folder: str) -> dict[str, Resource]:
        """What was signed about the files in `folder`, an absolute path; by name relative to it."""
        prefix = relative(folder, self.located.base)
        if prefix is None or SINGLE_FILE in self.statement.resources:
            raise VerificationError(
                "the signature does not cover this folder", reason="wrong-model",
                path=self.located.signature,
            )  # fmt: skip
        inside = "" if prefix == "." else f"{prefix}/"
        return {
            name.removeprefix(inside): resource
            for name, resource in self.statement.resources.items()
            if name.startswith(inside)
        }


def digests_of(resources: dict[str, Resource]) -> dict[str, str]:
    """The SHA-256 of each file for which a statement gives one; not of block trees."""
    return {
        name: resource.sha256
        for name, resource in resources.items()
        if resource.sha256 and not name.endswith(SIDECAR)
    }


@dataclass
class Claims:
    """The signatures that were checked so far.

    Args:
        policy: Whose signers must have signed.
        one_statement: Whether one statement must cover all files, and not only those of one model.
        beneath: The folder that signature files must be in, links included.
    """

    policy: Policy
    one_statement: bool = False
    beneath: str | None = None
    _checked: OrderedDict[tuple[bytes, tuple[str, ...]], _Checked] = field(
        default_factory=OrderedDict, repr=False
    )
    _kept: dict[str, str] = field(default_factory=dict, repr=False)
    _first: str = field(default="", repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def for_checkpoint(self) -> Claims:
        """Claims for one checkpoint, which share what is known of signatures and models."""
        return Claims(
            self.policy, one_statement=True, beneath=self.beneath, _checked=self._checked, _kept=self._kept,
            _lock=self._lock,
        )  # fmt: skip

    def read(self, located: Located, rule: Rule, path: str) -> Claim:
        """The verified signature at `located`, for the model or file at `path`.

        Cost: the signature is checked once; afterwards its file is only read and compared.

        Raises:
            VerificationError: ``signature-missing``; ``wrong-key`` and what else `check_signature`
                refuses; ``one-statement``; ``wrong-model``.
            DocumentError: It is malformed.
        """
        bundle = read_located(located, beneath=self.beneath)
        checked = self._check(bundle, rule)
        claim = Claim(checked.signer, checked.signed_by, checked.statement, located)
        _check_alone(claim, path)
        model = path if located.alone else located.base
        with self._lock:
            kept = {self._kept.setdefault(model, checked.digest)}
            # Key files are signed on their own: they change with the recipients, the model does not.
            if self.one_statement and not path.endswith(KEY_FILE):
                self._first = self._first or checked.digest
                kept.add(self._first)
        if kept != {checked.digest}:
            raise VerificationError(
                "another signed statement covers other files of this checkpoint; one must cover all",
                reason="one-statement", path=located.signature,
            )  # fmt: skip
        return claim

    def _check(self, bundle: Bundle, rule: Rule) -> _Checked:
        """Who signed `bundle`, and what; the last few are kept."""
        key = bundle.source, rule.signers
        with self._lock:
            if (known := self._checked.get(key)) is not None:
                self._checked.move_to_end(key)
                return known
        signer, signed_by = who_signed(bundle, self.policy, rule)
        statement = parse_statement(bundle.payload, path=bundle.path)
        digest = hashlib.sha256(bundle.source).hexdigest()
        found = _Checked(signer, signed_by, statement, digest)
        with self._lock:
            self._checked[key] = found
            while len(self._checked) > _KEPT:
                self._checked.popitem(last=False)
        return found


@dataclass(frozen=True)
class _Checked:
    """A signature that was checked: the policy's name of the signer, what was signed, its SHA-256."""

    signer: str
    signed_by: SignedBy
    statement: Statement
    digest: str


def _check_alone(claim: Claim, path: str) -> None:
    """The signature of one file must be that, and not be used to assemble a checkpoint."""
    if not claim.located.alone:
        return
    if SINGLE_FILE not in claim.statement.resources and len(claim.statement.resources) != 1:
        raise VerificationError(
            "this is the statement about a folder, not about one file", reason="wrong-model",
            path=claim.located.signature,
        )  # fmt: skip
    if _SHARD.fullmatch(basename(path)):
        raise VerificationError(
            "a shard that is signed alone can be of another release than the others; sign the folder",
            reason="one-statement", path=claim.located.signature,
        )  # fmt: skip


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


def key_signature(path: str) -> Located:
    """The signature of the key file at `path`, which no other signature covers."""
    return Located(continued(path, ".sig"), parent(path), alone=True)


def locate_for(
    place: Place,
    policy: Policy,
    rule: Rule | None,
    given: str | None = None,
    base: str | None = None,
) -> Located:
    """The signature of what is at `place`: the caller's, the rule's, or the one found by convention.

    Args:
        place: The file or folder.
        policy: For its root and folder.
        rule: The rule that applies.
        given: The signature file that the caller names.
        base: The folder that names in that are relative to; by default the folder of the model.
    """
    if place.path.endswith(KEY_FILE) and not place.folder:
        return key_signature(place.path)
    top = os.path.realpath(policy.base) if policy.base and not place.problem else None
    if given is not None:
        signature = absolute(given)
        found = real(base) if base else _base(place, rule, top, signature)
        return Located(signature, found)
    if rule is None or rule.signature is None:
        convention = locate(place.path, top=top)
        if rule is None or rule.base is None:
            return convention
        base = _base(place, rule, top, convention.signature)
        return convention._replace(base=base, alone=False)
    beside = policy.folder or os.getcwd()
    if _SUBJECT not in rule.signature:
        signature = os.path.join(beside, rule.signature)
        return Located(signature, _base(place, rule, top, signature))
    # Of a file in a model's folder, the subject is that folder: the one that has a signature.
    tried = [
        (name, os.path.join(beside, rule.signature.replace(_SUBJECT, name.lstrip("/"))))
        for name in folders_above(place.name)
    ]
    name, signature = next((each for each in tried if os.path.lexists(each[1])), tried[0])
    return Located(signature, _base(place, rule, top, signature, name))


def _base(
    place: Place, rule: Rule | None, top: str | None, signature: str, subject: str | None = None
) -> str:
    """The folder that the names in a statement are relative to, which the rule or caller named."""
    folder = place.path if place.folder else parent(place.path)
    if rule is not None and rule.base is not None:
        named = rule.base.replace(_SUBJECT, subject or place.name)
        return real(named if is_url(named) else os.path.join(top or os.sep, named))
    if subject is None and rule is not None and rule.names_one_model:
        subject = rule.pattern
    if subject is not None:
        if is_url(subject):
            return subject if relative(place.path, subject) else folder
        model = os.path.realpath(os.path.join(top or os.sep, subject))
        return model if os.path.isdir(model) else os.path.dirname(model)
    if place.folder:
        return place.path
    # Of a file: a signature in a folder above gives names relative to that folder.
    holder = real(parent(signature))
    return folder if relative(folder, holder) is None else holder


def real(path: str) -> str:
    """The path without links; a URL as it is."""
    return absolute(path) if is_url(path) else os.path.realpath(path)
