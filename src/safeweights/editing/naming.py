"""Edits of names: which tensors stay, what they are called, what they are tied to. Nothing is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ..checkpoint import Checkpoint
from ..checkpoint.mapping import matches
from ..errors import FormatError, TensorNotFoundError, UnsupportedError, quote
from ..text import similar_names
from .keymaps import key_map
from .keymaps.table import TableMap
from .lora import move_scales

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from .model import Model
    from .request import Edits

__all__ = ["Naming", "check_patterns", "named"]

_WILD: Final = re.compile(r"[*?\[\]]+")


@dataclass
class Naming:
    """What happens to names.

    Attributes:
        model: The model with its new names.
        renamed: Old name -> new name, where they differ.
        dropped: Old names that were left out.
        untied: New names of tied names that became tensors of their own.
        note: A sentence about what the key map did besides renaming, if anything.
    """

    model: Model
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    untied: list[str] = field(default_factory=list)
    note: str = ""


def named(model: Model, edits: Edits) -> Naming:
    """Apply all edits of names.

    Raises:
        FormatError: Two names would become one (rule ``name-collision``); a tie would break (rule
            ``broken-tie``).
        UnsupportedError: A pattern or a name matches nothing; the message has similar names.
    """
    tied = {alias: model.tensors[kept] for alias, kept in model.ties.items()}
    everything = Checkpoint({**model.tensors, **tied}, name=model.name)
    check_patterns("untie", edits.untie, model.ties)
    check_patterns("keep", edits.keep, everything)
    check_patterns("drop", edits.drop, everything)
    kept = everything.filter(only=edits.keep, skip=edits.drop)
    metadata = dict(model.metadata)
    done = Naming(replace(model, tensors={}, ties={}, homes={}, metadata=metadata))
    done.dropped = [name for name in everything if name not in kept]
    known = None if edits.map is None else key_map(edits.map)
    if isinstance(known, TableMap):
        tensors, done.note = move_scales(dict(kept), metadata, known)
        kept = everything = Checkpoint(tensors, name=model.name)
    new_name = _Renamer(edits, known)
    names = dict(zip(kept, kept.rename(new_name), strict=True))
    new_name.check(kept)
    done.renamed = {old: new for old, new in names.items() if old != new}
    for old, new in names.items():
        target = model.ties.get(old)
        if target is not None and not matches(old, edits.untie):
            if target not in names:
                raise _broken(old, target, model)
            done.model.ties[new] = names[target]
            continue
        if target is not None:
            done.untied.append(new)
        done.model.tensors[new] = everything[old]
        home = model.homes.get(old if target is None else target)
        if home is not None:
            done.model.homes[new] = home
    return done


def check_patterns(option: str, patterns: Iterable[str], names: Collection[str]) -> None:
    """Refuse a pattern that matches no name.

    Raises:
        UnsupportedError: With similar names.
    """
    for pattern in patterns:
        if not any(matches(name, (pattern,)) for name in names):
            raise _no_match(option, pattern, _WILD.sub("", pattern), names)


def _no_match(option: str, what: str, text: str, names: Collection[str]) -> UnsupportedError:
    # A pattern stands for longer names, of which it may be the beginning.
    begins = {name[: len(text)]: name for name in names}
    close = [begins[each] for each in similar_names(text, begins)] or similar_names(text, names)
    hint = f"; similar names: {', '.join(map(quote, close))}" if close else ""
    return UnsupportedError(f"{option}: {quote(what)} matches no tensor{hint}")


def _broken(alias: str, target: str, model: Model) -> FormatError:
    return FormatError(
        f"{quote(alias)} is tied to {quote(target)}, which would be left out: leave out both, or write "
        "it as a tensor of its own (untie, --untie)",
        rule="broken-tie", path=model.name or None, tensor=alias,
    )  # fmt: skip


class _Renamer:
    """The function from old names to new ones; it notes which of its rules did anything."""

    def __init__(self, edits: Edits, known: Callable[[str], str] | None) -> None:
        self._exact = edits.rename
        self._steps: list[tuple[str, str, Callable[[str], str]]] = []
        if known is not None:
            self._steps.append(("map", edits.map or "", known))
        if edits.rename:
            self._steps.append(("rename", "", lambda name: edits.rename.get(name, name)))
        for old, new in edits.rename_re.items():
            self._steps.append(("rename-re", old, _substitution(old, new)))
        for prefix in edits.strip_prefix:
            self._steps.append(("strip-prefix", prefix, _without(prefix)))
        self._prefix = edits.add_prefix
        self._used: set[int] = set()
        self._renamed: set[str] = set()

    def __call__(self, name: str) -> str:
        for number, (kind, _, step) in enumerate(self._steps):
            if kind == "rename" and name in self._exact:
                self._renamed.add(name)
            new = step(name)
            if new != name:
                self._used.add(number)
            name = new
        return self._prefix + name

    def check(self, names: Collection[str]) -> None:
        """Refuse rules that did nothing.

        Raises:
            UnsupportedError: A rule matched no name.
            TensorNotFoundError: A name to be renamed is not there.
        """
        for old in self._exact.keys() - self._renamed:
            close = ", ".join(map(quote, similar_names(old, names)))
            hint = f"; similar names: {close}" if close else ""
            raise TensorNotFoundError(f"rename: there is no tensor {quote(old)}{hint}", tensor=old)
        for number, (kind, what, _) in enumerate(self._steps):
            if kind != "rename" and number not in self._used:
                raise _no_match(kind, what, what, names)


def _substitution(old: str, new: str) -> Callable[[str], str]:
    try:
        pattern = re.compile(old)
        pattern.sub(new, "")
    except (re.error, IndexError) as error:
        raise UnsupportedError(f"{quote(old)} is not a regular expression: {error}") from error
    return lambda name: pattern.sub(new, name)


def _without(prefix: str) -> Callable[[str], str]:
    return lambda name: name.removeprefix(prefix)
