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
from safeweights.frameworks.torch.distributed import writing
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


def save_and_die(rank: int, ranks: int, folder: str, value: int, victim: int, at: int) -> Any:
    """A save in which rank `victim` is killed at its `at`-th step: its error, and the number of steps."""
    count = 0

    def counted(call: Any) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return step

    if rank == victim:
        for module, name in (
            (os, "pwrite"), (os, "open"), (os, "close"), (os, "ftruncate"), (os, "rename"),
            (os, "replace"), (os, "mkdir"), (os, "unlink"), (dist.TCPStore, "set"),
        ):  # fmt: skip
            setattr(module, name, counted(getattr(module, name)))
    return attempt(save, rank, ranks, folder, value, timeout=2), count


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
