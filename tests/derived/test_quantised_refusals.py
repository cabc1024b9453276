"""Quantised weights that are damaged, hostile or ambiguous: one error that names tensor and rule."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from packing import as_words, checkpoint, float8
from test_quantised import FP8, gptq, normal

import safeweights
from safeweights.checkpoint import Checkpoint, MemoryTensor
from safeweights.errors import FormatError, SafetensorError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


def fp8(**changes: Array) -> Arrays:
    arrays = {"a.weight": float8(normal(256, 256)), "a.weight_scale_inv": np.ones((2, 2), "f4")}
    return {**arrays, **{f"a.{name}": values for name, values in changes.items()}}


def read(arrays: Arrays, settings: dict[str, Any] | None = None, **options: Any) -> None:
    codes = options.pop("codes", None)
    found = checkpoint(arrays, codes).dequantize(settings=settings or {}, **options)
    for tensor in found.values():
        tensor.view()


def rule_of(short: str) -> str:
    """The identifier of a rule, of which tests give the last word."""
    whole = ("quantised", "quantization-config", "name-collision")
    return short if short in whole else f"quantised-{short}"


def refused(rule: str, words: str, arrays: Arrays, *arguments: Any, **options: Any) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        read(arrays, *arguments, **options)
    assert caught.value.rule == rule_of(rule)
    assert caught.value.tensor is not None or rule == "quantization-config"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_no_number(value: float) -> None:
    scale = np.ones((2, 2), "f4")
    scale[1, 0] = value
    refused(
        "scale",
        "`a.weight_scale_inv`: a scale is NaN or infinite",
        fp8(weight_scale_inv=scale),
        FP8,
    )
    exponents = np.full((4, 1), 255, np.uint8)
    arrays = {"a.weight": float8(normal(4, 32)), "a.weight_scale": exponents}
    refused("scale", "`a.weight_scale`: a scale is NaN", arrays)


def test_a_scale_of_zero_counts_unless_all_it_scales_is_zero() -> None:
    scale = np.ones((2, 2), "f4")
    scale[1, 0] = 0
    arrays = fp8(weight_scale_inv=scale)
    refused("scale", "a scale is 0, but the values it scales are not", arrays, FP8)
    arrays["a.weight"][128:, :128] = 0
    read(arrays, FP8)
    arrays["a.weight"][200, 5] = np.nan
    refused("scale", "a scale is 0", arrays, FP8)


def test_a_product_beyond_float32() -> None:
    scale = np.full((2, 2), 1e38, "f4")
    arrays = fp8(weight_scale_inv=scale)
    arrays["a.weight"][:] = 2
    read(arrays, FP8)
    arrays["a.weight"][3, 3] = 448
    refused("quantised", "a scale times its value is beyond the range of F32", arrays, FP8)


@pytest.mark.parametrize("shape", [(3, 2), (2, 0), (4,), (2, 2, 1), (1, 300), (257, 1)])
def test_scales_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match=r"`a\.weight_scale_inv`: shape is") as caught:
        read(fp8(weight_scale_inv=np.ones(shape, "f4")), FP8)
    assert caught.value.rule == "quantised-shape"


def test_blocks_of_a_size_that_nothing_tells() -> None:
    arrays = {"a.weight": float8(normal(192, 128)), "a.weight_scale_inv": np.ones((2, 1), "f4")}
    refused("ambiguous", r"blocks of 128 or 96 would fit \[192, 128\].*weight_block_size", arrays)
    read(arrays, FP8)
    read(arrays, {"weight_block_size": [96, 128]})


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_block_size": [0, 128]}, {"weight_block_size": [-128, 128]},
        {"weight_block_size": "128"}, {"weight_block_size": [True, 128]},
        {"weight_block_size": [1 << 70, 128]}, {"weight_block_size": [[128], 128]},
    ],
)  # fmt: skip
def test_hostile_sizes_of_blocks(settings: dict[str, Any]) -> None:
    refused("quantization-config", "weight_block_size", fp8(), settings)


def gptq_with(**changes: Array | None) -> Arrays:
    arrays, _ = gptq(4, 128, 96, 4, order=True)
    for name, values in changes.items():
        if values is None:
            del arrays[f"l.{name}"]
        else:
            arrays[f"l.{name}"] = values
    return arrays


SETTINGS = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"}


@pytest.mark.parametrize(
    ("rule", "words", "arrays"),
    [
        ("order", "an index is outside the 4 groups", gptq_with(g_idx=np.full(128, 4, "i4"))),
        ("order", "an index is outside the 4 groups", gptq_with(g_idx=np.full(128, -1, "i4"))),
        ("shape", r"`l.g_idx`: shape is \[127\]", gptq_with(g_idx=np.zeros(127, "i4"))),
        ("type", "`l.g_idx`: element type is F32", gptq_with(g_idx=np.zeros(128, "f4"))),
        ("shape", r"`l.qzeros`: shape is \[3, 12\]", gptq_with(qzeros=np.zeros((3, 12), "i4"))),
        ("bits", "which 4 bits of 96 outputs do not give", gptq_with(qzeros=np.zeros((4, 13), "i4"))),
        ("type", "`l.scales`: element type is I32", gptq_with(scales=np.ones((4, 96), "i4"))),
        ("type", "`l.qweight`: element type is I64", gptq_with(qweight=np.zeros((16, 96), "i8"))),
        ("quantised", "its 0 rows are not made of 4-bit", gptq_with(qweight=np.zeros((0, 96), "i4"))),
        ("scale", "a scale is NaN", gptq_with(scales=np.full((4, 96), np.nan, "f2"))),
    ],
)  # fmt: skip
def test_damaged_gptq(rule: str, words: str, arrays: Arrays) -> None:
    refused(rule, words, arrays, SETTINGS)


def test_bits_that_do_not_divide() -> None:
    arrays, _ = gptq(3, 128, 96, 4)
    arrays["l.qweight"] = arrays["l.qweight"][:11]
    refused("quantised", "its 11 rows are not made of 3-bit integers", arrays, scheme="gptq")


@pytest.mark.parametrize("bits", [0, -4, 5, 33, "4", 4.0, True, [4], 1 << 90])
def test_hostile_numbers_of_bits(bits: Any) -> None:
    with pytest.raises(FormatError, match="bits") as caught:
        read(gptq_with(), {**SETTINGS, "bits": bits})
    assert caught.value.rule in ("quantised-bits", "quantization-config")


def test_the_format_of_zeros_is_not_guessed() -> None:
    refused("ambiguous", "choose the scheme gptq .they are. or gptq_v2", gptq_with())
    read(gptq_with(), scheme="gptq")
    read(gptq_with(), scheme="gptq_v2")
    with pytest.raises(FormatError, match="`marlin` is not read"):
        read(gptq_with(), {**SETTINGS, "checkpoint_format": "marlin"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "aqlm"}, "the method `aqlm`, which is not read; there are fp8"),
        ({"quant_method": 7}, "the method `7`"),
        ({"quant_method": {"a": 1}}, "the method"),
    ],
)
def test_methods_that_are_not_read(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        read(gptq_with(), settings)


def test_settings_that_contradict_the_names() -> None:
    refused(
        "quantization-config",
        "quant_method is `awq`, but `l.qweight` is gptq",
        gptq_with(),
        {"quant_method": "awq"},
    )


def test_a_scheme_that_does_not_exist_or_is_not_there() -> None:
    with pytest.raises(UnsupportedError, match="no such scheme: `q4`; there are fp8"):
        read(gptq_with(), scheme="q4")
    with pytest.raises(UnsupportedError, match="no quantised weight"):
        read(gptq_with(), scheme="awq")
    with pytest.raises(UnsupportedError, match="no quantised weight"):
        read({"a": normal(3)})


def test_a_name_that_is_taken() -> None:
    arrays = {**gptq_with(), "l.weight": normal(3)}
    refused("name-collision", "would be called `l.weight`", arrays, SETTINGS)


@pytest.mark.parametrize(
    ("arrays", "missing", "settings"),
    [
        (gptq_with(), "qzeros", {}), (gptq_with(), "scales", {}), (fp8(), "weight_scale_inv", FP8),
    ],
)  # fmt: skip
def test_codes_without_what_belongs_to_them(
    arrays: Arrays, missing: str, settings: dict[str, Any]
) -> None:
    more = {"b.weight": float8(normal(2, 2)), "b.weight_scale": np.ones(1, "f4"), **arrays}
    del more[f"{next(iter(arrays)).partition('.')[0]}.{missing}"]
    refused("quantised", "is quantised, but what belongs to it is missing", more, settings)


def test_plain_fp8_stays_where_nothing_says_that_it_is_quantised() -> None:
    plain = {"p": float8(normal(2, 2)), **fp8()}
    found = checkpoint(plain).dequantize(settings={"weight_block_size": [128, 128]})
    assert found["p"].dtype == "F8_E4M3"


# ---- bitsandbytes


def nf4(**changes: Any) -> Arrays:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [2, 64], **changes}
    text = state if isinstance(state, bytes) else json.dumps(state).encode()
    return {
        "w": np.zeros((64, 1), np.uint8), "w.absmax": np.ones(2, "f4"),
        "w.quant_state.bitsandbytes__nf4": np.frombuffer(text, np.uint8),
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"blocksize": 0}, {"blocksize": -64}, {"blocksize": "64"}, {"blocksize": 1 << 80},
        {"blocksize": 63}, {"shape": []}, {"shape": [0, 64]}, {"shape": [-2, -64]}, {"shape": "x"},
        {"shape": [1 << 60, 1 << 60]}, {"quant_type": "fp4"}, {"quant_type": ["nf4"]},
        {"nested_blocksize": 0}, {"nested_offset": "x"}, {"nested_offset": 1e999},
        {"shape": [2, 65]}, {"blocksize": 32},
    ],
)  # fmt: skip
def test_hostile_state(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        read(nf4(**changes))
    assert caught.value.tensor


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff"])
def test_state_that_is_no_object(text: bytes) -> None:
    arrays = nf4()
    arrays["w.quant_state.bitsandbytes__nf4"] = np.frombuffer(text, np.uint8)
    refused("quantised", "it is not JSON", arrays)


def test_other_parts_of_bitsandbytes() -> None:
    read(nf4())
    arrays = nf4()
    del arrays["w.quant_state.bitsandbytes__nf4"]
    refused("quantised", "needs one quant_state", arrays)
    refused("quantised", "not the table of nf4", {**nf4(), "w.quant_map": np.zeros(16, "f4")})
    refused("quantised", "is nested, but", {**nf4(), "w.nested_absmax": np.ones(1, "f4")})
    refused("scale", "a scale is NaN", {**nf4(), "w.absmax": np.full(2, np.nan, "f4")})
    refused("shape", "absmax", {**nf4(), "w.absmax": np.ones(3, "f4")})
    int8 = {"w.weight": np.ones((2, 4), np.int8), "w.SCB": np.ones(3, "f4")}
    refused("shape", "`w.SCB`: shape is", int8)
    int8 = {**int8, "w.SCB": np.ones(2, "f4"), "w.weight_format": np.ones((), np.uint8)}
    refused("quantised", "weight_format", int8)
    int8["w.weight_format"] = np.zeros(1, np.complex64)
    refused("type", "parts of element type C64", int8)


# ---- others


def packed(**changes: Array) -> Arrays:
    arrays = {
        "l.weight_packed": as_words(np.ones((4, 64), int), 4), "l.weight_scale": np.ones((4, 2), "f4"),
        "l.weight_shape": np.array([4, 64], np.int64),
    }  # fmt: skip
    return {**arrays, **{f"l.{name}": values for name, values in changes.items()}}


@pytest.mark.parametrize(
    ("rule", "words", "changes"),
    [
        ("shape", r"it says \[4, -64\]", {"weight_shape": np.array([4, -64])}),
        ("shape", r"it says \[5, 64\]", {"weight_shape": np.array([5, 64])}),
        ("shape", "`l.weight_shape`: shape is", {"weight_shape": np.array([4, 64, 1])}),
        ("bits", "its 8 words a row are not", {"weight_shape": np.array([4, 1 << 62])}),
        ("shape", "3 groups do not divide 64 columns", {"weight_scale": np.ones((4, 3), "f4")}),
        ("shape", "`l.weight_scale`: shape is", {"weight_scale": np.ones((3, 2), "f4")}),
        ("shape", "`l.weight_scale`: shape is", {"weight_scale": np.ones((4, 0), "f4")}),
        ("shape", "`l.weight_zero_point`", {"weight_zero_point": np.zeros((2, 2), "i4")}),
        ("order", "outside the 2 groups", {"weight_g_idx": np.full(64, 2, "i4")}),
        ("type", "`l.weight_scale`: element type is I32", {"weight_scale": np.ones((4, 2), "i4")}),
    ],
)  # fmt: skip
def test_damaged_compressed_tensors(rule: str, words: str, changes: Arrays) -> None:
    read(packed())
    refused(rule, words, packed(**changes))


@pytest.mark.parametrize("bits", [0, -1, 17, "4", None, 4.5, 3])
def test_hostile_groups_of_compressed_tensors(bits: Any) -> None:
    settings = {"config_groups": {"g": {"weights": {"num_bits": bits}}}}
    with pytest.raises(FormatError, match="bits"):
        read(packed(), settings)


@pytest.mark.parametrize("groups", [None, [], "x", {"g": None}, {"g": {"weights": []}}, {"g": 3}])
def test_groups_that_say_nothing(groups: Any) -> None:
    read(packed(), {"config_groups": groups})


def test_nvfp4_needs_both_scales() -> None:
    arrays = {
        "a.weight": np.zeros((2, 16), np.uint8),
        "a.weight_scale": float8(np.ones((2, 2), "f4")),
    }
    refused("quantised", "lacks the second scale", arrays)
    for value in (np.nan, 0.0, np.inf):
        refused("scale", "the scale is", {**arrays, "a.weight_scale_2": np.float32([value])})
    refused("shape", "must hold one number", {**arrays, "a.weight_scale_2": np.ones(2, "f4")})
    four = {**arrays, "a.weight_scale_2": np.ones(1, "f4")}
    four["a.weight_scale"] = float8(np.ones((2, 3), "f4"))
    refused("shape", r"`a.weight_scale`: shape is \[2, 3\], but must be \[2, 2\]", four)


def test_gpt_oss_scales_of_the_wrong_shape() -> None:
    arrays = {
        "up_blocks": np.zeros((2, 3, 4, 16), np.uint8),
        "up_scales": np.zeros((2, 3, 5), np.uint8),
    }
    refused("shape", r"`up_scales`: shape is \[2, 3, 5\], but must be \[2, 3, 4\]", arrays)


def test_damaged_awq() -> None:
    arrays = {
        "l.qweight": np.zeros((30, 4), "i4"), "l.qzeros": np.zeros((4, 4), "i4"),
        "l.scales": np.ones((4, 32), "f2"),
    }  # fmt: skip
    refused("shape", "4 groups do not divide 30 inputs", arrays)
    arrays["l.qweight"] = np.zeros((32, 4), "i4")
    read(arrays)
    refused("quantization-config", "AWQ packs 4 bits, not 3", arrays, {"bits": 3})
    refused("quantization-config", "only gemm is read", arrays, {"version": "gemv"})


def torchao(data: Any = None, kind: str = "Int8Tensor", **parts: Array) -> tuple[Checkpoint, Any]:
    arrays = {
        "l._weight_qdata": np.ones((2, 64), np.int8),
        "l._weight_scale": np.ones((2, 1), "f4"),
    }
    arrays |= {f"l._weight_{name}": values for name, values in parts.items()}
    data = {"block_size": [1, 64]} if data is None else data
    found = checkpoint(arrays)
    return Checkpoint(found, {"l.weight": json.dumps({"_type": kind, "_data": data})}), data


@pytest.mark.parametrize(
    "data",
    [
        {"block_size": [1, 0]},
        {"block_size": [64]},
        {"block_size": "x"},
        {},
        [],
        {"block_size": [1, -1]},
    ],
)
def test_hostile_descriptions_of_torchao(data: Any) -> None:
    with pytest.raises(FormatError, match="block_size"):
        torchao(data)[0].dequantize(settings={})


def test_torchao_layouts_that_are_not_read() -> None:
    good, _ = torchao()
    assert good.dequantize(settings={})["l.weight"].numpy().sum() == 128
    other, _ = torchao(kind="Int4TilePackedTo4dTensor")
    dense = other.dequantize(settings={})
    with pytest.raises(UnsupportedError, match="Int4TilePackedTo4dTensor"):
        dense["l.weight"].numpy()
    assert list(dense.refused) == ["l.weight"]
    swizzled, _ = torchao({"block_size": [1, 64], "is_swizzled_scales": True})
    assert "swizzled" in swizzled.dequantize(settings={}).refused["l.weight"]
    scaled, _ = torchao(act_pre_scale=np.ones(1, "f4"))
    assert "act_pre_scale" in scaled.dequantize(settings={}).refused["l.weight"]
    for text in ("{", "[]", "[" * 200_000, "3"):
        found = Checkpoint(good, {"l.weight": text})
        with pytest.raises(FormatError, match="no description of a torchao tensor"):
            found.dequantize(settings={})


def hqq(**changes: Array) -> Arrays:
    arrays = {
        "l.W_q": np.zeros((2, 64), np.uint8), "l.scale": np.ones((4, 1), "f4"),
        "l.zero": np.zeros((4, 1), "f4"), "l.shape": np.array([4, 64]), "l.axis": np.int32([1]),
        "l.group_size": np.int32([64]), "l.packing": np.frombuffer(b"4bit_u8", np.uint8),
    }  # fmt: skip
    return {**arrays, **{f"l.{name}": values for name, values in changes.items()}}


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("shape", {"shape": np.array([4, 63])}), ("shape", {"shape": np.array([-4, -64])}),
        ("shape", {"shape": np.array([1 << 62, 1 << 62])}), ("quantised", {"group_size": np.int32([0])}),
        ("quantised", {"axis": np.int32([2])}), ("shape", {"axis": np.int32([1, 1])}),
        ("bits", {"packing": np.frombuffer(b"9bit", np.uint8)}),
        ("scale", {"scale": np.zeros((4, 1), "f4")}),
        ("shape", {"scale": np.ones((5, 1), "f4")}), ("shape", {"W_q": np.zeros((3, 64), np.uint8)}),
        ("scale", {"zero": np.full((4, 1), np.nan, "f4")}), ("type", {"W_q": np.zeros((2, 64), "f4")}),
    ],
)  # fmt: skip
def test_damaged_hqq(rule: str, changes: Arrays) -> None:
    read(hqq())
    with pytest.raises(FormatError) as caught:
        read(hqq(**changes))
    assert caught.value.rule in (rule_of(rule), "quantised")


# ---- settings beside the weights


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", "{", "config.json: it is not JSON"),
        ("config.json", "[1]", "it is no JSON object"),
        ("config.json", '{"quantization_config": 3}', "quantization_config is no object"),
        (
            "config.json",
            '{"quantization_config": {}, "quantization_config": {}}',
            "a key occurs twice",
        ),
        ("config.json", "[" * 100_000, "it is not JSON"),
        ("quantize_config.json", "7", "quantize_config.json: it is no JSON object"),
    ],
)
def test_damaged_settings(tmp_path: Path, name: str, text: str, words: str) -> None:
    safeweights.save(checkpoint(gptq_with()), tmp_path / "m.safetensors")
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=words) as caught:
        safeweights.open(tmp_path / "m.safetensors").dequantize()
    assert caught.value.rule == "quantization-config"


def test_settings_that_are_too_large(tmp_path: Path) -> None:
    safeweights.save(checkpoint(gptq_with()), tmp_path / "m.safetensors")
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(FormatError, match="at most"):
        safeweights.open(tmp_path).dequantize()


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("config.json", {"quantization_config": SETTINGS}),
        ("config.json", {"text_config": {"quantization_config": SETTINGS}}),
        ("quantize_config.json", {"bits": 4, "group_size": 32}),
    ],
)
def test_where_settings_are(tmp_path: Path, name: str, document: Any) -> None:
    arrays, dense = gptq(4, 128, 96, 4)
    safeweights.save(checkpoint(arrays), tmp_path / "m.safetensors")
    (tmp_path / "generation_config.json").write_text("{")
    (tmp_path / name).write_text(json.dumps(document))
    found = safeweights.open(tmp_path / "m.safetensors").dequantize()
    assert np.array_equal(found["l.weight"].numpy(), dense)


def test_model_optimizer_has_a_file_of_its_own(tmp_path: Path) -> None:
    arrays = {"a.weight": float8(normal(4, 4)), "a.weight_scale": np.float32([2.0])}
    safeweights.save(checkpoint(arrays), tmp_path / "m.safetensors")
    document = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(document))
    found = safeweights.open(tmp_path).dequantize()
    assert np.array_equal(found["a.weight"].numpy(), float8(normal(4, 4)).astype("f4") * 2)


def test_a_cut_file_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safeweights.save(checkpoint(fp8()), path)
    opened = safeweights.open(path, backend="pread").dequantize(settings=FP8)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5000)
    with pytest.raises((SafetensorError, OSError)):
        opened["a.weight"].numpy()


def test_a_million_names_are_looked_at_once() -> None:
    tensor = MemoryTensor("w", "F32", (1,), bytes(4))
    names = dict.fromkeys((f"layers.{n}.weight_scale" for n in range(200_000)), tensor)
    with pytest.raises(UnsupportedError, match="no quantised weight"):
        Checkpoint(names).dequantize()


def damaged(good: Arrays, change: Callable[[bytearray], None]) -> Arrays:
    result = {}
    for name, values in good.items():
        data = bytearray(values.tobytes())
        change(data)
        result[name] = np.frombuffer(bytes(data), values.dtype).reshape(values.shape)
    return result


@pytest.mark.parametrize("good", [fp8(), gptq_with(), nf4(), packed(), hqq()])
def test_random_bytes_give_values_or_our_error(good: Arrays) -> None:
    random = np.random.default_rng(0)
    for _ in range(30):

        def change(data: bytearray) -> None:
            for _ in range(3):
                if data:
                    data[random.integers(len(data))] = random.integers(256)

        try:
            read(damaged(good, change), scheme=None)
        except SafetensorError:
            continue
