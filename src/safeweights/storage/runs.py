"""Runs: bytes of an open file that are written elsewhere as they are.

Filesystems that share blocks (Btrfs, XFS) copy nothing, and servers (NFS, SMB) copy by themselves: they
are asked to, by copy_file_range(2). On other local filesystems (ext4, tmpfs) that call copies in one
thread; there a few threads read and write pieces, so that one reads while another writes: 1 GiB in the
page cache of ext4 takes 169 to 206 ms instead of 231 to 248, on two cores. Everywhere else a run is read
and written in chunks.

Where no blocks can be shared, their space is reserved first: 512 MiB in the page cache of ext4 then take
135 ms instead of 170.
"""

from __future__ import annotations

import errno
import os
from itertools import groupby
from typing import TYPE_CHECKING, Final, cast

from .computing import Computed, in_memory
from .files import DescriptorSource
from .syscalls import can_share_blocks, is_local, reserve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .source import Buffer, Source

__all__ = ["PIECE", "THREADS", "Run", "copy_run", "expanded", "for_threads", "is_copyable", "made"]

_BLOCK: Final = 4096
"""Filesystems share whole blocks: a run is cut so that its middle begins and ends at blocks."""

_STEP: Final = 1 << 26
"""Bytes moved by one system call; a signal is seen, and progress reported, between two."""

_CHUNK: Final = 1 << 23

_LARGE: Final = 1 << 20
"""Bytes for which it pays to reserve space."""

_THREADED: Final = 1 << 23
"""Bytes for which it pays to start threads."""

THREADS: Final = 4
"""Threads that copy, at most: a file is written by one at a time, and a disk is read by several."""

PIECE: Final = 1 << 20
"""Bytes that one of them reads, and then writes, at a time. Pieces end where the new file has a multiple
of this: the page cache then holds it in large pages."""

_CANNOT_COPY: Final = frozenset(
    {
        errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL, errno.EXDEV,
        errno.ETXTBSY,
    }
)  # fmt: skip
"""Errors of kernels and filesystems that cannot do it, also between two filesystems."""


class Run:
    """The `length` bytes of `source` from `offset` on.

    >>> import tempfile
    >>> from safeweights.storage import open_source, write_file
    >>> folder = tempfile.mkdtemp()
    >>> write_file(f"{folder}/a", [b"abcdef"])
    >>> write_file(f"{folder}/b", [b"<", Run(open_source(f"{folder}/a"), 1, 3), b">"])
    >>> open_source(f"{folder}/b").read(0, 5)
    b'<bcd>'
    """

    __slots__ = ("length", "offset", "source")

    def __init__(self, source: DescriptorSource, offset: int, length: int) -> None:
        self.source = source
        self.offset = offset
        self.length = length

    def blocks(self, memory: memoryview) -> Iterator[memoryview]:
        """The bytes in order, in blocks that lie in `memory`; each is overwritten by the next."""
        for begin in range(0, self.length, len(memory)):
            block = memory[: self.length - begin]
            self.source.read_into(self.offset + begin, block)
            yield block

    def read_into(self, memory: memoryview) -> None:
        """Fill memory of `length` bytes."""
        self.source.read_into(self.offset, memory)

    def chunks(self) -> Iterator[Buffer]:
        """The bytes, read in chunks of 8 MiB."""
        end = self.offset + self.length
        for begin in range(self.offset, end, _CHUNK):
            yield self.source.read(begin, min(_CHUNK, end - begin))


def is_copyable(source: Source) -> bool:
    """Whether the bytes of `source` are those of a file that is open: no window, nothing verified."""
    return type(source) is DescriptorSource


def expanded(pieces: Iterable[Buffer | Run | Computed]) -> Iterator[Buffer]:
    """The same bytes as buffers only: runs are read, and what is computed is in memory."""
    for piece in made(pieces):
        if isinstance(piece, Run):
            yield from piece.chunks()
        else:
            yield piece


def made(pieces: Iterable[Buffer | Run | Computed]) -> Iterator[Buffer | Run]:
    """The same pieces; what is computed is in memory."""
    for computed, group in groupby(pieces, lambda piece: isinstance(piece, Computed)):
        if computed:
            yield from in_memory(cast("Iterator[Computed]", group))
        else:
            yield from cast("Iterator[Buffer | Run]", group)


def for_threads(runs: list[Run], target: int, position: int) -> list[Computed]:
    """Runs in pieces which threads read and write, where that is faster than to copy them one by one.

    Their space is reserved. None where it is not faster: the system shares blocks, a server copies, there
    is little to copy, or this system cannot write at a place.

    Args:
        runs: What to append.
        target: The descriptor of the file, open for reading and writing.
        position: Its end.

    Raises:
        OSError: There is not enough space.
    """
    size = sum(run.length for run in runs)
    if size < _THREADED or not hasattr(os, "pwrite") or not is_local(target):
        return []
    if can_share_blocks(target):
        return []
    reserve(target, size, position)
    return [Computed(piece.length, piece.blocks, piece.read_into) for piece in _cut(runs, position)]


def _cut(runs: list[Run], position: int) -> Iterator[Run]:
    """The same bytes; each piece ends where the new file has a multiple of `PIECE`, or its run does."""
    for run in runs:
        done = 0
        while done < run.length:
            length = min(PIECE - position % PIECE, run.length - done)
            yield Run(run.source, run.offset + done, length)
            done += length
            position += length


def copy_run(
    run: Run,
    target: int,
    position: int,
    write: Callable[[Buffer], object],
    moved: Callable[[int], object],
) -> None:
    """Append a run to a file.

    Args:
        run: What to append.
        target: The descriptor of the file, at its end; open for reading and writing.
        position: That end.
        write: Writes a buffer at the end; for what the system does not move.
        moved: Called with the number of bytes that the system has moved, after each step.

    Raises:
        TruncatedError: The source has become shorter.
        OSError: Reading or writing failed.
    """
    if run.length >= _LARGE and not can_share_blocks(target):
        reserve(target, run.length, position)
    head = -run.offset % _BLOCK if (run.offset - position) % _BLOCK == 0 else 0
    head = min(head, run.length)
    if head:
        write(run.source.read(run.offset, head))
    offset, end = run.offset + head, run.offset + run.length
    while offset < end and (count := _move(run.source, target, offset, end - offset)):
        offset += count
        moved(count)
    # What the system could not move; of a file that was truncated, reading says where it ends.
    for chunk in Run(run.source, offset, end - offset).chunks():
        write(chunk)


def _move(source: DescriptorSource, target: int, offset: int, length: int) -> int:
    """Have the system append bytes of a file; how many it did, 0 if it cannot."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source.fileno(), target, min(length, _STEP), offset)
    except OSError as error:
        if error.errno not in _CANNOT_COPY:
            raise
        return 0
