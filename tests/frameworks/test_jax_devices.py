"""Copying to a device of JAX as batches arrive; the CPU plays it. `test_jax_accelerator` has a real one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import safeweights
import safeweights.flax
import safeweights.numpy
from safeweights.errors import UnsupportedError
from safeweights.frameworks.jax import adapter
from safeweights.frameworks.loading import HostLanding
from safeweights.jax import load_sharded

if TYPE_CHECKING:
    from pathlib import Path

ARRAYS = {
    f"{number:02}": np.random.default_rng(number).integers(0, 99, (number, 100), "i4")
    for number in range(40)
} | {"scalar": np.float32(3)}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    safeweights.numpy.save_file(ARRAYS, tmp_path / "x.safetensors")
    monkeypatch.setattr(adapter, "_is_accelerator", lambda _: True)
    monkeypatch.setattr(HostLanding, "arena", 10_000)
    return tmp_path / "x.safetensors"


def require_equal(found: dict[str, Any]) -> None:
    assert found.keys() == ARRAYS.keys()
    for name, array in found.items():
        assert isinstance(array, jax.Array)
        np.testing.assert_array_equal(np.asarray(array), ARRAYS[name])
        assert array.dtype == ARRAYS[name].dtype


@pytest.mark.parametrize("window", [1, 30_000, 1 << 28])
@pytest.mark.parametrize("backend", [None, "mmap", "pread"])
def test_every_array_arrives_in_the_order_of_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, backend: str | None, window: int
) -> None:
    monkeypatch.setattr(adapter, "_WINDOW", window)
    found = safeweights.flax.load_file(path, backend=backend)
    assert list(found) == list(safeweights.open(path))
    require_equal(found)
    with safeweights.stream(path, "jax", backend=backend or "pread") as arriving:
        require_equal(dict(arriving))


def test_no_more_than_the_window_is_on_its_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_WINDOW", 30_000)
    made: list[adapter._Copying] = []
    most = 0
    original = adapter._Copying.decode_all

    def noting(copying: adapter._Copying, *arguments: Any) -> dict[str, Any]:
        nonlocal most
        found = original(copying, *arguments)
        made.append(copying)
        most = max(most, copying._under_way.nbytes)
        return found

    monkeypatch.setattr(adapter._Copying, "decode_all", noting)
    require_equal(safeweights.flax.load_file(path))
    assert len(made) > 5
    assert len({id(copying) for copying in made}) == 1
    assert 10_000 < most <= 30_000


def test_trees_are_copied_within_the_window(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_WINDOW", 30_000)
    original, sizes = adapter.UnderWay.add, []

    def noting(under_way: adapter.UnderWay, array: jax.Array, nbytes: int) -> None:
        original(under_way, array, nbytes)
        sizes.append(under_way.nbytes)

    monkeypatch.setattr(adapter.UnderWay, "add", noting)
    device = SingleDeviceSharding(jax.devices()[1])
    require_equal(load_sharded(path, dict.fromkeys(ARRAYS, device)))
    assert len(sizes) == len(ARRAYS)
    assert 10_000 < max(sizes) <= 30_000


def test_arrays_that_are_gone_are_not_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_WINDOW", 15_000)
    with safeweights.stream(path, "jax") as arriving:
        for number, (_, array) in enumerate(arriving):
            if number % 2:
                array.delete()
            del array


def test_arrays_do_not_depend_on_the_file(path: Path) -> None:
    found = safeweights.flax.load_file(path, backend="mmap")
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    require_equal(found)


def test_what_the_caller_configured_for_a_thread_holds(path: Path, tmp_path: Path) -> None:
    """JAX keeps its default device by thread, so arrays are made in the caller's."""
    device = jax.devices()[3]
    with jax.default_device(device):
        found = safeweights.flax.load_file(path)
    assert {tuple(array.devices()) for array in found.values()} == {(device,)}
    require_equal(found)
    safeweights.numpy.save_file({"wide": np.ones(100_000)}, tmp_path / "wide")
    with pytest.raises(UnsupportedError, match="64-bit"):
        safeweights.flax.load_file(tmp_path / "wide")


def test_parts_come_over_a_mesh(path: Path) -> None:
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
    with safeweights.safe_open(path, "jax", device=sharding) as file:
        found = file.get_tensor("24")
        assert found.sharding == sharding
        np.testing.assert_array_equal(np.asarray(found), ARRAYS["24"])
        part = file.get_slice("24")[8:16, 5:]
        np.testing.assert_array_equal(np.asarray(part), ARRAYS["24"][8:16, 5:])


def test_what_an_accelerator_is() -> None:
    class Device:
        platform = "gpu"

    host = jax.devices()[0]
    assert adapter._is_accelerator(Device())
    assert not adapter._is_accelerator(host)
    assert not adapter._is_accelerator(SingleDeviceSharding(host))
    assert not adapter._is_accelerator(None)
    with jax.default_device("cpu"):
        assert not adapter._is_accelerator(None)
