"""Schemes of quantised weights against formulas written out here, from integers packed by hand."""

from __future__ import annotations

import json
import os
from itertools import product
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from packing import E2M1, as_awq, as_fp4, as_gptq, as_words, checkpoint, float8

import safeweights
import safeweights.numpy
from safeweights.checkpoint import Checkpoint, MemoryTensor
from safeweights.checkpoint import open as open_safetensors
from safeweights.derived.quantised import weight as weights
from safeweights.derived.quantised.bitsandbytes import _TABLES as TABLES
from safeweights.derived.quantised.grouped import unpack
from safeweights.errors import FormatError, UnsupportedError
from safeweights.format.indexing import select
from safeweights.storage.store import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from safeweights.storage import Source

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("f4")


def spread(scale: Array, block: tuple[int, int], shape: tuple[int, int]) -> Array:
    return np.repeat(np.repeat(scale, block[0], 0), block[1], 1)[: shape[0], : shape[1]]


def check(found: Checkpoint, expected: dict[str, Array]) -> None:
    """All values and some slices, in F32 and rounded to 16 bits."""
    assert list(found) == list(expected)
    for name, dense in expected.items():
        tensor = found[name]
        assert tensor.shape == dense.shape
        assert np.array_equal(tensor.numpy(), dense.astype("f4")), name
        assert tensor.nbytes == dense.size * 4
        if not isinstance(tensor, weights.DequantizedTensor):
            continue
        for kind in (np.float16, ml_dtypes.bfloat16):
            code = {"float16": "F16", "bfloat16": "BF16"}[np.dtype(kind).name]
            assert np.array_equal(tensor.astype(code).numpy(), dense.astype(kind))
        for index in slices(dense.shape):
            assert np.array_equal(tensor[index], dense[index]), index


