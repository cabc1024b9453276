"""Drawing on a terminal: tables, key-value lists, wrapped sentences, progress. The only user of `rich`.

The text must be escaped already; it is never parsed as markup. Widths follow the window. NO_COLOR turns
off colours but not bold and dim (no-color.org); TERM=dumb turns off all styles (`rich.console.Console`).
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from time import monotonic
from typing import TYPE_CHECKING, Final, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .columns import GAP, Column, Fitting, cells, fold, lay_out, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    _Rows = Iterable[Sequence[str]]

__all__ = ["Column", "Terminal", "progress"]

_BATCH: Final = 1000
"""Number of lines per write."""

_PATIENCE: Final = 0.3
"""Seconds after which the rows that there are so far are printed."""


class Terminal:
    """Standard output as a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, emoji=False, markup=False)
        self.width = self._console.width
        self._codes: dict[str, str] = {}

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
        """Print a table while its rows are computed.

        The first rows are printed after a fraction of a second, and the columns become wider where later
        rows need it. In a narrow window the first column is wrapped or printed on its own lines.
        """
        fitting = Fitting(columns, self.width)
        first = True
        for kept in _batches([shorten(cell) for cell in row] for row in rows):
            fitting.add(kept)
            print_rows = partial(
                self._stacked if fitting.stacked else self._aligned, fitting, columns
            )
            if first:
                titles = [[column.title for column in columns]]
                print_rows(titles, ["bold"] * len(columns))
                first = False
            print_rows(kept, [column.style for column in columns])
            self._console.file.flush()

    def _aligned(
        self, fitting: Fitting, columns: Sequence[Column], rows: _Rows, styles: Sequence[str]
    ) -> None:
        self._lines(lay_out(columns, rows, fitting.widths), self._pattern(styles))

    def _stacked(
        self, fitting: Fitting, columns: Sequence[Column], rows: _Rows, styles: Sequence[str]
    ) -> None:
        above = self._pattern(styles[:1])
        groups = [(group, self._pattern(["", *styles[group]])) for group in fitting.groups]
        for row in rows:
            if row[0]:
                self._lines(([line] for line in fold(row[0], fitting.widths[0])), above)
            for group, below in groups:
                found = lay_out(columns[group], [row[group]], fitting.widths[group])
                self._lines((("", *line) for line in found), below)

    def _pattern(self, styles: Sequence[str]) -> str:
        return (" " * GAP).join([self._code("%s", style) for style in styles]) + "\n"

    def _lines(self, lines: Iterable[Sequence[str]], pattern: str) -> None:
        iterator = iter(lines)
        for first in iterator:
            batch = chain((first,), islice(iterator, _BATCH - 1))
            self._console.file.write("".join([pattern % tuple(line) for line in batch]))

    def _code(self, text: str, style: str) -> str:
        """`text` with the escape sequences that show it in a style."""
        if not style or self._console.legacy_windows:  # old Windows consoles have no sequences
            return text
        if style not in self._codes:  # rich takes milliseconds, and a long table is many batches
            with self._console.capture() as written:
                self._console.print(Text("%s", style), end="")
            self._codes[style] = written.get()
        return self._codes[style].replace("%s", text)

    def pairs(self, items: Iterable[tuple[str, str]], indent: int = 2) -> None:
        """Print names and values, with the values aligned and wrapped."""
        kept = [(shorten(name), shorten(value)) for name, value in items]
        widest = max((cells(name) for name, _ in kept), default=0)
        table = Table.grid(padding=(0, GAP, 0, 0))
        table.add_column(width=min(widest, self.width // 2), style="cyan", overflow="fold")
        table.add_column(overflow="fold")
        for name, value in kept:
            table.add_row(Text(name), Text(value))
        self._console.print(Padding(table, (0, 0, 0, indent)))

    def text(self, *parts: str | tuple[str, str], indent: int = 0) -> None:
        """Print a paragraph; each part is a text or a pair (text, style)."""
        paragraph = Text(overflow="fold")
        for part in parts:
            if isinstance(part, tuple):
                paragraph.append(shorten(part[0], 2000), part[1])
            else:
                paragraph.append(shorten(part, 2000))
        self._console.print(Padding(paragraph, (0, 0, 0, indent)) if indent else paragraph)

    def raw(self, text: str) -> None:
        """Print text without wrapping it."""
        self._console.file.write(f"{text}\n")

    def blank(self) -> None:
        """Print an empty line."""
        self._console.print()


def _batches(rows: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    """Rows in groups: `_BATCH` of them, or those that came within `_PATIENCE`."""
    batch: list[list[str]] = []
    began = monotonic()
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH or monotonic() - began > _PATIENCE:
            yield batch
            batch, began = [], monotonic()
    if batch:
        yield batch


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar on standard error; it disappears at the end.

    Args:
        what: Description of the work, in a few words.
        total: Amount of work. The caller passes the amount done so far to the yielded function.
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
