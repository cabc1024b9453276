"""What a conversion will write: which tensors, under which names.

Pure decisions over a mapping of tensors: filter, rename, tied weights. Nothing is read and nothing
written here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..checkpoint import Tensor  # noqa: TC001 - get_type_hints must work
from ..errors import FormatError, UnsupportedError, quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Plan", "Selection", "make_plan", "parse_renames"]


def parse_renames(rules: Iterable[str | tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    r"""Rules ``"OLD=NEW"`` as regular expressions and replacements.

    The first ``=`` that is not escaped separates them; ``\1`` in NEW stands for a group of OLD.

    Raises:
        UnsupportedError: A rule has no ``=`` or is no regular expression.

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
            raise UnsupportedError(f"{quote(old)} is no regular expression: {error}") from error
        if not separator:
            raise UnsupportedError(f"the rule {quote(old)} has no `=`; write OLD=NEW")
        parsed.append((pattern, new))
    return parsed


def _split(rule: str) -> tuple[str, str, str]:
    match = re.match(r"((?:[^=\\]|\\.)*)(=?)(.*)", rule, re.DOTALL)
    assert match is not None
    return match[1].replace(r"\=", "="), match[2], match[3]


@dataclass(frozen=True)
class Selection:
    """Which tensors are written, and what they are called.

    Attributes:
        only: Shell patterns; all tensors if there are none.
        skip: Shell patterns of what is left out.
        renames: Regular expressions and replacements, applied in order.
        keep_ties: Write tied weights once for each name instead of once.
    """

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    renames: tuple[tuple[re.Pattern[str], str], ...] = ()
    keep_ties: bool = False

    def wants(self, name: str) -> bool:
        """Whether the tensor of the source called `name` is to be written."""
        wanted = not self.only or any(fnmatchcase(name, pattern) for pattern in self.only)
        return wanted and not any(fnmatchcase(name, pattern) for pattern in self.skip)

    def new_name(self, name: str) -> str:
        """What the tensor of the source called `name` is to be called."""
        for pattern, replacement in self.renames:
            name = pattern.sub(replacement, name)
        return name


@dataclass
class Plan:
    """What will be written.

    Attributes:
        tensors: New name -> tensor.
        ties: New name -> the new name of the tensor that is written for it.
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
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    selection: Selection,
    path: str,
) -> Plan:
    """The plan for one source.

    Args:
        tensors: Name -> tensor.
        aliases: Name -> the first name that shows the same bytes.
        selection: What is wanted.
        path: The source, for messages.

    Raises:
        UnsupportedError: A wanted tensor cannot be given.
        FormatError: Two tensors would get one name.
    """
    refused = {
        name: tensor.unreadable
        for name, tensor in tensors.items()
        if tensor.unreadable is not None and selection.wants(name)
    }
    if refused:
        raise _refusal(refused, path)
    plan = Plan()
    written: dict[str, str] = {}  # the first name of each tied group that is wanted
    origin: dict[str, str] = {}
    for name, tensor in tensors.items():
        if not selection.wants(name):
            plan.skipped.append(name)
            continue
        target = selection.new_name(name)
        if target in origin:
            raise FormatError(
                f"{quote(origin[target])} and {quote(name)} would both be called {quote(target)}",
                rule="name-collision",
                path=path,
                tensor=name,
            )
        origin[target] = name
        if target != name:
            plan.renamed[name] = target
        first = written.setdefault(aliases.get(name, name), target)
        if first != target and not selection.keep_ties:
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
