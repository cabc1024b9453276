"""Rows of cells -> lines of aligned columns: widths, wrapping, padding.

Widths are counted in the cells of a terminal: East Asian characters take two, combining ones none. A
checkpoint may have a hundred thousand tensors, so every row costs microseconds; a table of a library
for terminals costs a hundred times that.

Text is escaped before it comes here. Knows nothing of colours, nor of where lines go.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.cells import cell_len

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["GAP", "Column", "cells", "fold", "lay_out", "shorten", "stacked", "widths"]

GAP: Final = 2
"""Cells between columns."""

_NARROWEST: Final = 20
"""Cells for the first column below which, if it needs more, it gets lines of its own."""

_LEAST: Final = 4
"""Cells that every column gets, in however narrow a window."""

_CELL_MAX: Final = 240
"""Characters of a field that are shown; one of a million would fill the window for minutes."""

_is_narrow = re.compile(r"[ -~\u2500-\u257f…]*").fullmatch
"""Whether each character takes one cell: ASCII, and what this package draws with."""

_words = re.compile(r" *[^ ]+").findall


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: What stands over it.
        right: Align to the right.
        style: How it is coloured, as rich names styles.
        widest: Most cells it takes; longer fields are wrapped. The first column takes what is left.
    """

    title: str
    right: bool = False
    style: str = ""
    widest: int = 24


def cells(text: str) -> int:
    """How many cells of a terminal `text` takes."""
    return len(text) if _is_narrow(text) else cell_len(text)


def shorten(text: str, limit: int = _CELL_MAX) -> str:
    """`text`, or as much of its beginning as can be shown, and how much that leaves out."""
    if len(text) <= limit:
        return text
    kept = limit - 30
    return f"{text[:kept]}… ({len(text) - kept:,} more)"


def widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], available: int) -> list[int]:
    """The width of each column, in a window of `available` cells.

    Where the first gets all of them there is nothing left for the others: it stands on lines of its
    own, and below it the others, indented by `GAP`; see `stacked`.
    """
    widest = [cells(column.title) for column in columns]
    for row in rows:
        for index, cell in enumerate(row):
            # No text has more cells than twice its characters.
            if 2 * len(cell) > widest[index] and (width := cells(cell)) > widest[index]:
                widest[index] = width
    others = [
        min(width, column.widest) for width, column in zip(widest[1:], columns[1:], strict=True)
    ]
    left = available - sum(others) - GAP * len(others)
    if left >= min(widest[0], _NARROWEST):
        return [min(widest[0], left), *others]
    if sum(others) + GAP * len(others) > available:
        _shrink(others, _longest_words(columns, rows), available - GAP * len(others))
    return [available, *others]


def stacked(wide: Sequence[int], available: int) -> bool:
    """Whether `widths` gave the first column lines of its own."""
    return len(wide) > 1 and wide[0] == available


def _longest_words(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    """What each column but the first needs for no word to be broken; for numbers, for nothing."""
    found = []
    for index, column in enumerate(columns[1:], 1):
        words = set(column.title.split())
        for row in rows:
            words.update((row[index],) if column.right else row[index].split())
        found.append(max(map(cells, words), default=0))
    return found


def _shrink(found: list[int], least: Sequence[int], available: int) -> None:
    """Narrow columns until they fit: while that is possible those that have spaces to be broken at."""
    while sum(found) > available:
        spare = [width - need for width, need in zip(found, least, strict=True)]
        widest = spare.index(max(spare)) if max(spare) > 0 else found.index(max(found))
        if found[widest] <= _LEAST:
            return
        found[widest] -= 1


def lay_out(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], wide: Sequence[int]
) -> Iterator[Sequence[str]]:
    """The lines of `rows`: of each column a text of exactly its width."""
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
    """The lines of a row of which some cell is wider than its column."""
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
    """`text` in lines of at most `width` cells, broken between words where that is possible.

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
    """`text` in pieces of at most `width` cells; what takes none stays with what is before it."""
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
