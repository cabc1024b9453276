"""How results show themselves: one line at Python's prompt, a small table in a notebook.

HTML without scripts and styles of its own. Text from files may be hostile: it is escaped for both.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import islice
from typing import TYPE_CHECKING, Final

from .text import escape, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ROWS_MAX", "Displayed", "html_table", "html_text"]

ROWS_MAX: Final = 20
"""Maximum number of rows in a table."""

_TEXT_MAX: Final = 200
"""Maximum number of characters in a cell."""


def html_text(text: str) -> str:
    r"""Text as HTML that shows every character, at most 200 of them.

    >>> html_text("<b>\x1b")
    '&lt;b&gt;\\x1b'
    """
    from html import escape as as_html  # 2 ms that only notebooks need

    return as_html(escape(text[:_TEXT_MAX]))


def html_table(titles: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already, and a line that says how many rows are left out."""
    rows = iter(rows)
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in islice(rows, ROWS_MAX)
    )
    left = sum(1 for _ in rows)
    more = f"<p>and {left:,} more</p>" if left else ""
    head = f"<thead><tr>{head}</tr></thead>" if any(titles) else ""
    return f"<table>{head}<tbody>{body}</tbody></table>{more}"


class Displayed:
    """An object with a line for the prompt and a table for notebooks.

    Subclasses say what is in them; both texts may be hostile, and are escaped here.
    """

    @abstractmethod
    def _summary(self) -> str:
        """One line, without the name of the class."""

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
        """Titles of columns, and rows of cells; empty titles for none."""
        return (), ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {printable(self._summary())}>"

    def _repr_html_(self) -> str:
        titles, rows = self._table()
        shown = [list(map(html_text, row)) for row in rows]
        table = html_table(titles, shown) if shown else ""
        return f"<p><b>{html_text(type(self).__name__)}</b> {html_text(self._summary())}</p>{table}"
