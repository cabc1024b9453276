"""A tree of SHA-256 over blocks of a file: verification in proportion to what is read.

The file is cut into blocks (by default of 256 KiB). Each block gives a leaf; each page of 256 digests
gives a node of the level above; the root binds the top page to the size of the file, the block size and
the number of blocks. Leaves, nodes and the root are hashed with different prefixes, so that no digest of
one kind can pass for another. A leaf binds its index and length, a node its level and index, so that
blocks cannot be swapped, cut off or added.

The sidecar file stores all levels. A reader has the root from a signed statement and checks only the pages
above the blocks that it touches: 8 KiB for each level, whatever the size of the file. The sidecar of a
100 GiB file has 12.9 MB and three levels.

Layout of a sidecar (little endian): magic (8 bytes), file size (u64), block size (u32), fan-out
(u32, 256), then every level from the leaves upwards, 32 bytes for each digest.

Pure: bytes in, bytes out, no I/O.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Final

from ..errors import DocumentError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["BLOCK_SIZE", "FANOUT", "BlockTree", "TreeBuilder", "leaf_digest"]

BLOCK_SIZE: Final = 256 << 10
FANOUT: Final = 256
DIGEST: Final = 32
TREE_MAGIC: Final = b"\x89SWTREE\n"

_HEADER = struct.Struct("<8sQII")
_LEAF = struct.Struct("<QI")
_NODE = struct.Struct("<BQI")
_ROOT = struct.Struct("<QIQ")
_LEAF_PREFIX = hashlib.sha256(b"safeweights block tree v1: leaf\0")
_NODE_PREFIX = hashlib.sha256(b"safeweights block tree v1: node\0")
_ROOT_PREFIX = hashlib.sha256(b"safeweights block tree v1: root\0")


def leaf_digest(index: int, block: memoryview | bytes) -> bytes:
    """The digest of block `index`."""
    state = _LEAF_PREFIX.copy()
    state.update(_LEAF.pack(index, len(block)))
    state.update(block)
    return state.digest()


def _node_digest(level: int, index: int, children: bytes | memoryview) -> bytes:
    state = _NODE_PREFIX.copy()
    state.update(_NODE.pack(level, index, len(children) // DIGEST))
    state.update(children)
    return state.digest()


def _level_counts(size: int, block_size: int) -> list[int]:
    """How many digests each level holds, leaves first; the last level fits one page."""
    counts = [-(-size // block_size)]
    while counts[-1] > FANOUT:
        counts.append(-(-counts[-1] // FANOUT))
    return counts


class BlockTree:
    """The digests of the blocks of one file.

    A tree that `TreeBuilder` made was computed from the file. One that `decode` read is checked against the
    root that it was given: the top page at once, every other page when a block below it is checked for
    the first time (8 KiB hashed for each).

    Attributes:
        size: The size of the file in bytes.
        block_size: Bytes in a block; the last block may be shorter.
        root: 32 bytes that determine all of it.
    """

    __slots__ = ("_checked", "_levels", "block_size", "root", "size")

    def __init__(self, size: int, block_size: int, levels: Sequence[bytes | memoryview]) -> None:
        self.size = size
        self.block_size = block_size
        self._levels = [memoryview(level) for level in levels]
        self._checked: set[tuple[int, int]] = set()
        state = _ROOT_PREFIX.copy()
        state.update(_ROOT.pack(size, block_size, self.blocks))
        state.update(self._levels[-1])
        self.root = state.digest()

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.size // self.block_size)

    def encode(self) -> bytes:
        """The bytes of the sidecar file."""
        header = _HEADER.pack(TREE_MAGIC, self.size, self.block_size, FANOUT)
        return b"".join([header, *self._levels])

    @classmethod
    def decode(cls, data: bytes, root: bytes, *, path: str | None = None) -> BlockTree:
        """The tree in sidecar `data`, which must have the given `root`.

        Cost: one page is hashed. `data` is kept, not copied.

        Raises:
            DocumentError: It is not a sidecar, or not of the length that its header implies.
            VerificationError: ``stale-sidecar``: a well-formed sidecar of other contents.
        """
        if len(data) < _HEADER.size or data[:8] != TREE_MAGIC:
            raise DocumentError(
                "not a block tree sidecar: bad magic", field="magic", path=path, offset=0
            )
        _, size, block_size, fanout = _HEADER.unpack_from(data)
        if not (1 << 12 <= block_size <= 1 << 26) or block_size & (block_size - 1):
            raise DocumentError(
                "block size is not a power of two from 4 KiB to 64 MiB",
                field="block_size",
                path=path,
                offset=16,
            )
        if fanout != FANOUT:
            raise DocumentError("fan-out is not 256", field="fanout", path=path, offset=20)
        counts = _level_counts(size, block_size)
        if len(data) != _HEADER.size + DIGEST * sum(counts):
            raise DocumentError(
                f"sidecar has {len(data)} bytes; for a file of {size} bytes it has "
                f"{_HEADER.size + DIGEST * sum(counts)}",
                field="size",
                path=path,
                offset=8,
            )
        tree = cls(size, block_size, list(_split(memoryview(data)[_HEADER.size :], counts)))
        if tree.root != root:
            raise VerificationError(
                "the block sidecar does not belong to the signed version of the file; it is stale "
                "or was replaced",
                reason="stale-sidecar",
                path=path,
            )
        return tree

    def check(self, index: int, block: memoryview | bytes, *, path: str | None = None) -> None:
        """Check that block `index` of the file is `block`.

        Raises:
            VerificationError: ``block-mismatch`` with the block's offset, or ``stale-sidecar``
                where the sidecar itself is not consistent with the root.
        """
        self._check_pages(index, path)
        begin = index * DIGEST
        if leaf_digest(index, block) != self._levels[0][begin : begin + DIGEST]:
            raise VerificationError(
                f"block {index} is not what was signed",
                reason="block-mismatch",
                path=path,
                offset=index * self.block_size,
            )

    def _check_pages(self, index: int, path: str | None) -> None:
        # From the top down, so that every page is compared with a digest that was checked before.
        for level in range(len(self._levels) - 2, -1, -1):
            page = index // FANOUT ** (level + 1)
            if (level, page) in self._checked:
                continue
            begin = page * FANOUT * DIGEST
            children = self._levels[level][begin : begin + FANOUT * DIGEST]
            above = self._levels[level + 1][page * DIGEST : (page + 1) * DIGEST]
            if _node_digest(level, page, children) != above:
                raise VerificationError(
                    "the block sidecar is damaged or was altered",
                    reason="stale-sidecar",
                    path=path,
                )
            self._checked.add((level, page))


def _split(data: memoryview, counts: list[int]) -> Iterator[memoryview]:
    begin = 0
    for count in counts:
        yield data[begin : begin + DIGEST * count]
        begin += DIGEST * count


class TreeBuilder:
    """Builds a `BlockTree` from the bytes of a file in order.

    Memory: 32 bytes for each block. `update` takes whole blocks; only the last call may end with a partial
    one.

    >>> builder = TreeBuilder()
    >>> builder.update(b"abc")
    >>> builder.finish().root.hex()[:8]
    '8292fd4d'
    """

    def __init__(self, block_size: int = BLOCK_SIZE) -> None:
        self.block_size = block_size
        self._leaves = bytearray()
        self._size = 0

    def update(self, data: memoryview | bytes) -> None:
        """Add the next blocks."""
        if self._size % self.block_size:
            msg = "data after a partial block"
            raise ValueError(msg)
        view = memoryview(data)
        first = self._size // self.block_size
        for number, begin in enumerate(range(0, len(view), self.block_size), first):
            self._leaves += leaf_digest(number, view[begin : begin + self.block_size])
        self._size += len(view)

    def finish(self) -> BlockTree:
        """The tree of all blocks that were added."""
        levels = [bytes(self._leaves)]
        while len(levels[-1]) > FANOUT * DIGEST:
            below, page = levels[-1], FANOUT * DIGEST
            levels.append(
                b"".join(
                    _node_digest(len(levels) - 1, number, below[begin : begin + page])
                    for number, begin in enumerate(range(0, len(below), page))
                )
            )
        return BlockTree(self._size, self.block_size, levels)
