"""One rank: a model that transformers divides for tensor parallelism, filled by `load_sharded`.

`test_tensor_parallel.py` starts two. Writes the logits it computed, and how many bytes it read.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import safeweights
from safeweights.torch import load_sharded


def main(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    wishes, _, mesh = AutoModelForCausalLM._model_mapping[type(config)].prepare_distribute_model(
        DistributedConfig(tp_size=2, tp_plan="auto")
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    model = model.maybe_distribute_model(model, wishes, mesh)
    read: list[int] = []
    report = load_sharded(model, folder, progress=read.append)
    assert report == ([], []), report
    # Buffers that no checkpoint has: the module computes them.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    model.eval()
    with torch.no_grad():
        logits = model(torch.arange(6).reshape(1, 6)).logits
    rank = os.environ["RANK"]
    torch.save(getattr(logits, "full_tensor", lambda: logits)(), folder / f"logits-{rank}.pt")
    total = sum(tensor.nbytes for tensor in safeweights.open(folder).values())
    (folder / f"read-{rank}.json").write_text(json.dumps([read[-1], total]))
    torch.distributed.destroy_process_group()
    os._exit(0)  # PyTorch may abort when Python exits: see END in tests/ranks/launching.py


if __name__ == "__main__":
    main(Path(sys.argv[1]))
