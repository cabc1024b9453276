"""Loading onto and saving from a real accelerator with JAX. Skipped where JAX has none."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from kits import KITS, ML_DTYPES, PLAIN, file_of, sample

import safeweights
import safeweights.flax
from safeweights.jax import load_sharded, save_sharded

if jax.default_backend() == "cpu":
    pytest.skip("needs an accelerator (a GPU or TPU) that JAX can use", allow_module_level=True)

DEVICE = jax.devices()[0]
CODES = [code for code in (*PLAIN, *ML_DTYPES) if code not in {"F4", "F64", "I64", "U64"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Every type that JAX keeps, an empty, a 0-d and a large one: a path, and what is in it by name."""
    stored = {f"type.{code}": (code, (3, 8), sample(code, (3, 8))) for code in CODES}
    stored |= {
        "large": ("BF16", (3000, 4001), sample("BF16", (3000, 4001))),
        "empty": ("F32", (0, 5), b""),
        "scalar": ("F32", (), sample("F32", ())),
    }
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    path.write_bytes(file_of(stored))
    return path, stored


def same(found, stored):
    assert set(found) == set(stored)
    for name, expected in stored.items():
        assert found[name].devices() == {DEVICE}, name
        assert KITS["jax"].look(found[name]) == expected, name


@pytest.mark.parametrize("backend", [None, "mmap", "pread"])
def test_load_file_brings_every_byte_to_the_default_device(model, backend):
    path, stored = model
    same(safeweights.flax.load_file(path, backend=backend), stored)


def test_load_of_bytes_and_stream_bring_every_byte(model):
    path, stored = model
    same(safeweights.flax.load(path.read_bytes()), stored)
    for device in (None, DEVICE, f"{DEVICE.platform}:0"):
        with safeweights.stream(path, "jax", device=device) as arriving:
            same(dict(arriving), stored)


def test_the_callers_default_device_is_kept_to(model):
    path, stored = model
    host = jax.devices("cpu")[0]
    with jax.default_device(host):
        found = safeweights.flax.load_file(path)
    assert {tuple(array.devices()) for array in found.values()} == {(host,)}
    assert {name: KITS["jax"].look(array) for name, array in found.items()} == stored
    same(safeweights.flax.load_file(path), stored)


def test_arrays_may_be_deleted_while_others_arrive(model):
    path, stored = model
    with safeweights.stream(path, "jax") as arriving:
        for name, array in arriving:
            assert array.nbytes == len(stored[name][2])
            array.delete()


def test_the_file_may_change_after_loading(model, tmp_path):
    """Arrays do not depend on a mapping that the device still copies from."""
    path, stored = model
    copy = tmp_path / "x.safetensors"
    copy.write_bytes(path.read_bytes())
    found = safeweights.flax.load_file(copy)
    with copy.open("r+b") as file:
        file.write(bytes(copy.stat().st_size))
    same(found, stored)


def test_parts_of_tensors_come_to_the_device(model):
    path, _ = model
    whole = np.asarray(safeweights.flax.load_file(path)["large"])
    with safeweights.safe_open(path, "jax") as file:
        part = file.get_slice("large")
        for index in ((slice(10, 20), slice(None)), (slice(None), slice(5, 9)), (7,)):
            found = part[index]
            assert found.devices() == {DEVICE}
            assert np.asarray(found).tobytes() == whole[index].tobytes()


def test_a_file_saved_from_the_device_has_the_same_tensors(model, tmp_path):
    path, stored = model
    arrays = safeweights.flax.load_file(path)
    safeweights.flax.save_file(arrays, tmp_path / "again.safetensors")
    same(safeweights.flax.load_file(tmp_path / "again.safetensors"), stored)


def test_trees_are_saved_and_restored_over_a_mesh(tmp_path):
    mesh = Mesh(np.array(jax.devices()), ("all",))
    rows = NamedSharding(mesh, PartitionSpec("all"))
    count = 8 * len(jax.devices())
    tree = {
        "rows": jax.device_put(jnp.arange(count * 300.0).reshape(count, 300), rows),
        "layer": [{"w": jax.device_put(jnp.ones((count, 7), jnp.bfloat16), rows)}],
    }
    save_sharded(tree, tmp_path / "model")
    target = jax.tree.map(lambda array: array.sharding, tree)
    found = load_sharded(tmp_path / "model", target)
    for name, array in (("rows", tree["rows"]), ("w", tree["layer"][0]["w"])):
        other = found["rows"] if name == "rows" else found["layer"][0]["w"]
        assert other.devices() == array.devices()
        assert np.asarray(other).tobytes() == np.asarray(array).tobytes()
