"""Staging onto an accelerator, with a stand-in whose copies happen as late as a device's may."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch

from safeweights.frameworks import staging
from safeweights.frameworks.staging import Piece, stage
from safeweights.storage import open_source
from safeweights.storage.source import ENGINES, BytesSource, TruncatedError


class LateCopy:
    """A copy that takes place when somebody waits for it: a slab reused before that shows."""

    def __init__(self, target: torch.Tensor, slab: torch.Tensor) -> None:
        self._target, self._slab = target, slab
        self._done = False

    def synchronize(self) -> None:
        if not self._done:
            self._target.copy_(self._slab)
            self._done = True


class StandIn:
    """A device that is the host; counts what is asked of it."""

    def __init__(self) -> None:
        self.copies: list[LateCopy] = []
        self.slabs = 0
        self.finished = False

    def arena(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def slab(self, nbytes: int) -> torch.Tensor:
        self.slabs += 1
        memory = torch.zeros(nbytes + 4096, dtype=torch.uint8)
        begin = -memory.data_ptr() % 4096
        return memory[begin : begin + nbytes]

    def copy(self, target: torch.Tensor, slab: torch.Tensor) -> LateCopy:
        copy = LateCopy(target, slab)
        self.copies.append(copy)
        return copy

    def finish(self) -> None:
        for copy in self.copies:
            copy.synchronize()
        self.finished = True


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(staging, "SLAB", 1 << 14)
    return 1 << 14


@pytest.mark.parametrize("engine", ENGINES)
def test_every_byte_arrives_whatever_the_engine(tmp_path, small_slabs, engine):
    data = np.random.default_rng(1).integers(0, 256, 1_000_003, dtype=np.uint8)
    path = tmp_path / "data"
    path.write_bytes(data.tobytes())
    source, device = open_source(path, engine=engine), StandIn()
    arenas = [(17, device.arena(400_000)), (400_017, device.arena(599_986))]
    stage(source, [Piece(offset, arena) for offset, arena in arenas], device)
    for offset, arena in arenas:
        assert np.array_equal(arena.numpy(), data[offset : offset + len(arena)])
    assert device.slabs <= staging.READERS
    assert len(device.copies) == sum(-(-len(arena) // small_slabs) for _, arena in arenas)


def test_nothing_to_stage_needs_no_slab():
    device = StandIn()
    stage(BytesSource(b""), [], device)
    assert device.slabs == 0
    assert device.finished


class Broken(BytesSource):
    """Reads fail from the third on."""

    reads = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads += 1
        if self.reads > 2:
            raise OSError(5, "Input/output error")
        super().read_into(offset, buffer)


def test_a_failed_read_is_raised_and_no_thread_is_left(small_slabs):
    before = set(threading.enumerate())
    source, device = Broken(bytes(1 << 20)), StandIn()
    with pytest.raises(OSError, match="Input/output"):
        stage(source, [Piece(0, device.arena(1 << 20))], device)
    assert set(threading.enumerate()) == before
    assert device.finished
    # Others may each have begun one more piece, but nobody went on.
    assert source.reads <= 2 + 2 * staging.READERS


def test_a_truncated_file_is_an_error(tmp_path, small_slabs):
    path = tmp_path / "data"
    path.write_bytes(bytes(1 << 18))
    source, device = open_source(path, engine="pread"), StandIn()
    os.truncate(path, 1 << 16)
    with pytest.raises(TruncatedError):
        stage(source, [Piece(0, device.arena(1 << 18))], device)
