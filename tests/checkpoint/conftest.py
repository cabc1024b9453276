"""Files and folders to open."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from safeweights.checkpoint import MemoryTensor, to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _tensors(**contents: bytes) -> dict[str, MemoryTensor]:
    return {name: MemoryTensor(name, "U8", (len(data),), data) for name, data in contents.items()}


@pytest.fixture
def tensors() -> Callable[..., dict[str, MemoryTensor]]:
    """Makes U8 vectors: ``tensors(name=data)``."""
    return _tensors


@pytest.fixture
def file_of() -> Callable[..., bytes]:
    """Makes the bytes of a file of U8 vectors: ``file_of({"key": "value"} or None, name=data)``."""

    def make(metadata: dict[str, str] | None = None, **contents: bytes) -> bytes:
        return to_bytes(_tensors(**contents), metadata)

    return make


@pytest.fixture
def write_index() -> Callable[..., Path]:
    """Writes an index into a folder."""

    def write(folder: Path, weight_map: Any, name: str = "model.safetensors.index.json") -> Path:
        path = folder / name
        path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
        return path

    return write


@pytest.fixture
def sharded(
    tmp_path: Path, file_of: Callable[..., bytes], write_index: Callable[..., Path]
) -> Path:
    """A folder of two shards and an index."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    (folder / first).write_bytes(file_of({"format": "pt", "part": "1"}, a=b"aaa", b=b"bb"))
    (folder / second).write_bytes(file_of({"format": "pt", "part": "2"}, c=b"cccc"))
    write_index(folder, {"a": first, "b": first, "c": second})
    return folder
