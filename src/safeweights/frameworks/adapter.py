"""What a framework provides so that everything else can be written once."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ..errors import (
    DeviceError,
    DTypeError,
    MissingDependencyError,
    SafetensorError,
    UnsupportedError,
    quote,
)
from ..format.dtypes import DTYPES, byte_count

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..checkpoint import Tensor
    from ..format.header import TensorInfo
    from .plans import Landing

__all__ = ["COPY_MAX", "FRAMEWORKS", "Adapter", "MissingAdapter", "adapter_for", "is_default"]

FRAMEWORKS: Final = {
    "np": "numpy", "numpy": "numpy",
    "pt": "torch", "torch": "torch", "pytorch": "torch",
    "tf": "tensorflow", "tensorflow": "tensorflow",
    "jax": "jax", "flax": "jax",
    "mlx": "mlx",
    "paddle": "paddle",
}  # fmt: skip
"""What callers say -> the framework, whose adapter is the module or package of that name here."""

COPY_MAX: Final = 1 << 12
"""Bytes up to which it costs less to copy a tensor's memory than to make a view of it."""

_PACKAGES: Final = frozenset({"jax", "torch"})


class Adapter(ABC):
    """One framework: bytes <-> its tensors.

    Attributes:
        name: What messages call it.
        native_indexing: Indexing one of its tensors makes a view, so that a slice of mapped memory is
            best taken by the framework itself, with the framework's own rules.
        maps: Files are mapped by default, because the reference's tensors share a mapping too, or
            because the framework copies everything it is given. Otherwise tensors get memory of their
            own: where the reference copies, a later change of the file must not change an array.
        aligned: It shares memory that begins at a cache line, and copies other memory.
    """

    name: ClassVar[str]
    native_indexing: ClassVar[bool] = False
    maps: ClassVar[bool] = False
    aligned: ClassVar[bool] = False

    def decode(
        self, data: memoryview, dtype: str, shape: tuple[int, ...], device: Any, *, name: str = ""
    ) -> Any:
        """The tensor whose bytes are `data`; it shares that memory where the framework can.

        Args:
            data: Exactly the bytes of the tensor, flat; writable memory that nothing else changes.
            dtype: Code of the element type.
            shape: Elements along each axis, as in the header.
            device: What `check_device` returned.
            name: For messages.

        Raises:
            UnsupportedError: The framework has no such type, or cannot have such a shape: one with a
                0 may have other dimensions beyond every framework's limits.
            Exception: The framework's own error, such as out of memory, unchanged.
        """
        try:
            return self.make(data, dtype, shape, device)
        except SafetensorError as error:
            if name and error.tensor is None:
                error.tensor, error.message = name, f"tensor {quote(name)}: {error.message}"
            raise
        except KeyError as error:
            if dtype in DTYPES:
                raise
            which = f"tensor {quote(name)}: " if name else ""
            raise DTypeError(
                f"{which}{dtype} is no element type of the format: cast it to one first",
                tensor=name or None,
            ) from error
        except (ValueError, TypeError, OverflowError, RuntimeError, OSError) as error:
            if self._can_have(data, dtype, shape):
                raise  # out of memory, a broken device: not a matter of type or shape
            which = f"tensor {quote(name)}: " if name else ""
            raise UnsupportedError(
                f"{which}{self.name} cannot have {dtype} elements of shape {list(shape)}: {error}; "
                "read the raw bytes with `get_bytes`",
                tensor=name or None,
            ) from error

    def _can_have(self, data: memoryview, dtype: str, shape: tuple[int, ...]) -> bool:
        """Whether the framework can make the smallest tensor of that type and number of axes.

        Asked only after an error. Empty tensors are not asked for: they take no memory, so an error is
        about their shape.
        """
        if not len(data):
            return False
        least = DTYPES[dtype].packed
        least_shape = (1,) * (len(shape) - 1) + (least,) if shape else ()
        try:
            self.make(memoryview(bytearray(byte_count(dtype, least))), dtype, least_shape, None)
        except Exception:  # noqa: BLE001 - whatever a framework raises, it is an answer
            return False
        return True

    @abstractmethod
    def make(self, data: memoryview, dtype: str, shape: tuple[int, ...], device: Any) -> Any:
        """What `decode` does, with whatever exceptions the framework raises."""

    @abstractmethod
    def encode(self, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        """The framework's tensors as the format sees them: values, not memory layouts.

        Raises:
            UnsupportedError: A type or layout that the format cannot hold.
        """

    def check_device(self, device: Any) -> Any:
        """What `decode` needs for the `device` that a caller named."""
        if is_default(device):
            return None
        gpu = device if type(device) is int else 0 if str(device) == "cuda" else None
        shown = quote(str(device))[1:-1] if gpu is None else f"cuda:{gpu}"
        raise DeviceError(f"Device {shown} is not supported for framework {self.name}")

    def place(self, tensor: Any, device: Any) -> Any:
        """A tensor that `decode` made without a device, on `device`; for native indexing."""
        del device
        return tensor

    def decode_all(
        self, data: memoryview, base: int, tensors: Iterable[tuple[str, TensorInfo]], device: Any
    ) -> dict[str, Any]:
        """Many tensors out of one piece of memory, whose first byte is at offset `base` of the data."""
        decode = self.decode
        return {
            name: decode(data[begin - base : end - base], dtype, shape, device, name=name)
            for name, (dtype, shape, begin, end) in tensors
        }

    def require(self, tensors: Iterable[tuple[str, TensorInfo]]) -> None:
        """Refuse what the framework cannot have before gigabytes are read.

        Raises:
            UnsupportedError: As `decode`.
        """
        nothing = memoryview(bytearray())
        seen = set()
        for name, (dtype, shape, begin, end) in tensors:
            if dtype not in seen:
                self.decode(nothing, dtype, (0,), None, name=name)
                seen.add(dtype)
            if begin == end:
                self.decode(nothing, dtype, shape, None, name=name)

    def shares_memory(self, device: Any) -> bool:
        """Whether tensors on `device` may be made over a mapping of a file, or copied from one.

        A mapping is writable and private, and some drivers copy from such memory to their device at a
        hundredth of the speed (0.12 against 26 GiB/s were reported of GB10).
        """
        del device
        return True

    def landing(self, device: Any) -> Landing | None:
        """How tensors get onto `device` if not through the memory of the host and `decode`."""
        del device
        return None

    def settle(self, tensors: Mapping[str, Any]) -> None:  # noqa: B027 - most frameworks have nothing to do
        """Wait until tensors that came by way of `landing` are whole.

        Raises:
            Exception: What the framework raises where a copy failed.
        """


class MissingAdapter(Adapter):
    """Stands for a framework that is not installed: everything about values is the error that says so.

    Args:
        framework: Its name.
        error: To be raised.
    """

    maps = True

    def __init__(self, framework: str, error: MissingDependencyError) -> None:
        self.name = framework  # type: ignore[misc]
        self._error = error

    def check_device(self, device: Any) -> Any:
        return device

    def landing(self, device: Any) -> Landing | None:
        del device
        raise self._error

    def make(self, *_: object) -> Any:
        raise self._error

    def encode(self, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        del tensors
        raise self._error


def is_default(device: object) -> bool:
    """Whether a caller left the device as it is by default; anything may be asked, arrays too."""
    return device is None or (isinstance(device, str) and device == "cpu")


def adapter_for(framework: object) -> Adapter:
    """The adapter for what a caller calls a framework; its library is imported now.

    Raises:
        SafetensorError: No framework of that name.
        MissingDependencyError: It is not installed.
    """
    if not isinstance(framework, str):
        kind = type(framework).__name__
        raise UnsupportedError(f"argument 'framework': '{kind}' object is not an instance of 'str'")
    module = FRAMEWORKS.get(framework)
    if module is None:
        known = ", ".join(FRAMEWORKS)
        raise SafetensorError(f"framework {quote(framework)[1:-1]} is invalid (known: {known})")
    path = f"{__package__}.{module}.adapter" if module in _PACKAGES else f"{__package__}.{module}"
    known_adapter = _adapters.get(path)
    if known_adapter is not None and path in sys.modules:
        return known_adapter
    try:
        found = import_module(path)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"framework {framework} needs the package {error.name}: pip install 'safeweights[{module}]'"
        ) from error
    adapter = found.ADAPTER
    assert isinstance(adapter, Adapter)
    _adapters[path] = adapter
    return adapter


_adapters: Final[dict[str, Adapter]] = {}
"""Full name of a module that was imported -> its adapter: asking Python for the module takes 8 us."""
