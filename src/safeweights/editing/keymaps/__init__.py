"""Renamings between conventions that are known, as data: one file each in this folder.

Two kinds of files, each of which says in its first line what it is for:

- ``NAME.rules``: what wrappers put before names. A line is a regular expression and its replacement,
  separated by a tab; lines apply in order, to every name, and a name that none matches stays.
- ``NAME.table``: what the same tensors are called in several conventions, one column each (`table`). It
  gives a map for every pair of them, ``NAME:ONE-to-OTHER``; a name that the table lacks is refused.

``#`` begins a comment. A map is here only if it is exact: names alone decide, and nothing is guessed.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from itertools import permutations
from typing import TYPE_CHECKING, Final

from ...errors import UnsupportedError, quote
from ...text import similar_names
from .table import Table, TableMap

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["describe", "key_map", "key_maps", "table_of"]

_RULES, _TABLE = ".rules", ".table"
_TO: Final = "-to-"


@cache
def key_maps() -> dict[str, str]:
    """The name of every map -> what it is for, in one line."""
    found = {}
    for file in resources.files(__package__).iterdir():
        if file.name.endswith(_RULES):
            found[file.name.removesuffix(_RULES)] = describe(file.name)
        elif file.name.endswith(_TABLE):
            name, about = file.name.removesuffix(_TABLE), describe(file.name)
            for one, other in permutations(table_of(name).conventions, 2):
                found[f"{name}:{one}{_TO}{other}"] = about
    return dict(sorted(found.items()))


def key_map(name: str) -> TableMap | Callable[[str], str]:
    r"""A map by its name: of a table, or else a function from old names to new ones.

    Raises:
        UnsupportedError: There is no such map; the message names similar ones.

    >>> key_map("torch-compile")("_orig_mod.layers.0.weight")
    'layers.0.weight'
    """
    known = key_maps()
    if name not in known:
        close = (
            similar_names(name, known) or [each for each in known if each.startswith(name)] or known
        )
        raise UnsupportedError(
            f"there is no key map {quote(name)}; there is {', '.join(map(quote, close))}"
        )
    stem, _, direction = name.partition(":")
    if direction:
        one, _, other = direction.partition(_TO)
        return TableMap(table_of(stem), one, other)
    return _renamer(_lines(stem + _RULES))


@cache
def table_of(name: str) -> Table:
    """The table in the file `name`."""
    return Table(_lines(name + _TABLE))


def describe(file: str) -> str:
    """What the maps in a file are for, in one line."""
    return _lines(file)[0].lstrip("# ")


def _renamer(lines: list[str]) -> Callable[[str], str]:
    rules = [
        (re.compile(old), new)
        for line in lines
        if line and not line.startswith("#")
        for old, new in [line.split("\t")]
    ]

    def new_name(text: str) -> str:
        for old, new in rules:
            text = old.sub(new, text)
        return text

    return new_name


def _lines(file: str) -> list[str]:
    text = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    return text.splitlines()
