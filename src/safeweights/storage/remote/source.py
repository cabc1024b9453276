"""A source whose bytes are fetched by request.

The first request, which opens a file, also brings its first bytes: the headers of most safetensors files
are among them. Large reads are divided into requests that several threads make at once, each straight
into its place, so that no more memory is used than is asked for.

Requests are longer where a server turns out to be fast: a request takes 0.2 ms of a processor, and three
times as long between two that fill its caches with data. (1 GiB from nginx on the same machine, hashed, on
two cores: 901 ms with requests of 8 MiB, 829 with 32 MiB; plain sockets 758.)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from ..parallel import CHUNK, in_parallel
from ..source import Source

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GAP", "HEAD_SIZE", "LONG", "REQUESTS", "RemoteSource"]

HEAD_SIZE: Final = 100_000
"""Bytes that opening a file fetches: 97 % of the safetensors headers on the Hub are shorter."""

REQUESTS: Final = 8
"""Requests at a time for one read. (Loopback: 4 give 0.8, 16 give 1.0 of the rate of 8.)"""

GAP: Final = 1 << 18
"""Bytes that are cheaper to fetch than another request is: 10 ms at 25 MB/s."""


LONG: Final = 1 << 25
"""Bytes of a long request."""

_SOON: Final = 2.0
"""Seconds that a long request may take: progress is told after each."""


class RemoteSource(Source):
    """The bytes of one version of a file in a remote store.

    Args:
        name: Its URL, for messages.
        size: Number of bytes.
        version: See `Source.version`.
        fetch: ``fetch(offset, buffer)`` fills a buffer with bytes of that version, or raises. Called from
            several threads at once.
        head: The first bytes, as far as they are known.
        sha256: The digest that the store has for the content, in hexadecimal; not verified.
        longest: Bytes of one request at most, a multiple of `CHUNK`.
    """

    threads = REQUESTS
    gap = GAP

    def __init__(
        self,
        name: str,
        size: int,
        version: str | None,
        fetch: Callable[[int, memoryview], object],
        *,
        head: bytes = b"",
        sha256: str | None = None,
        longest: int = CHUNK,
    ) -> None:
        self.name = name
        self.size = size
        self.version = version
        self.sha256 = sha256
        self._fetch = fetch
        self._head = head
        self._longest = longest

    def read_into(self, offset: int, buffer: memoryview) -> None:
        known, rest = self._after_head(offset, buffer)
        if rest:
            in_parallel(
                lambda low, high: self._request(offset + known + low, rest[low:high]),
                len(rest),
                chunk=CHUNK,
                threads=self.threads,
            )

    def read_piece(self, offset: int, buffer: memoryview) -> None:
        known, rest = self._after_head(offset, buffer)
        if rest:
            self._request(offset + known, rest)

    def _after_head(self, offset: int, buffer: memoryview) -> tuple[int, memoryview]:
        """Copy what is known of the file; how much that was, and what is left of `buffer`."""
        if offset + len(buffer) > self.size:
            raise self._truncated(offset, len(buffer), self.size)
        known = self._head[offset : offset + len(buffer)]
        buffer[: len(known)] = known
        return len(known), buffer[len(known) :]

    def _request(self, offset: int, buffer: memoryview) -> None:
        began = time.monotonic()
        self._fetch(offset, buffer)
        if len(buffer) >= CHUNK:
            seconds = time.monotonic() - began
            soon = seconds * self._longest <= len(buffer) * _SOON
            self.piece = self._longest if soon else CHUNK
