"""torch.distributed.checkpoint: the Hugging Face writer and reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

import safeweights

if TYPE_CHECKING:
    from pathlib import Path


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(8, 6),
        "a.bias": torch.randn(8).bfloat16(),
        "steps": torch.tensor([3], dtype=torch.int64),
    }


@pytest.mark.parametrize("threads", [1, 3])
def test_writer_and_reader(files: Path, threads: int) -> None:
    expected = state()
    names = dict.fromkeys(expected, 1) | {"steps": 2}
    writer = HuggingFaceStorageWriter(str(files), names, thread_count=threads)
    dcp.save(state(), storage_writer=writer, no_dist=True)
    assert set(safeweights.open(files)) == set(expected)

    found = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(files), threads), no_dist=True)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_distributed_files_and_their_consolidation(files: Path) -> None:
    expected = state()
    del expected["steps"]  # torch 2.13 consolidates floating point types only (it asks torch.finfo)
    writer = HuggingFaceStorageWriter(
        str(files), dict.fromkeys(expected, 1), save_distributed=True, enable_consolidation=True
    )
    dcp.save(dict(expected), storage_writer=writer, no_dist=True)
    (merged,) = files.glob("*.safetensors")
    with safeweights.safe_open(merged, framework="pt") as file:
        for name, tensor in expected.items():
            assert torch.equal(file.get_tensor(name), tensor), name


def test_reader_on_a_file_of_ours(files: Path) -> None:
    from safeweights.torch import save_file

    files.mkdir()
    expected = state()
    save_file(expected, files / "model.safetensors", {"format": "pt"})
    found = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(files)), no_dist=True)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
