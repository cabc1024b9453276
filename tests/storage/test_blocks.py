"""Sources in blocks: every range reads the same, each block is fetched once, a failure leaves nothing."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from new_threads import threads_since_now
from safeweights.storage import TruncatedError, blocks
from safeweights.storage.blocks import BlockSource
from safeweights.storage.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterator

STEP = 100
CONTENT = hashlib.shake_128(b"content").digest(50 * STEP + 7)


class Fetcher:
    """Decrypts, so to speak: a block is stored turned round, behind a byte that says whether it is good."""

    def __init__(self, data: bytes, step: int = STEP, bad: int | None = None) -> None:
        self.step, self.size = step, len(data)
        self.fetched: list[int] = []
        pieces = [data[begin : begin + step] for begin in range(0, len(data), step)]
        self._stored = b"".join(bytes([i == bad]) + piece[::-1] for i, piece in enumerate(pieces))

    def __call__(self, first: int, target: memoryview) -> None:
        assert len(target), "nothing is fetched for nothing"
        for index, begin in enumerate(range(0, len(target), self.step), first):
            self.fetched.append(index)
            at = index * (self.step + 1)
            block = self._stored[at : at + self.step + 1]
            part = target[begin : begin + self.step]
            assert len(part) == len(block) - 1, "a block was cut"
            part[:] = block[:0:-1]
            if block[0]:
                raise ZeroDivisionError(index)

    def source(self) -> BlockSource:
        return BlockSource("blocks", self.size, self.step, self)


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Two and a half blocks make a run, so that a read of many blocks is shared among threads."""
    monkeypatch.setattr(blocks, "CHUNK", STEP * 5 // 2)
    started = threads_since_now()
    yield blocks.CHUNK
    assert not started()


@given(
    st.integers(0, len(CONTENT)), st.integers(0, len(CONTENT)), st.sampled_from([1, 7, STEP, 9999])
)
def test_every_range_reads_the_same_and_no_block_twice(one: int, two: int, step: int) -> None:
    begin, end = min(one, two), max(one, two)
    touched = list(range(begin // step, -(-end // step))) if end > begin else []
    for read in ("view", "read_into", "read"):
        fetch = Fetcher(CONTENT, step)
        if read == "read_into":
            data = bytearray(end - begin)
            fetch.source().read_into(begin, memoryview(data))
        else:
            data = getattr(fetch.source(), read)(begin, end - begin)
        assert data == CONTENT[begin:end]
        assert sorted(fetch.fetched) == touched


@pytest.mark.parametrize("begin", [0, 1, STEP, 3 * STEP - 1])
@pytest.mark.parametrize("end", [len(CONTENT), len(CONTENT) - 1, 50 * STEP, 40 * STEP + 1])
def test_large_reads_are_shared_among_threads(small_runs: int, begin: int, end: int) -> None:
    fetch = Fetcher(CONTENT)
    touched = list(range(begin // STEP, -(-end // STEP)))
    assert fetch.source().view(begin, end - begin) == CONTENT[begin:end]
    assert sorted(fetch.fetched) == touched
    fetch.fetched.clear()
    source = fetch.source()
    source.read_into(begin, memoryview(bytearray(end - begin)))
    cut = {place // STEP for place in (begin, end) if place % STEP and place < len(CONTENT)}
    assert set(source._recent) == cut  # the others were fetched in place
    fetch.fetched.clear()
    reading = fetch.source().reading(begin, end - begin)
    assert reading.step == 2 * STEP
    pieces = [
        (at, min(at + reading.step, reading.extent))
        for at in range(0, reading.extent, reading.step)
    ]
    random.Random(1).shuffle(pieces)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda piece: reading.fill(*piece), pieces))
    assert reading.data == CONTENT[begin:end]
    assert sorted(fetch.fetched) == touched


@pytest.mark.parametrize(
    ("chunk", "pieces"),
    [(16, 3), (17, 3), (25, 2), (20, 3), (50, 1)],  # of 50 blocks and 7 bytes
)
def test_a_few_blocks_over_are_no_piece_of_their_own(
    monkeypatch: pytest.MonkeyPatch, chunk: int, pieces: int
) -> None:
    monkeypatch.setattr(blocks, "CHUNK", chunk * STEP)
    fetch = Fetcher(CONTENT)
    reading = fetch.source().reading(0, len(CONTENT))
    starts = range(0, reading.extent, reading.step)
    assert len(starts) == pieces
    for begin in starts:
        reading.fill(begin, min(begin + reading.step, reading.extent))
    assert reading.data == CONTENT
    assert fetch.fetched == [*range(51)]


def test_where_long_pieces_are_best_they_may_be_cut_into_short_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "CHUNK", 8 * STEP)
    source = Fetcher(CONTENT).source()
    source.piece = 4 * Source.piece
    reading = source.reading(0, len(CONTENT))
    assert (reading.step, reading.least) == (source.piece, 8 * STEP)
    assert source.view(0, len(CONTENT)) == CONTENT


def test_small_neighbours_share_a_block() -> None:
    fetch = Fetcher(CONTENT)
    source = fetch.source()
    for begin in range(0, 2 * STEP, 10):
        assert source.view(begin, 10) == CONTENT[begin : begin + 10]
    assert fetch.fetched == [0, 1]
    source.view(5, STEP)  # of both
    assert fetch.fetched == [0, 1]


def test_few_blocks_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = Fetcher(CONTENT)
    source = fetch.source()
    for index in (*range(8), 0, 8, 0, 1):  # 8 displaces 1, which was used longest ago
        source.view(index * STEP, 1)
    assert fetch.fetched == [*range(9), 1]
    monkeypatch.setattr(blocks, "_RECENT_BYTES", 2 * STEP)
    fetch = Fetcher(CONTENT)
    source = fetch.source()
    for index in (0, 1, 0, 1, 2, 0):
        source.view(index * STEP, 1)
    assert fetch.fetched == [0, 1, 2, 0]
    monkeypatch.setattr(blocks, "_RECENT_BYTES", STEP - 1)
    fetch = Fetcher(CONTENT)
    source = fetch.source()
    for index in (0, 0, 1, 1, 0):
        source.view(index * STEP, 1)
    assert fetch.fetched == [0, 1, 0]


@pytest.mark.parametrize("bad", [0, 7, 49, 50])
def test_a_failure_leaves_no_byte(small_runs: int, bad: int) -> None:
    source = Fetcher(CONTENT, bad=bad).source()
    at = bad * STEP
    for begin, end in [
        (0, len(CONTENT)),
        (at, at + 1),
        (max(0, at - 10), min(at + 150, len(CONTENT))),
    ]:
        buffer = memoryview(bytearray(b"?" * (end - begin)))
        with pytest.raises(ZeroDivisionError, match=str(bad)):
            source.read_into(begin, buffer)
        assert not any(buffer)
        with pytest.raises(ZeroDivisionError):
            source.view(begin, end - begin)
    elsewhere = 20 * STEP + 3
    assert source.view(elsewhere, STEP) == CONTENT[elsewhere : elsewhere + STEP]
    reading = source.reading(0, len(CONTENT))
    piece = at - at % reading.step
    with pytest.raises(ZeroDivisionError):
        reading.fill(piece, min(piece + reading.step, reading.extent))
    assert not any(reading.data[piece : piece + reading.step])


def test_a_large_buffer_is_cleared_to_its_end() -> None:
    size = (2 << 20) + 5
    memory = memoryview(bytearray(b"?" * size))
    blocks._clear(memory)
    assert memory == bytes(size)


@pytest.mark.parametrize("length", [1, 1000, len(CONTENT)])
def test_a_read_past_the_end_is_refused_before_anything_is_fetched(
    small_runs: int, length: int
) -> None:
    fetch = Fetcher(CONTENT)
    source = fetch.source()
    for call in (
        lambda: source.view(len(CONTENT) + 1 - length, length),
        lambda: source.reading(len(CONTENT) + 1 - length, length),
        lambda: source.read_into(len(CONTENT) + 1 - length, memoryview(bytearray(length))),
    ):
        with pytest.raises(TruncatedError):
            call()
    assert fetch.fetched == []


def test_many_threads_read_small_pieces_of_the_same_blocks() -> None:
    source = Fetcher(CONTENT).source()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(500):
            begin = chance.randrange(len(CONTENT))
            length = chance.randrange(min(250, len(CONTENT) - begin))
            assert source.view(begin, length) == CONTENT[begin : begin + length]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
