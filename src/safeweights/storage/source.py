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
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import IO, Any, Final, NamedTuple

from ..errors import ClosedError, SafetensorError, UnsupportedError
from .memory import CHUNK, PAGE, allocate, blank_bytes, in_parallel
from .placement import is_remote, map_untracked, populate, resident_share

__all__ = [
    "ENGINES",
    "BytesSource",
    "DescriptorSource",
    "FileObjectSource",
    "Reading",
    "Source",
    "TruncatedError",
    "Verify",
    "decoded",
    "flat",
    "open_source",
]

ENGINES: Final = ("mmap", "pread", "direct", "auto")
"""How files are read; see `open_source`."""

_DIRECT_READS: Final = 4
"""Direct reads under way at once: a disk's queue, not the processors, sets the pace."""

_LARGE: Final = 1 << 22
"""Bytes from which on huge pages pay, and threads."""

_WARM: Final = 0.5
"""Share of a file in the page cache from which on mapping it beats reading the disk directly."""

# A private mapping counts as memory that all its pages may need, so that a file larger than the
# memory could not be mapped (proc_sys_vm(5), overcommit_memory), unless the mapping waives that.
# The mmap module has the name since Python 3.13; the number is that of these two processors.
_NORESERVE: Final[int] = getattr(
    mmap,
    "MAP_NORESERVE",
    0x4000 if sys.platform == "linux" and os.uname().machine in {"x86_64", "aarch64"} else 0,
)


_UNTRACKED: Final[dict[str, Any]] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
"""Has a mapping hold no descriptor, where Python can. Tensors hold their mapping: a program would have a
descriptor open for every file it ever loaded."""


class TruncatedError(SafetensorError, EOFError):
    """The file ends before the bytes that were asked for."""


def flat(data: Any) -> memoryview:
    """The memory of a contiguous buffer, as a sequence of bytes; nothing is copied.

    Raises:
        UnsupportedError: `data` does not have the buffer protocol, or is not contiguous.

    >>> flat(memoryview(bytes(8)).cast("I")).nbytes
    8
    """
    try:
        view = memoryview(data)
        # A view with a 0 in its shape cannot be cast.
        return view.cast("B") if view.nbytes else memoryview(bytearray())
    except (TypeError, ValueError, BufferError) as error:
        raise UnsupportedError(
            f"expected bytes or another contiguous buffer, found {type(data).__name__}: {error}"
        ) from error


class Reading(NamedTuple):
    """Bytes on their way into memory, to be fetched piece by piece; see `Source.reading`.

    Attributes:
        data: Where they will be, in the end.
        extent: Up to where `fill` counts; 0 where nothing is left to do.
        fill: Fetches what stands between two places, each a multiple of `step` or the end. From any
            thread, several at once.
        step: See `fill`.
    """

    data: memoryview
    extent: int
    fill: Callable[[int, int], object]
    step: int = CHUNK


class Source(ABC):
    """Bytes 0 to `size`, readable at any place, from any thread.

    Attributes:
        name: What to call it in messages: a path, or a description.
        size: Number of bytes when it was opened.
        in_memory: Whether `view` gives memory that is there already, mapped too, instead of reading.
        threads: How many it is best read with; 0 for as many as there are processors.
    """

    name: str
    size: int
    in_memory: bool = False
    threads: int = 0

    @abstractmethod
    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (flat, of bytes) with the bytes from `offset` on.

        Raises:
            TruncatedError: The source ends before that.
            OSError: Reading failed.
        """

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes from `offset`: the memory itself where the source is in memory, else a copy."""
        reading = self.reading(offset, length)
        in_parallel(reading.fill, reading.extent, chunk=reading.step, threads=self.threads)
        return reading.data

    def reading(self, offset: int, length: int) -> Reading:
        """What `view` does, as work that the caller shares among threads and mixes with other work.

        Of a mapped file the pages are fetched, so that nobody waits for them when they are used.

        Raises:
            TruncatedError: The source ends before that.
        """
        if self.in_memory:
            return Reading(self.view(offset, length), 0, _nothing)
        if offset + length > self.size:  # before anything is allocated
            raise self._truncated(offset, length, self.size)
        buffer = allocate(length)

        def fill(begin: int, end: int) -> None:
            self.read_into(offset + begin, buffer[begin:end])

        return Reading(buffer, length, fill)

    def read(self, offset: int, length: int) -> bytes:
        """A copy of the bytes from `offset`: read, even if mapped, so that truncation is an error.

        Raises:
            TruncatedError: The source ends before that.
            OSError: Reading failed.
        """
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def fill(self, offset: int, length: int, memory: memoryview) -> int:
        """Read into the caller's memory, in the calling thread; where in it the bytes begin.

        Args:
            offset: First byte.
            length: Number of bytes.
            memory: Begins at a page, and has two pages more than `length`: direct reads come in blocks.
        """
        self.read_into(offset, memory[:length])
        return 0

    def for_all(self) -> Source:
        """The source to take from when all will be used at once; this one, or one that reads faster."""
        return self

    def _truncated(self, offset: int, length: int, end: int) -> TruncatedError:
        return TruncatedError(
            f"the file was truncated: {length} bytes wanted from byte {offset}, it ends at byte {end}",
            path=self.name,
            offset=offset,
        )


