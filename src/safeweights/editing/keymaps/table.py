"""Tables of names: what the same tensors are called in several conventions.

A line is one or more tensors, a column is a convention; columns are separated by tabs.

- ``{a,b}`` stands for `a` and `b`, ``{0-3}`` for the numbers: a line for each. The first braces of every
  column change together, then the second, and so on: ``x{0,1}`` and ``y.{4,5}`` are x0, y.4 and x1, y.5.
- ``<part>`` stands for every line of the section ``[part]``, in each column for its own.
- ``-`` is a tensor that the convention does not have.
- ``scale:MODULE`` is one that it has as an entry of the metadata instead, see `lora`.

The line ``conventions`` names the columns; the section ``[names]`` has the names, the other ones parts.
"""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING, Final, TypeAlias

from ...errors import UnsupportedError, quote
from ...text import similar_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Table", "TableMap"]

Line: TypeAlias = "tuple[str, ...]"

_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_PART: Final = re.compile(r"<(\w+)>")
_RANGE: Final = re.compile(r"(\d+)-(\d+)").fullmatch
_DIGITS: Final = re.compile(r"\d+")
_NONE: Final = "-"
_SCALE: Final = "scale:"


class Table:
    """A table, all its lines written out.

    Attributes:
        conventions: What the columns are called.
        lines: A cell for every convention, for every tensor.
    """

    def __init__(self, text: Iterable[str]) -> None:
        parts: dict[str, list[Line]] = {}
        self.conventions: Line = ()
        section = ""
        for line in text:
            if line.startswith("conventions\t"):
                self.conventions = tuple(line.split("\t")[1:])
            elif line.startswith("["):
                section = line.strip("[]")
                parts[section] = []
            elif line and not line.startswith("#"):
                parts[section].extend(_written_out(tuple(line.split("\t")), parts))
        self.lines = parts["names"]


def _written_out(line: Line, parts: dict[str, list[Line]]) -> Iterator[Line]:
    if part := _PART.search(line[0]):
        for chosen in parts[part[1]]:
            cells = (cell.replace(part[0], own) for cell, own in zip(line, chosen, strict=True))
            yield from _written_out(tuple(cells), parts)
        return
    choices = [[_choices(text) for text in _BRACES.findall(cell)] for cell in line]
    together = [
        list(zip(*group, strict=True)) for group in zip(*filter(None, choices), strict=True)
    ]
    counted = [bool(each) for each in choices]
    for choice in product(*together):
        values = iter(zip(*choice, strict=True))
        yield tuple(
            _filled(cell, next(values)) if has else cell
            for cell, has in zip(line, counted, strict=True)
        )


def _filled(cell: str, values: Line) -> str:
    left = iter(values)
    return _BRACES.sub(lambda _: next(left), cell)


def _choices(text: str) -> list[str]:
    if numbers := _RANGE(text):
        return [str(number) for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    return text.split(",")


class TableMap:
    """The names of one convention -> those of another.

    Attributes:
        names: Old name -> new name.
            Scales that the old convention keeps in the metadata are called ``scale:MODULE``.
        to_scale: Name of a tensor -> the module whose scale it is, which becomes an entry of the metadata.
        from_scale: Whether scales come from the metadata.
    """

    def __init__(self, table: Table, one: str, other: str) -> None:
        old, new = table.conventions.index(one), table.conventions.index(other)
        self._other = other
        self.names: dict[str, str] = {}
        self.to_scale: dict[str, str] = {}
        self._without: set[str] = set()
        for line in table.lines:
            if line[new].startswith(_SCALE):
                self.to_scale[line[old]] = line[new].removeprefix(_SCALE)
            elif line[new] == _NONE:
                self._without.add(line[old])
            elif line[old] != _NONE:
                self.names[line[old]] = line[new]
        self.from_scale = any(name.startswith(_SCALE) for name in self.names)

    def __call__(self, name: str) -> str:
        """The new name.

        Raises:
            UnsupportedError: The table does not have it.
        """
        if name in self.names:
            return self.names[name]
        if name in self._without:
            what = f"the convention {self._other} has no name for {quote(name)}"
        else:
            close = ", ".join(map(quote, self._close(name)))
            hint = f"; similar names: {close}" if close else ""
            what = f"the key map does not know {quote(name)}{hint}"
        raise UnsupportedError(
            f"{what}; nothing is guessed: leave it out (drop, --drop)", tensor=name
        )

    def _close(self, name: str) -> list[str]:
        """Known names that may be meant; of names that differ in numbers only, those with its numbers."""
        known = [each for each in self.names if not each.startswith(_SCALE)]
        series: dict[str, str] = {}
        for each in known:
            series.setdefault(_DIGITS.sub("0", each), each)
        found = []
        for pattern in similar_names(_DIGITS.sub("0", name), series):
            own = _with_numbers(series[pattern], _DIGITS.findall(name))
            found.append(own if own in self.names else series[pattern])
        return found


def _with_numbers(name: str, numbers: list[str]) -> str:
    if len(_DIGITS.findall(name)) != len(numbers):
        return name
    left = iter(numbers)
    return _DIGITS.sub(lambda _: next(left), name)
