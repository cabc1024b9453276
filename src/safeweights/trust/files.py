"""How this package touches the file system when it decides about trust.

Rules: only regular files are opened, without ever blocking on a FIFO or a device; a document is
read up to a bound; what is hashed is read once, through one descriptor, and a file that changes its
size meanwhile is an error; a folder is listed completely, in one order on every machine, links and
special files by name instead of silently.

Real failures of the operating system stay the `OSError` they were.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import quote
from .errors import DocumentError, TrustError, VerificationError

try:
    import fcntl
except ImportError:  # Windows: one process at a time is the caller's to ensure
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Entry", "check_model", "check_name", "check_writable", "create_document", "list_folder",
    "locked", "open_regular", "read_document",
]  # fmt: skip

MAX_ENTRIES: Final = 1_000_000
MAX_DOCUMENT: Final = 64 << 20

_SAFE_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)


@dataclass(frozen=True, order=True)
class Entry:
    """One thing in a folder that is not a folder.

    Attributes:
        name: Path relative to the folder, with ``/`` between its parts.
        kind: ``"file"``, ``"link"`` (a symbolic link to anything) or ``"special"``.
    """

    name: str
    kind: str


@contextmanager
def open_regular(
    path: str, *, follow: bool = True, error: type[TrustError] = VerificationError
) -> Iterator[tuple[int, int]]:
    """A descriptor of the regular file at `path`, and its size.

    Opening never blocks: a FIFO or a device put in the file's place is refused.

    Args:
        path: The file.
        follow: Whether a symbolic link may stand for it.
        error: What to raise of anything else.

    Raises:
        VerificationError: ``not-a-file``, or ``symlink`` where `follow` is false.
        OSError: As the operating system has it.
    """
    if not follow and os.path.islink(path):
        raise error("this is a symbolic link", reason="symlink", path=path)
    flags = _SAFE_FLAGS | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise error("this is not a regular file", reason="not-a-file", path=path)
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def read_document(path: str, *, limit: int = MAX_DOCUMENT) -> bytes:
    """All bytes of a file that has at most `limit` of them.

    Raises:
        DocumentError: Longer than `limit`, or ``not-a-file``.
    """
    with open_regular(path, error=DocumentError) as (descriptor, _):
        parts = []
        left = limit + 1
        while left and (part := os.read(descriptor, min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
    if not left:
        raise DocumentError(f"longer than {limit} bytes", path=path)
    return b"".join(parts)


def create_document(path: str, data: bytes, *, mode: int = 0o644) -> None:
    """Write a small file durably where there is none yet.

    Raises:
        FileExistsError: There is something at `path`; it is left as it is.
        OSError: As the operating system has it; nothing is left behind.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(path)
        raise


def check_writable(path: str) -> None:
    """Find out now, and not after everything was read, that no file can be made at `path`.

    That it can is no promise: whoever writes it handles the error all the same.

    Raises:
        OSError: Its folder is not there, or takes no new file; a folder or a device is in its place.
    """
    _check_kind(path)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def check_model(path: str) -> None:
    """Find out that there is something to look at: nothing was not signed either, but is no answer.

    Raises:
        OSError: There is nothing at `path`, or neither a file nor a folder.
    """
    if not os.path.isdir(path):
        os.stat(path)
        _check_kind(path)


def _check_kind(path: str) -> None:
    """A file, or nothing yet."""
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.ENODEV, "this is not a regular file", path)


@contextmanager
def locked(path: str) -> Iterator[int]:
    """A descriptor of the file at `path`, made if need be, that this process alone holds.

    Other processes that ask for the same wait. The file is opened for appending and reading.

    Raises:
        DocumentError: ``not-a-file``.
        OSError: As the operating system has it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o644)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DocumentError("this is not a regular file", reason="not-a-file", path=path)
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)  # which lets go of the lock


def check_name(name: str) -> str | None:
    """Why `name` cannot be a file's name relative to a folder; None where it can.

    The rules of OMS section 6.1.2, and no backslash, which is a separator on one system and a
    letter on another.

    >>> check_name("../weights")
    'has an empty, `.` or `..` part'
    """
    if not name or "\0" in name:
        return "is empty or contains NUL"
    if (
        name.startswith("/")
        or "\\" in name
        or (len(name) > 1 and name[1] == ":" and name[0].isascii() and name[0].isalpha())
    ):
        return "is not a relative path with `/` between its parts"
    if any(part in {"", ".", ".."} for part in name.split("/")):
        return "has an empty, `.` or `..` part"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    return None


def list_folder(root: str) -> list[Entry]:
    """Everything below `root` that is not a folder, by name in code point order.

    Links are listed, never followed.

    Raises:
        VerificationError: ``name``: a name that no manifest can carry; ``too-many-files``.
        OSError: A folder that cannot be read.
    """
    found: list[Entry] = []
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(os.path.join(root, prefix) if prefix else root) as entries:
            for entry in entries:
                name = prefix + entry.name
                if problem := check_name(name):
                    raise VerificationError(
                        f"the file name {quote(name)} {problem}", reason="name", path=root
                    )
                if entry.is_dir(follow_symlinks=False):
                    pending.append(name + "/")
                else:
                    found.append(Entry(name, _kind(entry)))
        if len(found) > MAX_ENTRIES:
            raise VerificationError(
                f"more than {MAX_ENTRIES} files", reason="too-many-files", path=root
            )
    return sorted(found)


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    return "file" if entry.is_file(follow_symlinks=False) else "special"
