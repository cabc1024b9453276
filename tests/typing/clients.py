"""What callers write, for the type checker: `tests/typing/test_typing.py` runs mypy --strict on it.

Nothing here is executed. `assert_type` states what an expression has to be; where a framework is not
installed its types are Any, and the statement holds of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from typing_extensions import assert_type

import safeweights
import safeweights.numpy
import safeweights.torch
from safeweights import PrefetchLoader, SafetensorError, TensorMeta, TensorSpec, safe_open, stream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Array = np.ndarray[Any, np.dtype[Any]]


def literals(path: Path, name: str) -> None:
    with safe_open(path, framework="pt", device="cuda:0") as file:
        assert_type(file, "safe_open[torch.Tensor]")
        assert_type(file.get_tensor(name), torch.Tensor)
        assert_type(file.get_tensors(), dict[str, torch.Tensor])
        assert_type(file.get_slice(name)[:, 1], torch.Tensor)
        assert_type(file[name], torch.Tensor)
        assert_type(file.keys(), list[str])
        assert_type(file.metadata(), "dict[str, str] | None")
        assert_type(file.get_tensor_meta(name), TensorMeta)
    with safe_open(str(path), "np", backend="pread") as arrays:
        assert_type(arrays.get_tensor(name), Array)
        assert_type(dict(arrays.items()), dict[str, Array])
        with arrays.prefetch({name: (slice(0, 2), 1)}) as loader:
            assert_type(loader, PrefetchLoader[Array])
            for key, array in loader:
                assert_type(key, str)
                assert_type(array, Array)
    with stream(path, "pt", "cuda", plan={name: None}, threads=2) as tensors:
        assert_type(tensors, PrefetchLoader[torch.Tensor])
        assert_type(tensors.take(name), torch.Tensor)
        assert_type(tensors.names(), list[str])
    with safe_open(path, "torch", torch.device("meta")) as other:
        assert_type(other.get_tensor(name).shape, torch.Size)


def variables(path: str, framework: str, backend: str) -> Any:
    with safe_open(path, framework=framework, backend=backend) as file:
        assert_type(file, safe_open[Any])
        return file.get_tensor("x")


def faces(
    path: Path, data: bytes, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]
) -> None:
    assert_type(safeweights.torch.load(data), dict[str, torch.Tensor])
    assert_type(safeweights.torch.load_file(path, device=0), dict[str, torch.Tensor])
    assert_type(safeweights.torch.save(tensors, {"format": "pt"}), bytes)
    safeweights.torch.save_file(tensors, path, metadata=None, durable=True)
    assert_type(safeweights.torch.load_model(module, path), tuple[set[str], list[str]])
    assert_type(safeweights.torch.load_into(tensors, path), tuple[set[str], list[str]])
    assert_type(safeweights.numpy.load_file(path), dict[str, Array])
    with path.open("rb") as file:
        safeweights.numpy.load_file(file, backend="pread")


def core(path: Path) -> None:
    checkpoint = safeweights.open(path)
    for name, tensor in checkpoint.items():
        assert_type(name, str)
        assert_type(tensor.view(), memoryview)
        assert_type(tensor.shape, tuple[int, ...])
    safeweights.save(checkpoint.filter(only=["a.*"]), path)
    spec = TensorSpec(dtype="float32", shape=[1], data_ptr=1, data_len=4)
    assert_type(safeweights.serialize({"x": spec}), bytes)
    try:
        safeweights.deserialize(b"")
    except SafetensorError as error:
        assert_type(error.path, "str | None")


def mistakes(path: Path) -> None:
    safe_open(path, 3)  # type: ignore[call-overload]
    safeweights.torch.save({"x": [1.0]})  # type: ignore[dict-item]
    safeweights.numpy.load_file(path, "cpu")  # type: ignore[call-arg]
