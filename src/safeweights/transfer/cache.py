"""A folder of files by their SHA-256, shared by the processes of a machine, and bounded in size.

``SAFEWEIGHTS_CACHE`` names the folder; ``SAFEWEIGHTS_CACHE_SIZE`` how much it may hold (``50GB`` by
default). A file is called by its digest, so that no URL or credential is in a name. It is put in place by
renaming, and hashed again whenever it is used: a file that was damaged or changed is deleted, never handed
out. What was not used for longest is deleted first.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from ..errors import UnsupportedError
from ..storage import open_source, write_file
from ..storage.hashing import Hashing
from ..storage.runs import Run, is_copyable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..storage import Buffer

__all__ = ["Cache", "copy_verified"]

_DEFAULT_SIZE: Final = "50GB"
_NAME: Final = re.compile(r"[0-9a-f]{64}")
_PIECE: Final = 1 << 22


def copy_verified(
    path: str, target: str, sha256: str, progress: Callable[[int], object] | None = None
) -> bool:
    """Copy a local file if its content has the digest; whether it has.

    What is hashed is what is copied: the file may change meanwhile.

    Args:
        path: The file; it may be missing.
        target: The copy.
        sha256: The digest.
        progress: Called with the number of bytes copied so far.

    Raises:
        OSError: The copy cannot be written.
    """

    def pieces(hashing: Hashing) -> Iterator[Buffer]:
        for begin in range(0, source.size, _PIECE):
            piece = source.read(begin, min(_PIECE, source.size - begin))
            hashing.update(piece)
            yield piece
        if hashing.hexdigest() != sha256:
            raise _OtherContentError

    try:
        source = open_source(path, backend="pread")
    except OSError:
        return False
    try:
        with Hashing() as hashing:
            write_file(target, pieces(hashing), size=source.size, progress=progress)
    except _OtherContentError:
        return False
    return True


class _OtherContentError(Exception):
    """The content does not have the digest."""


class Cache:
    """The folder.

    Args:
        folder: Its path; it is made when a file is first added.
        size: Bytes that it may hold.
    """

    def __init__(self, folder: str, size: int) -> None:
        self.folder = folder
        self.size = size

    @classmethod
    def of_environment(cls) -> Cache | None:
        """The cache that the environment names; None if it names none.

        Raises:
            UnsupportedError: ``SAFEWEIGHTS_CACHE_SIZE`` is no size.
        """
        from ..checkpoint.sharding import parse_size

        folder = os.environ.get("SAFEWEIGHTS_CACHE")
        if not folder:
            return None
        try:
            size = parse_size(os.environ.get("SAFEWEIGHTS_CACHE_SIZE") or _DEFAULT_SIZE)
        except UnsupportedError as error:
            raise UnsupportedError(f"SAFEWEIGHTS_CACHE_SIZE: {error}") from None
        return cls(folder, size)

    def _path(self, sha256: str) -> str:
        return os.path.join(self.folder, sha256[:2], sha256)

    def get(
        self, sha256: str, target: str, progress: Callable[[int], object] | None = None
    ) -> bool:
        """Copy the file with that digest to `target`; whether there is one."""
        path = self._path(sha256)
        if not os.path.isfile(path):
            return False
        if copy_verified(path, target, sha256, progress):
            with suppress(OSError):
                os.utime(path)  # it was used
            return True
        with suppress(OSError):
            os.unlink(path)
        return False

    def add(self, path: str, sha256: str) -> None:
        """Copy a file with that digest, which was verified, into the cache; make room first.

        Raises:
            OSError: The cache cannot be written.
        """
        size = os.path.getsize(path)
        target = self._path(sha256)
        if size > self.size or os.path.exists(target):
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with self._locked():
            self._make_room(size)
            source = open_source(path, backend="pread")
            run = Run(source, 0, size) if is_copyable(source) else source.read(0, size)  # type: ignore[arg-type]
            write_file(target, [run], size=size)

    def _make_room(self, size: int) -> None:
        files = []
        for folder, _, names in os.walk(self.folder):
            for name in filter(_NAME.fullmatch, names):
                path = os.path.join(folder, name)
                with suppress(OSError):
                    status = os.stat(path)
                    files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(each[1] for each in files) + size
        for _, freed, path in sorted(files):
            if total <= self.size:
                return
            with suppress(OSError):  # another process deleted it
                os.unlink(path)
            total -= freed

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time makes room and adds, so that the bound holds.

        Raises:
            OSError: The lock file is a link, or a pipe that no process reads.
        """
        flags = os.O_WRONLY | os.O_CREAT
        for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
            flags |= getattr(os, name, 0)
        lock = os.open(os.path.join(self.folder, ".lock"), flags, 0o666)
        try:
            with suppress(ImportError, OSError):
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
