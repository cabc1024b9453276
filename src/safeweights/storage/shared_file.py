"""A file that several processes fill at once, each with its own ranges of it.

Rules:
- One process makes the file, with its final size (`ReservedFile`). Where the filesystem can do that, its
  space is reserved then, so that a full disk is an error before anything is written.
- The others open it and write at offsets (`SharedFile`). Nothing is written beyond its end.
- Many short runs are written through mappings of the file, where that is safe (`scattering`).
- Each process begins at another place (`staggered`): the system locks a file, and a page, for one writer.
- A process that must know its bytes on the disk syncs its own descriptor: on a network filesystem, one
  machine cannot sync what another one has written.
"""

from __future__ import annotations

import errno
import os
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

from ..errors import UnsupportedError
from .scattering import is_worth_mapping, scatter_mapped
from .sink import about, adopt, stat_replaceable, sync
from .syscalls import keeps_reserved, reserve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Self

    from ..format.indexing import Runs

__all__ = ["ReservedFile", "SharedFile", "staggered"]

T = TypeVar("T")

_PIECE: Final = 1 << 23
"""Bytes handed to one system call; a signal is seen between two."""


def staggered(items: Sequence[T], process: int, processes: int) -> list[T]:
    """What each of several processes writes, in the order of a file, begun at another place by each.

    If all of them began at the first byte they would wait for each other, all the way. Two that write
    1 GiB of columns take 183 to 207 ms this way instead of 210 to 224, and rows up to a tenth less.

    >>> staggered("abcd", 1, 2)
    ['c', 'd', 'a', 'b']
    """
    first = len(items) * process // processes
    return [*items[first:], *items[:first]]


class ReservedFile:
    """A new file of a known size, in the process that made it.

    Args:
        path: The new file; nothing exists there.
        target: The file that it will replace, if there is one; for messages, its owner and its mode.
        size: Number of bytes.

    Raises:
        UnsupportedError: The system cannot write at an offset (Windows).
        OSError: It cannot be made, or there is no space for it.
    """

    def __init__(self, path: str, target: str, size: int) -> None:
        if not hasattr(os, "pwrite"):
            raise UnsupportedError("several processes cannot fill one file on this system")
        self._path = path
        self._target = target
        self._size = size
        self._replaced = stat_replaceable(target)
        # Until the file has the old owner, group and mode, only this process's user may read it.
        mode = 0o666 if self._replaced is None else 0o600
        with about(target):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        try:
            with about(target):
                if size:
                    reserve(self._descriptor, size)
                os.ftruncate(self._descriptor, size)
        except BaseException:
            self.close()
            raise

    def complete(self, *, durable: bool) -> None:
        """Give the file the owner and mode of the one it replaces.

        Args:
            durable: Also sync it.

        Raises:
            OSError: That failed, or the file has another size by now.
        """
        with about(self._target):
            if os.fstat(self._descriptor).st_size != self._size:
                raise OSError(errno.EIO, "the size of the file changed while it was written")
            if self._replaced is not None:
                adopt(self._descriptor, self._replaced)
        sync(self._descriptor, self._target, durable=durable)
        self.close()

    def close(self) -> None:
        """Close it; nothing happens if it is closed already."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class SharedFile:
    """A file of a known size, open for writing at offsets; a context manager that closes it.

    Args:
        path: The file, which a `ReservedFile` made.

    Attributes:
        size: Number of bytes.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        # Also for reading: a mapping that is written must be readable.
        self._descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        self._has_blocks = status.st_blocks * 512 >= status.st_size

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write all of `data`, at most up to the end of the file.

        Raises:
            OSError: Writing failed, or it would end beyond the end of the file (EFBIG).
        """
        if offset < 0 or offset + len(data) > self.size:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), self._path)
        while len(data):
            try:
                count = os.pwrite(self._descriptor, data[:_PIECE], offset)
            except OSError as error:
                error.filename = self._path
                raise
            if count == 0:
                raise OSError(
                    errno.EIO, "the system wrote no bytes and reported no error", self._path
                )
            data, offset = data[count:], offset + count

    def write_runs(self, begin: int, runs: Runs, data: memoryview) -> None:
        """Write `data` in runs.

        Args:
            begin: Where the offsets of `runs` count from.
            runs: Where it goes.
            data: The bytes of all runs, one after another.

        Raises:
            OSError: As for `write`.
        """
        if runs.run_count == 1:
            self.write(begin + runs.offset, data)
            return
        if begin < 0 or begin + runs.offset + runs.span > self.size:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), self._path)
        done = 0
        if self._has_blocks and is_worth_mapping(runs) and keeps_reserved(self._descriptor):
            where = runs._replace(offset=begin + runs.offset)
            done = scatter_mapped(where, data, self._descriptor)
            if done == runs.run_count:
                return  # to skip all offsets, one by one, takes a twentieth of the save
        # One system call a run, nothing else: a column of a matrix has millions of them.
        descriptor, length, pwrite = self._descriptor, runs.length, os.pwrite
        position = done * length
        try:
            for offset in islice(runs.offsets(), done, None):
                piece = data[position : position + length]
                position += length
                count = pwrite(descriptor, piece, begin + offset)
                if count != length:
                    self.write(begin + offset + count, piece[count:])
        except OSError as error:
            error.filename = self._path
            raise

    def close(self, *, durable: bool = False) -> None:
        """Close the file; nothing happens if it is closed already.

        Args:
            durable: First wait until what this process wrote would survive a loss of power.
        """
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            sync(descriptor, self._path, durable=durable)
        finally:
            with about(self._path):
                os.close(descriptor)  # reports what a network filesystem could not write

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