def slices(shape: tuple[int, ...]) -> list[Any]:
    if len(shape) < 2:
        return [np.s_[1:], np.s_[::-2]]
    rows, columns = shape[-2:]
    return [
        np.s_[..., rows // 2, :], np.s_[..., columns // 3], np.s_[..., 1 : rows - 1 : 2, 1:-1:3],
        np.s_[..., ::-1, columns - 1 : columns // 2 : -1], np.s_[..., 0:0, :], np.s_[..., :: rows, 3:5],
        np.s_[0],
    ]  # fmt: skip


# ---- floats with scales


@pytest.mark.parametrize("shape", [(256, 384), (300, 520), (128, 128), (5, 7), (130, 129)])
@pytest.mark.parametrize("scale_type", ["f4", "bf16", "e8m0"])
def test_block_scaled_fp8(shape: tuple[int, int], scale_type: str) -> None:
    w = float8(normal(*shape))
    grid = -(-shape[0] // 128), -(-shape[1] // 128)
    scale = np.abs(normal(*grid)) + np.float32(0.1)
    scale = scale.astype(
        {"f4": "f4", "bf16": ml_dtypes.bfloat16, "e8m0": ml_dtypes.float8_e8m0fnu}[scale_type]
    )
    dense = w.astype("f4") * spread(scale.astype("f4"), (128, 128), shape)
    found = checkpoint({"a.weight": w, "a.weight_scale_inv": scale, "b": np.ones(3, "f4")})
    check(found.dequantize(settings=FP8), {"a.weight": dense, "b": np.ones(3, "f4")})


@pytest.mark.parametrize(
    ("suffix", "shape"),
    [("weight_scale", ()), ("weight_scale", (1,)), ("weight_scale", (6, 1)), ("weight_scale", (6,)),
     ("scale_weight", ()), ("scale_weight", (1,)), ("scale", (1, 1)), ("weight_scale_inv", (1, 1))],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"])
def test_fp8_with_a_scale_for_each_tensor_or_row(
    suffix: str, shape: tuple[int, ...], kind: str
) -> None:
    w = normal(6, 10).astype(getattr(ml_dtypes, kind))
    scale = np.float32(np.abs(RANDOM.normal(size=shape)) + 0.1)
    dense = w.astype("f4") * scale.reshape(-1, 1)
    arrays = {"a.weight": w, f"a.{suffix}": np.asarray(scale), "a.input_scale": np.ones(1, "f4")}
    if suffix == "scale_weight":
        arrays["scaled_fp8"] = np.zeros(2, ml_dtypes.float8_e4m3fn)
    check(checkpoint(arrays).dequantize(), {"a.weight": dense})


def test_experts_have_scales_of_their_own() -> None:
    w = float8(normal(3, 130, 260))
    scale = np.abs(normal(3, 2, 3)) + np.float32(0.1)
    dense = np.stack(
        [w[e].astype("f4") * spread(scale[e], (128, 128), (130, 260)) for e in range(3)]
    )
    found = checkpoint({"experts.up": w, "experts.up_scale_inv": scale})
    check(found.dequantize(settings=FP8), {"experts.up": dense})
    each = np.float32([1, 2, 4]).reshape(3, 1, 1)
    found = checkpoint({"experts.up": w, "experts.up_scale": each})
    check(found.dequantize(), {"experts.up": w.astype("f4") * each})


def test_int8_with_zero_points() -> None:
    q = RANDOM.integers(-128, 128, (6, 10)).astype(np.int8)
    scale, zero = np.abs(normal(6, 1)), np.arange(-3, 3, dtype=np.int8).reshape(6, 1)
    arrays = {"a.weight": q, "a.weight_scale": scale, "a.weight_zero_point": zero}
    dense = (q.astype("f4") - zero) * scale
    check(checkpoint(arrays).dequantize(), {"a.weight": dense})


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 4, 6), (3, 0, 6), (3, 4, 0)])
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8", "int8 with zeros", "fp4"])
def test_a_weight_without_elements_stays_one(shape: tuple[int, ...], kind: str) -> None:
    """Whether there is one scale for all, or one for each row; of FP4, one for each group of 32."""
    four = kind == "fp4"
    expected = (*shape[:-1], shape[-1] * (2 if four else 1))
    one_or_rows = [(), (1,), (1, 1), (*shape[:-1], 1), shape[-2:-1]]
    for scales in [(*shape[:-1], -(-expected[-1] // 32))] if four else one_or_rows:
        weight = np.zeros(shape, "u1" if four else kind.split()[0])
        arrays: dict[str, Array] = {
            "a.weight": weight,
            "a.weight_scale": np.ones(scales, "u1" if four else "f4"),
        }
        if kind == "int8 with zeros":
            arrays["a.weight_zero_point"] = np.zeros(scales, np.int8)
        dense = checkpoint(arrays).dequantize()["a.weight"]
        assert isinstance(dense, weights.DequantizedTensor)
        assert dense.numpy().shape == dense.shape == expected
        assert dense[..., ::-2].shape == np.empty(expected)[..., ::-2].shape


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 4, 6), (3, 4, 0)])
@pytest.mark.parametrize("scales", [(7,), (7, 1), (1, 7), (3, 4, 7), (7, 7)])
def test_scales_of_a_weight_without_elements_must_fit(
    shape: tuple[int, ...], scales: tuple[int, ...]
) -> None:
    arrays = {"a.weight": np.zeros(shape, np.int8), "a.weight_scale": np.ones(scales, "f4")}
    with pytest.raises(FormatError, match="shape is"):
        checkpoint(arrays).dequantize()


def exponents(*shape: int) -> Array:
    return RANDOM.integers(120, 134, shape).astype(np.uint8)


@pytest.mark.parametrize("code", ["U8", "F8_E8M0"])
def test_mxfp8_and_mxfp4(code: str) -> None:
    w, e = float8(normal(5, 96)), exponents(5, 3)
    scale = spread(np.float32(2.0) ** (e.astype("f4") - 127), (1, 32), (5, 96))
    found = checkpoint({"a.weight": w, "a.weight_scale": e}, {"a.weight_scale": code})
    check(found.dequantize(), {"a.weight": w.astype("f4") * scale})
    q = RANDOM.integers(0, 16, (5, 96))
    arrays = {"a.weight_packed": as_fp4(q), "a.weight_scale": e}
    found = checkpoint(arrays, {"a.weight_scale": code})
    check(found.dequantize(), {"a.weight": E2M1[q] * scale})
    four = MemoryTensor("a.weight", "F4", (5, 96), as_fp4(q).tobytes())
    typed = Checkpoint({"a.weight": four, "a.weight_scale": found["a.weight_scale"]})
    check(typed.dequantize(), {"a.weight": E2M1[q] * scale})


@pytest.mark.parametrize("experts", [(), (3,)])
@pytest.mark.parametrize("transposed", [False, True])
def test_mxfp4_of_gpt_oss(transposed: bool, experts: tuple[int, ...]) -> None:
    rows, groups = 10, 4
    q, e = RANDOM.integers(0, 16, (*experts, rows, groups * 32)), exponents(*experts, rows, groups)
    blocks = as_fp4(q).reshape(*experts, rows, groups, 16)
    dense = E2M1[q] * np.repeat(np.float32(2.0) ** (e.astype("f4") - 127), 32, axis=-1)
    mark = "_" if transposed else "."
    found = checkpoint({f"up{mark}blocks": blocks, f"up{mark}scales": e, "up_bias": normal(3)})
    dense = np.swapaxes(dense, -1, -2) if transposed else dense
    check(found.dequantize(settings={"quant_method": "mxfp4"}), {"up": dense, "up_bias": normal(3)})


def test_nvfp4_multiplies_or_divides_by_the_second_scale() -> None:
    q, scale = RANDOM.integers(0, 16, (6, 64)), float8(np.abs(normal(6, 4)) + 1)
    first = scale.astype("f4")
    second = np.float32([0.3])
    expected = E2M1[q] * np.repeat(first * second, 16, axis=1)
    arrays = {
        "a.weight": as_fp4(q), "a.weight_scale": scale, "a.weight_scale_2": second,
        "a.input_scale": np.ones(1, "f4"),
    }  # fmt: skip
    found = checkpoint(arrays).dequantize(settings={"quant_method": "modelopt"})
    check(found, {"a.weight": expected})
    expected = E2M1[q] * np.repeat(first / second, 16, axis=1)
    arrays = {
        "a.weight_packed": as_fp4(q), "a.weight_scale": scale, "a.weight_global_scale": second,
    }  # fmt: skip
    check(checkpoint(arrays).dequantize(), {"a.weight": expected})


# ---- packed integers


def gptq(
    bits: int, inputs: int, outputs: int, groups: int, *, form: str = "gptq", order: bool = False
) -> tuple[dict[str, Array], Array]:
    random = np.random.default_rng(bits + inputs)
    q = random.integers(0, 1 << bits, (inputs, outputs))
    zeros = random.integers(0, 1 << bits, (groups, outputs))
    zeros[0, 0] = 0  # stored as the largest integer in the first format
    scales = (np.abs(random.normal(size=(groups, outputs))) + 0.01).astype("f2")
    group = np.arange(inputs) // (inputs // groups)
    if order:
        group = random.permutation(group)
    qweight, qzeros = as_gptq(q, zeros, bits, 1 if form == "gptq" else 0)
    dense = (q - zeros[group]).astype("f4") * scales[group].astype("f4")
    arrays = {"l.qweight": qweight, "l.qzeros": qzeros, "l.scales": scales}
    if order:
        arrays["l.g_idx"] = group.astype(np.int32)
    return arrays, dense.T


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits: int, form: str, order: bool) -> None:
    arrays, dense = gptq(bits, 128, 96, 4, form=form, order=order)
    arrays["l.bias"] = normal(3)
    expected = {"l.weight": dense, "l.bias": normal(3)}
    settings = {"quant_method": "gptq", "bits": bits, "checkpoint_format": form}
    check(checkpoint(arrays).dequantize(settings=settings), expected)
    check(checkpoint(arrays).dequantize(scheme=form), expected)


