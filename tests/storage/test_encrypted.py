"""Payloads of encrypted files: every range reads the same, every change is refused, memory is bounded."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
from safeweights.storage.source import Held

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    monkeypatch.setattr(encrypted, "_SHARE", 2 * CHUNK_SIZE)
    monkeypatch.setattr(encrypted, "_SHARE_LEAST", CHUNK_SIZE)
    source = opened(LARGE)
    reading = source.reading(10, 3 * CHUNK_SIZE)
    assert (reading.extent, reading.step, reading.least) == tuple(
        count * CHUNK_SIZE for count in (4, 2, 1)
    )
    threads: set[int] = set()
    both = threading.Barrier(2, timeout=30)

    def decrypt(self: object, index: int, target: memoryview) -> None:
        if threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            both.wait()
        good(self, index, target)  # type: ignore[arg-type]

    good = encrypted._Chunks._decrypt
    monkeypatch.setattr(encrypted._Chunks, "_decrypt", decrypt)
    monkeypatch.setattr("safeweights.storage.parallel.thread_count", lambda: 2)
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


# ---------------------------------------------------------------- ciphertext that is used in its place

LONG = hashlib.shake_128(b"long").digest((3 << 20) + 5)
LONG_SEALED = sealed(LONG)


class Holding(BytesSource):
    """Keeps its bytes as they are, and says so or not; counts how often it is asked."""

    def __init__(self, data: bytes | bytearray, *, unchanged: bool = True) -> None:
        super().__init__(data, "held")
        self.unchanged = unchanged
        self.asked = 0
        self.copied = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.copied += len(buffer)
        super().read_into(offset, buffer)

    @contextmanager
    def held(self, offset: int, length: int) -> Iterator[Held | None]:
        self.asked += 1
        yield Held(self.view(offset, length), offset, lambda: self.unchanged)


def test_what_is_held_is_not_copied() -> None:
    source = Holding(b"header" + LONG_SEALED)
    plain = DecryptingSource(source, 6, KEY)
    copied = source.copied
    assert plain.read(0, 3 << 20) == LONG[: 3 << 20]
    assert (source.asked, source.copied) == (1, copied)
    assert plain.read(0, len(LONG)) == LONG
    assert source.asked == 2
    assert plain.read(5, CHUNK_SIZE) == LONG[5 : 5 + CHUNK_SIZE]
    assert source.asked == 2, "small reads are copies"


def test_threads_together_hold_a_bounded_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Holding(LONG_SEALED)
    plain = DecryptingSource(source, 0, KEY)
    for threads, lengths in ((2, [48]), (16, [36]), (24, [24, 24])):
        held: list[int] = []
        real = Holding.held

        def hold(
            self: Holding, offset: int, length: int, held: list[int] = held, real=real
        ) -> object:  # type: ignore[no-untyped-def]
            held.append(length // SEALED)
            return real(self, offset, length)

        with monkeypatch.context() as patch:
            patch.setattr(Holding, "held", hold)
            patch.setattr(encrypted, "thread_count", lambda threads=threads: threads)
            assert plain.read(0, 48 * CHUNK_SIZE) == LONG[: 48 * CHUNK_SIZE]
        assert held == lengths


@pytest.mark.parametrize("changed", [0, 2 * SEALED + 5], ids=["plaintext", "tag"])
def test_what_was_not_held_to_the_end_is_decrypted_again_from_a_copy(
    changed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Holding(LONG_SEALED, unchanged=False)
    plain = DecryptingSource(source, 0, KEY)
    in_place = bytearray(LONG_SEALED)
    if changed:
        in_place[changed] ^= 1  # the tag does not fit: that does not count either
    else:
        good = encrypted._decryption

        def decryption(key: bytes) -> encrypted._Decryption:
            decrypt_into, failed = good(key)

            def both(nonce: bytes, text: memoryview, _: None, into: memoryview) -> None:
                decrypt_into(nonce, text, None, into)
                if text.obj is in_place:  # authenticated, then changed, then decrypted
                    into[:] = bytes(len(into))

            return both, failed

        monkeypatch.setattr(encrypted, "_decryption", decryption)
    source.view = lambda offset, length: memoryview(in_place)[offset : offset + length]  # type: ignore[method-assign]
    source.read_into = lambda offset, buffer: _copy(LONG_SEALED, offset, buffer)  # type: ignore[method-assign]
    assert plain.read(0, len(LONG)) == LONG
    assert source.asked == 1


def _copy(data: bytes, offset: int, buffer: memoryview) -> None:
    buffer[:] = data[offset : offset + len(buffer)]


def test_what_is_held_and_not_authentic_is_an_error_and_leaves_nothing() -> None:
    data = bytearray(LONG_SEALED)
    plain = DecryptingSource(Holding(data), 0, KEY)
    data[16 + 20 * SEALED] ^= 1
    target = memoryview(bytearray(b"x" * len(LONG)))
    with pytest.raises(FormatError, match="chunk 20 "):
        plain.read_into(0, target)
    assert not any(target)


def test_few_reads_are_made_where_each_costs_much() -> None:
    source = CountingSource(LONG_SEALED)
    source.gap = 1 << 18  # as of a remote file, where each is a request
    plain = DecryptingSource(source, 0, KEY)
    source.reads.clear()
    assert plain.read(0, 40 * CHUNK_SIZE) == LONG[: 40 * CHUNK_SIZE]
    assert source.reads == [(16, 40 * SEALED)]


@pytest.fixture
def long_file(tmp_path: Path) -> Path:
    path = tmp_path / "a.age"
    path.write_bytes(LONG_SEALED)
    with open_source(path, backend="pread").held(0, len(LONG_SEALED)) as held:
        if held is None:
            pytest.skip("the system gives no leases here, or cannot say what is in the page cache")
    return path


WRITER = """
import sys
path, begin, data = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
print("ready", flush=True)
with open(path, "r+b") as file:  # waits until the lease is returned
    file.seek(begin)
    file.write(data)
