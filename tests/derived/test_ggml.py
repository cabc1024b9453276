"""GGML's types: equal, bit for bit, to the package gguf."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from gguf import quants

import safeweights
from safeweights.derived.quantised.ggml import BLOCKS
from safeweights.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

Array = np.ndarray[Any, Any]

KINDS = {kind.name: kind for kind in gguf.GGMLQuantizationType}
DEQUANTISED = sorted(set(BLOCKS) & {kind.name for kind in quants._type_traits})
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
    "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "TQ1_0": [52], "TQ2_0": [64],
    "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0], "IQ1_S": [0],
    "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [], "NVFP4": [], "IQ1_M": [],
}  # fmt: skip
"""Type -> where in a block its scales of 16 bits are."""


def random_blocks(kind: str, count: int) -> Array:
    """Blocks of random bytes whose scales are finite."""
    random = np.random.default_rng(sum(kind.encode()))
    blocks = random.integers(0, 256, (count, BLOCKS[kind].nbytes), dtype=np.uint8)
    for place in HALVES[kind]:
        scales = random.normal(size=count).astype("<f2")
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    if kind == "MXFP4":
        blocks[:, 0] = random.integers(0, 200, count)
    if kind == "IQ1_M":  # the scale is in the upper bits of four numbers
        blocks[:, 55] &= 0xBF
    return blocks


def write(path: Path, tensors: dict[str, tuple[str, Array]]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def same_bits(found: Array, expected: Array) -> bool:
    return bool((found.view("u4") == np.ascontiguousarray(expected, "f4").view("u4")).all())


def test_the_table_has_every_type_that_gguf_dequantises() -> None:
    assert {kind.name for kind in quants._type_traits} - {"BF16"} <= set(DEQUANTISED)
    for name, (values, nbytes) in BLOCKS.items():
        if name != "Q8_1":  # whose size in the package is that of an older layout
            assert gguf.GGML_QUANT_SIZES[KINDS[name]] == (values, nbytes)


@pytest.mark.parametrize("kind", DEQUANTISED)
def test_random_blocks(kind: str, tmp_path: Path) -> None:
    values, nbytes = BLOCKS[kind]
    data = random_blocks(kind, 600).reshape(60, 10 * nbytes)
    path = write(tmp_path / "m.gguf", {"w": (kind, data)})
    expected = quants.dequantize(data, KINDS[kind])
    tensor = safeweights.open(path).dequantize()["w"]
    assert tensor.shape == (60, 10 * values)
    assert same_bits(tensor.numpy(), expected)
    for index in (np.s_[7], np.s_[3:50:7, 5:-5:3], np.s_[:, values], np.s_[50:2:-3, ::2]):
        assert same_bits(np.ascontiguousarray(tensor[index]), expected[index])


def test_quantised_weights_of_every_type_that_gguf_writes(tmp_path: Path) -> None:
    weights = np.random.default_rng(1).normal(size=(4, 2, 512)).astype("f4")
    weights[0, 0] = 0  # whose scale is 0
    tensors = {}
    for name in DEQUANTISED:
        try:
            tensors[name] = (name, quants.quantize(weights, KINDS[name]))
        except NotImplementedError:
            continue
    found = safeweights.open(write(tmp_path / "m.gguf", tensors)).dequantize("F32")
    assert len(tensors) >= 8
    for name, (_, data) in tensors.items():
        assert found[name].shape == weights.shape
        assert same_bits(found[name].numpy(), quants.dequantize(data, KINDS[name]))


def test_q8_k_by_its_definition(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    q = random.integers(-128, 128, (3, 256)).astype(np.int8)
    block = b"".join(
        struct.pack("<f", 0.25 * (row + 1)) + q[row].tobytes() + bytes(32) for row in range(3)
    )
    data = np.frombuffer(block, np.uint8).reshape(3, -1)
    found = safeweights.open(write(tmp_path / "m.gguf", {"w": ("Q8_K", data)})).dequantize()
    assert np.array_equal(found["w"].numpy(), q * np.float32([[0.25], [0.5], [0.75]]))


@pytest.mark.parametrize("kind", [kind for kind in DEQUANTISED if HALVES[kind]])
def test_a_scale_that_is_no_number(kind: str, tmp_path: Path) -> None:
    blocks = random_blocks(kind, 4)
    blocks[2, HALVES[kind][-1] : HALVES[kind][-1] + 2] = (0, 0x7E)
    path = write(tmp_path / "m.gguf", {"w": (kind, blocks)})
    tensor = safeweights.open(path).dequantize()["w"]
    with pytest.raises(FormatError, match=r"`w`: a scale is NaN or infinite.*m\.gguf") as caught:
        tensor.numpy()
    assert (caught.value.rule, caught.value.tensor) == ("quantised-scale", "w")


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    good = random_blocks("Q8_0", 8).reshape(8, -1)
    tensors = {"a": ("Q8_0", good), "norm": ("F32", np.ones(3, "f4"))}
    path = write(tmp_path / "m.gguf", tensors)
    opened = safeweights.open(path)
    with pytest.raises(UnsupportedError, match=r"quantised as Q8_0; dequantize .--dequantize."):
        opened["a"].numpy()
    dense = opened.dequantize("F16")
    assert list(dense) == list(opened)
    assert dense["norm"].numpy().tolist() == [1, 1, 1]
    assert dense["a"].dtype == "F16"
    with pytest.raises(UnsupportedError, match="F32, BF16, F16, F64, not to `I8`"):
        opened.dequantize("I8")
