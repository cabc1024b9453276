"""PyTorch tensors as its pickles describe them: storages by reference, and views of them.

Each function describes what one of `torch._utils`' rebuild functions would return, from the
arguments that PyTorch 0.1 to 2.x writes. A call with other arguments is an error that names it, or
stays unresolved: a wrong guess is worse than none. Nothing here imports PyTorch.

Source of the argument lists: torch/_utils.py, torch/_tensor.py, torch/serialization.py and
torch/csrc/jit/serialization/pickler.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from ...derived.element_types import TORCH_DTYPES, TORCH_STORAGES
from ...errors import FormatError, quote
from .nodes import Call, DictNode, Global, Value
from .numpy_nodes import ArrayNode, int_tuple
from .object_nodes import is_int

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "TORCH_CONSTRUCTORS",
    "CastNode",
    "Layout",
    "MetaNode",
    "PieceNode",
    "QuantisedNode",
    "ShardNode",
    "SparseNode",
    "StatefulNode",
    "StorageNode",
    "TensorNode",
    "storage_type",
]

_STORAGE_MODULES: Final = frozenset({"torch", "torch.cuda", "torch.storage"})
_TENSOR_TYPES: Final = frozenset(
    {("torch", "Tensor"), ("torch._tensor", "Tensor"), ("torch.nn.parameter", "Parameter"),
     ("torch.nn.parameter", "Buffer"), ("torch.nn", "Parameter")}
)  # fmt: skip
_LAYOUTS: Final = ("sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")


@dataclass(frozen=True, eq=False, slots=True)
class StorageNode:
    """A storage: bytes that the container holds under a key.

    Attributes:
        key: What the container calls it.
        dtype: Code of a typed storage, None for an untyped one, whose elements are bytes.
        elements: How many.
        first: Index of the first element in the storage of that key; not 0 for old views.
    """

    key: str
    dtype: str | None
    elements: int
    first: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class TensorNode:
    """A view of a storage; numbers count elements."""

    storage: StorageNode
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    conjugate: bool = False
    negative: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class SparseNode:
    """A sparse tensor: its layout, its index and value tensors, its dense shape."""

    layout: str
    parts: tuple[Value, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class QuantisedNode:
    """A quantised tensor: integers, and the affine map to numbers.

    `scale` and `zero_point` are numbers, or tensors with one element per index of `axis`.
    """

    tensor: TensorNode
    scale: Value
    zero_point: Value
    axis: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class MetaNode:
    """A tensor without data."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class CastNode:
    """An array or tensor that is to be converted to another element type."""

    value: Value
    dtype: str


@dataclass(frozen=True, eq=False, slots=True)
class StatefulNode:
    """A tensor with attributes, as `torch._utils._get_obj_state` has them.

    Attributes:
        value: The tensor.
        state: A dictionary, or a dictionary and that of the slots.
    """

    value: Value
    state: Value


@dataclass(frozen=True, eq=False, slots=True)
class PieceNode:
    """A box of a distributed tensor, and where its elements are in a tensor of this file."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    tensor: TensorNode
    starts: tuple[int, ...]


class Layout(Protocol):
    """How a distributed tensor is divided; equal for every rank of one save."""

    def owner_of(self, element: Sequence[int], shape: Sequence[int]) -> str:
        """Which rank has an element of a tensor of `shape`, in words."""


@dataclass(frozen=True, eq=False, slots=True)
class ShardNode:
    """What one rank has of a distributed tensor.

    Attributes:
        dtype: Code of the element type.
        shape: The shape of the whole tensor.
        pieces: What this rank has of it.
        rank: This rank, if the file tells.
        layout: How the tensor is divided.
        problem: Why what the ranks have does not make up the tensor; empty if it does.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[PieceNode, ...]
    rank: int | None
    layout: Layout
    problem: str = ""


def storage_type(value: Value) -> tuple[str | None] | None:
    """The element type of a storage class, in a tuple; None where `value` is no storage class."""
    if not isinstance(value, Global) or value.module not in _STORAGE_MODULES:
        return None
    if value.name == "UntypedStorage":
        return (None,)
    code = TORCH_STORAGES.get(value.name or "")
    return None if code is None else (code,)


def _malformed(call: Call) -> FormatError:
    return FormatError(
        f"the arguments of {quote(call.path)} are not those that PyTorch writes",
        rule="torch-tensor",
    )


def _dtype_code(value: Value, call: Call) -> str:
    if isinstance(value, Global) and value.module == "torch":
        code = TORCH_DTYPES.get(value.name or "")
        if code is not None:
            return code
        raise FormatError(
            f"{quote(value.path)} is no element type that the safetensors format could hold",
            rule="torch-dtype",
        )
    raise _malformed(call)


