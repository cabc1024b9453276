"""One of eight tensor-parallel ranks loads its part of a model: bytes read, memory, time.

    python benchmarks/serving.py [--layers 1] [--rank 3]

The module is a stack of Llama's layers (hidden size 4096, 14336 in the middle, BF16), divided by
``parallelize_module`` over a mesh of eight; only this rank exists (torch's fake process group). Each way
runs in a process of its own. "Read" counts the bytes that a load reads or copies, "part" what the rank's
tensors take; the other ways map the whole file, so that of them the pages that they touched are counted, as
the growth of the peak of the resident set beyond the rank's part.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from bench.marks import Marks
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

import safeweights.torch
from safeweights.storage import DescriptorSource

RANKS = 8
HIDDEN, MIDDLE, KEYS = 4096, 14336, 1024
SHAPES = {
    "q": (HIDDEN, HIDDEN), "k": (KEYS, HIDDEN), "v": (KEYS, HIDDEN), "o": (HIDDEN, HIDDEN),
    "gate": (MIDDLE, HIDDEN), "up": (MIDDLE, HIDDEN), "down": (HIDDEN, MIDDLE),
}  # fmt: skip


def model(layers: int) -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleList(
            nn.ModuleDict(
                {
                    name: nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16)
                    for name, (rows, columns) in SHAPES.items()
                }
            )
            for _ in range(layers)
        )


def divided(layers: int, rank: int) -> nn.Module:
    dist.init_process_group("fake", rank=rank, world_size=RANKS, store=FakeStore())
    made = model(layers)
    styles = {
        f"*.{name}": RowwiseParallel() if name in {"o", "down"} else ColwiseParallel()
        for name in SHAPES
    }
    parallelize_module(made, init_device_mesh("cpu", (RANKS,)), styles)
    return made


def load_ours(module: nn.Module, folder: Path) -> None:
    safeweights.torch.load_sharded(module, folder)


def load_dcp(module: nn.Module, folder: Path) -> None:
    module.to_empty(device="cpu")
    state = module.state_dict()
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def load_whole(module: nn.Module, folder: Path) -> None:
    module.to_empty(device="cpu")
    whole = safetensors.torch.load_file(folder / "model.safetensors")
    for name, tensor in module.state_dict().items():
        placed = distribute_tensor(
            whole[name], tensor.device_mesh, tensor.placements, src_data_rank=None
        )
        tensor.copy_(placed)


WAYS = {
    "safeweights.torch.load_sharded": load_ours,
    "torch.distributed.checkpoint (HuggingFaceStorageReader)": load_dcp,
    "safetensors.torch.load_file, then distribute_tensor": load_whole,
}


def field(path: str, name: str) -> int:
    (line,) = (line for line in Path(path).read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def counted() -> list[int]:
    """The bytes that this package reads from a file, or copies from its pages, from now on."""
    asked: list[int] = []
    read, runs = DescriptorSource._read, DescriptorSource._read_together
    copy = DescriptorSource._copy_part

    def noting(source: DescriptorSource, offset: int, buffer: memoryview) -> None:
        asked.append(len(buffer))
        read(source, offset, buffer)

    def noting_runs(source: DescriptorSource, wanted: Any, out: memoryview) -> bool:
        done = runs(source, wanted, out)
        asked.append(len(out) if done else 0)
        return done

    def noting_copies(source: DescriptorSource, wanted: Any, out: memoryview) -> bool:
        done = copy(source, wanted, out)
        asked.append(len(out) if done else 0)
        return done

    DescriptorSource._read = noting  # type: ignore[method-assign]
    DescriptorSource._copy_part = noting_copies  # type: ignore[method-assign]
    DescriptorSource._read_together = noting_runs  # type: ignore[method-assign]
    return asked


def measured(way: str, folder: Path, layers: int, rank: int) -> dict[str, Any]:
    module = divided(layers, rank)
    asked = counted()
    memory = field("/proc/self/status", "VmHWM")
    began = time.perf_counter()
    with torch.no_grad():
        WAYS[way](module, folder)
    took = time.perf_counter() - began
    found = {
        "seconds": took,
        "read": sum(asked),
        "peak": (field("/proc/self/status", "VmHWM") - memory) << 10,
        "part": 0,
        "sum": 0.0,
    }
    for tensor in module.state_dict().values():
        assert isinstance(tensor, DTensor)
        found["part"] += tensor.to_local().nbytes
        found["sum"] += float(tensor.to_local().double().sum())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rank", type=int, default=3)
    parser.add_argument("--way")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measured(given.way, given.folder, given.layers, given.rank)))
        return 0
    marks = Marks("serving")
    with tempfile.TemporaryDirectory() as name:
        state = {
            f"{layer}.{key}.weight": torch.randn(shape).bfloat16()
            for layer in range(given.layers)
            for key, shape in SHAPES.items()
        }
        safeweights.torch.save_file(state, Path(name) / "model.safetensors", {"format": "pt"})
        size = sum(tensor.nbytes for tensor in state.values())
        del state
        sums = set()
        print(f"{size / 2**20:.0f} MiB; rank {given.rank} of {RANKS} needs an eighth")
        print("| way | read or mapped | of the file | x its part | peak memory | s |")
        print("|---|---|---|---|---|---|")
        for way in WAYS:
            command = [
                sys.executable, __file__, "--way", way, "--folder", name, "--layers",
                str(given.layers), "--rank", str(given.rank),
            ]  # fmt: skip
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            sums.add(row["sum"])
            ours = way.startswith("safeweights")
            total = row["read"] if ours else max(row["peak"] - row["part"], row["part"])
            print(
                f"| {way} | {total / 2**20:.1f} MiB | {total / size:.3f} | {total / row['part']:.2f} | "
                f"{row['peak'] / 2**20:.0f} MiB | {row['seconds']:.2f} |"
            )
            if ours:
                title = f"load_sharded, one of {RANKS} ranks: bytes read / needed"
                marks.add(title, total * RANKS / size, most=1.05)
        assert len(sums) == 1, "the ways loaded different values"
    return marks.close()


if __name__ == "__main__":
    raise SystemExit(main())
