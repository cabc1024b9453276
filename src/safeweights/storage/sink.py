"""Sinks: write all the bytes of a file or none.

Rules:
- A file is written without a name, or under another name in the same directory, and renamed when it is
  complete (rename(2)): a reader sees the old contents or the new, and a failed save changes nothing.
- Where the system has files without a name (open(2), O_TMPFILE), a process that is killed while it
  writes leaves nothing behind; elsewhere it leaves ``.safeweights-*.tmp``, which may be deleted.
- The new file has the mode of the one it replaces, and its owner and group where that is allowed; without
  one, the mode that the umask allows. A symbolic link stays one; its target is replaced. Other hard links
  to the old file keep the old contents.
- Only regular files are replaced: never a directory, device, FIFO or socket.
- ``durable`` means that the bytes and the name survive a loss of power once the call returns
  (fsync(2) of the file and of its directory).
- A filesystem that cannot rename, truncate or change modes is no reason to fail.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
from typing import IO, TYPE_CHECKING, Any, Final, Literal

from ..errors import UnsupportedError
from .appending import BATCH, UNSUPPORTED, Pieces, Progress, about, progressed, write_all
from .files import decoded
from .runs import expanded
from .source import flat
from .syscalls import reserve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "PartialOverwriteError",
    "about",
    "adopt",
    "check_absent",
    "copy_over",
    "is_staging_name",
    "rename",
    "stage_file",
    "staging_name",
    "stat_replaceable",
    "sync",
    "sync_directory",
    "write_file",
    "write_stream",
]

_LARGE: Final = 1 << 20
_FLAGS: Final[int] = getattr(os, "O_BINARY", 0)

_CANNOT_RENAME: Final = UNSUPPORTED | {errno.EXDEV, errno.EBUSY}
"""EBUSY: the target is itself a mount point, as a file that is mounted into a container is."""

_CANNOT_LINK: Final = _CANNOT_RENAME | {errno.EMLINK}


class PartialOverwriteError(OSError):
    """The old contents could be replaced only in part.

    Attributes:
        kept: The file that has all of the new contents; or the folder with all files, old and new, that
            are not in their places.
    """

    def __init__(self, target: str, kept: str, cause: OSError) -> None:
        whole = "what is not in place" if os.path.isdir(kept) else "all of the new contents"
        what = f"{cause.strerror}: replaced only in part; {whole} is in {kept!r}"
        super().__init__(cause.errno, what, target)
        self.kept = kept
        self._cause = cause

    def __reduce__(self) -> tuple[type, tuple[str, str, OSError]]:
        return type(self), (self.filename, self.kept, self._cause)


def write_file(
    path: str | os.PathLike[str],
    buffers: Pieces,
    *,
    size: int = 0,
    durable: bool = False,
    create_only: bool = False,
    links: Literal["follow", "refuse", "replace"] = "follow",
    progress: Progress | None = None,
) -> None:
    """Replace the file at `path` by one whose contents are `buffers`, concatenated.

    Cost: nothing is copied; up to 1,024 buffers or 8 MiB go into one system call. Where more than two
    processors may be used, up to 12 threads write 128 MiB or more that exist already (`InMemory`), if that
    is faster, and each has 4 MiB of the file mapped. If they are to be durable, and are more than 16 MiB,
    up to eight threads write copies past the page cache, from 8 MiB of memory each. While it runs, the old
    contents and the new take up space.

    Args:
        path: The file.
        buffers: The contents. An iterator is read as bytes are written, so it may make them. The
            system itself moves those that are a `Run` of another file; threads share those that are
            `Computed`.
        size: Number of bytes there will be, where it is known: the space for a large file is reserved
            first, and a durable one goes to the disk as it is written instead of filling the page cache.
        durable: Return only when the file and its name would survive a loss of power.
        create_only: Never replace anything: fail if `path` exists, also if another process creates it
            in the meantime.
        links: What happens to a symbolic link at `path`: its target is replaced, or it is refused
            (ENODEV, like every other special file), or the link itself is replaced.
        progress: Called with the number of bytes written so far.

    Raises:
        FileExistsError: `create_only`, and there is something at `path`.
        OSError: With the system's class and errno; the file at `path` is what it was, and nothing is
            left beside it. (If syncing the directory of a durable file fails, which comes last, the
            new file is in its place.)
        PartialOverwriteError: The filesystem cannot rename, so that the contents had to be copied
            over the old file, and that failed half-way.
    """
    name = decoded(path)
    if create_only:
        check_absent(name)
    target = os.path.realpath(name) if links == "follow" else _resolve_parent(name)
    directory = os.path.dirname(target)
    staged = os.path.join(directory, staging_name())
    stat_replaceable(target, follow=links != "refuse")
    with sync_directory(directory, durable=durable):
        stage_file(staged, target, buffers, size=size, durable=durable, progress=progress)
        try:
            with about(target):
                renamed = rename(staged, target, create_only=create_only)
        except BaseException:
            _discard(staged)
            raise
        if not renamed:
            copy_over(staged, target, durable=durable, follow=links == "follow")


def stage_file(
    path: str,
    target: str,
    buffers: Pieces,
    *,
    size: int = 0,
    durable: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a new file at `path` that is to be renamed to `target`, with the owner and mode of the old one.

    Args:
        path: The new file; nothing exists there.
        target: The file that it will replace, if there is one.
        buffers: As for `write_file`.
        size: As for `write_file`.
        durable: As for `write_file`, without the name.
        progress: As for `write_file`.

    Raises:
        OSError: About `target`; there is nothing at `path`.
    """
    new = _NewFile(path, target, stat_replaceable(target), size=size, durable=durable)
    try:
        new.create(buffers, progress)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == path:
            error.filename = target
        _discard(path)
        raise


