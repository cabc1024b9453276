"""A policy, what is known of a model, and the decision: what must be true before it is loaded.

Plain values: rules, evidence, what was accepted before, and the decision with its reasons.
`deciding.decide` makes one of the others; `policy_file` reads the TOML.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

from ...display import Displayed
from ...errors import quote
from ...storage import is_url
from ...text import plural
from ..errors import DocumentError, PolicyViolationError
from .subjects import folders_above, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..access.rules import AccessRules
    from ..signatures.verifying import SignedBy, Trust
    from .subjects import Place

__all__ = [
    "DENIABLE",
    "LEVELS",
    "Decision",
    "Evidence",
    "FileFact",
    "Finding",
    "LockEntry",
    "Policy",
    "Reason",
    "Related",
    "Revocations",
    "Rule",
    "check_pattern",
]

LEVELS: Final = ("none", "known", "pinned", "signed", "logged")
"""From the lowest to the highest: nothing is known; unchanged since its first use; its digests are
in the policy; signed by a signer whom the policy names; signed and in a transparency log."""

Mode = Literal["off", "warn", "enforce"]
Scope = Literal["whole", "part", "file"]
Role = Literal["content", "sidecar", "bookkeeping"]
DENIABLE: Final = (
    "pickle", "python", "native", "auto_map", "trust_remote_code", "remote_kernel",
    "polyglot", "code", "unknown", "unreadable", "special",
)  # fmt: skip
"""Kinds of findings that a policy denies, unless it says otherwise: what runs code or may.

``code`` is code of any other kind; ``unknown`` is a file that could not be judged; ``special`` is none.
"""


@dataclass(frozen=True)
class Finding:
    """Something in a file that a policy decides about.

    Attributes:
        kind: One of `DENIABLE`, or ``"template"``, which is allowed unless the rule pins other ones.
        file: Its name, relative to the folder.
        detail: What was found, in words, safe to show.
        sha256: Of a template's text.
    """

    kind: str
    file: str
    detail: str
    sha256: str | None = None


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
        return self.matched(folders_above(subject)) is not None

    def matched(self, names: Iterable[str]) -> str | None:
        """The first of `names` that the pattern matches."""
        return next(filter(self._match, names), None)

    @cached_property
    def _match(self) -> Callable[[str], object]:
        # Not `fnmatchcase`: it keeps the last few hundred patterns, and a policy may have thousands.
        return re.compile(fnmatch.translate(self.pattern)).match

    @property
    def names_one_model(self) -> bool:
        """Whether the pattern has no wildcard, so that it is the subject itself."""
        return not any(char in self.pattern for char in "*?[")


@dataclass(frozen=True)
class Revocations:
    """What is refused whatever else speaks for it.

    Attributes:
        keys: Hints of public keys (SHA-256 of the PEM).
        certificates: SHA-256 of certificates, of signers or of the authorities above them.
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
        deny: Kinds of `Finding` that are refused.
        lock: Path of the lock file; rules with `first_use` need one.
        path: The policy's own file.
        root: The folder that subjects are relative to; by default that of the policy's own file. A
            policy without either has absolute paths as subjects.
        revoked: Keys, certificates, files and statements that are refused.
        access: Which files must be encrypted, and who may be given a key.
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
    access: AccessRules | None = None
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
        names = tuple(folders_above(subject))
        return next((rule for rule in self.rules if rule.matched(names) is not None), None)

    def place_of(self, path: str | os.PathLike[str]) -> Place:
        """Where `path` is below the root, and why no rule can apply to it.

        Raises:
            OSError: See `subjects.place_of`.
        """
        place = place_of(path, self.base)
        rule = self.rule_for(place.name)
        for link in place.links if place.problem is None else ():
            if (other := self.rule_for(link)) is not rule:
                text = (
                    f"the path goes through a link: as {quote(link, 300)} {_applies(other)}, but at "
                    f"{quote(place.name, 300)}, where it leads, {_applies(rule)}; give that path, or move "
                    "the link"
                )
                return replace(place, problem=("link", text))
        return place

    def check_rootless(self) -> None:
        """Refuse patterns that match no absolute path, where subjects are absolute paths.

        Raises:
            DocumentError: There is one, and the policy has no root.
        """
        for number, rule in enumerate(self.rules if self.base is None else ()):
            if rule.pattern[:1] not in {"/", "*", "?", "["} and not is_url(rule.pattern):
                raise DocumentError(
                    f"the pattern {quote(rule.pattern)} can never match: it is relative, and the "
                    "policy has no root (give Policy(root=...), or the model's name)",
                    field=f"rules[{number}].pattern",
                )


def _applies(rule: Rule | None) -> str:
    return "no rule applies" if rule is None else f"the rule {quote(rule.pattern)} applies"


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
    path = pattern.partition("://")[2] if is_url(pattern) else pattern
    parts = path.removeprefix("/").split("/")
    if pattern not in {".", "/"} and any(part in {"", ".", ".."} for part in parts):
        return f"{never}a subject has no empty, `.` or `..` part"
    if is_url(pattern):
        scheme, _, rest = pattern.partition("://")
        host = rest.partition("/")[0]
        if scheme != scheme.lower() or (scheme != "hf" and host != host.lower()):
            return f"{never}the scheme and host of a subject are in lower case"
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
        aliases: Subjects under which links name the model: what was accepted under them counts too.
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
    aliases: tuple[str, ...] = ()


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
        alias: Whether it is of another name of the same subject, not of one above or below.
    """

    entry: LockEntry
    prefix: str = ""
    alias: bool = False


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


@dataclass(frozen=True, repr=False)
class Decision(Displayed):
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

    def _summary(self) -> str:
        against = sum(reason.against for reason in self.reasons)
        reasons = f", {plural(against, 'reason')} against it" if against else ""
        return f"{self.verdict} {quote(self.subject, 300)}, level {self.level}{reasons}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
        rows = (("against" if r.against else "for", r.code, r.text) for r in self.reasons)
        return ("", "reason", "text"), rows

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