def _nothing(begin: int, end: int) -> None:
    """Fetch what is there already."""


Verify = Callable[[Source, str], Source]
"""Given what was opened and its path, what to read from instead: the same bytes, checked."""


class DescriptorSource(Source):
    """A regular file, by its descriptor; mapped if asked and possible.

    Args:
        descriptor: Open for reading. The source closes it when the last user is gone.
        name: For messages.
        mapped: Serve `view` from a private mapping. Where the system cannot map the file, `view`
            reads instead.
        direct: Large reads go from the disk to their place, past the page cache (open(2), O_DIRECT),
            where the filesystem can.
        choose: `for_all` chooses by where the bytes are.
    """

    def __init__(
        self,
        descriptor: int,
        name: str,
        *,
        mapped: bool = True,
        direct: bool = False,
        choose: bool = False,
    ) -> None:
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self.name = name
        status = os.fstat(descriptor)
        self.size = status.st_size
        self._map = _map(descriptor, status) if mapped and self.size else None
        self.in_memory = self._map is not None
        if self._map is not None:
            self.size = len(self._map)
        self._direct = _reopen_direct(descriptor) if direct else None
        if self._direct is not None:
            weakref.finalize(self, os.close, self._direct)
            self.threads = _DIRECT_READS
        self._choose = choose

    def fileno(self) -> int:
        """The descriptor; it stays the source's."""
        return self._descriptor

    def for_all(self) -> Source:
        if not self._choose or (resident_share(self._descriptor, 0, self.size) or 0) >= _WARM:
            return self
        return DescriptorSource(os.dup(self._descriptor), self.name, mapped=False, direct=True)

    def read(self, offset: int, length: int) -> bytes:
        blank = blank_bytes(length) if _LARGE <= length <= self.size - offset else None
        if blank is not None:  # by several threads, into huge pages: five times as fast
            data, memory = blank
            self.read_into(offset, memory)
            return data
        # In one piece, without the copy of the general way; which is taken where that is not all, too.
        try:
            data = os.pread(self._descriptor, length, offset) if hasattr(os, "pread") else b""
        except OSError:
            data = b""
        return data if len(data) == length else super().read(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        in_parallel(lambda begin, end: self._read(offset + begin, buffer[begin:end]), len(buffer))

    def _read(self, offset: int, buffer: memoryview) -> None:
        position, rest = offset, buffer
        while rest:
            try:
                count = self._read_some(position, rest)
            except OSError as error:
                error.filename = self.name  # the system knows the descriptor only
                raise
            if count == 0:
                # It may end long before the place where the reading began.
                size = os.fstat(self._descriptor).st_size
                raise self._truncated(offset, len(buffer), min(position, size))
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

    def reading(self, offset: int, length: int) -> Reading:
        if self._map is not None:
            return Reading(self.view(offset, length), length, partial(self._populate, offset))
        if self._direct is None or length < CHUNK:
            return super().reading(offset, length)
        if offset + length > self.size:
            raise self._truncated(offset, length, self.size)
        # Whole blocks into memory placed like them, so that the disk writes where the bytes stay;
        # the last block may end behind the last byte.
        shift = offset % PAGE
        memory = allocate(shift + length + PAGE)
        fill = partial(self._read_blocks, offset - shift, memory)
        return Reading(memory[shift : shift + length], shift + length, fill)

    def _populate(self, offset: int, begin: int, end: int) -> None:
        assert self._map is not None
        if populate(self._map[offset + begin : offset + end]):
            return
        size = os.fstat(self._descriptor).st_size
        if size >= offset + end:  # the disk failed, or the network
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)
        raise self._truncated(offset + begin, end - begin, size)

    def fill(self, offset: int, length: int, memory: memoryview) -> int:
        if self._direct is None:
            return super().fill(offset, length, memory)
        shift = offset % PAGE
        self._read_blocks(offset - shift, memory, 0, shift + length)
        return shift

    def _read_blocks(self, base: int, memory: memoryview, begin: int, end: int) -> None:
        """Fill `memory` from `begin` (at a block) to `end`; it stands for the file from `base` on."""
        assert self._direct is not None
        blocks = memory[begin : end + -end % PAGE]
        try:
            done = os.preadv(self._direct, [blocks], base + begin)
        except OSError as error:
            # EINVAL: the disk has larger blocks, or the filesystem cannot after all.
            if error.errno != errno.EINVAL:
                error.filename = self.name
                raise
            done = 0
        # The end of the file, or an interrupted read: the rest through the page cache.
        if begin + done < end:
            self._read(base + begin + done, memory[begin + done : end])


