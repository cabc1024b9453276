"""Folders of distributed checkpoints as their writers leave them, made in one process.

The tables and items are written by PyTorch's own classes; only the work of many ranks is done in a loop.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

Boxes = list[tuple[tuple[int, ...], tuple[int, ...]]]


def saved(value: Any) -> bytes:
    """The bytes of `torch.save`."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def rows(tensor: torch.Tensor, ranks: int, axis: int = 0) -> Boxes:
    """How `Shard(axis)` divides a tensor among ranks."""
    boxes = []
    for start, part in zip(
        range(0, 1 << 30, -(-tensor.shape[axis] // ranks)), tensor.chunk(ranks, axis), strict=False
    ):
        offsets = [0] * tensor.ndim
        offsets[axis] = start
        boxes.append((tuple(offsets), tuple(part.shape)))
    return boxes


def cut(tensor: torch.Tensor, box: tuple[tuple[int, ...], tuple[int, ...]]) -> torch.Tensor:
    """The elements of `tensor` in a box."""
    places = tuple(slice(o, o + n) for o, n in zip(*box, strict=True))
    return tensor[places].clone()


class DCP:
    """A folder of torch.distributed.checkpoint being written.

    Attributes:
        metadata: The tables, which a test may change before `write`.
        files: Name -> contents, the same.
    """

    def __init__(self) -> None:
        self.metadata = Metadata({}, {}, {}, StorageMeta(Path("ckpt")), "1.0.0")
        self.files: dict[str, bytes] = {}

    def add(self, name: str, tensor: torch.Tensor, boxes: Boxes | None = None) -> DCP:
        """Add a tensor, of which rank n writes box n."""
        chunks = []
        for rank, box in enumerate(boxes or [((0,) * tensor.ndim, tuple(tensor.shape))]):
            part = cut(tensor, box) if boxes else tensor
            chunks.append(ChunkStorageMetadata(torch.Size(box[0]), torch.Size(box[1])))
            index = MetadataIndex(name, box[0], rank)
            self.metadata.storage_data[index] = self.item(saved(part), rank)
        self.metadata.state_dict_metadata[name] = TensorStorageMetadata(
            TensorProperties(tensor.dtype), tensor.shape, chunks
        )
        self.metadata.planner_data[name] = tuple(name.split("."))
        return self

    def value(self, name: str, value: Any) -> DCP:
        """Add a value that is no tensor."""
        self.metadata.state_dict_metadata[name] = BytesStorageMetadata()
        self.metadata.storage_data[MetadataIndex(name)] = self.item(saved(value), 0)
        self.metadata.planner_data[name] = tuple(name.split("."))
        return self

    def item(self, data: bytes, rank: int) -> _StorageInfo:
        file = f"__{rank}_0.distcp"
        before = self.files.setdefault(file, b"")
        self.files[file] = before + data
        return _StorageInfo(file, len(before), len(data))

    def write(self, folder: Path, edit: Callable[[bytes], bytes] | None = None) -> Path:
        """Write the folder; `edit` changes the pickle of the tables."""
        folder.mkdir(exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        tables = pickle.dumps(self.metadata)
        (folder / ".metadata").write_bytes(edit(tables) if edit else tables)
        return folder


def by_torch(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that PyTorch's own tool finds in a folder, by flattened name."""
    out = folder.parent / f"{folder.name}.by-torch.pt"
    dcp_to_torch_save(folder, out)
    return flattened(torch.load(out, weights_only=False))


def flattened(tree: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {prefix: tree}
    pairs = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    found = {}
    for key, value in pairs:
        found |= flattened(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def assert_equal(ours: Any, theirs: dict[str, torch.Tensor]) -> None:
    """Check that a mapping of unread tensors has exactly these values."""
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        found = ours[name].torch()
        assert found.dtype == expected.dtype, name
        assert found.shape == expected.shape, name
        plain = [t.contiguous().reshape(-1).view(torch.uint8) for t in (found, expected)]
        assert torch.equal(*plain), name
