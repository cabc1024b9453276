"""Pause the cyclic garbage collector while very many objects are made.

None of what a header or a load builds is garbage, yet each 700 new containers start a collection
that looks at them all: a third of the time of parsing a large header, and more the more there are.
The collection that is due when the pause ends would do so once more; hence many new objects pass as old
ones, which a full collection looks at and no other.
"""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager, suppress
from threading import RLock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["gc_paused"]

_MANY: Final = 10_000
"""New containers from which on they are passed as old."""

_CAN_PROMOTE: Final = hasattr(gc, "freeze")  # not PyPy

# Re-entrant: a signal handler may load or save while this thread is in here.
_lock = RLock()
_depth = 0
_was_enabled = False


@contextmanager
def gc_paused() -> Iterator[None]:
    """Within the block no automatic collection runs; afterwards all is as it was.

    Blocks may nest and overlap across threads: the last to leave restores the state that the first
    found. A forked child, in which the other threads are not, begins outside of all blocks.
    """
    global _depth, _was_enabled  # noqa: PLW0603 - the collector is one per process, so is its state
    with _lock:
        # Counted first here and last below, so that a signal handler between two lines nests.
        _depth += 1
        if _depth == 1:
            _was_enabled = gc.isenabled()
            gc.disable()
    try:
        yield
    finally:
        with _lock:
            if _depth == 1 and _was_enabled:
                _promote()
                gc.enable()
            _depth = max(0, _depth - 1)


def _leave_all() -> None:
    """In a forked child: nobody else will leave the blocks that were open."""
    global _lock, _depth  # noqa: PLW0603 - see above
    _lock = RLock()
    if _depth and _was_enabled:
        gc.enable()
    _depth = 0


with suppress(AttributeError):  # not on Windows
    os.register_at_fork(after_in_child=_leave_all)


def _promote() -> None:
    """Pass many new objects as old; whoever froze some for a fork keeps them frozen.

    Python 3.12 itself does so when it starts; nothing is passed there.
    """
    if _CAN_PROMOTE and gc.get_count()[0] > _MANY and gc.get_freeze_count() == 0:
        gc.freeze()  # all to the permanent generation, and from there to the oldest: two lists joined
        gc.unfreeze()
