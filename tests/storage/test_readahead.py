"""Pieces made ahead: the same ones in the same order, a few at a time, and nothing left behind."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeweights.storage import read_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator

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
