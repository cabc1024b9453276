"""PyTorch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from ...checkpoint import MemoryTensor, Tensor
from ...errors import (
    DeviceError,
    DTypeError,
    LayoutError,
    MissingPluginError,
    NoDataError,
    SharedMemoryError,
    UnsupportedError,
    quote,
)
from ...format.dtypes import DTYPES
from ...storage.source import flat
from ..adapter import COPY_MAX, Adapter
from ..wording import advice
from .sharing import are_disjoint, overlapping_tensors
from .staging import SLAB, Accelerator, DeviceLanding, TorchAccelerator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Self

    from ...format.header import TensorInfo
    from ...storage import Buffer
    from ..plans import Landing

__all__ = ["ADAPTER", "CODES", "PLAIN", "TYPES", "has_memory", "host_bytes"]

TYPES: Final[dict[str, torch.dtype]] = {
    row.code: getattr(torch, row.torch)
    for row in DTYPES.values()
    if row.torch is not None and hasattr(torch, row.torch)
}
"""Code -> torch type, for the types this torch has."""

CODES: Final[dict[torch.dtype, str]] = {dtype: code for code, dtype in TYPES.items()}


class _Carrier(NamedTuple):
    """How the bytes of a type get into torch: as a NumPy type, and what to view that as."""

    numpy: np.dtype[Any]
    view: torch.dtype | None


def _carrier(code: str) -> _Carrier:
    row = DTYPES[code]
    # Old versions of torch take no unsigned arrays wider than a byte: they travel as signed ones.
    if row.ml_dtypes or (row.numpy.startswith("uint") and row.bits > 8):
        return _Carrier(
            np.dtype(f"<i{max(row.bits, 8) // 8}" if row.bits > 8 else "u1"), TYPES[code]
        )
    return _Carrier(np.dtype(row.numpy).newbyteorder("<"), None)


_CARRIERS: Final = {code: _carrier(code) for code in TYPES}


class TorchAdapter(Adapter):
    """Tensors on the CPU share mapped or owned memory, each with a storage of exactly its size."""

    name = "torch"
    native_indexing = True
    maps = True

    def check_device(self, device: Any) -> torch.device | None:
        """None for the CPU, where tensors share memory; else the device to copy to."""
        if device is None:
            return None
        try:
            if isinstance(device, bool):
                raise TypeError("a bool names no device")
            found = torch.device(device)
        except (RuntimeError, TypeError, ValueError) as error:
            message = f"device {quote(str(device))[1:-1]} is invalid: {str(error).splitlines()[0]}"
            kind = device.partition(":")[0] if isinstance(device, str) else ""
            raise DeviceError(message + _plugin_hint(kind)) from error
        return None if found == torch.device("cpu") else found

    def make(
        self, data: memoryview, dtype: str, shape: tuple[int, ...], device: Any
    ) -> torch.Tensor:
        carrier, shape = self._carrier(dtype), packed_shape(dtype, shape)
        if device is not None and device.type == "meta":
            return torch.empty(shape, dtype=TYPES[dtype], device=device)
        array = np.ndarray(shape, carrier.numpy, data)
        if not (array.flags.aligned and array.flags.writeable):
            array = array.copy()
        tensor = torch.from_numpy(array)
        if carrier.view is not None:
            tensor = tensor.view(carrier.view)
        return self.place(tensor, device)

    def place(self, tensor: torch.Tensor, device: torch.device | None) -> torch.Tensor:
        return tensor if device is None else _to_device(tensor, device)

    def decode_all(
        self, data: memoryview, base: int, tensors: Iterable[tuple[str, TensorInfo]], device: Any
    ) -> dict[str, torch.Tensor]:
        if device is not None or data.readonly:
            return super().decode_all(data, base, tensors, device)
        address = np.frombuffer(data, np.uint8).ctypes.data - base if data.nbytes else 0
        result: dict[str, torch.Tensor] = {}
        last, array, from_numpy = "", np.ndarray, torch.from_numpy
        for name, (dtype, shape, begin, end) in tensors:
            if dtype != last:  # files have them sorted by type
                carrier, view = self._carrier(dtype)
                last, width = dtype, carrier.itemsize
            if (address + begin) % width or dtype == "F4" or begin == end:
                piece = data[begin - base : end - base]
                result[name] = self.decode(piece, dtype, shape, None, name=name)
            elif view is None:
                result[name] = from_numpy(array(shape, carrier, data, begin - base))
            else:
                result[name] = from_numpy(array(shape, carrier, data, begin - base)).view(view)
        return result

    def require(self, tensors: Iterable[tuple[str, TensorInfo]]) -> None:
        tensors = list(tensors)
        super().require(tensors)
        for name, info in tensors:
            if DTYPES[info.dtype].packed > 1 and (not info.shape or info.shape[-1] % 2):
                self.decode(memoryview(bytearray()), info.dtype, info.shape, None, name=name)

    def landing(self, device: Any) -> Landing | None:
        accelerator = None if device is None else self.accelerator(device)
        return None if accelerator is None else DeviceLanding(accelerator, self, device, _cut)

    def shares_memory(self, device: Any) -> bool:
        return device is None or device.type == "meta"

    def accelerator(self, device: torch.device) -> Accelerator | None:
        """How to stage tensors onto `device`; None where they are made in place or moved one by one."""
        return TorchAccelerator.of(device)

    @staticmethod
    def _carrier(code: str) -> _Carrier:
        carrier = _CARRIERS.get(code)
        if carrier is None:
            raise DTypeError(
                f"torch {torch.__version__} has no type for {code}; read the raw bytes with `get_bytes`"
            )
        return carrier

    def encode(self, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        if not isinstance(tensors, Mapping):
            raise LayoutError(
                f"Expected a dict of [str, torch.Tensor] but received {type(tensors)}"
            )
        usual = _encode_usual(tensors)
        if usual is not None:
            return usual
        _check_savable(tensors)
        return {name: _encode(name, tensor) for name, tensor in tensors.items()}


def _cut(arena: torch.Tensor, base: int, info: TensorInfo) -> torch.Tensor:
    """A tensor out of memory of a device that holds the data from `base` on."""
    if not info.nbytes:
        return ADAPTER.make(memoryview(bytearray()), info.dtype, info.shape, arena.device)
    dtype = TYPES[info.dtype]
    piece = arena[info.begin - base : info.end - base]
    if (info.begin - base) % dtype.itemsize:
        piece = piece.clone()  # a foreign writer's file: torch addresses memory by whole elements
    return piece.view(dtype).view(packed_shape(info.dtype, info.shape))


def packed_shape(code: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape torch gives a tensor: F4 counts pairs along the last axis.

    Raises:
        UnsupportedError: Pairs do not fill the rows.
    """
    packed = DTYPES[code].packed
    if packed == 1:
        return shape
    if not shape or shape[-1] % packed:
        raise UnsupportedError(
            f"{code} of shape {list(shape)} cannot become a torch tensor: its last axis must be even"
        )
    return (*shape[:-1], shape[-1] // packed)


def logical_shape(code: str, shape: Iterable[int]) -> tuple[int, ...]:
    """The inverse of `packed_shape`: elements, as a header counts them."""
    *outer, last = (*shape,) or (1,)
    packed = DTYPES[code].packed
    return tuple(shape) if packed == 1 else (*outer, last * packed)


def _to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    try:
        return tensor.to(device)
    except ImportError as error:  # torch looks for the device's module only when it is first used
        raise MissingPluginError(
            f"device {device} needs a package that provides it: {error}{_plugin_hint(device.type)}"
        ) from error
    except (RuntimeError, AssertionError, TypeError) as error:
        if type(error).__module__ != "builtins":
            raise  # torch's own, above all OutOfMemoryError, which callers catch to free memory
        message = f"cannot move a tensor of {tensor.dtype} to device {device}: {error}"
        raise DeviceError(message) from error


_PLUGINS: Final = {
    "hpu": "habana_frameworks.torch (Intel Gaudi)",
    "npu": "torch_npu (Huawei Ascend)",
    "mlu": "torch_mlu (Cambricon)",
    "musa": "torch_musa (Moore Threads)",
    "xla": "torch_xla (TPU)",
    "privateuseone": "the package of the device's vendor (it also gives the device a name)",
}
"""Device types that torch has only once another package is imported."""


def _plugin_hint(kind: str) -> str:
    package = _PLUGINS.get(kind)
    return f"; first install and import {package}" if package else ""


def _encode_usual(tensors: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """All of `tensors`, if each is dense, on the CPU, and shows its own memory; nothing is read of it.

    Cost: a microsecond a tensor, half of what looking at each closely takes. That is left to the caller
    as soon as one is otherwise, or two share memory: the result is None then.
    """
    found: dict[str, Tensor] = {}
    begins: list[int] = []
    sizes: list[int] = []
    kinds: dict[tuple[torch.dtype, torch.Size], tuple[str, tuple[int, ...], int]] = {}
    last_dtype: torch.dtype | None = None
    last_dims: torch.Size | None = None
    try:
        for name, tensor in tensors.items():
            if not (
                type(tensor) in PLAIN
                and tensor.is_cpu
                and tensor.is_contiguous()
                and not tensor.is_neg()
            ):
                return None
            dtype, dims = tensor.dtype, tensor.shape
            if dtype is not last_dtype or dims != last_dims:  # costs less than to look up
                last_dtype, last_dims = key = dtype, dims
                kind = kinds.get(key)
                if kind is None:
                    code = CODES.get(dtype, "F4")
                    if code == "F4" or tensor.is_complex():  # those may be conjugated
                        return None
                    kind = kinds[key] = code, tuple(dims), tensor.nbytes
                code, shape, nbytes = kind
            if tensor.untyped_storage().nbytes() != nbytes and not has_memory(tensor):
                return None
            if nbytes:
                begins.append(tensor.data_ptr())
                sizes.append(nbytes)
            found[name] = HostTensor(name, code, shape, nbytes, tensor)
    except RuntimeError:  # sparse, or within a transformation (vmap, functionalisation): no storage
        return None
    return found if all(begins) and are_disjoint(begins, sizes) else None


def _check_savable(tensors: Mapping[str, Any]) -> None:
    sparse = []
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise LayoutError(
                f"Key `{name}` is invalid, expected torch.Tensor but received {type(tensor)}"
                + advice(name, tensor, "torch.as_tensor"),
                tensor=name if isinstance(name, str) else None,
            )
        if tensor.layout != torch.strided:
            sparse.append(name)
    if sparse:
        raise LayoutError(
            f"You are trying to save a sparse tensors: `{sparse}` which this library does not support."
            " You can make it a dense tensor before saving with `.to_dense()` but be aware this might"
            " make a much larger file than needed."
        )
    try:
        shared = overlapping_tensors(tensors)
    except RuntimeError as error:  # fake, functional and nested tensors have no memory to look at
        raise UnsupportedError(f"the memory of a tensor cannot be reached: {error}") from error
    if shared:
        raise SharedMemoryError(
            "Some tensors share memory, this will lead to duplicate memory on disk and potential "
            f"differences when loading them again: {shared}. A potential way to correctly save your "
            "model is to use `save_model`."
        )


def _encode(name: str, tensor: torch.Tensor) -> Tensor:
    code = CODES.get(tensor.dtype)
    if code is None:
        raise DTypeError(
            f"{tensor.dtype} of tensor {quote(name)} is no type of the format: convert it first",
            tensor=name,
        )
    if tensor.is_meta:
        raise NoDataError(
            f"tensor {quote(name)} is on the meta device: Cannot copy out of meta tensor; no data!",
            tensor=name,
        )
    if tensor.is_nested:
        raise UnsupportedError(
            f"tensor {quote(name)} is nested, it has no shape: save its parts (`.unbind()`)",
            tensor=name,
        )
    if not tensor.is_contiguous():
        raise LayoutError(
            f"You are trying to save a non contiguous tensor: `{name}` which is not allowed. It either "
            "means you are trying to save tensors which are reference of each other in which case it's "
            "recommended to save only the full tensors, and reslice at load time, or simply call "
            "`.contiguous()` on your tensor to pack it before saving.",
            tensor=name,
        )
    if not has_memory(tensor):
        raise NoDataError(
            f"the memory of tensor {quote(name)} was freed (its storage is smaller than it is), as FSDP "
            "does with what it shards: gather it first",
            tensor=name,
        )
    shape = tuple(tensor.shape) if code != "F4" else logical_shape(code, tensor.shape)
    if not tensor.is_cpu:
        return DeviceTensor(name, code, shape, tensor)
    if type(tensor) in PLAIN and not tensor.is_conj() and not tensor.is_neg():
        return HostTensor(name, code, shape, tensor.nbytes, tensor)
    return MemoryTensor(name, code, shape, host_bytes(name, tensor))


def has_memory(tensor: torch.Tensor) -> bool:
    """False for a plain tensor on the CPU that reaches beyond its storage, which anybody may shrink."""
    if not tensor.is_cpu or type(tensor) not in PLAIN or not tensor.numel():
        return True
    end = tensor.storage_offset() * tensor.element_size() + tensor.nbytes
    return end <= tensor.untyped_storage().nbytes()


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, pending conj and neg bits applied."""
    resolved = tensor.detach().resolve_conj().resolve_neg()
    # An axis of one element may have any stride, 0 too, and still count as contiguous.
    return resolved.as_strided((resolved.numel(),), (1,)).view(torch.uint8)


def host_bytes(name: str, tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU: its own memory, but for pending conj and neg bits."""
    try:
        return _flat(tensor).numpy().data
    except (RuntimeError, TypeError, NotImplementedError) as error:
        kind = type(tensor).__name__
        raise UnsupportedError(
            f"the values of tensor {quote(name)}, a {kind}, cannot be reached: {error}", tensor=name
        ) from error


PLAIN: Final = frozenset({torch.Tensor, torch.nn.Parameter})
"""Types whose memory is where they say; a subclass may have its values anywhere."""

_PINNED_MIN: Final = 1 << 20
"""Size above which a copy through pinned memory pays off."""


@cache
def _array_at(nbytes: int) -> Callable[[int], ctypes.Array[ctypes.c_char]]:
    """Makes an array of bytes over the memory at an address."""
    return (ctypes.c_char * nbytes).from_address


class HostTensor(MemoryTensor):
    """A plain contiguous tensor on the CPU; its memory is looked up when it is written."""

    __slots__ = ()

    def __init__(
        self, name: str, code: str, shape: tuple[int, ...], nbytes: int, tensor: torch.Tensor
    ) -> None:
        # What the base's does, but for the view.
        self.name = name
        self.dtype = code
        self.shape = shape
        self.nbytes = nbytes
        self._data = tensor

    # Many times as fast as torch's own ways to NumPy, which matters where tensors are small.
    def memory(self) -> memoryview:
        memory: Any = _array_at(self.nbytes)(self._data.data_ptr())
        memory.owner = self._data  # a view of the memory keeps the tensor alive
        return flat(memory)

    @classmethod
    def chunks_of(cls, tensors: Sequence[Self]) -> list[Buffer]:
        if max(tensor.nbytes for tensor in tensors) > COPY_MAX:
            return super().chunks_of(tensors)
        return [
            _array_at(each.nbytes)(each._data.data_ptr()).raw  # noqa: SLF001 - of this class
            for each in tensors
        ]


class DeviceTensor(Tensor):
    """A tensor on an accelerator, copied to the host when it is written, a piece at a time.

    Pieces go through pinned memory, which torch recycles, so that few slabs of it are ever made.
    """

    __slots__ = ("_flat",)

    def __init__(self, name: str, code: str, shape: tuple[int, ...], tensor: torch.Tensor) -> None:
        super().__init__(name, code, shape, tensor.numel() * tensor.element_size())
        self._flat = _flat(tensor)
        # It may be read in another thread, whose stream does not wait for this one's.
        _synchronize(tensor.device)

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        view = self._within(buffer, offset)
        view[:] = self._flat[offset : offset + len(view)].cpu().numpy().data

    def chunks(self, size: int = SLAB) -> Iterator[memoryview]:
        accelerator = ADAPTER.accelerator(self._flat.device) if self.nbytes > _PINNED_MIN else None
        for begin in range(0, self.nbytes, size):
            piece = self._flat[begin : begin + size]
            if accelerator is None:
                yield piece.cpu().numpy().data
            else:
                slab = accelerator.slab(len(piece))
                with accelerator.copying():
                    accelerator.copy(slab, piece)
                yield slab.numpy().data


def _synchronize(device: torch.device) -> None:
    """Wait for what is queued on a device."""
    module: Any = getattr(torch, device.type, None)  # torch.cuda, torch.xpu ...
    if module is None:
        return  # there `cpu()` waits for everything
    if device.type == "mps":
        module.synchronize()
    else:
        module.synchronize(device)


ADAPTER: Final = TorchAdapter()