def _view(call: Call, dtype: str | None = None) -> TensorNode:
    """The view that the first four arguments give: storage, offset, size, stride."""
    storage, offset, size, stride = call.arguments[:4]
    shape, strides = int_tuple(size), int_tuple(stride)
    known = isinstance(storage, StorageNode) and shape is not None and strides is not None
    if not known or not is_int(offset) or len(shape or ()) != len(strides or ()):
        raise _malformed(call)
    code = dtype or storage.dtype
    if code is None:
        raise _malformed(call)
    return TensorNode(storage, code, offset, shape or (), strides or ())


def _flagged(node: TensorNode, metadata: Value, call: Call) -> TensorNode:
    """`node` with the bits that PyTorch notes beside the tensor."""
    if metadata is None:
        return node
    if not isinstance(metadata, DictNode):
        raise _malformed(call)
    for key, _ in metadata.pairs:
        if key not in ("conj", "neg"):
            raise _malformed(call)
    conjugate, negative = bool(metadata.get("conj")), bool(metadata.get("neg"))
    # A conjugate bit on real numbers means nothing.
    return replace(node, conjugate=conjugate and node.dtype.startswith("C"), negative=negative)


_TENSORS: Final = (
    TensorNode, SparseNode, QuantisedNode, MetaNode, CastNode, ArrayNode, StatefulNode, ShardNode,
)  # fmt: skip


def _no_hooks(value: Value) -> bool:
    """Whether the backward hooks beside a tensor are none, as they are in every file."""
    return value is None or (isinstance(value, DictNode) and not value.pairs and not value.state)


def _rebuild_tensor(call: Call) -> Value:
    if len(call.arguments) != 4:
        raise _malformed(call)
    return _view(call)


def _rebuild_tensor_v2(call: Call) -> Value:
    if len(call.arguments) not in (6, 7):
        raise _malformed(call)
    if not _no_hooks(call.arguments[5]):
        return NotImplemented
    node = _view(call)
    return _flagged(node, call.arguments[6] if len(call.arguments) == 7 else None, call)


def _rebuild_tensor_v3(call: Call) -> Value:
    if len(call.arguments) not in (7, 8):
        raise _malformed(call)
    if not _no_hooks(call.arguments[5]):
        return NotImplemented
    node = _view(call, _dtype_code(call.arguments[6], call))
    return _flagged(node, call.arguments[7] if len(call.arguments) == 8 else None, call)


def _first_argument(counts: tuple[int, ...]) -> Callable[[Call], Value]:
    """A call that wraps its first argument, e.g. ``_rebuild_parameter(tensor, ...)``."""

    def build(call: Call) -> Value:
        if len(call.arguments) not in counts:
            raise _malformed(call)
        plain = isinstance(call.arguments[0], _TENSORS)
        plain = plain and (len(call.arguments) < 3 or _no_hooks(call.arguments[2]))
        return call.arguments[0] if plain else NotImplemented

    return build


def _with_state(value: Value, state: Value) -> Value:
    """A tensor with the attributes in `state`, if there are any."""
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    return value if all(map(_no_hooks, parts)) else StatefulNode(value, state)


def _rebuild_parameter_with_state(call: Call) -> Value:
    """``_rebuild_parameter_with_state(data, requires_grad, hooks, state)``."""
    if len(call.arguments) != 4:
        raise _malformed(call)
    data, _, hooks, state = call.arguments
    known = isinstance(data, _TENSORS) and _no_hooks(hooks)
    return _with_state(data, state) if known else NotImplemented


def _rebuild_npu_tensor(call: Call) -> Value:
    """``_rebuild_npu_tensor(storage, offset, size, stride, requires_grad, hooks, device format)``.

    Source: torch_npu/utils/storage.py. The format is of the device's memory; the storage is as on the CPU.
    """
    if len(call.arguments) != 7:
        raise _malformed(call)
    return _view(call) if _no_hooks(call.arguments[5]) else NotImplemented


def _rebuild_from_type(call: Call) -> Value:
    """``_rebuild_from_type_v2(function, type, arguments, state)``: a tensor of a subclass.

    Resolved for the types that only add attributes to a tensor; a type that gives its data another
    meaning (quantised, nested, distributed) stays unresolved.
    """
    match call.arguments:
        case (Global() as function, Global() as kind, tuple() as arguments, state):
            if (kind.module, kind.name) not in _TENSOR_TYPES:
                return NotImplemented
            inner = Call(function, arguments, "REDUCE", call.offset)
            build = TORCH_CONSTRUCTORS.get((function.module or "", function.name or ""))
            found = build(inner) if build is not None else NotImplemented
            return _with_state(found, state) if isinstance(found, _TENSORS) else NotImplemented
    return NotImplemented


