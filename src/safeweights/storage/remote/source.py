"""A source whose bytes are fetched by request.

The first request, which opens a file, also brings its first bytes: the headers of most safetensors files
are among them. Large reads are divided into requests that several threads make at once, each straight
into its place, so that no more memory is used than is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..parallel import CHUNK, in_parallel
from ..source import Source

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GAP", "HEAD_SIZE", "REQUESTS", "RemoteSource"]

HEAD_SIZE: Final = 100_000
"""Bytes that opening a file fetches: 97 % of the safetensors headers on the Hub are shorter."""

REQUESTS: Final = 8
"""Requests at a time for one read. (Loopback: 4 give 0.8, 16 give 1.0 of the rate of 8.)"""

GAP: Final = 1 << 18
"""Bytes that are cheaper to fetch than another request is: 10 ms at 25 MB/s."""


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
    ) -> None:
        self.name = name
        self.size = size
        self.version = version
        self.sha256 = sha256
        self._fetch = fetch
        self._head = head

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.size:
            raise self._truncated(offset, len(buffer), self.size)
        known = self._head[offset : offset + len(buffer)]
        buffer[: len(known)] = known
        rest, begin = buffer[len(known) :], offset + len(known)
        if rest:
            in_parallel(
                lambda low, high: self._fetch(begin + low, rest[low:high]),
                len(rest),
                chunk=CHUNK,
                threads=self.threads,
            )
