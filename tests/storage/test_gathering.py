"""Gathering gives the runs in order, reads little else, and takes little memory."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeweights.format.indexing import Runs
from safeweights.storage import gather, gather_mapped, gathering

DATA = random.Random(2).randbytes(400_000)


class Counted:
    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.reads: list[int] = []

    def read_into(self, buffer: memoryview, offset: int) -> None:
        assert offset + len(buffer) <= len(self.data)
        self.reads.append(len(buffer))
        buffer[:] = self.data[offset : offset + len(buffer)]


@st.composite
def some_runs(draw: st.DrawFn) -> Runs:
    """Loops nested without overlap, as `indexing.runs` makes them."""
    length = draw(st.one_of(st.integers(1, 12), st.integers(200, 700)))
    span, loops = length, []
    for _ in range(draw(st.integers(1, 4))):
        stride = span + draw(st.sampled_from([0, 0, 1, 7, 100, 4096, 4097, 6000]))
        room = max(2, (len(DATA) - 1000 - span) // stride)
        repetitions = draw(st.integers(2, min(6, room)))
        if (repetitions - 1) * stride + span > len(DATA) - 1000:
            break
        loops.insert(0, (repetitions, stride))
        span += (repetitions - 1) * stride
    return Runs(draw(st.integers(0, 1000)), length, tuple(loops))


@settings(max_examples=300)
@given(some_runs(), st.sampled_from([1 << 23, 5000, 300]))
def test_both_ways_give_the_runs(runs: Runs, slab: int) -> None:
    expected = b"".join(DATA[offset : offset + runs.length] for offset in runs.offsets())
    counted = Counted()
    read, copied = bytearray(runs.nbytes), bytearray(runs.nbytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "_SLAB", slab)
        gather(runs, counted.read_into, memoryview(read))
    gather_mapped(runs, memoryview(DATA), memoryview(copied))
    assert read == copied == expected
    assert sum(counted.reads) <= runs.nbytes + 4096 * runs.run_count
    assert len(counted.reads) <= runs.run_count


def test_close_runs_are_read_together() -> None:
    counted, runs = Counted(), Runs(100, 4, ((1000, 400),))
    gather(runs, counted.read_into, memoryview(bytearray(runs.nbytes)))
    assert counted.reads == [999 * 400 + 4]


def test_far_runs_are_read_one_by_one() -> None:
    counted, runs = Counted(), Runs(0, 8, ((10, 8 + 4097),))
    gather(runs, counted.read_into, memoryview(bytearray(runs.nbytes)))
    assert counted.reads == [8] * 10


def test_nested_loops_share_a_read() -> None:
    """Without that, a million pairs would be a million reads."""
    counted, runs = Counted(), Runs(0, 10, ((1000, 400), (2, 100)))
    gather(runs, counted.read_into, memoryview(bytearray(runs.nbytes)))
    assert counted.reads == [999 * 400 + 110]


def test_loops_that_continue_each_other_become_one() -> None:
    """Sixty-three dimensions of size 1 or 2 are more than an array may have."""
    loops = tuple((2, 3 << shift) for shift in reversed(range(12))) + ((1, 3),) * 30
    runs = Runs(0, 2, loops)
    out = memoryview(bytearray(runs.nbytes))
    gather_mapped(runs, memoryview(DATA), out)
    assert out == b"".join(DATA[3 * row : 3 * row + 2] for row in range(4096))


@pytest.mark.parametrize("length", [(1 << 24) - 1, 1000])
def test_memory_is_bounded(length: int) -> None:
    """Runs larger than the slab are not read through it."""
    count, stride = (3, 1 << 24) if length > 10_000 else (20_000, 2000)

    def read_into(buffer: memoryview, offset: int) -> None:
        buffer[:1] = b"x"

    out = memoryview(bytearray(length * count))
    import numpy as np  # its import is not what is measured

    assert np
    tracemalloc.start()
    try:
        gather(Runs(0, length, ((count, stride),)), read_into, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (1 << 23) + (1 << 20)
