"""peft: an adapter saved and loaded again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

import safeweights

if TYPE_CHECKING:
    from pathlib import Path


def test_adapter_round_trip(files: Path, tiny_llama: Any) -> None:
    base = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    adapted = get_peft_model(tiny_llama, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    words = torch.arange(6).reshape(1, 6)
    with torch.no_grad():
        expected = adapted(words).logits
    adapted.save_pretrained(files)
    assert len(safeweights.open(files / "adapter_model.safetensors")) == 8

    fresh = LlamaForCausalLM(tiny_llama.config)
    fresh.load_state_dict(base)
    loaded = PeftModel.from_pretrained(fresh, files)
    with torch.no_grad():
        assert torch.equal(loaded(words).logits, expected)
