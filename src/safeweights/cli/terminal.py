"""Drawing on a terminal: tables, key-value lists, wrapped sentences, progress. The only user of `rich`.

Text is escaped before it comes here, and never parsed as markup. Colours follow NO_COLOR and TERM,
widths follow the window (`rich.console.Console`).
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["Column", "Terminal", "progress"]

_CELL_MAX: Final = 240
"""Characters of a field that are shown; one of a million would fill the window for minutes."""

_BATCH: Final = 200
_GAP: Final = 2
_NARROWEST: Final = 12


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: What stands over it.
        right: Align to the right.
        style: As rich names styles.
        widest: Most cells it takes; longer fields are wrapped. The first column takes what is left.
        cut: Cut longer fields instead.
    """

    title: str
    right: bool = False
    style: str = ""
    widest: int = 24
    cut: bool = False


class Terminal:
    """Standard output as a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, emoji=False, markup=False)
        self.width = self._console.width

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
        """Print a table; the first column is wrapped where the window is narrow."""
        kept = [[_shorten(cell) for cell in row] for row in rows]
        widths = self._widths(columns, kept)
        batches = iter(kept)
        heading = True
        # A table is laid out before it is printed: of a long one, people see the beginning at once.
        for first in batches:
            table = Table(
                box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=heading,
                header_style="bold",
            )  # fmt: skip
            for column, width in zip(columns, widths, strict=True):
                table.add_column(
                    Text(column.title), width=width, justify="right" if column.right else "left",
                    style=column.style, overflow="ellipsis" if column.cut else "fold",
                    no_wrap=column.cut,
                )  # fmt: skip
            for row in chain((first,), islice(batches, _BATCH - 1)):
                table.add_row(*map(Text, row))
            self._console.print(table)
            heading = False

    def _widths(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
        widest = [cell_len(column.title) for column in columns]
        for row in rows:
            for index, cell in enumerate(row):
                widest[index] = max(widest[index], cell_len(cell))
        others = [
            min(width, column.widest) for width, column in zip(widest[1:], columns[1:], strict=True)
        ]
        left = self.width - sum(others) - _GAP * len(others)
        return [max(_NARROWEST, min(widest[0], left)), *others]

    def pairs(self, items: Iterable[tuple[str, str]], indent: int = 2) -> None:
        """Print names and values, the values aligned and wrapped."""
        kept = [(_shorten(name), _shorten(value)) for name, value in items]
        widest = max((cell_len(name) for name, _ in kept), default=0)
        table = Table.grid(padding=(0, _GAP, 0, 0))
        table.add_column(width=min(widest, self.width // 2), style="cyan", overflow="fold")
        table.add_column(overflow="fold")
        for name, value in kept:
            table.add_row(Text(name), Text(value))
        self._console.print(Padding(table, (0, 0, 0, indent)))

    def text(self, *parts: str | tuple[str, str], indent: int = 0) -> None:
        """Print one paragraph of parts, each plain or (text, style)."""
        paragraph = Text(overflow="fold")
        for part in parts:
            if isinstance(part, tuple):
                paragraph.append(_shorten(part[0], 2000), part[1])
            else:
                paragraph.append(_shorten(part, 2000))
        self._console.print(Padding(paragraph, (0, 0, 0, indent)) if indent else paragraph)

    def raw(self, text: str) -> None:
        """Print lines that fit the window already."""
        self._console.print(Text(text), soft_wrap=True)

    def blank(self) -> None:
        """Print an empty line."""
        self._console.print()


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show how far something has come, on standard error; the line goes away at the end.

    Args:
        what: What is being done, in a few words.
        total: When it is done; the callable that is handed out is told how far it is.
    """
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    console = Console(stderr=True, highlight=False, emoji=False, markup=False)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.update(task, completed=done)


def _shorten(text: str, limit: int = _CELL_MAX) -> str:
    if len(text) <= limit:
        return text
    kept = limit - 30
    return f"{text[:kept]}… ({len(text) - kept:,} more)"
