"""transformers with tp_plan="auto": each rank reads its part of the tensors, and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import safeweights


def test_each_rank_reads_its_part(files: Path, tiny_llama: Any) -> None:
    tiny_llama.save_pretrained(files)
    with torch.no_grad():
        expected = tiny_llama.eval()(torch.arange(6).reshape(1, 6)).logits
    rank = Path(__file__).with_name("tensor_parallel.py")
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*launcher, str(rank), str(files)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr

    sizes = {name: tensor.nbytes // 4 for name, tensor in safeweights.open(files).items()}
    for number in range(2):
        found = torch.load(files / f"logits-{number}.pt", weights_only=True)
        assert torch.allclose(found, expected, atol=1e-5)
        read = json.loads((files / f"read-{number}.json").read_text())
        split = {name for name in sizes if read[name] == sizes[name] // 2}
        assert {name for name in sizes if "proj" in name} <= split
        assert all(read[name] == sizes[name] for name in sizes.keys() - split)
