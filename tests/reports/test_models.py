"""What a model is, from headers and from the configuration files beside them."""

from __future__ import annotations

import json
import os
import pickle
import struct

import numpy as np
import pytest

import safeweights
import safeweights.numpy
from safeweights.errors import FormatError
from safeweights.reports.models import describe
from safeweights.trust import TrustError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": 100,
    "tie_word_embeddings": True,
}


def save(path, names, dtype="f2", metadata=None, **options):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    tensors = {name: np.zeros((4, 8), dtype) for name in names}
    safeweights.numpy.save_file(tensors, path, metadata=metadata, **options)


LAYERS = ["embed.weight", *(f"layers.{n}.{p}.weight" for n in range(2) for p in ("q", "k"))]


@pytest.fixture
def folder(tmp_path):
    """A model of two layers, with what `settings` says of it."""

    def folder(settings=None, name="config.json", tensors=LAYERS, **options):
        save(str(tmp_path / "m" / "model.safetensors"), tensors, **options)
        if settings is not None:
            text = settings if isinstance(settings, str) else json.dumps(settings)
            (tmp_path / "m" / name).write_text(text)
        return str(tmp_path / "m")

    return folder


def model_of(path, **options):
    return describe(path, **options)["model"]


def test_the_first_line_says_what_a_person_asks_first(folder):
    found = model_of(folder(LLAMA))
    assert found["summary"] == (
        "LlamaForCausalLM · 160 parameters · F16 · 2 layers · 320 B · tied: lm_head · unsigned · "
        "runs code: no"
    )
    assert (found["source"], found["context"], found["vocabulary"]) == ("config.json", 2048, 100)
    assert found["bits_per_parameter"] == 16
    assert {each["dtype"]: each["bytes"] for each in found["memory"]} == {
        "F32": 640, "BF16": 320, "F8_E4M3": 160, "F4": 80,
    }  # fmt: skip


def test_without_settings_it_is_counted(folder):
    found = model_of(folder())
    assert found["summary"].startswith("160 parameters · F16 · 2 layers · 320 B · unsigned")
    assert (found["architecture"], found["context"], found["cache"]) == (None, None, None)


def test_a_file_is_described_by_the_settings_beside_it(folder):
    path = os.path.join(folder(LLAMA), "model.safetensors")
    assert model_of(path)["architecture"] == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 2 * 2 * 2 * 8 * 2),
        ({"num_key_value_heads": None}, 2 * 2 * 8 * 8 * 2),
        ({"head_dim": 32}, 2 * 2 * 2 * 32 * 2),
        ({"multi_query": True}, 2 * 2 * 1 * 8 * 2),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 2 * (512 + 64) * 2),
        ({"layer_types": ["linear_attention", "full_attention"]}, 2 * 1 * 2 * 8 * 2),
        ({"architectures": ["BertModel"]}, None),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, None),
        ({"hidden_size": None}, None),
        ({"num_attention_heads": 0}, None),
        ({"layer_types": ["mamba", "mamba"]}, None),
    ],
)
def test_the_cache_of_a_token_is_a_product_that_is_shown(folder, changes, size):
    cache = model_of(folder(LLAMA | changes))["cache"]
    assert (cache and cache["bytes_per_token"]) == size
    if cache:
        numbers = cache["how"].replace("(", "").replace(")", "")
        assert str(size) != "0"
        assert "layers" in numbers


def test_a_model_of_text_and_images_has_the_context_of_its_text(folder):
    inner = {"architectures": ["LlavaForConditionalGeneration"], "text_config": LLAMA}
    found = model_of(folder(inner))
    assert (found["layers"], found["context"]) == (2, 2048)
    assert found["cache"]["bytes_per_token"] == 128


def test_ties_are_named_only_where_they_are(folder, tmp_path):
    assert model_of(folder(LLAMA))["tied"] == ["lm_head"]
    assert model_of(folder(LLAMA | {"tie_word_embeddings": False}))["tied"] == []
    assert model_of(folder(LLAMA, tensors=[*LAYERS, "lm_head.weight"]))["tied"] == []
    noted = {"lm_head.weight": "embed.weight", "other": "nothing"}
    assert model_of(folder(metadata=noted))["tied"] == ["lm_head.weight"]