def _rebuild_sparse(call: Call) -> Value:
    match call.arguments:
        case (str() as layout, tuple() as data):
            name = layout.removeprefix("torch.")
            count = 2 if name == "sparse_coo" else 3
            shape = int_tuple(data[count]) if len(data) > count else None
            extra = (1, 2) if name == "sparse_coo" else (1,)
            if not all(isinstance(part, TensorNode) for part in data[:count]):
                raise _malformed(call)
            if name in _LAYOUTS and shape is not None and len(data) - count in extra:
                return SparseNode(name, data[:count], shape)
    raise _malformed(call)


def _rebuild_qtensor(call: Call) -> Value:
    if len(call.arguments) != 7:
        raise _malformed(call)
    node = _view(call)
    match call.arguments[4]:
        case (Global(module="torch", name="per_tensor_affine"), float() as scale, zero) if is_int(
            zero
        ):
            return QuantisedNode(node, scale, zero)
        case (
            Global(module="torch", name="per_channel_affine"),
            TensorNode() as scale,
            TensorNode() as zero,
            axis,
        ) if is_int(axis) and 0 <= axis < len(node.shape):
            return QuantisedNode(node, scale, zero, axis)
    return NotImplemented


def _rebuild_meta(call: Call) -> Value:
    if len(call.arguments) != 4:
        raise _malformed(call)
    shape = int_tuple(call.arguments[1])
    if shape is None:
        raise _malformed(call)
    return MetaNode(_dtype_code(call.arguments[0], call), shape)


def _rebuild_device_tensor(call: Call) -> Value:
    """A tensor of a device without pickling of its own (XLA, MPS ...): its data, then a cast."""
    if len(call.arguments) != 4:
        raise _malformed(call)
    value, dtype = call.arguments[0], _dtype_code(call.arguments[1], call)
    if isinstance(value, TensorNode) and value.dtype == dtype:
        return value
    if isinstance(value, ArrayNode) and value.dtype.code == dtype:
        return value
    if isinstance(value, (TensorNode, ArrayNode)):
        return CastNode(value, dtype)
    raise _malformed(call)


def _get_layout(call: Call) -> Value:
    match call.arguments:
        case (str() as name,):
            return name
    return NotImplemented


def _size(call: Call) -> Value:
    shape = int_tuple(call.arguments[0]) if len(call.arguments) == 1 else None
    return NotImplemented if shape is None else shape


def _device(call: Call) -> Value:
    if call.arguments and all(isinstance(a, str) or is_int(a) for a in call.arguments):
        return ":".join(str(argument) for argument in call.arguments)
    return NotImplemented


def _sequence_argument(call: Call) -> Value:
    """TorchScript's ``build_intlist`` and its kin: the list itself."""
    match call.arguments:
        case (list() | tuple() as items,):
            return list(items)
    return NotImplemented


def _tagged(call: Call) -> Value:
    """TorchScript's ``restore_type_tag(container, type)``: the container itself."""
    match call.arguments:
        case (list() | DictNode() as value, str()):
            return value
    return NotImplemented


TORCH_CONSTRUCTORS: Final[dict[tuple[str, str], Callable[[Call], Value]]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first_argument((3,)),
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter_with_state,
    ("torch_npu.utils.storage", "_rebuild_npu_tensor"): _rebuild_npu_tensor,
    ("torch._utils", "_rebuild_sparse_tensor"): _rebuild_sparse,
    ("torch._utils", "_rebuild_sparse_csr_tensor"): _rebuild_sparse,
    ("torch._utils", "_rebuild_qtensor"): _rebuild_qtensor,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _rebuild_meta,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _rebuild_device_tensor,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _rebuild_device_tensor,
    ("torch._utils", "_rebuild_xla_tensor"): _rebuild_device_tensor,
    ("torch._tensor", "_rebuild_from_type"): _rebuild_from_type,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch.tensor", "_rebuild_from_type"): _rebuild_from_type,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch.nn.parameter", "Parameter"): _first_argument((1, 2)),
    **{
        ("torch.jit._pickle", name): _sequence_argument
        for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
    },
    ("torch.jit._pickle", "restore_type_tag"): _tagged,
}
"""Calls of PyTorch's whose result this module describes."""
