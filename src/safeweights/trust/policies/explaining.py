"""Which rule of a policy applies to a path, and why; nothing is hashed and no signature is checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..files import list_folder
from .evidence import model_of
from .lockfile import lock_of
from .subjects import canonical, folders_above

if TYPE_CHECKING:
    from .policy import LockEntry, Policy, Rule

__all__ = ["Explanation", "Match", "explain", "unreachable"]


@dataclass(frozen=True)
class Match:
    """One rule, and how it relates to a path.

    Attributes:
        number: Of the rule, from 1.
        rule: The rule.
        matched: What the pattern matches: the path, or a folder above it; None if neither.
        applies: Whether this is the rule that decides: the first that matches.
    """

    number: int
    rule: Rule
    matched: str | None
    applies: bool


@dataclass(frozen=True)
class Explanation:
    """What a policy says about a path.

    Attributes:
        path: Below the policy's root.
        subject: What the policy calls the model that the path belongs to.
        root: The folder that names are relative to.
        problem: Why no rule can apply; None if one can.
        matches: Every rule, in order.
        signature: The signature file that is looked for.
        has_signature: Whether that file exists.
        remembered: What the lock file remembers of the subject.
        others: Names of files in the folder to which an earlier rule applies.
    """

    path: str
    subject: str
    root: str | None
    problem: str | None
    matches: tuple[Match, ...]
    signature: str
    has_signature: bool
    remembered: LockEntry | None
    others: tuple[str, ...] = ()

    @property
    def rule(self) -> Match | None:
        """The rule that decides."""
        return next((match for match in self.matches if match.applies), None)


def explain(path: str, policy: Policy, *, name: str | None = None) -> Explanation:
    """What `policy` says about the file or folder at `path`.

    Args:
        path: The file or folder.
        policy: The policy.
        name: What the rules call it, in place of its path below the policy's root.

    Raises:
        DocumentError: The lock file is malformed, or the policy has no root for its patterns.
        OSError: As the operating system has it.
    """
    place = policy.place_of(path)
    model = model_of(place, policy, name=name)
    subject = place.name if name is None else canonical(name)
    names = tuple(folders_above(subject))
    found = [rule.matched(names) for rule in policy.rules]
    if name is None and place.problem:
        found = [None] * len(found)
    first = next((index for index, each in enumerate(found) if each is not None), None)
    matches = tuple(
        Match(index + 1, rule, matched, index == first)
        for index, (rule, matched) in enumerate(zip(policy.rules, found, strict=True))
    )
    others: tuple[str, ...] = ()
    if place.folder and first:
        prefix = "" if subject == "." else f"{subject}/"
        earlier = policy.rules[:first]
        others = tuple(
            entry.name
            for entry in list_folder(place.path)
            if any(rule.matches(f"{prefix}{entry.name}") for rule in earlier)
        )
    lock = lock_of(policy, None)
    signature = model.located.signature
    return Explanation(
        path=subject,
        subject=model.subject,
        root=policy.base,
        problem=place.problem[1] if place.problem and name is None else None,
        matches=matches,
        signature=signature,
        has_signature=os.path.lexists(signature),
        remembered=lock.get(model.subject) if lock else None,
        others=others,
    )


def unreachable(policy: Policy) -> list[int]:
    """Numbers, from 1, of the rules that never decide, because an earlier one matches all they match.

    Recognized are a repeated pattern, and any rule after ``*`` or a pattern that matches its own.
    """
    found = []
    for index, rule in enumerate(policy.rules):
        plain = rule.pattern
        if any(
            earlier.pattern in {"*", plain}
            or (rule.names_one_model and earlier.matches(plain))
            or (earlier.pattern.endswith("/*") and _below(plain, earlier.pattern[:-1]))
            for earlier in policy.rules[:index]
        ):
            found.append(index + 1)
    return found


def _below(pattern: str, folder: str) -> bool:
    """Whether all that `pattern` matches is below `folder`, a text without wildcards."""
    return not any(char in folder for char in "*?[") and pattern.startswith(folder)
