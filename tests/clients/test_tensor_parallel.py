"""transformers with tp_plan="auto": each rank reads its part of the tensors, and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import safeweights


def launch(program: str, folder: Path) -> None:
    """Run two ranks."""
    rank = Path(__file__).with_name(program)
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
    ]  # fmt: skip
    done = subprocess.run(
        [*launcher, str(rank), str(folder)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_load_sharded_fills_what_transformers_divided(
    files: Path, tiny_llama: Any, dtype: torch.dtype, tolerance: float
) -> None:
    config = type(tiny_llama.config)(**tiny_llama.config.to_dict() | {"tie_word_embeddings": False})
    torch.manual_seed(1)
    whole = type(tiny_llama)(config).to(dtype).eval()
    whole.save_pretrained(files)
    with torch.no_grad():
        expected = whole(torch.arange(6).reshape(1, 6)).logits
    launch("sharded.py", files)
    for number in range(2):
        found = torch.load(files / f"logits-{number}.pt", weights_only=True)
        assert found.dtype == dtype
        assert torch.allclose(found, expected, atol=tolerance)
        read, total = json.loads((files / f"read-{number}.json").read_text())
        assert read < total


def test_each_rank_reads_its_part(files: Path, tiny_llama: Any) -> None:
    tiny_llama.save_pretrained(files)
    with torch.no_grad():
        expected = tiny_llama.eval()(torch.arange(6).reshape(1, 6)).logits
    launch("tensor_parallel.py", files)

    sizes = {name: tensor.nbytes // 4 for name, tensor in safeweights.open(files).items()}
    for number in range(2):
        found = torch.load(files / f"logits-{number}.pt", weights_only=True)
        assert torch.allclose(found, expected, atol=1e-5)
        read = json.loads((files / f"read-{number}.json").read_text())
        split = {name for name in sizes if read[name] == sizes[name] // 2}
        assert {name for name in sizes if "proj" in name} <= split
        assert all(read[name] == sizes[name] for name in sizes.keys() - split)
