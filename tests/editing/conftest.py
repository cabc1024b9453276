"""Checkpoints to edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import safeweights
import safeweights.numpy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ARRAYS = {
    "module.embed.weight": np.arange(40, dtype="f4").reshape(10, 4),
    "module.layers.0.weight": np.arange(16, dtype="f2"),
    "module.layers.10.weight": np.arange(16, dtype="f2") + 1000,
    "module.layers.2.weight": np.arange(16, dtype="f2") + 50,
    "module.step": np.int64(7),
    "module.empty": np.zeros((0, 3), "f4"),
}
METADATA = {"format": "pt", "module.head.weight": "module.embed.weight"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with a tie."""
    path = tmp_path / "model.safetensors"
    safeweights.numpy.save_file(ARRAYS, path, METADATA)
    return path


@pytest.fixture
def shards(tmp_path: Path, model: Path) -> Path:
    """The same model as three shards and an index."""
    folder = tmp_path / "shards"
    safeweights.edit(model, f"{folder}/", split=165)
    return folder


@pytest.fixture
def contents() -> Callable[[Any], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """What a checkpoint has: name -> type, shape, bytes."""

    def contents(target: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        return {
            name: (tensor.dtype, tensor.shape, bytes(tensor.view()))
            for name, tensor in safeweights.open(target, backend="pread").items()
        }

    return contents
