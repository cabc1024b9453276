"""JAX, for Flax too."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import DeviceError, DTypeError, UnsupportedError, quote
from ...format.dtypes import DTYPES
from ..adapter import Adapter, is_default
from ..numpy import decode_array, encode_array
from ..wording import advice

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ...checkpoint import Tensor
    from ...format.header import TensorInfo

__all__ = ["ADAPTER"]

_DEVICE: Final = re.compile(r"([a-z]+)(?::(\d+))?").fullmatch


class JaxAdapter(Adapter):
    """Arrays on the default device, or on the device or sharding asked for; F4 is unpacked.

    JAX narrows 64-bit values unless it is told not to. Here that is an error: a checkpoint does not
    change its values on the way.
    """

    name = "jax"

    def check_device(self, device: Any) -> Any:
        """None for JAX's default device, which the reference's default ``"cpu"`` means too."""
        if is_default(device):
            return None
        if isinstance(device, jax.Device | jax.sharding.Sharding):
            return device
        match = _DEVICE(device) if isinstance(device, str) else None
        try:
            if match is None:
                raise ValueError("expected a jax.Device, a Sharding, or a name such as 'gpu:0'")
            return jax.devices(match[1])[int(match[2] or 0)]
        except (RuntimeError, ValueError, IndexError) as error:
            message = f"Device {device} is not supported for framework {self.name}: {error}"
            raise DeviceError(message) from error

    def make(self, data: memoryview, dtype: str, shape: tuple[int, ...], device: Any) -> Any:
        row = DTYPES[dtype]
        if row.bits == 64 and dtype != "C64" and not jax.config.jax_enable_x64:
            raise UnsupportedError(
                f"{dtype} values would be narrowed to 32 bits: enable 64-bit types with "
                'jax.config.update("jax_enable_x64", True) before loading'
            )
        array = decode_array(data, dtype, shape)
        found = jnp.asarray(array) if device is None else jax.device_put(array, device)
        if found.dtype != array.dtype:
            raise DTypeError(f"JAX would turn {dtype} into {found.dtype}")
        return found

    def decode(
        self, data: memoryview, dtype: str, shape: tuple[int, ...], device: Any, *, name: str = ""
    ) -> Any:
        # JAX copies in the background; the memory may be a mapping of a file that changes meanwhile.
        return jax.block_until_ready(super().decode(data, dtype, shape, device, name=name))

    def decode_all(
        self, data: memoryview, base: int, tensors: Iterable[tuple[str, TensorInfo]], device: Any
    ) -> dict[str, Any]:
        decode = super().decode
        found = {
            name: decode(data[begin - base : end - base], dtype, shape, device, name=name)
            for name, (dtype, shape, begin, end) in tensors
        }
        jax.block_until_ready(list(found.values()))  # all copies run at the same time until here
        return found

    def encode(self, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        if not hasattr(tensors, "items"):
            raise UnsupportedError(
                f"Expected a dict of [str, jax.Array] but received {type(tensors)}"
            )
        return {name: _encode(name, array) for name, array in tensors.items()}


def _encode(name: str, array: Any) -> Tensor:
    if not isinstance(array, jax.Array | np.ndarray | np.generic):
        raise UnsupportedError(
            f"Key {quote(name)} is invalid, expected jax.Array but received {type(array)}"
            + advice(name, array, "jax.numpy.asarray"),
            tensor=name,
        )
    try:
        values = np.asarray(array)
    except (TypeError, RuntimeError) as error:  # random keys; arrays of other hosts; traced values
        raise UnsupportedError(
            f"the values of {quote(name)} cannot be reached: {error}", tensor=name
        ) from error
    return encode_array(name, values)


ADAPTER: Final = JaxAdapter()
