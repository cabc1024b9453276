"""Folders of small models, and the functions that units run in tests."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import safeweights.numpy

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of four good models and a bad one; the current folder is the one above it."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "models"
    for number, name in enumerate(("a", "b/c", "d")):
        folder = root / name
        folder.mkdir(parents=True)
        arrays = {f"t{i}": np.full((3, 4), 10 * number + i, "f4") for i in range(3)}
        safeweights.numpy.save_file(arrays, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    (root / "npz").mkdir()
    np.savez(root / "npz/weights.npz", w=np.arange(5, dtype="f4"))
    (root / "bad").mkdir()
    (root / "bad/model.safetensors").write_bytes(b"not a header")
    return root
