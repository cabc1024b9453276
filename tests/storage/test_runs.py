"""Runs: bytes that the system moves from file to file, and what happens where it cannot."""

from __future__ import annotations

import errno
import io
import itertools
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from safeweights.storage import (
    BytesSource,
    LocalStore,
    MemoryStore,
    Run,
    TruncatedError,
    appending,
    is_copyable,
    open_source,
    runs,
    write_file,
    write_stream,
)
from safeweights.storage.windows import Window

if TYPE_CHECKING:
    from pathlib import Path

DATA = bytes(range(256)) * 200


@pytest.fixture
def source(tmp_path: Path) -> Any:
    (tmp_path / "source").write_bytes(DATA)
    return open_source(tmp_path / "source", backend="pread")


@pytest.fixture(autouse=True)
def no_run_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "SMALL", 0)


def test_runs_between_buffers(tmp_path: Path, source: Any) -> None:
    pieces = [b"<", Run(source, 10, 5000), b"|", b"|", Run(source, 0, 0), Run(source, 7, 9), b">"]
    seen: list[int] = []
    write_file(tmp_path / "a", pieces, progress=seen.append)
    expected = b"<" + DATA[10:5010] + b"||" + DATA[7:16] + b">"
    assert (tmp_path / "a").read_bytes() == expected
    assert seen == sorted(seen)
    assert seen[-1] == len(expected)


def test_the_system_moves_them(tmp_path: Path, source: Any, system_calls: Any) -> None:
    write_file(tmp_path / "a", [b"head", Run(source, 0, len(DATA))])
    assert system_calls.log.count("copy_file_range") == 1
    assert system_calls.log.count("writev") == 1, "the data went through this process"
    assert (tmp_path / "a").read_bytes() == b"head" + DATA


