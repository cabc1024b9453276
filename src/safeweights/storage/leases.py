"""Keeping a local file as it is for some milliseconds (Linux, fcntl(2), F_SETLEASE).

While a process holds a read lease of a file, a program that opens the file for writing or truncates it
waits until the lease is returned. So the pages of a mapping can be used like private memory: they do not
change between two reads, and none is missing (SIGBUS). docs/adr/011 says why this is sound, and names the
one way around it.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from .syscalls import is_local

if TYPE_CHECKING:
    from collections.abc import Iterator

if sys.platform == "linux":  # pragma: no branch
    import fcntl

__all__ = ["LEASED", "Lease", "leased"]

LEASED: Final = 1 << 24
"""Bytes that should be used under one lease at most, so that a program that waits does not wait long."""


class Lease:
    """A file that does not change.

    Args:
        descriptor: A description of the file of its own, with a lease.

    Attributes:
        size: Of the file, in bytes.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def is_held(self) -> bool:
        """Whether the file has not changed since the lease was taken, and no program tries to change it.

        A program that tries waits at most 45 s (/proc/sys/fs/lease-break-time), and may then have changed
        it. One that opens it with O_RDONLY and O_TRUNC does not wait; but the size tells. What must not be
        computed from two versions of the file is valid only if this is true after the last use.
        """
        unbroken = fcntl.fcntl(self._descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK
        return unbroken and os.fstat(self._descriptor).st_size == self.size


@contextmanager
def leased(descriptor: int) -> Iterator[Lease | None]:
    """Keep the contents of a file as they are inside a ``with`` block.

    It should end after some milliseconds: see `LEASED`.

    Args:
        descriptor: The file, open for reading.

    Yields:
        None if the system gives no lease: a program has the file open for writing; it belongs to another
        user (unless this process has CAP_LEASE); it is on a filesystem that is not known as local.

    Cost: 20 us; 0.1 ms between two copies of some MiB, which fill the caches of the processor.
    """
    own = _take(descriptor)
    if own is None:
        yield None
        return
    try:
        yield Lease(own)
    finally:
        try:
            # Closing does not suffice: a process that was forked meanwhile has the description, too.
            fcntl.fcntl(own, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        finally:
            os.close(own)


def _take(descriptor: int) -> int | None:
    """A new description of the file, with a lease; None if there is none."""
    if sys.platform != "linux" or not is_local(descriptor):
        return None
    import signal  # here, since it takes a millisecond and few programs need a lease

    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no /proc, or no descriptor left
        return None
    try:
        # A signal tells the owner that a program waits. `is_held` does, too, and this program may have a
        # handler for any signal: so there is no owner. The system makes this process the owner with the
        # lease. For that microsecond the signal is SIGURG, which is ignored by default, unlike SIGIO.
        fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(own, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(own, fcntl.F_SETOWN, 0)
    except OSError:
        os.close(own)
        return None
    return own
