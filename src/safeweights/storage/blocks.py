"""Sources whose bytes come in blocks, each of which is fetched as a whole: verified, or decrypted.

A read costs the blocks that it touches, each fetched once. Blocks that lie inside the target as a whole are
fetched straight into it, several runs of them at a time in threads. Blocks of which only a part is wanted
are fetched into memory of their own and kept for a while: small tensors share blocks with their neighbours.

Rules:
- A reader sees no byte that a failed fetch left behind: the target is cleared before the error is raised.
- Memory that is handed out is private: nothing that happens to the file later changes it.

Knows nothing of digests or ciphers: the function that fetches blocks does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from .memory import allocate
from .parallel import CHUNK, in_parallel
from .source import Reading, Source

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BlockSource"]

_RECENT: Final = 8
_RECENT_BYTES: Final = 1 << 26
"""Blocks that are kept, at most: this many, and one at least of no more than this many bytes together."""


class BlockSource(Source):
    r"""A source of `size` bytes in blocks of `block_size`; the last one may be shorter.

    Args:
        name: What to call it in messages.
        size: Number of bytes.
        block_size: Bytes of a block, as they are handed out; their place and length in a file, if there
            is one, may be others.
        fetch: ``fetch(first, target)`` fills `target` with whole blocks, from block number `first` on, and
            raises unless every one of them is good. Called from several threads at once.

    >>> def fetch(first, target):
    ...     target[:] = bytes(range(first * 4, first * 4 + len(target)))
    >>> bytes(BlockSource("numbers", 10, 4, fetch).view(3, 3))
    b'\x03\x04\x05'
    """

    def __init__(
        self, name: str, size: int, block_size: int, fetch: Callable[[int, memoryview], object]
    ) -> None:
        self.name = name
        self.size = size
        self.block = block_size
        self._fetch = fetch
        self._lock = threading.Lock()
        self._recent: OrderedDict[int, memoryview] = OrderedDict()
        self._keep = max(1, min(_RECENT, _RECENT_BYTES // block_size))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, to which no other thread may write meanwhile, with the bytes from `offset` on.

        Raises:
            TruncatedError: The source ends before that.
            Exception: What fetching raised; `buffer` is all zeros then.
        """
        if offset + len(buffer) > self.size:
            raise self._truncated(offset, len(buffer), self.size)
        try:
            if len(buffer):
                self._fill(offset, buffer)
        except BaseException:
            _clear(buffer)
            raise

    def reading(self, offset: int, length: int, *, aligned: bool = False) -> Reading:
        del aligned  # a block is copied nowhere
        if offset + length > self.size:
            raise self._truncated(offset, length, self.size)
        if length < CHUNK:
            # In one piece: cut anywhere but between blocks, the blocks that were cut are fetched twice.
            part = self._allocate(length)

            def fill_part(low: int, high: int) -> None:
                self.read_into(offset + low, part[low:high])

            return Reading(part, length, fill_part, max(1, length))
        # Whole blocks into memory placed like them, so that threads can share them and none is copied.
        shift = offset % self.block
        first, begin = offset // self.block, offset - shift
        extent = min(self.size, offset + length + -(offset + length) % self.block) - begin
        memory = self._allocate(extent)

        def fill(low: int, high: int) -> None:
            self._run(first + low // self.block, memory[low:high])

        return Reading(memory[shift : shift + length], extent, fill, *self._pieces(extent))

    def _allocate(self, nbytes: int) -> memoryview:
        """Memory for blocks; a subclass may need memory of another kind."""
        return allocate(nbytes)

    def _pieces(self, extent: int) -> tuple[int, int]:
        """`Reading.step` and `Reading.least` of a large read: whole blocks."""
        run = self._run_length()
        if self.piece > Source.piece:
            return self.piece, run
        # A few blocks over are shared among the pieces: a piece more would be a request more.
        even = -(-extent // (max(1, extent // run) * self.block)) * self.block
        step = even if even <= run + run // 8 else run
        return step, step

    def _run_length(self) -> int:
        """Bytes that one thread fetches at a time: whole blocks, of `CHUNK` bytes if they are small."""
        return max(1, CHUNK // self.block) * self.block

    def _run(self, first: int, target: memoryview) -> None:
        try:
            self._fetch(first, target)
        except BaseException:
            _clear(target)
            raise

    def _fill(self, offset: int, target: memoryview) -> None:
        step, end = self.block, offset + len(target)
        # From block `first` up to `last` they are inside the target as a whole; the source's last one too.
        first, last = -(-offset // step), end // step if end < self.size else -(-end // step)
        if first >= last:
            for index in range(offset // step, -(-end // step)):
                self._copy_part(index, offset, target)
            return
        if offset < first * step:
            self._copy_part(first - 1, offset, target)
        if last * step < end:
            self._copy_part(last, offset, target)
        whole = target[first * step - offset : last * step - offset]
        in_parallel(
            lambda low, high: self._run(first + low // step, whole[low:high]),
            len(whole),
            chunk=self._run_length(),
            threads=self.threads,
        )

    def _copy_part(self, index: int, offset: int, target: memoryview) -> None:
        """Copy what block `index` has of `target`, which begins at `offset`."""
        block, begin = self._block(index), index * self.block
        low, high = max(begin, offset), min(begin + len(block), offset + len(target))
        target[low - offset : high - offset] = block[low - begin : high - begin]

    def _block(self, index: int) -> memoryview:
        with self._lock:
            if (kept := self._recent.get(index)) is not None:
                self._recent.move_to_end(index)
                return kept
        begin = index * self.block
        block = self._allocate(min(self.block, self.size - begin))
        self._fetch(index, block)
        with self._lock:
            self._recent[index] = block
            while len(self._recent) > self._keep:
                self._recent.popitem(last=False)
        return block


def _clear(memory: memoryview) -> None:
    zeros = bytes(min(len(memory), 1 << 20))
    for begin in range(0, len(memory), 1 << 20):
        part = memory[begin : begin + len(zeros)]
        part[:] = zeros[: len(part)]
