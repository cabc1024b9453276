"""More files than a process may have open at once.

Of many files only the latest that were read stay open. One that was closed is opened again by its path, and
must be the file that it was: same place, size and times. Rules: a read that is under way keeps its
descriptor, however many files others open meanwhile; stores whose sources hold no descriptor are untouched.
"""

from __future__ import annotations

import os
import sys
import threading
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from ..errors import ChangedError
from .files import DescriptorSource
from .source import Source

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Handles", "too_many"]

_UNKNOWN: Final = 8192
"""The limit where the system does not tell it: that of Microsoft's C library."""


def too_many(count: int) -> bool:
    """Whether so many files would take more than half of what this process may have open."""
    return count > _limit() // 2


def _limit() -> int:
    """Files that this process may have open at a time."""
    try:
        import resource
    except ImportError:  # Windows
        return _UNKNOWN
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if most == resource.RLIM_INFINITY else most


class Handles:
    """Files of which at most some are open.

    Args:
        most: How many; by default a quarter of what this process may have open, and at most 128.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most or max(1, min(128, _limit() // 4))
        self._lock = threading.Lock()
        self._open: dict[
            int, DescriptorSource
        ] = {}  # by the number of a source; the last is the latest
        self._numbers = count()

    def source(self, open_it: Callable[[], Source]) -> Source:
        """What `open_it` opens, closed when it was not read for long.

        Args:
            open_it: Opens the file; called again when it is read after it was closed.

        Raises:
            OSError: It cannot be opened.
        """
        opened = open_it()
        if not isinstance(opened, DescriptorSource):
            return opened
        number = next(self._numbers)
        self._keep(number, opened)
        return _ReopenedSource(number, opened, open_it, self)

    def get(self, number: int, reopen: Callable[[], DescriptorSource]) -> DescriptorSource:
        """The open file with a number; it stays open as long as the caller refers to it.

        Args:
            number: Of its source.
            reopen: Opens it, if it is closed.

        Raises:
            ChangedError: Another file is at its path now, or it was written to.
            OSError: It cannot be opened.
        """
        with self._lock:
            opened = self._open.pop(number, None)
            if opened is not None:
                self._open[number] = opened
                return opened
        opened = reopen()
        self._keep(number, opened)
        return opened

    def _keep(self, number: int, opened: DescriptorSource) -> None:
        with self._lock:
            self._open[number] = opened
            while len(self._open) > self._most:
                del self._open[next(iter(self._open))]


class _ReopenedSource(Source):
    """A file that is open when it is read."""

    def __init__(
        self,
        number: int,
        opened: DescriptorSource,
        open_it: Callable[[], Source],
        handles: Handles,
    ) -> None:
        self.name, self.size, self.version = opened.name, opened.size, opened.version
        self._number = number
        self._identity = _identity(opened)
        self._open_it = open_it
        self._handles = handles

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._now().read_into(offset, buffer)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._now().__reduce__()

    def _now(self) -> DescriptorSource:
        return self._handles.get(self._number, self._reopen)

    def _reopen(self) -> DescriptorSource:
        """Open the file again.

        Raises:
            ChangedError: It is not the same any more.
        """
        opened = self._open_it()
        if not isinstance(opened, DescriptorSource) or _identity(opened) != self._identity:
            raise ChangedError(
                "the file was replaced or written to while it was read", path=self.name
            )
        return opened


def _identity(opened: DescriptorSource) -> tuple[int, ...]:
    found = os.fstat(opened.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
