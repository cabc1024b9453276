"""`serialize`, `serialize_file`, `deserialize` and `TensorSpec`: the format without any framework."""

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
from .trust.verifier import check_unnamed

if TYPE_CHECKING:
    import os

__all__ = ["TensorSpec", "deserialize", "serialize", "serialize_file"]

# Names that the reference's constructor accepts: NumPy's and, for F4, torch's.
_NAMES: Final = {row.numpy: row for row in DTYPES.values() if row.bits != 6} | {
    str(row.torch): row for row in DTYPES.values() if row.torch
}


_ADDRESSES: Final = sys.maxsize
"""End of the address space: no memory lies beyond."""


class TensorSpec:
    """A tensor given by its memory address, element type and shape.

    The memory must exist until the tensor is written. An address cannot be checked: a wrong one crashes
    the process, as in the reference. Prefer buffers (``{"dtype": ..., "shape": ..., "data": ...}``).

    Args:
        dtype: Name of the element type (``"float32"``, ``"bfloat16"`` ...) or its code (``"F32"``).
        shape: Elements along each axis. ``"float4_e2m1fn_x2"`` counts pairs of elements, as torch does.
        data_ptr: Address of the first byte.
        data_len: Number of bytes.

    Raises:
        SafetensorError: The type is unknown, or the memory would lie outside the address space.
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
                f"{self.data_len} bytes at address {self.data_ptr} cannot be a tensor's memory"
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

    def __hash__(self) -> int:
        return hash((self.dtype, tuple(self.shape), self.data_ptr, self.data_len))


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
    """A tensor with the type, shape and values of an object with the buffer protocol (PEP 3118)."""
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
    """Serialize tensors to the bytes of a safetensors file.

    Args:
        tensor_dict: Name -> `TensorSpec`, ``{"dtype": str, "shape": [int], "data": buffer}``, or an
            object with the buffer protocol (PEP 3118).
        metadata: Strings to strings, stored in the header.

    Raises:
        SafetensorError: The format cannot hold a tensor, a name or the metadata.

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
    """Write the bytes of `serialize` to a file, without a copy of all of them in memory.

    Args:
        tensor_dict: As for `serialize`.
        filename: Path or writable file object. An existing file is replaced atomically.
        metadata: As for `serialize`.
        durable: Also sync the file and its directory (fsync), so that it survives a power failure.

    Raises:
        SafetensorError: As for `serialize`; no file is written.
        OSError: Writing failed; an existing file is unchanged.
    """
    tensors = _tensors(tensor_dict)
    with saving():
        checkpoint.save(tensors, filename, metadata, durable=durable)


def deserialize(bytes: Any) -> list[tuple[str, dict[str, Any]]]:  # noqa: A002 - the reference's name
    """Load all tensors from the bytes of a file, in the order of its data.

    Args:
        bytes: Any bytes-like object with the contents of a file.

    Returns:
        (name, ``{"shape": [int], "dtype": code, "data": bytearray}``) of each tensor. Cost: one copy.

    Raises:
        FormatError: The bytes break a rule of the format.

    >>> deserialize(serialize({"a": {"dtype": "uint8", "shape": [2], "data": b"hi"}}))
    [('a', {'shape': [2], 'dtype': 'U8', 'data': bytearray(b'hi')})]
    """
    check_unnamed()
    with prefixed("Error while deserializing: "):
        file = SafetensorsFile.open(flat(bytes))
    return [
        (
            name,
            {
                "shape": list(tensor.shape),
                "dtype": tensor.dtype,
                "data": bytearray(tensor.view()),
            },
        )
        for name, tensor in file.tensors().items()
    ]
