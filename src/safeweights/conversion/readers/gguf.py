"""GGUF files.

Quantised tensors are listed with their type, shape and size; their values are given when they are
dequantised (`derived.quantised.ggml`). Keys and values of the header are listed as what is no tensor.
Source: the GGUF specification (ggml/docs/gguf.md) and ggml/src/ggml-common.h.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ...derived.element_types import item_size
from ...derived.layout import contiguous_strides
from ...derived.quantised.ggml import BLOCKS
from ...errors import FormatError, quote
from ...storage.limits import Limits, exceeded
from ...storage.windows import ByteReader, Window
from ..foreign import ForeignCheckpoint, OpenOptions, from_tree
from ..pickles.nodes import Blob, DictNode, Value
from ..pickles.numpy_nodes import ArrayNode, BlocksNode, DtypeNode, RefusedNode
from .signatures import GGUF_MAGIC

if TYPE_CHECKING:
    from ...storage import Source

__all__ = ["read_gguf"]


_TYPES: Final = {
    0: "f4", 1: "f2", 24: "i1", 25: "i2", 26: "i4", 27: "i8", 28: "f8", 30: "ml:bfloat16",
}  # fmt: skip
"""GGML's number of each type that is not quantised -> array type."""

_QUANTISED: Final = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
"""GGML's number of each quantised type -> its name, a key of `BLOCKS`."""

_SCALARS: Final = "BbHhIif?__QqD"
"""struct codes of value types 0 to 12; 8 is text, 9 an array."""
_TEXT: Final = 8
_ARRAY: Final = 9


class _Header:
    """Reads the header forward, in the file's byte order."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source = source
        self.limits = limits
        self.bytes = ByteReader(source, len(GGUF_MAGIC))
        version = self._version()
        self.swapped = version >> 16 != 0
        if self.swapped:
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in (2, 3):
            raise self.fault(f"version {version} is not read, only 2 and 3")
        self._order = ">" if self.swapped else "<"
        self._values = 0

    def _version(self) -> int:
        return int.from_bytes(self.bytes.take(4), "little")

    def fault(self, message: str) -> FormatError:
        return FormatError(
            f"the GGUF header is malformed: {message}",
            rule="gguf",
            path=self.source.name,
            offset=self.bytes.offset,
        )

    def number(self, code: str) -> Value:
        layout = self._order + code
        return struct.unpack(layout, self.bytes.take(struct.calcsize(layout)))[0]

    def count(self, at_least: int, what: str) -> int:
        """A number of items that take `at_least` bytes each."""
        value: int = self.number("Q")
        if value * at_least > self.bytes.left:
            raise self.fault(f"{value} {what} are announced, {self.bytes.left} bytes are left")
        return value

    def text(self) -> Value:
        length = self.count(1, "bytes of text")
        if length > self.limits.inline_value_bytes:
            return Blob(self.source, self.bytes.skip(length), length, "utf-8")
        try:
            return self.bytes.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fault("text is not UTF-8") from error

    def name(self) -> str:
        name = self.text()
        if not isinstance(name, str):
            raise exceeded("inline_value_bytes", self.limits.inline_value_bytes, self.source.name)
        return name

    def value(self, kind: int) -> Value:
        if kind != _ARRAY:
            return self._scalar(kind)
        item = self.number("I")
        if item == _ARRAY:
            raise self.fault("an array of arrays")
        count = self.count(1, "values")
        return [self._scalar(item) for _ in range(count)]

    def _scalar(self, kind: int) -> Value:
        self._values += 1
        if self._values > self.limits.objects:
            raise exceeded("objects", self.limits.objects, self.source.name)
        if kind == _TEXT:
            return self.text()
        if kind >= len(_SCALARS) or kind == _ARRAY:
            raise self.fault(f"value type {kind} does not exist")
        code = _SCALARS[kind]
        return self.number("d" if code == "D" else code)


def read_gguf(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """A GGUF file of version 2 or 3, of either byte order.

    Raises:
        FormatError: The header is malformed, or a tensor lies outside the file.
    """
    header = _Header(source, options.limits)
    tensors = header.count(24, "tensors")
    if tensors > options.limits.tensors:
        raise exceeded("tensors", options.limits.tensors, source.name)
    entries: dict[str, Value] = {}
    for _ in range(header.count(13, "keys")):
        key = header.name()
        if key in entries:
            raise header.fault(f"key {quote(key)} occurs twice")
        entries[key] = header.value(header.number("I"))
    infos = [_tensor_info(header) for _ in range(tensors)]
    alignment = entries.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        what = quote(str(alignment))
        raise header.fault(f"general.alignment is {what}, but must be a power of two, 8 or more")
    start = -(-header.bytes.offset // alignment) * alignment
    pairs: list[tuple[Value, Value]] = [
        (info.name, _array(header, start, alignment, info)) for info in infos
    ]
    metadata = {key: value for key, value in entries.items() if isinstance(value, str)}
    pairs.append(("gguf", DictNode(list(entries.items()))))
    return from_tree("gguf", source.name, DictNode(_distinct(header, pairs)), options,
                     metadata={f"gguf.{key}": value for key, value in metadata.items()})  # fmt: skip


def _distinct(header: _Header, pairs: list[tuple[Value, Value]]) -> list[tuple[Value, Value]]:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise header.fault(f"tensor {quote(name)} occurs twice")
        seen.add(name)
    return pairs


class _TensorInfo(NamedTuple):
    """What the header says of a tensor; `kind` is GGML's number of its type."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _tensor_info(header: _Header) -> _TensorInfo:
    name = header.name()
    rank = header.number("I")
    if rank > header.limits.tensor_rank:
        raise header.fault(f"tensor {quote(name)} has {rank} dimensions")
    # GGML counts dimensions from the fastest.
    shape = tuple(header.number("Q") for _ in range(rank))[::-1]
    return _TensorInfo(name, shape, header.number("I"), header.number("Q"))


def _array(header: _Header, start: int, alignment: int, info: _TensorInfo) -> Value:
    name, shape, kind, offset = info
    if offset % alignment:
        raise header.fault(
            f"tensor {quote(name)} begins at {offset}, not a multiple of the alignment, {alignment}"
        )
    if kind not in _TYPES and kind not in _QUANTISED:
        return RefusedNode(f"it is of GGML's type {kind}, which is not known here")
    dtype = DtypeNode(_TYPES.get(kind, ""), header.swapped)
    if kind in _QUANTISED:
        text = _QUANTISED[kind]
        elements, block = BLOCKS[text]
        if not shape or shape[-1] % elements:
            raise header.fault(f"a row of tensor {quote(name)} is not made of blocks of {text}")
        size = math.prod(shape) // elements * block
    else:
        size = math.prod(shape) * item_size(dtype.code or "U8")
    if start + offset + size > header.source.size:
        raise header.fault(
            f"tensor {quote(name)} ends at byte {start + offset + size}, the file at "
            f"{header.source.size}"
        )
    data = Window(header.source, start + offset, size)
    if kind in _QUANTISED:
        if header.swapped:
            return RefusedNode(f"it is quantised as {text}, big-endian", text, shape, size)
        return BlocksNode(text, shape, data)
    return ArrayNode(start + offset, dtype, shape, contiguous_strides(shape), data)
