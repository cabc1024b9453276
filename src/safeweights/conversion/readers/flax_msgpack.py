"""Flax's msgpack checkpoints, and a reader of msgpack that checks every length.

Flax writes nested maps with extension types: 1 an array and 3 a scalar, both as msgpack of (shape,
type name, bytes), 2 a complex number. Arrays above 1 GiB come as maps of chunks. Long byte strings
stay in the file. Source: the msgpack specification; flax/serialization.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ...derived.layout import contiguous_strides
from ...errors import FormatError
from ...storage import BytesSource, Source
from ...storage.limits import Limits, exceeded
from ...storage.windows import ByteReader, Joined, Window
from ..foreign import ForeignCheckpoint, OpenOptions, from_tree
from ..pickles.nodes import DictNode, Value
from ..pickles.numpy_nodes import ArrayNode, DtypeNode, int_tuple, named_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["read_flax", "read_msgpack"]

_NUMBERS: Final = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_LENGTHS: Final = {
    0xC4: ("bin", ">B"), 0xC5: ("bin", ">H"), 0xC6: ("bin", ">I"),
    0xC7: ("ext", ">B"), 0xC8: ("ext", ">H"), 0xC9: ("ext", ">I"),
    0xD9: ("str", ">B"), 0xDA: ("str", ">H"), 0xDB: ("str", ">I"),
    0xDC: ("array", ">H"), 0xDD: ("array", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip
_FIXED_EXT: Final = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_CHUNKED: Final = "__msgpack_chunked_array__"


@dataclass
class _Open:
    """A container that is still being filled."""

    missing: int
    is_map: bool
    items: list[Value] = field(default_factory=list)

    def close(self) -> Value:
        if not self.is_map:
            return self.items
        return DictNode(list(zip(self.items[::2], self.items[1::2], strict=True)))


class _Reader:
    """Reads one msgpack value without recursion."""

    def __init__(
        self,
        source: Source,
        limits: Limits,
        extension: Callable[[int, Source], Value] | None,
    ) -> None:
        self._source = source
        self._limits = limits
        self._extension = extension
        self._bytes = ByteReader(source)
        self._objects = 0
        self._objects_left = limits.left("objects")

    def run(self) -> Value:
        stack: list[_Open] = []
        while True:
            value = self._next()
            if isinstance(value, _Open) and value.missing:
                stack.append(value)
                if len(stack) > self._limits.depth:
                    raise exceeded("depth", self._limits.depth, self._source.name)
                continue
            done = value.close() if isinstance(value, _Open) else value
            while stack:
                top = stack[-1]
                top.items.append(done)
                top.missing -= 1
                if top.missing:
                    break
                done = stack.pop().close()
            if not stack:
                return self._end(done)

    def _end(self, value: Value) -> Value:
        self._limits.count("objects", self._objects)
        if self._bytes.left:
            raise self._fault(f"{self._bytes.left} bytes follow the value")
        return value

    def _fault(self, message: str) -> FormatError:
        return FormatError(
            f"the msgpack data is malformed: {message}",
            rule="msgpack",
            path=self._source.name,
            offset=self._bytes.offset,
        )

    def _unpack(self, layout: str) -> Value:
        return struct.unpack(layout, self._bytes.take(struct.calcsize(layout)))[0]

    def _next(self) -> Value:
        self._objects += 1
        if self._objects > self._objects_left:
            raise exceeded("objects", self._limits.objects, self._source.name)
        code = self._bytes.take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code in _NUMBERS:
            return self._unpack(_NUMBERS[code])
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in _FIXED_EXT:
            return self._sized("ext", _FIXED_EXT[code])
        if code in _LENGTHS:
            kind, layout = _LENGTHS[code]
            return self._sized(kind, self._unpack(layout))
        if code < 0xC0:
            kind = "map" if code < 0x90 else "array" if code < 0xA0 else "str"
            return self._sized(kind, code & (0x1F if kind == "str" else 0x0F))
        raise self._fault("no type has the code 0xc1")

    def _sized(self, kind: str, count: int) -> Value:
        if kind in ("array", "map"):
            missing = count * 2 if kind == "map" else count
            if missing > self._bytes.left:  # each item takes a byte at least
                raise self._fault(f"{missing} items are announced, {self._bytes.left} bytes left")
            return _Open(missing, kind == "map")
        if kind == "str":
            return self._text(count)
        tag = self._bytes.take(1)[0] if kind == "ext" else None
        start = self._bytes.skip(count)
        data = Window(self._source, start, count)
        if tag is None:
            return data
        if self._extension is None:
            raise self._fault("an extension type inside an extension")
        return self._extension(tag, data)

    def _text(self, count: int) -> str:
        if count > self._limits.inline_value_bytes * 16:
            raise exceeded("inline_value_bytes", self._limits.inline_value_bytes, self._source.name)
        try:
            return self._bytes.take(count).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._fault("text is not UTF-8") from error


def read_msgpack(
    source: Source, limits: Limits, extension: Callable[[int, Source], Value] | None = None
) -> Value:
    """The single value in `source`: atoms, lists and `DictNode`s; byte strings are windows.

    Args:
        source: The data.
        limits: See `Limits`.
        extension: Describes an extension value of a tag; without it, one is an error.

    Raises:
        FormatError: The data is malformed, or bytes follow the value.
    """
    return _Reader(source, limits, extension).run()


def _extension(tag: int, data: Source, limits: Limits) -> Value:
    content = read_msgpack(data, limits)
    match content:
        case [shape, str() as name, Window() as body] if tag in (1, 3):
            numbers = int_tuple(shape)
            dtype = named_dtype(name)
            if numbers is None or dtype is None or any(count < 0 for count in numbers):
                raise _malformed(data)
            return ArrayNode(0, dtype, numbers, contiguous_strides(numbers), body)
        case [float() as real, float() as imaginary] if tag == 2:
            return complex(real, imaginary)
    raise _malformed(data)


def _malformed(source: Source) -> FormatError:
    return FormatError(
        "an extension value is none that Flax writes", rule="flax-msgpack", path=source.name
    )


def _unchunked(node: DictNode, source: Source) -> ArrayNode:
    """The array that a map of chunks stands for."""
    shape, chunks = (_ordered(node.get(key)) for key in ("shape", "chunks"))
    numbers = int_tuple(shape) if shape is not None else None
    if numbers is None or chunks is None or not all(isinstance(c, ArrayNode) for c in chunks):
        raise _malformed(source)
    kinds = {chunk.dtype.kind for chunk in chunks}
    if len(kinds) != 1 or any(count < 0 for count in numbers):
        raise _malformed(source)
    data = Joined((_data(chunk) for chunk in chunks), source.name)
    return ArrayNode(0, DtypeNode(kinds.pop()), numbers, contiguous_strides(numbers), data)


def _data(chunk: ArrayNode) -> Source:
    return chunk.data if isinstance(chunk.data, Source) else BytesSource(b"")


def _ordered(node: Value) -> list[Value] | None:
    """The values of a map whose keys are "0", "1" ... in order."""
    if not isinstance(node, DictNode):
        return None
    entries = {key: value for key, value in node.pairs if isinstance(key, str)}
    keys = [str(position) for position in range(len(node.pairs))]
    return [entries[key] for key in keys] if entries.keys() == set(keys) else None


def _join_chunks(root: Value, source: Source) -> Value:
    """The tree with arrays in place of maps of chunks."""
    pending = [root]
    while pending:
        node = pending.pop()
        if isinstance(node, DictNode):
            for position, (key, value) in enumerate(node.pairs):
                if isinstance(value, DictNode) and value.get(_CHUNKED) is True:
                    node.pairs[position] = key, _unchunked(value, source)
            pending.extend(value for _, value in node.pairs)
        elif isinstance(node, list):
            pending.extend(node)
    return root


def read_flax(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """A file of `flax.serialization.to_bytes`: nested maps of arrays.

    Raises:
        FormatError: The file is malformed.
    """
    limits = options.limits
    tree = read_msgpack(source, limits, lambda tag, data: _extension(tag, data, limits))
    return from_tree("flax-msgpack", source.name, _join_chunks(tree, source), options)
