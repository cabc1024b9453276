"""Compressed streams: the same bytes in any order, damage and bombs refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import re
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from safeweights.errors import FormatError
from safeweights.storage import BytesSource, inflating
from safeweights.storage.inflating import CODECS, InflatedSource, inflated_head, spooled
from safeweights.storage.limits import DEFAULT_LIMITS, Limits, exceeded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BLOCK = 1000
DATA = b"".join(bytes([number % 251]) * (number % 17) for number in range(6000))


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "deflate": deflate, "zlib": zlib.compress, "gzip": gzip.compress, "bz2": bz2.compress,
    "lzma": lzma.compress,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflating, "_BLOCK", BLOCK)


@pytest.fixture(params=PACK)
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def source_of(codec: str) -> InflatedSource:
    packed = BytesSource(PACK[codec](DATA), "packed")
    return InflatedSource(packed, codec, len(DATA), "x", zlib.crc32(DATA))


def test_every_codec_is_tested() -> None:
    assert PACK.keys() == CODECS.keys()


def test_any_order_of_reads_gives_the_bytes(codec: str) -> None:
    source = source_of(codec)
    assert source.view(0, source.size) == DATA
    chance = random.Random(1)
    for _ in range(50):
        begin = chance.randrange(len(DATA))
        length = chance.randrange(min(3 * BLOCK, len(DATA) - begin) + 1)
        assert source.read(begin, length) == DATA[begin : begin + length]
    assert source.read(len(DATA), 0) == b""


def test_reading_forward_inflates_once(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(codec)
    streams = []
    make = CODECS[codec]
    monkeypatch.setitem(CODECS, codec, lambda: (streams.append(1), make())[1])
    for begin in range(0, len(DATA) - 100, 100):
        source.read(begin, 100)
    source.read(len(DATA) - 150, 150)
    assert streams == []
    source.read(0, 1)
    assert streams == [1]


def test_many_threads_share_a_stream(codec: str) -> None:
    source = source_of(codec)

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(20):
            begin = chance.randrange(len(DATA) - 200)
            assert source.read(begin, 200) == DATA[begin : begin + 200]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


@pytest.mark.parametrize("size", [1, BLOCK, 2 * BLOCK, len(DATA) - 1, len(DATA) + 1])
@pytest.mark.parametrize("data", [DATA, DATA[: 3 * BLOCK]], ids=["any length", "whole blocks"])
def test_the_declared_size_must_be_right(codec: str, data: bytes, size: int) -> None:
    """Where a block ends with the declared size, too; with the checksum of the first bytes."""
    message = (
        f"to {len(data)} bytes, not {size}" if size > len(data) else "to more than the declared"
    )
    packed = BytesSource(PACK[codec](data), "packed")
    for crc in (zlib.crc32(data[:size]), None):
        with pytest.raises(FormatError, match=message) as caught:
            InflatedSource(packed, codec, size, "x", crc).read(0, size)
        assert (caught.value.rule, caught.value.path) == ("compressed-data", "x")


def test_a_stream_ends_with_its_data(codec: str) -> None:
    packed = PACK[codec](DATA)
    for more in (b"?", bytes(2 * BLOCK)):
        source = InflatedSource(BytesSource(packed + more, "packed"), codec, len(DATA), "x")
        assert source.read(0, BLOCK) == DATA[:BLOCK]
        with pytest.raises(FormatError, match="goes on after the end of its stream"):
            source.read(0, len(DATA))
    source = InflatedSource(BytesSource(packed[:-1], "packed"), codec, len(DATA), "x")
    with pytest.raises(FormatError, match=r"ends before its stream does|inflates to"):
        source.read(0, len(DATA))


def test_a_read_outside_is_refused_before_anything_is_inflated(codec: str) -> None:
    source = InflatedSource(BytesSource(b"not a stream", "packed"), codec, 100, "x")
    for offset, length in [(0, 101), (100, 1)]:
        with pytest.raises(FormatError, match="the data ends at byte 100"):
            source.read_into(offset, memoryview(bytearray(length)))


def test_a_checksum_is_optional_and_must_be_right(codec: str) -> None:
    packed = BytesSource(PACK[codec](DATA), "packed")
    assert InflatedSource(packed, codec, len(DATA), "x").read(0, len(DATA)) == DATA
    wrong = InflatedSource(packed, codec, len(DATA), "x", zlib.crc32(DATA) ^ 1)
    assert wrong.read(0, BLOCK) == DATA[:BLOCK]  # the checksum covers all of it
    with pytest.raises(FormatError, match="does not match its CRC-32 checksum"):
        wrong.read(0, len(DATA))


def test_damage_anywhere_is_an_error_of_ours(codec: str) -> None:
    packed = PACK[codec](DATA)
    for cut in (0, 1, len(packed) // 2, len(packed) - 1):
        for parent in (packed[:cut], packed[:cut] + b"\xff\x00\xff" + packed[cut + 3 :]):
            source = InflatedSource(
                BytesSource(parent, "packed"), codec, len(DATA), "x", zlib.crc32(DATA)
            )
            with pytest.raises(FormatError, match="the compressed data") as caught:
                source.read(0, len(DATA))
            assert caught.value.rule == "compressed-data"


# ---- streams of unknown size


def test_a_spooled_stream_is_a_file_without_a_name(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for data in (DATA, b""):
        source = spooled(BytesSource(PACK[codec](data), "packed"), codec, "x")
        assert (source.name, source.size, source.in_memory) == ("x", len(data), False)
        assert source.read(0, len(data)) == data
    assert source.read(0, 0) == b""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("last", range(1, 20))
def test_wherever_the_last_read_begins(
    codec: str, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the checksum, for one: it gives no data, and is the end all the same."""
    packed = PACK[codec](DATA[:500])
    monkeypatch.setattr(inflating, "_BLOCK", len(packed) - last)
    source = spooled(BytesSource(packed, "packed"), codec, "x")
    assert source.read(0, source.size) == DATA[:500]
    source = InflatedSource(BytesSource(packed, "packed"), codec, 500, "x")
    assert source.read(0, 500) == DATA[:500]


