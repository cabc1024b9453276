"""A policy: what must be true of a model before it may be loaded, and the decision.

`decide` is a pure function of a policy, of the evidence that `evidence.gather` collected, and of
what a lock file remembers: no I/O, no clock. It explains itself with one `Reason` for everything
that counts for or against the model, and it fails closed: a model that no rule matches is refused,
as is one whose signature is missing where the rule requires one.

`policy_file` reads the TOML.
"""

from __future__ import annotations

import fnmatch
import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from ...errors import quote
from ..errors import DocumentError, PolicyViolationError
from .examination import KINDS
from .subjects import folders_above

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
    "Related",
    "Revocations",
    "Rule",
    "check_pattern",
    "decide",
    "expected_names",
    "matches_any",
]

LEVELS: Final = ("none", "known", "pinned", "signed", "logged")
"""From the lowest to the highest: nothing is known; unchanged since its first use; its digests are
in the policy; signed by a signer whom the policy names; signed and in a transparency log."""

Mode = Literal["off", "warn", "enforce"]
Scope = Literal["whole", "part", "file"]
Role = Literal["content", "sidecar", "bookkeeping"]
DENIABLE: Final = tuple(kind for kind in KINDS if kind != "template")

_SHOWN: Final = 5
"""Files that one sentence names."""

_SIDECAR: Final = ".swtree"


@dataclass(frozen=True)
class Rule:
    """What a model must fulfil whose subject, or a folder above it, matches the pattern.

    Attributes:
        pattern: Of the subject; ``*`` also matches ``/``.
        signers: Names of `Policy.signers`; a signature by one of them is enough.
        level: The lowest of `LEVELS` that is enough.
        digests: File name, relative to the model -> SHA-256 it must have.
        templates: SHA-256 of the templates allowed; empty to allow any.
        first_use: Accept a model that was never seen before, and remember it.
        allow: Patterns of file names; where given, any other file is refused.
        optional: Patterns of signed, pinned or remembered files that may be missing.
        models: Ids that the signed statement may give the model (or its name, where it has no id);
            empty to allow any.
        root_digests: Root digests that the signed statement may have; empty to allow any.
        minimum_release: The lowest signed release number that is accepted.
        signature: The signature file, relative to the policy's folder; ``{subject}`` in it stands for
            the subject.
        base: The folder that names in the signed statement are relative to, relative to the policy's
            root; by default the model's own folder.
    """

    pattern: str
    signers: tuple[str, ...] = ()
    level: str = "signed"
    digests: dict[str, str] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    first_use: bool = False
    allow: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    root_digests: tuple[str, ...] = ()
    minimum_release: int | None = None
    signature: str | None = None
    base: str | None = None

    def matches(self, subject: str) -> bool:
        """Whether the pattern matches the subject or a folder above it."""
        return any(fnmatch.fnmatchcase(name, self.pattern) for name in folders_above(subject))

    @property
    def names_one_model(self) -> bool:
        """Whether the pattern has no wildcard, so that it is the subject itself."""
        return not any(char in self.pattern for char in "*?[")


@dataclass(frozen=True)
class Revocations:
    """What is refused whatever else speaks for it.

    Attributes:
        keys: Hints of public keys (SHA-256 of the PEM).
        certificates: SHA-256 of signing certificates.
        files: SHA-256 of file contents.
        root_digests: Root digests of signed statements.
    """

    keys: frozenset[str] = frozenset()
    certificates: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()
    root_digests: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Policy:
    """Rules, of which the first that matches decides, and the signers they name.

    Attributes:
        rules: In order.
        signers: Name used by rules -> who that is.
        mode: ``"enforce"``; ``"warn"``: nothing is refused; ``"off"``: nothing is checked.
        deny: Kinds of `examination.Finding` that are refused.
        lock: Path of the lock file; rules with `first_use` need one.
        path: The policy's own file.
        root: The folder that subjects are relative to; by default that of the policy's own file. A
            policy without either has absolute paths as subjects.
        revoked: Keys, certificates, files and statements that are refused.
        base: The folder that subjects are relative to: `root`, or `folder`; absolute.
        folder: The folder of the policy's own file; absolute.

    Raises:
        DocumentError: A pattern that can never match a subject.
    """

    rules: tuple[Rule, ...]
    signers: dict[str, Trust] = field(default_factory=dict)
    mode: Mode = "enforce"
    deny: frozenset[str] = frozenset(DENIABLE)
    lock: str | None = None
    path: str | None = None
    root: str | None = None
    revoked: Revocations = Revocations()
    base: str | None = field(init=False, repr=False, compare=False)
    folder: str | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Now, so that a program that changes its folder does not change what rules mean.
        folder = None if self.path is None else os.path.dirname(os.path.abspath(self.path))
        object.__setattr__(self, "folder", folder)
        root = folder if self.root is None else os.path.abspath(self.root)
        object.__setattr__(self, "base", root)
        for number, rule in enumerate(self.rules):
            if problem := check_pattern(rule.pattern, rooted=self.base is not None):
                raise DocumentError(problem, field=f"rules[{number}].pattern", path=self.path)

    def rule_for(self, subject: str) -> Rule | None:
        """The first rule that matches the subject or a folder above it."""
        return next((rule for rule in self.rules if rule.matches(subject)), None)

    def check_rootless(self) -> None:
        """Refuse patterns that match no absolute path, where subjects are absolute paths.

        Raises:
            DocumentError: There is one, and the policy has no root.
        """
        for number, rule in enumerate(self.rules if self.base is None else ()):
            if rule.pattern[:1] not in {"/", "*", "?", "["}:
                raise DocumentError(
                    f"the pattern {quote(rule.pattern)} can never match: it is relative, and the "
                    "policy has no root (give Policy(root=...), or the model's name)",
                    field=f"rules[{number}].pattern",
                )


