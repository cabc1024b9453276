"""huggingface_hub: saving and loading torch models, splitting, reading metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import hf_api

import safeweights
import safeweights.torch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_save_and_load_torch_model(files: Path, tiny_llama: Any, size: str) -> None:
    files.mkdir()
    huggingface_hub.save_torch_model(tiny_llama, files, max_shard_size=size)
    expected = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    with torch.no_grad():
        for parameter in tiny_llama.parameters():
            parameter.zero_()
    result = huggingface_hub.load_torch_model(tiny_llama, files, strict=False)
    assert not result.unexpected_keys
    for name, tensor in tiny_llama.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert safeweights.open(files).metadata["format"] == "pt"


def test_split_into_shards(tiny_llama: Any) -> None:
    split = huggingface_hub.split_torch_state_dict_into_shards(
        tiny_llama.state_dict(), max_shard_size="20KB"
    )
    assert split.is_sharded
    assert set(split.tensor_to_filename) <= set(tiny_llama.state_dict())


def test_local_metadata(files: Path, tiny_llama: Any) -> None:
    files.mkdir()
    safeweights.torch.save_model(tiny_llama, files / "model.safetensors", {"format": "pt"})
    found = hf_api.parse_local_safetensors_file_metadata(files / "model.safetensors")
    ours = safeweights.open(files)
    assert set(found.tensors) == set(ours)
    for name, info in found.tensors.items():
        assert (info.dtype, tuple(info.shape)) == ours.info(name)[:2]
    assert hf_api.get_local_safetensors_metadata(files).sharded is False


def test_model_hub_mixin(files: Path) -> None:
    class Net(torch.nn.Module, huggingface_hub.PyTorchModelHubMixin):
        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(width, width)

    model = Net(8)
    model.save_pretrained(files)
    loaded = Net.from_pretrained(files)
    assert torch.equal(loaded.layer.weight, model.layer.weight)
