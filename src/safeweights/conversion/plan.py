"""Decides what a conversion writes: which tensors, under which names; tied weights once.

Nothing is read or written here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint, Tensor  # noqa: TC001 - get_type_hints must work
from ..errors import UnsupportedError, quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Plan", "make_plan", "parse_renames", "prefix_renames"]


def parse_renames(rules: Iterable[str | tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    r"""Parse rules ``"OLD=NEW"`` into regular expressions and replacements.

    The first ``=`` without a backslash separates them; ``\1`` in NEW stands for a group of OLD.

    Raises:
        UnsupportedError: A rule has no ``=``, or its OLD is not a regular expression.

    >>> [(old.pattern, new) for old, new in parse_renames([r"^module\.="])]
    [('^module\\.', '')]
    """
    parsed = []
    for rule in rules:
        old, separator, new = (rule[0], "=", rule[1]) if isinstance(rule, tuple) else _split(rule)
        try:
            pattern = re.compile(old)
            pattern.sub(new, "")
        except (re.error, IndexError) as error:
            raise UnsupportedError(f"{quote(old)} is not a regular expression: {error}") from error
        if not separator:
            raise UnsupportedError(f"the rule {quote(old)} has no `=`; write OLD=NEW")
        parsed.append((pattern, new))
    return parsed


def prefix_renames(prefixes: Iterable[str]) -> list[tuple[re.Pattern[str], str]]:
    """Rules that remove `prefixes`, one after another, from the names that have them.

    Raises:
        UnsupportedError: A prefix is empty.

    >>> [old.sub(new, "module.w") for old, new in prefix_renames(["module."])]
    ['w']
    """
    prefixes = list(prefixes)
    if "" in prefixes:
        raise UnsupportedError("a prefix to remove is empty")
    return [(re.compile("^" + re.escape(prefix)), "") for prefix in prefixes]


def _split(rule: str) -> tuple[str, str, str]:
    match = re.match(r"((?:[^=\\]|\\.)*)(=?)(.*)", rule, re.DOTALL)
    assert match is not None
    return match[1].replace(r"\=", "="), match[2], match[3]


@dataclass
class Plan:
    """What is written for one source.

    Attributes:
        tensors: New name -> tensor.
        ties: New name -> the new name of the tensor that has the same bytes and is written instead.
        renamed: Old name -> new name, where they differ.
        skipped: Old names that were left out on request.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def make_plan(
    checkpoint: Checkpoint,
    aliases: Mapping[str, str],
    *,
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
    renames: Iterable[tuple[re.Pattern[str], str]] = (),
    keep_ties: bool = False,
) -> Plan:
    """The plan for one source.

    Args:
        checkpoint: The source.
        aliases: Name -> the first name of a tensor with the same memory.
        only: Patterns of names to write; see `Checkpoint.filter`.
        skip: Patterns of names to leave out.
        renames: Regular expressions and replacements, applied in order.
        keep_ties: Write tied weights under each of their names.

    Raises:
        UnsupportedError: A wanted tensor cannot be given.
        FormatError: Two tensors would get one name.
    """

    def new_name(name: str) -> str:
        for pattern, replacement in renames:
            name = pattern.sub(replacement, name)
        return name

    renames = list(renames)
    kept = checkpoint.filter(only=only, skip=skip)
    if refused := kept.refused:
        raise _refusal(refused, checkpoint.name)
    plan = Plan()
    if len(kept) < len(checkpoint):
        plan.skipped = [name for name in checkpoint if name not in kept]
    if not (renames or aliases):
        # Most often. To look at each name takes a tenth of a conversion.
        plan.tensors = dict(kept.items())
        return plan
    named = kept.rename(new_name)
    written: dict[str, str] = {}  # the new name of the first of each tied group that is wanted
    for name, (target, tensor) in zip(kept, named.items(), strict=True):
        if target != name:
            plan.renamed[name] = target
        first = written.setdefault(aliases.get(name, name), target)
        if first != target and not keep_ties:
            plan.ties[target] = first
        else:
            plan.tensors[target] = tensor
    return plan


def _refusal(refused: Mapping[str, str], path: str) -> UnsupportedError:
    names = list(refused)
    shown = "; ".join(f"{quote(name)}: {refused[name]}" for name in names[:5])
    more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
    return UnsupportedError(
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} cannot be converted: {shown}{more}. "
        "skip (--skip) leaves out those that are not needed",
        path=path,
        tensor=names[0],
    )
