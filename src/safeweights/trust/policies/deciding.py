"""The decision about a model: a pure function of a policy, of evidence, and of what was accepted before.

No I/O and no clock. A decision has one `Reason` for everything that counts for or against the model,
and fails closed: a model that no rule matches is refused, as is one whose signature is missing where
the rule requires one.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Final, Literal

from ...errors import quote
from .policy import LEVELS, Decision, LockEntry, Reason, Related
from .subjects import folders_above

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .policy import Evidence, FileFact, Policy, Revocations, Rule

__all__ = ["decide", "expected_names", "matches_any"]

_SHOWN: Final = 5
"""Files that one sentence names."""

_SIDECAR: Final = ".swtree"


def decide(
    policy: Policy,
    evidence: Evidence,
    lock: LockEntry | None = None,
    related: Iterable[Related] = (),
) -> Decision:
    """Whether the model that `evidence` describes may be loaded. Pure.

    Args:
        policy: The rules.
        evidence: What is known.
        lock: What was accepted before under the same subject.
        related: What was accepted before under subjects above and below.
    """
    rule = None if evidence.problem else policy.rule_for(evidence.path or evidence.subject)
    related = tuple(related)
    level, reasons = "none", [Reason("mode-off", "the policy is switched off", against=False)]
    if policy.mode != "off" and rule is None:
        reasons = [_no_rule(evidence)]
    elif policy.mode != "off" and rule is not None:
        level, reasons = _judge(policy, rule, evidence, lock, related)
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
        # Reasons against come first, a cause before its consequences.
        reasons=tuple(sorted(reasons, key=lambda reason: not reason.against)),
        files=_digests(evidence),
        lock=None if against or level == "none" else _remember(level, evidence, lock, related),
    )


def expected_names(rule: Rule, signed: Iterable[str], lock: LockEntry | None) -> set[str]:
    """Names of files that must be there: signed, pinned, or remembered of a whole folder.

    The block tree of a file is not among them: without it the file is verified whole.
    """
    names = set(signed)
    if rule.names_one_model:
        names |= rule.digests.keys()
    if rule.first_use and lock is not None and lock.signer is None and lock.scope == "whole":
        names |= lock.files.keys()
    return {
        name for name in names
        if not (name.endswith(_SIDECAR) and name.removesuffix(_SIDECAR) in names)
        and not matches_any(rule.optional, name)
    }  # fmt: skip


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether a pattern matches a file's name; one without ``/`` matches its last part.

    >>> matches_any(["*.json"], "a/b.json"), matches_any(["a/*"], "a/b"), matches_any(["b"], "a/b/c")
    (True, True, False)
    """
    base = name.rpartition("/")[2]
    return any(
        fnmatch.fnmatchcase(name if "/" in pattern else base, pattern) for pattern in patterns
    )


def _no_rule(evidence: Evidence) -> Reason:
    if evidence.problem:
        return Reason(*evidence.problem, against=True)
    below = f" below {quote(evidence.policy_root, 300)}" if evidence.policy_root else ""
    text = f"no rule of the policy matches {quote(evidence.subject, 300)}{below}"
    return Reason("no-rule", text, against=True)


def _judge(
    policy: Policy,
    rule: Rule,
    evidence: Evidence,
    lock: LockEntry | None,
    related: tuple[Related, ...],
) -> tuple[str, list[Reason]]:
    level, reasons = _level(rule, evidence, lock, related)
    reasons += _history(evidence, lock)
    for other in related:
        reasons += (
            _history(evidence, other.entry) if other.alias else _related_history(evidence, other)
        )
    reasons += _revoked(policy.revoked, evidence)
    reasons += _statement(rule, evidence)
    reasons += _other_rules(policy, rule, evidence)
    reasons += _contents(policy, rule, evidence)
    reasons += _allowed(rule, evidence)
    reasons += _coverage(rule, evidence, level)
    if LEVELS.index(level) < LEVELS.index(rule.level):
        text = f"level {level} was reached, the rule requires {rule.level}"
        reasons.append(Reason("level", text, against=True))
    return level, list(dict.fromkeys(reasons))


def _remember(
    level: str, evidence: Evidence, lock: LockEntry | None, related: tuple[Related, ...]
) -> LockEntry | None:
    signer = evidence.signed_by.fingerprint() if evidence.signed_by else None
    files = {name: fact.sha256 for name, fact in _content(evidence)}
    scope = evidence.scope
    if signer is None and lock is None and _all_known(files, related):
        return None  # a folder above or below remembers them already
    if scope == "part":
        # The statement as a whole was accepted: one entry, however many of its files are loaded.
        files = {**evidence.statement_files, **files}
        if lock is not None and (lock.signer, lock.release) == (signer, evidence.release):
            files = {**lock.files, **files}
            scope = lock.scope
    entry = LockEntry(level, signer, evidence.release, files, scope)
    return None if entry == lock else entry


