"""What `show` says of quantised weights: schemes, effective bits, and what keeps them from being read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import safeweights
from safeweights.cli.app import cli

sys.path.insert(0, str(Path(__file__).parent.parent / "derived"))
from packing import checkpoint, float8
from test_quantised import gptq, normal


def shown(path: Path) -> dict:
    return safeweights.describe(path)["model"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    arrays, _ = gptq(4, 128, 96, 4)
    more, _ = gptq(4, 256, 96, 2)
    arrays |= {f"m{name}": values for name, values in more.items()} | {"norm": normal(4)}
    safeweights.save(checkpoint(arrays), tmp_path / "model.safetensors")
    return tmp_path


def test_schemes_and_effective_bits(folder: Path) -> None:
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    (found,) = shown(folder)["quantised"]
    size = sum(tensor.nbytes for name, tensor in safeweights.open(folder).items() if name != "norm")
    assert found == {
        "scheme": "gptq", "weights": 2, "parameters": (128 + 256) * 96, "bytes": size,
        "bits_per_weight": round(8 * size / ((128 + 256) * 96), 3),
    }  # fmt: skip
    assert shown(folder)["problems"] == []
    result = CliRunner().invoke(cli, ["show", str(folder)])
    assert f"quantised\tgptq\t2\t36864\t{size}\t{found['bits_per_weight']:g}" in result.output


def test_what_is_ambiguous_is_said(folder: Path) -> None:
    found = shown(folder)
    assert [(each["scheme"], each["weights"]) for each in found["quantised"]] == [("gptq", 0)]
    assert any("choose the scheme gptq" in problem for problem in found["problems"])
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "aqlm"}}')
    found = shown(folder)
    assert found["quantised"] == []
    assert any("the method `aqlm`" in problem for problem in found["problems"])


def test_a_model_of_two_schemes(tmp_path: Path) -> None:
    arrays = {
        "a.weight": float8(normal(64, 64)), "a.weight_scale": np.ones((64, 1), "f4"),
        "b.weight": np.ones((4, 4), np.int8), "b.SCB": np.ones(4, "f4"),
    }  # fmt: skip
    safeweights.save(checkpoint(arrays), tmp_path / "model.safetensors")
    found = shown(tmp_path / "model.safetensors")
    bits = {each["scheme"]: each["bits_per_weight"] for each in found["quantised"]}
    assert bits == {"fp8": 8.5, "bitsandbytes-int8": 16}
    assert "fp8 and 1 scheme more" in found["summary"]
