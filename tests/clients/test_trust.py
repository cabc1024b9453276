"""transformers, diffusers and accelerate under a policy: a tampered and an unsigned model are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import accelerate
import pytest
import torch
from diffusers import UNet2DModel
from transformers import LlamaForCausalLM

import safeweights.compat
from safeweights.trust import TrustError, generate_key, load_private_key, sign
from safeweights.trust.verifier import set_default

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def policy(tmp_path: Path) -> Iterator[Path]:
    """A policy by which everything must be signed with the key in `key`; it ends with the test."""
    generate_key(tmp_path / "key")
    path = tmp_path / "policy.toml"
    path.write_text(
        "[signers.us]\npublic_key = 'key.pub'\n[[rules]]\npattern = '*'\nsigners = ['us']\n"
    )
    yield path
    set_default(None)


def save_llama(folder: Path, model: Any) -> None:
    model.save_pretrained(folder, max_shard_size="20KB")


def save_unet(folder: Path, _: Any) -> None:
    torch.manual_seed(0)
    UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    ).save_pretrained(folder)  # fmt: skip


def by_transformers(folder: Path, _: Any) -> Any:
    return LlamaForCausalLM.from_pretrained(folder)


def by_accelerate(folder: Path, model: Any) -> Any:
    fresh = LlamaForCausalLM(model.config)
    accelerate.load_checkpoint_in_model(fresh, str(folder))
    return fresh


def by_diffusers(folder: Path, _: Any) -> Any:
    return UNet2DModel.from_pretrained(folder, use_safetensors=True)


@pytest.mark.parametrize(
    ("save", "load"),
    [
        (save_llama, by_transformers),
        (save_llama, by_accelerate),
        (save_unet, by_diffusers),
    ],
)
def test_under_a_policy(
    policy: Path,
    files: Path,
    tiny_llama: Any,
    save: Callable[[Path, Any], None],
    load: Callable[[Path, Any], Any],
) -> None:
    save(files, tiny_llama)
    sign(files, load_private_key(policy.parent / "key"))
    safeweights.compat.install(trust=policy)
    assert load(files, tiny_llama) is not None
    shard = max(files.glob("*.safetensors"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Exception) as caught:
        load(files, tiny_llama)
    assert is_refusal(caught.value)
    shard.write_bytes(data)
    (files / "model.sig").unlink()
    with pytest.raises(Exception) as caught:
        load(files, tiny_llama)
    assert is_refusal(caught.value)


def is_refusal(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, TrustError):
            return True
        error = error.__cause__ or error.__context__
    return False
