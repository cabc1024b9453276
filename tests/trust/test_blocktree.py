"""The block tree: what it binds, and that every single change is seen."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeweights.trust.content import blocktree
from safeweights.trust.content.blocktree import BlockTree, TreeBuilder
from safeweights.trust.errors import DocumentError, TrustError, VerificationError

SMALL = 4096


def tree_of(data: bytes, block_size: int = SMALL) -> BlockTree:
    builder = TreeBuilder(block_size)
    builder.update(data)
    return builder.finish()


def check_all(tree: BlockTree, data: bytes) -> None:
    for index in range(tree.blocks):
        tree.check(index, data[index * tree.block_size : (index + 1) * tree.block_size])


def content(size: int) -> bytes:
    return hashlib.shake_128(b"content").digest(size)


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL, SMALL + 1, 256 * SMALL, 257 * SMALL + 5])
def test_round_trip(size: int) -> None:
    data = content(size)
    tree = tree_of(data)
    again = BlockTree.decode(tree.encode(), tree.root)
    assert (again.size, again.root, again.blocks) == (size, tree.root, -(-size // SMALL))
    check_all(again, data)


def test_three_levels() -> None:
    # 65,537 blocks need three levels; only the way down to the checked block is hashed.
    builder = TreeBuilder(SMALL)
    for _ in range(16):
        builder.update(bytes(4096 * SMALL))
    builder.update(bytes(SMALL))
    tree = builder.finish()
    again = BlockTree.decode(tree.encode(), tree.root)
    again.check(65536, bytes(SMALL))
    assert again._checked == {(1, 1), (0, 256)}
    with pytest.raises(VerificationError, match="block 1 "):
        again.check(1, b"\1" + bytes(SMALL - 1))


def test_root_is_what_the_documentation_says() -> None:
    data = content(2 * SMALL + 7)
    leaves = b"".join(
        hashlib.sha256(
            b"safeweights block tree v1: leaf\0" + struct.pack("<QI", i, len(part)) + part
        ).digest()
        for i, part in enumerate([data[:SMALL], data[SMALL : 2 * SMALL], data[2 * SMALL :]])
    )
    root = hashlib.sha256(
        b"safeweights block tree v1: root\0" + struct.pack("<QIQ", len(data), SMALL, 3) + leaves
    ).digest()
    assert tree_of(data).root == root


@given(st.data())
def test_every_flipped_bit_of_a_sidecar_is_seen(draw: st.DataObject) -> None:
    data = CONTENT
    sidecar = bytearray(TREE.encode())
    at = draw.draw(st.integers(0, len(sidecar) * 8 - 1))
    sidecar[at // 8] ^= 1 << at % 8
    with pytest.raises(TrustError):
        check_all(BlockTree.decode(bytes(sidecar), TREE.root), data)


@given(st.data())
def test_every_flipped_bit_of_the_file_is_seen(draw: st.DataObject) -> None:
    data = bytearray(CONTENT)
    at = draw.draw(st.integers(0, len(data) * 8 - 1))
    data[at // 8] ^= 1 << at % 8
    with pytest.raises(VerificationError) as caught:
        check_all(TREE, bytes(data))
    assert caught.value.offset == at // 8 // SMALL * SMALL


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_our_error(data: bytes) -> None:
    with pytest.raises(DocumentError):
        BlockTree.decode(data, bytes(32))
    with pytest.raises(TrustError):
        BlockTree.decode(blocktree.TREE_MAGIC + data, bytes(32))


def test_blocks_cannot_be_swapped_cut_or_extended() -> None:
    data = content(3 * SMALL)
    tree = tree_of(data)
    with pytest.raises(VerificationError):
        tree.check(0, data[SMALL : 2 * SMALL])
    with pytest.raises(VerificationError):
        tree.check(2, data[2 * SMALL : -1])
    same = bytes(2 * SMALL)
    assert tree_of(same)._levels[0][:32] != tree_of(same)._levels[0][32:]
    assert len({tree_of(same[:n]).root for n in (SMALL, SMALL + 1, 2 * SMALL)}) == 3


def test_a_node_does_not_pass_for_a_leaf() -> None:
    # The classic second preimage: a block that spells out the leaves below a node.
    leaves = bytes(tree_of(content(2 * SMALL))._levels[0])
    assert blocktree.leaf_digest(0, leaves) != blocktree._node_digest(0, 0, leaves)


def test_a_sidecar_of_another_version_is_stale() -> None:
    old, new = tree_of(content(SMALL)), tree_of(content(SMALL) + b"!")
    with pytest.raises(VerificationError) as caught:
        BlockTree.decode(old.encode(), new.root, path="x.swtree")
    assert caught.value.reason == "stale-sidecar"


def test_data_after_a_partial_block_is_a_mistake() -> None:
    builder = TreeBuilder(SMALL)
    builder.update(b"abc")
    with pytest.raises(ValueError, match="partial"):
        builder.update(b"d")


CONTENT = content(300 * SMALL + 9)
TREE = tree_of(CONTENT)
