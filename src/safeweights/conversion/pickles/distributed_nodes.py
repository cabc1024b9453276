"""Parts of distributed tensors as the pickles of one rank describe them: DTensor and ShardedTensor.

A DTensor has a local tensor and a layout: a mesh of ranks, a placement for each dimension of the mesh,
and this rank's coordinate. A ShardedTensor lists its shards with their offsets. Both become a `ShardNode`:
which boxes of the whole tensor this file has, and how the others are divided. Nothing imports PyTorch.

Source of the layouts: torch/distributed/tensor/{_dtensor_spec,placement_types,_utils}.py,
torch/distributed/device_mesh.py, torch/distributed/_mesh_layout.py and torch/distributed/_shard/ of torch
2.1 to 2.13.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ...derived.element_types import TORCH_DTYPES
from ...errors import FormatError
from .nodes import Call, DictNode, Global, Value
from .numpy_nodes import int_tuple
from .object_nodes import is_int
from .torch_nodes import TORCH_CONSTRUCTORS, PieceNode, ShardNode, TensorNode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "DISTRIBUTED_CLASSES",
    "DISTRIBUTED_CONSTRUCTORS",
    "DTENSOR_MODULES",
    "ListedLayout",
    "MeshLayout",
]

_DISTRIBUTED: Final = "torch.distributed."
_PENDING: Final = (
    "it is a DTensor with pending sums (Partial): what a rank has are summands, not values; "
    "redistribute it before saving it"
)
_PIECES_MAX: Final = 10_000
_SPLIT_MAX: Final = 4096
_RANKS_MAX: Final = 1 << 16

DTENSOR_MODULES: Final = (
    "torch.distributed.tensor", "torch.distributed.tensor._api", "torch.distributed._tensor",
    "torch.distributed._tensor.api",
)  # fmt: skip
_SPEC_MODULES: Final = (
    "torch.distributed.tensor._dtensor_spec", "torch.distributed._tensor._dtensor_spec",
    "torch.distributed._tensor.placement_types",
)  # fmt: skip
_PLACEMENT_MODULES: Final = (
    "torch.distributed.tensor.placement_types", "torch.distributed._tensor.placement_types",
)  # fmt: skip
_MESH_MODULES: Final = (
    "torch.distributed.device_mesh", "torch.distributed._tensor.device_mesh",
    "torch.distributed._mesh_layout",
)  # fmt: skip
_SHARD_MODULES: Final = (
    "torch.distributed._shard.sharded_tensor.api", "torch.distributed._shard.sharded_tensor.shard",
    "torch.distributed._shard.sharded_tensor.metadata", "torch.distributed._shard.metadata",
    "torch.distributed._shard.sharding_spec.chunk_sharding_spec",
    "torch.distributed._shard.sharding_spec.api", "torch.distributed.remote_device",
)  # fmt: skip

DISTRIBUTED_CLASSES: Final = frozenset(
    (module, name)
    for modules, names in (
        (_SPEC_MODULES, ("DTensorSpec", "TensorMeta", "ShardOrderEntry")),
        (_PLACEMENT_MODULES, ("Shard", "Replicate", "_StridedShard", "Partial", "_Partial",
                              "_MaskPartial", "TensorMeta")),
        (_MESH_MODULES, ("DeviceMesh", "_MeshLayout", "_FlatLayout")),
        (_SHARD_MODULES, ("Shard", "ShardMetadata", "ShardedTensorMetadata", "TensorProperties",
                          "MEM_FORMAT_ENCODING", "ChunkShardingSpec", "EnumerableShardingSpec",
                          "_remote_device", "ShardedTensor.ProcessGroupState")),
    )
    for module in modules
    for name in names
)  # fmt: skip
"""Classes that only hold data, which describe a distributed tensor."""


def _malformed(what: str) -> FormatError:
    return FormatError(f"{what} is not as PyTorch writes it", rule="torch-distributed")


def _distributed(kind: Global, state: Value, dtype: str, shape: tuple[int, ...]) -> Value:
    """Describe a DTensor or a ShardedTensor.

    Args:
        kind: The class.
        state: The attributes that are set on it.
        dtype: Code of the element type.
        shape: The shape of the whole tensor.

    Returns:
        A `ShardNode`; NotImplemented for another class, or a layout that is not known.

    Raises:
        FormatError: The layout contradicts itself.
    """
    module, name = kind.module or "", kind.name or ""
    state = _slots(state)
    if name == "DTensor" and module in DTENSOR_MODULES and isinstance(state, DictNode):
        local, spec = state.get("_local_tensor"), _fields(state.get("_spec"), "DTensorSpec")
        if isinstance(local, TensorNode) and spec is not None:
            return _dtensor(local, spec, dtype, shape)
    if name == "ShardedTensor" and module in _SHARD_MODULES and isinstance(state, tuple):
        return _sharded(state, dtype, shape)
    return NotImplemented


def _fields(value: Value, name: str) -> DictNode | None:
    """The attributes of an object of the class of PyTorch called `name`."""
    if not isinstance(value, Call) or not isinstance(value.function, Global):
        return None
    function = value.function
    known = (function.module or "").startswith(_DISTRIBUTED) and function.name == name
    if not known or len(value.state) > 1:
        return None
    state = _slots(value.state[0]) if value.state else DictNode()
    return state if isinstance(state, DictNode) else None


def _slots(state: Value) -> Value:
    """The attributes in a state: of a class with slots, they are the second of a pair."""
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], DictNode):
        first, second = state
        return second if first is None or isinstance(first, DictNode) else state
    return state


# -- DTensor


@dataclass(frozen=True)
class Placement:
    """How one dimension of a mesh divides a tensor.

    Attributes:
        axis: The axis of the tensor; None if each rank has all of it.
        split: In how many parts the axis is cut before each of them is divided.
    """

    axis: int | None
    split: int = 1


@dataclass(frozen=True)
class MeshLayout:
    """How a mesh of ranks divides a tensor.

    Attributes:
        mesh: Ranks along each dimension of the mesh.
        placements: One for each dimension of the mesh.
        ranks: The ranks in C order, where the file tells; replicas of a tensor have it on others.
    """

    mesh: tuple[int, ...]
    placements: tuple[Placement, ...]
    ranks: tuple[int, ...] | None = field(default=None, compare=False)

    def owner_of(self, element: Sequence[int], shape: Sequence[int]) -> str:
        """Which rank has an element of a tensor of `shape`, in words."""
        for place, coordinate in enumerate(itertools.product(*map(range, self.mesh))):
            runs = local_runs(shape, self.mesh, coordinate, self.placements)
            if all(
                any(start <= each < start + length for start, length in axis)
                for each, axis in zip(element, runs, strict=True)
            ):
                where = f"the rank at {list(coordinate)} of a mesh of {list(self.mesh)}"
                return where if self.ranks is None else f"rank {self.ranks[place]}"
        return "no rank"  # pragma: no cover - a mesh divides all of a tensor


@dataclass(frozen=True)
class _Mesh:
    shape: tuple[int, ...]
    coordinate: tuple[int, ...]
    ranks: tuple[int, ...] | None


def _dtensor(local: TensorNode, spec: DictNode, dtype: str, shape: tuple[int, ...]) -> Value:
    mesh = _mesh(spec.get("mesh"))
    given = spec.get("placements")
    if mesh is None or not isinstance(given, tuple) or len(given) != len(mesh.shape):
        raise _malformed("the mesh of a DTensor")
    rank = None
    if mesh.ranks is not None:
        place = 0
        for each, size in zip(mesh.coordinate, mesh.shape, strict=True):
            place = place * size + each
        rank = mesh.ranks[place]
    found = [_placement(each, len(shape)) for each in given]
    placements = [each for each in found if each is not None]
    layout = MeshLayout(mesh.shape, tuple(placements), mesh.ranks)
    if len(placements) != len(found):
        return ShardNode(dtype, shape, (), rank, layout, _PENDING)
    if not _in_order(spec.get("shard_order"), placements):
        return NotImplemented
    runs = local_runs(shape, mesh.shape, mesh.coordinate, placements)
    lengths = tuple(sum(length for _, length in axis) for axis in runs)
    if local.dtype != dtype or local.shape != lengths:
        raise FormatError(
            f"the local part of a DTensor has type {local.dtype} and shape {list(local.shape)}, but its "
            f"layout says {dtype} and {list(lengths)}",
            rule="torch-distributed",
        )  # fmt: skip
    return ShardNode(dtype, shape, tuple(_pieces(local, runs)), rank, layout)


def _placement(value: Value, rank: int) -> Placement | None:
    """How one dimension of the mesh divides a tensor; None if its ranks have to be added up."""
    if _fields(value, "Replicate") is not None:
        return Placement(None)
    for name in ("Shard", "_StridedShard"):
        fields = _fields(value, name)
        if fields is None:
            continue
        axis, split = fields.get("dim"), fields.get("split_factor")
        split = 1 if name == "Shard" else split
        if is_int(axis) and is_int(split) and -rank <= axis < rank and 0 < split <= _SPLIT_MAX:
            return Placement(axis % rank, split)
    if any(_fields(value, name) is not None for name in ("Partial", "_Partial", "_MaskPartial")):
        return None
    raise _malformed("a placement of a DTensor")


def _in_order(order: Value, placements: Sequence[Placement]) -> bool:
    """Whether the dimensions of the mesh divide each axis from left to right."""
    if order is None or any(placement.split > 1 for placement in placements):
        return True
    if not isinstance(order, tuple):
        return False
    for entry in order:
        pair = entry.arguments if isinstance(entry, Call) else entry
        if not isinstance(pair, tuple) or len(pair) != 2:
            return False
        dims = int_tuple(pair[1])
        if dims is None or list(dims) != sorted(dims):
            return False
    return True


def _mesh(value: Value) -> _Mesh | None:
    fields = _fields(value, "DeviceMesh")
    if fields is None:
        return None
    shape = _mesh_shape(fields)
    coordinate = int_tuple(fields.get("_coordinate_on_dim"))
    if shape is None or coordinate is None or len(coordinate) != len(shape):
        return None
    count = math.prod(shape)
    if not all(0 <= place < size for place, size in zip(coordinate, shape, strict=True)):
        return None
    if count > _RANKS_MAX:
        raise _malformed("the mesh of a DTensor")
    ranks = None
    for name in ("_flatten_rank_map", "_flatten_mesh_list"):
        found = int_tuple(fields.get(name))
        if found is not None and len(found) == len(set(found)) == count:
            ranks = found
    return _Mesh(shape, coordinate, ranks)


def _mesh_shape(fields: DictNode) -> tuple[int, ...] | None:
    """Ranks along each dimension: of the tensor of ranks, or of the layout that replaced it in 2.9."""
    mesh = fields.get("mesh")
    if isinstance(mesh, TensorNode):
        return mesh.shape
    layout = _fields(fields.get("_layout"), "_MeshLayout")
    if layout is None:
        return None
    axes = layout.get("axes")
    if isinstance(axes, tuple):
        found = [_fields(axis, "_FlatLayout") for axis in axes]
        sizes = [None if axis is None else _size(axis.get("shape")) for axis in found]
    else:
        shape = layout.get("shape")
        sizes = [_size(axis) for axis in (shape if isinstance(shape, tuple) else (shape,))]
    known = tuple(size for size in sizes if size is not None)
    return known if len(known) == len(sizes) else None


def _size(value: Value) -> int | None:
    """The number of ranks along a dimension, which may be several that were flattened."""
    numbers = (value,) if is_int(value) else int_tuple(value)
    if numbers is None or not all(0 < n < _RANKS_MAX for n in numbers):
        return None
    return math.prod(numbers)


Runs = list[tuple[int, int]]
"""(start, length) of the indices along one axis that a rank has, in the order in which it has them."""


def local_runs(
    shape: Sequence[int],
    mesh: Sequence[int],
    coordinate: Sequence[int],
    placements: Sequence[Placement],
) -> list[Runs]:
    """Which indices a rank has along each axis.

    The dimensions of the mesh divide the tensor one after another, as `torch.chunk` does. A strided one
    first cuts the axis into `split` parts, and takes its share of each.
    """
    runs: list[Runs] = [[(0, size)] for size in shape]
    for count, place, placement in zip(mesh, coordinate, placements, strict=True):
        if placement.axis is None:
            continue
        taken: Runs = []
        total = sum(length for _, length in runs[placement.axis])
        for begin, end in _chunks(total, placement.split):
            low, high = _chunk(end - begin, count, place)
            taken += _taken(runs[placement.axis], begin + low, begin + high)
        if len(taken) > _PIECES_MAX:
            raise _malformed("the layout of a DTensor")
        runs[placement.axis] = taken
    return runs


def _chunk(total: int, count: int, place: int) -> tuple[int, int]:
    """Begin and end of part `place` of `total` elements in `count` parts."""
    size = -(-total // count)
    return min(place * size, total), min((place + 1) * size, total)


def _chunks(total: int, count: int) -> list[tuple[int, int]]:
    size = max(1, -(-total // count))
    return [(begin, min(begin + size, total)) for begin in range(0, total, size)]


def _taken(runs: Runs, begin: int, end: int) -> Runs:
    """The indices `begin` to `end` of those in `runs`; neighbours are joined."""
    taken: Runs = []
    passed = 0
    for start, length in runs:
        low, high = max(begin - passed, 0), min(end - passed, length)
        passed += length
        if low >= high:
            continue
        if taken and sum(taken[-1]) == start + low:
            taken[-1] = (taken[-1][0], taken[-1][1] + high - low)
        else:
            taken.append((start + low, high - low))
    return taken


def _pieces(local: TensorNode, runs: list[Runs]) -> list[PieceNode]:
    if math.prod(len(axis) for axis in runs) > _PIECES_MAX:
        raise _malformed("the layout of a DTensor")
    pieces = []
    begins = [
        list(itertools.accumulate((length for _, length in axis), initial=0)) for axis in runs
    ]
    for chosen in itertools.product(*(range(len(axis)) for axis in runs)):
        picked = [axis[each] for axis, each in zip(runs, chosen, strict=True)]
        starts = tuple(axis[each] for axis, each in zip(begins, chosen, strict=True))
        offsets, lengths = tuple(s for s, _ in picked), tuple(n for _, n in picked)
        pieces.append(PieceNode(offsets, lengths, local, starts))
    return pieces


# -- ShardedTensor


@dataclass(frozen=True)
class ListedLayout:
    """How a tensor is divided, shard by shard: offsets, lengths, and the rank where the file tells."""

    shards: tuple[tuple[tuple[int, ...], tuple[int, ...], int | None], ...]

    def owner_of(self, element: Sequence[int], shape: Sequence[int]) -> str:  # noqa: ARG002
        """Which rank has an element, in words."""
        for offsets, lengths, owner in self.shards:
            inside = all(o <= e < o + n for e, o, n in zip(element, offsets, lengths, strict=True))
            if inside and owner is not None:
                return f"rank {owner}"
        return "another rank"


def _sharded(state: tuple[Value, ...], dtype: str, shape: tuple[int, ...]) -> Value:
    """``(shards, metadata, process group, sharding, references)``."""
    if len(state) != 5 or not isinstance(state[0], list):
        raise _malformed("the state of a ShardedTensor")
    metadata = _fields(state[1], "ShardedTensorMetadata")
    group = _fields(state[2], "ShardedTensor.ProcessGroupState")
    shards = metadata.get("shards_metadata") if metadata is not None else None
    if metadata is None or not isinstance(shards, list) or int_tuple(metadata.get("size")) != shape:
        raise _malformed("the metadata of a ShardedTensor")
    pieces = []
    for each in state[0]:
        fields = _fields(each, "Shard")
        tensor = None if fields is None else fields.get("tensor")
        if fields is None or not isinstance(tensor, TensorNode) or tensor.dtype != dtype:
            raise _malformed("a shard of a ShardedTensor")
        offsets, lengths, _ = _shard_place(fields.get("metadata"))
        if lengths != tensor.shape:
            raise FormatError(
                f"a shard has shape {list(tensor.shape)}, but its metadata say {list(lengths)}",
                rule="torch-distributed",
            )
        pieces.append(PieceNode(offsets, lengths, tensor, (0,) * len(shape)))
    layout = ListedLayout(tuple(_shard_place(each) for each in shards))
    rank = None if group is None else group.get("global_rank")
    return ShardNode(dtype, shape, tuple(pieces), rank if is_int(rank) else None, layout)


def _shard_place(value: Value) -> tuple[tuple[int, ...], tuple[int, ...], int | None]:
    """Offsets, lengths and rank of a shard."""
    fields = _fields(value, "ShardMetadata")
    if fields is not None:
        offsets = int_tuple(fields.get("shard_offsets"))
        lengths = int_tuple(fields.get("shard_sizes"))
        place = _fields(fields.get("placement"), "_remote_device")
        owner = None if place is None else place.get("_rank")
        if offsets is not None and lengths is not None and len(offsets) == len(lengths):
            return offsets, lengths, owner if is_int(owner) else None
    raise _malformed("the metadata of a shard")


def _nested_class(call: Call) -> Value:
    """``getattr(ShardedTensor, "ProcessGroupState")``, as protocol 2 names a class inside another."""
    match call.arguments:
        case (Global(module=str() as module, name="ShardedTensor") as kind, "ProcessGroupState"):
            if module in _SHARD_MODULES:
                return Global(module, "ShardedTensor.ProcessGroupState", kind.offset, kind.opcode)
    return NotImplemented


def _rebuild_subclass(call: Call) -> Value:
    """``_rebuild_from_type_v2(_rebuild_wrapper_subclass, type, arguments, state)``."""
    match call.arguments:
        case (
            Global(module="torch._utils", name="_rebuild_wrapper_subclass"),
            Global() as kind,
            (Global() as same, Global(module="torch") as dtype, size, _, _, _, _, _),
            state,
        ) if kind.path == same.path:
            code, shape = TORCH_DTYPES.get(dtype.name or ""), int_tuple(size)
            if code is None or shape is None:
                return NotImplemented
            if min(shape, default=0) < 0 or math.prod(shape) >= 1 << 62:
                raise _malformed("the shape of a distributed tensor")
            return _distributed(kind, state, code, shape)
    return NotImplemented


def _either(name: tuple[str, str]) -> Callable[[Call], Value]:
    """What makes a tensor of a subclass: of those here, or of those of `torch_nodes`."""
    other = TORCH_CONSTRUCTORS[name]

    def build(call: Call) -> Value:
        found = _rebuild_subclass(call)
        return other(call) if found is NotImplemented else found

    return build


DISTRIBUTED_CONSTRUCTORS: Final[dict[tuple[str, str], Callable[[Call], Value]]] = {
    ("builtins", "getattr"): _nested_class,
    **{
        (module, name): _either((module, name))
        for module, name in TORCH_CONSTRUCTORS
        if name.startswith("_rebuild_from_type")
    },
}
"""Calls whose result this module describes; they replace those of `torch_nodes` of the same name."""
