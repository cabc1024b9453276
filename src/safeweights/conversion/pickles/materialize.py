"""From the nodes that describe tensors to tensors that can be read.

A container says where a storage's bytes are (`Storages`); this module checks each tensor's geometry
against them, bounds what views add, and notes which names show the same bytes. What the format
cannot hold is refused by name with the option that would allow it, never dropped.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from ...checkpoint.tensor import UNKNOWN, FileTensor, UnreadableTensor
from ...derived.boxes import Box
from ...derived.casting import CastTensor, cast, numpy_type
from ...derived.dense import dequantize, from_sparse, read_array
from ...derived.element_types import FOREIGN, UNTOLD, item_size
from ...derived.pieces import Piece
from ...derived.quantised.ggml import GgmlTensor
from ...derived.strided import StridedTensor
from ...errors import FormatError, UnsupportedError, quote
from ...format.dtypes import BITS
from ...format.header import TensorInfo
from ...storage.limits import Limits, exceeded
from .numpy_nodes import ArrayNode, BlocksNode, RefusedNode
from .storages import Materialized, Storages, located
from .torch_nodes import (
    CastNode,
    MetaNode,
    QuantisedNode,
    ShardNode,
    SparseNode,
    StorageNode,
    TensorNode,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from ...checkpoint import Tensor
    from ...derived.layout import Strided
    from .flatten import Flat
    from .nodes import Value

__all__ = ["PartTensor", "materialize"]


_is_type_name = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}").fullmatch
_ELEMENTS_MAX: Final = 1 << 63


class PartTensor(UnreadableTensor):
    """What one file has of a distributed tensor: not readable alone, but with what the others have.

    Attributes:
        node: What describes it.
        pieces: Which boxes of the whole tensor it has.
    """

    __slots__ = ("node", "pieces")

    def __init__(self, name: str, node: ShardNode, pieces: list[Piece], path: str) -> None:
        rank = "one rank" if node.rank is None else f"rank {node.rank}"
        reason = (
            f"this file has what {rank} has of it; give the folder with the files of all ranks, or all "
            "of these files"
        )
        size = sum(piece.box.volume for piece in pieces) * item_size(node.dtype)
        super().__init__(
            name, node.dtype, node.shape, size, reason=node.problem or reason, path=path
        )
        self.node = node
        self.pieces = pieces


class _Refused(Exception):
    """Why one tensor is not given."""


@dataclass
class _Builder:
    label: str
    storages: Storages | None
    limits: Limits
    densify: bool
    casts: Mapping[str, str]
    dtype_of: Mapping[str, str] = field(default_factory=dict)
    sources: dict[Hashable, Strided] = field(default_factory=dict)
    added_bytes: int = 0

    def strided(self, node: Value, name: str) -> Strided:
        if isinstance(node, ArrayNode):
            array = self._numpy(node, name)
        elif isinstance(node, StorageNode):
            code = node.dtype or "U8"
            view = TensorNode(node, code, 0, (node.elements,), (1,))
            array = self._torch(view, name)
        elif isinstance(node, TensorNode):
            array = self._torch(node, name)
        else:
            raise _Refused(f"a part of it is no tensor but {quote(type(node).__name__)}")
        array.check(name, self.limits)
        self._charge(array.nbytes - min(array.span, array.nbytes), array.source.name)
        return array

    def _charge(self, count: int, path: str) -> None:
        self.added_bytes += count
        if self.added_bytes > self.limits.view_bytes:
            raise exceeded("view_bytes", self.limits.view_bytes, path)

    def _numpy(self, node: ArrayNode, name: str) -> Strided:
        kind = node.dtype.kind
        array = node.strided(f"{self.label}!{name}", self.dtype_of.get(kind))
        if array is None and kind in UNTOLD and not node.dtype.fields:
            raise _Refused(
                f"its NumPy type {kind} does not tell what it holds, as when BF16 or F8 are saved by a "
                f"program that lacks them; dtype_of (--dtype-of) {kind}=TYPE tells it"
            )
        if array is None:
            raise _Refused(f"its NumPy type {quote(node.dtype.kind)} has no counterpart")
        return replace(array, storage=id(node))

    def _torch(self, node: TensorNode, name: str) -> Strided:
        if self.storages is None:
            raise FormatError(
                f"tensor {quote(name)} refers to a storage, but this container has none",
                rule="storage",
                path=self.label,
                tensor=name,
            )
        return located(node, self.storages, name)

    def tensor(self, node: Value, name: str) -> Tensor:
        """The tensor that `node` describes, of a type that the format has."""
        if isinstance(node, ShardNode):
            return self._part(node, name)
        tensor = cast(self.original(node, name), self.casts, self.label)
        if tensor.dtype in FOREIGN:
            raise _Refused(
                f"its type is {FOREIGN[tensor.dtype][1]}, which the format lacks"
                + ("; dtype (--dtype) C128=C64 converts it" if tensor.dtype == "C128" else "")
            )
        return tensor

    def original(self, node: Value, name: str) -> Tensor:
        if isinstance(node, MetaNode):
            raise _Refused("it is a meta tensor: the file holds its shape but no values")
        if isinstance(node, RefusedNode):
            raise _Refused(node.reason)
        if isinstance(node, BlocksNode):
            info = TensorInfo("U8", (node.data.size,), 0, node.data.size)
            blocks = FileTensor(name, info, node.data, 0)
            return GgmlTensor(name, node.kind, node.shape, blocks, self.label)
        if isinstance(node, CastNode):
            return self._cast(self.original(node.value, name), node.dtype)
        if isinstance(node, SparseNode):
            return self._sparse(node, name)
        if isinstance(node, QuantisedNode):
            return self._quantised(node, name)
        array = self.strided(node, name)
        if array.dtype.startswith("Q"):
            raise _Refused("it is quantised; densify (--densify) writes real numbers")
        if array.dtype == "F4" and not array.shape:
            raise _Refused("it is one byte of F4, two values without a dimension")
        if array.dtype in BITS and BITS[array.dtype] < 8 and not array.contiguous:
            raise _Refused(f"it is a strided view of the packed type {array.dtype}")
        return StridedTensor(name, array)

    def _cast(self, tensor: Tensor, dtype: str) -> Tensor:
        """What PyTorch's device tensors ask for: data of one type, a tensor of another."""
        if tensor.dtype.startswith("C") != dtype.startswith("C"):
            raise _Refused(f"it asks for {tensor.dtype} to be converted to {dtype}")
        return CastTensor(tensor, dtype, self.label)

    def _part(self, node: ShardNode, name: str) -> Tensor:
        pieces = []
        for each in node.pieces:
            array = self.strided(each.tensor, name)
            part = array.part(each.starts, each.lengths, (1,) * len(each.starts))
            label = f"what {quote(self.label)} has"
            pieces.append(Piece(Box(each.offsets, each.lengths), partial(_given, part), label))
        return PartTensor(name, node, pieces, self.label)

    def identity(self, tensor: Tensor, node: Value) -> Hashable:
        """Equal for two tensors that show the same bytes in the same way."""
        original = tensor.original if isinstance(tensor, CastTensor) else tensor
        if isinstance(original, StridedTensor):
            return tensor.dtype, original.array.identity
        return id(node)

    def _sparse(self, node: SparseNode, name: str) -> Tensor:
        if not self.densify:
            raise _Refused("it is sparse; densify (--densify) writes it dense")
        parts = [self.strided(part, name) for part in node.parts]
        if parts[-1].dtype not in BITS and parts[-1].dtype not in FOREIGN:
            raise _Refused("its values have no counterpart in the format")
        if len(node.shape) > min(self.limits.tensor_rank, 32) or min(node.shape, default=0) < 0:
            raise FormatError(f"tensor {quote(name)} has an impossible shape", rule="sparse-tensor")
        dense = math.prod(node.shape) * item_size(parts[-1].dtype)
        self._charge(max(dense - parts[-1].nbytes, 0), self.label)
        return from_sparse(name, node.layout, parts, node.shape)

    def _quantised(self, node: QuantisedNode, name: str) -> Tensor:
        if not self.densify:
            raise _Refused("it is quantised; densify (--densify) writes real numbers")
        array = self.strided(node.tensor, name)
        scale, zero = (self._numbers(part, name) for part in (node.scale, node.zero_point))
        return dequantize(name, array, scale, zero, node.axis)

    def _numbers(self, part: Value, name: str) -> np.ndarray:
        if isinstance(part, TensorNode):
            array = self.strided(part, name)
            return read_array(array).view(numpy_type(array.dtype))
        return np.asarray(part)


