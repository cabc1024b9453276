"""Maps of names: rules for wrappers, tables of conventions, and the scales of LoRA modules."""

from __future__ import annotations

import json
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import safeweights
import safeweights.numpy
from safeweights.editing import edit
from safeweights.editing.keymaps import key_map, key_maps, table_of
from safeweights.editing.keymaps.table import Table, TableMap
from safeweights.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

RULES = {
    "torch-compile": {
        "_orig_mod.a.weight": "a.weight",
        "module._orig_mod.a": "module.a",
        "layers.0._orig_mod.a": "layers.0.a",
        "_orig_mod._orig_mod.a": "a",
        "my_orig_mod.a": "my_orig_mod.a",
    },
    "data-parallel": {"module.a": "a", "module.module.a": "a", "submodule.a": "submodule.a"},
    "comfyui-diffusion-model": {
        "model.diffusion_model.input_blocks.0.0.weight": "input_blocks.0.0.weight",
        "first_stage_model.encoder.conv_in.weight": "first_stage_model.encoder.conv_in.weight",
    },
}
LORA = ("lora-sd1", "lora-sdxl", "lora-flux")
TABLES = {"lora-sd1": 1770, "lora-sdxl": 5295, "lora-flux": 2770, "megatron-core-gpt": 4101}
SD1 = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
SD1_DIFFUSERS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "lora_te_text_model_encoder_layers_3_mlp_fc1"
TEXT_DIFFUSERS = "text_encoder.text_model.encoder.layers.3.mlp.fc1"


def test_every_key_map_has_a_test_and_a_description() -> None:
    assert {name.partition(":")[0] for name in key_maps()} == {*RULES, *TABLES}
    assert all(len(about) > 20 for about in key_maps().values())


@pytest.mark.parametrize("name", RULES)
def test_rules(name: str) -> None:
    new_name = key_map(name)
    assert {old: new_name(old) for old in RULES[name]} == RULES[name]


# ---- tables


@pytest.mark.parametrize("name", TABLES)
def test_a_table_names_each_tensor_once(name: str) -> None:
    table = table_of(name)
    assert len(table.lines) == TABLES[name]
    for column in zip(*table.lines, strict=True):
        names = [cell for cell in column if cell != "-"]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("name", TABLES)
def test_there_and_back(name: str) -> None:
    table = table_of(name)
    for one, other in permutations(table.conventions, 2):
        there, back = TableMap(table, one, other), TableMap(table, other, one)
        assert len(there.names) > 700
        for old, new in there.names.items():
            if not old.startswith("scale:"):
                assert back(new) == old


@pytest.mark.parametrize("name", LORA)
def test_kohya_writes_underscores_for_the_dots_of_the_model_that_it_trains(name: str) -> None:
    # kohya-ss/sd-scripts, networks/lora.py, LoRANetwork.create_modules; comfy/lora.py reads them so.
    table = table_of(name)
    model = "diffusers" if name == "lora-sd1" else "comfyui"
    prefixes = {
        "unet.": "lora_unet_",
        "diffusion_model.": "lora_unet_",
        "text_encoder.": "lora_te_",
        "text_encoders.clip_l.transformer.": "lora_te1_",
        "text_encoders.clip_g.transformer.": "lora_te2_",
        "text_encoders.t5xxl.transformer.": "lora_te3_",
    }
    for kohya, other in TableMap(table, "kohya", model).names.items():
        module = kohya.partition(".")[0]
        (prefix,) = (each for each in prefixes if other.startswith(each))
        dotted = other.removeprefix(prefix).removesuffix(".weight").rpartition(".")[0]
        assert prefixes[prefix] + dotted.replace(".", "_") == module


