"""Bytes that were checked before anybody sees them.

A `VerifiedSource` stands in for a storage source and is read in the same way. What it hands out was
first copied into private memory and then checked there, so that nothing which happens to the file
between check and use can matter: not a rename, not a write in place, not a mapping that changes
under its reader. With a block tree only the blocks that are touched are read and hashed; without
one the whole file is, once, and kept.

A mapping of the file is never handed out. Where a check fails the buffer is cleared before the
error is raised.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from ...storage import Reading, Source, allocate
from ...storage.hashing import sha256
from ...storage.parallel import CHUNK, in_parallel
from ..errors import VerificationError
from .resources import PartHasher, changed

if TYPE_CHECKING:
    from .blocktree import BlockTree
    from .resources import Resource

__all__ = ["VerifiedCopy", "VerifiedSource"]

_RECENT: Final = 8
"""Blocks kept after a partial read: small tensors share blocks with their neighbours."""


class VerifiedSource(Source):
    """A source of which every byte is checked against a block tree.

    Cost of a read: the blocks it touches, read and hashed once (partly read ones are kept while
    recent); several threads for large ones. Memory: a few blocks, and what is handed out.

    Args:
        source: Where the bytes come from.
        tree: The file's block tree, decoded with a root that was signed or admitted.

    Raises:
        VerificationError: ``size-mismatch`` here; ``block-mismatch`` or ``stale-sidecar`` from a
            read.
    """

    def __init__(self, source: Source, tree: BlockTree) -> None:
        if source.size != tree.size:
            raise VerificationError(
                f"the file has {source.size} bytes, signed were {tree.size}", reason="size-mismatch",
                path=source.name,
            )  # fmt: skip
        self.name = source.name
        self.size = source.size
        self._source = source
        self._tree = tree
        self._lock = threading.Lock()
        self._recent: OrderedDict[int, memoryview] = OrderedDict()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with verified bytes from `offset` on.

        The buffer must be memory that nobody else writes to.

        Raises:
            VerificationError: ``block-mismatch`` or ``stale-sidecar``; `buffer` is all zeros then.
        """
        if offset + len(buffer) > self.size:
            raise self._truncated(offset, len(buffer), self.size)
        try:
            if len(buffer):
                self._fill(offset, buffer)
        except BaseException:
            buffer[:] = bytes(len(buffer))
            raise

    def view(self, offset: int, length: int) -> memoryview:
        """A private, writable copy of verified bytes."""
        if offset + length > self.size:
            raise self._truncated(offset, length, self.size)
        copy = allocate(length)
        self.read_into(offset, copy)
        return copy

    def reading(self, offset: int, length: int) -> Reading:
        # In one piece: cut anywhere but between blocks, the blocks that were cut would be hashed twice.
        return super().reading(offset, length)._replace(step=max(1, length))

    def _fill(self, offset: int, target: memoryview) -> None:
        step = self._tree.block_size
        end = offset + len(target)
        # Blocks that lie inside the target whole are read in place; the rest is cut from copies.
        first, last = -(-offset // step), end // step if end < self.size else self._tree.blocks
        if first >= last:
            for index in range(offset // step, -(-end // step)):
                self._copy_part(index, offset, target)
            return
        if offset < first * step:
            self._copy_part(first - 1, offset, target)
        if last * step < end:
            self._copy_part(last, offset, target)
        base = first * step - offset
        run = max(CHUNK, step)
        in_parallel(
            lambda begin, end: self._read_run(first + begin // step, target[base + begin : base + end]),
            min(last * step, self.size) - first * step, chunk=run,
        )  # fmt: skip

    def _read_run(self, first: int, target: memoryview) -> None:
        """Whole blocks from block `first` on, straight into `target`."""
        step = self._tree.block_size
        self._source.read_into(first * step, target)
        for index, begin in enumerate(range(0, len(target), step), first):
            self._tree.check(index, target[begin : begin + step], path=self.name)

    def _copy_part(self, index: int, offset: int, target: memoryview) -> None:
        block = self._block(index)
        begin = index * self._tree.block_size
        low, high = max(begin, offset), min(begin + len(block), offset + len(target))
        target[low - offset : high - offset] = block[low - begin : high - begin]

    def _block(self, index: int) -> memoryview:
        with self._lock:
            if (kept := self._recent.get(index)) is not None:
                self._recent.move_to_end(index)
                return kept
        block = allocate(self._tree.block_length(index))
        self._source.read_into(index * self._tree.block_size, block)
        self._tree.check(index, block, path=self.name)
        with self._lock:
            self._recent[index] = block
            while len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
        return block


class VerifiedCopy(Source):
    """A source read whole into private memory and checked against a signed digest.

    For files signed without a block tree. Cost: one read and one hash of the file, its size in
    memory; views are that memory.

    Args:
        source: Where the bytes come from.
        resource: What was signed about the file; None to take it as it is and only know its
            `sha256`, for a policy that decides by digest.

    Attributes:
        sha256: Of the copy, hexadecimal.

    Raises:
        VerificationError: ``digest-mismatch`` or ``size-mismatch``.
    """

    in_memory = True

    def __init__(self, source: Source, resource: Resource | None = None) -> None:
        self.name = source.name
        self.size = source.size
        self._data = allocate(self.size)
        parts = PartHasher(resource) if resource and not resource.sha256 else None
        self.sha256 = sha256(source, into=self._data, also=parts.update if parts else None)
        if parts:
            parts.finish(self.size, self.name)
        elif resource and resource.sha256 != self.sha256:
            raise changed(self.name, self.sha256, resource)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with verified bytes from `offset` on."""
        buffer[:] = self.view(offset, len(buffer))

    def view(self, offset: int, length: int) -> memoryview:
        """Verified bytes: the private copy itself."""
        if offset + length > self.size:
            raise self._truncated(offset, length, self.size)
        return self._data[offset : offset + length]
