"""Sources: random access to bytes that do not move, from a file, a file object or memory.

Rules:
- A file is opened once, by name; everything after that goes through the descriptor, so that nobody
  can exchange the file between the check of its header and the reading of its data.
- A read gives all the bytes asked for or an error, never fewer.
- What a source handed out stays valid for as long as somebody holds it: a descriptor or mapping is
  closed when the last user is gone, not before.
- Mapped pages are private: writing to them changes neither the file nor what others see. If another
  process truncates a mapped file, touching the lost pages kills the process (SIGBUS; mmap(2)). Where
  that can happen, use the pread backend, which raises `TruncatedError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import SafetensorError, UnsupportedError
from .memory import allocate
from .parallel import CHUNK, in_parallel

__all__ = ["Buffer", "BytesSource", "Reading", "Source", "TruncatedError", "Verifier", "flat"]


Buffer = bytes | bytearray | memoryview


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
        version: Names exactly these bytes in their store, such as an entity tag; None if there is none.
    """

    name: str
    size: int
    in_memory: bool = False
    threads: int = 0
    version: str | None = None

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


Verifier = Callable[[Source, str], Source]
"""Given what was opened and its path, what to read from instead: the same bytes, checked."""


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
