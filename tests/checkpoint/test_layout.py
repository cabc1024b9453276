"""Files that several processes fill: laid out as those that one process writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safeweights.checkpoint import MemoryTensor
from safeweights.checkpoint.layout import PlannedTensor, laid_out
from safeweights.checkpoint.sharding import save_sharded
from safeweights.errors import NoDataError

DATA = {"b": bytes(range(10)), "a": b"abc", "c": bytes(20), "none": b""}


@pytest.mark.parametrize("limit", ["5GB", 13, 1])
def test_the_files_are_those_of_one_process(tmp_path: Path, limit: Any) -> None:
    stored = {name: MemoryTensor(name, "U8", (len(data),), data) for name, data in DATA.items()}
    save_sharded(stored, tmp_path, max_shard_size=limit, metadata={"by": "one"})
    planned = {
        name: PlannedTensor(name, "U8", (len(data),), len(data)) for name, data in DATA.items()
    }
    layout = laid_out(planned, "model", limit, {"by": "one"})
    assert layout.total_size == 33
    for number, shard in enumerate(layout.shards):
        made = bytearray(shard.size)
        made[: len(shard.head)] = shard.head
        for name, (where, begin) in layout.places.items():
            if where == number:
                made[begin : begin + len(DATA[name])] = DATA[name]
        assert (tmp_path / shard.name).read_bytes() == made
    assert {*layout.weight_map()} == {*DATA}
    with pytest.raises(NoDataError, match="in other processes"):
        planned["a"].view()
