"""State dicts of every layout, for `launching.run_ranks`; every rank makes the same values."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from safeweights.distributed import StorageReader, StorageWriter

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e8m0fnu, torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    """Bytes that differ everywhere, as a tensor; the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape) * dtype.itemsize
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8).bool()
    data = torch.randint(0, 120, (count,), generator=generator, dtype=torch.uint8)
    return data.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def whole() -> dict[str, torch.Tensor]:
    """Every tensor, undivided."""
    found = {f"dtype.{str(d).removeprefix('torch.')}": values((6, 5), d) for d in DTYPES}
    found |= {
        "plain.scalar": torch.tensor(5),
        "plain.empty": torch.empty(0, 3),
        "plain.rows": values((3, 4), torch.bfloat16),
        "plain.turned": values((4, 3), torch.float32).T,
        "deep": values((3, 4, 5, 2), torch.int32),
        "few_rows": values((1, 9), torch.float32),  # most ranks have none of them
        "uneven": values((7, 11), torch.float32),
        "column": values((9, 1), torch.int16),
    }
    return found


def divided(ranks: int) -> dict[str, Any]:
    """The same, divided in many ways."""
    rows = init_device_mesh("cpu", (ranks,))
    grid = init_device_mesh("cpu", (2, ranks // 2)) if ranks > 1 else None
    found: dict[str, Any] = {}
    for number, (name, tensor) in enumerate(whole().items()):
        if name.startswith("plain."):
            found[name] = tensor
        elif name.startswith("dtype."):
            found[name] = distribute_tensor(tensor, rows, [Shard(number % 2)], src_data_rank=None)
        else:
            found[name] = distribute_tensor(tensor, rows, [Shard(0)], src_data_rank=None)
            for axis in range(1, tensor.dim()):
                placed = distribute_tensor(tensor, rows, [Shard(axis)], src_data_rank=None)
                found[f"{name}.axis{axis}"] = placed
            found[f"{name}.copies"] = distribute_tensor(
                tensor, rows, [Replicate()], src_data_rank=None
            )
            if grid is not None:
                for a in (Replicate(), Shard(0), Shard(1)):
                    for b in (Replicate(), Shard(0), Shard(1)):
                        placed = distribute_tensor(tensor, grid, [a, b], src_data_rank=None)
                        found[f"{name}.grid{a}{b}".replace("(", "").replace(")", "")] = placed
    return found


def expected(names: Any) -> dict[str, torch.Tensor]:
    """What is stored under these names."""
    tensors = whole()
    return {
        n: tensors[n if n in tensors else n.rpartition(".")[0]].contiguous().clone() for n in names
    }


def blank(state: dict[str, Any]) -> dict[str, Any]:
    """The same tensors, with other values."""
    with torch.no_grad():
        for tensor in state.values():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if local.is_contiguous() and local.numel():
                local.view(torch.uint8).fill_(1) if local.dim() else local.fill_(1)
    return state


def save(rank: int, ranks: int, folder: str, options: dict[str, Any]) -> list[str]:
    state = divided(ranks)
    extra = {"step": 7, "betas": (0.9, 0.99), "nested": {"rates": [1e-3, None, float("inf")]}}
    dcp.save({**state, **extra}, storage_writer=StorageWriter(folder, **options))
    return list(state)


def load(rank: int, ranks: int, folder: str, options: dict[str, Any]) -> int:
    """Load into other divisions, and compare."""
    right = divided(ranks)
    state: dict[str, Any] = blank(divided(ranks))
    state |= {"step": 0, "betas": None, "nested": {"rates": None}}
    dcp.load(state, storage_reader=StorageReader(folder, **options))
    assert state.pop("step") == 7
    assert state.pop("betas") == (0.9, 0.99)
    assert state.pop("nested") == {"rates": [1e-3, None, float("inf")]}
    for name, tensor in state.items():
        found, wanted = (
            t.to_local() if isinstance(t, DTensor) else t for t in (tensor, right[name])
        )
        assert same(found, wanted), name
    return len(state)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same bytes."""
    a, b = a.contiguous(), b.contiguous()
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return not a.numel() or torch.equal(
        a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    )
