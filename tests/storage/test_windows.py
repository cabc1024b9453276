"""Parts of sources: windows, concatenations, and a reader that goes forward; never a byte outside."""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeweights.errors import FormatError
from safeweights.storage import BytesSource, Source, windows
from safeweights.storage.windows import Buffered, ByteReader, Joined, Window, read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = random.Random(1).randbytes(1000)


class Noting(BytesSource):
    """Notes which bytes are asked for."""

    def __init__(self, data: bytes = DATA) -> None:
        super().__init__(data, "data")
        self.asked: list[tuple[int, int]] = []

    def view(self, offset: int, length: int) -> memoryview:
        self.asked.append((offset, length))
        return super().view(offset, length)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=4))
def test_windows_of_windows(cuts: list[tuple[int, int]]) -> None:
    source: Source = BytesSource(DATA, "data")
    expected = DATA
    for one, two in cuts:
        start, end = sorted((one % (len(expected) + 1), two % (len(expected) + 1)))
        source, expected = Window(source, start, end - start), expected[start:end]
        assert (source.name, source.size) == ("data", len(expected))
        assert source.parent.__class__ is BytesSource
    assert source.view(0, source.size) == expected
    buffer = bytearray(source.size // 2)
    source.read_into(source.size - len(buffer), memoryview(buffer))
    assert buffer == expected[len(expected) - len(buffer) :]


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(0, 200), st.integers(0, 200))
def test_a_concatenation_reads_as_one(sizes: list[int], one: int, two: int) -> None:
    parts = [bytes([65 + index]) * size for index, size in enumerate(sizes)]
    whole = b"".join(parts)
    source = Joined((BytesSource(part) for part in parts), "joined")
    begin, end = sorted((min(one, len(whole)), min(two, len(whole))))
    assert source.size == len(whole)
    assert read_bytes(source, begin, end - begin) == whole[begin:end]
    buffer = bytearray(end - begin)
    source.read_into(begin, memoryview(buffer))
    assert buffer == whole[begin:end]


READS: dict[str, Callable[[Source, int, int], object]] = {
    "read_bytes": read_bytes,
    "read_into": lambda source, offset, count: source.read_into(
        offset, memoryview(bytearray(count))
    ),
    "window": lambda source, offset, count: Window(source, offset, count),
    "view": lambda source, offset, count: Window(source, 0, source.size).view(offset, count),
}


OUTSIDE = [(-1, 1), (0, 1001), (1000, 1), (1001, 0), (999, 2), (5, -1), (0, 1 << 62)]


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(
    ("read", "offset", "count"),
    [
        (read, *place)
        for read in READS
        for place in OUTSIDE
        if read != "read_into" or place[1] in range(2000)  # there are no other buffers
    ],
)
def test_what_lies_outside_is_an_error_that_says_where(
    read: str, joined: bool, offset: int, count: int
) -> None:
    """Before anything is read or allocated."""
    inner = Noting()
    source = Joined([inner], "data") if joined else Window(inner, 0, 1000)
    with pytest.raises(FormatError, match="the data ends at byte 1000") as caught:
        READS[read](source, offset, count)
    assert (caught.value.path, caught.value.offset, caught.value.rule) == (
        "data", offset, "truncated",
    )  # fmt: skip
    assert inner.asked == []