def _all_known(files: dict[str, str], related: tuple[Related, ...]) -> bool:
    return all(
        any(other.entry.files.get(name) == digest for other in related)
        for name, digest in files.items()
    )


def _digests(evidence: Evidence) -> dict[str, str]:
    return {name: fact.sha256 for name, fact in evidence.files.items()}


def _content(evidence: Evidence) -> Iterator[tuple[str, FileFact]]:
    """The files that make up the model: without block trees, and what tools write beside it."""
    return ((name, fact) for name, fact in evidence.files.items() if fact.role == "content")


def _level(
    rule: Rule, evidence: Evidence, lock: LockEntry | None, related: tuple[Related, ...]
) -> tuple[str, list[Reason]]:
    reasons: list[Reason] = []
    level = "none"
    if evidence.signer is not None and evidence.signed_by is not None:
        level = "logged" if evidence.signed_by.method == "keyless" else "signed"
        text = (
            f"signed by {quote(evidence.signer)} ({quote(evidence.signed_by.fingerprint(), 300)})"
        )
        reasons.append(Reason("signed", text, against=False))
    elif evidence.signature not in {"missing", "unchecked", "valid"}:
        # A wrong signature is never better than none.
        reasons.append(Reason("signature-refused", evidence.signature, against=True))
    elif LEVELS.index(rule.level) >= LEVELS.index("signed"):
        text = "the policy requires a signature, and there is none"
        reasons.append(Reason("signature-missing", text, against=True))
    pinned = _pins(rule, evidence, reasons, wanted=level == "none")
    if level == "none" and pinned:
        level = "pinned"
    if level == "none":
        level = _known(rule, evidence, lock, related, reasons)
    return level, reasons


def _pins(rule: Rule, evidence: Evidence, reasons: list[Reason], *, wanted: bool) -> bool:
    """Whether every file is pinned; a pin that is not met is always a reason against."""
    unpinned = []
    for name, fact in _content(evidence):
        expected = rule.digests.get(name)
        if expected is None:
            unpinned.append(name)
        elif fact.sha256 != expected:
            text = f"{quote(name)} has the digest {fact.sha256}, the policy pins {expected}"
            reasons.append(Reason("pinned-digest", text, against=True, file=name))
    if unpinned and wanted and rule.digests and rule.level == "pinned":
        text = f"the rule's `digests` have no entry for {_listed(unpinned)}"
        reasons.append(Reason("not-pinned", text, against=True, file=unpinned[0]))
    return bool(evidence.files) and all(
        rule.digests.get(name) == fact.sha256 for name, fact in _content(evidence)
    )


def _known(
    rule: Rule,
    evidence: Evidence,
    lock: LockEntry | None,
    related: tuple[Related, ...],
    reasons: list[Reason],
) -> str:
    if not rule.first_use:
        return "none"
    memory = [*([Related(lock)] if lock else []), *related]
    changed, new = [], []
    for name, fact in _content(evidence):
        digests = {e.entry.files[name] for e in memory if name in e.entry.files}
        # A folder that was seen whole has no new files.
        closed = any(e.entry.scope == "whole" and name.startswith(e.prefix) for e in memory)
        if digests - {fact.sha256} or (not digests and closed):
            changed.append(name)
        elif not digests:
            new.append(name)
    if changed:
        text = f"changed since first use: {_listed(changed)}"
        reasons.append(Reason("changed-since-first-use", text, against=True, file=changed[0]))
        return "none"
    if new:
        text = "seen for the first time; it will be remembered"
        reasons.append(Reason("first-use", text, against=False))
    else:
        reasons.append(Reason("known", "unchanged since first use", against=False))
    return "known"


