"""`convert --dequantize`; and casts of parts of quantised weights, which are refused everywhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import safeweights
from safeweights.cli.app import cli
from safeweights.conversion import convert
from safeweights.errors import FormatError, SafetensorError, UnsupportedError

sys.path.insert(0, str(Path(__file__).parent.parent / "derived"))
from packing import checkpoint, float8
from test_ggml import random_blocks, write

if TYPE_CHECKING:
    from conftest import Guard

Array = np.ndarray[Any, Any]
NORM = np.arange(4, dtype="f4")


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("f4")


W, SCALE = float8(normal(130, 140)), np.float32([[1, 2], [3, 4]])
DENSE = W.astype("f4") * np.repeat(np.repeat(SCALE, 128, 0), 128, 1)[:130, :140]
CONFIG = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A block-scaled FP8 model in two shards; the scale is in another shard than its weight."""
    folder = tmp_path / "model"
    folder.mkdir()
    shards = {
        "model-00001-of-00002.safetensors": {"a.weight": W, "norm": NORM},
        "model-00002-of-00002.safetensors": {"a.weight_scale_inv": SCALE, "b": normal(3)},
    }
    weight_map = {}
    for file, arrays in shards.items():
        safeweights.save(checkpoint(arrays), folder / file)
        weight_map |= dict.fromkeys(arrays, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def values(path: Path) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in safeweights.open(path).items()}


def test_a_folder_of_shards(model: Path, tmp_path: Path) -> None:
    done = convert(model, tmp_path / "dense", dequantize=True, dtype="BF16")
    assert done.dequantized == {"fp8": 1}
    found = values(tmp_path / "dense")
    assert sorted(found) == ["a.weight", "b", "norm"]
    assert np.array_equal(found["a.weight"], DENSE.astype(ml_dtypes.bfloat16))
    assert np.array_equal(found["norm"], NORM.astype(ml_dtypes.bfloat16))
    assert [file.tensors for file in done.sources] == [2, 2]
    record = json.loads((tmp_path / "dense/conversion.provenance.json").read_text())
    assert record["dequantized"] == {"fp8": 1}
    assert record["options"]["dequantize"] is True


def test_one_file_of_a_folder(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "dense.safetensors", dequantize=True, record=False)
    found = values(tmp_path / "dense.safetensors")
    assert np.array_equal(found["a.weight"], DENSE)
    assert found["norm"].dtype == np.float32


def test_files_that_are_given_one_by_one(model: Path, tmp_path: Path) -> None:
    files = sorted(model.glob("*.safetensors"))
    convert(files, tmp_path / "dense", dequantize=True, record=False)
    assert np.array_equal(values(tmp_path / "dense")["a.weight"], DENSE)


def test_only_what_is_wanted_is_computed(model: Path, tmp_path: Path) -> None:
    done = convert(model, tmp_path / "x.safetensors", dequantize=True, only=("a.*",), record=False)
    assert list(values(tmp_path / "x.safetensors")) == ["a.weight"]
    assert sorted(done.skipped) == ["b", "norm"]
    with pytest.raises(UnsupportedError, match="no quantised weight"):
        convert(model, tmp_path / "y", dequantize=True, only=("norm",))


def test_a_dry_run_finds_what_would_fail(model: Path, tmp_path: Path) -> None:
    done = convert(model, tmp_path / "dense", dequantize=True, dry_run=True)
    assert done.dequantized == {"fp8": 1}
    assert not (tmp_path / "dense").exists()
    scale = SCALE.copy()
    scale[1, 1] = np.nan
    arrays = {"a.weight_scale_inv": scale, "b": normal(3)}
    safeweights.save(checkpoint(arrays), model / "model-00002-of-00002.safetensors")
    for dry_run in (True, False):
        with pytest.raises(
            FormatError, match=r"`a.weight_scale_inv`: a scale is NaN.*00002-of-00002"
        ):
            convert(model, tmp_path / "dense", dequantize=True, dry_run=dry_run)
        assert not list(tmp_path.glob("dense/*"))


def test_gguf(tmp_path: Path, guard: Guard) -> None:
    tensors = {"w": ("Q4_K", random_blocks("Q4_K", 6).reshape(3, -1)), "norm": ("F32", NORM)}
    path = write(tmp_path / "m.gguf", tensors)
    dense = safeweights.open(path).dequantize("F16")["w"].numpy()
    with guard.armed() as seen:
        again = safeweights.open(path).dequantize("F16")["w"].numpy()
    assert not seen  # nothing is imported or executed
    assert np.array_equal(again, dense)
    done = convert(path, tmp_path / "m.safetensors", dequantize=True, dtype="F16")
    assert done.dequantized == {"ggml-Q4_K": 1}
    assert "w" not in {item.name for item in done.dropped}
    assert np.array_equal(values(tmp_path / "m.safetensors")["w"], dense)


