"""transformers: save_pretrained and from_pretrained, whole, sharded, in bfloat16; the duck-typed way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open as safe_open_as_clients_see_it
from transformers import BertConfig, BertModel, LlamaForCausalLM, modeling_utils

import safeweights


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def test_the_client_runs_on_this_package() -> None:
    assert safe_open_as_clients_see_it is safeweights.safe_open
    assert modeling_utils.safe_open is safeweights.safe_open


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(files: Path, tiny_llama: Any, dtype: torch.dtype) -> None:
    model = tiny_llama.to(dtype)
    model.save_pretrained(files)
    loaded = LlamaForCausalLM.from_pretrained(files, dtype=dtype)
    assert same(model.state_dict(), loaded.state_dict())
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert safeweights.open(files / "model.safetensors").metadata == {"format": "pt"}


def test_sharded(files: Path, tiny_llama: Any) -> None:
    tiny_llama.save_pretrained(files, max_shard_size="20KB")
    index = json.loads((files / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    loaded = LlamaForCausalLM.from_pretrained(files)
    assert same(tiny_llama.state_dict(), loaded.state_dict())
    assert set(safeweights.open(files)) == set(index["weight_map"])


def test_encoder_gives_the_same_hidden_states(files: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = BertModel(config).eval()
    model.save_pretrained(files)
    loaded = BertModel.from_pretrained(files).eval()
    words = torch.arange(10).reshape(1, 10)
    with torch.no_grad():
        assert torch.equal(model(words).last_hidden_state, loaded(words).last_hidden_state)


def test_saving_twice_gives_the_same_file(files: Path, tiny_llama: Any) -> None:
    tiny_llama.save_pretrained(files)
    first = (files / "model.safetensors").read_bytes()
    LlamaForCausalLM.from_pretrained(files).save_pretrained(files)
    assert (files / "model.safetensors").read_bytes() == first


def test_a_broken_file_is_an_error(files: Path, tiny_llama: Any) -> None:
    tiny_llama.save_pretrained(files)
    weights = files / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(safeweights.SafetensorError, match="not fully covered"):
        LlamaForCausalLM.from_pretrained(files)


def test_the_recipe_of_the_documentation(
    files: Path, tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs" / "frameworks.md"
    section = page.read_text().partition("## Transformers without patching")[2]
    block = section.partition("```python\n")[2].partition("```")[0]
    tiny_llama.save_pretrained(files / "folder", max_shard_size="20KB")
    monkeypatch.chdir(files)
    names: dict[str, Any] = {}
    exec(block, names)
    assert same(tiny_llama.state_dict(), names["model"].state_dict())


def test_slices_of_a_handle_are_a_state_dict(files: Path, tiny_llama: Any) -> None:
    """The recipe of docs/frameworks.md: no patching at all, for transformers >= 5."""
    tiny_llama.save_pretrained(files)
    with safeweights.safe_open(files / "model.safetensors", framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file}
    loaded = LlamaForCausalLM.from_pretrained(None, config=tiny_llama.config, state_dict=slices)
    assert same(tiny_llama.state_dict(), loaded.state_dict())


class Filtered:
    """Any object with these three methods is a tensor for transformers v5."""

    def __init__(self, tensor: safeweights.Tensor) -> None:
        self._tensor = tensor
        self.asked: list[Any] = []

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return self._tensor.dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        self.asked.append(index)
        whole = torch.frombuffer(bytearray(self._tensor.view()), dtype=torch.float32)
        return whole.reshape(self._tensor.shape)[index]


def test_any_mapping_of_tensors_is_a_state_dict(files: Path, tiny_llama: Any) -> None:
    tiny_llama.save_pretrained(files, max_shard_size="20KB")
    state = {name: Filtered(tensor) for name, tensor in safeweights.open(files).items()}
    loaded = LlamaForCausalLM.from_pretrained(None, config=tiny_llama.config, state_dict=state)
    assert same(tiny_llama.state_dict(), loaded.state_dict())
    assert all(tensor.asked for tensor in state.values())


def test_versions() -> None:
    import safetensors

    assert int(transformers.__version__.split(".")[0]) >= 5
    assert safetensors.__version__ >= "0.8.0"
