"""One rank of the tensor-parallel recipe of docs/frameworks.md; `test_tensor_parallel.py` starts two.

Writes the logits it computed and what it asked of each tensor.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.distributed import DistributedConfig

import safeweights


class Watched:
    """A slice of a handle that remembers how much of it was read."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self.read = 0
        self.get_shape = part.get_shape
        self.get_dtype = part.get_dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        found: torch.Tensor = self._part[index]
        self.read += found.numel()
        return found


def main(folder: Path) -> None:
    with safeweights.safe_open(folder / "model.safetensors", "pt", backend="pread") as file:
        state = {name: Watched(file.get_slice(name)) for name in file}
    model = LlamaForCausalLM.from_pretrained(
        None, config=LlamaConfig.from_pretrained(folder), state_dict=state,
        distributed_config=DistributedConfig(tp_plan="auto"),
    )  # fmt: skip
    with torch.no_grad():
        logits = model(torch.arange(6).reshape(1, 6)).logits
    rank = os.environ["RANK"]
    torch.save(getattr(logits, "full_tensor", lambda: logits)(), folder / f"logits-{rank}.pt")
    read = {name: part.read for name, part in state.items()}
    (folder / f"read-{rank}.json").write_text(json.dumps(read))
    torch.distributed.destroy_process_group()
    os._exit(0)  # PyTorch may abort when Python exits: see END in tests/ranks/launching.py


if __name__ == "__main__":
    main(Path(sys.argv[1]))