def test_what_follows_a_stream_is_refused(codec: str) -> None:
    packed = PACK[codec](DATA)
    for more in (b"?", bytes(3 * BLOCK)):
        with pytest.raises(FormatError, match="other data follows") as caught:
            spooled(BytesSource(packed + more, "packed"), codec, "x")
        assert caught.value.offset == len(packed)


def test_a_stream_that_is_cut_is_refused(codec: str) -> None:
    packed = PACK[codec](DATA)
    with pytest.raises(FormatError, match="but the data ends at byte"):
        spooled(BytesSource(packed[:-1], "packed"), codec, "x")
    with pytest.raises(FormatError, match="is damaged"):
        spooled(BytesSource(b"\xff" * 100, "packed"), codec, "x")


def test_a_bomb_is_given_up(codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    packed = BytesSource(PACK[codec](bytes(1 << 20)), "packed")
    for limits, name in (
        (Limits(inflated_bytes=100_000), "inflated_bytes=100000"),
        (Limits(inflation_ratio=2, inflation_floor_bytes=50_000), "inflation_ratio=2"),
    ):
        with pytest.raises(FormatError, match=f"exceeds the limit {name}"):
            spooled(packed, codec, "x", limits)
    assert spooled(packed, codec, "x").size == 1 << 20  # below the floor of the ratio
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("count", [1, BLOCK, 3 * BLOCK, len(DATA), len(DATA) + 1])
def test_the_head_of_a_stream(codec: str, count: int) -> None:
    assert inflated_head(BytesSource(PACK[codec](DATA)), codec, count) == DATA[:count]


def test_the_head_of_what_is_no_stream_or_is_damaged(codec: str) -> None:
    for data in (b"\xff" * 100, b"\xff" * 20 * BLOCK):
        assert inflated_head(BytesSource(data), codec, 10) is None
    assert inflated_head(BytesSource(b""), codec, 10) == b""
    noise = random.Random(1).randbytes(50 * BLOCK)
    packed = bytearray(PACK[codec](noise))
    packed[len(packed) // 2 :] = b"\xff" * len(packed)
    head = inflated_head(BytesSource(bytes(packed)), codec, 40 * BLOCK)
    assert head is None or noise.startswith(head[:BLOCK])


def test_little_is_read_for_a_head() -> None:
    class Noting(BytesSource):
        most = 0

        def view(self, offset: int, length: int) -> memoryview:
            self.most = max(self.most, offset + length)
            return super().view(offset, length)

    packed = Noting(PACK["bz2"](random.Random(1).randbytes(100 * BLOCK)))  # one block of bzip2
    assert inflated_head(packed, "bz2", 10) == b""
    assert packed.most == 16 * BLOCK


# ---- limits


def test_a_limit_is_at_least_one() -> None:
    assert Limits() == DEFAULT_LIMITS
    with pytest.raises(ValueError, match="limit 'depth' must be at least 1"):
        Limits(depth=0)


def test_what_parts_of_a_file_spend_together_is_counted() -> None:
    each = Limits(opcodes=10)
    for _ in range(3):
        each.spend("opcodes", 10, None)  # by default every stream has the whole of it
    shared = each.counted()
    shared.spend("opcodes", 7, None)
    assert (shared.left("opcodes"), shared.left("depth"), each.left("opcodes")) == (3, 500, 10)
    with pytest.raises(FormatError, match="opcodes=10"):
        shared.spend("opcodes", 4, "x")
    shared.count("opcodes", 4)
    assert shared.left("opcodes") == -1


def test_the_error_says_how_to_raise_a_limit() -> None:
    error = exceeded("inline_bytes", 7, "x.pt", 3)
    assert (error.rule, error.path, error.offset) == ("limit-inline-bytes", "x.pt", 3)
    assert re.search(r"--limit inline_bytes=NUMBER", str(error))