def test_megatron() -> None:
    there = key_map("megatron-core-gpt:local-to-transformer-engine")
    assert there("decoder.layers.7.input_layernorm.weight") == (
        "decoder.layers.7.self_attention.linear_qkv.layer_norm_weight"
    )
    assert there("decoder.layers.0.pre_mlp_layernorm.bias") == (
        "decoder.layers.0.mlp.linear_fc1.layer_norm_bias"
    )
    with pytest.raises(UnsupportedError, match="does not know"):
        there("decoder.layers.0.mlp.router.weight")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{SD1}_x.lora_down.weight", f"similar names: `{SD1}.lora_down.weight`"),
        (SD1.replace("0_attn1", "0_attn3") + ".lora_up.weight", "attn1_to_q.lora_up.weight`"),
        (f"{SD1}.dora_scale", "diffusers has no name for"),
        ("scale:unet.conv_in", "does not know"),
        ("%", "does not know `%`; nothing is guessed"),
    ],
)
def test_an_unknown_name_is_refused(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "lora.safetensors"
    safeweights.numpy.save_file({name: np.zeros(2, "f4")}, path)
    with pytest.raises(UnsupportedError, match=message):
        edit(path, tmp_path / "out.safetensors", map="lora-sd1:kohya-to-diffusers")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora-sdx:kohya-to-diffusers", "lora-sdxl:kohya-to-diffusers"),
        ("lora-flux", "kohya-to-comfyui"),
    ],
)
def test_an_unknown_map_is_refused(name: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        key_map(name)


def test_how_a_table_is_written() -> None:
    table = Table(
        [
            "# x", "conventions\ta\tb", "[part]", "p_{k,v}\tq.{1,2}", "[names]",
            "x{0-1}_<part>\t{a,b}/<part>", "y\t-",
        ]
    )  # fmt: skip
    assert table.conventions == ("a", "b")
    assert table.lines == [
        ("x0_p_k", "a/q.1"), ("x1_p_k", "b/q.1"), ("x0_p_v", "a/q.2"), ("x1_p_v", "b/q.2"), ("y", "-"),
    ]  # fmt: skip


# ---- scales


def lora(path: Path, alphas: dict[str, Any], rank: int = 4) -> None:
    """A LoRA as kohya writes it, of two modules; and their alphas."""
    arrays = {
        f"{module}.{part}.weight": np.full(shape, number, "f2")
        for number, module in enumerate((SD1, TEXT))
        for part, shape in (("lora_down", (rank + number, 8)), ("lora_up", (8, rank + number)))
    }
    arrays |= {f"{module}.alpha": np.array(value) for module, value in alphas.items()}
    safeweights.numpy.save_file(arrays, path, {"ss_network_dim": "4"})


@pytest.mark.parametrize(
    "alphas",
    [
        {SD1: np.float16(1), TEXT: np.float16(1)},
        {SD1: np.float32(0.3), TEXT: np.float16(16)},
        {SD1: np.float16(2.5)},
        {},
    ],
)
def test_alpha_there_and_back(tmp_path: Path, alphas: dict[str, Any]) -> None:
    source, other, again = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "c"))
    lora(source, alphas)
    done = edit(source, other, map="lora-sd1:kohya-to-diffusers")
    assert set(safeweights.open(other)) == {
        f"{module}.lora_{part}.weight"
        for module in (SD1_DIFFUSERS, TEXT_DIFFUSERS)
        for part in "AB"
    }
    metadata = safeweights.open(other).metadata
    assert metadata is not None
    if alphas:
        assert "moved into the metadata" in done.notes[0]
        config = json.loads(metadata["lora_adapter_metadata"])
        assert config["unet.r"] == 4
        assert config["text_encoder.r"] == 5
        assert config["unet.lora_alpha"] == float(alphas[SD1])
        assert config["text_encoder.lora_alpha"] == float(alphas.get(TEXT, 5))
        assert config["unet.target_modules"] == [SD1_DIFFUSERS.removeprefix("unet.")]
    else:
        assert metadata == {"ss_network_dim": "4"}
    edit(other, again, map="lora-sd1:diffusers-to-kohya")
    if len(alphas) == 1:  # the other module's is its rank, and is written
        assert safeweights.numpy.load_file(again)[f"{TEXT}.alpha"] == 5
    else:
        assert again.read_bytes() == source.read_bytes()


def test_a_pattern_for_modules_that_differ(tmp_path: Path) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    modules = [SD1.replace("to_q", f"to_{each}") for each in "qkv"]
    arrays = {f"{module}.lora_down.weight": np.zeros((4, 2), "f4") for module in modules}
    arrays |= {
        f"{module}.alpha": np.array(value, "f4")
        for module, value in zip(modules, (8, 8, 2.5), strict=True)
    }
    safeweights.numpy.save_file(arrays, path)
    edit(path, out, map="lora-sd1:kohya-to-diffusers")
    config = json.loads((safeweights.open(out).metadata or {})["lora_adapter_metadata"])
    assert config["unet.lora_alpha"] == 8
    assert config["unet.alpha_pattern"] == {
        SD1_DIFFUSERS.removeprefix("unet.").replace("to_q", "to_v"): 2.5
    }
    assert config["unet.rank_pattern"] == {}