def test_a_gptq_layer_of_one_group_and_one_of_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, dense = gptq(4, 64, 32, 1)
    check(checkpoint(arrays).dequantize(scheme="gptq"), {"l.weight": dense})
    monkeypatch.setattr(weights, "_TILE", 1 << 12)
    arrays, dense = gptq(4, 512, 160, 4, order=True)
    check(checkpoint(arrays).dequantize(scheme="gptq"), {"l.weight": dense})


@pytest.mark.parametrize("groups", [1, 4])
def test_awq(groups: int) -> None:
    q, zeros = RANDOM.integers(0, 16, (128, 48)), RANDOM.integers(0, 16, (groups, 48))
    scales = (np.abs(normal(groups, 48)) + np.float32(0.01)).astype("f2")
    arrays = {"l.qweight": as_awq(q), "l.qzeros": as_awq(zeros), "l.scales": scales}
    wide = [np.repeat(each, 128 // groups, axis=0) for each in (zeros, scales.astype("f4"))]
    dense = ((q - wide[0]) * wide[1]).T.astype("f4")
    settings = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
    check(checkpoint(arrays).dequantize(settings=settings), {"l.weight": dense})
    check(checkpoint(arrays).dequantize(), {"l.weight": dense})


def packed_in_words(bits: int, values: Array, *, dense: bool) -> Array:
    if dense:
        return as_words(values, bits)
    each = 32 // bits
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % each)))
    words = padded.reshape(len(values), -1, each).astype(np.uint32)
    shifts = (np.arange(each) * bits).astype(np.uint32)
    return np.bitwise_or.reduce(words << shifts, axis=2).view(np.int32)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(
    ("bits", "dense_words"), [(4, True), (8, True), (3, True), (3, False), (6, False)]
)
def test_compressed_tensors(bits: int, dense_words: bool, zero_points: bool) -> None:
    rows, columns, size = 40, 192, 64
    q = RANDOM.integers(0, 1 << bits, (rows, columns))
    half = 1 << (bits - 1)
    zero = RANDOM.integers(0, 1 << bits, (rows, 3))
    scale = (np.abs(normal(rows, 3)) + np.float32(0.01)).astype(ml_dtypes.bfloat16)
    arrays = {
        "l.weight_packed": packed_in_words(bits, q, dense=dense_words),
        "l.weight_scale": scale,
        "l.weight_shape": np.array([rows, columns], np.int64),
    }
    offset = half
    if zero_points:
        arrays["l.weight_zero_point"] = packed_in_words(bits, zero.T, dense=dense_words).T
        offset = np.repeat(zero, size, axis=1)
    dense = (q - offset).astype("f4") * np.repeat(scale.astype("f4"), size, axis=1)
    weights_of = {"num_bits": bits, "group_size": size, "type": "int"}
    settings = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights_of}},
    }
    check(checkpoint(arrays).dequantize(settings=settings), {"l.weight": dense})


