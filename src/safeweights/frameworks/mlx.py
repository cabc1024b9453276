"""MLX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import mlx.core as mx
import numpy as np

from ..errors import DTypeError, UnsupportedError, quote
from ..format.dtypes import DTYPES
from .adapter import Adapter
from .numpy import carried, encode_array, tensor_of
from .wording import advice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..checkpoint import Tensor

__all__ = ["ADAPTER"]

_NAMES: Final = {"BOOL": "bool_"}
TYPES: Final[dict[str, Any]] = {
    row.code: getattr(mx, _NAMES.get(row.code, row.numpy))
    for row in DTYPES.values()
    if hasattr(mx, _NAMES.get(row.code, row.numpy))
}
"""Code -> MLX type, for the types this MLX has."""


class MLXAdapter(Adapter):
    """Arrays in MLX's unified memory; one copy."""

    name = "mlx"
    maps = True  # every array is a copy

    def make(self, data: memoryview, dtype: str, shape: tuple[int, ...], device: Any) -> Any:
        del device  # memory is one; streams choose the processor
        found = TYPES.get(dtype)
        if found is None:
            raise DTypeError(f"MLX has no type for {dtype}; read the raw bytes with `get_bytes`")
        array = carried(data, dtype, shape)
        if DTYPES[dtype].ml_dtypes:
            return mx.array(array).view(found)
        # The type is named, since MLX on its own makes 32-bit values of 64-bit ones.
        return mx.array(array, dtype=found)

    def encode(self, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        if not hasattr(tensors, "items"):
            raise UnsupportedError(
                f"Expected a dict of [str, mx.array] but received {type(tensors)}"
            )
        return {name: _encode(name, array) for name, array in tensors.items()}


def _encode(name: str, array: Any) -> Tensor:
    if isinstance(array, np.ndarray | np.generic):
        return encode_array(name, array)
    if not isinstance(array, mx.array):
        raise UnsupportedError(
            f"Key {quote(name)} is invalid, expected mlx.core.array but received {type(array)}"
            + advice(name, array, "mlx.core.array"),
            tensor=name,
        )
    if array.dtype == mx.bfloat16:  # which the buffer protocol cannot express
        return tensor_of(name, "BF16", np.asarray(array.view(mx.uint16)))
    return encode_array(name, np.asarray(array))


ADAPTER: Final = MLXAdapter()
