"""Sources: random access to bytes that do not move, from a file, a file object or memory.

Rules:
- A file is opened once, by name. Everything after that goes through the descriptor, so that the file
  cannot be replaced between the check of its header and the reading of its data.
- A read gives all the bytes asked for or an error, never fewer.
- Memory that a source handed out stays valid while it is referenced: a descriptor or mapping is closed
  when the last reference is gone.
- Mapped pages are private: writing to them changes neither the file nor what other processes see. If
  another process truncates a mapped file, touching the lost pages kills this process (SIGBUS; mmap(2)).
  Where that can happen, use the pread backend, which raises `TruncatedError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import SafetensorError, UnsupportedError
from .gathering import gather
from .memory import allocate, allocate_like
from .parallel import CHUNK, in_parallel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..format.indexing import Runs

__all__ = [
    "Buffer",
    "BytesSource",
    "Held",
    "Reading",
    "Source",
    "TruncatedError",
    "Verifier",
    "flat",
]


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
    """A read as work that threads can share; see `Source.reading`.

    Attributes:
        data: Memory that holds the bytes when all of the work is done.
        extent: The work is to call `fill` for pieces that cover 0 to `extent`; 0 if there is none.
        fill: ``fill(begin, end)`` fetches a piece. Both are multiples of `least`, or `extent`. It may be
            called from any thread, and from several at once.
        step: Length of a piece that costs least.
        least: Length to which pieces may be cut; 0 for `step`.
    """

    data: memoryview
    extent: int
    fill: Callable[[int, int], object]
    step: int = CHUNK
    least: int = 0


class Held:
    """Bytes of a source that stay as they are, in memory that exists already; see `Source.held`.

    Args:
        memory: The bytes.
        offset: Where they are in the source.
        unchanged: See `is_held`.
    """

    def __init__(self, memory: memoryview, offset: int, unchanged: Callable[[], bool]) -> None:
        self._memory = memory
        self._offset = offset
        self._unchanged = unchanged

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes of the source from `offset` on; valid inside the ``with`` block only.

        Raises:
            SafetensorError: The source checks its bytes, and these are wrong.
        """
        begin = offset - self._offset
        return self._memory[begin : begin + length]

    def is_held(self) -> bool:
        """Whether nothing has changed so far. If not, what was made of the bytes must not be used."""
        return self._unchanged()


