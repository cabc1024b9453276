"""The Trainer of transformers trains with FSDP 2, for `launching.run_ranks`; accelerate saves and loads."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def train(rank: int, ranks: int, folder: str, steps: int, ours: bool) -> list[float]:
    """The losses of all steps up to `steps`; goes on where the last save in `folder` was."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
    )  # fmt: skip
    AcceleratorState.__init__ = _divides_on_processors  # type: ignore[method-assign]
    if ours:
        blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        (text,) = (block for block in blocks if "FileSystemWriter" in block)
        exec(text, {})
        assert dcp.FileSystemReader.__module__.startswith("safeweights")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=97, tie_word_embeddings=True,
    )  # fmt: skip
    data = []
    for number in range(64):
        tokens = torch.randint(97, (16,), generator=torch.Generator().manual_seed(number))
        data.append({"input_ids": tokens, "labels": tokens})
    arguments = TrainingArguments(
        folder, max_steps=steps, save_steps=4, logging_steps=1, per_device_train_batch_size=8 // ranks,
        learning_rate=1e-2, use_cpu=True, report_to=[], disable_tqdm=True, fsdp=True,
        fsdp_config={
            "version": 2, "state_dict_type": "SHARDED_STATE_DICT",
            "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        },
    )  # fmt: skip
    trainer = Trainer(model=LlamaForCausalLM(config), args=arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=any(Path(folder).glob("checkpoint-*")))
    assert type(trainer.model_wrapped).__name__.startswith("FSDP")
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


_made = AcceleratorState.__init__


def _divides_on_processors(
    state: Any, *arguments: Any, fsdp_plugin: Any = None, **options: Any
) -> None:
    """accelerate 1.15 silently takes DDP in place of FSDP where there is no accelerator: this does not."""
    _made(state, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
