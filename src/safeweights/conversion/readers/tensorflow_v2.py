"""TensorFlow's V2 checkpoints: an index, which is a LevelDB table, and shards of raw data.

The table maps variable names to BundleEntryProto messages; both formats are small enough to be read
here without TensorFlow or protobuf. Blocks are checked against their CRC-32C. Variables that were
saved in slices, and resources and variants, are refused by name; strings are listed.
Source: tensorflow/core/protobuf/tensor_bundle.proto, tensorflow/core/lib/io/table_format.txt.
"""

from __future__ import annotations

import math
import os
import re
from functools import cache, partial
from typing import TYPE_CHECKING, Final, NamedTuple

from ...derived.element_types import item_size
from ...derived.layout import contiguous_strides
from ...errors import FormatError, quote
from ...storage import open_source
from ...storage.limits import Limits, exceeded
from ...storage.windows import Window, read_bytes
from ..foreign import ForeignCheckpoint, OpenOptions, from_tree
from ..pickles.nodes import Blob, DictNode, Value
from ..pickles.numpy_nodes import ArrayNode, DtypeNode, RefusedNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ...storage import Source

__all__ = ["read_tensorflow"]

_FOOTER: Final = 48
_TRAILER: Final = 5
_STRING: Final = 7
_TYPES: Final = {
    1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 8: "c8", 9: "i8", 10: "b1",
    14: "ml:bfloat16", 17: "u2", 18: "c16", 19: "f2", 22: "u4", 23: "u8",
    24: "ml:float8_e5m2", 25: "ml:float8_e4m3fn",
}  # fmt: skip
"""TensorFlow's DataType -> array type."""


