"""What every rank of a run loads with `load_sharded`, and finds right (see `test_serving`)."""

from __future__ import annotations

import os
import re
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import safeweights
from safeweights import Concat, SafetensorError, Stack
from safeweights.storage import DescriptorSource
from safeweights.torch import load_sharded, save_file

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 256  # so that runs of columns are long enough to be read by themselves


class Block(nn.Module):
    """Fused projections and stacked experts, as models that serve have them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.out = nn.Linear(2 * WIDTH, WIDTH)
        self.experts = nn.Parameter(torch.zeros(3, 2 * WIDTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("steps", torch.arange(5))
        self.register_buffer("frequencies", torch.ones(3), persistent=False)


class Model(nn.Module):
    """Two blocks, with an embedding that is its head too, and rows that no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(37, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, 37, bias=False)
        self.head.weight = self.embedding.weight


PLAN = {
    "blocks.{i}.qkv.weight": Concat([f"blocks.{{i}}.{each}.weight" for each in "qkv"]),
    "blocks.{i}.experts": Stack(
        Concat(["blocks.{i}.experts.{e}.gate", "blocks.{i}.experts.{e}.up"]), over="e"
    ),
}


def write(folder: Path) -> None:
    """The checkpoint of a model, with projections and experts apart, in several files."""
    torch.manual_seed(3)
    stored: dict[str, torch.Tensor] = {"embedding.weight": torch.randn(37, WIDTH)}
    for i in range(2):
        at = f"blocks.{i}"
        for each, rows in (("q", WIDTH), ("k", WIDTH // 2), ("v", WIDTH // 2)):
            stored[f"{at}.{each}.weight"] = torch.randn(rows, WIDTH)
        for e, half in product(range(3), ("gate", "up")):
            stored[f"{at}.experts.{e}.{half}"] = torch.randn(WIDTH, WIDTH)
        stored |= {
            f"{at}.out.weight": torch.randn(WIDTH, 2 * WIDTH), f"{at}.out.bias": torch.randn(WIDTH),
            f"{at}.norm.weight": torch.randn(WIDTH), f"{at}.norm.bias": torch.randn(WIDTH),
            f"{at}.steps": torch.arange(5) + i,
        }  # fmt: skip
    save_file(stored, folder / "model", max_shard_size="900KB")


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """The values of every tensor of `Model`."""
    stored = safeweights.open(folder / "model").rearrange(PLAN)
    found = {name: tensor.torch() for name, tensor in stored.items()}
    return found | {"head.weight": found["embedding.weight"]}


def on_meta() -> Model:
    with torch.device("meta"):
        return Model()


def require_equal(module: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in module.state_dict().items():
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        assert full.dtype == expected[name].dtype, name
        assert torch.equal(full, expected[name]), name


def tensor_parallel(module: nn.Module, mesh: Any) -> None:
    styles = {"blocks.*.qkv": ColwiseParallel(), "blocks.*.out": RowwiseParallel()}
    parallelize_module(module, mesh, styles)


def raises(error: type[Exception], words: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=re.escape(words)):
        call()


def fsdp(folder: Path) -> None:
    """On the meta device, and in place."""
    expected = whole(folder)
    for make in (on_meta, Model):
        module = make()
        for block in module.blocks:
            fully_shard(block)
        fully_shard(module)
        report = load_sharded(module, folder / "model", plan=PLAN)
        assert report == ([], [])
        require_equal(module, expected)
        assert module.head.weight is module.embedding.weight
        if make is Model:
            assert torch.equal(module.blocks[0].frequencies, torch.ones(3))


def fsdp_trains(folder: Path) -> None:
    """What was loaded on the meta device takes part in forward and backward."""
    module = on_meta()
    fully_shard(module.blocks[0].out)
    fully_shard(module)
    load_sharded(module, folder / "model", plan=PLAN)
    expected = whole(folder)
    given = torch.ones(3, 2 * WIDTH)
    module.blocks[0].out(given).sum().backward()
    bias = module.blocks[0].out.bias.grad.full_tensor()
    assert torch.equal(bias, torch.full((WIDTH,), 3.0))
    with torch.no_grad():
        weight, bias = expected["blocks.0.out.weight"], expected["blocks.0.out.bias"]
        found = module.blocks[0].out(given)
        assert torch.allclose(found, nn.functional.linear(given, weight, bias), atol=1e-5)


def both(folder: Path) -> None:
    """FSDP over tensor parallelism: strided shards."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("dp", "tp"))
    module = on_meta()
    tensor_parallel(module, mesh["tp"])
    for block in module.blocks:
        fully_shard(block, mesh=mesh["dp"])
    load_sharded(module, folder / "model", plan=PLAN)
    require_equal(module, whole(folder))


def rows_and_columns(folder: Path) -> None:
    """Tensor parallelism reads the rows and columns of a rank, and nothing else twice."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    module = on_meta()
    tensor_parallel(module, mesh)
    reads: list[int] = []
    original, runs = DescriptorSource.read_into, DescriptorSource.read_runs

    def noting(source: DescriptorSource, offset: int, buffer: memoryview) -> None:
        reads.append(len(buffer))
        original(source, offset, buffer)

    def noting_runs(source: DescriptorSource, wanted: Any, out: memoryview, **options: Any) -> None:
        reads.append(len(out))
        runs(source, wanted, out, **options)

    progress: list[int] = []
    checkpoint = safeweights.open(folder / "model", backend="pread")
    DescriptorSource.read_into = noting  # type: ignore[method-assign]
    DescriptorSource.read_runs = noting_runs  # type: ignore[method-assign]
    try:
        load_sharded(module, checkpoint, plan=PLAN, progress=progress.append)
    finally:
        DescriptorSource.read_into = original  # type: ignore[method-assign]
        DescriptorSource.read_runs = runs  # type: ignore[method-assign]
    require_equal(module, whole(folder))
    local = {
        id(tensor): getattr(tensor, "_local_tensor", tensor).nbytes
        for tensor in module.state_dict(keep_vars=True).values()
    }
    assert progress[-1] == sum(local.values())
    assert 0 < sum(reads) <= 1.05 * sum(local.values()), (sum(reads), local)


def layouts(folder: Path) -> None:
    """Every way to divide a tensor over a mesh, also those of which a rank has no single box."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("a", "b"))
    choices = [
        Replicate(), Shard(0), Shard(1), _StridedShard(0, split_factor=2),
        _StridedShard(1, split_factor=3), _StridedShard(-1, split_factor=2),
    ]  # fmt: skip
    values = torch.arange(11 * 12.0).reshape(11, 12)
    path = folder / f"layouts-{dist.get_rank()}.safetensors"
    save_file({"w": values, "none": torch.empty(0, 3), "scalar": torch.tensor(2.0)}, path)
    for placements in product(choices, repeat=2):
        for meta, dtype in product((True, False), (torch.float32, torch.bfloat16)):
            # Without communication: torch scatters strided shards only if they are even.
            made = distribute_tensor(values.to(dtype), mesh, placements, src_data_rank=None)
            expected = made.to_local().clone()
            scalar = distribute_tensor(torch.tensor(0.0), mesh, [Replicate()] * 2)
            module = nn.Module()
            module.w = nn.Parameter(made.to("meta") if meta else torch.zeros_like(made))
            module.none = nn.Parameter(torch.empty(0, 3))
            module.register_buffer("scalar", scalar)
            load_sharded(module, path)
            assert module.w.dtype == dtype
            assert torch.equal(module.w.to_local(), expected), (placements, meta, dtype)
            assert module.scalar.to_local() == 2
    part = nn.Module()
    part.w = nn.Parameter(distribute_tensor(values, mesh, [Partial(), Replicate()]))
    raises(SafetensorError, "placement P", lambda: load_sharded(part, path, strict=False))


def stages(folder: Path) -> None:
    """Pipeline stages: each a part of the module."""
    expected = whole(folder)
    for number in range(2):
        module = on_meta()
        del module.embedding, module.head, module.blocks[1 - number]
        if number:
            module.blocks = nn.ModuleDict({"1": module.blocks[0]})
        raises(
            SafetensorError,
            "Unexpected key",
            lambda m=module: load_sharded(m, folder / "model", plan=PLAN),
        )
        report = load_sharded(module, folder / "model", plan=PLAN, subset=True)
        assert report.missing_keys == []
        assert all(name.startswith(("embedding", f"blocks.{1 - number}")) for name in report[1])
        require_equal(module, expected)
        module.more = nn.Linear(2, 2)
        raises(
            SafetensorError,
            "Missing key",
            lambda m=module: load_sharded(m, folder / "model", plan=PLAN, subset=True),
        )


def refusals(folder: Path) -> None:
    """An error on every rank, before any parameter is touched."""
    rank = dist.get_rank()
    module = Model()
    fully_shard(module)
    before = [each.to_local().clone() for each in module.parameters()]
    damaged = folder / f"damaged-{rank}"
    damaged.mkdir()
    files = sorted((folder / "model").iterdir())
    for each in files:
        (damaged / each.name).write_bytes(each.read_bytes())
    last = damaged / files[-2].name
    os.truncate(last, last.stat().st_size - 1)
    raises(SafetensorError, last.name, lambda: load_sharded(module, damaged, plan=PLAN))
    last.unlink()
    raises(SafetensorError, last.name, lambda: load_sharded(module, damaged, plan=PLAN))
    raises(SafetensorError, "blocks.0.experts", lambda: load_sharded(module, folder / "model"))
    less = {key: part for key, part in PLAN.items() if "qkv" not in key}
    less["blocks.{i}.qkv.weight"] = Concat(["blocks.{i}.q.weight", "blocks.{i}.k.weight"])
    raises(
        SafetensorError,
        "size mismatch",
        lambda: load_sharded(module, folder / "model", plan=less, subset=True),
    )
    for one, other in zip(before, module.parameters(), strict=True):
        assert torch.equal(one, other.to_local())


CASES = [fsdp, fsdp_trains, both, rows_and_columns, layouts, stages, refusals]


def rank(number: int, world: int, folder: str) -> None:
    if number == 0:
        write(Path(folder))
    dist.barrier()
    for case in CASES:
        if case is layouts and world < 4:
            continue
        case(Path(folder))
        dist.barrier()
        (Path(folder) / f"{case.__name__}-{number}").touch()
