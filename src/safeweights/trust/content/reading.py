"""Sources whose bytes are checked before a reader sees them.

They stand in for a storage source and are read in the same way. What they hand out was first copied into
private memory and then checked there, so that nothing that happens to the file between check and use
matters: no rename, no write in place, no change of the pages of a mapping. `VerifiedSource` reads and
hashes only the blocks that are touched; `VerifiedCopy` reads the whole file once, and keeps it.

Neither hands out a mapping of the file, but for `held`, whose caller asks afterwards whether the file
changed. Where a check fails the buffer is cleared before the error is raised.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...storage import BytesSource, Source, allocate
from ...storage.blocks import BlockSource
from ...storage.hashing import sha256
from ...storage.source import Held
from ..errors import VerificationError
from .resources import PartHasher, changed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .blocktree import BlockTree
    from .resources import Resource

__all__ = ["VerifiedCopy", "VerifiedSource"]


class VerifiedSource(BlockSource):
    """A source of which every byte is checked against a block tree.

    Cost of a read: the blocks that it touches are read and hashed once, in several threads where there are
    many. Memory: a few blocks, and what is handed out.

    Args:
        source: Where the bytes come from.
        tree: The file's block tree, decoded with a root that was signed or admitted.

    Raises:
        VerificationError: ``size-mismatch``; from a read, ``block-mismatch`` or ``stale-sidecar``.
    """

    def __init__(self, source: Source, tree: BlockTree) -> None:
        if source.size != tree.size:
            raise VerificationError(
                f"file size is {source.size} bytes, but {tree.size} bytes were signed",
                reason="size-mismatch", path=source.name,
            )  # fmt: skip

        def fetch(first: int, target: memoryview) -> None:
            step = tree.block_size
            source.read_piece(first * step, target)
            for index, begin in enumerate(range(0, len(target), step), first):
                tree.check(index, target[begin : begin + step], path=source.name)

        super().__init__(source.name, source.size, tree.block_size, fetch)
        self.threads, self.gap = source.threads, max(source.gap, self.gap)
        self._source, self._tree = source, tree

    @property
    def piece(self) -> int:  # type: ignore[override]
        return self._source.piece

    @contextmanager
    def held(self, offset: int, length: int) -> Iterator[Held | None]:
        # Blocks at the ends of a piece are hashed for its neighbour again: 1.5 % of pieces of 16 MiB.
        step = self._tree.block_size
        begin = offset - offset % step
        end = min(self.size, offset + length + -(offset + length) % step)
        with self._source.held(begin, end - begin) as held:
            yield None if held is None else _CheckedBlocks(held, begin, self._tree, self.name)


class _CheckedBlocks(Held):
    """Blocks that are held, each checked before it is seen for the first time.

    Views are taken in ascending order: what is before a view is checked, too.

    Args:
        held: The blocks.
        offset: Where they begin in the source.
        tree: What they are checked against.
        name: The source's.
    """

    def __init__(self, held: Held, offset: int, tree: BlockTree, name: str) -> None:
        self._held = held
        self._tree = tree
        self._name = name
        self._next = offset // tree.block_size

    def is_held(self) -> bool:
        return self._held.is_held()

    def view(self, offset: int, length: int) -> memoryview:
        step, tree = self._tree.block_size, self._tree
        end = -(-(offset + length) // step)
        for index in range(self._next, end):
            begin = index * step
            block = self._held.view(begin, min(step, tree.size - begin))
            tree.check(index, block, path=self._name)
        self._next = max(self._next, end)
        return self._held.view(offset, length)


class VerifiedCopy(BytesSource):
    """A copy of a source in private memory, checked against a signed digest.

    For files that were signed without a block tree. Cost: the file is read and hashed once. Memory: the
    size of the file; views share it.

    Args:
        source: Where the bytes come from.
        resource: What was signed about the file; None for no check, where a policy decides by `sha256`.

    Attributes:
        sha256: The digest of the copy, in hexadecimal.

    Raises:
        VerificationError: ``digest-mismatch`` or ``size-mismatch``.
    """

    def __init__(self, source: Source, resource: Resource | None = None) -> None:
        data = allocate(source.size)
        parts = PartHasher(resource) if resource and not resource.sha256 else None
        self.sha256 = sha256(source, into=data, also=parts.update if parts else None)
        if parts:
            parts.finish(source.size, source.name)
        elif resource and resource.sha256 != self.sha256:
            raise changed(source.name, self.sha256, resource)
        super().__init__(data, source.name)
