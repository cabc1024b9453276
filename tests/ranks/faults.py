"""Saves and loads in which something goes wrong, for `launching.run_ranks`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from safeweights.distributed import StorageReader, StorageWriter
from safeweights.frameworks.torch.distributed import meeting, reading, writing
from safeweights.storage import shared_file


def state(ranks: int, value: int, rows: int = 8) -> dict[str, Any]:
    """Tensors whose elements are all `value`."""
    mesh = init_device_mesh("cpu", (ranks,))
    local = torch.full((rows, 32), value, dtype=torch.int32)
    found: dict[str, Any] = {
        f"t{number}": DTensor.from_local(local.clone(), mesh, [Shard(number % 2)])
        for number in range(6)
    }
    return {**found, "value": torch.tensor(value), "step": value}


def save(
    rank: int, ranks: int, folder: str, value: int, timeout: float = 30, **options: Any
) -> None:
    writer = StorageWriter(folder, max_shard_size=2500, timeout=timeout)
    dcp.save(state(ranks, value), storage_writer=writer, **options)


def attempt(call: Any, *arguments: Any, **options: Any) -> str | None:
    """The text of the error that a call raises; None if there is none."""
    try:
        call(*arguments, **options)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


# ---- a rank dies


class Steps:
    """Counts the calls of some functions, and kills this process in place of call number `at`."""

    def __init__(self, at: int) -> None:
        self.count = 0
        self._at = at

    def watch(self, owner: Any, name: str) -> None:
        """Count the calls of a function of a module or class."""
        setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, call: Any) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return step


def save_and_die(rank: int, ranks: int, folder: str, value: int, victim: int, at: int) -> Any:
    """A save in which rank `victim` is killed at its `at`-th step: its error, and the number of steps."""
    steps = Steps(at)
    if rank == victim:
        for module, name in (
            (os, "pwrite"), (os, "open"), (os, "close"), (os, "ftruncate"), (os, "rename"),
            (os, "replace"), (os, "mkdir"), (os, "unlink"), (dist.TCPStore, "set"),
        ):  # fmt: skip
            steps.watch(module, name)
    return attempt(save, rank, ranks, folder, value, timeout=2), steps.count


class CountedStore:
    """The store of the job, whose requests are steps; but not those of a rank that waits and asks again."""

    def __init__(self, store: Any, steps: Steps) -> None:
        self._store, self._steps = store, steps

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)

        def request(*arguments: Any) -> Any:
            waits = name == "check" or (name == "add" and arguments[1] == 0)
            return (real if waits else self._steps.counted(real))(*arguments)

        return request


def load_and_die(rank: int, ranks: int, folder: str, victim: int, at: int) -> Any:
    """A load in which rank `victim` is killed at its `at`-th step: its error, the values that the tensors
    have then, and the number of steps.
    """
    steps = Steps(at)
    if rank == victim:
        steps.watch(os, "preadv")
        real = meeting.job_store

        def counted() -> Any:
            return CountedStore(real(), steps)

        meeting.job_store = counted
        reading.job_store = counted
    tensors = state(ranks, -1)
    reader = StorageReader(folder, timeout=1 if at else 30)
    error = attempt(dcp.load, tensors, storage_reader=reader)
    local = (t.to_local() for t in tensors.values() if isinstance(t, DTensor))
    return error, {int(value) for each in local for value in each.unique()}, steps.count


# ---- a rank is slow, or fails


def save_slowly(rank: int, ranks: int, folder: str, late: int, seconds: float) -> Any:
    """One rank stops before it writes, for longer than the others wait."""
    real = writing._write_all

    def slow(*arguments: Any, **options: Any) -> Any:
        if rank == late:
            time.sleep(seconds)
        return real(*arguments, **options)

    writing._write_all = slow
    return attempt(save, rank, ranks, folder, 2, timeout=1)


def save_with_full_disk(rank: int, ranks: int, folder: str, full: int, reserved: bool) -> Any:
    """No space is left, where one rank writes or where the coordinator reserves it."""

    def fails(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    if rank == full:
        if reserved:
            shared_file.reserve = fails
        else:
            os.pwrite = fails
    return attempt(save, rank, ranks, folder, 2)


class FailingSave(DefaultSavePlanner):
    def create_local_plan(self) -> Any:
        raise RuntimeError("no plan today")


class FailingResolve(DefaultSavePlanner):
    def resolve_data(self, write_item: Any) -> Any:
        raise RuntimeError("no data today")


class FailingLoad(DefaultLoadPlanner):
    def create_local_plan(self) -> Any:
        raise RuntimeError("no plan today")


def save_with_planner(rank: int, ranks: int, folder: str, failing: int, kind: str) -> Any:
    planners = {"plan": FailingSave, "data": FailingResolve}
    planner = planners[kind]() if rank == failing else DefaultSavePlanner()
    return attempt(save, rank, ranks, folder, 2, planner=planner)


def save_what_json_cannot_hold(rank: int, ranks: int, folder: str) -> Any:
    tensors = state(ranks, 2)
    values: dict[str, Any] = {
        "set": {1, 2},
        "path": Path("a"),
        "generator": {"type": torch.float32},
    }
    found = []
    for name, value in values.items():
        writer = StorageWriter(folder, timeout=30)
        found.append(attempt(dcp.save, {**tensors, name: value}, storage_writer=writer))
    return found


def save_in_background_with_full_disk(rank: int, ranks: int, folder: str, full: int) -> Any:
    if rank == full:
        os.pwrite = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    writer = StorageWriter(folder, timeout=30)
    future = dcp.async_save(state(ranks, 2), storage_writer=writer)
    return attempt(future.result)


def save_in_background(rank: int, ranks: int, folder: str) -> None:
    tensors = state(ranks, 5)
    future = dcp.async_save(tensors, storage_writer=StorageWriter(folder, timeout=30))
    with torch.no_grad():
        for tensor in tensors.values():
            if isinstance(tensor, torch.Tensor):
                tensor.fill_(9)  # training goes on
    future.result()


def save_to_tmpfs(rank: int, ranks: int, folder: str, rows: int) -> Any:
    """More than fits."""
    writer = StorageWriter(folder, timeout=30)
    return attempt(dcp.save, state(ranks, 2, rows), storage_writer=writer)


# ---- two jobs


def save_often(rank: int, ranks: int, folder: str, value: int, times: int) -> None:
    for _ in range(times):
        save(rank, ranks, folder, value)


# ---- what a load leaves behind


def load_twice(rank: int, ranks: int, folder: str) -> Any:
    """The keys in the store of the job before, between, and after two loads, the second of which fails."""
    store = dist.distributed_c10d._get_default_store()

    def keys() -> int:
        dist.barrier()
        count = int(store.num_keys())
        dist.barrier()
        return count

    tensors = state(ranks, -1)
    found = [keys()]
    dcp.load(tensors, storage_reader=StorageReader(folder))
    found.append(keys())
    if rank == 1:
        tensors["value"] = torch.tensor(-1.0)
    assert "rank 1" in str(attempt(dcp.load, tensors, storage_reader=StorageReader(folder)))
    return [*found, keys()]


# ---- loading what is not right


def load(rank: int, ranks: int, target: str, options: dict[str, Any]) -> Any:
    """The error of a load, and the values of all targets afterwards."""
    tensors = state(ranks, -1)
    error = attempt(dcp.load, tensors, storage_reader=StorageReader(target, timeout=5, **options))
    found = set()
    for tensor in tensors.values():
        if isinstance(tensor, torch.Tensor):
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            found |= set(local.reshape(-1).tolist())
        else:
            found.add(tensor)
    return error, found


def load_wrong(rank: int, ranks: int, folder: str, kind: str) -> Any:
    """Targets that differ on one rank from what is stored; the error, and what became of another target."""
    tensors = state(ranks, -1)
    if rank == ranks - 1:
        if kind == "type":
            tensors["value"] = torch.tensor(-1.0)
        elif kind == "shape":
            tensors["value"] = torch.tensor([-1, -1])
        elif kind == "name":
            tensors["other"] = torch.tensor(-1)
        elif kind == "sparse":
            tensors["value"] = torch.tensor(-1).to_sparse()
    planner = FailingLoad() if kind == "plan" and rank == 1 else None
    reader = StorageReader(folder, timeout=5)
    error = attempt(dcp.load, tensors, storage_reader=reader, planner=planner)
    return error, tensors["t0"].to_local().unique().tolist()


def load_exchanged(rank: int, ranks: int, folder: str, kind: str) -> Any:
    """A shard is exchanged, cut off or deleted after the coordinator has read the headers."""
    real = StorageReader.prepare_local_plan

    def prepare(self: StorageReader, plan: Any) -> Any:
        if rank == 0:
            shard = max(Path(folder).glob("*.safetensors"))
            if kind == "exchanged":
                data = bytearray(shard.read_bytes())
                data[-1] ^= 1
                shard.with_name("new").write_bytes(data)
                os.replace(shard.with_name("new"), shard)
            elif kind == "cut off":
                os.truncate(shard, shard.stat().st_size - 4)
            else:
                shard.unlink()
        dist.barrier()
        return real(self, plan)

    StorageReader.prepare_local_plan = prepare  # type: ignore[method-assign]
    return load(rank, ranks, folder, {})
