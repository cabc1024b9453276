"""Pieces made ahead: the same ones in the same order, a few at a time, and nothing left behind."""

from __future__ import annotations

import gc
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeweights.storage import InMemory, appending, read_ahead, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGE = 1 << 20


def making() -> int:
    return sum(thread.name.startswith("safeweights-ahead") for thread in threading.enumerate())


@given(st.lists(st.sampled_from([0, 1, 5000, LARGE - 1, LARGE]), max_size=12))
def test_the_same_pieces_in_the_same_order(sizes: list[int]) -> None:
    pieces = [bytes([index]) * size for index, size in enumerate(sizes)]
    assert list(read_ahead(iter(pieces))) == pieces
    assert not making()


def test_few_are_made_ahead_and_by_one_thread() -> None:
    made: list[int] = []

    def pieces() -> Iterator[bytes]:
        for index in range(10):
            made.append(threading.get_ident())
            yield bytes([index]) * LARGE

    for used, piece in enumerate(read_ahead(pieces())):
        assert piece[0] == used
        assert len(made) <= used + 3
    assert len(set(made)) == 1
    assert set(made) != {threading.get_ident()}


def test_an_error_comes_where_the_piece_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(LARGE)
        raise OSError(5, "Input/output error")

    coming = read_ahead(pieces())
    assert len(next(coming)) == LARGE
    with pytest.raises(OSError, match="Input/output"):
        next(coming)
    assert not making()


def test_who_stops_half_way_leaves_nothing() -> None:
    made: list[int] = []

    def pieces() -> Iterator[bytes]:
        for index in range(10):
            made.append(index)
            yield bytes(LARGE)

    coming = read_ahead(pieces())
    next(coming)
    del coming
    gc.collect()
    assert not making()
    assert len(made) <= 3


# ---- buffers that are in memory


def grouping(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The threads that put buffers together."""
    found: set[int] = set()
    joined = appending._joined

    def noted(pieces: Any) -> Iterator[Any]:
        for piece in joined(pieces):
            found.add(threading.get_ident())
            yield piece

    monkeypatch.setattr(appending, "_joined", noted)
    return found


@pytest.mark.parametrize(
    ("count", "in_memory", "beside"), [(300, True, True), (200, True, False), (300, False, False)]
)
def test_a_thread_groups_many_buffers_while_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, in_memory: bool, beside: bool
) -> None:
    threads = grouping(monkeypatch)
    pieces = [bytes([number % 251]) * (1 << 16) for number in range(count)]
    size = count << 16
    write_file(tmp_path / "a", InMemory(pieces, size) if in_memory else iter(pieces), size=size)
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)
    assert len(threads) == 1
    assert (threading.get_ident() not in threads) == beside
    assert not making()


@pytest.mark.parametrize("where", ["making", "writing", "interrupted"])
def test_nothing_is_left_of_groups_after_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def pieces() -> Iterator[bytes]:
        for number in range(500):
            if where == "making" and number == 400:
                raise OSError(5, "injected")
            yield bytes(1 << 16)

    def progress(done: int) -> None:
        if where == "interrupted" and done > 10 << 20:
            raise KeyboardInterrupt

    real, calls = os.writev, []

    def writev(*arguments: Any) -> int:
        calls.append(1)
        if where == "writing" and len(calls) == 3:
            raise OSError(5, "injected")
        return real(*arguments)

    monkeypatch.setattr(os, "writev", writev)
    with pytest.raises(KeyboardInterrupt if where == "interrupted" else OSError) as caught:
        write_file(tmp_path / "a", InMemory(pieces(), 500 << 16), progress=progress)
    assert not making(), f"a thread outlives {caught.value!r}"
    assert not [*tmp_path.iterdir()]
