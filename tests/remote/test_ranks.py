"""A distributed load from a web server reads the parts that a rank needs, in few requests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the package torch")

import torch
import torch.distributed.checkpoint as dcp

sys.path.insert(0, str(Path(__file__).parent))

import servers

import safeweights.torch
from safeweights.distributed import StorageReader, StorageWriter
from safeweights.storage.remote.source import RemoteSource

pytestmark = [
    pytest.mark.servers,
    pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning"),
]


def test_a_rank_loads_its_part_from_a_web_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {f"layer.{i}": torch.arange(40_000.0).reshape(200, 200) + i for i in range(30)}
    (tmp_path / "www").mkdir()
    safeweights.torch.save_file(tensors, tmp_path / "www" / "model", max_shard_size="2MB")
    reads: list[int] = []
    real = RemoteSource.read_into

    def counted(self: RemoteSource, offset: int, buffer: memoryview) -> None:
        reads.append(len(buffer))
        real(self, offset, buffer)

    monkeypatch.setattr(RemoteSource, "read_into", counted)
    with servers.nginx(tmp_path) as url:
        state = {"layer.3": torch.zeros(200, 200), "layer.17": torch.zeros(200, 200)}
        reader = StorageReader(f"{url}/model/")
        dcp.load(state, storage_reader=reader, no_dist=True)
    assert all(torch.equal(state[name], tensors[name]) for name in state)
    whole = sum(tensor.nbytes for tensor in tensors.values())
    assert sum(reads) < whole / 5


def test_a_web_server_is_no_place_to_save(tmp_path: Path) -> None:
    with pytest.raises(dcp.CheckpointException):
        writer = StorageWriter("https://localhost:1/model")
        dcp.save({"a": torch.ones(1)}, storage_writer=writer, no_dist=True)