class _Bytes:
    """A cursor over a few bytes of a message or block."""

    def __init__(self, data: bytes, path: str) -> None:
        self.data = data
        self.position = 0
        self._path = path

    def fault(self, message: str) -> FormatError:
        return FormatError(
            f"the TensorFlow index is malformed: {message}", rule="tensorflow", path=self._path
        )

    def more(self) -> bool:
        return self.position < len(self.data)

    def take(self, count: int) -> bytes:
        piece = self.data[self.position : self.position + count]
        if len(piece) != count:
            raise self.fault("it ends early")
        self.position += count
        return piece

    def varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF
        raise self.fault("a number does not end")

    def fields(self) -> Iterator[tuple[int, int | bytes]]:
        """Number and value of each field of a protocol buffer message."""
        while self.more():
            tag = self.varint()
            kind = tag & 7
            if kind == 0:
                yield tag >> 3, self.varint()
            elif kind == 2:
                yield tag >> 3, self.take(self.varint())
            elif kind in (1, 5):
                yield tag >> 3, self.take(8 if kind == 1 else 4)
            else:
                raise self.fault(f"wire type {kind} is not used")


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901
        table.append(value)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of `data`; about 5 MB/s.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _unmasked(stored: int) -> int:
    rotated = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def _block(source: Source, offset: int, size: int, limits: Limits) -> bytes:
    if size > limits.inline_bytes:
        raise exceeded("inline_bytes", limits.inline_bytes, source.name, offset)
    limits.spend("opcodes", size // 2, source.name, offset)  # what its checksum costs
    data = read_bytes(source, offset, size + _TRAILER)
    body, kind = data[:size], data[size]
    if kind != 0:
        raise FormatError(
            "the index is compressed, which TensorFlow does not do",
            rule="tensorflow",
            path=source.name,
            offset=offset,
        )
    if crc32c(data[: size + 1]) != _unmasked(int.from_bytes(data[size + 1 :], "little")):
        raise FormatError(
            "a block of the index does not match its CRC-32C",
            rule="tensorflow",
            path=source.name,
            offset=offset,
        )
    return body


def _block_entries(body: bytes, path: str, limits: Limits) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; keys share prefixes with the one before."""
    if len(body) < 4:
        raise _Bytes(body, path).fault("a block is too short")
    restarts = int.from_bytes(body[-4:], "little")
    end = len(body) - 4 - 4 * restarts
    if end < 0:
        raise _Bytes(body, path).fault("a block is too short")
    cursor = _Bytes(body[:end], path)
    key = b""
    while cursor.more():
        shared, rest, size = cursor.varint(), cursor.varint(), cursor.varint()
        if shared > len(key) or shared + rest > limits.name_bytes:
            raise cursor.fault("a key is malformed or too long")
        key = key[:shared] + cursor.take(rest)
        yield key, cursor.take(size)


def _table_entries(source: Source, limits: Limits) -> Iterator[tuple[bytes, bytes]]:
    footer = _Bytes(read_bytes(source, source.size - _FOOTER, _FOOTER - 8), source.name)
    footer.varint(), footer.varint()  # the block of filters, which has none
    index = _block(source, footer.varint(), footer.varint(), limits)
    last: bytes | None = None
    for _, handle in _block_entries(index, source.name, limits):
        cursor = _Bytes(handle, source.name)
        body = _block(source, cursor.varint(), cursor.varint(), limits)
        for key, value in _block_entries(body, source.name, limits):
            if last is not None and key <= last:  # sorted, hence no key twice
                raise cursor.fault("its keys are not in order")
            last = key
            yield key, value


class _Entry(NamedTuple):
    """A BundleEntryProto."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    sliced: bool


def _message(cursor: _Bytes) -> dict[int, list[int | bytes]]:
    fields: dict[int, list[int | bytes]] = {}
    for number, value in cursor.fields():
        fields.setdefault(number, []).append(value)
    return fields


def _integer(fields: dict[int, list[int | bytes]], number: int) -> int:
    value = fields.get(number, [0])[-1]
    return value if isinstance(value, int) else 0


def _entry(data: bytes, path: str, limits: Limits) -> _Entry:
    cursor = _Bytes(data, path)
    fields = _message(cursor)
    shape: list[int] = []
    for message in fields.get(2, []):
        if not isinstance(message, bytes):
            raise cursor.fault("a shape is malformed")
        dimensions = _message(_Bytes(message, path))
        for dimension in dimensions.get(2, []):
            if not isinstance(dimension, bytes):
                raise cursor.fault("a shape is malformed")
            shape.append(_integer(_message(_Bytes(dimension, path)), 1))
    if len(shape) > limits.tensor_rank or any(count >= 1 << 63 for count in shape):
        raise cursor.fault("a shape is impossible")
    dtype, shard, offset, size = (_integer(fields, number) for number in (1, 3, 4, 5))
    return _Entry(dtype, tuple(shape), shard, offset, size, 7 in fields)


def read_tensorflow(
    source: Source,
    options: OpenOptions,
    open_shard: Callable[[str], Source] | None = None,
) -> ForeignCheckpoint:
    """The checkpoint whose ``.index`` file is `source`.

    Args:
        source: The index; its name tells where the shards are.
        options: See `OpenOptions`.
        open_shard: Opens a shard by its path; by default as a file.

    Raises:
        FormatError: The index is malformed, or a variable lies outside its shard.
        OSError: A shard cannot be opened.
    """
    open_file = partial(open_source, backend=options.backend, verify=options.verify)
    prefix = re.sub(r"\.index$", "", source.name)
    entries = _table_entries(source, options.limits)
    first = next(entries, None)
    if first is None or first[0] != b"":
        raise _Bytes(b"", source.name).fault("it has no header")
    header = _message(_Bytes(first[1], source.name))
    count, swapped = _integer(header, 1), _integer(header, 2) == 1
    if not 1 <= count <= 99_999:
        raise _Bytes(b"", source.name).fault(f"it announces {count} shards")
    shards: dict[int, Source] = {}
    pairs: list[tuple[Value, Value]] = []
    for key, data in entries:
        entry = _entry(data, source.name, options.limits)
        if len(pairs) >= options.limits.tensors:
            raise exceeded("tensors", options.limits.tensors, source.name)
        if entry.shard not in range(count):
            raise _Bytes(b"", source.name).fault("an entry names a shard that does not exist")
        if entry.shard not in shards:
            name = f"{os.fspath(prefix)}.data-{entry.shard:05d}-of-{count:05d}"
            shards[entry.shard] = (open_shard or open_file)(name)
        name = _text(key, source.name)
        pairs.append((name, _node(entry, shards[entry.shard], name, swapped=swapped)))
    return from_tree("tensorflow-v2", source.name, DictNode(pairs), options)


def _text(key: bytes, path: str) -> str:
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Bytes(key, path).fault("a name is not UTF-8") from error


def _type_name(number: int) -> str:
    """What to call a type: as the format does, or by TensorFlow's number of it."""
    kind = _TYPES.get(number)
    return (kind and DtypeNode(kind).code) or f"DT_{number}"


def _node(entry: _Entry, shard: Source, name: str, *, swapped: bool) -> Value:
    if entry.sliced:
        reason = "it was saved in slices; save it whole first"
        return RefusedNode(reason, _type_name(entry.dtype), entry.shape)
    if entry.dtype == _STRING:
        return Blob(shard, entry.offset, entry.size)
    if entry.dtype not in _TYPES:
        reason = f"TensorFlow's type {entry.dtype} has no counterpart in the format"
        return RefusedNode(reason, _type_name(entry.dtype), entry.shape, entry.size)
    dtype = DtypeNode(_TYPES[entry.dtype], swapped)
    need = math.prod(entry.shape) * item_size(dtype.code or "U8")
    if need != entry.size:
        raise FormatError(
            f"variable {quote(name)} needs {need} bytes, but the index says {entry.size}",
            rule="tensorflow",
            path=shard.name,
            tensor=name,
        )
    data = Window(shard, entry.offset, entry.size)
    return ArrayNode(entry.offset, dtype, entry.shape, contiguous_strides(entry.shape), data)
