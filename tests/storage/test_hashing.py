"""The SHA-256 of a source: read once, in order, whatever its size, and given up on request."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

import pytest

from safeweights.storage import BytesSource, Source, TruncatedError, hashing
from safeweights.storage.hashing import sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

STEP = 1000


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hashing, "RUN", STEP)
    before = threading.active_count()
    yield
    assert threading.active_count() == before


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
