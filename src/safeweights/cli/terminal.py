"""Drawing on a terminal: tables, key-value lists, wrapped sentences, progress. The only user of `rich`.

Text is escaped before it comes here, and never parsed as markup. Colours follow NO_COLOR and TERM,
widths follow the window (`rich.console.Console`).
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .columns import GAP, Column, cells, lay_out, shorten, widths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["Column", "Terminal", "progress"]

_BATCH: Final = 1000
"""Lines written at a time."""


class Terminal:
    """Standard output as a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, emoji=False, markup=False)
        self.width = self._console.width

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
        """Print a table; the first column is wrapped where the window is narrow."""
        kept = [[shorten(cell) for cell in row] for row in rows]
        if not kept:
            return
        wide = widths(columns, kept, self.width)
        heading = lay_out(columns, [[column.title for column in columns]], wide)
        self._lines(heading, ["bold"] * len(columns))
        self._lines(lay_out(columns, kept, wide), [column.style for column in columns])

    def _lines(self, lines: Iterable[Sequence[str]], styles: Sequence[str]) -> None:
        pattern = (" " * GAP).join([self._code("%s", style) for style in styles]) + "\n"
        iterator = iter(lines)
        for first in iterator:
            batch = chain((first,), islice(iterator, _BATCH - 1))
            self._console.file.write("".join([pattern % tuple(line) for line in batch]))

    def _code(self, text: str, style: str) -> str:
        """What the console writes to show `text` in a style."""
        if not style or self._console.legacy_windows:  # which is coloured by calls instead
            return text
        with self._console.capture() as written:
            self._console.print(Text(text, style), end="")
        return written.get()

    def pairs(self, items: Iterable[tuple[str, str]], indent: int = 2) -> None:
        """Print names and values, the values aligned and wrapped."""
        kept = [(shorten(name), shorten(value)) for name, value in items]
        widest = max((cells(name) for name, _ in kept), default=0)
        table = Table.grid(padding=(0, GAP, 0, 0))
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
                paragraph.append(shorten(part[0], 2000), part[1])
            else:
                paragraph.append(shorten(part, 2000))
        self._console.print(Padding(paragraph, (0, 0, 0, indent)) if indent else paragraph)

    def raw(self, text: str) -> None:
        """Print lines that fit the window already."""
        self._console.file.write(f"{text}\n")

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
