"""Names that clients import from `safetensors.numpy` although they are private there.

Nothing in this package calls them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from .format.dtypes import DTYPES
from .frameworks.numpy import decode_array, encode_array, numpy_dtype
from .serialization import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TYPES: dict[str, Any] = {
    code: np.dtype(row.numpy).type for code, row in DTYPES.items() if not row.ml_dtypes
}


def _getdtype(dtype_str: str) -> np.dtype[Any]:
    return numpy_dtype(dtype_str)


def _is_little_endian(tensor: np.ndarray[Any, Any]) -> bool:
    order = tensor.dtype.byteorder
    return order in "<|" or (order == "=" and sys.byteorder == "little")


def _view2np(safeview: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    return {
        name: decode_array(memoryview(entry["data"]), entry["dtype"], tuple(entry["shape"]))
        for name, entry in safeview
    }


def _flatten(
    tensor_dict: Mapping[str, np.ndarray[Any, Any]], keep_alive_buffer: list[Any]
) -> dict[str, TensorSpec]:
    flattened = {}
    for name, array in tensor_dict.items():
        encoded = encode_array(name, array)
        data = np.frombuffer(encoded.view(), np.uint8)
        keep_alive_buffer.append(data)
        flattened[name] = TensorSpec(
            dtype=encoded.dtype,
            shape=encoded.shape,
            data_ptr=data.ctypes.data,
            data_len=data.nbytes,
        )
    return flattened