def _reopen_direct(descriptor: int) -> int | None:
    """A second descriptor of the same open file, for direct I/O; None where there is no such thing."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None


def _map(descriptor: int, status: os.stat_result) -> memoryview | None:
    """A private mapping of the whole file: writable, never written back; None where there is none."""
    try:
        if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
            return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY))
        flags, prot = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        untracked = (
            None if _UNTRACKED else map_untracked(descriptor, status, protection=prot, flags=flags)
        )
        return untracked or memoryview(
            mmap.mmap(descriptor, 0, flags=flags, prot=prot, **_UNTRACKED)
        )
    except (OSError, ValueError, OverflowError):
        return None  # a filesystem that cannot (FUSE), or no address space left


class FileObjectSource(Source):
    """Any readable file object that can seek.

    The object stays the caller's: it is neither closed nor returned to its old position, and must
    stay open as long as something is read from it. A forked child has the same position as its parent:
    only one of them may read.
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
            except ValueError as error:  # it may be closed at any time
                if getattr(self._file, "closed", False):
                    raise ClosedError(path=self.name) from error
                raise

    def unlock(self) -> None:
        """In a forked child: the thread that held the lock is not there to release it."""
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


class BytesSource(Source):
    """Memory that holds a whole file: bytes, bytearray, memoryview, mmap, array ...

    Args:
        data: Any object with the buffer protocol whose memory is contiguous. Views share it.
        name: For messages.
    """

    in_memory = True

    def __init__(self, data: Any, name: str = "") -> None:
        self._data = flat(data)
        self.name = name
        self.size = len(self._data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.view(offset, len(buffer))

    def view(self, offset: int, length: int) -> memoryview:
        if offset + length > self.size:
            raise self._truncated(offset, length, self.size)
        return self._data[offset : offset + length]


def open_source(target: Any, *, engine: str = "mmap", verify: Verify | None = None) -> Source:
    """Open a file by name, or wrap an open file object or memory.

    Args:
        target: A path (str or PathLike), an object with `read`, or bytes-like memory. An object that
            cannot seek is read to its end at once.
        engine: For paths. ``"mmap"`` serves views from a private mapping; ``"pread"`` reads every view
            into fresh memory; ``"direct"`` does so past the page cache; ``"auto"`` maps local files,
            reads remote ones, and reads cold ones directly when all of them is wanted.
        verify: Called with the source and its path; what it returns is read instead.

    Raises:
        OSError: Opening failed, with the system's class and errno; a directory is an
            IsADirectoryError, a device, FIFO or socket an OSError with ENODEV or ENXIO.
        UnsupportedError: None of these, a file object in text mode, no such backend, or something
            other than a path is to be verified.
    """
    if engine not in ENGINES:
        raise UnsupportedError(f"no such backend: {engine!r}; there are {', '.join(ENGINES)}")
    if isinstance(target, str | os.PathLike):
        source = _open_path(target, engine)
        return source if verify is None else verify(source, source.name)
    if verify is not None:
        kind = type(target).__name__
        raise UnsupportedError(f"only what is opened by its path can be verified, not {kind}")
    if hasattr(target, "read") and not isinstance(target, mmap.mmap):
        return _open_object(target)
    try:
        memoryview(target).release()
    except TypeError:
        kind = type(target).__name__
        raise UnsupportedError(
            f"expected a path, a readable file object or bytes, found {kind}"
        ) from None
    return BytesSource(target)


def decoded(path: str | os.PathLike[str]) -> str:
    """A path as text.

    Raises:
        FileNotFoundError: It has a null character, which no file's name has.
    """
    name = os.fsdecode(path)
    if "\0" in name:
        raise FileNotFoundError(errno.ENOENT, "No file has a null character in its name", name)
    return name


def _open_path(path: str | os.PathLike[str], engine: str) -> Source:
    name = decoded(path)
    # O_NONBLOCK: opening a FIFO must not wait for somebody to write to it. O_NOCTTY: nor must a
    # terminal that somebody names become ours.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(path, flags)
    try:
        _require_regular(os.fstat(descriptor).st_mode, name)
    except BaseException:
        os.close(descriptor)
        raise
    mapped = engine == "mmap" or (engine == "auto" and not is_remote(descriptor))
    return DescriptorSource(
        descriptor,
        name,
        mapped=mapped,
        direct=engine == "direct",
        choose=engine == "auto" and mapped,
    )


def _open_object(file: IO[bytes]) -> Source:
    if isinstance(file, io.TextIOBase):
        raise UnsupportedError(f"{_name_of(file)!r} is open in text mode: open it in mode 'rb'")
    seekable = file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")
    return FileObjectSource(file) if seekable else BytesSource(_read_all(file), _name_of(file))


def _name_of(file: IO[Any]) -> str:
    return str(getattr(file, "name", type(file).__name__))  # a descriptor's number, for some


def _read_all(file: IO[bytes]) -> bytes:
    """To the end: a raw stream may return less at a time, and needs not come back to nothing."""
    pieces = []
    while piece := file.read():
        pieces.append(piece)
    try:
        return b"".join(pieces)  # of one piece that is the piece
    except TypeError as error:
        raise UnsupportedError(f"{_name_of(file)!r} does not read bytes: {error}") from error


def _require_regular(mode: int, name: str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENODEV, "Not a regular file (No such device)", name)
