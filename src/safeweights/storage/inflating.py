"""Compressed streams as sources.

Rules: a stream is decompressed as it is read, a block at a time, and read backwards only by starting over;
a read outside of it is a `FormatError` before anything is allocated; a stream that damaged or hostile data
make longer than declared, or than `Limits` allow, is refused.

Knows nothing of any container format.
"""

from __future__ import annotations

import bz2
import lzma
import os
import tempfile
import threading
import zlib
from typing import TYPE_CHECKING, Final, Protocol

from ..errors import FormatError
from .files import DescriptorSource
from .limits import DEFAULT_LIMITS, Limits, exceeded
from .source import Source
from .windows import _check, read_bytes, truncated

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CODECS", "InflatedSource", "inflated_head", "spooled"]

_BLOCK: Final = 1 << 18


class Decompressor(Protocol):
    """The interface that the standard library's bz2 and lzma decompressors share."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /, max_length: int = -1) -> bytes: ...


class _Zlib:
    """zlib's decompressor with the interface of bz2's, which keeps the input that it did not use."""

    def __init__(self, window_bits: int) -> None:
        self._inner = zlib.decompressobj(window_bits)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, /, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max(max_length, 0))


CODECS: Final[dict[str, Callable[[], Decompressor]]] = {
    "deflate": lambda: _Zlib(-15),
    "zlib": lambda: _Zlib(15),
    "gzip": lambda: _Zlib(31),
    "bz2": bz2.BZ2Decompressor,
    # .xz and the older .lzma, with a dictionary of up to 64 MiB, the most that `xz -9` uses
    "lzma": lambda: lzma.LZMADecompressor(format=lzma.FORMAT_AUTO, memlimit=80 << 20),
}
"""Name -> a new decompressor of one stream."""


class InflatedSource(Source):
    """The inflated bytes of a compressed stream whose inflated size is known.

    Reading forward costs what decompression costs; reading backwards starts over. Memory: two blocks. The
    stream must inflate to exactly `size` bytes, end with `parent`, and have the CRC-32 `crc` if that is
    given; the read that reaches the last byte checks all of this before it returns.
    """

    def __init__(
        self, parent: Source, codec: str, size: int, name: str, crc: int | None = None
    ) -> None:
        self.name = name
        self.size = size
        self._parent = parent
        self._codec = codec
        self._crc = crc
        self._lock = threading.Lock()
        self._restart()

    def _restart(self) -> None:
        self._stream = CODECS[self._codec]()
        self._input = 0
        self._position = 0
        self._block = b""
        self._running_crc = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        _check(self, offset, len(buffer))
        with self._lock:
            if offset < self._position - len(self._block):
                self._restart()
            done = 0
            while done < len(buffer):
                start = self._position - len(self._block)
                skip = offset + done - start
                piece = self._block[skip : skip + len(buffer) - done] if skip >= 0 else b""
                buffer[done : done + len(piece)] = piece
                done += len(piece)
                if done < len(buffer):
                    self._next_block()

    def _next_block(self) -> None:
        self._block = self._inflate()
        if not self._block:
            raise self._fault(f"inflates to {self._position} bytes, not {self.size}")
        self._position += len(self._block)
        if self._crc is not None:
            self._running_crc = zlib.crc32(self._block, self._running_crc)
        if self._position >= self.size:
            self._finish()

    def _inflate(self) -> bytes:
        """The next block; empty at the end of the stream, or of the data."""
        block = _advance(self._stream, b"", self)
        while not block and not self._stream.eof:
            count = min(_BLOCK, self._parent.size - self._input)
            if count == 0:
                break
            data = read_bytes(self._parent, self._input, count)
            self._input += count
            block = _advance(self._stream, data, self)
        return block

    def _finish(self) -> None:
        """Check that the stream ends here, and what it holds."""
        if self._position > self.size or self._inflate():
            raise self._fault(f"inflates to more than the declared {self.size} bytes")
        if not self._stream.eof:
            raise self._fault("ends before its stream does")
        if self._stream.unused_data or self._input < self._parent.size:
            raise self._fault("goes on after the end of its stream")
        if self._crc is not None and self._running_crc != self._crc:
            raise self._fault("does not match its CRC-32 checksum")

    def _fault(self, what: str) -> FormatError:
        return FormatError(f"the compressed data {what}", rule="compressed-data", path=self.name)


def _advance(stream: Decompressor, data: bytes, source: Source) -> bytes:
    if stream.eof:
        return b""
    try:
        return stream.decompress(data, _BLOCK)
    except (zlib.error, OSError, lzma.LZMAError, EOFError) as error:
        raise FormatError(
            f"the compressed data is damaged: {error}", rule="compressed-data", path=source.name
        ) from error


def spooled(parent: Source, codec: str, name: str, limits: Limits = DEFAULT_LIMITS) -> Source:
    """`parent`, inflated into a temporary file without a name, which is freed with the source.

    For streams that do not declare their size, and that are read in any order.

    Raises:
        FormatError: The stream is damaged, other data follows its end, or it inflates to more than
            `Limits.inflation_ratio` or `Limits.inflated_bytes` allow.
        OSError: There is no room for the temporary file.
    """
    stream = CODECS[codec]()
    total = position = 0
    data = b""
    with tempfile.TemporaryFile(prefix="safeweights-", buffering=0) as file:
        while not stream.eof:
            block = _advance(stream, data, parent)
            data = b""
            total += len(block)
            _check_inflation(total, position, name, limits)
            if block:
                file.write(block)
                continue
            if stream.eof:  # its last bytes were no data, but a checksum
                break
            data = read_bytes(parent, position, min(_BLOCK, parent.size - position))
            position += len(data)
            if not data:
                raise truncated(parent, position, 1)
        if stream.unused_data or position < parent.size:
            raise FormatError(
                "other data follows the end of the compressed stream",
                rule="compressed-data",
                path=parent.name,
                offset=position - len(stream.unused_data),
            )
        return DescriptorSource(os.dup(file.fileno()), name, mapped=False)


def inflated_head(parent: Source, codec: str, count: int) -> bytes | None:
    """The first bytes that `parent` inflates to, at most `count`; None if it is not such a stream.

    Cost: at most 4 MiB are read. (bzip2 gives nothing before the end of a block of 900 kB.)
    """
    stream = CODECS[codec]()
    head = b""
    for offset in range(0, min(parent.size, 16 * _BLOCK), _BLOCK):
        data = read_bytes(parent, offset, min(_BLOCK, parent.size - offset))
        try:
            while len(head) < count and (block := _advance(stream, data, parent)):
                head += block
                data = b""
        except FormatError:
            return head[:count] or None
        if len(head) >= count or stream.eof:
            break
    return head[:count]


def _check_inflation(total: int, stored: int, name: str, limits: Limits) -> None:
    if total > limits.inflated_bytes:
        raise exceeded("inflated_bytes", limits.inflated_bytes, name)
    if total > max(limits.inflation_floor_bytes, stored * limits.inflation_ratio):
        raise exceeded("inflation_ratio", limits.inflation_ratio, name)
