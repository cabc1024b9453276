"""Sinks: putting bytes where they belong, all of them or none.

Rules:
- A file is written under another name in the same directory and renamed when it is complete: whoever
  looks sees the old contents or the new, and a failed save changes nothing (rename(2)).
- The new file has the mode of the one it replaces, or what the umask allows. A symbolic link stays
  one; its target is replaced.
- Only regular files are replaced: never a directory, device, FIFO or socket.
- ``durable`` means that the bytes and the name survive a loss of power once the call returns
  (fsync(2) of the file and of its directory).
- A filesystem that cannot rename, truncate or change modes is no reason to fail.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from itertools import islice
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Buffer", "PartialOverwriteError", "write_file", "write_stream"]

Buffer = bytes | bytearray | memoryview
"""What is written: flat bytes."""

_VECTOR: Final = 1024  # IOV_MAX of Linux, macOS and the BSDs
_BATCH: Final = 1 << 26  # bytes handed to one system call; a signal is seen between two
_UNSUPPORTED: Final = frozenset(
    {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL, errno.EXDEV}
)
"""What filesystems answer that cannot do what was asked (FUSE, object-store mounts, vfat)."""


_FLAGS: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class PartialOverwriteError(OSError):
    """A file on a filesystem without rename could not be overwritten to its end.

    Attributes:
        kept: The file that holds the new contents, whole.
    """

    def __init__(self, target: str, kept: str, cause: OSError) -> None:
        what = f"{cause.strerror}: the filesystem cannot rename; the new contents are whole in {kept!r}"
        super().__init__(cause.errno, what, target)
        self.kept = kept


def write_file(
    path: str | os.PathLike[str],
    buffers: Iterable[Buffer],
    *,
    durable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Make `buffers`, one after another, the contents of the file at `path`.

    Cost: nothing is copied; up to 1,024 buffers or 64 MiB go into one system call.

    Args:
        path: Where; links are followed.
        buffers: The contents. An iterator is read as bytes are written, so it may make them.
        durable: Return only when file and name would survive a loss of power.
        progress: Called with the number of bytes written so far.

    Raises:
        OSError: With the system's class and errno; the file at `path` is what it was, and nothing is
            left beside it.
        PartialOverwriteError: The filesystem cannot rename, so that the contents had to be copied
            over the old file, and that failed half-way.
    """
    target = os.path.realpath(os.fspath(path))
    replaced = _stat_replaceable(target)
    directory = os.path.dirname(target)
    temporary = os.path.join(directory, f".safeweights-{secrets.token_hex(8)}.tmp")
    try:
        _create(temporary, replaced, buffers, durable=durable, progress=progress)
        _rename(temporary, target, durable=durable)
    except PartialOverwriteError:
        raise
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if durable:
        _sync_directory(directory)


def write_stream(
    file: IO[bytes],
    buffers: Iterable[Buffer],
    *,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write `buffers` to an open file object, a pipe or socket too; it is neither closed nor synced."""
    written = 0
    for buffer in buffers:
        rest = memoryview(buffer)
        while rest:
            count = file.write(rest)
            if count is None:
                raise BlockingIOError(errno.EAGAIN, "the file object would block")
            rest = rest[count:]
            written += count
        if progress is not None:
            progress(written)


def _stat_replaceable(target: str) -> os.stat_result | None:
    """The status of the regular file at `target`; None where there is nothing."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.ENODEV, "Refusing to replace what is not a regular file", target)
    return status


def _create(
    path: str,
    replaced: os.stat_result | None,
    buffers: Iterable[Buffer],
    *,
    durable: bool,
    progress: Callable[[int], object] | None,
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS | getattr(os, "O_NOFOLLOW", 0)
    # Created with the final mode: contents meant for few must not be readable by many meanwhile.
    mode = 0o666 if replaced is None else stat.S_IMODE(replaced.st_mode) & 0o777
    with _closing(os.open(path, flags, mode)) as descriptor:
        if replaced is not None:
            _adopt(descriptor, replaced)
        _write_all(descriptor, buffers, progress)
        if durable:
            os.fsync(descriptor)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        # close(2) reports what a network filesystem could not write: not to be missed.
        os.close(descriptor)


def _adopt(descriptor: int, replaced: os.stat_result) -> None:
    """Give the new file the owner (where that is allowed) and mode of the one it replaces."""
    if not hasattr(os, "fchmod"):
        return
    created = os.fstat(descriptor)
    try:
        if (created.st_uid, created.st_gid) != (replaced.st_uid, replaced.st_gid):
            os.fchown(descriptor, replaced.st_uid, replaced.st_gid)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    try:
        if created.st_mode != replaced.st_mode:
            os.fchmod(descriptor, stat.S_IMODE(replaced.st_mode))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _write_all(
    descriptor: int, buffers: Iterable[Buffer], progress: Callable[[int], object] | None
) -> None:
    written = 0
    for batch in _batches(buffers):
        rest = batch
        while rest:
            count = _write_some(descriptor, rest)
            written += count
            rest = _after(rest, count)
        if progress is not None:
            progress(written)


def _batches(buffers: Iterable[Buffer]) -> Iterator[list[memoryview]]:
    """Group buffers for one system call each; cut those that are large."""
    batch: list[memoryview] = []
    size = 0
    for piece in _pieces(buffers):
        if batch and (len(batch) == _VECTOR or size + len(piece) > _BATCH):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece)
    if batch:
        yield batch


def _pieces(buffers: Iterable[Buffer]) -> Iterator[memoryview]:
    for buffer in buffers:
        view = memoryview(buffer)
        if len(view) <= _BATCH:
            if view:
                yield view
            continue
        for begin in range(0, len(view), _BATCH):
            yield view[begin : begin + _BATCH]


def _write_some(descriptor: int, batch: list[memoryview]) -> int:
    vectored = hasattr(os, "writev")  # not on Windows
    count = os.writev(descriptor, batch) if vectored else os.write(descriptor, batch[0])
    if count == 0:
        raise OSError(errno.EIO, "the filesystem accepts no more bytes and reports no error")
    return count


def _after(batch: list[memoryview], count: int) -> list[memoryview]:
    """What is left of `batch` after its first `count` bytes were written."""
    for index, piece in enumerate(batch):
        if count < len(piece):
            return [piece[count:], *islice(batch, index + 1, None)]
        count -= len(piece)
    return []


def _rename(temporary: str, target: str, *, durable: bool) -> None:
    try:
        os.replace(temporary, target)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _copy_over(temporary, target, durable=durable, refusal=error)
        os.unlink(temporary)


def _copy_over(temporary: str, target: str, *, durable: bool, refusal: OSError) -> None:
    """Where there is no rename: the contents, which are safe in `temporary`, into `target`."""
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o666)
    except OSError:
        raise refusal from None  # nothing was touched, and the rename's refusal is the cause
    try:
        with open(temporary, "rb", buffering=0) as source, _closing(descriptor):
            _write_all(descriptor, iter(lambda: source.read(_BATCH), b""), None)
            if durable:
                os.fsync(descriptor)
    except OSError as error:
        raise PartialOverwriteError(target, temporary, error) from error


def _sync_directory(directory: str) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows has no such thing: NTFS journals the name
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
