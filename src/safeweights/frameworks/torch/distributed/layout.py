"""Which bytes of which file each rank writes: the coordinator decides, from the plans of all ranks.

Rules:
- Names are filled into shards in the order of the coordinator's state dict, and headers are written, as by
  `safeweights.checkpoint.sharding.save_sharded`: the files are those that one process would write.
- Every element of every tensor is written by exactly one rank. That is proved here, before a file exists.
- A tensor has one element type, and its shape is the same in every plan.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from torch.distributed.checkpoint.planner import WriteItemType

from ....checkpoint import Tensor
from ....checkpoint.sharding import split_into_shards
from ....derived.boxes import Box, first_gap, first_overlap
from ....errors import DTypeError, FormatError, NoDataError, quote
from ....format.dtypes import DTYPES
from ....format.gcpause import gc_paused
from ....format.rules import byte_count
from ....format.writer import layout
from ..adapter import CODES, logical_shape

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from torch.distributed.checkpoint.planner import SavePlan

__all__ = ["Layout", "Shard", "Share", "laid_out", "planned"]


class PlannedTensor(Tensor):
    """A tensor of which the ranks have the values."""

    __slots__ = ()

    def read_into(self, buffer: Any, offset: int = 0) -> NoReturn:  # noqa: ARG002
        raise NoDataError(f"the values of {quote(self.name)} are on other ranks", tensor=self.name)


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


class Share(NamedTuple):
    """Where one rank's tensors are; what the coordinator tells it.

    Attributes:
        files: What `Store.fill` takes.
        places: Tensor -> number of the file, and the offset there at which the tensor begins.
        aliases: Tensor that is not written -> the one that has its values.
    """

    files: list[str]
    places: dict[str, list[int]]
    aliases: dict[str, str]


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


def planned(plans: Sequence[SavePlan], order: Iterable[str]) -> dict[str, Tensor]:
    """All tensors that some ranks are going to write together.

    Args:
        plans: What each rank writes.
        order: Names of tensors that come first, in this order.

    Raises:
        DTypeError: A tensor has a type that the format lacks.
        FormatError: Parts of a tensor are missing, overlap, or differ in type or shape.
    """
    found: dict[str, list[Any]] = {name: [] for name in order}
    for plan in plans:
        for item in plan.items:
            if item.type != WriteItemType.BYTE_IO:
                found.setdefault(item.index.fqn, []).append(item.tensor_data)
    proved: set[Any] = set()
    with gc_paused():
        return {name: _planned(name, parts, proved) for name, parts in found.items() if parts}


def _planned(name: str, parts: list[Any], proved: set[Any]) -> Tensor:
    size, dtype = parts[0].size, parts[0].properties.dtype
    for part in parts[1:]:
        if part.size != size or part.properties.dtype != dtype:
            raise FormatError(
                f"tensor {quote(name)} is {dtype} of shape {list(size)} on one rank, and "
                f"{part.properties.dtype} of shape {list(part.size)} on another",
                rule="ranks", tensor=name,
            )  # fmt: skip
    code = CODES.get(dtype)
    if code is None:
        raise DTypeError(
            f"{dtype} of tensor {quote(name)} is no type of the format: convert it first",
            tensor=name,
        )
    boxes = tuple((tuple(part.chunk.offsets), tuple(part.chunk.sizes)) for part in parts)
    key = size, boxes
    if key not in proved:  # models have the same few shapes, divided in the same way, many times
        _require_cover(name, tuple(size), boxes)
        proved.add(key)
    shape = tuple(size) if DTYPES[code].packed == 1 else logical_shape(code, size)
    nbytes = byte_count(code, shape)
    return PlannedTensor(name, code, shape, -1 if nbytes is None else nbytes)


def _require_cover(name: str, size: tuple[int, ...], parts: Collection[Any]) -> None:
    boxes = [Box(*part) for part in parts]
    for box in boxes:
        inside = len(box.offsets) == len(box.lengths) == len(size)
        if not inside or any(end > most for end, most in zip(box.ends, size, strict=True)):
            raise FormatError(
                f"a part of tensor {quote(name)}, of shape {list(size)}, is outside of it: {tuple(box)}",
                rule="ranks", tensor=name,
            )  # fmt: skip
    if len(boxes) > 1 and (pair := first_overlap(boxes)) is not None:
        first, second = (tuple(boxes[place]) for place in pair)
        raise FormatError(
            f"two ranks write the same elements of tensor {quote(name)}: offsets and lengths {first} and "
            f"{second}",
            rule="ranks", tensor=name,
        )  # fmt: skip
    if sum(box.volume for box in boxes) != math.prod(size):
        gap = first_gap(size, boxes)
        raise FormatError(
            f"no rank writes element {list(gap or ())} of tensor {quote(name)}, of shape {list(size)}",
            rule="ranks", tensor=name,
        )  # fmt: skip


def laid_out(
    tensors: Mapping[str, Tensor],
    stem: str,
    max_shard_size: int | str,
    metadata: Mapping[str, str] | None,
) -> Layout:
    """Decide what the files will be.

    Args:
        tensors: What `planned` gave.
        stem: Beginning of the files' names.
        max_shard_size: See `save_sharded`.
        metadata: For every file.

    Raises:
        FormatError, UnsupportedError: The format cannot hold a name, a shape or the metadata.
    """
    shards: list[Shard] = []
    places: dict[str, list[int]] = {}
    with gc_paused():
        for name, part in split_into_shards(tensors, stem, max_shard_size).items():
            entries = [(tensor, each.dtype, each.shape) for tensor, each in part.items()]
            header, head = layout(entries, metadata)
            number, start = len(shards), len(head)
            for tensor, info in header.tensors.items():
                places[tensor] = [number, start + info.begin]
            shards.append(Shard(name, head, start + header.data_size))
    return Layout(shards, places, sum(tensor.nbytes for tensor in tensors.values()))
