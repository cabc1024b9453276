"""Files that several processes fill together: which bytes of which file each tensor is.

Rules:
- Shards are named and filled, and headers are written, as by `sharding.save_sharded`: the files are those
  that one process would write.
- Every process that is given the same names, types and shapes in the same order lays out the same files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ..errors import NoDataError, quote
from ..format.gcpause import gc_paused
from ..format.writer import layout
from .sharding import split_into_shards
from .tensor import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Layout", "PlannedTensor", "Shard", "laid_out"]


class PlannedTensor(Tensor):
    """A tensor of which other processes have the values, or parts of them."""

    __slots__ = ()

    def read_into(self, buffer: Any, offset: int = 0) -> NoReturn:  # noqa: ARG002
        raise NoDataError(
            f"the values of {quote(self.name)} are in other processes", tensor=self.name
        )


class Shard(NamedTuple):
    """A file that will be written.

    Attributes:
        name: Its name.
        head: Its first bytes, up to the data.
        size: Bytes of all of it.
    """

    name: str
    head: bytes
    size: int


class Layout(NamedTuple):
    """All files of a save.

    Attributes:
        shards: The files.
        places: Tensor -> number of the file, and the offset there at which the tensor begins.
        total_size: Bytes of all tensors.
    """

    shards: list[Shard]
    places: dict[str, list[int]]
    total_size: int

    def weight_map(self) -> dict[str, str]:
        """Tensor -> file."""
        return {name: self.shards[number].name for name, (number, _) in self.places.items()}


def laid_out(
    tensors: Mapping[str, Tensor],
    stem: str,
    max_shard_size: int | str,
    metadata: Mapping[str, str] | None,
) -> Layout:
    """Decide what the files will be.

    Args:
        tensors: All of them, in order.
        stem: Beginning of the files' names.
        max_shard_size: See `save_sharded`.
        metadata: For every file.

    Raises:
        FormatError, UnsupportedError: The format cannot hold a name, a shape or the metadata.
    """
    shards: list[Shard] = []
    places: dict[str, list[int]] = {}
    total = 0
    with gc_paused():
        for name, part in split_into_shards(tensors, stem, max_shard_size).items():
            entries = [(tensor, each.dtype, each.shape) for tensor, each in part.items()]
            header, head = layout(entries, metadata)
            number, start = len(shards), len(head)
            for tensor, info in header.tensors.items():
                places[tensor] = [number, start + info.begin]
            shards.append(Shard(name, head, start + header.data_size))
            total += header.data_size
    return Layout(shards, places, total)