class Source(ABC):
    """A sequence of `size` bytes that can be read at any offset, from any thread.

    Attributes:
        name: What to call it in messages: a path, or a description.
        size: Number of bytes when it was opened.
        in_memory: Whether `view` gives memory that exists already, of a mapping too, instead of reading.
        threads: How many threads to read it with; 0 for `thread_count`.
        piece: Bytes that one of several threads should read at a time, where there is much to read; a
            multiple of `CHUNK`. It may change.
        gap: Bytes up to which it is cheaper to read what lies between two pieces than to read twice.
        block: Reads that begin and end at multiples of this cost least.
        version: Names exactly these bytes in their store, such as an entity tag; None if there is none.
    """

    name: str
    size: int
    in_memory: bool = False
    threads: int = 0
    piece: int = CHUNK
    gap: int = 4096
    block: int = 1
    version: str | None = None

    @abstractmethod
    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, a flat view of bytes, with the bytes from `offset` on.

        Raises:
            TruncatedError: The source ends before that.
            OSError: Reading failed.
        """

    def read_piece(self, offset: int, buffer: memoryview) -> None:
        """The same as `read_into`, in the calling thread: a piece of a read that threads share."""
        self.read_into(offset, buffer)

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes from `offset` on: the memory itself if the source is in memory, else a copy."""
        reading = self.reading(offset, length)
        fill, extent, step = reading.fill, reading.extent, reading.step
        in_parallel(fill, extent, chunk=step, least=reading.least, threads=self.threads)
        return reading.data

    def reading(self, offset: int, length: int, *, aligned: bool = False) -> Reading:
        """The same read as `view`, as work that the caller shares among threads and mixes with other work.

        For a mapped file the work is to fetch its pages, so that their first use need not wait for a disk.

        Args:
            offset: First byte.
            length: Number of bytes.
            aligned: Their memory begins at a cache line, if that costs no copy, even if it is filled faster
                where it does not.

        Raises:
            TruncatedError: The source ends before that.
        """
        if self.in_memory:
            return Reading(self.view(offset, length), 0, _nothing)
        if offset + length > self.size:  # before anything is allocated
            raise self._truncated(offset, length, self.size)
        buffer = allocate(length) if aligned else allocate_like(offset, length)

        def fill(begin: int, end: int) -> None:
            self.read_piece(offset + begin, buffer[begin:end])

        return Reading(buffer, length, fill, self.piece, CHUNK)

    def read(self, offset: int, length: int) -> bytes:
        """A copy of the bytes from `offset` on.

        A mapped file is read, too, so that a file that was truncated is an error instead of a SIGBUS.

        Raises:
            TruncatedError: The source ends before that.
            OSError: Reading failed.
        """
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def fill(self, offset: int, length: int, memory: memoryview) -> int:
        """Read into the caller's memory, in the calling thread; returns the offset of the bytes in it.

        Args:
            offset: First byte.
            length: Number of bytes.
            memory: Begins at a page, and is two pages longer than `length`: direct reads read whole blocks.
        """
        self.read_into(offset, memory[:length])
        return 0

    def read_runs(self, runs: Runs, out: memoryview, *, gap: int | None = None) -> None:
        """Read scattered runs of bytes into `out`, without gaps.

        Args:
            runs: What to read.
            out: Memory of ``runs.nbytes`` bytes.
            gap: Unwanted bytes that may be fetched for each run; None for `Source.gap`. (What is in the
                page cache need not be fetched.)

        Cost: see `gather`; sources that say how many threads to read them with are read by so many.

        Raises:
            TruncatedError: The source ends before that.
            OSError: Reading failed.
        """
        gather(
            runs,
            lambda buffer, offset: self.read_into(offset, buffer),
            out,
            gap=self.gap if gap is None else gap,
            threads=self.threads or 1,
        )

    @contextmanager
    def held(self, offset: int, length: int) -> Iterator[Held | None]:  # noqa: ARG002
        """Keep bytes as they are inside a ``with`` block, to use them without a copy.

        For what reads the same bytes twice, such as a cipher: see `storage.leases`. Ask for at most
        `LEASED` bytes, and call `Held.is_held` after the last use.

        Yields:
            None where that is not possible, or not faster than a read.
        """
        yield None

    def for_all(self) -> Source:
        """The source to use when all of it will be read: this one, or one that reads faster."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """How a file reaches a worker process: sources that cannot be opened there again are refused.

        Raises:
            UnsupportedError: Always, but for files, memory, and parts of them.
        """
        raise UnsupportedError(
            f"a {type(self).__name__} cannot be pickled: open the model in the process that reads it",
            path=self.name or None,
        )

    def _truncated(self, offset: int, length: int, end: int) -> TruncatedError:
        return TruncatedError(
            f"the file was truncated: {length} bytes wanted from byte {offset}, it ends at byte {end}",
            path=self.name,
            offset=offset,
        )


def _nothing(begin: int, end: int) -> None:
    """The `fill` of a read that has nothing to fetch."""


Verifier = Callable[[Source, str], Source]
"""Takes a source and its path; returns the source to read instead: the same bytes, checked."""


class BytesSource(Source):
    """A file that is in memory: bytes, bytearray, memoryview, mmap, array ...

    Args:
        data: Any object with the buffer protocol whose memory is contiguous. Views share it.
        name: For messages.
    """

    in_memory = True

    def __init__(self, data: Any, name: str = "") -> None:
        self._data = flat(data)
        self.name = name
        self.size = len(self._data)

    def __reduce__(self) -> tuple[Any, ...]:
        # Bytes that were verified when they were read are not sent on unverified.
        return (
            (BytesSource, (bytes(self._data), self.name))
            if type(self) is BytesSource
            else super().__reduce__()
        )

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.view(offset, len(buffer))

    def view(self, offset: int, length: int) -> memoryview:
        if offset + length > self.size:
            raise self._truncated(offset, length, self.size)
        return self._data[offset : offset + length]
