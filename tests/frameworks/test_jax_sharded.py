"""Trees of JAX arrays over meshes: loaded by part, saved by one or several processes, restored anywhere."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import safeweights
import safeweights.flax
import safeweights.numpy
from safeweights import Concat, SafetensorError
from safeweights.errors import FormatError, StateDictError, UnsupportedError
from safeweights.jax import load_sharded, save_sharded
from safeweights.storage import DescriptorSource, MemoryStore

ARRAYS = {
    "rows": np.arange(48.0, dtype="f4").reshape(16, 3),
    "layer.0.w": np.arange(64, dtype="i4").reshape(8, 8),
    "layer.1.w": -np.arange(64, dtype="i4").reshape(8, 8),
    "scalar": np.float32(3),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    safeweights.numpy.save_file(ARRAYS, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def mesh(*shape: int) -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(shape), ("x", "y")[: len(shape)])


def on(over: Mesh, *spec: Any) -> NamedSharding:
    return NamedSharding(over, PartitionSpec(*spec))


def target(over: Mesh) -> dict[str, Any]:
    return {
        "rows": on(over, "x"),
        "layer": [{"w": on(over, "y", "x")}, {"w": on(over, None, "y")}],
        "scalar": on(over),
    }


def flat(tree: Any) -> dict[str, Any]:
    return {
        "rows": tree["rows"], "layer.0.w": tree["layer"][0]["w"], "layer.1.w": tree["layer"][1]["w"],
        "scalar": tree["scalar"],
    }  # fmt: skip


def require_equal(tree: Any, expected: dict[str, Any]) -> None:
    for name, array in flat(tree).items():
        np.testing.assert_array_equal(np.asarray(array), expected[name])
        assert array.dtype == expected[name].dtype


@pytest.mark.parametrize("shape", [(4, 2), (1, 8), (2, 4)])
def test_each_part_is_read_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    reads: Counter[tuple[int, int]] = Counter()
    original = DescriptorSource.read_into

    def noting(source: DescriptorSource, offset: int, buffer: memoryview) -> None:
        reads[offset, len(buffer)] += 1
        original(source, offset, buffer)

    over = mesh(*shape)
    opened = safeweights.open(path, backend="pread")
    monkeypatch.setattr(DescriptorSource, "read_into", noting)
    progress: list[int] = []
    found = load_sharded(opened, target(over), progress=progress.append)
    require_equal(found, ARRAYS)
    assert found["rows"].sharding == on(over, "x")
    assert set(reads.values()) == {1}
    assert progress[-1] == sum(array.nbytes for array in ARRAYS.values())


def test_types_and_shapes_of_a_tree_count(path: Path) -> None:
    over = mesh(8)
    wanted = {"rows": jax.ShapeDtypeStruct((16, 3), "bfloat16", sharding=on(over, "x"))}
    found = load_sharded(path, wanted, strict=False)["rows"]
    assert found.dtype == "bfloat16"
    np.testing.assert_array_equal(np.asarray(found), ARRAYS["rows"].astype(found.dtype))
    again = load_sharded(path, {"rows": np.zeros((16, 3), "f4")}, strict=False)["rows"]
    assert again.sharding.is_fully_addressable
    assert len(again.devices()) == 1
    for shape, words in (((3, 16), "is .3, 16., the file has .16, 3."),):
        wanted = {"rows": jax.ShapeDtypeStruct(shape, "float32", sharding=on(over))}
        with pytest.raises(StateDictError, match=words):
            load_sharded(path, wanted, strict=False)


def test_names_must_agree(path: Path) -> None:
    over = mesh(8)
    with pytest.raises(StateDictError, match="the file has no `absent`; the tree has no `scalar`"):
        load_sharded(
            path, {"absent": on(over), "rows": on(over), "layer": target(mesh(4, 2))["layer"]}
        )
    renamed = {"model": {"rows": on(over, "x")}}
    found = load_sharded(
        path, renamed, strict=False, names=lambda name: name.removeprefix("model.")
    )
    np.testing.assert_array_equal(np.asarray(found["model"]["rows"]), ARRAYS["rows"])
    with pytest.raises(FormatError, match="two leaves of the tree are called `rows`"):
        load_sharded(path, {"a": on(over), "b": on(over)}, names=lambda _: "rows")


def test_a_plan(path: Path) -> None:
    plan = {"both": Concat(["layer.0.w", "layer.1.w"], dim=1)}
    found = load_sharded(path, {"both": on(mesh(8), None, "x")}, plan=plan, strict=False)["both"]
    expected = np.concatenate([ARRAYS["layer.0.w"], ARRAYS["layer.1.w"]], 1)
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_what_cannot_be_is_refused(tmp_path: Path, path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot be divided so"):
        load_sharded(path, {"rows": on(mesh(8), None, "x")}, strict=False)
    with pytest.raises(UnsupportedError, match="has to be a sharding"):
        load_sharded(path, {"rows": "x"}, strict=False)
    safeweights.numpy.save_file({"w": np.zeros(8)}, tmp_path / "wide")
    with pytest.raises(UnsupportedError, match="jax_enable_x64"):
        load_sharded(tmp_path / "wide", {"w": on(mesh(8), "x")})
    with pytest.raises(UnsupportedError, match="jax_enable_x64"):
        load_sharded(tmp_path / "wide", {"w": np.zeros(8)})
    key = jax.eval_shape(lambda: jax.random.key(0))
    with pytest.raises(UnsupportedError, match="cannot be loaded"):
        load_sharded(tmp_path / "wide", {"w": key})
    wanted = {"w": jax.ShapeDtypeStruct((8,), "float32", sharding=on(mesh(8), "x"))}
    assert load_sharded(tmp_path / "wide", wanted)["w"].dtype == "float32"


@pytest.mark.parametrize("limit", ["5GB", 300])
def test_saved_and_restored_on_another_mesh(path: Path, tmp_path: Path, limit: Any) -> None:
    tree = load_sharded(path, target(mesh(4, 2)))
    save_sharded(tree, tmp_path / "out", max_shard_size=limit)
    require_equal(load_sharded(tmp_path / "out", target(mesh(2, 4))), ARRAYS)
    names = [each.name for each in (tmp_path / "out").iterdir()]
    assert (len(names) == 1) is (limit == "5GB")
    store = MemoryStore()
    save_sharded(tree, store)
    require_equal(load_sharded(safeweights.open(store), target(mesh(1, 8))), ARRAYS)


def test_sharded_arrays_are_saved_as_files_too(path: Path, tmp_path: Path) -> None:
    tree = flat(load_sharded(path, target(mesh(4, 2))))
    safeweights.flax.save_file(tree, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    encoded = safeweights.frameworks.jax.adapter.ADAPTER.encode(tree)
    part = bytearray(8)
    encoded["rows"].read_into(part, 4)
    assert bytes(part) == ARRAYS["rows"].tobytes()[4:12]


def test_what_is_no_array_is_not_saved(tmp_path: Path) -> None:
    for bad in (jax.random.key(0), 3.0, "x"):
        with pytest.raises(SafetensorError):
            save_sharded({"bad": bad}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Flax and Orbax


def test_modules_of_flax(tmp_path: Path) -> None:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
            self.norm = nnx.BatchNorm(8, rngs=rngs)

    module = Net(nnx.Rngs(1))
    graph, state = nnx.split(module)
    save_sharded(state, tmp_path / "net")
    assert "layers.0.kernel" in safeweights.open(tmp_path / "net")
    abstract = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))[1]
    over = mesh(8)

    def placed(leaf: Any) -> Any:
        spec = ("x",) if len(leaf.shape) == 2 else ()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on(over, *spec))

    loaded = load_sharded(tmp_path / "net", jax.tree.map(placed, abstract))
    again = nnx.merge(graph, loaded)
    assert again.layers[0].kernel.value.sharding == on(over, "x")
    again.eval()
    module.eval()
    given = np.ones((2, 8), "f4")
    first = module.norm(module.layers[0](given))
    np.testing.assert_allclose(again.norm(again.layers[0](given)), first, rtol=1e-6)


def test_orbax_reads_what_is_saved_here(path: Path, tmp_path: Path) -> None:
    """Its reader of safetensors: names to arrays of one device."""
    import orbax.checkpoint.experimental.v1 as ocp

    save_sharded(load_sharded(path, target(mesh(4, 2))), tmp_path / "out")
    with ocp.Context(checkpoint_layout=ocp.options.CheckpointLayout.SAFETENSORS):
        found = ocp.load_pytree(tmp_path / "out" / "model.safetensors")
    for name, expected in ARRAYS.items():
        np.testing.assert_array_equal(np.asarray(found[name]), expected)


def test_two_processes_save_and_load(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = Path(__file__).with_name("jax_processes.py")
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(number), port, str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    said = [each.communicate(timeout=300)[0] for each in running]
    assert all((tmp_path / f"done-{number}").exists() for number in range(2)), "\n".join(said)[
        -6000:
    ]
    alone = safeweights.open(tmp_path / "one")
    assert alone["rows"].numpy().tolist() == np.arange(96.0).reshape(16, 6).tolist()
    assert alone["columns"].numpy().tolist() == np.arange(128.0).reshape(4, 32).tolist()
    assert alone["inner.0"].numpy() == 7
    assert [each.name for each in (tmp_path / "one").iterdir()] == ["model.safetensors"]


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "jax.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    given = np.ones((2, 8), "f4")
    np.testing.assert_array_equal(names["restored"](given), names["module"](given))
