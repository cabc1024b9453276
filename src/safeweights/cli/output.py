r"""How a command prints: JSON documents, tab-separated lines, messages, all of them escaped.

Names, metadata and paths come from strangers. What is printed contains no control character, no
bidirectional override, no line break and no lone surrogate from them (CWE-150): `escape` writes
these, and the backslash, as Python's string literals do, so that a program can undo it; `printable`
is for sentences, whose names are quoted already.

Knows nothing of commands, and imports `rich` only through `terminal`, on a terminal.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, TextIO

from ..text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .terminal import Terminal

__all__ = ["Output", "can_draw"]

_BATCH: Final = 1000


@dataclass(frozen=True)
class Output:
    """Where and how a command prints.

    Attributes:
        json: One JSON document is asked for.
        terminal: Standard output is a terminal, people read it, and there is what draws for them.
    """

    json: bool
    terminal: bool

    @classmethod
    def of_process(cls, *, json: bool) -> Output:
        """For standard output as it is now."""
        stream = _stdout()
        if hasattr(stream, "reconfigure"):
            # A character that the encoding does not have is written as `escape` would write it.
            stream.reconfigure(errors="backslashreplace")
        return cls(json, stream.isatty() and can_draw())

    def document(self, record: Mapping[str, Any]) -> None:
        """Print the one JSON document of this run, in ASCII."""
        text = json.dumps(
            record,
            allow_nan=False,
            indent=2 if self.terminal else None,
            separators=None if self.terminal else (",", ":"),
        )
        _stdout().write(f"{text}\n")

    def lines(self, rows: Iterable[Iterable[str]]) -> None:
        """Print rows of fields that are escaped already, separated by tabs."""
        stream = _stdout()
        iterator = iter(rows)
        for first in iterator:
            batch = chain((first,), islice(iterator, _BATCH - 1))
            stream.write("".join(["\t".join(row) + "\n" for row in batch]))

    def line(self, *fields: str) -> None:
        """Print one row of fields that are escaped already."""
        self.lines([fields])

    def pretty(self) -> Terminal:
        """What draws on a terminal; imports `rich`."""
        from .terminal import Terminal

        return Terminal(_stdout())

    @staticmethod
    def message(text: str, *, own_line: bool = False) -> None:
        """Say something on standard error.

        Args:
            text: One sentence.
            own_line: A terminal has begun a line already, with the ``^C`` that somebody typed.
        """
        if sys.stderr is not None:
            begin = "\n" if own_line and sys.stderr.isatty() else ""
            sys.stderr.write(f"{begin}safeweights: {printable(text)}\n")

    def flush(self) -> None:
        """Raise now what writing to standard output would raise when the process ends."""
        _stdout().flush()

    @staticmethod
    def abandon() -> None:
        """Nobody reads standard output any more: what is buffered for it goes nowhere."""
        try:
            descriptor = _stdout().fileno()
        except (OSError, ValueError):
            return  # not a real file: a test's, an embedding program's
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def can_draw() -> bool:
    """Whether `rich` is installed; where it is not, a terminal gets what a pipe would."""
    from importlib.util import find_spec

    return find_spec("rich") is not None


def _stdout() -> TextIO:
    """Standard output; a process may have been started without."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    return sys.stdout
