"""Drawing on a terminal: tables, key-value lists, wrapped sentences, progress. The only user of `rich`.

The text must be escaped already; it is never parsed as markup. Widths follow the window. NO_COLOR turns
off colours but not bold and dim (no-color.org); TERM=dumb turns off all styles (`rich.console.Console`).
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .columns import GAP, Column, cells, fold, lay_out, shorten, stacked, widths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    _Rows = Iterable[Sequence[str]]

__all__ = ["Column", "Terminal", "progress"]

_BATCH: Final = 1000
"""Number of lines per write."""


class Terminal:
    """Standard output as a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, emoji=False, markup=False)
        self.width = self._console.width

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
        """Print a table; in a narrow window the first column is wrapped or printed on its own lines."""
        kept = [[shorten(cell) for cell in row] for row in rows]
        if not kept:
            return
        wide = widths(columns, kept, self.width)
        lines = self._stacked if stacked(wide, self.width) else self._aligned
        lines(columns, [[column.title for column in columns]], wide, ["bold"] * len(columns))
        lines(columns, kept, wide, [column.style for column in columns])

    def _aligned(
        self, columns: Sequence[Column], rows: _Rows, wide: Sequence[int], styles: Sequence[str]
    ) -> None:
        self._lines(lay_out(columns, rows, wide), self._pattern(styles))

    def _stacked(
        self, columns: Sequence[Column], rows: _Rows, wide: Sequence[int], styles: Sequence[str]
    ) -> None:
        above, below = self._pattern(styles[:1]), self._pattern(["", *styles[1:]])
        for first, *others in rows:
            self._lines(([line] for line in fold(first, wide[0])), above)
            found = lay_out(columns[1:], [others], wide[1:])
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
        with self._console.capture() as written:
            self._console.print(Text(text, style), end="")
        return written.get()

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
