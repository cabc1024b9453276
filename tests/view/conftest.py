"""Models to look at, hostile ones too."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import safeweights.numpy

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\u202egnp.exe\u2066",
    "\x1b[2J\x1b]0;owned\x07",
    "__proto__",
    "constructor",
    "",
    "a" * 3000,
    "javascript:document.title='owned'",
    "&lt;b&gt;",
    "line\nbreak",
]


@pytest.fixture
def model(tmp_path):
    """A folder with a model of two layers, one tensor of each kind of value."""
    folder = tmp_path / "model"
    folder.mkdir()
    random = np.random.default_rng(0)
    tensors = {
        "embed.weight": random.standard_normal((300, 40), "f4"),
        "cube": random.standard_normal((3, 5, 7, 9), "f4"),
        "line": np.arange(10, dtype="i4"),
        "point": np.float32(2.5),
        "none": np.zeros((0, 3), "f4"),
        "broken": np.array([[1, np.nan], [np.inf, -2]], "f4"),
        **{f"layers.{n}.w": np.full((4, 4), n, "f2") for n in range(2)},
    }
    safeweights.numpy.save_file(tensors, str(folder / "model.safetensors"), metadata={"a": "b"})
    (folder / "config.json").write_text(json.dumps({"architectures": ["SomeModel"]}))
    return str(folder)


@pytest.fixture
def hostile(tmp_path):
    """A model whose every text is hostile."""
    folder = tmp_path / "<b>hostile\u202e"
    folder.mkdir()
    path = str(folder / "model.safetensors")
    tensors = {name: np.ones(3, "f4") for name in HOSTILE}
    safeweights.numpy.save_file(tensors, path, metadata={name or "-": name for name in HOSTILE})
    (folder / "config.json").write_text(json.dumps({"architectures": [HOSTILE[0]]}))
    return os.path.dirname(path)
