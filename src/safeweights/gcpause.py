"""Pause the cyclic garbage collector while very many objects are made.

None of what a header or a load builds is garbage, yet each 700 new containers start a collection
that looks at them all: a third of the time of parsing a large header, and more the more there are.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["gc_paused"]

_lock = Lock()
_depth = 0
_was_enabled = False


@contextmanager
def gc_paused() -> Iterator[None]:
    """Within the block no automatic collection runs; afterwards all is as it was.

    Blocks may nest and overlap across threads: the last to leave restores the state that the first
    found.
    """
    global _depth, _was_enabled  # noqa: PLW0603 - the collector is one per process, so is its state
    with _lock:
        if _depth == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and _was_enabled:
                gc.enable()
