"""Ranks of PyTorch in one process: a process group that says it is rank n, and sends nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def as_rank(rank: int, world: int) -> Iterator[None]:
    """A process group in which this process is `rank` of `world`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        try:
            yield
        finally:
            dist.destroy_process_group()


def save_ranks(
    folder: Path, mesh: tuple[int, ...], state: Callable[[DeviceMesh], dict[str, Any]]
) -> Path:
    """One file a rank: what `state` gives for a mesh of that shape."""
    folder.mkdir(exist_ok=True)
    world = int(torch.tensor(mesh).prod())
    names = ("dp", "tp", "pp")[: len(mesh)]
    for rank in range(world):
        with as_rank(rank, world):
            made = state(init_device_mesh("cpu", mesh, mesh_dim_names=names))
            torch.save(made, folder / f"rank_{rank}.pt")
    return folder


def divided(tensor: torch.Tensor, mesh: DeviceMesh, *placements: Any) -> Any:
    """This rank's part of `tensor`, as a DTensor."""
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)
