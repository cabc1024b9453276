"""A process that loads one file in several ways, and says how much memory each takes.

`test_torch_memory` starts several, which hold the same at the moment when they are asked.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch
from torch import nn

from safeweights.torch import load_file, load_sharded


def proportional() -> int:
    """Proportional set size: each page counts by one over the number of processes that have it."""
    text = Path("/proc/self/smaps_rollup").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) << 10


def loaded(path: Path, way: str) -> list[torch.Tensor]:
    if way == "file, mmap":
        return [*load_file(path).values()]
    with torch.device("meta"):
        module = nn.ModuleDict({f"{i}": nn.Linear(2048, 1024, bias=False) for i in range(4)})
    load_sharded(module, path, backend=way.partition(", ")[2])
    return [*module.parameters()]


def main(path: Path) -> None:
    for way in ("file, mmap", "module, mmap", "module, pread"):
        gc.collect()
        before = proportional()
        tensors = loaded(path, way)
        total = sum(float(each.sum()) for each in tensors)
        print("ready", flush=True)
        sys.stdin.readline()
        print(proportional() - before, total, flush=True)
        sys.stdin.readline()
        del tensors


if __name__ == "__main__":
    main(Path(sys.argv[1]))
