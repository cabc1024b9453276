"""Reading Protocol Buffers' wire format where a file lies: nested messages are not copied.

The format: https://protobuf.dev/programming-guides/encoding. Every field is a varint key, whose low three
bits are the wire type, and a value. One `Reader` walks one message; a field that holds a message gives
another over the same source. A budget of fields is shared by all readers of one file, so that no nesting
makes a small file expensive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ...errors import FormatError
from ...storage.limits import exceeded
from ...storage.windows import ByteReader, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...storage import Source

__all__ = ["Budget", "Message", "WireField"]

_FIELDS_MAX: Final = 4_000_000
_TEXT_MAX: Final = 1 << 16
_DEPTH_MAX: Final = 64


class Budget:
    """Fields that may still be read of one file."""

    def __init__(self, fields: int = _FIELDS_MAX) -> None:
        self.left = fields

    def spend(self, path: str) -> None:
        """Count one field.

        Raises:
            FormatError: There were too many.
        """
        self.left -= 1
        if self.left < 0:
            raise exceeded("objects", _FIELDS_MAX, path)


class WireField(NamedTuple):
    """One field of a message.

    Attributes:
        number: The field's number.
        offset: Where its value begins.
        length: Bytes of its value; 0 for a varint.
        value: Of a varint; 0 for others.
    """

    number: int
    offset: int
    length: int
    value: int


class Message:
    """The bytes of `source` from `begin` to `end`, as a message.

    Raises:
        FormatError: ``protobuf``: from `fields`, where the bytes are no message.
    """

    def __init__(
        self, source: Source, begin: int, end: int, budget: Budget, depth: int = 0
    ) -> None:
        if depth > _DEPTH_MAX:
            raise exceeded("depth", _DEPTH_MAX, source.name, begin)
        self._source = source
        self._begin = begin
        self._end = end
        self._budget = budget
        self._depth = depth

    def fields(self) -> Iterator[WireField]:
        """Every field, in the file's order."""
        reader = ByteReader(self._source, self._begin, self._end)
        while reader.left:
            self._budget.spend(self._source.name)
            key = self._varint(reader)
            number, kind = key >> 3, key & 7
            if not number:
                raise self._damaged(reader.offset, "a field has the number 0")
            if kind == 0:
                value = self._varint(reader)
                yield WireField(number, reader.offset, 0, value)
                continue
            length = {1: 8, 2: -1, 5: 4}.get(kind)
            if length is None:
                raise self._damaged(reader.offset, f"the wire type {kind} is not in use")
            if length < 0:
                length = self._varint(reader)
            if length > reader.left:
                raise self._damaged(reader.offset, f"{length} bytes do not fit")
            yield WireField(number, reader.skip(length), length, 0)

    def messages(self, number: int) -> Iterator[Message]:
        """The messages in the fields called `number`."""
        for field in self.fields():
            if field.number == number and field.length:
                yield self.inner(field)

    def inner(self, field: WireField) -> Message:
        """A field's bytes as a message."""
        return Message(
            self._source, field.offset, field.offset + field.length, self._budget, self._depth + 1
        )

    def text(self, field: WireField) -> str:
        """A field's bytes as text; what is no UTF-8 is escaped, and at most 64 KiB are read."""
        data = read_bytes(self._source, field.offset, min(field.length, _TEXT_MAX))
        return data.decode("utf-8", "backslashreplace")

    def _varint(self, reader: ByteReader) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = reader.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise self._damaged(reader.offset, "a number has more than ten bytes")

    def _damaged(self, offset: int, what: str) -> FormatError:
        return FormatError(
            f"not a Protocol Buffers message: {what}", rule="protobuf", path=self._source.name,
            offset=offset,
        )  # fmt: skip
