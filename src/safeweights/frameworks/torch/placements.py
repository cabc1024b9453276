"""Which part of a tensor this rank has: placements of DTensors as ranges of each axis.

``compute_local_shape_and_global_offset`` of torch gives one box a rank. That is wrong for a
``_StridedShard`` whose rows are not neighbours, as tensor-parallel fused projections have them: of
``gate_up`` a rank has rows of ``gate`` and rows of ``up``. So ranges are computed here, by torch's rule: a
shard is a chunk of ``torch.chunk``; a strided one divides each of its `split_factor` chunks.

Nothing here reads or communicates.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ...errors import UnsupportedError, quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Region", "local_of", "mesh_of", "regions_of"]

Range = tuple[int, int]


class Region(NamedTuple):
    """A box of a tensor that this rank has.

    Attributes:
        starts: Where it begins in the whole tensor.
        lengths: Elements along each axis.
        places: Where it begins in this rank's memory.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    places: tuple[int, ...]


def mesh_of(tensor: torch.Tensor) -> Any:
    """The mesh of a DTensor; None for any other. torch.distributed is not imported for the answer."""
    return getattr(tensor, "device_mesh", None) if hasattr(tensor, "placements") else None


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor: its memory, not a copy."""
    if mesh_of(tensor) is None:
        return tensor
    # Not `to_local`, which makes a node of autograd.
    local: torch.Tensor = tensor._local_tensor  # type: ignore[attr-defined] # noqa: SLF001
    return local


def regions_of(name: str, tensor: torch.Tensor) -> list[Region]:
    """The boxes of a tensor that this rank has, which together fill its local tensor.

    Raises:
        UnsupportedError: A placement does not say which elements a rank has.
    """
    shape = tuple(tensor.shape)
    mesh = mesh_of(tensor)
    if mesh is None:
        return [Region((0,) * len(shape), shape, (0,) * len(shape))]
    coordinate = mesh.get_coordinate()
    if coordinate is None:  # the rank is not part of the mesh
        return []
    shares = tuple(
        _share(name, placement, len(shape), mesh.size(axis), coordinate[axis])
        for axis, placement in enumerate(tensor.placements)  # type: ignore[attr-defined]
    )
    found = _regions(shape, shares)
    local: tuple[int, ...] = tuple(local_of(tensor).shape)
    expected = tuple(sum(end - begin for begin, end in axis) for axis in _ranges(shape, shares))
    if local != expected and (0 not in local or 0 not in expected):
        raise UnsupportedError(
            f"{quote(name)} of shape {list(shape)} has a local tensor of shape {list(local)}, but its "
            f"placements give this rank {list(expected)}",
            tensor=name,
        )
    return found


class _Share(NamedTuple):
    """What one dimension of a mesh does to a tensor.

    Attributes:
        axis: Of the tensor; None if every rank has all of it.
        split: The number of chunks that are divided one by one; 1 but for a strided shard.
        ranks: Among how many it is divided.
        rank: Which of them this is.
    """

    axis: int | None
    split: int
    ranks: int
    rank: int


def _share(name: str, placement: Any, axes: int, ranks: int, rank: int) -> _Share:
    if placement.is_replicate():
        return _Share(None, 1, ranks, rank)
    # A strided shard is no subclass of Shard in every version of torch, and has its attributes.
    kind = type(placement).__name__
    if kind not in {"Shard", "_StridedShard"}:
        raise UnsupportedError(
            f"{quote(name)} has the placement {placement}, which does not say which elements a rank has",
            tensor=name,
        )
    split = int(placement.split_factor) if kind == "_StridedShard" else 1
    return _Share(placement.dim % axes if axes else None, split, ranks, rank)


@lru_cache(maxsize=1024)
def _ranges(shape: tuple[int, ...], shares: tuple[_Share, ...]) -> tuple[tuple[Range, ...], ...]:
    """The ranges of each axis that this rank has, in the order of its memory."""
    ranges: list[tuple[Range, ...]] = [((0, size),) for size in shape]
    for share in shares:
        if share.axis is not None:
            ranges[share.axis] = _divided(ranges[share.axis], share)
    return tuple(ranges)


def _divided(ranges: Sequence[Range], share: _Share) -> tuple[Range, ...]:
    total = sum(end - begin for begin, end in ranges)
    found: list[Range] = []
    for number in range(share.split):
        begin, end = _chunk(total, share.split, number)
        first, last = _chunk(end - begin, share.ranks, share.rank)
        found += _cut(ranges, begin + first, begin + last)
    return tuple(_joined(found))


def _chunk(size: int, count: int, number: int) -> Range:
    """Where one of `count` chunks begins and ends, as `torch.chunk` has them."""
    length = -(-size // count)
    return min(size, number * length), min(size, (number + 1) * length)


def _cut(ranges: Sequence[Range], begin: int, end: int) -> Iterator[Range]:
    """The elements from `begin` to `end` of some ranges, one after another."""
    passed = 0
    for first, last in ranges:
        low, high = max(begin, passed), min(end, passed + last - first)
        if low < high:
            yield first + low - passed, first + high - passed
        passed += last - first


def _joined(ranges: Sequence[Range]) -> Iterator[Range]:
    waiting: Range | None = None
    for begin, end in ranges:
        if waiting is not None and waiting[1] == begin:
            waiting = waiting[0], end
            continue
        if waiting is not None:
            yield waiting
        waiting = begin, end
    if waiting is not None:
        yield waiting


@lru_cache(maxsize=1024)
def _regions(shape: tuple[int, ...], shares: tuple[_Share, ...]) -> list[Region]:
    axes = []
    for ranges in _ranges(shape, shares):
        place, found = 0, []
        for begin, end in ranges:
            found.append((begin, end - begin, place))
            place += end - begin
        axes.append(found)
    return [
        Region(*(tuple(each[part] for each in box) for part in range(3))) for box in product(*axes)
    ]