@pytest.mark.parametrize("block", [1, 7, 1 << 16])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["take", "skip", "seek"]), st.integers(0, 300)), max_size=20
    )
)
def test_a_reader_goes_through_the_bytes_as_a_file_does(
    block: int, steps: list[tuple[str, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_READ_BLOCK", block)
        reader, file = ByteReader(BytesSource(DATA, "data"), 3), io.BytesIO(DATA)
        file.seek(3)
        for step, count in steps:
            position = file.tell()
            assert (reader.offset, reader.left) == (position, len(DATA) - position)
            if step == "seek":
                reader.seek(count)
                file.seek(count)
            elif position + count > len(DATA):
                with pytest.raises(FormatError) as caught:
                    getattr(reader, step)(count)
                assert caught.value.offset == position
            elif step == "take":
                assert reader.take(count) == file.read(count)
            else:
                assert reader.skip(count) == position
                file.seek(count, io.SEEK_CUR)


def test_a_reader_stops_at_its_end_and_reads_ahead_no_further() -> None:
    source = Noting()
    reader = ByteReader(source, 10, 30)
    assert reader.take(5) == DATA[10:15]
    assert reader.left == 15
    with pytest.raises(FormatError, match="16 bytes are expected"):
        reader.take(16)
    with pytest.raises(FormatError, match="16 bytes are expected"):
        reader.skip(16)
    assert reader.take(15) == DATA[15:30]
    assert source.asked == [(10, 20)]


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=20))
def test_a_buffered_source_gives_the_same_bytes(cuts: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_READ_BLOCK", 64)
        parent = Noting()
        parent.in_memory = False
        source = Buffered(parent)
        for one, two in cuts:
            start, end = sorted((one, two))
            assert read_bytes(source, start, end - start) == DATA[start:end]
            target = bytearray(end - start)
            source.read_into(start, memoryview(target))
            assert target == DATA[start:end]


def test_small_reads_near_each_other_come_from_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_READ_BLOCK", 100)
    parent = Noting()
    parent.in_memory = False
    source = Buffered(parent)
    for offset in range(0, 300, 10):
        source.view(offset, 10)
    assert parent.asked == [(0, 100), (100, 100), (200, 100)]
    source.view(190, 10)
    source.view(250, 60)  # reaches out of its block
    source.view(900, 10)  # is far from the last, so that a block of it would be wasted
    source.view(10, 10)
    assert parent.asked[3:] == [(250, 60), (900, 10), (10, 10)]
    with pytest.raises(FormatError):
        read_bytes(source, 995, 10)


@pytest.mark.parametrize("block", [1, 2, 5, 1 << 16])
def test_bytes_with_their_count_in_front(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(windows, "_READ_BLOCK", block)
    texts = [b"", b"a", b"x" * 4, b"y" * 255]
    data = b"".join(bytes([len(text)]) + text for text in texts)
    reader = ByteReader(BytesSource(data + b"\x03ab", "data"))
    for text in texts:
        assert reader.take_counted() == text
    with pytest.raises(FormatError, match="3 bytes are expected"):
        reader.take_counted()


@pytest.mark.parametrize("block", [1, 2, 5, 1 << 16])
def test_a_block_has_the_next_bytes_as_far_as_there_are(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(windows, "_READ_BLOCK", block)
    reader = ByteReader(BytesSource(DATA[:7], "data"))
    for index in range(8):
        for count in (0, 1, 2, 3):
            reader.buffer(count)
            assert reader.offset == index
            held = reader.block[reader.position : reader.position + count]
            assert held == DATA[index : min(index + count, 7)]
        if index < 7:
            reader.take(1)


@pytest.mark.parametrize("block", [1, 5, 1 << 16])
def test_lines(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(windows, "_READ_BLOCK", block)
    lines = [b"first", b"", b"x" * 40, b"y" * 41, b"last"]
    reader = ByteReader(BytesSource(b"\n".join(lines) + b"\nno newline", "data"))
    assert [reader.line(100) for _ in lines] == lines
    assert reader.take(2) == b"no"
    with pytest.raises(FormatError, match="bytes are expected here, but the data ends"):
        reader.line(100)


@pytest.mark.parametrize("block", [1, 7, 64])
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 90)), max_size=20))
def test_nothing_is_read_twice(block: int, wanted: list[tuple[bool, int]]) -> None:
    data = b"".join(bytes([65]) * count + b"\n" for _, count in wanted)
    source, position = Noting(data), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_READ_BLOCK", block)
        reader = ByteReader(source)
        for is_line, count in wanted:
            reader.buffer(count % 5)
            found = reader.line(1000) + b"\n" if is_line else reader.take(count + 1)
            assert found == data[position : position + count + 1]
            position += len(found)
    ends = [0, *(offset + length for offset, length in source.asked)]
    assert [offset for offset, _ in source.asked] == ends[:-1]


def test_a_line_without_an_end_is_given_up_and_costs_no_more_than_its_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "_READ_BLOCK", 10)
    source = Noting(bytes(100_000))
    with pytest.raises(FormatError, match=r"exceeds the limit inline_bytes=5000") as caught:
        ByteReader(source, 7).line(5000)
    assert caught.value.offset == 7
    assert sum(length for _, length in source.asked) < 4 * 5000 + 100
