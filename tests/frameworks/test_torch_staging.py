"""Staging onto an accelerator, with a stand-in for the device."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import safeweights
from new_threads import threads_since_now
from safeweights import SafetensorError, safe_open, save, serialize_file
from safeweights.checkpoint import to_bytes
from safeweights.format.header import TensorInfo
from safeweights.frameworks.loading import LoadJob, Pipeline
from safeweights.frameworks.plans import Batch
from safeweights.frameworks.torch import adapter, staging
from safeweights.frameworks.torch.adapter import ADAPTER, CODES, DeviceTensor, TorchAdapter
from safeweights.frameworks.torch.staging import DeviceLanding
from safeweights.storage import BACKENDS, Source, open_source
from safeweights.storage.source import BytesSource, TruncatedError
from safeweights.torch import load, load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class StandIn:
    """A device that is the host; counts what is asked of it. Only who said so may copy."""

    def __init__(self) -> None:
        self.copies = self.slabs = self.largest = 0
        self._thread = threading.local()

    def arena(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def slab(self, nbytes: int) -> torch.Tensor:
        self.slabs += 1
        self.largest = max(self.largest, nbytes)
        memory = torch.zeros(nbytes + 4096, dtype=torch.uint8)
        begin = -memory.data_ptr() % 4096
        return memory[begin : begin + nbytes]

    @contextlib.contextmanager
    def copying(self) -> Iterator[None]:
        assert not vars(self._thread)
        self._thread.copying = True
        yield
        del self._thread.copying

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        assert self._thread.copying
        self.copies += 1
        target.copy_(source)


def stage(source: Source, parts: list[tuple[int, int]], device: StandIn) -> list[torch.Tensor]:
    """Bring (offset, length) parts of `source` to `device`; what arrived there."""
    infos = [TensorInfo("U8", (length,), begin, begin + length) for begin, length in parts]
    jobs = [LoadJob(Batch(source, 0, [("x", info)])) for info in infos]
    landing = DeviceLanding(device, ADAPTER, None, lambda arena, *_: arena)
    Pipeline(jobs, landing).run(landing.threads)
    return [job.transfer.tensors()["x"] for job in jobs]


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of the file that one slab takes: two pages less than it has, for the file's alignment."""
    monkeypatch.setattr(staging, "SLAB", 1 << 15)
    return (1 << 15) - 2 * staging.PAGE


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_byte_arrives_whatever_the_engine(tmp_path, small_slabs, backend):
    data = np.random.default_rng(1).integers(0, 256, 1_000_003, dtype=np.uint8)
    path = tmp_path / "data"
    path.write_bytes(data.tobytes())
    source, device = open_source(path, backend=backend), StandIn()
    parts = [(17, 400_000), (400_017, 599_986)]
    for (offset, length), arrived in zip(parts, stage(source, parts, device), strict=True):
        assert np.array_equal(arrived.numpy(), data[offset : offset + length])
    assert device.slabs <= staging.READERS
    assert device.largest <= 1 << 15
    assert device.copies == sum(-(-length // small_slabs) for _, length in parts)


def test_nothing_to_stage_needs_no_slab():
    device = StandIn()
    assert stage(BytesSource(b""), [], device) == []
    assert stage(BytesSource(b""), [(0, 0)], device)[0].tolist() == []
    assert device.slabs == 0


class Broken(BytesSource):
    """Reads fail from the third on."""

    reads = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads += 1
        if self.reads > 2:
            raise OSError(5, "Input/output error")
        super().read_into(offset, buffer)


def test_a_failed_read_is_raised_and_no_thread_is_left(small_slabs):
    started = threads_since_now()
    source, device = Broken(bytes(1 << 20)), StandIn()
    with pytest.raises(OSError, match="Input/output"):
        stage(source, [(0, 1 << 20)], device)
    assert not started()
    # Others may each have begun one more piece, but nobody went on.
    assert source.reads <= 2 + 2 * staging.READERS


def test_a_truncated_file_is_an_error(tmp_path, small_slabs):
    path = tmp_path / "data"
    path.write_bytes(bytes(1 << 18))
    source, device = open_source(path, backend="pread"), StandIn()
    os.truncate(path, 1 << 16)
    with pytest.raises(TruncatedError):
        stage(source, [(0, 1 << 18)], device)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_is_loaded_through_arenas(tmp_path, monkeypatch, small_slabs, backend):
    """The adapter's part: buffer_pool, tensors cut out of them, misaligned ones copied."""
    tensors = {
        "a": torch.randn(300, 7),
        "b": torch.arange(1000, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "bytes": torch.arange(255, dtype=torch.uint8),
        "pairs": torch.arange(8, dtype=torch.uint8).reshape(2, 4).view(torch.float4_e2m1fn_x2),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    devices: list[StandIn] = []

    def stand_in(self: TorchAdapter, device: object) -> StandIn:
        devices.append(StandIn())
        return devices[-1]

    monkeypatch.setattr(TorchAdapter, "accelerator", stand_in)
    monkeypatch.setattr(DeviceLanding, "arena", 4096)
    loaded = load_file(path, "meta", backend=backend)
    (device,) = devices
    assert device.copies
    assert list(loaded) == list(load_file(path))
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(bits(loaded[name]), bits(tensor)), name


def test_a_type_that_torch_lacks_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    serialize_file({"a": {"dtype": "F6_E2M3", "shape": [4], "data": bytes(3)}}, path)
    device = StandIn()
    monkeypatch.setattr(TorchAdapter, "accelerator", lambda self, _: device)
    with pytest.raises(SafetensorError, match="F6_E2M3"):
        load_file(path, "meta")
    assert device.slabs == 0


def test_tensors_at_odd_places_are_copied(monkeypatch):
    entries = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    text = json.dumps(entries).encode()
    data = struct.pack("<Q", len(text)) + text + b"abc" + struct.pack("<2f", 1.5, -2)
    monkeypatch.setattr(TorchAdapter, "accelerator", lambda self, _: StandIn())
    assert load(data, "meta")["b"].tolist() == [1.5, -2.0]


def test_without_an_accelerator_nothing_is_staged():
    assert TorchAdapter().landing(None) is None
    assert TorchAdapter().landing(torch.device("meta")) is None


def test_tensors_on_a_device_are_written_through_few_slabs(tmp_path, monkeypatch):
    """The next piece is copied while one is written, and no more than that is kept."""
    tensors = {f"{index}": torch.randn(700_000 + index) for index in range(9)}
    tensors["small"] = torch.arange(5)
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    class Counting(StandIn):
        def slab(self, nbytes: int) -> torch.Tensor:
            nonlocal most
            made = torch.zeros(nbytes, dtype=torch.uint8)
            alive.append(weakref.ref(made.untyped_storage()))
            most = max(most, sum(slab() is not None for slab in alive))
            return made

    monkeypatch.setattr(TorchAdapter, "accelerator", lambda self, _: Counting())
    held = {
        name: DeviceTensor(name, CODES[tensor.dtype], tuple(tensor.shape), tensor)
        for name, tensor in tensors.items()
    }
    path = tmp_path / "x.safetensors"
    save(held, path)
    assert len(alive) == 9  # the small one is not worth a slab
    # A write of 8 MiB has bytes of up to four of them, and two are made ahead.
    assert most <= 6
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    del alive[:]
    assert to_bytes(held) == path.read_bytes()
    assert alive == []  # all of it pinned would be too much
    buffer = bytearray(8)
    held["0"].read_into(buffer, 4)
    assert bytes(buffer) == tensors["0"][1:3].numpy().tobytes()
    with pytest.raises(SafetensorError, match="asked of tensor `small`"):
        held["small"].read_into(bytearray(41))


# ---- torch's own interface, of which nothing but the streams is played: there is no device here


class Streams:
    """`torch.accelerator` with two devices; every thread has a current device, and a stream on each.

    A stream is a context manager as torch's is: what it replaced is kept in the stream itself, so that
    it must not be entered twice.
    """

    class Stream:
        def __init__(self, played: Streams, stream_id: int, index: int) -> None:
            self._played = played
            self.stream_id, self.device_index = stream_id, index
            self.device = torch.device("cuda", index)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Streams.Stream) and vars(self) == vars(other)

        __hash__ = None

        def __enter__(self) -> None:
            raise AssertionError("threads that share a stream cannot enter it")

        def __exit__(self, *_: object) -> None: ...

        def record_event(self) -> tuple[int, int]:
            """Which stream's, and which one of it."""
            self._played.events.append((self.stream_id, len(self._played.events)))
            return self._played.events[-1]

        def wait_event(self, event: tuple[int, int]) -> None:
            assert event in self._played.events
            self._played.waits.append((self.stream_id, event))

    def __init__(self, *, pool: list[int]) -> None:
        self.pool = pool
        self.events: list[tuple[int, int]] = []
        self.waits: list[tuple[int, tuple[int, int]]] = []
        self.seen: list[tuple[str, int, int]] = []  # what was done, on which device and stream
        self._thread = threading.local()

    def _state(self) -> dict[object, int]:
        return self._thread.__dict__.setdefault("state", {"device": 0})

    def is_available(self) -> bool:
        return True

    def current_accelerator(self) -> torch.device:
        return torch.device("cuda")

    def current_device_index(self) -> int:
        return self._state()["device"]

    @contextlib.contextmanager
    def device_index(self, index: int) -> Iterator[None]:
        state = self._state()
        before, state["device"] = state["device"], index
        try:
            yield
        finally:
            state["device"] = before

    def current_stream(self, device: torch.device) -> Stream:
        index = self.current_device_index() if device.index is None else device.index
        return self.Stream(self, self._state().get(index, 0), index)

    def set_stream(self, stream: Stream) -> None:
        self._state().update({"device": stream.device_index, stream.device_index: stream.stream_id})

    def new_stream(self, device: torch.device) -> Stream:
        if not self.pool or device.index == 99:
            raise RuntimeError("Backend doesn't support create a new Stream.")
        index = self.current_device_index() if device.index is None else device.index
        return self.Stream(self, self.pool.pop(0), index)

    def note(self, what: str) -> None:
        state = self._state()
        self.seen.append((what, state["device"], state.get(state["device"], 0)))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    played = Streams(pool=list(range(5, 99)))
    empty, copy = torch.empty, torch.Tensor.copy_

    def on_host(*size: int, dtype: torch.dtype, device: object = None, pin_memory: bool = False):
        # Another device may be the default one.
        assert torch.device(device).type == ("cpu" if pin_memory else "cuda")
        played.note("pin" if pin_memory else "allocate")
        return empty(*size, dtype=dtype)

    def noted(target: torch.Tensor, source: torch.Tensor):  # and waits for it
        played.note("copy")
        return copy(target, source)

    monkeypatch.setattr(torch, "accelerator", played)
    monkeypatch.setattr(torch, "Stream", played.new_stream)
    monkeypatch.setattr(torch, "empty", on_host)
    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    return played


def test_copies_are_on_a_stream_of_their_own_in_every_thread(tmp_path, streams, small_slabs):
    data = np.random.default_rng(1).integers(0, 256, 1_000_000, dtype=np.uint8)
    path = tmp_path / "data"
    path.write_bytes(data.tobytes())
    device = torch.device("cuda")
    with streams.device_index(1):  # the caller's; that of reader threads is 0
        callers = streams.current_stream(device)
        accelerator = TorchAdapter().accelerator(device)
        jobs = [
            LoadJob(
                Batch(
                    open_source(path, backend="pread"),
                    0,
                    [("x", TensorInfo("U8", (n,), at, at + n))],
                )
            )
            for at, n in ((0, 400_000), (400_000, 600_000))
        ]
        landing = DeviceLanding(accelerator, ADAPTER, device, lambda arena, *_: arena)
        Pipeline(jobs, landing).run(landing.threads)
        arrived = [job.transfer.tensors()["x"].numpy() for job in jobs]
        assert np.array_equal(np.concatenate(arrived), data)
        places = {
            what: {seen[1:] for seen in streams.seen if seen[0] == what}
            for what in ("allocate", "copy")
        }
        assert places["allocate"] == {(1, 0)}
        assert {index for index, _ in places["copy"]} == {1}
        used = {stream for _, stream in places["copy"]}
        assert 1 <= len(used) <= landing.threads
        assert 0 not in used
        assert streams.events == [(0, 0), (0, 1)]
        assert {stream for stream, _ in streams.waits} == used
        assert len(set(streams.waits)) == len(streams.waits)
        assert streams.current_device_index() == 1
        assert streams.current_stream(device) == callers


def test_each_thread_waits_for_work_that_was_queued_before_memory_was_set_aside(streams):
    accelerator = TorchAdapter().accelerator(torch.device("cuda", 1))

    def copied(arena: torch.Tensor) -> list[int]:
        """The number of the memory for which it was waited, if any."""
        before = len(streams.waits)
        with accelerator.copying():
            accelerator.copy(arena, torch.zeros(8, dtype=torch.uint8))
        return [number for _, (_, number) in streams.waits[before:]]

    first = accelerator.arena(8)
    assert copied(first) == [0]
    assert copied(first) == []
    second = accelerator.arena(8)
    assert copied(second) == [1]
    assert copied(first) == []
    with ThreadPoolExecutor(1) as other:
        assert other.submit(copied, first).result() == [1]
        assert other.submit(copied, second).result() == []
    assert len({stream for stream, _ in streams.waits}) == 2


def test_what_was_current_is_again_after_an_error(streams):
    accelerator = TorchAdapter().accelerator(torch.device("cuda", 1))
    with pytest.raises(RuntimeError), accelerator.copying():
        accelerator.copy(torch.zeros(2), torch.zeros(3))
    assert streams.current_device_index() == 0
    assert streams.current_stream(torch.device("cuda", 1)).stream_id == 0


@pytest.mark.parametrize(
    ("pool", "staged"), [([], False), ([0, 0], False), ([0, 3], True), ([3], True)]
)
def test_a_device_needs_a_second_stream(streams, pool, staged):
    streams.pool = pool
    assert (TorchAdapter().landing(torch.device("cuda")) is not None) is staged


def test_other_devices_and_older_versions_are_not_staged_to(streams, monkeypatch):
    assert TorchAdapter().landing(torch.device("xpu")) is None
    assert TorchAdapter().landing(torch.device("cuda", 99)) is None
    monkeypatch.delattr(Streams, "device_index")
    assert TorchAdapter().landing(torch.device("cuda")) is None


def test_nothing_is_copied_to_a_device_from_a_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither whole tensors, small or large, nor parts; by a device with and without staging."""
    values = {"small": torch.arange(8.0), "large": torch.arange(1 << 19).reshape(1 << 10, -1)}
    save_file(values, tmp_path / "x")
    moved: list[int] = []

    def move(tensor: torch.Tensor, device: object) -> torch.Tensor:
        moved.append(tensor.data_ptr())
        return tensor.clone()

    monkeypatch.setattr(adapter, "_to_device", move)
    monkeypatch.setattr(TorchAdapter, "check_device", lambda self, _: torch.device("cuda"))
    for stand_in in (None, StandIn()):
        monkeypatch.setattr(TorchAdapter, "accelerator", lambda self, _, found=stand_in: found)
        with safe_open(tmp_path / "x", "pt", device="cuda", backend="mmap") as file:
            found = {name: file.get_tensor(name) for name in values}
            found |= {f"{name} part": file.get_slice(name)[2:5] for name in values}
            whole = file.get_tensors()
            one = safeweights.open(tmp_path / "x")["large"].torch("cuda")
            mapped = file._checkpoint.files[0].source.view(0, 1)  # type: ignore[union-attr]
            begin = np.frombuffer(mapped, np.uint8).ctypes.data
            size = (tmp_path / "x").stat().st_size
            assert not [at for at in moved if begin <= at < begin + size]
        assert torch.equal(one, values["large"])
        for name, expected in values.items():
            assert torch.equal(found[name], expected)
            assert torch.equal(whole[name], expected)
            assert torch.equal(found[f"{name} part"], expected[2:5])
    assert moved
