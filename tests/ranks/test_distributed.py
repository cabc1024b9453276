"""`safeweights.distributed` on 2 and 4 real ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import layouts
from launching import run_fine

import safeweights
import safeweights.torch

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_layout_and_type_is_saved_and_loaded(ranks: int, tmp_path: Path) -> None:
    options = {"max_shard_size": 1000}
    (names, *_) = run_fine(layouts.save, ranks, ranks, str(tmp_path / "model"), options)
    stored = safeweights.torch.load_file(tmp_path / "model")
    wanted = layouts.expected(names)
    assert stored.keys() == wanted.keys()
    assert [n for n in wanted if not layouts.same(stored[n], wanted[n])] == []
    run_fine(layouts.load, ranks, ranks, str(tmp_path / "model"), {})


def test_the_files_are_those_that_one_process_writes(tmp_path: Path) -> None:
    """Byte for byte: names, shards, index, headers, data."""
    options = {"max_shard_size": 1000, "durable": True}
    (names, *_) = run_fine(layouts.save, 2, 2, str(tmp_path / "ours"), options)
    tensors = layouts.expected(names)
    safeweights.torch.save_file(
        tensors, tmp_path / "one", {"format": "pt"}, max_shard_size=options["max_shard_size"]
    )
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    found = {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
    assert len(wanted) > 3
    assert found.pop("model.values.json")
    assert found == wanted


def test_other_numbers_of_ranks_load_it(tmp_path: Path) -> None:
    folder = str(tmp_path / "model")
    run_fine(layouts.save, 4, 4, folder, {"max_shard_size": "2KB"})
    for ranks in (2, 1):
        assert run_fine(layouts.load, ranks, ranks, folder, {})[0] > 20
