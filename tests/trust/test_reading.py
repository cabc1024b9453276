"""Verified reading: what is handed out was checked, whatever happens to the file meanwhile."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeweights.storage.opening import open_source
from safeweights.storage.parallel import CHUNK as RUN
from safeweights.storage.source import BytesSource, Held, Source, TruncatedError
from safeweights.trust.content.blocktree import BlockTree, TreeBuilder
from safeweights.trust.content.reading import VerifiedCopy, VerifiedSource
from safeweights.trust.content.resources import Part, Resource
from safeweights.trust.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STEP = 4096
CONTENT = hashlib.shake_128(b"content").digest(50 * STEP + 77)


def tree_of(data: bytes, block_size: int = STEP) -> BlockTree:
    builder = TreeBuilder(block_size)
    builder.update(data)
    built = builder.finish()
    return BlockTree.decode(built.encode(), built.root)


class Counting(BytesSource):
    """Counts the bytes that were read; refuses to hand out its own memory."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "counting")
        self.read = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.read += len(buffer)
        buffer[:] = self._data[offset : offset + len(buffer)]

    def view(self, offset: int, length: int) -> memoryview:
        raise AssertionError("unverified memory must not be handed out")


@given(st.integers(0, len(CONTENT)), st.integers(0, len(CONTENT)))
@settings(max_examples=300)
def test_every_range_reads_the_same(one: int, two: int) -> None:
    begin, end = min(one, two), max(one, two)
    inner = Counting(CONTENT)
    source = VerifiedSource(inner, TREE)
    assert source.view(begin, end - begin) == CONTENT[begin:end]
    touched = -(-end // STEP) - begin // STEP if end > begin else 0
    assert inner.read <= touched * STEP


def test_small_neighbours_share_a_block() -> None:
    inner = Counting(CONTENT)
    source = VerifiedSource(inner, TREE)
    for begin in range(0, STEP, 64):
        source.view(begin, 64)
    assert inner.read == STEP


def test_large_reads_use_several_threads() -> None:
    data = hashlib.shake_128(b"large").digest(3 * RUN + 5)
    source = VerifiedSource(Counting(data), tree_of(data, 1 << 18))
    assert source.view(1, len(data) - 2) == data[1:-1]
    bad = bytearray(data)
    bad[2 * RUN + 17] ^= 1
    source = VerifiedSource(BytesSource(bytes(bad)), tree_of(data, 1 << 18))
    buffer = bytearray(len(data))
    with pytest.raises(VerificationError) as caught:
        source.read_into(0, memoryview(buffer))
    assert caught.value.offset == 2 * RUN
    assert not any(buffer), "an unverified byte was left in the buffer"


@pytest.mark.parametrize("at", [0, STEP, 7 * STEP + 5, len(CONTENT) - 1])
def test_a_changed_block_is_refused_and_the_others_are_not(at: int) -> None:
    data = bytearray(CONTENT)
    data[at] ^= 0x80
    source = VerifiedSource(BytesSource(bytes(data), "weights"), TREE)
    with pytest.raises(VerificationError) as caught:
        source.view(max(at - 1, 0), 2 if at + 1 < len(data) else 1)
    assert (caught.value.reason, caught.value.path) == ("block-mismatch", "weights")
    assert caught.value.offset == at // STEP * STEP
    elsewhere = 20 * STEP
    assert source.view(elsewhere, STEP) == CONTENT[elsewhere : elsewhere + STEP]


def test_what_was_handed_out_is_private(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    source = VerifiedSource(open_source(path, backend="mmap"), TREE)
    view = source.view(0, 100)
    with open(path, "r+b") as file:
        file.write(b"\xff" * len(CONTENT))
    assert view == CONTENT[:100]
    view[0] ^= 1  # writable, and nobody else's
    assert source.view(0, 1) == CONTENT[:1]


def test_another_size_is_refused_before_anything_is_read() -> None:
    with pytest.raises(VerificationError) as caught:
        VerifiedSource(Counting(CONTENT + b"!"), TREE)
    assert caught.value.reason == "size-mismatch"
    with pytest.raises(TruncatedError):
        VerifiedSource(Counting(CONTENT), TREE).view(len(CONTENT), 1)


def whole(data: bytes) -> Resource:
    return Resource("weights", "sha256", (Part(0, None, hashlib.sha256(data).digest()),))


def shards(data: bytes, size: int) -> Resource:
    parts = [
        Part(begin, begin + len(part), hashlib.sha256(part).digest())
        for begin in range(0, len(data), size)
        for part in [data[begin : begin + size]]
    ]
    return Resource("weights", "sha256", tuple(parts))


@pytest.mark.parametrize("make", [whole, lambda data: shards(data, 10_000)])
def test_a_copy_for_files_without_a_tree(make: Callable[[bytes], Resource]) -> None:
    copy = VerifiedCopy(Counting(CONTENT), make(CONTENT))
    assert copy.view(5, 100) == CONTENT[5:105]
    buffer = bytearray(7)
    copy.read_into(3, memoryview(buffer))
    assert buffer == CONTENT[3:10]
    with pytest.raises(TruncatedError):
        copy.view(len(CONTENT), 1)
    for bad in (CONTENT[:-1] + b"?", CONTENT[:-1], CONTENT + b"?"):
        with pytest.raises(VerificationError):
            VerifiedCopy(BytesSource(bad), make(CONTENT))


def test_a_copy_that_is_only_named() -> None:
    assert VerifiedCopy(Counting(CONTENT)).sha256 == hashlib.sha256(CONTENT).hexdigest()


# ---------------------------------------------------------------- blocks that are held


class Holding(Counting):
    """Keeps what it has as it is, and says for which ranges it was asked."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.asked: list[tuple[int, int]] = []

    @contextmanager
    def held(self, offset: int, length: int) -> Iterator[Held | None]:
        self.asked.append((offset, length))
        yield Held(self._data[offset : offset + length], offset, lambda: len(self.asked) == 1)


@pytest.mark.parametrize(
    ("begin", "end"), [(0, STEP), (5, 7 * STEP + 1), (3 * STEP, 3 * STEP + 1), (0, len(CONTENT))]
)
def test_blocks_that_are_held_are_checked_in_their_place(begin: int, end: int) -> None:
    inner = Holding(CONTENT)
    source = VerifiedSource(inner, TREE)
    with source.held(begin, end - begin) as held:
        assert held is not None
        assert held.view(begin, 1) == CONTENT[begin : begin + 1]
        assert held.view(begin, end - begin) == CONTENT[begin:end]
        assert held.is_held()
        inner.asked.append((0, 0))
        assert not held.is_held()
    assert inner.read == 0
    low, length = inner.asked[0]
    assert low % STEP == 0
    assert low <= begin < low + STEP
    assert (low + length) % STEP == 0 or low + length == len(CONTENT)
    assert end <= low + length < end + STEP


def test_each_block_that_is_held_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = VerifiedSource(Holding(CONTENT), TREE)
    hashed: list[int] = []
    check = BlockTree.check

    def count(tree: BlockTree, index: int, block: memoryview, *, path: str | None) -> None:
        hashed.append(index)
        check(tree, index, block, path=path)

    monkeypatch.setattr(BlockTree, "check", count)
    with source.held(STEP + 1, 9 * STEP) as held:
        assert held is not None
        for begin in range(STEP + 1, 10 * STEP, 1000):
            held.view(begin, 1000)
    assert hashed == [*range(1, 11)]


@pytest.mark.parametrize("at", [0, 9 * STEP, 20 * STEP - 1])
def test_a_changed_block_that_is_held_is_refused(at: int) -> None:
    data = bytearray(CONTENT)
    data[at] ^= 0x80
    source = VerifiedSource(Holding(bytes(data)), TREE)
    with source.held(0, 20 * STEP) as held:
        assert held is not None
        with pytest.raises(VerificationError) as caught:
            held.view(0, 20 * STEP)
    assert (caught.value.reason, caught.value.offset) == ("block-mismatch", at // STEP * STEP)


def test_nothing_is_held_where_the_source_cannot() -> None:
    with VerifiedSource(Counting(CONTENT), TREE).held(0, STEP) as held:
        assert held is None


# ---------------------------------------------------------------- races

EVIL = bytes(byte ^ 0xFF for byte in CONTENT)


def swap(path: Path, turn: int) -> None:
    """Replace the file by renaming another over it."""
    spare = path.with_suffix(".spare")
    spare.write_bytes(EVIL if turn % 2 else CONTENT)
    os.replace(spare, path)


def rewrite(path: Path, turn: int) -> None:
    """Write into the file in place, as a process that has it open can."""
    with open(path, "r+b", buffering=0) as file:
        file.write(EVIL if turn % 2 else CONTENT)


def relink(path: Path, turn: int) -> None:
    """Point the symbolic link that the loader was given elsewhere."""
    spare = path.with_suffix(".link")
    spare.symlink_to("evil" if turn % 2 else "good")
    os.replace(spare, path)


def hardlink(path: Path, turn: int) -> None:
    """Write through another name of the same file."""
    rewrite(path.with_suffix(".other"), turn)


def truncate(path: Path, turn: int) -> None:
    """Cut the file and let it grow again."""
    if turn % 2:
        os.truncate(path, 3 * STEP)
    else:
        path.write_bytes(CONTENT)


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize("attack", [swap, rewrite, relink, hardlink, truncate],
                         ids=lambda attack: attack.__name__)  # fmt: skip
def test_race(tmp_path: Path, attack: Callable[[Path, int], None], backend: str) -> None:
    path = tmp_path / "weights"
    (tmp_path / "good").write_bytes(CONTENT)
    (tmp_path / "evil").write_bytes(EVIL)
    if attack is relink:
        path.symlink_to("good")
    else:
        path.write_bytes(CONTENT)
    if attack is hardlink:
        os.link(path, path.with_suffix(".other"))
    stop = threading.Event()

    def attacker() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            attack(path, turn)
            started.set()

    chance = random.Random(1)
    accepted = refused = 0
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(attacker)
        try:
            started.wait()
            while accepted + refused < 1000 or not (accepted and refused):
                assert accepted + refused < 100_000, (accepted, refused)
                try:
                    source: Source = VerifiedSource(open_source(path, backend=backend), TREE)
                    begin = chance.randrange(len(CONTENT))
                    length = chance.randrange(len(CONTENT) - begin) + 1
                    view = source.view(begin, length)
                except (VerificationError, TruncatedError):
                    refused += 1
                else:
                    accepted += 1
                    assert view == CONTENT[begin : begin + length], "an unverified byte"
        finally:
            stop.set()
        running.result()


TREE = tree_of(CONTENT)