def _listed(names: list[str]) -> str:
    names = sorted(names)
    shown = ", ".join(quote(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else shown


def _history(evidence: Evidence, lock: LockEntry | None) -> list[Reason]:
    """No downgrade: a known signer must still sign, and a release is never lower than before."""
    if lock is None or lock.signer is None:
        return []
    reasons = []
    signer = evidence.signed_by.fingerprint() if evidence.signed_by else None
    if signer is None:
        text = f"it was signed by {quote(lock.signer, 300)} before, and is not signed now"
        reasons.append(Reason("downgrade", text, against=True))
    elif signer != lock.signer:
        text = f"signed by another party than before ({quote(lock.signer, 300)})"
        reasons.append(Reason("signer-changed", text, against=True))
    if lock.release is not None and signer is not None:
        found = evidence.release
        if found is None or found < lock.release:
            text = (
                f"release {found} is older than release {lock.release}, which was accepted before"
            )
            reasons.append(Reason("rollback", text, against=True))
        elif found == lock.release and _contradicts(evidence, lock):
            text = f"release {found} has other contents than before"
            reasons.append(Reason("rollback", text, against=True))
    return reasons


def _related_history(evidence: Evidence, other: Related) -> list[Reason]:
    """The same for a subject above or below, unless nothing it remembers has changed."""
    files = {name: fact for name, fact in _content(evidence) if name.startswith(other.prefix)}
    remembered = other.entry.files
    if all(remembered.get(name) == fact.sha256 for name, fact in files.items()):
        return []
    return _history(evidence, other.entry)


def _contradicts(evidence: Evidence, lock: LockEntry) -> bool:
    return any(
        lock.files.get(name, fact.sha256) != fact.sha256 for name, fact in _content(evidence)
    )


def _revoked(revoked: Revocations, evidence: Evidence) -> Iterator[Reason]:
    if by := evidence.signed_by:
        if by.key_hint in revoked.keys:
            text = f"the signing key {by.key_hint} is revoked"
            yield Reason("revoked", text, against=True)
        if found := sorted(by.revocable & revoked.certificates):
            text = (
                f"the certificate {found[0]}, of the signer or of an authority above it, is revoked"
            )
            yield Reason("revoked", text, against=True)
    if evidence.root_digest in revoked.root_digests:
        text = f"the signed statement {evidence.root_digest} is revoked"
        yield Reason("revoked", text, against=True)
    for name, fact in evidence.files.items():
        if fact.sha256 in revoked.files:
            text = f"the content of {quote(name)} is revoked"
            yield Reason("revoked", text, against=True, file=name)


def _statement(rule: Rule, evidence: Evidence) -> Iterator[Reason]:
    """What the rule requires of the signed statement as a whole."""
    if evidence.signed_by is not None:
        if rule.models and evidence.model not in rule.models:
            text = f"the statement is about the model {quote(str(evidence.model))}"
            yield Reason("wrong-model", f"{text}, not {_listed(list(rule.models))}", against=True)
        if rule.root_digests and evidence.root_digest not in rule.root_digests:
            text = f"the root digest {evidence.root_digest} is not one that the policy pins"
            yield Reason("root-digest", text, against=True)
        if rule.minimum_release is not None and (evidence.release or 0) < rule.minimum_release:
            text = f"release {evidence.release} is below the minimum, {rule.minimum_release}"
            yield Reason("release-too-low", text, against=True)
    elif rule.models or rule.root_digests or rule.minimum_release is not None:
        text = "the rule pins a signed statement, and none was verified"
        yield Reason("no-statement", text, against=True)
    for name in evidence.missing[:_SHOWN]:
        yield Reason("missing-file", f"{quote(name)} is missing", against=True, file=name)
    if len(evidence.missing) > _SHOWN:
        text = f"{len(evidence.missing) - _SHOWN:,} more files are missing"
        yield Reason("missing-file", text, against=True)


def _other_rules(policy: Policy, rule: Rule, evidence: Evidence) -> Iterator[Reason]:
    """One rule decides; a folder must not bring in files that a rule before it speaks of."""
    if evidence.scope != "whole":
        return
    stricter = policy.rules[: policy.rules.index(rule)]
    path = evidence.path or evidence.subject
    prefix = "" if path == "." else f"{path.rstrip('/')}/"
    for name in evidence.files if stricter else ():
        names = tuple(folders_above(f"{prefix}{name}"))
        other = next((each for each in stricter if each.matched(names) is not None), None)
        if other is not None:
            text = (
                f"the rule {quote(other.pattern)} applies to {quote(name)}, and {quote(rule.pattern)} "
                "to the folder; decide about each folder alone"
            )
            yield Reason("several-rules", text, against=True, file=name)
            return


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


def _allowed(rule: Rule, evidence: Evidence) -> Iterator[Reason]:
    """Where a rule lists what may be there, everything else is refused."""
    if not rule.allow:
        return
    for name, fact in _content(evidence):
        if not (matches_any(rule.allow, name) or rule.digests.get(name) == fact.sha256):
            text = f"{quote(name)} matches none of the rule's `allow` patterns"
            yield Reason("not-allowed", text, against=True, file=name)


def _coverage(rule: Rule, evidence: Evidence, level: str) -> list[Reason]:
    """Under a signature, every file must be signed or pinned."""
    if level not in {"signed", "logged"}:
        return []
    return [
        Reason("unsigned-file", f"{quote(name)} is not covered by the signature", True, name)
        for name, fact in _content(evidence)
        if not fact.signed and rule.digests.get(name) != fact.sha256
    ]