def test_an_adapter_says_of_what(folder):
    settings = {
        "peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "org/base",
        "target_modules": ["q", "k"],
    }  # fmt: skip
    found = model_of(folder(settings, "adapter_config.json"))
    assert found["summary"].startswith("LORA adapter · rank 8 · for org/base · 160 parameters")
    assert found["adapter"] == {
        "type": "LORA", "base": "org/base", "rank": 8, "alpha": 16, "targets": ["q", "k"],
    }  # fmt: skip


@pytest.fixture
def pipeline(tmp_path):
    for part in ("unet", "vae"):
        save(str(tmp_path / "p" / part / "diffusion_pytorch_model.safetensors"), ["a.w", "b.w"])
    (tmp_path / "p" / "scheduler").mkdir()
    index = {
        "_class_name": "SomePipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "..": ["diffusers", "Up"],
        "a/b": ["diffusers", "Down"],
    }
    (tmp_path / "p" / "model_index.json").write_text(json.dumps(index))
    return tmp_path / "p"


def test_a_pipeline_has_a_line_for_each_part(pipeline):
    found = describe(pipeline)
    assert found["total"]["tensors"] == 4
    assert len(found["files"]) == 2
    parts = found["model"]["parts"]
    assert [(part["name"], part["class_name"]) for part in parts] == [
        ("unet", "UNet2DConditionModel"),
        ("vae", "AutoencoderKL"),
        ("scheduler", "DDIMScheduler"),
    ]
    assert [part["total"] and part["total"]["tensors"] for part in parts] == [2, 2, None]
    assert found["model"]["summary"].startswith("SomePipeline · 128 parameters · F16 · 3 parts")
    assert {each["path"] for each in found["model"]["modules"]} >= {"unet", "vae", "unet.a"}


def test_a_part_that_cannot_be_opened_is_said(pipeline):
    (pipeline / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\1")
    parts = {part["name"]: part for part in describe(pipeline)["model"]["parts"]}
    assert parts["vae"]["total"] is None
    assert "header" in parts["vae"]["problem"]


def test_modules_of_sentence_transformers_are_parts(folder):
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]
    path = folder(modules, "modules.json")
    save(os.path.join(path, "2_Dense", "model.safetensors"), ["linear.weight"])
    found = describe(path)
    assert [part["class_name"] for part in found["model"]["parts"]] == ["Dense"]
    assert found["total"]["tensors"] == 6


