r"""How commands print: JSON documents, tab-separated lines, messages.

Names, metadata and paths may be hostile. Their control characters, bidirectional overrides, line breaks
and lone surrogates must not reach a terminal or a log (CWE-150). `text.escape` writes them, and the
backslash, as in Python's string literals, so that a program can decode the field. `text.printable` is for
sentences, in which names are quoted already.

Knows nothing of commands. Imports `rich` only through `terminal`, and only on a terminal.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, TextIO

from ..text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .terminal import Terminal

__all__ = ["Output", "can_draw"]

_BATCH: Final = 1000


class Output:
    """Where and how a command prints.

    Attributes:
        json: The option ``--json`` was given.
        terminal: Standard output is a terminal, and `rich` is installed.
    """

    def __init__(self, *, json: bool, terminal: bool) -> None:
        self.json = json
        self.terminal = terminal

    @classmethod
    def of_process(cls, *, json: bool) -> Output:
        """The output for the current standard output."""
        stream = _stdout()
        if hasattr(stream, "reconfigure"):
            # Characters that the encoding lacks are written as `escape` would write them.
            stream.reconfigure(errors="backslashreplace")
        return cls(json=json, terminal=stream.isatty() and can_draw())

    def document(self, record: Mapping[str, Any]) -> None:
        """Print the JSON document of this run, in ASCII."""
        text = json.dumps(
            record,
            allow_nan=False,
            indent=2 if self.terminal else None,
            separators=None if self.terminal else (",", ":"),
        )
        _stdout().write(f"{text}\n")

    def lines(self, rows: Iterable[Iterable[str]]) -> None:
        """Print rows of fields, separated by tabs; the fields must be escaped already."""
        stream = _stdout()
        iterator = iter(rows)
        for first in iterator:
            batch = chain((first,), islice(iterator, _BATCH - 1))
            stream.write("".join(["\t".join(row) + "\n" for row in batch]))

    def line(self, *fields: str) -> None:
        """Print one row of fields, which must be escaped already."""
        self.lines([fields])

    def pretty(self) -> Terminal:
        """The object that draws on a terminal; imports `rich`."""
        from .terminal import Terminal

        return Terminal(_stdout())

    @staticmethod
    def message(text: str, *, own_line: bool = False) -> None:
        """Print a message on standard error.

        Args:
            text: One sentence.
            own_line: Begin a new line on a terminal, which shows ``^C`` on the current one.
        """
        if sys.stderr is not None:
            begin = "\n" if own_line and sys.stderr.isatty() else ""
            sys.stderr.write(f"{begin}safeweights: {printable(text)}\n")

    def flush(self) -> None:
        """Flush standard output, so that a failure is raised here and not at exit."""
        _stdout().flush()

    @staticmethod
    def abandon() -> None:
        """Discard buffered output, because the process that reads standard output has ended."""
        try:
            descriptor = _stdout().fileno()
        except (OSError, ValueError):
            return  # not a real file, but an object of a test or an embedding program
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def can_draw() -> bool:
    """Whether `rich` is installed; without it a terminal gets the same output as a pipe."""
    from importlib.util import find_spec

    return find_spec("rich") is not None


def _stdout() -> TextIO:
    """Standard output; a null device if the process was started without one."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    return sys.stdout
