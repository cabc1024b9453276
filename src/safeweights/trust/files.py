"""How `trust` uses the file system.

Rules: only regular files are opened, without ever blocking on a FIFO or a device; a document is
read up to a bound; what is hashed is read once, through one descriptor, and a file that changes its
size meanwhile is an error; a folder is listed completely, in one order on every machine, with its
links and special files; where files must be below a root, no link leads out of it.

Failures of the operating system stay the `OSError` they were.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ..errors import quote
from ..storage import Entry, check_name, is_url, open_source
from ..storage.places import folder_of, is_folder, shown
from .errors import DocumentError, TrustError, VerificationError

try:
    import fcntl
except ImportError:  # Windows: the caller must ensure that one process at a time writes
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..storage import Store

__all__ = [
    "ENCRYPTED", "KEY_FILE", "KEY_SIGNATURE", "MAX_DOCUMENT", "Entry", "check_model",
    "check_name", "check_writable", "create_document", "is_bookkeeping", "list_folder", "locked",
    "open_beneath", "open_regular", "read_document",
]  # fmt: skip

ENCRYPTED: Final = ".age"
"""How the name of a file is continued when it is encrypted."""

KEY_FILE: Final = ".key.age"
"""How the names of files end that hold the identity of an encrypted model.

They change with the recipients, so that the signature of a folder leaves them out; each has its own.
"""

KEY_SIGNATURE: Final = KEY_FILE + ".sig"
"""How the names of the signatures of key files end."""

MAX_ENTRIES: Final = 1_000_000
MAX_DOCUMENT: Final = 64 << 20

_SAFE_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)


_BOOKKEEPING: Final = re.compile(
    r"(.*/)?(\.DS_Store|Thumbs\.db|desktop\.ini)"
    r"|\.gitattributes|\.gitignore"
    r"|(.*/)?\.cache/huggingface/(\.gitignore|CACHEDIR\.TAG|download/(.*/)?[^/]+\.(metadata|lock))",
    re.DOTALL,
)


def is_bookkeeping(name: str) -> bool:
    """Whether tools write a file of this name beside a model, and no loader of models reads it.

    >>> is_bookkeeping(".cache/huggingface/download/config.json.metadata")
    True
    >>> is_bookkeeping(".cache/huggingface/modeling.py")
    False
    """
    return _BOOKKEEPING.fullmatch(name) is not None


def open_beneath(root: str, path: str) -> int:
    """A descriptor of the file at `path`, which is below the folder `root`, links included.

    Links are resolved first. The resolved path is then opened one part at a time, each relative to
    the descriptor of the one before and without following links, so that a link put there meanwhile
    is an error and never leads out of `root`.

    Raises:
        VerificationError: ``outside-root``.
        OSError: As the operating system has it.
    """
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    outside = VerificationError(
        "the path leads out of the folder it must be in", reason="outside-root", path=path
    )
    inside = os.path.relpath(real, real_root)
    parts = inside.split(os.sep)
    if parts[0] == os.pardir or os.path.isabs(inside):
        raise outside
    if os.open not in os.supports_dir_fd:  # Windows, where making a link takes a privilege
        descriptor = os.open(real, _SAFE_FLAGS)
        same = os.path.samestat(os.fstat(descriptor), os.stat(real, follow_symlinks=False))
        if not same or os.path.realpath(real) != real:
            os.close(descriptor)
            raise outside
        return descriptor
    descriptor = os.open(real_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for number, part in enumerate(parts, 1):
        flags = _SAFE_FLAGS | os.O_NOFOLLOW | (os.O_DIRECTORY if number < len(parts) else 0)
        above = descriptor
        try:
            descriptor = os.open(part, flags, dir_fd=above)
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(above)
    return descriptor


@contextmanager
def open_regular(
    path: str,
    *,
    follow: bool = True,
    beneath: str | None = None,
    error: type[TrustError] = VerificationError,
) -> Iterator[tuple[int, int]]:
    """A descriptor of the regular file at `path`, and its size.

    Opening never blocks: a FIFO or a device put in the file's place is refused.

    Args:
        path: The file.
        follow: Whether a symbolic link to it is followed.
        beneath: The folder that the file must be in, links included; see `open_beneath`.
        error: The class to raise for anything but a regular file.

    Raises:
        VerificationError: ``not-a-file``; ``symlink`` where `follow` is false; ``outside-root``.
        OSError: As the operating system has it.
    """
    if not follow and os.path.islink(path):
        raise error("this is a symbolic link", reason="symlink", path=path)
    if beneath is not None:
        descriptor = open_beneath(beneath, path)
    else:
        flags = _SAFE_FLAGS | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
        descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise error("this is not a regular file", reason="not-a-file", path=path)
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def read_document(
    path: str,
    *,
    limit: int = MAX_DOCUMENT,
    beneath: str | None = None,
    elsewhere: bool = False,
) -> bytes:
    """All bytes of a file that has at most `limit` of them.

    Args:
        path: The file.
        limit: See above.
        beneath: The folder that it must be in; see `open_beneath`.
        elsewhere: Whether it may be a URL: of what is verified afterwards, never of what says whom to
            trust, or of a key.

    Raises:
        DocumentError: Longer than `limit`, ``not-a-file``, or ``not-local``.
        VerificationError: ``outside-root``; see `open_beneath`.
    """
    if is_url(path) and not elsewhere:
        raise DocumentError(
            "policies, keys and the like are read from this machine only; fetch the file first",
            reason="not-local", path=shown(path),
        )  # fmt: skip
    if beneath is None and is_url(path):
        source = open_source(path)
        if source.size > limit:
            raise DocumentError(f"longer than {limit} bytes", path=path)
        return source.read(0, source.size)
    with open_regular(path, beneath=beneath, error=DocumentError) as (descriptor, _):
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
    """Check, before anything else is read, that a file can be created at `path`.

    Writing can still fail later, and the caller must handle that.

    Raises:
        OSError: Its folder does not exist or is not writable; a folder or a device is in its place.
    """
    _check_kind(path)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def check_model(path: str) -> None:
    """Check that there is a file or folder at `path`.

    Raises:
        OSError: There is nothing, or something else.
    """
    if is_url(path):
        if not is_folder(path):
            open_source(path)
    elif not os.path.isdir(path):
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
    """A descriptor of the file at `path`, created if missing, that this caller alone holds.

    Other processes and threads that ask for the same file wait. It is opened for appending and
    reading.

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
        os.close(descriptor)  # which releases the lock


def list_folder(root: str, store: Store | None = None) -> list[Entry]:
    """Everything below `root` that is not a folder, by name in code point order.

    Links are listed, never followed.

    Raises:
        VerificationError: ``name``: a name that no manifest can carry; ``too-many-files``.
        OSError: A folder that cannot be read.
    """
    found: list[Entry] = []
    for entry in (store or folder_of(root)).list():
        if problem := check_name(entry.name):
            raise VerificationError(
                f"the file name {quote(entry.name)} {problem}", reason="name", path=root
            )
        if len(found) == MAX_ENTRIES:
            raise VerificationError(
                f"more than {MAX_ENTRIES} files", reason="too-many-files", path=root
            )
        found.append(entry)
    return found
