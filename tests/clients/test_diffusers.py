"""diffusers: models from a configuration, whole, in half precision and sharded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel

import safeweights

if TYPE_CHECKING:
    from pathlib import Path


def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unet(files: Path, dtype: torch.dtype) -> None:
    model = unet().to(dtype)
    model.save_pretrained(files)
    loaded = UNet2DModel.from_pretrained(files, torch_dtype=dtype)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert (files / "diffusion_pytorch_model.safetensors").exists()


def test_unet_sharded(files: Path) -> None:
    model = unet()
    model.save_pretrained(files, max_shard_size="20KB")
    assert len(list(files.glob("*.safetensors"))) > 1
    loaded = UNet2DModel.from_pretrained(files)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert set(safeweights.open(files)) == set(model.state_dict())


def test_vae_decodes_the_same(files: Path) -> None:
    torch.manual_seed(0)
    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2).eval()
    model.save_pretrained(files, variant="fp16")
    loaded = AutoencoderKL.from_pretrained(files, variant="fp16").eval()
    latents = torch.randn(1, 2, 4, 4)
    with torch.no_grad():
        assert torch.equal(model.decode(latents).sample, loaded.decode(latents).sample)
