"""accelerate: dispatching a checkpoint on the CPU, saving a model, offloading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import accelerate
import pytest
import torch
from accelerate.utils import load_state_dict
from transformers import LlamaForCausalLM

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_load_checkpoint_and_dispatch(files: Path, tiny_llama: Any, size: str) -> None:
    tiny_llama.save_pretrained(files, max_shard_size=size)
    with accelerate.init_empty_weights():
        model = LlamaForCausalLM(tiny_llama.config)
    model.tie_weights()
    path = files if size == "20KB" else files / "model.safetensors"
    model = accelerate.load_checkpoint_and_dispatch(model, str(path), device_map={"": "cpu"})
    for name, tensor in tiny_llama.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_save_model(files: Path, tiny_llama: Any) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.save_model(tiny_llama, files, max_shard_size="20KB")
    fresh = LlamaForCausalLM(tiny_llama.config)
    accelerate.load_checkpoint_in_model(fresh, str(files))
    fresh.tie_weights()
    for name, tensor in tiny_llama.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_load_state_dict(files: Path, tiny_llama: Any) -> None:
    tiny_llama.save_pretrained(files)
    state = load_state_dict(str(files / "model.safetensors"), device_map={"": "cpu"})
    assert torch.equal(state["model.norm.weight"], tiny_llama.model.norm.weight)


def test_disk_offload(files: Path, tiny_llama: Any, tmp_path: Path) -> None:
    """Weights stay in the file until a layer runs."""
    tiny_llama.save_pretrained(files)
    words = torch.arange(5).reshape(1, 5)
    with torch.no_grad():
        expected = tiny_llama(words).logits
    places = {f"model.{part}": "cpu" for part in ("embed_tokens", "layers.0", "norm", "rotary_emb")}
    loaded = LlamaForCausalLM.from_pretrained(
        files, offload_folder=tmp_path / "offload",
        device_map={**places, "model.layers.1": "disk", "lm_head": "cpu"},
    )  # fmt: skip
    with torch.no_grad():
        assert torch.allclose(loaded(words).logits, expected)
