"""The threads that were started since a moment.

Counting all of them would not tell: those of an earlier test's server may end meanwhile.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def threads_since_now() -> Callable[[], set[threading.Thread]]:
    """A function that returns the threads that are running then and were not running now."""
    before = set(threading.enumerate())
    return lambda: set(threading.enumerate()) - before
