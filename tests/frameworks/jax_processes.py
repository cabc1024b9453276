"""What each of two processes with four devices saves and loads (see `test_jax_sharded`)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import safeweights
from safeweights.errors import RankError, SafetensorError
from safeweights.frameworks.jax import sharded
from safeweights.jax import load_sharded, save_sharded
from safeweights.storage import DescriptorSource


def tree(mesh: Mesh) -> dict[str, Any]:
    def made(shape: tuple[int, ...], *spec: Any, dtype: str = "float32") -> jax.Array:
        values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.make_array_from_callback(shape, sharding, lambda index: values[index])

    return {
        "rows": made((16, 6), "x"),
        "columns": made((4, 32), None, "y"),
        "both": made((8, 12), "x", "y", dtype="bfloat16"),
        "copies": made((5,), dtype="int32"),
        "empty": made((0, 3)),
        "inner": [np.float32(7), made((8,), ("x", "y"), dtype="float8_e4m3fn")],
    }


def values(found: Any) -> dict[str, np.ndarray[Any, Any]]:
    """This process's part of every array, with zeros elsewhere."""
    result = {}
    for name, array in sharded.named_leaves(found, None).items():
        whole = np.zeros(array.shape, array.dtype)
        for shard in array.addressable_shards:
            whole[shard.index] = shard.data
        result[name] = whole
    return result


def main(folder: Path) -> None:
    devices = np.array(jax.devices())
    mesh = Mesh(devices.reshape(4, 2), ("x", "y"))
    made = tree(mesh)
    save_sharded(made, folder / "one")
    save_sharded(made, folder / "many", max_shard_size=300, metadata={"by": "jax"}, durable=True)
    save_sharded(made, folder / "many", max_shard_size=200)  # in the place of the first
    stored = safeweights.open(folder / "many")
    assert len(stored.files) > 2
    assert sorted(stored) == sorted(safeweights.open(folder / "one"))

    other = Mesh(devices.reshape(2, 4)[::-1], ("x", "y"))
    target = jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=NamedSharding(other, leaf.sharding.spec)
            )
            if isinstance(leaf, jax.Array)
            else leaf
        ),
        tree(other),
    )
    target["inner"][0] = NamedSharding(other, PartitionSpec())
    reads: list[int] = []
    original = DescriptorSource.read_into

    def noting(source: DescriptorSource, offset: int, buffer: memoryview) -> None:
        reads.append(len(buffer))
        original(source, offset, buffer)

    opened = safeweights.open(folder / "one", backend="pread")
    progress: list[int] = []
    DescriptorSource.read_into = noting  # type: ignore[method-assign]
    found = load_sharded(opened, target, progress=progress.append)
    DescriptorSource.read_into = original  # type: ignore[method-assign]
    mine = {}
    for name, array in sharded.named_leaves(found, None).items():
        parts = {str(shard.index): shard.data.nbytes for shard in array.addressable_shards}
        mine[name] = sum(parts.values())
    assert sum(mine.values()) <= progress[-1] <= sum(tensor.nbytes for tensor in opened.values())
    for name, array in values(found).items():
        expected = opened[name].numpy()
        here = array.astype("f8") != 0
        assert (array[here] == expected[here]).all(), name
        assert array.dtype == expected.dtype, name

    faults(folder, made)


def faults(folder: Path, made: dict[str, Any]) -> None:
    """A failure in one process is an error in both, and leaves the earlier save."""
    before = {each.name: each.read_bytes() for each in (folder / "one").iterdir()}
    rank = jax.process_index()
    different = dict(made, **({"more": np.zeros(3)} if rank else {}))
    with pytest.raises(RankError, match="other names"):
        save_sharded(different, folder / "one")
    wrong = dict(made, bad=np.zeros(3, "m8[s]") if rank else np.zeros(3))
    with pytest.raises(SafetensorError, match="bad"):
        save_sharded(wrong, folder / "one")
    original = sharded._Save._write
    for failing in range(2):

        def write(self: Any, *arguments: Any, failing: int = failing) -> int:
            if jax.process_index() == failing:
                raise OSError(28, "No space left on device")
            return original(self, *arguments)

        sharded._Save._write = write  # type: ignore[method-assign]
        with pytest.raises(OSError if rank == failing else RankError, match="No space left"):
            save_sharded(made, folder / "one")
    sharded._Save._write = lambda self, *_: 1  # type: ignore[method-assign]
    with pytest.raises(RankError, match="wrote 2 bytes of"):
        save_sharded(made, folder / "one")
    sharded._Save._write = original  # type: ignore[method-assign]
    assert {each.name: each.read_bytes() for each in (folder / "one").iterdir()} == before


if __name__ == "__main__":
    number, port, target = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=number)
    main(target)
    (target / f"done-{number}").touch()
    jax.distributed.shutdown()
