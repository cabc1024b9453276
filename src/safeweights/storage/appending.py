"""Appending to a file: buffers together in a system call, runs and what is computed by several threads."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from functools import partial
from itertools import groupby, islice
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from .computing import Computed, write_computed
from .parallel import in_order, thread_count
from .readahead import InMemory, ahead
from .runs import PIECE, SMALL, THREADS, Run, copy_run, expanded, for_threads, made
from .source import Buffer, flat
from .syscalls import VECTOR, is_local

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from .direct_writing import DirectFile
    from .mapped_writing import MappedFile

__all__ = ["BATCH", "UNSUPPORTED", "Pieces", "Progress", "about", "progressed", "write_all"]

Progress: TypeAlias = "Callable[[int], object]"
Pieces: TypeAlias = "Iterable[Buffer | Run | Computed]"
_Batch: TypeAlias = "tuple[list[Buffer], int]"
_Copy: TypeAlias = "Callable[[list[memoryview], int], int]"
_Group: TypeAlias = "_Batch | list[Run] | list[Computed]"

BATCH: Final = 1 << 23  # bytes handed to one system call; a signal is seen between two
_DONTCACHE: Final = 0x80  # the os module has no name for it yet
_STRETCH: Final = 1 << 14  # runs, or what is computed, that are handed on together
_PORTION: Final = 1 << 10  # pieces that threads copy before the next ones are cut
_SMALL: Final = 1 << 12
_JOINED: Final = 1 << 18  # fits in the processor's cache
_SHARED: Final = 1 << 27  # bytes of a file for which it pays to try whether threads write it faster
_THREADS: Final = 12  # that share a file, at most: with 16, 1 GiB takes 79 ms instead of 81
_TRIAL: Final = 2  # batches that each of them writes until that is judged
_TRIALS: Final = 2  # before one thread writes the rest
_WRITERS: Final = 4  # threads that send pages to the disk: one copies into the page cache at a time

UNSUPPORTED: Final = frozenset(
    {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL}
)
"""Errors of filesystems that lack an operation (FUSE, object-store mounts, vfat)."""


@contextlib.contextmanager
def about(path: str) -> Iterator[None]:
    """Add the file name to errors of system calls on a descriptor."""
    try:
        yield
    except OSError as error:
        error.filename = path
        raise


def write_all(
    descriptor: int,
    path: str,
    buffers: Pieces,
    progress: Progress | None = None,
    *,
    uncached: bool = False,
) -> None:
    """Write what is given to a new file."""
    appending = _Appending(descriptor, path, progress, uncached=uncached)
    # To group many small buffers takes a fifth of the time that writing them takes.
    size = buffers.size if isinstance(buffers, InMemory) else 0
    early = size > 2 * BATCH
    groups = _grouped(buffers if hasattr(os, "pwrite") else made(buffers))  # Windows has none
    # Two threads that share a file write it no faster than one.
    shared = size >= _SHARED and not uncached and thread_count() > 2
    # Others may take bytes in their order only (mounts of object stores).
    if early and uncached and hasattr(os, "pwritev") and is_local(descriptor):
        with about(path):
            direct = _direct(descriptor, size)
        with contextlib.closing(direct) if direct else contextlib.nullcontext():
            appending.spread(groups, direct)
    elif shared and (mapped := _mapped(descriptor, size)) is not None:
        with contextlib.closing(mapped):
            appending.share(groups, mapped)
    elif early:
        appending.append_early(groups)
    else:
        with contextlib.closing(groups):
            appending.append(groups)


def _direct(descriptor: int, size: int) -> DirectFile | None:
    from .direct_writing import DirectFile  # few programs save so much

    return DirectFile.of(descriptor, size, batch=BATCH)


def _mapped(descriptor: int, size: int) -> MappedFile | None:
    from .mapped_writing import MappedFile

    return MappedFile.of(descriptor, size)


class _Appending:
    """Writes at the end of a file, which is also the position of its descriptor between two calls."""

    def __init__(
        self, descriptor: int, path: str, progress: Progress | None, *, uncached: bool
    ) -> None:
        self._descriptor = descriptor
        self._path = path
        self._progress = progress
        self._call = _Uncached(descriptor).write if uncached else partial(_write_some, descriptor)
        self._written = 0

    def append(self, items: Iterable[_Group]) -> None:
        """What `_grouped` yields."""
        for item in items:
            if isinstance(item, tuple):
                self._write(*item)
            elif isinstance(item[0], Run):
                self._move(item)
            else:
                self._compute(item)

    def append_early(self, items: Iterable[_Group]) -> None:
        """The same; the next item is made while one is written."""
        with contextlib.closing(ahead(items)) as coming:
            self.append(coming)

    def spread(self, items: Iterable[_Group], direct: DirectFile | None) -> None:
        """The same; while a thread copies a batch, others send theirs to the disk."""
        threads = direct.threads if direct else min(_WRITERS, thread_count())
        copy = direct.write if direct else None
        self._append_batches(items, partial(self._place_all, threads=threads, copy=copy))

    def share(self, items: Iterable[_Group], mapped: MappedFile) -> None:
        """The same; several threads write batches through a mapping, as long as that is faster."""
        self._append_batches(items, partial(self._share, mapped=mapped))

    def _append_batches(
        self, items: Iterable[_Group], write: Callable[[Iterator[_Batch]], object]
    ) -> None:
        for batches, some in groupby(items, lambda item: isinstance(item, tuple)):
            if batches:
                write(cast("Iterator[_Batch]", some))
            else:
                self.append(some)

    def _share(self, batches: Iterator[_Batch], mapped: MappedFile) -> None:
        # Which way is faster depends on the filesystem, the size of its pages, the number of processors and
        # what else they do; so a trial can be wrong, too.
        for _ in range(_TRIALS):
            for batch, size in islice(batches, 1):
                began = perf_counter()
                self._write(batch, size)
                if self._try_sharing(batches, mapped, (perf_counter() - began) / size):
                    return
        self.append_early(batches)

    def _try_sharing(self, batches: Iterator[_Batch], mapped: MappedFile, pace: float) -> bool:
        """Have threads write batches, all of them if that takes less than `pace`; whether it does.

        Args:
            batches: Those that are not written are left.
            mapped: The file.
            pace: Seconds a byte.
        """
        threads = min(_THREADS, thread_count())
        begin, began, trial = self._written, perf_counter(), _TRIAL * threads * BATCH
        known = False

        def faster(whole: bool) -> bool:
            nonlocal known
            done = self._written - begin
            if known or done < trial:
                return whole
            known = True
            return whole and perf_counter() - began < pace * done

        return self._place_all(batches, threads=threads, copy=mapped.copy, go_on=faster)

    def _place_all(
        self,
        batches: Iterator[_Batch],
        *,
        threads: int,
        copy: _Copy | None = None,
        go_on: Callable[[bool], bool] | None = None,
    ) -> bool:
        """Have threads write batches, each at its place; whether they were written to the last.

        Args:
            batches: Those that are not written are left.
            threads: How many.
            copy: Given buffers and their place: writes them there, or some; returns how many bytes. What
                it leaves is written to the page cache.
            go_on: Called after each batch with whether `copy` wrote all of it; False ends it.
        """
        going = True

        def located() -> Iterator[tuple[list[Buffer], int, int]]:
            position = self._written
            for batch, size in batches:
                yield batch, size, position
                position += size
                if not going:
                    return

        placed = in_order(partial(self._place, copy), located(), workers=threads)
        with contextlib.closing(placed):  # no thread copies any more when the file is unmapped
            for size, whole in placed:
                self._count(size)
                going = going and (go_on is None or go_on(whole))
        with about(self._path):
            os.lseek(self._descriptor, self._written, os.SEEK_SET)
        return going

    def _place(self, copy: _Copy | None, item: tuple[list[Buffer], int, int]) -> tuple[int, bool]:
        """Write the buffers of a batch at a place; how many bytes, and whether `copy` wrote all of it."""
        buffers, size, position = item
        views = [flat(buffer) for buffer in _views(buffers)]
        copied = 0
        if copy is not None:
            with about(self._path):
                copied = copy(views, position)
        self._put(_after(views, copied), size - copied, position + copied)
        return size, copied == size

    def _write(self, batch: list[Buffer], size: int) -> None:
        """The buffers of one system call, which have so many bytes; empties the list."""
        self._put(_views(batch), size)
        self._count(size)

    def _put(self, rest: Sequence[Buffer], left: int, position: int = -1) -> None:
        """Write buffers, which have so many bytes, at a place, or at the end."""
        while left:
            with about(self._path):
                count = self._call(rest[:VECTOR], position)
            left -= count
            if left:
                rest = _after(rest, count)
            if position >= 0:
                position += count

    def _move(self, runs: list[Run]) -> None:
        with about(self._path):
            pieces = for_threads(runs, self._descriptor, self._written)
        if pieces is None:
            self._copy(runs)
            return
        while portion := [*islice(pieces, _PORTION)]:
            self._compute(portion, threads=min(THREADS, thread_count()), unit=PIECE)

    def _copy(self, runs: list[Run]) -> None:
        for small, some in groupby(runs, lambda run: run.length < SMALL):
            if small:
                self.append(_grouped(expanded(some)))
                continue
            for run in some:
                with about(self._path):
                    copy_run(run, self._descriptor, self._written, self._write_one, self._count)

    def _compute(self, pieces: list[Computed], threads: int | None = None, unit: int = 0) -> None:
        begin, end = self._written, self._written + sum(piece.length for piece in pieces)

        def tell(done: int) -> None:
            self._count(begin + done - self._written)

        write_computed(pieces, begin, self._write_at, tell, threads=threads, unit=unit)
        with about(self._path):
            os.lseek(self._descriptor, end, os.SEEK_SET)

    def _write_one(self, data: Buffer) -> None:
        self._write([data], len(data))

    def _write_at(self, block: memoryview, position: int) -> None:
        self._put([block], len(block), position)

    def _count(self, count: int) -> None:
        self._written += count
        if self._progress is not None:
            self._progress(self._written)


def _grouped(pieces: Pieces) -> Generator[_Group]:
    """Runs that follow one another; likewise what is computed; buffers for one call, with their bytes.

    Buffers are cut where the file has a multiple of 8 MiB: the page cache then holds it in pieces of 2 MiB,
    where the filesystem can do that, and to map all of 251 MiB takes 0.3 ms instead of 10.
    """
    batch: list[Buffer] = []
    size, room = 0, BATCH  # bytes of the batch, and up to the next place to cut
    stretch: list[Any] = []  # runs, or what is computed
    for piece in _joined(pieces):
        if stretch and (type(piece) is not type(stretch[0]) or len(stretch) == _STRETCH):
            yield stretch
            stretch = []
        if type(piece) is not memoryview and isinstance(piece, Run | Computed):
            if batch:
                yield batch, size
                batch = []
            stretch.append(piece)
            room -= (size + piece.length) % BATCH
            room, size = room if room > 0 else room + BATCH, 0
            continue
        nbytes = piece.nbytes if type(piece) is memoryview else _length(piece)
        while size + nbytes >= room:
            piece = flat(piece)  # noqa: PLW2901 - a second name would keep its memory in use for longer
            batch.append(piece[: room - size])
            piece = piece[room - size :]  # noqa: PLW2901
            nbytes -= room - size
            yield batch, room
            batch, size, room = [], 0, BATCH
        if nbytes:
            batch.append(piece)
            size += nbytes
    if batch:
        yield batch, size
    if stretch:
        yield stretch


def _joined(pieces: Pieces) -> Iterator[Buffer | Run | Computed]:
    """Join small neighbours: copying a few KiB costs less than one more buffer in a system call.

    None that is given is empty: to write nothing looks like a system that writes nothing.
    """
    small: list[Buffer] = []
    size = 0
    for piece in pieces:
        if type(piece) is memoryview or not isinstance(piece, Run | Computed):
            nbytes = piece.nbytes if type(piece) is memoryview else _length(piece)
            if nbytes <= _SMALL:
                small.append(piece)
                size += nbytes
                if size > _JOINED:
                    yield b"".join(small)
                    small, size = [], 0
                continue
        if size:
            yield b"".join(small)
            small, size = [], 0
        yield piece
    if size:
        yield b"".join(small)


def _views(batch: list[Buffer]) -> list[memoryview]:
    """The same buffers; the list is emptied, or their memory would be in use while more are made."""
    # As views: whatever shows variables of a traceback would print the contents of bytes.
    views = [each if type(each) is memoryview else memoryview(each) for each in batch]
    batch.clear()
    return views


def _length(piece: Buffer) -> int:
    """Bytes of a buffer."""
    if type(piece) is memoryview:
        return piece.nbytes
    return len(piece) if type(piece) is bytes else memoryview(piece).nbytes


class _Uncached:
    """Writes that start going to the disk at once, where the system can do that, so that fsync waits less.

    They use pwritev2(2), RWF_DONTCACHE (Linux 6.14); position -1 is that of the descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._can = sys.platform == "linux" and hasattr(os, "pwritev")

    def write(self, batch: Sequence[Buffer], position: int = -1) -> int:
        if self._can:
            try:
                return progressed(os.pwritev(self._descriptor, batch, position, _DONTCACHE))
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self._can = False
        return _write_some(self._descriptor, batch, position)


def _write_some(descriptor: int, batch: Sequence[Buffer], position: int = -1) -> int:
    """Write at the position of the descriptor, or the first buffer at another position."""
    if position >= 0:
        return progressed(os.pwrite(descriptor, batch[0], position))
    vectored = hasattr(os, "writev")  # not on Windows
    return progressed(os.writev(descriptor, batch) if vectored else os.write(descriptor, batch[0]))


def progressed(count: int) -> int:
    """The number of bytes that a call wrote; 0 is an error, or writing would never end."""
    if count == 0:
        raise OSError(errno.EIO, "the system wrote no bytes and reported no error")
    return count


def _after(batch: Sequence[Buffer], count: int) -> list[Buffer]:
    """The rest of `batch` after its first `count` bytes were written."""
    first = 0
    while first < len(batch) and count >= (nbytes := _length(batch[first])):
        count -= nbytes
        first += 1
    rest = [*batch[first:]]
    if count:
        rest[0] = flat(rest[0])[count:]
    return rest
