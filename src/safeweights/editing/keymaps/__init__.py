"""Renamings between conventions that are known, as data: one file each in this folder.

A line is a regular expression and its replacement, separated by a tab; lines apply in order, to every
name. A line that begins with ``*`` applies again until it changes nothing. ``#`` begins a comment. The
first line says what the map is for. A map is here only if it is exact: it needs names alone, never
values, and no guess.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING, Final

from ...errors import UnsupportedError, quote
from ...text import similar_names

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["describe", "key_maps", "renamer"]

_SUFFIX: Final = ".tsv"
_REPEATS_MAX: Final = 64


def key_maps() -> list[str]:
    """The names of all maps."""
    files = resources.files(__package__).iterdir()
    return sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX))


def describe(name: str) -> str:
    """What a map is for, in one line."""
    return _lines(name)[0].lstrip("# ")


def renamer(name: str) -> Callable[[str], str]:
    r"""The function from old names to new ones.

    Raises:
        UnsupportedError: There is no such map.

    >>> renamer("torch-compile")("_orig_mod.layers.0.weight")
    'layers.0.weight'
    """
    rules = [
        (line.startswith("*"), re.compile(old), new)
        for line in _lines(name)
        if line and not line.startswith("#")
        for old, new in [line.removeprefix("*").split("\t")]
    ]

    def new_name(text: str) -> str:
        for repeats, old, new in rules:
            for _ in range(_REPEATS_MAX if repeats else 1):
                text, changes = old.subn(new, text)
                if not changes:
                    break
        return text

    return new_name


def _lines(name: str) -> list[str]:
    known = key_maps()
    if name not in known:
        close = ", ".join(map(quote, similar_names(name, known))) or ", ".join(known)
        raise UnsupportedError(f"there is no key map {quote(name)}; there is {close}")
    text = resources.files(__package__).joinpath(name + _SUFFIX).read_text(encoding="utf-8")
    return text.splitlines()
