"""A policy: what must be true of a model before it may be loaded, and the decision.

`decide` is a pure function of a policy, of the evidence that
`evidence.gather` collected, and of what a lock file remembers: no I/O, no clock. It explains itself
with one `Reason` for everything that spoke for or against, and it fails closed: a model that no
rule names is refused, as is one whose signature is missing where the rule asks for one.

Reading the TOML is `policy_file`'s work.
"""

from __future__ import annotations

import fnmatch
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from ...errors import quote
from ..errors import PolicyViolationError
from .examination import KINDS

if TYPE_CHECKING:
    from ..signatures.verifying import SignedBy, Trust
    from .examination import Finding

__all__ = [
    "DENIABLE",
    "LEVELS",
    "Decision",
    "Evidence",
    "FileFact",
    "LockEntry",
    "Policy",
    "Reason",
    "Rule",
    "decide",
]  # fmt: skip

LEVELS: Final = ("none", "known", "pinned", "signed", "logged")
"""From the least to the most: nothing is known; the same as on first use; its digests are in the
policy; signed by somebody the policy names; that, and recorded in a transparency log."""

Mode = Literal["off", "warn", "enforce"]
DENIABLE: Final = tuple(kind for kind in KINDS if kind != "template")


@dataclass(frozen=True)
class Rule:
    """What models whose name matches must fulfil.

    Attributes:
        pattern: Of the model's name; ``*`` also crosses ``/``.
        signers: Names of `Policy.signers`, each sufficient.
        level: The least of `LEVELS`.
        digests: File name -> SHA-256 it must have.
        templates: SHA-256 of the templates allowed; empty to allow any.
        first_use: Accept a model never seen before, and remember it.
    """

    pattern: str
    signers: tuple[str, ...] = ()
    level: str = "signed"
    digests: dict[str, str] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    first_use: bool = False


@dataclass(frozen=True)
class Policy:
    """Rules, the first that matches first, and who the signers are.

    Attributes:
        rules: In order.
        signers: The names that rules use -> who that is.
        mode: ``"enforce"``; ``"warn"``: nothing is refused; ``"off"``: nothing is looked at.
        deny: Kinds of `contents.Finding` that are refused.
        lock: Path of the lock file; rules with `first_use` need one.
        path: Of the policy itself.
    """

    rules: tuple[Rule, ...]
    signers: dict[str, Trust] = field(default_factory=dict)
    mode: Mode = "enforce"
    deny: frozenset[str] = frozenset(DENIABLE)
    lock: str | None = None
    path: str | None = None

    def rule_for(self, subject: str) -> Rule | None:
        """The first rule whose pattern matches the model's name."""
        return next((r for r in self.rules if fnmatch.fnmatchcase(subject, r.pattern)), None)


@dataclass(frozen=True)
class FileFact:
    """A file as it was read, or as a verified signature lists it."""

    sha256: str
    size: int | None = None
    signed: bool = False


@dataclass(frozen=True)
class Evidence:
    """What is known about a model.

    Attributes:
        subject: Its name, for the rules.
        files: By name.
        signer: The policy's name of who signed, where a signature was verified.
        signed_by: Who that is.
        signature: ``"missing"``, ``"valid"``, ``"unchecked"`` (the rule names no signer), or why it was
            refused.
        release: The release number that was signed.
        findings: What in the folder runs code.
    """

    subject: str
    files: dict[str, FileFact]
    signer: str | None = None
    signed_by: SignedBy | None = None
    signature: str = "missing"
    release: int | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class LockEntry:
    """What was accepted before, under the same name."""

    level: str
    signer: str | None
    release: int | None
    files: dict[str, str]


@dataclass(frozen=True)
class Reason:
    """One thing that spoke for or against.

    Attributes:
        code: Stable identifier.
        text: In words, safe to show.
        against: Whether it stands in the way.
        file: The file it is about, if one.
    """

    code: str
    text: str
    against: bool
    file: str | None = None


