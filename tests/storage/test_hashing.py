"""SHA-256 beside other work: read once, in order, whatever the size, and given up on request."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from new_threads import threads_since_now
from safeweights.storage import (
    BytesSource,
    Run,
    Source,
    TruncatedError,
    background,
    hashing,
    open_source,
)
from safeweights.storage.hashing import Hashing, sha256
from safeweights.storage.source import Held

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STEP = 1000


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hashing, "RUN", STEP)
    monkeypatch.setattr(hashing, "_TOGETHER", STEP)
    monkeypatch.setattr(hashing, "_BACKLOG", 3 * STEP)
    started = threads_since_now()
    yield
    assert not started()


class Once(Source):
    """Notes what is read; its bytes become others when they are read again."""

    def __init__(self, data: bytes) -> None:
        self.name = "once"
        self.size = len(data)
        self._data = bytearray(data)
        self.reads: list[tuple[int, int]] = []

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads.append((offset, len(buffer)))
        buffer[:] = self._data[offset : offset + len(buffer)]
        self._data[offset : offset + len(buffer)] = bytes(len(buffer))


def test_the_digest_alone() -> None:
    data = hashlib.shake_128(b"x").digest(5 * STEP)
    assert sha256(Once(data)) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("also", [False, True])
@pytest.mark.parametrize("size", [0, 1, STEP, STEP + 1, 2 * STEP, 7 * STEP + 13])
def test_the_digest_and_all_who_look(size: int, also: bool, into: bool) -> None:
    data = hashlib.shake_128(b"x").digest(size)
    source, seen, told = Once(data), bytearray(), []
    memory = memoryview(bytearray(size)) if into else None
    digest = sha256(source, into=memory, also=seen.extend if also else None, progress=told.append)
    assert digest == hashlib.sha256(data).hexdigest()
    assert seen == (data if also else b"")
    assert memory is None or memory == data
    runs = [(begin, min(STEP, size - begin)) for begin in range(0, max(size, 1), STEP)]
    assert source.reads == runs
    assert told == ([begin + length for begin, length in runs] if size else [])


class Holding(Once):
    """Parts of it can be held; `broken` is the first that changes while it is."""

    def __init__(self, data: bytes, *, broken: int | None = None, none: int | None = None) -> None:
        super().__init__(data)
        self.held_parts: list[tuple[int, int]] = []
        self._broken, self._none = broken, none

    @contextmanager
    def held(self, offset: int, length: int) -> Iterator[Held | None]:
        number = len(self.held_parts)
        self.held_parts.append((offset, length))
        data = bytes(self._data[offset : offset + length])
        if number == self._broken:
            data = bytes(length)
        view = memoryview(data)
        yield None if number == self._none else Held(view, offset, lambda: number != self._broken)


@pytest.mark.parametrize(
    ("options", "parts", "reads"),
    [({}, 7, 0), ({"none": 0}, 1, 7), ({"none": 4}, 5, 3), ({"broken": 4}, 5, 3)],
)
def test_what_can_be_held_is_not_read(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, int], parts: int, reads: int
) -> None:
    data = hashlib.shake_128(b"x").digest(6 * STEP + 13)
    source, told = Holding(data, **options), []
    assert sha256(source, progress=told.append) == hashlib.sha256(data).hexdigest()
    assert len(source.held_parts) == parts
    assert len(source.reads) == reads
    assert told == sorted(told)
    assert told[-1] == len(data)
    for others in ({"also": lambda _: None}, {"into": memoryview(bytearray(len(data)))}):
        source = Holding(data)
        assert sha256(source, **others) == hashlib.sha256(data).hexdigest()  # type: ignore[arg-type]
        assert not source.held_parts, "all who look are to see the same bytes"


def test_a_file_in_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "RUN", 1 << 14)
    data = hashlib.shake_128(b"x").digest(100_000)
    (tmp_path / "a").write_bytes(data)
    source = open_source(tmp_path / "a", backend="pread")
    with source.held(0, len(data)) as held:
        if held is None:
            pytest.skip("the system gives no leases here, or cannot say what is in the page cache")
    reads: list[int] = []
    real = source.read_into

    def noted(offset: int, buffer: memoryview) -> None:
        reads.append(offset)
        real(offset, buffer)

    monkeypatch.setattr(source, "read_into", noted)
    assert sha256(source) == hashlib.sha256(data).hexdigest()
    assert not reads
    with (tmp_path / "a").open("r+b"):  # no lease is given while it can be written to
        assert sha256(source) == hashlib.sha256(data).hexdigest()
    assert len(reads) == 7
    os.truncate(tmp_path / "a", 50_000)
    with pytest.raises(TruncatedError):
        sha256(source)


def test_errors_end_it() -> None:
    class Short(BytesSource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            if offset >= 2 * STEP:
                raise TruncatedError("it ends")
            super().read_into(offset, buffer)

    source = Short(bytes(5 * STEP))
    told: list[int] = []
    with pytest.raises(TruncatedError):
        sha256(source, progress=told.append)
    assert told == [STEP, 2 * STEP]

    def refuse(data: memoryview) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sha256(source, also=refuse)

    def give_up(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sha256(source, progress=give_up)


# --- bytes on their way elsewhere


@pytest.mark.parametrize("also", [False, True])
@pytest.mark.parametrize("sizes", [[], [0], [1] * 2500, [STEP], [5 * STEP, 0, 3], [999, 999, 7000]])
def test_the_digest_of_what_passes(sizes: list[int], also: bool) -> None:
    pieces = [hashlib.shake_128(b"%d" % number).digest(size) for number, size in enumerate(sizes)]
    seen = bytearray()
    with Hashing(seen.extend if also else None) as digest:
        passed = list(digest.passing(pieces))
        assert digest.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()
        assert digest.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()
    assert passed == pieces
    assert seen == (b"".join(pieces) if also else b"")


def test_pieces_of_any_type_and_runs_pass(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    run = Run(open_source(tmp_path / "file", backend="pread"), 10, 50)  # type: ignore[arg-type]
    numbers = memoryview(b"abcdefgh").cast("H", (2, 2))
    with Hashing() as digest:
        passed = b"".join(digest.passing([numbers, run, bytearray(b"x")]))
        assert passed == b"abcdefgh" + bytes(range(10, 60)) + b"x"
        assert digest.hexdigest() == hashlib.sha256(passed).hexdigest()


def test_the_caller_waits_when_too_much_is_not_hashed() -> None:
    """Of endless pieces, those that may wait are a few: memory is bounded."""
    go_on = threading.Semaphore(0)
    taken: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(20):
            taken.append(number)
            yield bytes(STEP)

    with Hashing(lambda _: go_on.acquire()) as digest:
        writer = threading.Thread(target=lambda: list(digest.passing(pieces())))
        writer.start()
        for allowed in range(1, 17):
            while len(taken) < 3 + allowed:
                time.sleep(0.001)
            time.sleep(0.002)
            assert len(taken) == 3 + allowed
            go_on.release()
        for _ in range(4):
            go_on.release()
        writer.join()
        assert digest.hexdigest() == hashlib.sha256(bytes(20 * STEP)).hexdigest()


def test_what_looks_may_refuse() -> None:
    def refuse(data: memoryview) -> None:
        raise ZeroDivisionError

    with Hashing(refuse) as digest:
        digest.update(b"abc")
        with pytest.raises(ZeroDivisionError):
            digest.hexdigest()
    with Hashing(refuse) as digest, pytest.raises(ZeroDivisionError):
        list(digest.passing([bytes(STEP)] * 9))


def test_a_digest_that_is_given_up_leaves_no_thread() -> None:
    with pytest.raises(KeyError), Hashing() as digest:
        digest.update(bytes(9 * STEP))
        raise KeyError


def test_without_threads_the_caller_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background.Background, "_start_one", lambda _: False)
    with Hashing() as digest:
        assert list(digest.passing([bytes(STEP)] * 9)) == [bytes(STEP)] * 9
        assert digest.hexdigest() == hashlib.sha256(bytes(9 * STEP)).hexdigest()