def _given(array: Strided) -> Strided:
    return array


def materialize(
    flat: Flat,
    label: str,
    storages: Storages | None,
    limits: Limits,
    *,
    densify: bool = False,
    casts: Mapping[str, str] | None = None,
    dtype_of: Mapping[str, str] | None = None,
) -> Materialized:
    """The tensors that `flat` describes.

    Cost: a few microseconds a tensor; no element is read, except scales of quantised tensors.

    Args:
        flat: Names and nodes.
        label: What to call the file in messages.
        storages: Where storages are, if the container has any.
        limits: See `Limits`.
        densify: Make sparse and quantised tensors dense instead of refusing them.
        casts: Element type -> the type to convert its tensors to.
        dtype_of: NumPy's kind of an array that does not tell what it holds -> its type.

    Raises:
        FormatError: A tensor's geometry contradicts its storage.
    """
    builder = _Builder(label, storages, limits, densify, casts or {}, dtype_of or {})
    result = Materialized()
    first: dict[Hashable, str] = {}
    for name, node in flat.tensors.items():
        try:
            tensor = builder.tensor(node, name)
        except (_Refused, UnsupportedError) as reason:
            result.tensors[name] = _unreadable(node, name, str(reason), label)
            continue
        result.tensors[name] = tensor
        key = builder.identity(tensor, node)
        original = first.setdefault(key, name)
        if original != name and tensor.nbytes:
            result.aliases[name] = original
    for name, text in flat.refused.items():
        unknown = UnreadableTensor(name, UNKNOWN, (), 0, reason=text, path=label)
        result.tensors.setdefault(name, unknown)
    return result