@dataclass(frozen=True)
class Decision:
    """The verdict and why.

    Attributes:
        verdict: ``"allow"``; ``"warn"``: would be refused, the policy's mode lets it pass;
            ``"refuse"``.
        subject: The model's name.
        level: Which of `LEVELS` was reached.
        rule: The pattern of the rule that decided; None where none matched.
        signer: The policy's name of who signed.
        reasons: Everything that was looked at.
        files: File -> SHA-256: what the verdict is about.
        lock: What to remember, where that changed.
    """

    verdict: Literal["allow", "warn", "refuse"]
    subject: str
    level: str
    rule: str | None
    signer: str | None
    reasons: tuple[Reason, ...]
    files: dict[str, str]
    lock: LockEntry | None = None

    @property
    def exit_code(self) -> int:
        """0 where loading may go on, 1 where not."""
        return 1 if self.verdict == "refuse" else 0

    def to_dict(self) -> dict[str, Any]:
        """The decision for machines; ``schema`` changes when fields change their meaning."""
        shown = asdict(self)
        del shown["lock"]
        return {"schema": "safeweights-decision/1", **shown}

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=True)

    def explain(self) -> str:
        """The decision in words, one line a reason."""
        lines = [f"{self.verdict}: {quote(self.subject, 300)} reached level {self.level}"]
        lines += [f"  {'-' if r.against else '+'} [{r.code}] {r.text}" for r in self.reasons]
        return "\n".join(lines)

    def require(self) -> Decision:
        """This decision, unless it is a refusal.

        Raises:
            PolicyViolationError: With the first reason against; `decision` carries them all.
        """
        if self.verdict == "refuse":
            against = [reason for reason in self.reasons if reason.against]
            shown = "; ".join(reason.text for reason in against[:5])
            raise PolicyViolationError(
                f"{quote(self.subject, 300)} is refused by the policy: {shown}",
                reason=against[0].code, decision=self,
            )  # fmt: skip
        return self


def decide(policy: Policy, evidence: Evidence, lock: LockEntry | None = None) -> Decision:
    """Whether the model that `evidence` describes may be loaded. Pure.

    Args:
        policy: The rules.
        evidence: What is known.
        lock: What was accepted before under the same name.
    """
    rule = policy.rule_for(evidence.subject)
    level, reasons = "none", [Reason("mode-off", "the policy is switched off", against=False)]
    if policy.mode != "off" and rule is None:
        reasons = [Reason("no-rule", "no rule of the policy matches this name", against=True)]
    elif policy.mode != "off" and rule is not None:
        level, reasons = _judge(policy, rule, evidence, lock)
    against = any(reason.against for reason in reasons)
    verdict: Literal["allow", "warn", "refuse"] = "allow"
    if against:
        verdict = "warn" if policy.mode == "warn" else "refuse"
    return Decision(
        verdict=verdict,
        subject=evidence.subject,
        level=level,
        rule=rule.pattern if rule else None,
        signer=evidence.signer,
        # What stands in the way comes first, the cause before its consequences.
        reasons=tuple(sorted(reasons, key=lambda reason: not reason.against)),
        files=_digests(evidence),
        lock=None if against or level == "none" else _remember(level, evidence, lock),
    )


def _judge(
    policy: Policy, rule: Rule, evidence: Evidence, lock: LockEntry | None
) -> tuple[str, list[Reason]]:
    level, reasons = _level(rule, evidence, lock)
    reasons += _history(evidence, lock)
    reasons += _contents(policy, rule, evidence)
    reasons += _coverage(rule, evidence, level)
    if LEVELS.index(level) < LEVELS.index(rule.level):
        text = f"level {level} was reached, the rule asks for {rule.level}"
        reasons.append(Reason("level", text, against=True))
    return level, reasons


def _remember(level: str, evidence: Evidence, lock: LockEntry | None) -> LockEntry | None:
    signer = evidence.signed_by.fingerprint() if evidence.signed_by else None
    entry = LockEntry(level, signer, evidence.release, _digests(evidence))
    return None if entry == lock else entry


def _digests(evidence: Evidence) -> dict[str, str]:
    return {name: fact.sha256 for name, fact in evidence.files.items()}


