"""Maps of LoRA names: what diffusers' own conversion functions make of the same file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_kohya,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import safeweights.torch
from safeweights.editing import edit
from safeweights.editing.keymaps import key_map, table_of
from safeweights.editing.keymaps.table import TableMap

if TYPE_CHECKING:
    from pathlib import Path

UNETS: dict[str, dict[str, Any]] = {
    "lora-sd1": {
        "block_out_channels": (1, 2, 4, 4),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": 2,
    },
    "lora-sdxl": {
        "block_out_channels": (1, 2, 4),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": 2,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 2,
        "projection_class_embeddings_input_dim": 12,
    },
}


def unet(name: str, channels: int = 8) -> UNet2DConditionModel:
    """The UNet of a model, with `channels` where the real one has 320."""
    torch.manual_seed(0)
    config = UNETS[name]
    wide = [channels * factor for factor in config["block_out_channels"]]
    return UNet2DConditionModel(
        cross_attention_dim=8, norm_num_groups=4, **{**config, "block_out_channels": wide}
    )


def modules(model: UNet2DConditionModel) -> set[str]:
    """Names of all modules that a LoRA can be for."""
    kinds = torch.nn.Linear, torch.nn.Conv2d
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("name", UNETS)
def test_the_table_has_all_modules_of_the_model_and_no_other(name: str) -> None:
    ours = TableMap(table_of(name), "kohya", "diffusers").names.values()
    found = {new.removesuffix(".lora_A.weight") for new in ours if new.endswith(".lora_A.weight")}
    assert {each.removeprefix("unet.") for each in found if each.startswith("unet.")} == modules(
        unet(name)
    )


@pytest.mark.parametrize("name", UNETS)
def test_comfyuis_names_are_those_of_the_original_model(name: str) -> None:
    ours = TableMap(table_of(name), "comfyui", "diffusers").names
    original = {
        old.removesuffix(".lora_down.weight"): new.removesuffix(".lora_A.weight")
        for old, new in ours.items()
        if old.startswith("diffusion_model.") and old.endswith(".lora_down.weight")
    }
    checkpoint = {
        f"model.{old}.{part}": torch.tensor(0) for old in original for part in ("weight", "bias")
    }
    config = {**unet(name).config, "class_embed_type": None}
    theirs = convert_ldm_unet_checkpoint(checkpoint, config)
    for old, new in original.items():
        name_there = new.removeprefix("unet.") + ".weight"
        assert theirs[name_there] is checkpoint[f"model.{old}.weight"]
    assert len(theirs) == len(checkpoint)


@pytest.mark.parametrize("name", UNETS)
def test_kohya_to_diffusers_is_diffusers_own_conversion(name: str) -> None:
    ours = TableMap(table_of(name), "kohya", "diffusers").names
    file = {old: torch.tensor([[float(number)]]) for number, old in enumerate(ours)}
    file = {old: value for old, value in file.items() if not old.startswith("scale:")}
    mine = {ours[old]: value for old, value in file.items()}
    given = dict(file)
    if name == "lora-sdxl":
        given = _maybe_map_sgm_blocks_to_diffusers(given, unet(name).config)
    theirs, _ = StableDiffusionLoraLoaderMixin.lora_state_dict(given)
    peft: dict[str, torch.Tensor] = {}
    for component in ("unet", "text_encoder", "text_encoder_2"):
        part = {
            old.removeprefix(f"{component}."): value
            for old, value in theirs.items()
            if old.startswith(f"{component}.")
        }
        if component == "unet":
            part = convert_unet_state_dict_to_peft(part)
        elif part:  # as diffusers.loaders.lora_base._load_lora_into_text_encoder does
            part = convert_state_dict_to_peft(convert_state_dict_to_diffusers(part))
        peft |= {f"{component}.{new}": value for new, value in part.items()}
    assert peft.keys() == mine.keys()
    assert all(peft[new].equal(value) for new, value in mine.items())


def test_diffusers_to_kohya_is_diffusers_own_conversion() -> None:
    # diffusers writes the names of its own UNet, as kohya does for Stable Diffusion 1.x.
    ours = key_map("lora-sd1:diffusers-to-kohya")
    assert isinstance(ours, TableMap)
    file = {old: torch.zeros(4, 2) for old in ours.names if not old.startswith("scale:")}
    theirs = convert_state_dict_to_kohya(file)
    assert {name.replace("lora_te1_", "lora_te_") for name in theirs if "alpha" not in name} == {
        ours(old) for old in file
    }


@pytest.mark.parametrize("alpha", [1.0, 3.0, 2.5])
def test_a_converted_lora_does_what_it_is_to_do(tmp_path: Path, alpha: float) -> None:
    """diffusers loads what `edit` made; it computes what weights with alpha / rank * up @ down compute."""
    torch.manual_seed(1)
    path = tmp_path / "kohya.safetensors"
    there = key_map("lora-sd1:diffusers-to-kohya")
    model, changed = (unet("lora-sd1").eval().double() for _ in range(2))
    file: dict[str, torch.Tensor] = {}
    for number, (module, layer) in enumerate(changed.named_modules()):
        if isinstance(layer, torch.nn.Linear) and "attn" in module:
            old = there(f"unet.{module}.lora_A.weight").removesuffix(".lora_down.weight")
            rank, scale = 2 + number % 2, alpha if "to_q" in module else 2.0
            down = torch.randn(rank, layer.in_features, dtype=torch.float64)
            up = torch.randn(layer.out_features, rank, dtype=torch.float64)
            file[f"{old}.lora_down.weight"], file[f"{old}.lora_up.weight"] = down, up
            file[f"{old}.alpha"] = torch.tensor(scale)
            layer.weight.data += scale / rank * up @ down
    safeweights.torch.save_file(file, path)
    edit(path, tmp_path / "out.safetensors", map="lora-sd1:kohya-to-diffusers")
    state, _, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
        tmp_path, weight_name="out.safetensors", return_lora_metadata=True
    )
    model.load_lora_adapter(state, prefix="unet", metadata=metadata)
    given = torch.randn(1, 4, 16, 16).double(), torch.tensor(3), torch.randn(1, 5, 8).double()
    with torch.no_grad():
        torch.testing.assert_close(model(*given).sample, changed(*given).sample)


def test_what_diffusers_saves_becomes_kohyas(tmp_path: Path) -> None:
    model = unet("lora-sd1")
    ranks = {"to_k": 2, "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 3}
    model.add_adapter(
        LoraConfig(r=4, lora_alpha=3, target_modules=["to_q", "to_k"], rank_pattern=ranks)
    )
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(model),
        **_collate_lora_metadata({"unet": model}),
    )
    edit(
        tmp_path / "pytorch_lora_weights.safetensors",
        tmp_path / "kohya.safetensors",
        map="lora-sd1:diffusers-to-kohya",
    )
    found = safeweights.torch.load_file(tmp_path / "kohya.safetensors")
    middle = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_"
    for end, rank in (("q", 3), ("k", 2)):
        assert len(found[f"{middle}{end}.lora_down.weight"]) == rank
        assert found[f"{middle}{end}.alpha"] == 3
    assert sum(name.endswith(".alpha") for name in found) == len(found) // 3