def check_absent(path: str) -> None:
    """Raise FileExistsError if there is anything at `path`, a dangling link too."""
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def _resolve_parent(path: str) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def write_stream(
    file: IO[bytes],
    buffers: Pieces,
    *,
    progress: Progress | None = None,
) -> None:
    """Write `buffers` to an open file object, which may be a pipe or socket; it is not closed or synced.

    Raises:
        UnsupportedError: The object is in text mode.
        BlockingIOError: The object is in non-blocking mode and takes no more.
        OSError: Writing failed; the bytes that were written before stay.
    """
    if isinstance(file, io.TextIOBase):
        raise UnsupportedError("the file object takes text: open it in mode 'wb'")
    written = 0
    for buffer in expanded(buffers):
        rest = flat(buffer)
        while rest:
            count = file.write(rest)
            if count is None:
                raise BlockingIOError(errno.EAGAIN, "the file object would block")
            rest = rest[progressed(count) :]
            written += count
        if progress is not None:
            progress(written)


def rename(source: str, target: str, *, create_only: bool = False) -> bool:
    """Rename a file, over another if there is one; False if the filesystem cannot, and nothing changed.

    Args:
        source: The file.
        target: Its new name, in the same filesystem.
        create_only: Raise FileExistsError if there is something at `target`.
    """
    try:
        if create_only:
            _rename_new(source, target)
        else:
            os.replace(source, target)
    except OSError as error:
        if error.errno not in _CANNOT_RENAME:
            raise
        return False
    return True


def _rename_new(source: str, target: str) -> None:
    # rename(2) replaces what is there, link(2) does not; but some filesystems have no hard links.
    try:
        os.link(source, target)
    except FileExistsError as error:
        raise FileExistsError(error.errno, error.strerror, target) from None
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
    else:
        _discard(source)
        return
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS))  # reserves the name
    try:
        os.replace(source, target)
    except BaseException as error:
        if not (isinstance(error, OSError) and error.errno in _CANNOT_RENAME):
            _discard(target)
        raise


@contextlib.contextmanager
def sync_directory(directory: str, *, durable: bool) -> Iterator[None]:
    """If `durable`, sync the names in `directory` at the end of the block, if that did not fail."""
    if not (durable and hasattr(os, "O_DIRECTORY")):  # Windows has none: NTFS journals names
        yield
        return
    # Opened first: where that is refused, nothing has happened yet.
    with _closing(os.open(directory, os.O_RDONLY | os.O_DIRECTORY), directory) as descriptor:
        yield
        with about(directory):
            _allowed(os.fsync, descriptor)


def stat_replaceable(target: str, *, follow: bool = True) -> os.stat_result | None:
    """The status of the regular file at `target`; None if there is nothing.

    Args:
        target: A path.
        follow: Whether a symbolic link counts as the file that it leads to.

    Raises:
        OSError: It is a directory, a device or another thing that a file never replaces.
    """
    try:
        status = os.stat(target, follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.ENODEV, "Refusing to replace what is not a regular file", target)
    return status


def staging_name() -> str:
    """A hidden name that nothing else has, for a file or folder that is not complete yet."""
    return f".safeweights-{os.urandom(8).hex()}.tmp"


def is_staging_name(name: str) -> bool:
    """Whether `staging_name` may have made `name`."""
    return name.startswith(".safeweights-") and name.endswith(".tmp")


