"""A small transformers model that ranks train, save and load, for `launching.run_ranks`."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import LlamaConfig, LlamaForCausalLM

from safeweights.distributed import StorageReader, StorageWriter

TENSOR_PARALLEL = {
    "self_attn.q_proj": ColwiseParallel(), "self_attn.k_proj": ColwiseParallel(),
    "self_attn.v_proj": ColwiseParallel(), "self_attn.o_proj": RowwiseParallel(),
    "mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel(),
    "mlp.down_proj": RowwiseParallel(),
}  # fmt: skip


class Training:
    """FSDP 2, over tensor parallelism on 4 ranks."""

    def __init__(self, ranks: int) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=97, tie_word_embeddings=True,
        )  # fmt: skip
        self.model = LlamaForCausalLM(config)
        self.model.set_attn_implementation("eager")
        mesh = init_device_mesh(
            "cpu", (ranks // 2, 2) if ranks == 4 else (ranks, 1), mesh_dim_names=("dp", "tp")
        )
        for layer in self.model.model.layers:
            if ranks == 4:
                parallelize_module(layer, mesh["tp"], TENSOR_PARALLEL)
            fully_shard(layer, mesh=mesh["dp"])
        fully_shard(self.model, mesh=mesh["dp"])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, foreach=False)

    def step(self, number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(97, (2, 16), generator=generator)
        loss = self.model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss)

    def state(self, step: int) -> dict[str, Any]:
        weights, moments = get_state_dict(self.model, self.optimizer)
        return {"model": weights, "optimizer": moments, "step": step}

    def load(self, reader: Any) -> int:
        found = self.state(0)
        dcp.load(found, storage_reader=reader)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=found["model"],
            optim_state_dict=found["optimizer"],
        )
        return int(found["step"])


def train_and_die(rank: int, ranks: int, folder: str) -> Any:
    """Save after 10 steps, in both ways; train on and be killed."""
    training = Training(ranks)
    for number in range(1, 11):
        training.step(number)
    dcp.save(
        training.state(10), storage_writer=StorageWriter(f"{folder}/ours", max_shard_size="40KB")
    )
    dcp.save(training.state(10), checkpoint_id=f"{folder}/torch")
    for number in range(11, 14):
        training.step(number)
    dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def train(rank: int, ranks: int, folder: str | None, which: str) -> list[float]:
    """The losses of steps 11 to 20: after 10 others, or after what was saved then."""
    training = Training(ranks)
    if folder is None:
        for number in range(1, 11):
            training.step(number)
    else:
        path = f"{folder}/{which}"
        reader = StorageReader(path) if which == "ours" else dcp.FileSystemReader(path)
        assert training.load(reader) == 10
    return [training.step(number) for number in range(11, 21)]
