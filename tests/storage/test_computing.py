"""Bytes that threads compute while they are written: in files, in streams, and when something fails."""

from __future__ import annotations

import errno
import io
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from safeweights.errors import FormatError, SafetensorError
from safeweights.storage import (
    Computed,
    MemoryStore,
    Run,
    computing,
    open_source,
    sink,
    write_file,
    write_stream,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def piece(data: bytes, check: Callable[[], object] = lambda: None) -> Computed:
    """`data` as if it was computed; `check` is called when all of it was made."""

    def blocks(memory: memoryview) -> Iterator[memoryview]:
        for begin in range(0, len(data), len(memory)):
            block = memory[: min(len(memory), len(data) - begin)]
            block[:] = data[begin : begin + len(memory)]
            yield block
            block[:] = bytes(
                len(block)
            )  # it may be overwritten as soon as the next one is asked for
        check()

    def read_into(memory: memoryview) -> None:
        memory[:] = data
        check()

    return Computed(len(data), blocks, read_into)


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "_UNIT", 1000)
    monkeypatch.setattr(computing, "_WHOLE", 1000)
    monkeypatch.setattr(computing, "_TOGETHER", 1500)


SIZES = (10, 0, 300, 5000, 1000, 1001, 1, 0, 900, 200, 1501)
DATA = [bytes([number + 1]) * size for number, size in enumerate(SIZES)]


def mixed(tmp_path: Path) -> tuple[list[Any], bytes]:
    """Pieces of all kinds, and their bytes."""
    (tmp_path / "source").write_bytes(bytes(range(200)))
    run = Run(open_source(tmp_path / "source", backend="pread"), 5, 100)
    computed = [piece(data) for data in DATA]
    whole = b"".join(DATA)
    pieces = [b"<", *computed, b"", run, *computed, b">" * 5000, *computed]
    return pieces, b"<" + whole + bytes(range(5, 105)) + whole + b">" * 5000 + whole


@pytest.mark.parametrize("durable", [False, True])
def test_files(tmp_path: Path, durable: bool) -> None:
    pieces, expected = mixed(tmp_path)
    seen: list[int] = []
    size = 1 << 20  # from which space is reserved
    write_file(tmp_path / "a", pieces, size=size, durable=durable, progress=seen.append)
    assert (tmp_path / "a").read_bytes() == expected
    assert seen == sorted(seen)
    assert seen[-1] == len(expected)


def test_streams_and_stores(tmp_path: Path) -> None:
    pieces, expected = mixed(tmp_path)
    stream = io.BytesIO()
    write_stream(stream, pieces)
    assert stream.getvalue() == expected
    store = MemoryStore()
    with store.commit() as commit:
        commit.write("a", pieces)
    assert store.open("a").read(0, len(expected)) == expected


def test_a_system_without_writes_at_a_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces, expected = mixed(tmp_path)
    monkeypatch.delattr(os, "pwrite")
    write_file(tmp_path / "a", pieces)
    assert (tmp_path / "a").read_bytes() == expected


def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:7], at))
    write_file(tmp_path / "a", [b"x", *(piece(data) for data in DATA), b"y"])
    assert (tmp_path / "a").read_bytes() == b"x" + b"".join(DATA) + b"y"


def test_durable_writes_bypass_the_cache_at_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def pwritev(file: int, batch: list[Any], position: int, flags: int) -> int:
        asked.append((position, flags))
        return os.pwrite(file, batch[0], position)

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(sink, "_LARGE", 1)
    write_file(tmp_path / "a", [piece(bytes(800)), piece(b"1" * 900)], size=1700, durable=True)
    assert sorted(asked) == [(0, 0x80), (800, 0x80)]
    assert (tmp_path / "a").read_bytes() == bytes(800) + b"1" * 900


def test_several_threads_write_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(2, timeout=20)
    real = os.pwrite

    def pwrite(file: int, data: Any, at: int) -> int:
        meeting.wait()  # raises BrokenBarrierError if no other thread comes
        return real(file, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    write_file(tmp_path / "a", [piece(bytes([number]) * 1000) for number in range(6)])
    assert (tmp_path / "a").read_bytes() == b"".join(bytes([n]) * 1000 for n in range(6))


def damaged() -> None:
    raise FormatError("other bytes", rule="delta")


@pytest.mark.parametrize("bad", [5, 5000])
def test_a_piece_that_is_wrong_leaves_the_old_file(tmp_path: Path, bad: int) -> None:
    (tmp_path / "a").write_bytes(b"old")
    pieces = [*map(piece, DATA), piece(bytes(bad), damaged), *map(piece, DATA)]
    with pytest.raises(FormatError, match="other bytes"):
        write_file(tmp_path / "a", pieces)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}
    stream = io.BytesIO()
    with pytest.raises(FormatError, match="other bytes"):
        write_stream(stream, pieces)
    assert bytes(bad) not in stream.getvalue(), "bytes were handed out that are wrong"


@pytest.mark.parametrize("found", [0, 9, 11, 20, 5000])
def test_a_piece_that_is_not_as_long_as_it_said(tmp_path: Path, found: int) -> None:
    wrong = piece(bytes(found))
    wrong.length = 10
    with pytest.raises(SafetensorError, match="more or fewer"):
        write_file(tmp_path / "a", [piece(bytes(2000)), wrong, piece(bytes(2000))])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    count = iter(range(100))
    real = os.pwrite

    def pwrite(file: int, data: Any, at: int) -> int:
        if next(count) == 5:
            raise fault
        return real(file, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(type(fault)) as caught:
        write_file(tmp_path / "a", map(piece, DATA))
    assert caught.value is fault
    assert getattr(fault, "filename", str(tmp_path / "a")) == str(tmp_path / "a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}
    assert not [each for each in threading.enumerate() if each.name.startswith("safeweights-job")]
