"""What every rank of a run saves: a model, its optimizer, tensors of every layout (see `test_ranks`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


def model() -> nn.Module:
    """The same on each rank, with rows that no number of ranks divides."""
    torch.manual_seed(7)
    made = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 6, bias=False), nn.LayerNorm(6))
    made.register_buffer("steps", torch.arange(3))
    return made


def layouts(world: int) -> dict[str, Any]:
    """One tensor in every way that a mesh of two dimensions can divide it."""
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("a", "b"))
    whole = torch.arange(35.0).reshape(7, 5)
    choices = [Replicate(), Shard(0), Shard(1)]
    found: dict[str, Any] = {
        f"layout.{i}{j}": distribute_tensor(whole, mesh, [one, other])
        for i, one in enumerate(choices)
        for j, other in enumerate(choices)
    }
    return found | {
        "layout.parameter": nn.Parameter(distribute_tensor(whole, mesh, [Shard(0), Shard(0)]))
    }


def rank(number: int, world: int, folder: str) -> None:
    made = model()
    expected = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    if world == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        parallelize_module(made, mesh["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
        fully_shard(made, mesh=mesh["dp"])  # strided: tensor parallelism divided the rows before
    else:
        fully_shard(made)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    weights, moments = get_state_dict(made, optimizer)
    state = {"model": weights, "optimizer": moments, "step": 3, **layouts(world)}
    torch.save(state, Path(folder) / "files" / f"rank_{number}.pt")
    dcp.save(state, checkpoint_id=Path(folder) / "ckpt")
    if number == 0:
        torch.save(expected, Path(folder) / "expected.pt")
