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

__all__ = [
    "PIECE",
    "SMALL",
    "THREADS",
    "Run",
    "copy_run",
    "expanded",
    "for_threads",
    "is_copyable",
    "made",
]

_BLOCK: Final = 4096
"""Filesystems share whole blocks: a run is cut so that its middle begins and ends at blocks."""

_STEP: Final = 1 << 26
"""Bytes moved by one system call; a signal is seen, and progress reported, between two."""

_CHUNK: Final = 1 << 23

_LARGE: Final = 1 << 20
"""Bytes for which it pays to reserve space."""

SMALL: Final = 1 << 14
"""Bytes below which a run is read, and written with others: a system call for each costs more."""

_THREADED: Final = 1 << 23
"""Bytes for which it pays to start threads."""

_MEAN: Final = 1 << 16
"""Bytes of a run, on average, for which it does: one thread reads many small ones as fast as several."""

THREADS: Final = 4
"""Threads that copy, at most: a file is written by one at a time, and a disk is read by several."""

PIECE: Final = 1 << 20
"""Bytes that one of them reads, of one run or several, and then writes at a time. Pieces end where the new
file has a multiple of this: the page cache then holds it in large pages."""

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


def for_threads(runs: list[Run], target: int, position: int) -> Iterator[Computed] | None:
    """Runs in pieces which threads read and write, where that is faster than to copy them one by one.

    Their space is reserved. None where it is not faster: the system shares blocks, a server copies, there
    is little to copy or it lies scattered, or this system cannot write at a place.

    Args:
        runs: What to append.
        target: The descriptor of the file, open for reading and writing.
        position: Its end.

    Returns:
        Pieces of `PIECE` bytes, but for the first one and the last.

    Raises:
        OSError: There is not enough space.
    """
    size = sum(run.length for run in runs)
    if size < max(_THREADED, _MEAN * len(runs)) or not hasattr(os, "pwrite"):
        return None
    if not is_local(target) or can_share_blocks(target):
        return None
    reserve(target, size, position)
    pieces = map(_Piece, _cut(runs, position))
    return (Computed(piece.length, piece.blocks, piece.read_into) for piece in pieces)


class _Piece:
    """A piece of the new file: the bytes of some runs, in their order."""

    __slots__ = ("_runs", "length")

    def __init__(self, runs: list[Run]) -> None:
        self._runs = runs
        self.length = sum(run.length for run in runs)

    def read_into(self, memory: memoryview) -> None:
        """Fill memory of `length` bytes."""
        for run in self._runs:
            run.read_into(memory[: run.length])
            memory = memory[run.length :]

    def blocks(self, memory: memoryview) -> Iterator[memoryview]:
        """All bytes at once, in memory that is as long, or longer."""
        block = memory[: self.length]
        self.read_into(block)
        yield block


def _cut(runs: list[Run], position: int) -> Iterator[list[Run]]:
    """The same bytes; each item ends where the new file has a multiple of `PIECE`, or at the end."""
    piece: list[Run] = []
    room = PIECE - position % PIECE
    for run in runs:
        done = 0
        while done < run.length:
            length = min(room, run.length - done)
            piece.append(Run(run.source, run.offset + done, length))
            done += length
            room -= length
            if not room:
                yield piece
                piece, room = [], PIECE
    if piece:
        yield piece


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