@pytest.mark.parametrize(
    ("name", "settings", "architecture"),
    [
        ("config.json", {"architecture": "resnet50", "num_classes": 9}, "resnet50"),
        ("config.json", {"model_type": "bert"}, "bert"),
        ("config.json", {"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
        ("open_clip_config.json", {"model_cfg": {"text_cfg": {"context_length": 77}}}, "CLIP"),
    ],
)
def test_settings_of_other_libraries(folder, name, settings, architecture):
    assert model_of(folder(settings, name))["architecture"] == architecture


def test_quantised_weights_are_named(folder):
    settings = LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert "gptq, 4 bits" in model_of(folder(settings))["summary"]


def test_keys_of_a_gguf_header_say_the_same(tmp_path):
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    keys = {
        "llama.block_count": 2, "llama.attention.head_count": 8, "llama.attention.head_count_kv": 2,
        "llama.embedding_length": 64, "llama.context_length": 4096,
    }  # fmt: skip
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys) + 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    for key, value in keys.items():
        head += text(key) + struct.pack("<II", 4, value)
    head += text("blk.0.w") + struct.pack("<IQIQ", 1, 8, 0, 0)
    head += bytes(-len(head) % 32)
    (tmp_path / "m.gguf").write_bytes(head + bytes(32))
    found = model_of(tmp_path / "m.gguf")
    assert (found["architecture"], found["layers"], found["context"]) == ("llama", 2, 4096)
    assert found["cache"]["bytes_per_token"] == 2 * 2 * (8 + 8) * 2


# --- settings that are wrong


@pytest.mark.parametrize(
    "settings",
    [
        {key: [[]] for key in LLAMA},
        {key: {} for key in LLAMA},
        dict.fromkeys(LLAMA, -1),
        dict.fromkeys(LLAMA, 1e308),
        dict.fromkeys(LLAMA, "x"),
        dict.fromkeys(LLAMA, 10**300),
        {"text_config": {"text_config": 5}, "quantization_config": 5},
        {"architectures": [[]], "quantization_config": {"quant_method": []}},
        [],
        [1, {"path": 5, "type": 7}],
    ],
)
@pytest.mark.parametrize(
    "name", ["config.json", "adapter_config.json", "model_index.json", "modules.json"]
)
def test_settings_of_other_types_are_left_out(folder, settings, name):
    found = describe(folder(settings, name))
    assert found["total"]["tensors"] == 5
    assert found["model"]["cache"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [("{", "not JSON"), ("5", "no object"), ("[" * 100_000, "not JSON"), (" " * 2**21, "not read")],
)
def test_settings_that_cannot_be_read_are_said(folder, settings, problem):
    found = describe(folder(settings))
    (said,) = found["model"]["problems"]
    assert problem in said
    assert "`config.json`" in said


def test_settings_that_are_no_file_are_said(folder):
    path = folder()
    os.mkdir(os.path.join(path, "config.json"))
    assert "config.json" in describe(path)["model"]["problems"][0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_named_pipe_does_not_block(folder):
    path = folder()
    os.mkfifo(os.path.join(path, "config.json"))
    found = describe(path)["model"]
    assert "config.json" in found["problems"][0]
    assert found["code"]["verdict"] == "unknown"


def test_long_names_are_cut(folder):
    found = model_of(folder({"architectures": ["A" * 100_000]}))
    assert len(found["summary"]) < 400


# --- code


class Acting:
    def __reduce__(self):
        return os.getcwd, ()


@pytest.mark.parametrize(
    ("name", "contents", "verdict"),
    [
        ("modeling.py", b"import os\n", "yes"),
        ("config.json", b'{"auto_map": {"AutoModel": "modeling.Model"}}', "yes"),
        ("optimizer.bin", pickle.dumps(Acting()), "yes"),
        ("what.is", b"\x93\x07\x01\x02" * 99, "unknown"),
        ("README.md", b"# A model\n", "no"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 1}}}', "no"),
        ("tokenizer.json", pickle.dumps(Acting()), "yes"),
    ],
)
def test_a_folder_says_whether_loading_it_runs_code(folder, name, contents, verdict):
    path = folder()
    with open(os.path.join(path, name), "wb") as file:
        file.write(contents)
    code = model_of(path)["code"]
    assert code["verdict"] == verdict
    assert bool(code["reasons"]) == (verdict != "no")
    assert f"runs code: {verdict}" in model_of(path)["summary"]


def test_a_pickle_says_what_it_calls(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"w": np.zeros(3, "f4"), "x": Acting()}))
    code = model_of(path)["code"]
    assert code["verdict"] == "yes"
    assert "getcwd" in code["reasons"][0]


# --- trust


def test_under_a_policy_settings_are_read_only_after_they_were_checked(folder, tmp_path):
    path = folder(LLAMA)
    safeweights.trust.generate_key(str(tmp_path / "key"))
    key = safeweights.trust.load_private_key(str(tmp_path / "key"))
    safeweights.trust.sign(path, key)
    public = str(tmp_path / "key.pub")
    found = model_of(path, trust=public)
    assert found["architecture"] == "LlamaForCausalLM"
    assert "signed (not verified)" in found["summary"]
    with open(os.path.join(path, "config.json"), "a") as file:
        file.write(" ")
    with pytest.raises(TrustError, match=r"config\.json"):
        describe(path, trust=public)


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(FormatError, match=r"no \.safetensors file"):
        describe(tmp_path)
