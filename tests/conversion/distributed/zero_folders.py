"""Checkpoints of DeepSpeed ZeRO as its engine lays them out, made of whole tensors.

After deepspeed/runtime/{engine,zero/stage_1_and_2,zero/stage3}.py of 0.19. DeepSpeed's own zero_to_fp32
gives the same tensors for these folders: `test_zero.test_deepspeed_reads_the_same`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


def padded(flat: torch.Tensor, unit: int) -> torch.Tensor:
    """`flat` with zeros at its end, up to a multiple of `unit`."""
    return torch.cat([flat, torch.zeros(-len(flat) % unit)])


def flat_groups(groups: list[Tensors], stage: int, world: int) -> list[list[torch.Tensor]]:
    """Rank -> its flat partitions."""
    if stage < 3:
        vectors = [
            padded(torch.cat([t.reshape(-1) for t in group.values()]), 2 * world)
            for group in groups
        ]
        return [[vector.chunk(world)[rank].clone() for vector in vectors] for rank in range(world)]
    found = []
    for rank in range(world):
        found.append([
            torch.cat([padded(t.reshape(-1), world).chunk(world)[rank] for t in group.values()])
            for group in groups
        ])  # fmt: skip
    return found


def write_zero(
    folder: Path,
    groups: list[Tensors],
    *,
    stage: int,
    world: int = 2,
    buffers: Tensors | None = None,
    frozen: Tensors | None = None,
    shared: dict[str, str] | None = None,
    moments: list[Tensors] | None = None,
    steps: int = 10,
) -> Path:
    """A folder of one save; `groups` are the trainable parameters of each parameter group."""
    folder.mkdir(parents=True, exist_ok=True)
    buffers, frozen, shared = buffers or {}, frozen or {}, shared or {}
    flats = flat_groups(groups, stage, world)
    moments_flat = flat_groups(
        moments or [{n: t * 2 for n, t in group.items()} for group in groups], stage, world
    )
    for rank in range(world):
        state: dict[str, Any] = {
            "zero_stage": stage, "loss_scaler": None,
            "partition_count": world if stage == 3 else [world] * len(groups),
        }  # fmt: skip
        inner = {n: {"step": steps, "exp_avg": flat} for n, flat in enumerate(moments_flat[rank])}
        if stage == 3:
            state["fp32_flat_groups"] = flats[rank]
            state["optimizer_state_dict"] = {"state": inner, "param_groups": [{"lr": 0.1}]}
        else:
            state["single_partition_of_fp32_groups"] = flats[rank]
            state["base_optimizer_state"] = {"state": inner, "param_groups": [{"lr": 0.1}]}
        whole = {
            "optimizer_state_dict": state,
            "ds_config": {"zero": stage},
            "ds_version": "0.19.8",
        }
        torch.save(whole, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    everything = {name: t for group in groups for name, t in group.items()} | frozen
    for rank in range(world if stage == 3 else 1):
        module: OrderedDict[str, torch.Tensor] = OrderedDict()
        for name, tensor in everything.items():
            module[name] = torch.zeros(0, dtype=torch.bfloat16) if stage == 3 else tensor.bfloat16()
        for name, first in shared.items():
            module[name] = module[first]
        module.update(buffers)
        fragments = {n: t.bfloat16() for n, t in frozen.items()}
        if stage == 3:
            fragments = {
                n: padded(t.reshape(-1).float(), world).chunk(world)[rank].bfloat16()
                for n, t in frozen.items()
            }
        model = {
            "module": module, "buffer_names": list(buffers), "optimizer": None,
            "param_shapes": [OrderedDict((n, t.shape) for n, t in group.items()) for group in groups],
            "frozen_param_shapes": OrderedDict((n, t.shape) for n, t in frozen.items()) or None,
            "frozen_param_fragments": fragments or None, "shared_params": shared,
            "ds_version": "0.19.8", "global_steps": steps, "dp_world_size": world,
        }  # fmt: skip
        prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
        torch.save(model, folder / f"{prefix}mp_rank_00_model_states.pt")
    return folder


def some_groups() -> list[Tensors]:
    """Parameters of odd sizes, in two groups: none of them ends where a partition does."""
    torch.manual_seed(3)
    shapes = [
        {"a.weight": (7, 5), "a.bias": (7,), "e.weight": (9, 3)},
        {"norm": (1,), "s": (), "b.weight": (3, 7)},
    ]
    return [{name: torch.randn(shape) for name, shape in group.items()} for group in shapes]


def size_of(groups: list[Tensors]) -> int:
    return sum(math.prod(t.shape) for group in groups for t in group.values())