@pytest.mark.parametrize("offset", [1, 4095, 4096, 5000])
def test_a_run_at_the_same_place_of_a_block_begins_at_a_block(
    tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    asked: list[int] = []
    real = os.copy_file_range

    def copy(src: int, dst: int, count: int, offset_src: int) -> int:
        asked.append(offset_src)
        return real(src, dst, count, offset_src)

    monkeypatch.setattr(os, "copy_file_range", copy)
    write_file(tmp_path / "a", [DATA[:offset], Run(source, offset, len(DATA) - offset)])
    assert (tmp_path / "a").read_bytes() == DATA
    assert asked[0] % 4096 == 0


def test_a_short_run_ends_before_the_block_does(tmp_path: Path, source: Any) -> None:
    write_file(tmp_path / "a", [DATA[:5], Run(source, 5, 20)])
    assert (tmp_path / "a").read_bytes() == DATA[:25]


@pytest.mark.parametrize("code", ["ENOSYS", "EXDEV", "EOPNOTSUPP", "EPERM", "EINVAL", "ETXTBSY"])
@pytest.mark.parametrize("after", [0, 1])
def test_where_the_system_cannot_they_are_read(
    tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch, code: str, after: int
) -> None:
    real, calls = os.copy_file_range, []

    def copy(src: int, dst: int, count: int, offset_src: int) -> int:
        calls.append(offset_src)
        if len(calls) > after:
            raise OSError(getattr(errno, code), "no")
        return real(src, dst, 100, offset_src)

    monkeypatch.setattr(os, "copy_file_range", copy)
    write_file(tmp_path / "a", [b"x", Run(source, 1, 9000)])
    assert (tmp_path / "a").read_bytes() == b"x" + DATA[1:9001]
    monkeypatch.delattr(os, "copy_file_range")
    write_file(tmp_path / "b", [b"x", Run(source, 1, 9000)])
    assert (tmp_path / "b").read_bytes() == b"x" + DATA[1:9001]


def test_the_system_moves_less_than_asked(
    tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda s, d, n, o: real(s, d, min(n, 999), o))
    write_file(tmp_path / "a", [Run(source, 3, 40000)])
    assert (tmp_path / "a").read_bytes() == DATA[3:40003]


def test_other_errors_are_about_the_new_file(
    tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_file(tmp_path / "a", [Run(source, 0, 9000)])
    assert caught.value.filename == str(tmp_path / "a")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["source"]


def test_a_source_that_became_shorter(tmp_path: Path, source: Any) -> None:
    os.truncate(tmp_path / "source", 1000)
    with pytest.raises(TruncatedError):
        write_file(tmp_path / "a", [Run(source, 0, 9000)])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["source"]


def test_streams_and_other_stores_get_bytes(tmp_path: Path, source: Any) -> None:
    stream = io.BytesIO()
    write_stream(stream, [b"x", Run(source, 0, 5000)])
    assert stream.getvalue() == b"x" + DATA[:5000]
    store = MemoryStore()
    for each in (store, LocalStore(tmp_path)):
        with each.commit() as commit:
            commit.write("a", [b"x", Run(source, 0, 5000)])
        assert bytes(each.open("a").view(0, 5001)) == b"x" + DATA[:5000]


def test_chunks(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_CHUNK", 1000)
    chunks = list(Run(source, 5, 2500).chunks())
    assert [len(chunk) for chunk in chunks] == [1000, 1000, 500]
    assert b"".join(chunks) == DATA[5:2505]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads copy runs of any length, in pieces of 1,000 bytes, on whatever filesystem this is."""
    monkeypatch.setattr(runs, "_THREADED", 0)
    monkeypatch.setattr(runs, "_MEAN", 0)
    monkeypatch.setattr(runs, "PIECE", 1000)
    monkeypatch.setattr(appending, "PIECE", 1000)
    monkeypatch.setattr(runs, "is_local", lambda _: True)
    monkeypatch.setattr(runs, "can_share_blocks", lambda _: False)


@pytest.mark.usefixtures("threads")
def test_threads_copy_many_pieces(
    tmp_path: Path, source: Any, system_calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(runs, "reserve", lambda _, length, offset: asked.append((offset, length)))
    pieces = [b"<" * 7, Run(source, 10, 5000), Run(source, 0, 0), Run(source, 5010, 40000)]
    seen: list[int] = []
    write_file(tmp_path / "a", [*pieces, b"|", Run(source, 3, 2500), b">"], progress=seen.append)
    expected = b"<" * 7 + DATA[10:45010] + b"|" + DATA[3:2503] + b">"
    assert (tmp_path / "a").read_bytes() == expected
    assert seen == sorted(seen)
    assert seen[-1] == len(expected)
    assert asked == [(7, 45000), (45008, 2500)], (
        "neighbours are copied, and their space kept, at once"
    )
    assert "copy_file_range" not in system_calls.log
    assert system_calls.log.count("pwrite") >= 24


def test_pieces_end_at_multiples(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "PIECE", 1000)
    given = [Run(source, 5, 2300), Run(source, 0, 0), Run(source, 9, 600), Run(source, 70, 1)]
    found = [[(run.offset, run.length) for run in piece] for piece in runs._cut(given, 1100)]
    assert found == [[(5, 900)], [(905, 1000)], [(1905, 400), (9, 600)], [(70, 1)]]


@pytest.mark.usefixtures("threads")
def test_threads_take_short_runs_along(
    tmp_path: Path, source: Any, system_calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appending, "SMALL", 1 << 14)
    some = [Run(source, 7 * number, 90) for number in range(20)]
    write_file(tmp_path / "a", [Run(source, 0, 20_000), *some, Run(source, 5, 20_200)])
    expected = b"".join(DATA[run.offset : run.offset + 90] for run in some)
    assert (tmp_path / "a").read_bytes() == DATA[:20_000] + expected + DATA[5:20_205]
    assert system_calls.log.count("pwrite") == 42, "in pieces of 1,000 bytes, whoever they are of"
    assert "copy_file_range" not in system_calls.log


@pytest.mark.usefixtures("threads")
def test_few_pieces_are_cut_at_a_time(
    tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, portions = appending.write_computed, []

    def write(pieces: list[Any], *rest: Any, **more: Any) -> None:
        portions.append(len(pieces))
        real(pieces, *rest, **more)

    monkeypatch.setattr(appending, "write_computed", write)
    monkeypatch.setattr(appending, "_PORTION", 7)
    monkeypatch.setattr(appending, "_STRETCH", 3)
    given = [Run(source, number, 5000) for number in range(5)]
    write_file(tmp_path / "a", given)
    assert (tmp_path / "a").read_bytes() == b"".join(DATA[n : n + 5000] for n in range(5))
    assert portions == [7, 7, 1, 7, 3]


def test_small_runs_are_read_and_written_together(
    tmp_path: Path, source: Any, system_calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appending, "SMALL", 1000)
    small = [Run(source, 7 * number, 90) for number in range(200)]
    write_file(tmp_path / "a", [*small, Run(source, 0, 1000), *small])
    expected = b"".join(DATA[run.offset : run.offset + 90] for run in small)
    assert (tmp_path / "a").read_bytes() == expected + DATA[:1000] + expected
    assert system_calls.log.count("writev") == 2
    assert system_calls.log.count("copy_file_range") == 1


@pytest.mark.usefixtures("threads")
def test_threads_find_a_source_that_became_shorter(tmp_path: Path, source: Any) -> None:
    os.truncate(tmp_path / "source", 20_000)
    with pytest.raises(TruncatedError):
        write_file(tmp_path / "a", [b"x", Run(source, 0, 40_000)])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["source"]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("name", "about"), [("preadv", "source"), ("pwrite", "a")])
def test_a_fault_at_any_call_of_a_thread(
    tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch, name: str, about: str
) -> None:
    real = getattr(os, name)
    for number in range(20):
        count = itertools.count()

        def call(*arguments: Any, number: int = number, count: Any = count) -> int:
            if next(count) == number:
                raise OSError(errno.EIO, "injected")
            return int(real(*arguments))

        monkeypatch.setattr(os, name, call)
        with pytest.raises(OSError, match="injected") as caught:
            write_file(tmp_path / "a", [b"x", Run(source, 0, 45_000)])
        assert os.path.basename(caught.value.filename) == about
        assert sorted(each.name for each in tmp_path.iterdir()) == ["source"]


@pytest.mark.usefixtures("threads")
def test_threads_write_less_than_asked(
    tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:333], at))
    write_file(tmp_path / "a", [b"x", Run(source, 3, 40000)])
    assert (tmp_path / "a").read_bytes() == b"x" + DATA[3:40003]


@pytest.mark.usefixtures("threads")
def test_an_interrupt_ends_the_threads(tmp_path: Path, source: Any) -> None:
    def interrupt(done: int) -> None:
        if done > 1:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a", [b"x", Run(source, 0, 45_000)], progress=interrupt)
    assert threading.active_count() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["source"]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("why", ["short", "scattered", "shared", "server", "no pwrite"])
def test_where_threads_are_no_faster_the_system_copies(
    tmp_path: Path, source: Any, system_calls: Any, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "short":
        monkeypatch.setattr(runs, "_THREADED", 1 << 20)
    elif why == "scattered":
        monkeypatch.setattr(runs, "_MEAN", 1 << 16)
    elif why == "shared":
        monkeypatch.setattr(runs, "can_share_blocks", lambda _: True)
    elif why == "server":
        monkeypatch.setattr(runs, "is_local", lambda _: False)
    else:
        monkeypatch.delattr(os, "pwrite")
    write_file(tmp_path / "a", [Run(source, 0, 40_000), Run(source, 1, 9)])
    assert (tmp_path / "a").read_bytes() == DATA[:40_000] + DATA[1:10]
    assert system_calls.log.count("copy_file_range") == 2


@pytest.mark.parametrize("shared", [False, True])
def test_space_is_reserved_where_blocks_are_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    (tmp_path / "source").write_bytes(bytes(1 << 20))
    big = open_source(tmp_path / "source")
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(runs, "can_share_blocks", lambda _: shared)
    monkeypatch.setattr(runs, "reserve", lambda _, length, offset: asked.append((offset, length)))
    write_file(tmp_path / "a", [b"head", Run(big, 0, 1 << 20), Run(big, 1, 10)])
    assert asked == ([] if shared else [(4, 1 << 20)])


def test_a_disk_that_is_full_says_so_before_a_run_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_calls: Any
) -> None:
    (tmp_path / "source").write_bytes(bytes(1 << 20))

    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "can_share_blocks", lambda _: False)
    monkeypatch.setattr(runs, "reserve", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_file(tmp_path / "a", [Run(open_source(tmp_path / "source"), 0, 1 << 20)])
    assert caught.value.filename == str(tmp_path / "a")
    assert "copy_file_range" not in system_calls.log
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_only_files_can_be_moved(source: Any) -> None:
    assert is_copyable(source)
    assert not is_copyable(BytesSource(b"x"))
    assert not is_copyable(Window(source, 0, 10))


if not hasattr(os, "copy_file_range"):
    pytest.skip("the system has no copy_file_range", allow_module_level=True)
