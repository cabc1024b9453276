"""Sources: random access to bytes that do not move, from a file, a file object or memory.

Rules:
- A file is opened once, by name; everything after that goes through the descriptor, so that nobody
  can exchange the file between the check of its header and the reading of its data.
- A read gives all the bytes asked for or an error, never fewer.
- What a source handed out stays valid for as long as somebody holds it: a descriptor or mapping is
  closed when the last user is gone, not before.
- Mapped pages are private: writing to them changes neither the file nor what others see. If another
  process truncates a mapped file, touching the lost pages kills the process (SIGBUS; mmap(2)). Where
  that can happen, use the pread engine, which raises `TruncatedError`.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import stat
import threading
import weakref
from abc import ABC, abstractmethod
from typing import IO, Any, Final

from ..errors import SafetensorError, UnsupportedError

__all__ = [
    "ENGINES",
    "BytesSource",
    "DescriptorSource",
    "FileObjectSource",
    "Source",
    "TruncatedError",
    "open_source",
]

ENGINES: Final = ("mmap", "pread")

# One system call moves at most 0x7ffff000 bytes on Linux, and a signal is seen between two calls.
_READ_MAX: Final = 1 << 28


class TruncatedError(SafetensorError, EOFError):
    """The file ends before the bytes that were asked for."""


class Source(ABC):
    """Bytes 0 to `size`, readable at any place, from any thread.

    Attributes:
        name: What to call it in messages: a path, or a description.
        size: Number of bytes when it was opened.
    """

    name: str
    size: int

    @property
    def in_memory(self) -> bool:
        """Whether `view` gives memory that is there already, instead of reading."""
        return False

    @abstractmethod
    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (flat, of bytes) with the bytes from `offset` on.

        Raises:
            TruncatedError: The source ends before that.
            OSError: Reading failed.
        """

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes from `offset`: the memory itself where the source is in memory, else a copy."""
        if offset + length > self.size:  # before anything is allocated
            raise self._truncated(offset, length, self.size)
        buffer = memoryview(bytearray(length))
        self.read_into(offset, buffer)
        return buffer

    def _truncated(self, offset: int, length: int, end: int) -> TruncatedError:
        return TruncatedError(
            f"the file was truncated: {length} bytes wanted from byte {offset}, it ends at byte {end}",
            path=self.name,
            offset=offset,
        )


class DescriptorSource(Source):
    """A regular file, by its descriptor; mapped if asked and possible.

    Args:
        descriptor: Open for reading. The source closes it when the last user is gone.
        name: For messages.
        mapped: Serve `view` from a private mapping. Where the system cannot map the file, `view`
            reads instead.
    """

    def __init__(self, descriptor: int, name: str, *, mapped: bool = True) -> None:
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self.name = name
        self.size = os.fstat(descriptor).st_size
        self._map: memoryview | None = None
        if mapped and self.size:
            try:
                # ACCESS_COPY is a private mapping: writable, and never written back.
                self._map = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY))
            except (OSError, ValueError, OverflowError):
                self._map = None  # no such device (FUSE), no address space: read instead
            else:
                self.size = len(self._map)

    @property
    def in_memory(self) -> bool:
        return self._map is not None

    def fileno(self) -> int:
        """The descriptor; it stays the source's."""
        return self._descriptor

    def read_into(self, offset: int, buffer: memoryview) -> None:
        position, rest = offset, buffer
        while rest:
            count = self._read_some(position, rest[:_READ_MAX])
            if count == 0:
                raise self._truncated(offset, len(buffer), position)
            position += count
            rest = rest[count:]

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [buffer], offset)
        # Windows: the position is the descriptor's, so nobody else may move it meanwhile.
        with self._lock, io.FileIO(self._descriptor, closefd=False) as file:
            file.seek(offset)
            return file.readinto(buffer)

    def view(self, offset: int, length: int) -> memoryview:
        if self._map is None:
            return super().view(offset, length)
        if offset + length > self.size:
            raise self._truncated(offset, length, self.size)
        return self._map[offset : offset + length]


class FileObjectSource(Source):
    """Any readable file object. One that cannot seek is read to its end at once.

    The object stays the caller's: it is neither closed nor returned to its old position.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.name = str(getattr(file, "name", type(file).__name__))
        self._file = file
        self._lock = threading.Lock()
        self.size = file.seek(0, os.SEEK_END)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._lock:
            self._file.seek(offset)
            rest = buffer
            while rest:
                count = self._read_some(rest)
                if not count:
                    end = offset + len(buffer) - len(rest)
                    raise self._truncated(offset, len(buffer), end)
                rest = rest[count:]

    def _read_some(self, buffer: memoryview) -> int:
        readinto = getattr(self._file, "readinto", None)
        if readinto is not None:
            return int(readinto(buffer) or 0)
        data = self._file.read(min(len(buffer), 1 << 24))
        buffer[: len(data)] = data
        return len(data)


class BytesSource(Source):
    """Memory that holds a whole file: bytes, bytearray, memoryview, mmap, array ...

    Args:
        data: Any object with the buffer protocol whose memory is contiguous. Views share it.
        name: For messages.
    """

    def __init__(self, data: Any, name: str = "") -> None:
        try:
            self._data = memoryview(data).cast("B")
        except (TypeError, ValueError, BufferError) as error:
            raise UnsupportedError(
                f"expected bytes or another contiguous buffer, found {type(data).__name__}: {error}"
            ) from error
        self.name = name
        self.size = len(self._data)

    @property
    def in_memory(self) -> bool:
        return True

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.view(offset, len(buffer))

    def view(self, offset: int, length: int) -> memoryview:
        if offset + length > self.size:
            raise self._truncated(offset, length, self.size)
        return self._data[offset : offset + length]


def open_source(
    target: str | os.PathLike[str] | bytes | IO[bytes], *, engine: str = "mmap"
) -> Source:
    """Open a file by name, or wrap an open file object.

    Args:
        target: A path, or an object with `read`.
        engine: ``"mmap"`` serves views from a private mapping, ``"pread"`` reads every view into
            fresh memory.

    Raises:
        OSError: Opening failed, with the system's class and errno; a directory is an
            IsADirectoryError, a device, FIFO or socket an OSError with ENODEV.
        UnsupportedError: Not a path and not readable.
    """
    if not isinstance(target, str | bytes | os.PathLike):
        return _open_object(target)
    path = os.fspath(target)
    name = os.fsdecode(path)
    # O_NONBLOCK: opening a FIFO must not wait for somebody to write to it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    try:
        _require_regular(os.fstat(descriptor).st_mode, name)
    except OSError:
        os.close(descriptor)
        raise
    return DescriptorSource(descriptor, name, mapped=engine == "mmap")


def _open_object(file: IO[bytes]) -> Source:
    kind = type(file).__name__
    if not hasattr(file, "read"):
        raise UnsupportedError(f"expected a path or a readable file object, found {kind}")
    seekable = file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")
    return (
        FileObjectSource(file)
        if seekable
        else BytesSource(file.read(), getattr(file, "name", kind))
    )


def _require_regular(mode: int, name: str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENODEV, "Not a regular file (No such device)", name)
