"""Values of one unread tensor: what `Tensor.numpy`, `Tensor.torch` and indexing call.

`checkpoint.tensor` reaches this module by name at the first call, because it must not import a
framework (docs/adr/005).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..storage import allocate
from .adapter import adapter_for
from .slices import Slice

if TYPE_CHECKING:
    from ..checkpoint import Tensor
    from .adapter import Adapter

__all__ = ["own_bytes", "selected", "values_of"]


def values_of(tensor: Tensor, framework: str, device: Any = "cpu") -> Any:
    """All values of a tensor, as one of a framework.

    Args:
        tensor: Of any checkpoint.
        framework: As for `safe_open`.
        device: As for `safe_open`.

    Raises:
        UnsupportedError: The file describes the tensor, but its values cannot be given.
        DTypeError: The framework has no such element type.
        SafetensorError, OSError: Reading failed.
    """
    adapter = _adapter_for(framework)
    found = adapter.check_device(device)
    tensor.check_readable()
    own = not (adapter.maps and adapter.shares_memory(found))
    data = own_bytes(tensor) if own else tensor.view()
    return adapter.decode(data, tensor.dtype, tensor.shape, found, name=tensor.name)


def _adapter_for(framework: str) -> Adapter:
    adapter = adapter_for(framework)
    if adapter.name != "numpy":
        return adapter
    from .numpy import WIDENING

    return WIDENING


def selected(tensor: Tensor, expression: Any) -> Any:
    """The values that an index expression selects, as a NumPy array; see `safe_open.get_slice`."""
    return Slice[Any](tensor, _adapter_for("np"), None, mapped=False, copies=True)[expression]


def own_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, in memory that nothing else refers to."""
    memory = allocate(tensor.nbytes)
    tensor.read_into(memory)
    return memory