"""


@pytest.mark.parametrize("number", [1, 45])
def test_a_program_that_writes_meanwhile_gives_no_plaintext_that_is_not_authentic(
    long_file: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DecryptingSource(open_source(long_file, backend="pread"), 0, KEY)
    begin = 16 + number * SEALED
    calls: list[bool] = []
    writers: list[subprocess.Popen[str]] = []
    good = Held.is_held

    def view(held: Held, offset: int, length: int) -> memoryview:
        if not writers:
            arguments = [str(long_file), str(begin), bytes(64).hex()]
            writers.append(
                subprocess.Popen(
                    [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True
                )
            )
            while good(held):  # until it wants to write
                pass
            assert writers[0].poll() is None, "it waits"
        return held._memory[offset - held._offset :][:length]

    def is_held(held: Held) -> bool:
        calls.append(good(held))
        return calls[-1]

    monkeypatch.setattr(Held, "view", view)
    monkeypatch.setattr(Held, "is_held", is_held)
    target = memoryview(bytearray(b"x" * len(LONG)))
    # The writer goes on before or after the copy is made: either all of the old contents, or an error.
    with suppress(FormatError):
        plain.read_into(0, target)
    assert bytes(target) in {LONG, bytes(len(LONG))}
    assert calls == [False]
    writers[0].communicate()
    assert writers[0].returncode == 0
    with pytest.raises(FormatError, match=f"chunk {number} "):
        plain.read(0, len(LONG))


def test_a_file_that_is_open_for_writing_is_copied(
    long_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Held, "view", None)  # would raise
    with long_file.open("r+b"):
        plain = DecryptingSource(open_source(long_file, backend="pread"), 0, KEY)
        assert plain.read(0, len(LONG)) == LONG


def test_a_file_that_was_cut_off_after_it_was_opened_is_an_error(long_file: Path) -> None:
    plain = DecryptingSource(open_source(long_file, backend="pread"), 0, KEY)
    os.truncate(long_file, 2 << 20)
    with pytest.raises(TruncatedError):
        plain.read(0, len(LONG))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork(2)")
def test_threads_and_forked_processes_decrypt_in_place(long_file: Path) -> None:
    plain = DecryptingSource(open_source(long_file, backend="pread"), 0, KEY)

    def read(_: int) -> bool:
        return plain.read(0, len(LONG)) == LONG

    child = os.fork()
    if not child:  # pragma: no cover
        os._exit(0 if all(map(read, range(16))) else 1)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(16)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(os.open(long_file, os.O_RDWR | os.O_NONBLOCK))  # no lease is left


def test_a_file_that_changes_all_the_time_gives_its_contents_or_an_error(long_file: Path) -> None:
    stop = threading.Event()
    changed = bytearray(LONG_SEALED)
    for at in range(16 + SEALED, len(changed), SEALED):
        changed[at] ^= 1

    def attack() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            with long_file.open("r+b", buffering=0) as file:
                if turn % 3 == 2:
                    file.truncate(1 << 20)
                file.write(LONG_SEALED if turn % 3 == 0 else changed)

    found: Counter[str] = Counter()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(attack)
        try:
            while found.total() < 100 or len(found) < 2:
                assert found.total() < 20_000, found
                target = memoryview(bytearray(b"x" * len(LONG)))
                try:
                    plain = DecryptingSource(open_source(long_file, backend="pread"), 0, KEY)
                    plain.read_into(0, target)
                except (FormatError, TruncatedError):
                    assert bytes(target) in {b"x" * len(LONG), bytes(len(LONG))}
                    found["refused"] += 1
                else:
                    assert target == LONG, "plaintext that is not authentic"
                    found["accepted"] += 1
        finally:
            stop.set()
        running.result()


@pytest.mark.parametrize("unchanged", [True, False])
def test_plaintext_that_is_held_is_encrypted_in_its_place(*, unchanged: bool) -> None:
    source = Holding(LONG, unchanged=unchanged)
    data = b"".join(map(bytes, encrypting(source, KEY)))
    assert opened(data).read(0, len(LONG)) == LONG
    assert source.asked == 1
    assert source.copied == (0 if unchanged else len(LONG))


def test_a_file_that_changes_while_it_is_encrypted_is_encrypted_as_it_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is returned was made of a copy: no piece of what was seen before the change."""
    source = Holding(bytes(len(LONG)), unchanged=False)
    monkeypatch.setattr(source, "read_into", lambda offset, buffer: _copy(LONG, offset, buffer))
    data = b"".join(map(bytes, encrypting(source, KEY)))
    assert opened(data).read(0, len(LONG)) == LONG


def test_files_are_encrypted_in_their_mapping(
    long_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = open_source(long_file, backend="pread")
    monkeypatch.setattr(type(plain), "read_into", None)  # would raise
    data = b"".join(map(bytes, encrypting(plain, KEY)))
    monkeypatch.undo()
    assert opened(data).read(0, len(LONG_SEALED)) == LONG_SEALED
