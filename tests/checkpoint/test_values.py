"""Values of unread tensors: `numpy`, `torch`, indexing, `numpy.asarray`."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import safeweights
import safeweights.numpy
from safeweights.checkpoint import Checkpoint, MemoryTensor, Tensor, UnreadableTensor
from safeweights.errors import DTypeError, SelectionError, StepError, UnsupportedError
from safeweights.frameworks import values

if TYPE_CHECKING:
    from pathlib import Path

VALUES = np.arange(12, dtype="f4").reshape(3, 4)


@pytest.fixture(params=["mmap", "pread", "memory", "renamed", "npy", "pt"])
def tensor(request: pytest.FixtureRequest, tmp_path: Path) -> Tensor:
    if request.param == "memory":
        return MemoryTensor("a", "F32", VALUES.shape, VALUES)
    if request.param == "npy":
        np.save(tmp_path / "x.npy", VALUES)
        return next(iter(safeweights.open(tmp_path / "x.npy").values()))
    if request.param == "pt":
        torch.save({"a": torch.from_numpy(VALUES)}, tmp_path / "x.pt")
        return safeweights.open(tmp_path / "x.pt")["a"]
    path = tmp_path / "x.safetensors"
    safeweights.numpy.save_file({"a": VALUES}, path)
    if request.param == "renamed":
        return safeweights.open(path).rename(lambda _: "b")["b"]
    return safeweights.open(path, backend=request.param)["a"]


def test_values(tensor: Tensor) -> None:
    assert np.array_equal(tensor.numpy(), VALUES)
    assert torch.equal(tensor.torch(), torch.from_numpy(VALUES))
    assert tensor.torch("meta").shape == (3, 4)
    assert np.array_equal(np.asarray(tensor), VALUES)
    assert np.asarray(tensor, dtype="f8").dtype == np.float64
    assert np.array_equal(np.array(tensor) + 1, VALUES + 1)


def test_arrays_are_the_caller_s(tensor: Tensor) -> None:
    for call in (tensor.numpy, lambda: tensor[...], lambda: tensor[1:], lambda: np.asarray(tensor)):
        found = call()
        found[:] = -1
        assert not np.array_equal(call(), found)


@pytest.mark.parametrize(
    "index", [0, -1, slice(1, 3), (slice(None), 2), (1, 3), (slice(None, None, -1), 0), ..., None]
)
def test_indexing(tensor: Tensor, index: object) -> None:
    assert np.array_equal(tensor[index], VALUES[index])


def test_indexing_by_arrays(tensor: Tensor) -> None:
    assert np.array_equal(tensor[np.array([2, 0])], VALUES[[2, 0]])
    assert np.array_equal(tensor[VALUES > 5], VALUES[VALUES > 5])
    assert [row.tolist() for row in tensor] == VALUES.tolist()


def test_indexes_that_do_not_fit(tensor: Tensor) -> None:
    for index in (3, (0, 0, 0), slice(0, 9), "a"):
        with pytest.raises(SelectionError):
            tensor[index]
    with pytest.raises(StepError):
        tensor[::0]


def test_no_copy_cannot_be(tensor: Tensor) -> None:
    with pytest.raises(ValueError, match="copy=False"):
        np.array(tensor, copy=False)


def test_only_what_is_selected_is_read() -> None:
    class Counting(Tensor):
        read = 0

        def read_into(self, buffer: object, offset: int = 0) -> None:
            view = memoryview(buffer)  # type: ignore[arg-type]
            Counting.read += len(view)
            view[:] = bytes(len(view))

    assert not Counting("a", "F32", (1000, 1000), 4_000_000)[17].any()
    assert Counting.read == 4000


def test_tensors_without_values() -> None:
    lost = UnreadableTensor("a", "F32", (2,), 8, reason="it is encrypted")
    for call in (lost.numpy, lost.torch, lambda: lost[0], lambda: np.asarray(lost)):
        with pytest.raises(UnsupportedError, match="it is encrypted"):
            call()
    foreign = MemoryTensor("a", "C128", (1,), bytes(16))
    for call in (foreign.numpy, foreign.torch, lambda: foreign[0]):
        with pytest.raises(DTypeError, match="C128"):
            call()


def test_derived_mappings_have_values(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 3), "step": torch.tensor(7)}, tmp_path / "x.pt")
    import safeweights.conversion

    found = safeweights.conversion.open(tmp_path / "x.pt")
    assert found["w"].numpy().tolist() == [[1] * 3] * 2
    assert found["step"][()] == 7
    assert isinstance(found, Checkpoint)


def test_numpy_is_all_that_values_need() -> None:
    """Neither a framework nor this package's adapters are imported before a value is asked for."""
    program = (
        "import sys, safeweights\n"
        "from safeweights.checkpoint import MemoryTensor\n"
        "tensor = MemoryTensor('a', 'U8', (2,), b'ab')\n"
        "assert not any(name.startswith('safeweights.frameworks') for name in sys.modules)\n"
        "assert tensor.numpy().tolist() == [97, 98]\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_device_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = MemoryTensor("a", "U8", (2,), b"ab")
    monkeypatch.setattr(values, "values_of", lambda *words: words)
    assert tensor.jax() == (tensor, "jax", "cpu")
    assert tensor.jax("gpu:1") == (tensor, "jax", "gpu:1")
    assert tensor.torch("cuda:1") == (tensor, "pt", "cuda:1")
