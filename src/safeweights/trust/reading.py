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

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np

from safeweights.storage.source import Source

from .digests import in_threads
from .errors import VerificationError
from .verifying import PartHasher, changed

if TYPE_CHECKING:
    from .blocktree import BlockTree
    from .bundle import Resource

__all__ = ["VerifiedCopy", "VerifiedSource"]

RUN: Final = 4 << 20
"""Bytes that one thread reads and hashes at a time."""

_RECENT: Final = 8
"""Blocks kept after a partial read: small tensors share blocks with their neighbours."""


class VerifiedSource(Source):
    """A source of which every byte is checked against a block tree.

    Cost of a read: the blocks it touches, read and hashed once (partly read ones are kept while
    recent); several threads from 4 MiB on. Memory: a block a thread, and what is handed out.

    Args:
        source: Where the bytes come from.
        tree: The file's block tree, decoded with a root that was signed or admitted.
        workers: Threads for large reads; the number of cores unless told.

    Raises:
        VerificationError: ``size-mismatch`` here; ``block-mismatch`` or ``stale-sidecar`` from a
            read.
    """

    def __init__(self, source: Source, tree: BlockTree, *, workers: int | None = None) -> None:
        if source.size != tree.size:
            raise VerificationError(
                f"has {source.size} bytes, signed were {tree.size}", reason="size-mismatch",
                path=source.name,
            )  # fmt: skip
        self.name = source.name
        self.size = source.size
        self._source = source
        self._tree = tree
        self._workers = workers
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
        copy = np.empty(length, np.uint8).data
        self.read_into(offset, copy)
        return copy

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
        runs = [
            (begin, min(begin + max(RUN // step, 1), last))
            for begin in range(first, last, max(RUN // step, 1))
        ]
        if len(runs) == 1:
            self._read_run(runs[0], offset, target)
            return
        for _ in in_threads(lambda run: self._read_run(run, offset, target), runs, self._workers):
            pass  # a failed check raises here

    def _read_run(self, run: tuple[int, int], offset: int, target: memoryview) -> None:
        step = self._tree.block_size
        begin, end = run[0] * step, min(run[1] * step, self.size)
        part = target[begin - offset : end - offset]
        self._source.read_into(begin, part)
        for index in range(*run):
            at = (index - run[0]) * step
            self._tree.check(index, part[at : at + step], path=self.name)

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
        block = np.empty(self._tree.block_length(index), np.uint8).data
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

    def __init__(self, source: Source, resource: Resource | None = None) -> None:
        self.name = source.name
        self.size = source.size
        self._data = np.empty(self.size, np.uint8).data
        whole = hashlib.sha256()
        parts = PartHasher(resource) if resource and not resource.sha256 else None
        with ThreadPoolExecutor(1) as helper:  # hashes one run while the next is read
            for begin in range(0, self.size, RUN):
                run = self._data[begin : begin + RUN]
                source.read_into(begin, run)
                helper.submit(whole.update, run)
                if parts:
                    helper.submit(parts.update, run)
        self.sha256 = whole.hexdigest()
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
