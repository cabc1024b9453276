"""JAX, for Flax too."""

from __future__ import annotations

import math
import re
import weakref
from collections import deque
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from ...checkpoint import Tensor
from ...errors import DeviceError, DTypeError, UnsupportedError, quote
from ...format.dtypes import DTYPES, byte_count
from ..adapter import Adapter, is_default
from ..loading import Gathering, HostLanding
from ..numpy import code_of, decode_array, encode_array
from ..plans import Scattered
from ..wording import advice

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ...format.header import TensorInfo
    from ...storage import Buffer
    from ..plans import Batch, Landing, Transfer

__all__ = ["ADAPTER", "ArrayTensor", "UnderWay", "check_width", "encoded"]

_DEVICE: Final = re.compile(r"([a-z]+)(?::(\d+))?").fullmatch


class JaxAdapter(Adapter):
    """Arrays on the default device, or on the device or sharding asked for; F4 is unpacked.

    JAX narrows 64-bit values unless it is told not to. Here that is an error: a checkpoint does not
    change its values on the way.
    """

    name = "jax"
    aligned = True

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
        check_width(dtype)
        array = decode_array(data, dtype, shape)
        # On the CPU `asarray` copies, and `device_put` may share the memory. To an accelerator `asarray`
        # copies at 5 GiB/s instead of 26 (H200).
        copying = device is None and not _is_accelerator(device)
        found = jnp.asarray(array) if copying else jax.device_put(array, device)
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
        found = self._started(data, base, tensors, device)
        self.settle(found)  # all copies run at the same time until here
        return found

    def _started(
        self, data: memoryview, base: int, tensors: Iterable[tuple[str, TensorInfo]], device: Any
    ) -> dict[str, Any]:
        """As `decode_all`, but arrays may still be copied from `data`, which must not change until then."""
        decode = super().decode
        return {
            name: decode(data[begin - base : end - base], dtype, shape, device, name=name)
            for name, (dtype, shape, begin, end) in tensors
        }

    def settle(self, tensors: Mapping[str, Any]) -> None:
        jax.block_until_ready(list(tensors.values()))

    def shares_memory(self, device: Any) -> bool:
        return not _is_accelerator(device)

    def landing(self, device: Any) -> Landing | None:
        return _DeviceLanding(device) if _is_accelerator(device) else None

    def encode(self, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        if not hasattr(tensors, "items"):
            raise UnsupportedError(
                f"Expected a dict of [str, jax.Array] but received {type(tensors)}"
            )
        return {name: encoded(name, array) for name, array in tensors.items()}


def _is_accelerator(device: Any) -> bool:
    """Whether arrays for `device` (None: JAX's default) are in other memory than the host's."""
    if isinstance(device, jax.sharding.Sharding):
        return any(each.platform != "cpu" for each in device.device_set)
    if device is None:  # a device, the name of a platform, or nothing was configured
        device = jax.config.jax_default_device or jax.default_backend()
    return bool(getattr(device, "platform", device) != "cpu")


class _DeviceLanding(HostLanding):
    """Each batch is copied to its device as soon as it was read, while others are read and copied.

    JAX copies in the background, several arrays at once: one after another they arrive at 7 GiB/s on an
    H200, side by side at 26. It does so through pinned memory of the size of all that is on its way.
    """

    threads = 8
    ahead: int | None = 1 << 28

    def __init__(self, device: Any) -> None:
        super().__init__(_Copying(), device, copies=True)

    def begin(self, batch: Batch | Scattered) -> Transfer:
        if isinstance(batch, Scattered):  # its memory may not be its own
            return Gathering(batch, ADAPTER, self._device, copies=True)
        return super().begin(batch)


_WINDOW: Final = 1 << 28
"""Bytes that may be on their way to a device."""


class UnderWay:
    """Arrays that JAX copies in the background, which takes memory of the host until they have arrived."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._arrays: deque[tuple[weakref.ref[jax.Array], int]] = deque()
        self.nbytes = 0

    def add(self, array: jax.Array, nbytes: int) -> None:
        """Note an array, of which `nbytes` are being copied; wait for the oldest if that is too much."""
        with self._lock:
            self._arrays.append((weakref.ref(array), nbytes))
            self.nbytes += nbytes
            while self.nbytes > _WINDOW:
                oldest, size = self._arrays.popleft()
                self.nbytes -= size
                waited = oldest()
                if waited is not None and not waited.is_deleted():
                    waited.block_until_ready()


class _Copying(JaxAdapter):
    """Begins to copy arrays, and waits for as many as it must (`UnderWay`)."""

    def __init__(self) -> None:
        self._under_way = UnderWay()

    def decode_all(
        self, data: memoryview, base: int, tensors: Iterable[tuple[str, TensorInfo]], device: Any
    ) -> dict[str, Any]:
        found = self._started(data, base, tensors, device)
        for array in found.values():
            self._under_way.add(array, array.nbytes)
        return found


def check_width(dtype: str) -> None:
    """Raise an UnsupportedError for a type of 64 bits, unless JAX was told to have those."""
    if DTYPES[dtype].bits == 64 and dtype != "C64" and not jax.config.jax_enable_x64:
        raise UnsupportedError(
            f"{dtype} values would be narrowed to 32 bits: enable 64-bit types with "
            'jax.config.update("jax_enable_x64", True) before loading'
        )


def encoded(name: str, array: Any) -> Tensor:
    """An array as the format has it; one that is not in the memory of the host is copied when written.

    Raises:
        UnsupportedError: Not an array, or one of which this process does not have all values.
        DTypeError: The format has no such element type.
    """
    if not isinstance(array, jax.Array | np.ndarray | np.generic):
        raise UnsupportedError(
            f"Key {quote(name)} is invalid, expected jax.Array but received {type(array)}"
            + advice(name, array, "jax.numpy.asarray"),
            tensor=name,
        )
    if _is_elsewhere(array) and (code := code_of(np.dtype(array.dtype))) is not None:
        return ArrayTensor(name, code, array)
    return encode_array(name, _values(name, array))


def _is_elsewhere(array: Any) -> bool:
    """Whether the values of an array, all of which this process has, are not in one piece on the host."""
    if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer):
        return False
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended) or array.is_deleted():
        return False
    devices = array.devices()
    return array.is_fully_addressable and (
        len(devices) > 1 or next(iter(devices)).platform != "cpu"
    )


def _values(name: str, array: Any) -> Any:
    try:
        return np.asarray(array)
    except (TypeError, RuntimeError) as error:  # random keys; arrays of other hosts; traced values
        hint = ""
        if isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer):
            other = not array.is_fully_addressable
            hint = (
                "; `safeweights.jax.save_sharded` saves arrays of several processes"
                if other
                else ""
            )
        raise UnsupportedError(
            f"the values of {quote(name)} cannot be reached: {error}{hint}", tensor=name
        ) from error


class ArrayTensor(Tensor):
    """An array on one or several devices, copied to the host when it is written, one at a time."""

    __slots__ = ("_array",)

    def __init__(self, name: str, code: str, array: jax.Array) -> None:
        shape = tuple(array.shape)
        super().__init__(name, code, shape, byte_count(code, math.prod(shape)))
        self._array = array

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        view = self._within(buffer, offset)
        view[:] = self.view()[offset : offset + len(view)]

    def view(self) -> memoryview:
        return encode_array(self.name, _values(self.name, self._array)).view()

    def chunks(self, size: int = 1 << 24) -> Iterator[Buffer]:  # noqa: ARG002 - the copy is whole
        yield self.view()


ADAPTER: Final = JaxAdapter()