def check_pattern(pattern: str, *, rooted: bool) -> str | None:
    """Why `pattern` can never match a subject; None where it can.

    >>> check_pattern("./vendor/*", rooted=True)
    'the pattern `./vendor/*` can never match: a subject has no empty, `.` or `..` part'
    """
    if not pattern:
        return "the pattern is empty and can never match"
    never = f"the pattern {quote(pattern)} can never match: "
    if rooted and pattern.startswith("/"):
        return f"{never}subjects are relative to the policy's root, without `/` in front"
    parts = pattern.removeprefix("/").split("/")
    if pattern not in {".", "/"} and any(part in {"", ".", ".."} for part in parts):
        return f"{never}a subject has no empty, `.` or `..` part"
    return None


@dataclass(frozen=True)
class FileFact:
    """A file as it was read, or as a verified signature lists it.

    Attributes:
        sha256: Of its content.
        size: In bytes, where known.
        signed: Whether a verified signature lists it with this content.
        role: ``"content"``; ``"sidecar"``: the block tree of another file, checked against it;
            ``"bookkeeping"``: written by tools beside a model, never loaded.
    """

    sha256: str
    size: int | None = None
    signed: bool = False
    role: Role = "content"


@dataclass(frozen=True)
class Evidence:
    """What is known about a model.

    Attributes:
        subject: Its name, for the rules.
        files: By name, relative to the model.
        signer: The policy's name of the signer, where a signature was verified.
        signed_by: Who that is.
        signature: ``"missing"``, ``"valid"``, ``"unchecked"`` (the rule names no signer), or why it was
            refused.
        release: The release number that was signed.
        findings: What in the model runs code.
        model: The id or name that the signed statement gives the model.
        root_digest: The signed statement's root digest.
        statement_files: File name -> SHA-256 of everything that the signed statement lists in the model.
        scope: ``"whole"``: `files` are all files of a folder; ``"part"``: some of them; ``"file"``: the
            subject is one file.
        missing: Names of files that are signed, pinned or remembered, and absent.
        path: From which the rule follows, where that is not the subject.
        problem: Code and sentence, where no rule can apply to the path.
        policy_root: The root that the subject is relative to, for messages.
    """

    subject: str
    files: dict[str, FileFact]
    signer: str | None = None
    signed_by: SignedBy | None = None
    signature: str = "missing"
    release: int | None = None
    findings: tuple[Finding, ...] = ()
    model: str | None = None
    root_digest: str | None = None
    statement_files: dict[str, str] = field(default_factory=dict)
    scope: Scope = "part"
    missing: tuple[str, ...] = ()
    path: str | None = None
    problem: tuple[str, str] | None = None
    policy_root: str | None = None


@dataclass(frozen=True)
class LockEntry:
    """What was accepted before, under one subject.

    Attributes:
        level: Which of `LEVELS` was reached.
        signer: The signer's fingerprint.
        release: The signed release number.
        files: File name, relative to the subject -> SHA-256.
        scope: As in `Evidence`.
    """

    level: str
    signer: str | None
    release: int | None
    files: dict[str, str]
    scope: Scope = "part"


@dataclass(frozen=True)
class Related:
    """What was accepted under a subject above or below this one, with names relative to this one.

    Attributes:
        entry: Its files are those below this subject.
        prefix: Which files it speaks of: those whose name begins with it.
    """

    entry: LockEntry
    prefix: str = ""


@dataclass(frozen=True)
class Reason:
    """One thing that counts for or against a model.

    Attributes:
        code: Stable identifier.
        text: In words, safe to show.
        against: Whether it is a reason to refuse.
        file: The file it is about, where it is about one.
    """

    code: str
    text: str
    against: bool
    file: str | None = None


@dataclass(frozen=True)
class Decision:
    """The verdict and why.

    Attributes:
        verdict: ``"allow"``; ``"warn"``: it would be refused, but the policy's mode is ``warn``;
            ``"refuse"``.
        subject: What the policy calls the model.
        level: Which of `LEVELS` was reached.
        rule: The pattern of the rule that decided; None where none matched.
        signer: The policy's name of the signer.
        reasons: For and against, those against first.
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
        """0 where the model may be loaded, 1 where not."""
        return 1 if self.verdict == "refuse" else 0

    def to_dict(self) -> dict[str, Any]:
        """The decision as data; ``schema`` changes when a field changes its meaning."""
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
        reasons += _related_history(evidence, other)
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
        if by.certificate_sha256 in revoked.certificates:
            text = f"the signing certificate {by.certificate_sha256} is revoked"
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
        other = next((each for each in stricter if each.matches(f"{prefix}{name}")), None)
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