def test_compressed_tensors_with_the_order_of_groups() -> None:
    q = RANDOM.integers(0, 16, (4, 64))
    group = RANDOM.permutation(np.arange(64) // 32).astype(np.int32)
    scale = np.abs(normal(4, 2)) + np.float32(0.01)
    arrays = {
        "l.weight_packed": as_words(q, 4), "l.weight_scale": scale,
        "l.weight_shape": np.array([4, 64], np.int64), "l.weight_g_idx": group,
    }  # fmt: skip
    check(checkpoint(arrays).dequantize(), {"l.weight": ((q - 8) * scale[:, group]).astype("f4")})


@pytest.mark.parametrize("bits", range(1, 9))
def test_unpacking_every_width(bits: int) -> None:
    integers = RANDOM.integers(0, 1 << bits, (3, 77))
    assert np.array_equal(unpack(as_words(integers, bits), bits, 77), integers)


# ---- reading


def fp8_model(rows: int = 600, columns: int = 1100) -> tuple[Checkpoint, Array]:
    w = float8(normal(rows, columns))
    grid = -(-rows // 128), -(-columns // 128)
    scale = np.abs(normal(*grid)) + np.float32(0.1)
    found = checkpoint({"a.weight": w, "a.weight_scale_inv": scale}).dequantize(settings=FP8)
    return found, w.astype("f4") * spread(scale, (128, 128), (rows, columns))


def test_bytes_from_any_offset() -> None:
    found, dense = fp8_model()
    for code, data in (
        ("F32", dense.tobytes()),
        ("BF16", dense.astype(ml_dtypes.bfloat16).tobytes()),
    ):
        tensor = found["a.weight"].astype(code)
        assert tensor.view() == data
        assert b"".join(map(bytes, tensor.chunks(1 << 17))) == data
        for offset, length in product((0, 1, 4, 4399, 4401, 100_001), (0, 1, 3, 5000, 99_999)):
            buffer = bytearray(length)
            tensor.read_into(buffer, offset)
            assert buffer == data[offset : offset + length]
    with pytest.raises(safeweights.SafetensorError, match="bytes 1 to"):
        tensor.read_into(bytearray(tensor.nbytes), 1)


class Counted(MemoryTensor):
    """Counts the bytes that are read."""

    in_memory = False
    read = 0

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        type(self).read += len(memoryview(buffer).cast("B"))
        super().read_into(buffer, offset)

    def _read_range(self, offset: int, length: int) -> memoryview:
        return self._read_copy(offset, length)


@pytest.mark.parametrize(
    ("index", "most"),
    [(np.s_[100], 4096 + 64), (np.s_[100:104, 512:520], 4 * 8 + 256), (np.s_[0:0], 0)],
)
def test_a_slice_reads_the_blocks_that_it_needs(index: Any, most: int) -> None:
    w, scale = float8(normal(512, 4096)), np.abs(normal(4, 32)) + np.float32(0.1)
    parts = {
        "a.weight": Counted("a.weight", "F8_E4M3", w.shape, w.tobytes()),
        "a.weight_scale_inv": MemoryTensor("s", "F32", scale.shape, scale.tobytes()),
    }
    tensor = Checkpoint(parts).dequantize()["a.weight"]
    Counted.read = 0
    expected = w.astype("f4") * spread(scale, (128, 128), (512, 4096))
    assert np.array_equal(tensor[index], expected[index])
    assert Counted.read <= most + 4 * 4096  # the gaps between runs of rows are read with them


def test_a_value_beyond_the_type_is_refused() -> None:
    w, scale = float8(np.float32([[2.0, 1.0]])), np.float32([[60000.0]])
    found = checkpoint({"a.weight": w, "a.weight_scale": scale}).dequantize("F16")
    with pytest.raises(UnsupportedError, match=r"beyond the range of F16: 120000\.0"):
        found["a.weight"].numpy()
    assert found["a.weight"].astype("F64").numpy().tolist() == [[120000.0, 60000.0]]
    assert found["a.weight"].astype("BF16").numpy().astype("f4").tolist() == [[119808.0, 59904.0]]


def test_nan_codes_stay_nan() -> None:
    w = np.array([[0x7F, 0x38]], np.uint8)
    arrays = {"a.weight": w, "a.weight_scale": np.float32([2.0])}
    found = checkpoint(arrays, {"a.weight": "F8_E4M3"}).dequantize("BF16")
    values = found["a.weight"].numpy().astype("f4")
    assert np.isnan(values[0, 0])
    assert values[0, 1] == 2


def test_memory_is_bounded(tmp_path: Path) -> None:
    import tracemalloc

    rows = 8192
    arrays = {
        "a.weight": np.zeros((rows, 4096), np.uint8),
        "a.weight_scale": np.ones((rows, 1), "f4"),
    }
    safeweights.save(checkpoint(arrays, {"a.weight": "F8_E4M3"}), tmp_path / "m.safetensors")
    opened = safeweights.open(tmp_path / "m.safetensors", backend="pread").dequantize("BF16")
    tracemalloc.start()
    for _ in opened["a.weight"].chunks():
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


def test_files_are_loaded_and_streamed_dequantised(tmp_path: Path) -> None:
    arrays, dense = gptq(4, 128, 96, 4)
    arrays["norm"] = normal(4)
    safeweights.save(checkpoint(arrays), tmp_path / "model.safetensors")
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    for target in (tmp_path, tmp_path / "model.safetensors"):
        loaded = safeweights.numpy.load_file(target, dequantize="BF16")
        assert np.array_equal(loaded["l.weight"], dense.astype(ml_dtypes.bfloat16))
        assert np.array_equal(loaded["norm"], normal(4))
        streamed = dict(safeweights.stream(target, "np", dequantize=True))
        assert np.array_equal(streamed["l.weight"], dense)
        with safeweights.stream(
            target, "np", dequantize="F32", plan={"l.weight": np.s_[3:5]}
        ) as some:
            assert np.array_equal(some.take("l.weight"), dense[3:5])
    with pytest.raises(UnsupportedError, match="no quantised weight"):
        safeweights.numpy.load_file(safeweights_file(tmp_path), dequantize=True)


def safeweights_file(folder: Path) -> str:
    path = os.path.join(folder, "plain.safetensors")
    safeweights.numpy.save_file({"a": normal(3)}, path)
    return path


def test_selections_of_no_element_and_of_vectors() -> None:
    arrays = {"a.weight": np.array([0x38, 0x40, 0x44], np.uint8), "a.weight_scale": np.float32(2.0)}
    found = checkpoint({**arrays, "a.weight_scale": np.float32([2.0])}, {"a.weight": "F8_E4M3"})
    tensor = found.dequantize()["a.weight"]
    assert tensor.numpy().tolist() == [2, 4, 6]
    assert tensor[::-2].tolist() == [6, 2]
    assert len(tensor.read_selection(select(np.s_[1:1], (3,)))) == 0


# ---- what lies beside the weights


def test_settings_come_from_the_store_and_are_verified(tmp_path: Path) -> None:
    arrays, dense = gptq(4, 128, 96, 4)
    settings = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    store = MemoryStore()
    safeweights.save(checkpoint(arrays), tmp_path / "model.safetensors")
    store.write("model.safetensors", [(tmp_path / "model.safetensors").read_bytes()])
    store.write("config.json", [json.dumps(settings).encode()])
    found = safeweights.open(store).dequantize()
    assert np.array_equal(found["l.weight"].numpy(), dense)
    seen: list[str] = []

    def verify(source: Source, path: str) -> Source:
        seen.append(os.path.basename(path))
        return source

    (tmp_path / "config.json").write_text(json.dumps(settings))
    for opened in (
        open_safetensors(tmp_path / "model.safetensors", verify=verify),
        open_safetensors(tmp_path, verify=verify),
    ):
        seen.clear()
        assert np.array_equal(opened.dequantize()["l.weight"].numpy(), dense)
        assert seen == ["config.json"]


def test_bytes_have_nothing_beside_them(tmp_path: Path) -> None:
    arrays, dense = gptq(4, 128, 96, 4)
    safeweights.save(checkpoint(arrays), tmp_path / "model.safetensors")
    opened = safeweights.open((tmp_path / "model.safetensors").read_bytes())
    assert opened.beside is None
    assert np.array_equal(opened.dequantize(scheme="gptq")["l.weight"].numpy(), dense)
    view = (
        safeweights.open(tmp_path / "model.safetensors")
        .filter(only="l.*")
        .rename(lambda name: f"m.{name}")
    )
    assert view.beside is not None
    assert view.beside("config.json", 100) is None
    assert np.array_equal(view.dequantize(scheme="gptq")["m.l.weight"].numpy(), dense)


# ---- schemes whose libraries are compared in tests/quantised


@pytest.mark.parametrize("shape", [(4, 128), (3, 50), (2, 3, 64)])
def test_bitsandbytes_with_nested_scales(shape: tuple[int, ...]) -> None:
    table = np.array(TABLES["nf4"], "f4")
    count = int(np.prod(shape))
    q = RANDOM.integers(0, 16, count + count % 2)
    blocks = -(-count // 64)
    absmax = RANDOM.integers(0, 256, blocks).astype(np.uint8)
    outer, quant_map = np.abs(normal(-(-blocks // 2))) + 1, np.linspace(-1, 1, 256, dtype="f4")
    state = {
        "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape),
        "nested_blocksize": 2, "nested_dtype": "float32", "nested_offset": 0.25,
    }  # fmt: skip
    arrays = {
        "w": ((q[0::2] << 4) | q[1::2]).astype(np.uint8).reshape(-1, 1), "w.absmax": absmax,
        "w.quant_map": table, "w.nested_absmax": outer, "w.nested_quant_map": quant_map,
        "w.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }  # fmt: skip
    scale = quant_map[absmax] * outer[np.arange(blocks) // 2] + np.float32(0.25)
    dense = (table[q[:count]] * np.repeat(scale, 64)[:count]).reshape(shape)
    check(checkpoint(arrays).dequantize(), {"w": dense})


def test_bitsandbytes_int8() -> None:
    q, scb = RANDOM.integers(-127, 128, (6, 10)).astype(np.int8), np.abs(normal(6)) + 1
    arrays = {"l.weight": q, "l.SCB": scb, "l.weight_format": np.zeros((), np.uint8)}
    dense = q * scb[:, None] * np.float32(1 / 127)
    check(checkpoint(arrays).dequantize(), {"l.weight": dense})


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("bits", "packing"), [(8, "8bit_u8"), (4, "4bit_u8"), (2, "2bit_u8"), (3, "3bit_32")]
)
def test_hqq(bits: int, packing: str, axis: int) -> None:
    shape, size = (20, 96), 32
    groups = 20 * 96 // size
    height, width = (groups, size) if axis == 1 else (size, groups)
    q = RANDOM.integers(0, 1 << bits, (height, width))
    fold = {8: 1, 4: 2, 2: 4, 3: 10}[bits]
    upper = np.pad(q, ((0, -height % fold), (0, 0))).reshape(fold, -1, width)
    packed = sum(upper[part].astype(np.int64) << (bits * (fold - 1 - part)) for part in range(fold))
    scale, zero = np.abs(normal(groups)) + np.float32(0.1), normal(groups + 1)[1:]
    one = (groups, 1) if axis == 1 else (1, groups)
    arrays = {
        "l.W_q": np.asarray(packed).astype(np.int32 if bits == 3 else np.uint8),
        "l.scale": scale.reshape(one), "l.zero": zero.reshape(one), "l.shape": np.array(shape),
        "l.axis": np.int32([axis]), "l.group_size": np.int32([size]), "l.nbits": np.int32([bits]),
        "l.packing": np.frombuffer(packing.encode(), np.uint8),
    }  # fmt: skip
    dense = ((q.astype("f4") - zero.reshape(one)) * scale.reshape(one)).reshape(shape)
    check(checkpoint(arrays).dequantize(), {"l.weight": dense})


@pytest.mark.parametrize(
    "kind", ["Float8Tensor", "IntxUnpackedToInt8Tensor", "NVFP4Tensor", "MXTensor"]
)
def test_torchao(kind: str) -> None:
    shape = (6, 64)
    data: dict[str, Any] = {"block_size": [1, 32]}
    q: Array = RANDOM.integers(-8, 8, shape).astype(np.int8)
    scale: Array = np.abs(normal(6, 2)) + np.float32(0.1)
    parts, codes = {"qdata": q, "scale": scale}, q.astype("f4")
    factor = np.float32(1)
    if kind == "Float8Tensor":
        parts["qdata"] = float8(normal(*shape))
        codes = parts["qdata"].astype("f4")
    elif kind == "IntxUnpackedToInt8Tensor":
        parts["zero_point"] = RANDOM.integers(-4, 4, (6, 2)).astype(np.int8)
        codes = codes - np.repeat(parts["zero_point"], 32, axis=1)
    else:
        four = RANDOM.integers(0, 16, shape)
        parts["qdata"], codes = as_fp4(four), E2M1[four]
        size = 16 if kind == "NVFP4Tensor" else 32
        data["block_size"] = size
        scale = exponents(6, 2) if size == 32 else float8(np.abs(normal(6, 4)) + 1)
        parts["scale"] = scale
        if size == 16:
            factor = np.float32(0.3)
            parts["per_tensor_scale"] = np.asarray(factor)
    wide = (
        np.float32(2.0) ** (scale.astype("f4") - 127) if kind == "MXTensor" else scale.astype("f4")
    )
    dense = codes * np.repeat(wide * factor, 64 // wide.shape[1], axis=1)
    stored = checkpoint(
        {f"l._weight_{part}": values for part, values in parts.items()} | {"b": normal(3)}
    )
    described = {"_type": kind, "_data": data, "_tensor_data_names": list(parts)}
    metadata = {
        "l.weight": json.dumps(described), "b": '{"_type": "Tensor"}',
        "tensor_names": '["l.weight", "b"]', "format": "pt",
    }  # fmt: skip
    found = Checkpoint(stored, metadata).dequantize()
    check(found, {"l.weight": dense, "b": normal(3)})
    assert found.metadata == {"format": "pt"}