def _level(rule: Rule, evidence: Evidence, lock: LockEntry | None) -> tuple[str, list[Reason]]:
    reasons: list[Reason] = []
    level = "none"
    if evidence.signer is not None and evidence.signed_by is not None:
        level = "logged" if evidence.signed_by.method == "keyless" else "signed"
        text = (
            f"signed by {quote(evidence.signer)} ({quote(evidence.signed_by.fingerprint(), 300)})"
        )
        reasons.append(Reason("signed", text, against=False))
    elif evidence.signature not in {"missing", "unchecked", "valid"}:
        # A signature that is there and wrong is never better than none.
        reasons.append(Reason("signature-refused", evidence.signature, against=True))
    elif LEVELS.index(rule.level) >= LEVELS.index("signed"):
        text = "the policy asks for a signature, and there is none"
        reasons.append(Reason("signature-missing", text, against=True))
    pinned = _pins(rule, evidence, reasons)
    if level == "none" and pinned:
        level = "pinned"
    if level == "none":
        level = _known(rule, evidence, lock, reasons)
    return level, reasons


def _pins(rule: Rule, evidence: Evidence, reasons: list[Reason]) -> bool:
    """Whether every file is pinned; a pin that is not met is a reason against, always."""
    for name, expected in rule.digests.items():
        fact = evidence.files.get(name)
        if fact is not None and fact.sha256 != expected:
            text = f"{quote(name)} has the digest {fact.sha256}, the policy pins {expected}"
            reasons.append(Reason("pinned-digest", text, against=True, file=name))
    return bool(evidence.files) and all(
        rule.digests.get(name) == fact.sha256 for name, fact in evidence.files.items()
    )


def _known(rule: Rule, evidence: Evidence, lock: LockEntry | None, reasons: list[Reason]) -> str:
    if not rule.first_use:
        return "none"
    if lock is None:
        text = "seen for the first time; it will be remembered"
        reasons.append(Reason("first-use", text, against=False))
        return "known"
    changed = sorted(
        name for name, fact in evidence.files.items() if lock.files.get(name) != fact.sha256
    )
    if changed:
        shown = ", ".join(quote(name) for name in changed[:5])
        text = f"not what was there on first use: {shown}"
        reasons.append(Reason("changed-since-first-use", text, against=True, file=changed[0]))
        return "none"
    reasons.append(Reason("known", "the same as on first use", against=False))
    return "known"


def _history(evidence: Evidence, lock: LockEntry | None) -> list[Reason]:
    """No downgrade: a signer, once seen, stays; a release, once seen, is not gone back on."""
    if lock is None or lock.signer is None:
        return []
    reasons = []
    signer = evidence.signed_by.fingerprint() if evidence.signed_by else None
    if signer is None:
        text = f"it was signed by {quote(lock.signer, 300)} before, and is not now"
        reasons.append(Reason("downgrade", text, against=True))
    elif signer != lock.signer:
        text = f"signed by another party than before ({quote(lock.signer, 300)})"
        reasons.append(Reason("signer-changed", text, against=True))
    if lock.release is not None and signer is not None:
        found = evidence.release
        if found is None or found < lock.release:
            text = f"release {found} was signed before release {lock.release}, which is known"
            reasons.append(Reason("rollback", text, against=True))
        elif found == lock.release and _contradicts(evidence, lock):
            text = f"release {found} has other contents than before"
            reasons.append(Reason("rollback", text, against=True))
    return reasons


def _contradicts(evidence: Evidence, lock: LockEntry) -> bool:
    return any(
        lock.files.get(name, fact.sha256) != fact.sha256 for name, fact in evidence.files.items()
    )


def _contents(policy: Policy, rule: Rule, evidence: Evidence) -> list[Reason]:
    reasons = []
    for finding in evidence.findings:
        fact = evidence.files.get(finding.file)
        pinned = fact is not None and rule.digests.get(finding.file) == fact.sha256
        if finding.kind == "template":
            allowed = not rule.templates or finding.sha256 in rule.templates or pinned
            text = f"{finding.detail} ({finding.sha256}) is not one that the policy pins"
        else:
            allowed = finding.kind not in policy.deny or pinned
            text = f"{quote(finding.file)}: {finding.detail}"
        if not allowed:
            reasons.append(Reason(f"deny-{finding.kind}", text, against=True, file=finding.file))
    return reasons


def _coverage(rule: Rule, evidence: Evidence, level: str) -> list[Reason]:
    """Under a signature, a file that it does not list is nobody's."""
    if level not in {"signed", "logged"}:
        return []
    return [
        Reason("unsigned-file", f"{quote(name)} is not covered by the signature", True, name)
        for name, fact in evidence.files.items()
        if not fact.signed and rule.digests.get(name) != fact.sha256
    ]
