"""Parts of sources as sources: windows, concatenations, and a reader that goes forward."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from ..errors import FormatError
from .source import Source

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..format.indexing import Runs

__all__ = ["Buffered", "ByteReader", "Joined", "Window", "read_bytes", "truncated"]


_READ_BLOCK: Final = 1 << 16


def truncated(source: Source, offset: int, count: int) -> FormatError:
    """The error for a read of `count` bytes at `offset` that `source` cannot satisfy."""
    return FormatError(
        f"{count} bytes are expected here, but the data ends at byte {source.size}",
        rule="truncated",
        path=source.name,
        offset=offset,
    )


def _check(source: Source, offset: int, count: int) -> None:
    if offset < 0 or count < 0 or offset + count > source.size:
        raise truncated(source, offset, count)


def read_bytes(source: Source, offset: int, count: int) -> bytes:
    """The `count` bytes of `source` from `offset` on.

    Raises:
        FormatError: They are not all inside the source.

    >>> from safeweights.storage import BytesSource
    >>> read_bytes(BytesSource(b"abcdef"), 2, 3)
    b'cde'
    """
    _check(source, offset, count)
    return bytes(source.view(offset, count))


class Window(Source):
    """The `size` bytes of `parent` from `start` on.

    >>> from safeweights.storage import BytesSource
    >>> read_bytes(Window(BytesSource(b"abcdef"), 1, 4, "part"), 1, 2)
    b'cd'
    """

    def __init__(self, parent: Source, start: int, size: int, name: str | None = None) -> None:
        _check(parent, start, size)
        self.name = name or parent.name
        self.size = size
        self.parent: Source = parent
        self.start = start
        self.threads, self.gap = parent.threads, parent.gap
        if isinstance(parent, Window):  # a chain of windows would cost a call for each level
            self.parent, self.start = parent.parent, start + parent.start

    def __reduce__(self) -> tuple[Any, ...]:
        return Window, (self.parent, self.start, self.size, self.name)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        _check(self, offset, len(buffer))
        self.parent.read_into(self.start + offset, buffer)

    def read_runs(self, runs: Runs, out: memoryview, *, gap: int | None = None) -> None:
        _check(self, runs.offset, runs.span)
        self.parent.read_runs(runs._replace(offset=self.start + runs.offset), out, gap=gap)

    def view(self, offset: int, length: int) -> memoryview:
        _check(self, offset, length)
        return self.parent.view(self.start + offset, length)


class Joined(Source):
    """Several sources, concatenated.

    >>> from safeweights.storage import BytesSource
    >>> read_bytes(Joined([BytesSource(b"abc"), BytesSource(b"def")], "both"), 2, 3)
    b'cde'
    """

    def __init__(self, parts: Iterable[Source], name: str) -> None:
        self.name = name
        self._parts = list(parts)
        self._starts = [0, *accumulate(part.size for part in self._parts)]
        self.size = self._starts[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return Joined, (self._parts, self.name)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        _check(self, offset, len(buffer))
        index = bisect_right(self._starts, offset) - 1
        done = 0
        while done < len(buffer):
            part, skip = self._parts[index], offset + done - self._starts[index]
            count = min(part.size - skip, len(buffer) - done)
            part.read_into(skip, buffer[done : done + count])
            done += count
            index += 1


class Buffered(Source):
    """A source of which blocks are kept where small reads are near each other.

    For reading many small things, such as the members of an archive: a read from a block takes a tenth of
    the time of one from a file. Two blocks are kept. Used by one thread at a time.

    >>> from safeweights.storage import BytesSource
    >>> read_bytes(Buffered(BytesSource(b"abcdef")), 2, 3)
    b'cde'
    """

    def __init__(self, parent: Source) -> None:
        self.name = parent.name
        self.size = parent.size
        self.parent = parent
        self.in_memory = parent.in_memory
        self.threads, self.gap = parent.threads, parent.gap
        self._blocks: dict[int, memoryview] = {}
        self._last = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.parent.read_into(offset, buffer)

    def view(self, offset: int, length: int) -> memoryview:
        number, skip = divmod(offset, _READ_BLOCK)
        if self.in_memory or skip + length > _READ_BLOCK or offset + length > self.size:
            return self.parent.view(offset, length)
        block = self._blocks.get(number)
        if block is None:
            near, self._last = abs(number - self._last) < 2, number
            if not near:
                return self.parent.view(offset, length)
            start = number * _READ_BLOCK
            block = self.parent.view(start, min(_READ_BLOCK, self.size - start))
            if len(self._blocks) > 1:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[number] = block
        return block[skip : skip + length]


class ByteReader:
    """Reads a source forward, one block at a time.

    Attributes:
        block: The bytes that are buffered.
        base: Offset of the block in the source.
        position: Index of the next byte in the block. A loop over single bytes takes them from `block`
            itself, and sets `position` before it calls a method: a call takes longer than all the rest.
    """

    __slots__ = ("_end", "_source", "base", "block", "position")

    def __init__(self, source: Source, offset: int = 0, end: int | None = None) -> None:
        self._source = source
        self._end = source.size if end is None else end
        self.seek(offset)

    @property
    def offset(self) -> int:
        """Offset of the next byte."""
        return self.base + self.position

    @property
    def left(self) -> int:
        """Bytes up to the end."""
        return self._end - self.offset

    def seek(self, offset: int) -> None:
        """Continue at `offset`."""
        self.base = offset
        self.block = b""
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes; a FormatError if there are fewer."""
        start = self.position
        stop = start + count
        if stop > len(self.block):
            self._fill(count)
            start, stop = 0, count
        self.position = stop
        return self.block[start:stop]

    def take_counted(self) -> bytes:
        """The bytes after the next one, which says how many they are."""
        start = self.position + 1
        if start <= len(self.block):
            stop = start + self.block[start - 1]
            if stop <= len(self.block):
                self.position = stop
                return self.block[start:stop]
        return self.take(self.take(1)[0])

    def skip(self, count: int) -> int:
        """Skip `count` bytes; returns the offset of the first of them."""
        start = self.offset
        if count > self._end - start:
            raise truncated(self._source, start, count)
        if self.position + count <= len(self.block):
            self.position += count
        else:
            self.seek(start + count)
        return start

    def line(self, limit: int) -> bytes:
        """The bytes before the next newline, which is skipped.

        Raises:
            FormatError: There is no newline, or none within about `limit` bytes (a block of 64 KiB more).
        """
        found = self.block.find(b"\n", self.position)
        if found < 0:
            return self._long_line(limit)
        line = self.block[self.position : found]
        self.position = found + 1
        return line

    def _long_line(self, limit: int) -> bytes:
        """The bytes before the next newline, which is not in `block`."""
        begin = self.offset
        pieces = [self.block[self.position :]]
        searched = len(pieces[0])
        while searched <= limit and begin + searched < self._end:
            self.seek(begin + searched)
            self._fill(1)
            found = self.block.find(b"\n")
            if found >= 0:
                self.position = found + 1
                return b"".join((*pieces, self.block[:found]))
            pieces.append(self.block)
            searched += len(self.block)
        self.seek(begin)
        if searched <= limit:
            raise truncated(self._source, begin, searched + 1)
        from .limits import exceeded  # no other part of a source needs limits

        raise exceeded("inline_bytes", limit, self._source.name, begin)

    def buffer(self, count: int) -> None:
        """Have the next `count` bytes in `block`, or all there are."""
        held = len(self.block)
        if held - self.position < count and self.base + held < self._end:
            self._fill(min(count, self.left))

    def _fill(self, count: int) -> None:
        """Buffer at least `count` bytes from the current offset on, more than are buffered.

        Nothing is read twice: a compressed source would start over.
        """
        start = self.offset
        left = self._end - start
        if count > left:
            raise truncated(self._source, start, count)
        rest = self.block[self.position :]
        more = min(max(count, _READ_BLOCK), left) - len(rest)
        self.block = rest + read_bytes(self._source, start + len(rest), more)
        self.base = start
        self.position = 0
