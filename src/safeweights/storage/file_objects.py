"""Readable file objects as sources."""

from __future__ import annotations

import io
import os
import threading
import weakref
from contextlib import suppress
from typing import IO, Any, Final

from ..errors import ClosedError, UnsupportedError
from .source import BytesSource, Source, flat

__all__ = ["FileObjectSource"]


class FileObjectSource(Source):
    """A readable file object that can seek.

    The caller owns the object: it is neither closed nor returned to its old position, and must stay open
    while it is read from. A forked child shares the file position with its parent: only one of them may
    read.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.name = _name_of(file)
        self._file = file
        self._lock = threading.Lock()
        _file_objects.add(self)
        file.seek(0, os.SEEK_END)  # returns None in some objects of the standard library
        self.size = file.tell()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._lock:
            try:
                self._file.seek(offset)
                rest = buffer
                while rest:
                    count = self._read_some(rest)
                    if not count:
                        end = offset + len(buffer) - len(rest)
                        raise self._truncated(offset, len(buffer), end)
                    rest = rest[count:]
            except ValueError as error:  # the caller may close it at any time
                if getattr(self._file, "closed", False):
                    raise ClosedError(path=self.name) from error
                raise

    def unlock(self) -> None:
        """Replace the lock, in a forked child, where the thread that held it does not exist."""
        self._lock = threading.Lock()

    def _read_some(self, buffer: memoryview) -> int:
        readinto = getattr(self._file, "readinto", None)
        if readinto is not None:
            return int(readinto(buffer) or 0)
        data = flat(self._file.read(min(len(buffer), 1 << 24)))
        buffer[: len(data)] = data
        return len(data)


_file_objects: Final[weakref.WeakSet[FileObjectSource]] = weakref.WeakSet()


def _unlock_all() -> None:
    for source in _file_objects:
        source.unlock()


with suppress(AttributeError):  # not on Windows
    os.register_at_fork(after_in_child=_unlock_all)


def _open_object(file: IO[bytes]) -> Source:
    if isinstance(file, io.TextIOBase):
        raise UnsupportedError(f"{_name_of(file)!r} is open in text mode: open it in mode 'rb'")
    seekable = file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")
    return FileObjectSource(file) if seekable else BytesSource(_read_all(file), _name_of(file))


def _name_of(file: IO[Any]) -> str:
    return str(getattr(file, "name", type(file).__name__))  # for some, the number of the descriptor


def _read_all(file: IO[bytes]) -> bytes:
    """All bytes to the end of the stream; one `read` of a raw stream may return fewer."""
    pieces = []
    while piece := file.read():
        pieces.append(piece)
    try:
        return b"".join(pieces)  # a single piece is not copied
    except TypeError as error:
        raise UnsupportedError(f"{_name_of(file)!r} does not read bytes: {error}") from error
