"""TensorFlow."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tensorflow as tf

from ..errors import DeviceError, DTypeError, UnsupportedError, quote
from .adapter import Adapter, is_default
from .numpy import decode_array, encode_array
from .wording import advice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..checkpoint import Tensor

__all__ = ["ADAPTER"]


class TensorFlowAdapter(Adapter):
    """Eager tensors, on TensorFlow's default device or the one asked for; F4 is unpacked."""

    name = "tensorflow"

    def check_device(self, device: Any) -> str | None:
        """None for TensorFlow's default device, which the reference's default ``"cpu"`` means too."""
        if is_default(device):
            return None
        wanted = f"GPU:{device}" if type(device) is int else str(device).replace("cuda", "GPU")
        try:
            kind = tf.DeviceSpec.from_string(wanted if ":" in wanted else f"{wanted}:0")
            place = f"{kind.device_type}:{kind.device_index}"
            known = [logical.name for logical in tf.config.list_logical_devices()]
        except (ValueError, TypeError) as error:
            raise DeviceError(f"device {quote(str(device))[1:-1]} is invalid: {error}") from error
        if not any(name.endswith(place) for name in known):
            raise DeviceError(
                f"Device {device} is not supported for framework {self.name}: there are "
                f"{', '.join(known)}"
            )
        return wanted

    def make(self, data: memoryview, dtype: str, shape: tuple[int, ...], device: Any) -> Any:
        array = decode_array(data, dtype, shape)
        try:
            with tf.device(device) if device else contextlib.nullcontext():
                return tf.convert_to_tensor(array)
        except (ValueError, TypeError) as error:
            raise DTypeError(
                f"tensorflow {tf.__version__} has no type for {dtype} ({error}); read the raw bytes with "
                "`get_bytes`"
            ) from error

    def encode(self, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        if not hasattr(tensors, "items"):
            raise UnsupportedError(
                f"Expected a dict of [str, tf.Tensor] but received {type(tensors)}"
            )
        return {name: _encode(name, tensor) for name, tensor in tensors.items()}


def _encode(name: str, tensor: Any) -> Tensor:
    if isinstance(tensor, tf.SparseTensor | tf.RaggedTensor | tf.IndexedSlices):
        raise UnsupportedError(
            f"{quote(name)} is a {type(tensor).__name__}, which the format does not hold: make it dense "
            "first",
            tensor=name,
        )
    if getattr(getattr(tensor, "dtype", None), "is_quantized", False):
        raise UnsupportedError(
            f"{quote(name)} is of the quantised type {tensor.dtype.name}, which the format does not have",
            tensor=name,
        )
    try:
        values = tensor.numpy()
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        raise UnsupportedError(
            f"Key {quote(name)} is invalid, expected an eager tf.Tensor or tf.Variable but received "
            f"{type(tensor)}{advice(name, tensor, 'tf.convert_to_tensor')} ({error})",
            tensor=name,
        ) from error
    return encode_array(name, np.asarray(values))


ADAPTER: Final = TensorFlowAdapter()