class _NewFile:
    """A file that is written at `path` and replaces the one at `target`, whose status is `replaced`."""

    def __init__(
        self,
        path: str,
        target: str,
        replaced: os.stat_result | None,
        *,
        size: int,
        durable: bool,
    ) -> None:
        self._path = path
        self._target = target
        self._replaced = replaced
        self._size = size
        self._durable = durable
        # Until the file has the old owner, group and mode, only this process's user may read it.
        self._mode = 0o666 if replaced is None else stat.S_IMODE(replaced.st_mode) & 0o700

    def create(self, buffers: Pieces, progress: Progress | None) -> None:
        """Write it. It has no name until it is complete, if the system can do that."""
        unnamed = _open_unnamed(os.path.dirname(self._path), self._mode)
        if unnamed is None:
            self._create_named(buffers, progress)
            return
        with _closing(unnamed, self._target):
            self._fill(unnamed, buffers, progress)
            if _name(unnamed, self._path):
                sync(unnamed, self._target, durable=self._durable)
            else:
                self._create_named(_contents(unnamed), None)

    def _create_named(self, buffers: Pieces, progress: Progress | None) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS | getattr(os, "O_NOFOLLOW", 0)
        with _closing(os.open(self._path, flags, self._mode), self._target) as descriptor:
            self._fill(descriptor, buffers, progress)

    def _fill(self, descriptor: int, buffers: Pieces, progress: Progress | None) -> None:
        large = self._size >= _LARGE
        if large:
            with about(self._target):
                reserve(descriptor, self._size)
        uncached = large and self._durable
        write_all(descriptor, self._target, buffers, progress, uncached=uncached)
        if self._replaced is not None:  # last: writing takes the set-ID bits away
            with about(self._target):
                adopt(descriptor, self._replaced)
        sync(descriptor, self._target, durable=self._durable)


def _open_unnamed(directory: str, mode: int) -> int | None:
    """A new file without a name; None if the system or the filesystem has no such files."""
    # It gets its name through /proc, which a chroot may lack.
    if not (hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd")):
        return None
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR, mode)
    except OSError:
        return None


def _name(descriptor: int, path: str) -> bool:
    """Give the file a name, as open(2) describes; False if a security policy forbids that."""
    try:
        # A src_dir_fd makes Python call linkat, which follows the link.
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
    except OSError:
        return False
    return True


def _contents(descriptor: int) -> Iterator[bytes]:
    position = 0
    while piece := os.pread(descriptor, BATCH, position):
        yield piece
        position += len(piece)


@contextlib.contextmanager
def _closing(descriptor: int, path: str) -> Iterator[int]:
    try:
        yield descriptor
    except BaseException:
        with contextlib.suppress(OSError):  # the first failure is the one to report
            os.close(descriptor)
        raise
    with about(path):
        # close(2) reports what a network filesystem could not write: not to be missed.
        os.close(descriptor)


def _discard(path: str) -> None:
    with contextlib.suppress(OSError):  # not there, or as stubborn as what went wrong before
        os.unlink(path)


def _allowed(call: Callable[..., object], *arguments: Any) -> bool:
    """Make a system call that a filesystem may lack or a user may not be allowed; whether it worked."""
    try:
        call(*arguments)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def adopt(descriptor: int, replaced: os.stat_result) -> None:
    """Give the new file the owner (where that is allowed) and mode of the one it replaces."""
    if not hasattr(os, "fchown"):  # Windows
        return
    created = os.fstat(descriptor)
    owner, mode = (replaced.st_uid, replaced.st_gid), stat.S_IMODE(replaced.st_mode)
    if (created.st_uid, created.st_gid) != owner and not _allowed(os.fchown, descriptor, *owner):
        # The file of another user: a member of its group may keep the group, but the set-ID bits would
        # give the new owner's rights to a program.
        mode &= ~(stat.S_ISUID | stat.S_ISGID)
        _allowed(os.fchown, descriptor, -1, replaced.st_gid)
    if stat.S_IMODE(created.st_mode) != mode:
        _allowed(os.fchmod, descriptor, mode)


def sync(descriptor: int, path: str, *, durable: bool) -> None:
    """If `durable`, return only when the contents would survive a loss of power."""
    if not durable:
        return
    with about(path):
        if sys.platform == "darwin":  # fsync(2) stops at the drive's cache there
            import fcntl

            if _allowed(fcntl.fcntl, descriptor, fcntl.F_FULLFSYNC):
                return
        os.fsync(descriptor)


def copy_over(
    source: str, target: str, *, durable: bool, follow: bool = True, keep: bool = False
) -> None:
    """Where there is no `rename`: move the contents of `source` into the file at `target`.

    Args:
        source: The file.
        target: Where its contents go; made if it does not exist.
        durable: As for `write_file`.
        follow: Whether a symbolic link at `target` is followed; otherwise it is an error.
        keep: Keep `source` also if `target` cannot be opened.

    Raises:
        OSError: `target` cannot be opened and is what it was; `source` is gone, unless `keep`.
        PartialOverwriteError: Copying failed half-way; `source` is kept, as after an interrupt.
    """
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS
        flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(target, flags, 0o666)
    except BaseException:
        if not keep:
            _discard(source)
        raise
    # From here on `source` is all there is, so that nothing may remove it but success.
    try:
        with _closing(descriptor, target), open(source, "rb", buffering=0) as file:
            write_all(descriptor, target, iter(lambda: file.read(BATCH), b""))
            sync(descriptor, target, durable=durable)
    except OSError as error:
        raise PartialOverwriteError(target, source, error) from error
    _discard(source)
