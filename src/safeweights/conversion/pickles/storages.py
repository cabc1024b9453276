"""Where the bytes of PyTorch's storages are in a container, and where a tensor is in its storage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ...derived.element_types import item_size
from ...derived.layout import Strided
from ...errors import FormatError, quote

if TYPE_CHECKING:
    from ...checkpoint import Tensor
    from ...storage import Source
    from .torch_nodes import StorageNode, TensorNode

__all__ = ["Materialized", "Storages", "StoredBytes", "located"]


@dataclass(frozen=True)
class StoredBytes:
    """Where the bytes of a storage are.

    Attributes:
        source: The bytes, exactly the storage's.
        swapped: They are big-endian.
    """

    source: Source
    swapped: bool = False


class Storages(Protocol):
    """What a container of PyTorch storages offers."""

    def find(self, storage: StorageNode) -> StoredBytes:
        """The storage's bytes; FormatError where the container does not hold them."""


@dataclass
class Materialized:
    """Tensors by name.

    Attributes:
        tensors: Name -> tensor, in the file's order. One that cannot be given is an `UnreadableTensor`,
            which says why, and which option allows it.
        aliases: Name -> the first name that shows the same bytes in the same way.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


def located(node: TensorNode, storages: Storages, name: str) -> Strided:
    """Where the elements of `node` are; `name` is for messages.

    Raises:
        FormatError: Its storage is missing or has another size, or the view reaches outside of it.
    """
    stored = storages.find(node.storage)
    width = item_size(node.storage.dtype or "U8")
    start = node.storage.first * width + node.offset * item_size(node.dtype)
    array = Strided(
        stored.source, start, node.dtype, node.shape, node.strides,
        stored.swapped, node.conjugate, node.negative, node.storage.key,
    )  # fmt: skip
    limit = (node.storage.first + node.storage.elements) * width
    if array.elements and not 0 <= start <= start + array.span <= limit:
        raise FormatError(
            f"tensor {quote(name)} reaches outside its storage {quote(node.storage.key)}",
            rule="tensor-geometry",
            path=stored.source.name,
            tensor=name,
        )
    return array
