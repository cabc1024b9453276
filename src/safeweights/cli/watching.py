"""Progress on standard error, where that is a terminal and there is much to do.

Knows how much work a command has before it; how that is drawn is `terminal`'s.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ..text import human_bytes
from .output import can_draw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

__all__ = ["watched", "watched_files"]

_FROM: Final = 1 << 28
"""Bytes from which on work takes long enough to be watched."""


@contextmanager
def watched(what: str, size: int, total: int | None = None) -> Iterator[Callable[[int], object]]:
    """Show how far work on `size` bytes has come; what is handed out is told how many are done.

    Args:
        what: The work, as a participle.
        size: How many bytes it is about.
        total: When it is done, where that is not counted in bytes.
    """
    if size < _FROM or sys.stderr is None or not sys.stderr.isatty() or not can_draw():
        yield lambda _: None
        return
    from . import terminal

    with terminal.progress(
        f"{what} {human_bytes(size)}", size if total is None else total
    ) as progress:
        yield progress


def watched_files(
    what: str, paths: Iterable[str]
) -> AbstractContextManager[Callable[[int], object]]:
    """The same for reading whole files and folders."""
    return watched(what, sum(map(_size, paths)))


def _size(path: str) -> int:
    """Bytes of a file, or of all files below a folder; what cannot be seen counts nothing."""
    found = [path] if not os.path.isdir(path) else []
    for folder, _, names in os.walk(path):
        found += (os.path.join(folder, name) for name in names)
    total = 0
    for each in found:
        try:
            total += os.stat(each).st_size
        except OSError:  # noqa: PERF203 - whoever reads it will say so
            continue
    return total
