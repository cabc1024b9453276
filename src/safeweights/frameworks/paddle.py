"""PaddlePaddle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import paddle

from ..errors import DeviceError, DTypeError, LayoutError, quote
from ..format.dtypes import DTYPES
from .adapter import Adapter, is_default
from .numpy import carried, encode_array, tensor_of
from .wording import advice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..checkpoint import Tensor

__all__ = ["ADAPTER"]

# Paddle takes an array of uint16 for one of bfloat16, and has no kernels for wider unsigned types.
_WITHOUT_KERNELS: Final = {"U16", "U32", "U64"}
_CARRIERS: Final = {1: "uint8", 2: "int16"}
TYPES: Final[dict[str, Any]] = {
    row.code: getattr(paddle, row.numpy)
    for row in DTYPES.values()
    if hasattr(paddle, row.numpy) and row.code not in _WITHOUT_KERNELS
}
"""Code -> Paddle type, for the types this Paddle computes with."""
CODES: Final[dict[Any, str]] = {dtype: code for code, dtype in TYPES.items()}


class PaddleAdapter(Adapter):
    """Tensors of their own memory; one copy."""

    name = "paddle"
    maps = True  # every array is a copy

    def check_device(self, device: Any) -> str | None:
        """None for the CPU, else Paddle's name of the device."""
        if is_default(device) or str(device) == "cpu:0":
            return None
        wanted = f"gpu:{device}" if type(device) is int else str(device).replace("cuda", "gpu")
        known = paddle.device.get_available_device()
        if wanted not in known and f"{wanted}:0" not in known:
            raise DeviceError(
                f"Device {quote(str(device))[1:-1]} is not supported for framework {self.name}: there "
                f"are {', '.join(known)}"
            )
        return wanted

    def make(self, data: memoryview, dtype: str, shape: tuple[int, ...], device: Any) -> Any:
        found = TYPES.get(dtype)
        if found is None:
            raise DTypeError(
                f"paddle {paddle.__version__} has no type for {dtype}; read the raw bytes with "
                "`get_bytes`"
            )
        row = DTYPES[dtype]
        if row.ml_dtypes:
            array = carried(data, dtype, shape).view(_CARRIERS[row.bits // 8])
            tensor = paddle.to_tensor(array, place="cpu").view(found)
        else:
            tensor = paddle.to_tensor(carried(data, dtype, shape), place="cpu")
        return tensor if device is None else tensor.to(device)

    def encode(self, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        if not hasattr(tensors, "items"):
            raise LayoutError(
                f"Expected a dict of [str, paddle.Tensor] but received {type(tensors)}"
            )
        return {name: _encode(name, tensor) for name, tensor in tensors.items()}


def _encode(name: str, tensor: Any) -> Tensor:
    if not isinstance(tensor, paddle.Tensor):
        raise LayoutError(
            f"Key `{name}` is invalid, expected paddle.Tensor but received {type(tensor)}"
            + advice(name, tensor, "paddle.to_tensor"),
            tensor=name,
        )
    code = CODES.get(tensor.dtype)
    if code is None:
        raise DTypeError(
            f"{tensor.dtype} of tensor {quote(name)} is no type of the format: convert it first",
            tensor=name,
        )
    if not tensor.is_dense():
        raise LayoutError(
            f"You are trying to save a sparse tensors: `{name}` which this library does not support. "
            "You can make it a dense tensor before saving with `.to_dense()`",
            tensor=name,
        )
    if not tensor.is_contiguous():
        raise LayoutError(
            f"You are trying to save a non contiguous tensor: `{name}` which is not allowed: call "
            "`.contiguous()` on it to save its values",
            tensor=name,
        )
    host = tensor.detach().cpu()
    if DTYPES[code].ml_dtypes:
        return tensor_of(name, code, host.view(_CARRIERS[DTYPES[code].bits // 8]).numpy())
    return encode_array(name, host.numpy())


ADAPTER: Final = PaddleAdapter()