def _unreadable(node: Value, name: str, reason: str, path: str) -> UnreadableTensor:
    """What is known of a tensor that is not given."""
    dtype, shape, nbytes = _description(node)
    if not _is_type_name(dtype) or min(shape, default=0) < 0 or math.prod(shape) >= _ELEMENTS_MAX:
        dtype, shape = UNKNOWN, ()  # what a file says of itself need not make sense
    return UnreadableTensor(name, dtype, shape, nbytes, reason=reason, path=path)


def _description(node: Value) -> tuple[str, tuple[int, ...], int]:
    """Element type, shape and stored bytes of the tensor that `node` describes."""
    if isinstance(node, RefusedNode):
        return node.dtype, node.shape, node.nbytes
    if isinstance(node, ArrayNode):
        name = node.dtype.code or node.dtype.kind.removeprefix("ml:")
        return name, node.shape, math.prod(node.shape) * (node.dtype.width or 0)
    if isinstance(node, StorageNode):
        dtype = node.dtype or "U8"
        return dtype, (node.elements,), node.elements * item_size(dtype)
    if isinstance(node, TensorNode):
        return node.dtype, node.shape, math.prod(node.shape) * item_size(node.dtype)
    if isinstance(node, QuantisedNode):
        return _description(node.tensor)
    if isinstance(node, (MetaNode, ShardNode)):
        return node.dtype, node.shape, 0
    if isinstance(node, CastNode):
        _, shape, nbytes = _description(node.value)
        return node.dtype, shape, nbytes
    assert isinstance(node, SparseNode)
    parts = [_description(part) for part in node.parts]
    return parts[-1][0], node.shape, sum(size for _, _, size in parts)
