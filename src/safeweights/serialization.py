"""`serialize`, `serialize_file`, `deserialize` and `TensorSpec`: the format without a framework."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Mapping
from operator import index as as_index
from typing import IO, TYPE_CHECKING, Any, Final

from . import checkpoint
from .checkpoint import MemoryTensor, SafetensorsFile, Tensor
from .errors import SafetensorError, UnsupportedError, quote
from .format.dtypes import DTYPES
from .frameworks.wording import prefixed, saving
from .storage.source import flat

if TYPE_CHECKING:
    import os

__all__ = ["TensorSpec", "deserialize", "serialize", "serialize_file"]

# What the reference's constructor takes: NumPy's names and, for F4, torch's.
_NAMES: Final = {row.numpy: row for row in DTYPES.values() if row.bits != 6} | {
    str(row.torch): row for row in DTYPES.values() if row.torch
}


_ADDRESSES: Final = sys.maxsize
"""Where memory ends: objects of this size and more cannot be."""


class TensorSpec:
    """A tensor by its address: type, shape, and where its bytes are.

    The memory must stay where it is until the tensor is written. An address cannot be checked:
    a wrong one ends the process, as it does in the reference; hand over buffers instead
    (``{"dtype": ..., "shape": ..., "data": ...}``) where you can.

    Args:
        dtype: Name of the element type (``"float32"``, ``"bfloat16"`` ...) or its code (``"F32"``).
        shape: Elements along each axis. For ``"float4_e2m1fn_x2"`` pairs are counted, as in torch.
        data_ptr: Address of the first byte.
        data_len: Number of bytes.

    Raises:
        SafetensorError: Unknown type, or an address and a length that no memory can have.
    """

    __slots__ = ("data_len", "data_ptr", "dtype", "shape")

    def __init__(self, *, dtype: str, shape: Iterable[int], data_ptr: int, data_len: int) -> None:
        self.dtype, self.shape = _type_and_shape(dtype, shape)
        self.data_ptr = _integer("data_ptr", data_ptr)
        self.data_len = _integer("data_len", data_len)
        behind = self.data_ptr + self.data_len
        in_memory = (
            self.data_ptr > 0 and behind <= _ADDRESSES if self.data_len else self.data_ptr >= 0
        )
        if self.data_len < 0 or not in_memory:
            raise SafetensorError(
                f"{self.data_len} bytes at address {self.data_ptr} cannot be the contents of a tensor"
            )

    def __repr__(self) -> str:
        return (
            f"TensorSpec(dtype={self.dtype!r}, shape={self.shape}, data_ptr={self.data_ptr}, "
            f"data_len={self.data_len})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorSpec):
            return NotImplemented
        return all(getattr(self, field) == getattr(other, field) for field in self.__slots__)

    __hash__ = None  # type: ignore[assignment]


def _type_and_shape(dtype: str, shape: Iterable[int]) -> tuple[str, list[int]]:
    row = (_NAMES.get(dtype) or DTYPES.get(dtype)) if isinstance(dtype, str) else None
    if row is None:
        known = ", ".join(_NAMES)
        raise SafetensorError(
            f'Unknown dtype "{quote(str(dtype))[1:-1]}". Supported dtypes: {known}'
        )
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        kind = type(shape).__name__
        raise UnsupportedError(f"argument 'shape': '{kind}' object is not a sequence of integers")
    dims = [_integer("shape", dim) for dim in shape]
    if row.packed > 1 and dtype == row.torch and dims:
        dims[-1] *= row.packed
    return row.code, dims


def _integer(argument: str, value: object) -> int:
    try:
        return as_index(value)  # type: ignore[arg-type]
    except TypeError as error:
        kind = type(value).__name__
        raise UnsupportedError(
            f"argument '{argument}': '{kind}' object is not an integer"
        ) from error


def _tensors(tensor_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    if not isinstance(tensor_dict, Mapping):
        kind = type(tensor_dict).__name__
        raise UnsupportedError(
            f"argument 'tensor_dict': '{kind}' object is not an instance of 'dict'"
        )
    return {name: _tensor(name, spec) for name, spec in tensor_dict.items()}


def _tensor(name: object, spec: Any) -> Tensor:
    if not isinstance(name, str):
        kind = type(name).__name__
        raise UnsupportedError(
            f"argument 'tensor_dict': '{kind}' object is not an instance of 'str'"
        )
    if isinstance(spec, TensorSpec):
        memory = (
            (ctypes.c_ubyte * spec.data_len).from_address(spec.data_ptr) if spec.data_len else b""
        )
        return MemoryTensor(name, spec.dtype, spec.shape, memory)
    if isinstance(spec, Mapping) and spec.keys() >= {"dtype", "shape", "data"}:
        code, shape = _type_and_shape(spec["dtype"], spec["shape"])
        return MemoryTensor(name, code, shape, flat(spec["data"]))
    return _from_buffer(name, spec)


def _from_buffer(name: str, data: Any) -> Tensor:
    """Any object with the buffer protocol: its own type and shape, its values in C order."""
    import numpy as np

    from .frameworks.numpy import encode_array

    try:
        return encode_array(name, np.asarray(memoryview(data)))
    except (TypeError, ValueError) as error:
        if isinstance(error, SafetensorError):
            raise
        kind = type(data).__name__
        raise UnsupportedError(
            f"argument 'tensor_dict': '{kind}' object is not an instance of 'TensorSpec', nor a mapping "
            f"of dtype, shape and data, nor a buffer: {error}",
            tensor=name,
        ) from error


def serialize(tensor_dict: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """The contents of a file that holds `tensor_dict`.

    Args:
        tensor_dict: Names to `TensorSpec`, to ``{"dtype": str, "shape": [int], "data": buffer}``,
            or to any object with the buffer protocol.
        metadata: Strings to strings.

    Raises:
        SafetensorError: What the format cannot hold.

    >>> serialize({"a": {"dtype": "uint8", "shape": [2], "data": b"hi"}})[8:]
    b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   hi'
    """
    tensors = _tensors(tensor_dict)
    with saving():
        return checkpoint.to_bytes(tensors, metadata)


def serialize_file(
    tensor_dict: Mapping[str, Any],
    filename: str | os.PathLike[str] | IO[bytes],
    metadata: Mapping[str, str] | None = None,
    *,
    durable: bool = False,
) -> None:
    """Write what `serialize` gives to a file, without holding it all in memory."""
    tensors = _tensors(tensor_dict)
    with saving():
        checkpoint.save(tensors, filename, metadata, durable=durable)


def deserialize(bytes: Any) -> list[tuple[str, dict[str, Any]]]:  # noqa: A002 - the reference's name
    """What is in a file whose contents are `bytes`, in the order of the data.

    Args:
        bytes: Any bytes-like object.

    Returns:
        (name, ``{"shape": [int], "dtype": code, "data": bytearray}``) of each tensor; one copy.

    Raises:
        FormatError: The bytes break a rule of the format.

    >>> deserialize(serialize({"a": {"dtype": "uint8", "shape": [2], "data": b"hi"}}))
    [('a', {'shape': [2], 'dtype': 'U8', 'data': bytearray(b'hi')})]
    """
    with prefixed("Error while deserializing: "):
        file = SafetensorsFile.open(flat(bytes))
    return [
        (
            name,
            {
                "shape": list(info.shape),
                "dtype": info.dtype,
                "data": bytearray(file.tensor(name).view()),
            },
        )
        for name, info in file.header.tensors.items()
    ]
