"""Rows of cells -> lines of aligned columns: widths, wrapping, padding.

Widths are numbers of terminal cells: an East Asian character takes two, a combining character none. A
checkpoint may have 100,000 tensors, so a row may take only microseconds; `rich.table` takes a hundred
times as long.

The text must be escaped already. Knows nothing of colours and of output.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.cells import cell_len

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["GAP", "Column", "Fitting", "cells", "fold", "lay_out", "shorten"]

GAP: Final = 2
"""Cells between columns."""

_NARROWEST: Final = 20
"""Minimum width of the first column; if it needs more and gets less, it is printed on its own lines."""

_CELL_MAX: Final = 240
"""Maximum number of characters shown of a field; hostile names may have millions."""

_is_narrow = re.compile(r"[ -~\u2500-\u257f…]*").fullmatch
"""Matches text of which every character takes one cell: ASCII and the characters of our drawings."""

_words = re.compile(r" *[^ ]+").findall


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: Heading.
        right: Align to the right.
        style: Style of `rich`.
        widest: Maximum width; longer fields are wrapped. It does not apply to the first column, which
            gets the remaining width.
    """

    title: str
    right: bool = False
    style: str = ""
    widest: int = 24


def cells(text: str) -> int:
    """Width of `text` in terminal cells."""
    return len(text) if _is_narrow(text) else cell_len(text)


def shorten(text: str, limit: int = _CELL_MAX) -> str:
    """`text`; if it is longer than `limit`, its beginning and the number of characters left out."""
    if len(text) <= limit:
        return text
    kept = limit - 30
    return f"{text[:kept]}… ({len(text) - kept:,} more)"


class Fitting:
    """The widths of a table's columns, which grow as rows are added.

    A table is drawn while its rows are computed, so the widths fit the rows that were added so far.

    In a narrow window the first column gets all cells. It is then printed on its own lines, with the
    others below it, indented by `GAP`; see `stacked`. If these do not fit beside each other without
    breaking a word or a number, they are printed in groups, one below the other; see `groups`.

    Args:
        columns: The columns.
        available: Width of the window, in cells.
    """

    def __init__(self, columns: Sequence[Column], available: int) -> None:
        self._columns = columns
        self._available = available
        self._widest = [cells(column.title) for column in columns]
        self._words = [max(map(cells, column.title.split()), default=0) for column in columns]
        self.widths: list[int] = []
        self.groups = [slice(1, None)]
        """The columns after the first that are printed beside each other."""

    @property
    def stacked(self) -> bool:
        """Whether the first column is printed on its own lines; never undone by more rows."""
        return len(self.widths) > 1 and self.widths[0] == self._available

    def add(self, rows: Sequence[Sequence[str]]) -> None:
        """Make the columns wide enough for these rows too."""
        widest = self._widest
        for row in rows:
            for index, cell in enumerate(row):
                # A character takes at most two cells: most fields need no measuring.
                if 2 * len(cell) > widest[index] and (width := cells(cell)) > widest[index]:
                    widest[index] = width
        others = [
            min(width, column.widest)
            for width, column in zip(widest[1:], self._columns[1:], strict=True)
        ]
        gaps = GAP * len(others)
        left = self._available - sum(others) - gaps
        if left >= min(widest[0], _NARROWEST):
            self.widths = [min(widest[0], left), *others]
            return
        if sum(others) + gaps > self._available:
            self._measure_words(rows)
            needed = self._words[1:]
            if sum(needed) + gaps <= self._available:
                _shrink(others, needed, self._available - gaps)
            else:
                most = max(1, self._available - GAP)
                others = [min(width, most) for width in others]
        self.widths = [self._available, *others]
        self.groups = list(_groups(self.widths))

    def _measure_words(self, rows: Sequence[Sequence[str]]) -> None:
        """The width that each column but the first needs so that no word and no number is broken."""
        for index, column in enumerate(self._columns[1:], 1):
            words = {self._words[index]}
            for row in rows:
                parts = (row[index],) if column.right else row[index].split()
                words.update(map(cells, parts))
            self._words[index] = max(words)


def _shrink(found: list[int], needed: Sequence[int], available: int) -> None:
    """Narrow columns until they fit, but none below what it needs."""
    while sum(found) > available:
        spare = [width - need for width, need in zip(found, needed, strict=True)]
        found[spare.index(max(spare))] -= 1


def _groups(widths: Sequence[int]) -> Iterator[slice]:
    """The columns after the first in groups, each not wider than the first."""
    begin, taken = 1, 0
    for index, width in enumerate(widths[1:], 1):
        if taken + GAP + width > widths[0] and index > begin:
            yield slice(begin, index)
            begin, taken = index, 0
        taken += GAP + width
    yield slice(begin, None)


def lay_out(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], wide: Sequence[int]
) -> Iterator[Sequence[str]]:
    """The lines of `rows`: a text per column, padded to its width."""
    kinds = [(width, column.right) for width, column in zip(wide, columns, strict=True)]
    for row in rows:
        line = []
        for cell, (width, right) in zip(row, kinds, strict=True):
            if cells(cell) > width:
                yield from _wrapped(columns, row, wide)
                break
            line.append(_pad(cell, width, right))
        else:
            yield line


def _wrapped(
    columns: Sequence[Column], row: Sequence[str], wide: Sequence[int]
) -> Iterator[Sequence[str]]:
    """The lines of a row with a cell wider than its column."""
    pieces = [fold(cell, width) for cell, width in zip(row, wide, strict=True)]
    for line in zip_longest(*pieces, fillvalue=""):
        yield [
            _pad(text, width, column.right)
            for column, text, width in zip(columns, line, wide, strict=True)
        ]


def _pad(text: str, width: int, right: bool) -> str:
    if text.isascii():
        return text.rjust(width) if right else text.ljust(width)
    space = " " * (width - cells(text))
    return space + text if right else text + space


def fold(text: str, width: int) -> list[str]:
    """Break `text` into lines of at most `width` cells, between words if possible.

    >>> fold("[2048, 16] of_a_long_name", 9)
    ['[2048,', '16]', 'of_a_long', '_name']
    """
    if cells(text) <= width:
        return [text]
    lines, line = [], ""
    for word in _words(text.rstrip()):
        if cells(line) + cells(word) <= width:
            line += word
            continue
        if line:
            lines.append(line)
        *whole, line = _chop(word.lstrip() if line else word, width)
        lines += whole
    return [*lines, line]


def _chop(text: str, width: int) -> list[str]:
    """Cut `text` into pieces of at most `width` cells; combining characters stay with their base."""
    if _is_narrow(text):
        return [text[begin : begin + width] for begin in range(0, len(text), width)] or [""]
    pieces, begin, taken = [], 0, 0
    for index, character in enumerate(text):
        size = cell_len(character)
        if taken + size > width and index > begin:
            pieces.append(text[begin:index])
            begin, taken = index, 0
        taken += size
    return [*pieces, text[begin:]]