@pytest.mark.parametrize(
    ("document", "kind", "message"),
    [
        ("[", FormatError, "no JSON"),
        ("[" * 100_000, FormatError, "no JSON"),
        ("[]", FormatError, "no JSON object"),
        ({"unet.r": 8, "unet.lora_alpha": 1}, FormatError, "said to be 8, and is 4"),
        ({"unet.r": 4}, FormatError, "no number"),
        ({"unet.r": 4, "unet.lora_alpha": True}, FormatError, "no number"),
        ({"unet.r": 4, "unet.lora_alpha": 10**400}, FormatError, "no number"),
        ({"unet.r": 4, "unet.lora_alpha": float("nan")}, FormatError, "no number"),
        ({"unet.r": 4, "unet.lora_alpha": 1, "unet.use_rslora": True}, UnsupportedError, "rslora"),
        ({"unet.r": 4, "unet.alpha_pattern": []}, FormatError, "no number"),
        ({"unet.r": 4, "unet.alpha_pattern": [1]}, FormatError, "no JSON object"),
        ({"unet.r": 4, "unet.alpha_pattern": {".*": 2}}, UnsupportedError, "is a pattern"),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be(
    tmp_path: Path, document: Any, kind: type[Exception], message: str
) -> None:
    path = tmp_path / "a.safetensors"
    text = document if isinstance(document, str) else json.dumps(document)
    arrays = {f"{SD1_DIFFUSERS}.lora_A.weight": np.zeros((4, 2), "f4")}
    safeweights.numpy.save_file(arrays, path, {"lora_adapter_metadata": text})
    with pytest.raises(kind, match=message):
        edit(path, tmp_path / "b.safetensors", map="lora-sd1:diffusers-to-comfyui")


def test_the_end_of_a_module_names_it_and_so_does_all_of_it(tmp_path: Path) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    arrays = {f"{SD1_DIFFUSERS}.lora_A.weight": np.zeros((4, 2), "f4")}
    config = {
        "unet.r": 2,
        "unet.rank_pattern": {"^to_q": 3, "to_q": 4},
        "unet.lora_alpha": 1,
        "unet.alpha_pattern": {f"^{SD1_DIFFUSERS.removeprefix('unet.')}": 3},
    }
    safeweights.numpy.save_file(arrays, path, {"lora_adapter_metadata": json.dumps(config)})
    edit(path, out, map="lora-sd1:diffusers-to-kohya")
    assert safeweights.numpy.load_file(out)[f"{SD1}.alpha"] == 3


@pytest.mark.parametrize(
    ("alphas", "metadata", "message"),
    [
        ({SD1: np.zeros(2, "f4")}, {}, "no single number"),
        ({SD1: np.float32("nan")}, {}, "alpha. is nan"),
        ({"lora_unet_conv_in": np.float32(1)}, {}, "no lora_down"),
        ({SD1: np.float32(1)}, {"lora_adapter_metadata": "{}"}, "tensors and metadata"),
    ],
)
def test_scales_that_cannot_be(
    tmp_path: Path, alphas: dict[str, Any], metadata: dict[str, str], message: str
) -> None:
    path = tmp_path / "a.safetensors"
    lora(path, alphas)
    edit(path, in_place=True, metadata={"a": "b", **metadata})
    with pytest.raises(FormatError, match=message):
        edit(path, tmp_path / "b.safetensors", map="lora-sd1:kohya-to-diffusers")


def test_scales_in_several_files_are_refused(tmp_path: Path) -> None:
    lora(tmp_path / "a.safetensors", {SD1: np.float32(1)})
    edit(tmp_path / "a.safetensors", f"{tmp_path}/shards/", split=100)
    with pytest.raises(UnsupportedError, match="merge the files first"):
        edit(tmp_path / "shards", f"{tmp_path}/out/", map="lora-sd1:kohya-to-diffusers")


def test_what_is_left_out_need_not_be_known(tmp_path: Path) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    arrays = {"x": np.zeros(1, "f4"), f"{SD1}.lora_up.weight": np.zeros((2, 4), "f4")}
    safeweights.numpy.save_file({**arrays, f"{SD1}.alpha": np.zeros((), "f4")}, path)
    done = edit(path, out, map="lora-sd1:kohya-to-diffusers", drop=["x", "*.alpha"])
    assert set(safeweights.open(out)) == {f"{SD1_DIFFUSERS}.lora_B.weight"}
    assert done.notes == []
