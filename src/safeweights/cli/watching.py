"""Show progress on standard error, if that is a terminal and the work takes long.

Computes the amount of work of a command; `terminal` draws the progress bar.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from ..text import human_bytes
from .output import can_draw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

__all__ = ["watched", "watched_files", "watched_writing"]

_FROM: Final = 1 << 28
"""Size in bytes above which progress is shown."""


@contextmanager
def watched(what: str, size: int, total: int | None = None) -> Iterator[Callable[[int], object]]:
    """Show the progress of work on `size` bytes.

    The caller passes the amount done so far to the yielded function.

    Args:
        what: The work, as a participle.
        size: Number of bytes to process.
        total: Amount of work, if it is not counted in bytes.
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
    """Show the progress of reading whole files and folders, in bytes."""
    return watched(what, sum(map(_size, paths)))


@contextmanager
def watched_writing(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that takes the amount done and the total; the bar appears when that is known."""
    with ExitStack() as stack:
        shown: Callable[[int], object] | None = None

        def progress(done: int, total: int) -> None:
            nonlocal shown
            if shown is None:
                shown = stack.enter_context(watched(what, total))
            shown(done)

        yield progress


def _size(path: str) -> int:
    """Size of a file, or of all files below a folder; files that cannot be read count 0."""
    found = [path] if not os.path.isdir(path) else []
    for folder, _, names in os.walk(path):
        found += (os.path.join(folder, name) for name in names)
    total = 0
    for each in found:
        try:
            total += os.stat(each).st_size
        except OSError:  # noqa: PERF203 - the command reports it when it reads the file
            continue
    return total
