"""Payloads of encrypted files: every range reads the same, every change is refused, memory is bounded."""

from __future__ import annotations

import hashlib
import tracemalloc
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("cryptography")

from safeweights.errors import FormatError, MissingDependencyError
from safeweights.storage import BytesSource, TruncatedError, encrypted, open_source, write_file
from safeweights.storage.blocks import BlockSource
from safeweights.storage.encrypted import (
    CHUNK_SIZE,
    DecryptingSource,
    derive_key,
    encrypted_size,
    encrypting,
    need_cryptography,
)

if TYPE_CHECKING:
    from pathlib import Path

    from safeweights.storage import Source

KEY = bytes(range(16))
SEALED = CHUNK_SIZE + 16
SIZES = (0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 5 * CHUNK_SIZE, 5 * CHUNK_SIZE + 7)
CONTENT = hashlib.shake_128(b"content").digest(max(SIZES))


def sealed(data: bytes, key: bytes = KEY) -> bytes:
    return b"".join(map(bytes, encrypting(BytesSource(data), key)))


def opened(data: bytes, begin: int = 0) -> DecryptingSource:
    return DecryptingSource(BytesSource(data, "file"), begin, KEY)


class CountingSource(BytesSource):
    """Records which bytes are read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "counted")
        self.reads: list[tuple[int, int]] = []

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads.append((offset, len(buffer)))
        super().read_into(offset, buffer)


LARGE = sealed(CONTENT)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_encrypted_reads_the_same(size: int) -> None:
    data = sealed(CONTENT[:size])
    assert len(data) == encrypted_size(size)
    source = opened(b"header" + data, 6)
    assert source.size == size
    assert bytes(source.view(0, size)) == CONTENT[:size]
    assert source.read(0, size) == CONTENT[:size]


@given(st.integers(0, len(CONTENT)), st.integers(0, len(CONTENT)))
def test_every_range_reads_the_same(begin: int, end: int) -> None:
    begin, end = sorted((begin, end))
    source = opened(LARGE)
    assert source.read(begin, end - begin) == CONTENT[begin:end]
    assert bytes(source.view(begin, end - begin)) == CONTENT[begin:end]


def test_a_large_read_is_shared_among_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safeweights.storage.blocks.CHUNK", CHUNK_SIZE)
    source = opened(LARGE)
    reading = source.reading(10, 3 * CHUNK_SIZE)
    assert reading.extent > reading.step
    assert bytes(source.view(10, 3 * CHUNK_SIZE)) == CONTENT[10 : 10 + 3 * CHUNK_SIZE]


def test_a_tensor_costs_its_chunks_and_the_last_one() -> None:
    counted = CountingSource(LARGE)
    source = DecryptingSource(counted, 0, KEY)
    first = [offset for offset, _ in counted.reads]
    assert first == [0, 16 + 5 * SEALED]  # the nonce, and the end, which is proved first
    counted.reads.clear()
    source.read(CHUNK_SIZE + 5, CHUNK_SIZE)
    source.read(CHUNK_SIZE + 5, 10)  # the same chunk again
    assert counted.reads == [(16 + SEALED, SEALED), (16 + 2 * SEALED, SEALED)]
    source.read(5 * CHUNK_SIZE, 7)  # the last chunk is known
    assert len(counted.reads) == 2


@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE, CHUNK_SIZE + 1])
def test_every_cut_is_refused(size: int) -> None:
    data = sealed(CONTENT[:size])
    lengths = {
        0,
        1,
        15,
        16,
        17,
        31,
        32,
        SEALED,
        SEALED + 15,
        SEALED + 16,
        SEALED + 17,
        len(data) - 1,
    }
    for length in sorted(each for each in lengths if each < len(data)):
        with pytest.raises(FormatError) as caught:
            opened(data[:length])
        assert caught.value.rule == "age-payload"
        assert caught.value.path == "file"


@pytest.mark.parametrize("block", [1 << 12, 1 << 18, 1 << 20])
def test_blocks_of_the_encrypted_file_are_fetched_once_and_whole(block: int) -> None:
    content = hashlib.shake_128(b"long").digest(40 * CHUNK_SIZE + 5)
    data = b"head" + sealed(content)
    fetched: list[tuple[int, int]] = []
    copied: list[int] = []

    def fetch(first: int, target: memoryview) -> None:
        fetched.append((first * block, first * block + len(target)))
        target[:] = data[first * block : first * block + len(target)]

    class Blocks(BlockSource):
        def _allocate(self, nbytes: int) -> memoryview:
            copied.append(nbytes)
            return super()._allocate(nbytes)

    source = DecryptingSource(Blocks("blocks", len(data), block, fetch), 4, KEY)
    fetched.clear()
    copied.clear()
    assert source.read(3 * CHUNK_SIZE, 20 * CHUNK_SIZE) == content[3 * CHUNK_SIZE : 23 * CHUNK_SIZE]
    fetched.sort()
    assert all(end == begin for (_, end), (begin, _) in pairwise(fetched))
    assert len(copied) <= 2  # the first and the last, of which only a part is needed


def test_trailing_bytes_are_refused() -> None:
    for more in (b"a", bytes(16), bytes(SEALED), LARGE[-23:]):
        with pytest.raises(FormatError, match=r"not authentic|cut off|empty"):
            opened(LARGE + more)


def test_a_change_is_refused_where_it_is_and_leaves_nothing() -> None:
    changed = bytearray(LARGE)
    changed[16 + 2 * SEALED + 100] ^= 1
    source = opened(bytes(changed))
    assert source.read(0, 2 * CHUNK_SIZE) == CONTENT[: 2 * CHUNK_SIZE]
    target = bytearray(b"x" * 4 * CHUNK_SIZE)
    with pytest.raises(
        FormatError, match="chunk 2 of the encrypted file is not authentic"
    ) as caught:
        source.read_into(CHUNK_SIZE, memoryview(target))
    assert caught.value.offset == 16 + 2 * SEALED
    assert not any(target)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 4), (3, 4)])
def test_swapped_chunks_are_refused(one: int, other: int) -> None:
    pieces = [LARGE[16 + at * SEALED :][:SEALED] for at in range(5)]
    pieces[one], pieces[other] = pieces[other], pieces[one]
    source = opened(LARGE[:16] + b"".join(pieces) + LARGE[16 + 5 * SEALED :])
    for index in (one, other):
        with pytest.raises(FormatError, match=f"chunk {index} "):
            source.read(index * CHUNK_SIZE, 1)


def test_a_removed_chunk_is_refused_at_the_end() -> None:
    with pytest.raises(FormatError, match=r"chunk 4 .* as its last"):
        opened(LARGE[: 16 + 2 * SEALED] + LARGE[16 + 3 * SEALED :])


def test_another_key_is_refused() -> None:
    with pytest.raises(FormatError, match="not authentic as its last"):
        DecryptingSource(BytesSource(LARGE), 0, bytes(16))
    with pytest.raises(FormatError, match="not authentic as its last"):
        DecryptingSource(BytesSource(sealed(b"")), 0, bytes(16))


def test_every_file_has_its_own_nonce() -> None:
    assert sealed(b"same") != sealed(b"same")


def test_a_key_is_not_shown() -> None:
    key = encrypted.new_file_key()
    assert len(key) == 16
    assert (repr(key), str(key), f"{key}") == ("Secret(...)",) * 3
    assert repr(derive_key(key, b"", b"")) == "Secret(...)"


def test_a_read_beyond_the_end_is_an_error() -> None:
    with pytest.raises(TruncatedError):
        opened(LARGE).read(len(CONTENT), 1)


def test_older_versions_of_cryptography_work(monkeypatch: pytest.MonkeyPatch) -> None:
    aead = need_cryptography("hazmat.primitives.ciphers.aead").ChaCha20Poly1305

    class Older:
        def __init__(self, key: bytes) -> None:
            self._new = aead(key)

        def encrypt(self, nonce: bytes, data: bytes, more: None) -> bytes:
            return bytes(self._new.encrypt(nonce, data, more))

        def decrypt(self, nonce: bytes, data: bytes, more: None) -> bytes:
            return bytes(self._new.decrypt(nonce, data, more))

    monkeypatch.setattr(encrypted, "_cipher", Older)
    assert opened(LARGE).read(0, len(CONTENT)) == CONTENT
    assert opened(sealed(CONTENT)).read(0, len(CONTENT)) == CONTENT


def test_without_the_package_the_error_names_the_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"safeweights\[encryption\]"):
        need_cryptography("no_such_module")


def test_derived_keys_are_those_of_rfc_5869() -> None:
    # Test case 3 of the RFC, whose first 32 bytes are these.
    assert derive_key(b"\x0b" * 22, b"", b"").hex().startswith("8da4e775a563c18f715f802a063c5a31")


@pytest.mark.parametrize("size", [0, (20 << 20) + 5])
def test_writing_tells_its_progress_and_needs_no_more_memory_than_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(encrypted, "_PIECE", 1 << 20)
    monkeypatch.setattr(encrypted, "thread_count", lambda: 2)
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(size))
    source = open_source(str(plain), backend="pread")
    told: list[int] = []
    sealed(bytes(2 << 20))  # imports what is needed for large memory
    tracemalloc.start()
    write_file(tmp_path / "sealed", encrypting(source, KEY, told.append))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 14 << 20  # of which 8 MiB are what the sink writes at a time
    assert told == [*range(1 << 20, size, 1 << 20), size]
    found = DecryptingSource(open_source(str(tmp_path / "sealed")), 0, KEY)
    assert found.read(0, size) == bytes(size)


def test_a_file_that_shrinks_while_it_is_encrypted_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "plain"
    path.write_bytes(bytes(100_000))
    source = open_source(str(path), backend="pread")
    path.write_bytes(b"short")
    with pytest.raises(TruncatedError):
        write_file(tmp_path / "sealed", encrypting(source, KEY))
    assert not (tmp_path / "sealed").exists()


def test_large_tensors_of_any_size_are_in_memory_that_is_not_swapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def allocate(nbytes: int) -> memoryview:
        asked.append(nbytes)
        return memoryview(bytearray(nbytes))

    monkeypatch.setattr(encrypted, "allocate_secret", allocate)
    source = opened(LARGE)
    assert bytes(source.view(CHUNK_SIZE, 2 * CHUNK_SIZE)) == CONTENT[CHUNK_SIZE : 3 * CHUNK_SIZE]
    monkeypatch.setattr("safeweights.storage.blocks.CHUNK", CHUNK_SIZE)
    source.view(CHUNK_SIZE, 3 * CHUNK_SIZE)
    assert asked == [2 * CHUNK_SIZE, 3 * CHUNK_SIZE]


def test_a_writer_that_stops_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encrypted, "_PIECE", CHUNK_SIZE)
    pieces = encrypting(BytesSource(CONTENT), KEY)
    next(pieces)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(pieces)


def test_ciphertext_that_changes_while_it_is_read_gives_what_was_read_or_an_error() -> None:
    """A cipher reads ciphertext twice, so it must not be in memory that others can write to."""
    writable = bytearray(LARGE)

    class Changing(BytesSource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            super().read_into(offset, buffer)
            writable[offset : offset + len(buffer)] = bytes(len(buffer))

    source: Source = DecryptingSource(Changing(writable, "changing"), 0, KEY)
    assert source.read(0, CHUNK_SIZE) == CONTENT[:CHUNK_SIZE]
    with pytest.raises(FormatError, match="chunk 1 "):
        writable[16 + SEALED : 16 + 2 * SEALED] = bytes(SEALED)
        source.read(CHUNK_SIZE, 1)