def test_two_models_of_the_same_names(tmp_path: Path) -> None:
    for name, factor in (("one", 1), ("two", 2)):
        arrays = {"a.weight": W, "a.weight_scale": np.float32([factor])}
        safeweights.save(checkpoint(arrays), tmp_path / f"{name}.safetensors")
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    convert(files, tmp_path / "dense", dequantize=True, record=False)
    one, two = (values(tmp_path / f"dense/{file.name}")["a.weight"] for file in files)
    assert np.array_equal(two, one * 2)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_pickled_checkpoint(tmp_path: Path, transposed: bool) -> None:
    """Tensors of PyTorch files are views of storages, and need not be contiguous."""
    w = torch.from_numpy(W.view(np.uint8)).view(torch.float8_e4m3fn)
    if transposed:
        w = w.T.contiguous().T
    torch.save({"a.weight": w, "a.weight_scale_inv": torch.from_numpy(SCALE)}, tmp_path / "m.bin")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    dense = safeweights.open(tmp_path / "m.bin").dequantize()["a.weight"]
    assert np.array_equal(dense.numpy(), DENSE)
    assert np.array_equal(dense[100:, ::7], DENSE[100:, ::7])
    convert(tmp_path / "m.bin", tmp_path / "m.safetensors", dequantize=True, dtype="F16")
    assert np.array_equal(values(tmp_path / "m.safetensors")["a.weight"], DENSE.astype("f2"))
    with pytest.raises(UnsupportedError, match="alone"):
        convert(tmp_path / "m.bin", tmp_path / "x.safetensors", dtype="F32")


# ---- casts


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3=F32", "F32=F64"])
def test_a_part_of_a_quantised_weight_is_never_cast_alone(
    model: Path, tmp_path: Path, dtype: str
) -> None:
    with pytest.raises(UnsupportedError, match=r"alone.*fp8.*dequantize \(--dequantize\)"):
        convert(model, tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()
    casts = {"F32": {"F8_E4M3": "F32"}}.get(dtype, {"F8_E4M3": "BF16", "F32": "F64"})
    with pytest.raises(UnsupportedError, match="alone"):
        safeweights.open(model, casts=casts)
    result = CliRunner().invoke(
        cli, ["convert", str(model), str(tmp_path / "out"), "--dtype", dtype]
    )
    assert result.exit_code == 1
    assert "--dequantize" in result.output
    convert(model, tmp_path / "norm", dtype="BF16", only=("norm",))


@pytest.mark.parametrize("edits", [{}, {"add_prefix": "m."}, {"drop": ("*scale_inv",)}])
def test_edit_casts_no_part_alone_either(
    model: Path, tmp_path: Path, edits: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedError, match=r"alone.*fp8"):
        safeweights.edit(model, tmp_path / "out.safetensors", dtype="F8_E4M3=F32", **edits)
    assert not (tmp_path / "out.safetensors").exists()
    safeweights.edit(model, tmp_path / "norm.safetensors", dtype="BF16", keep=("norm",))
    assert values(tmp_path / "norm.safetensors").keys() == {"norm"}


def test_a_shard_alone_is_judged_by_its_settings(model: Path, tmp_path: Path) -> None:
    shard = model / "model-00001-of-00002.safetensors"
    with pytest.raises(UnsupportedError, match="its scale is elsewhere"):
        convert(shard, tmp_path / "x.safetensors", dtype="F32")
    (model / "config.json").unlink()
    convert(shard, tmp_path / "x.safetensors", dtype="F32")  # plain FP8, for all that can be known


def halves(*shape: int) -> Array:
    return np.ones(shape, "f2")


SCHEMES: dict[str, dict[str, Array]] = {
    "gptq": {"qweight": np.zeros((4, 32), "i4"), "qzeros": np.zeros((1, 4), "i4"), "scales": halves(1, 32)},
    "bitsandbytes": {"weight": np.zeros((4, 1), np.uint8), "weight.absmax": np.ones(1, "f4")},
    "hqq": {"W_q": np.zeros((1, 4), np.uint8), "scale": halves(2, 1), "zero": halves(2, 1)},
    "int8": {"weight": np.zeros((2, 4), np.int8), "SCB": np.ones(2, "f4")},
    "nvfp4": {
        "weight": np.zeros((2, 32), np.uint8), "weight_scale": float8(np.ones((2, 4))),
        "weight_scale_2": np.ones(1, "f4"),
    },
}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scales_of_every_scheme_are_not_cast_alone(tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "m.safetensors"
    arrays = {f"l.{part}": values for part, values in SCHEMES[scheme].items()}
    safeweights.save(checkpoint({**arrays, "norm": NORM.astype("f2")}), path)
    with pytest.raises(UnsupportedError, match="part of a quantised weight"):
        convert(path, tmp_path / "out.safetensors", dtype="BF16")
    convert(path, tmp_path / "out.safetensors", dtype="BF16", only=("norm",))


def test_plain_fp8_is_cast_as_before(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safeweights.save(checkpoint({"a": W, "a_scale_of_it": NORM}), path)
    convert(path, tmp_path / "out.safetensors", dtype="F32")
    assert np.array_equal(values(tmp_path / "out.safetensors")["a"], W.astype("f4"))


def test_the_commands_say_the_scheme(model: Path, tmp_path: Path) -> None:
    words = ["convert", str(model), str(tmp_path / "out"), "--dequantize", "--dtype", "BF16"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert "dequantized\tfp8\t1" in result.output
    again = CliRunner().invoke(cli, [*words, "--force", "--scheme", "nonsense"])
    assert again.exit_code in (1, 2)
    assert "no such scheme" in again.output


def test_get_reads_rows(model: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["get", str(model), "a.weight[129, 127:130]", "--dequantize"])
    assert done.exit_code == 0, done.output
    assert list(map(float, done.output.split())) == DENSE[129, 127:130].tolist()
    out = str(tmp_path / "a.npy")
    assert (
        CliRunner()
        .invoke(cli, ["get", str(model), "a.weight", "--dequantize", "-o", out])
        .exit_code
        == 0
    )
    assert np.array_equal(np.load(out), DENSE)


def test_an_error_is_ours(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safeweights.save(checkpoint({"a": NORM}), path)
    with pytest.raises(SafetensorError, match="no quantised weight"):
        convert(path, tmp_path / "out.safetensors", dequantize=True)
