"""The opcodes of pickles, and how the argument of each is read.

Every length is checked against the bytes that are there before anything is allocated, and against
the limits; long strings stay in the file, as a `Blob`.

Errors have two rules. ``pickle``: CPython's unpickler, in C and in Python, stops at this opcode too.
``pickle-strict``: it might go on. A scan may rely only on the first: a reader that stops earlier than
the one that executes is how scanners are fooled. Where CPython's two unpicklers read an argument
differently, this one accepts what either accepts.

What opcodes do is in `machine`.

Source: CPython's Modules/_pickle.c, Lib/pickle.py, Lib/pickletools.py; PEPs 307, 3154 and 574.
"""

from __future__ import annotations

import codecs
import re
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ...errors import FormatError
from ...storage.limits import Limits, exceeded
from .nodes import Blob

if TYPE_CHECKING:
    from ...storage import Source
    from ...storage.windows import ByteReader

__all__ = ["OPCODES", "Arguments", "Opcode"]

_INTEGER_MAX: Final = 1700
"""Most bytes of an integer, whatever the limit: CPython prints none of more than 4,300 digits."""

_OCTAL: Final = re.compile(rb"[ \t\n\v\f\r]*[+-]?0[0-7]+").fullmatch
"""What strtol takes for an octal number and Python's int does not."""

_DOTTED: Final = re.compile(r"[\w.]+").fullmatch

_UINT2: Final = Struct("<H").unpack
_INT4: Final = Struct("<i").unpack
_UINT4: Final = Struct("<I").unpack
_UINT8: Final = Struct("<Q").unpack
_FLOAT8: Final = Struct(">d").unpack


class Opcode(NamedTuple):
    """One opcode.

    Attributes:
        name: As pickletools has it, in lower case.
        argument: The method of `Arguments` that reads what follows; empty where nothing does.
    """

    name: str
    argument: str = ""


OPCODES: Final = {
    # structure
    "\x80": Opcode("proto", "uint1"), "\x95": Opcode("frame", "uint8"), ".": Opcode("stop"),
    "(": Opcode("mark"), "0": Opcode("pop"), "1": Opcode("pop_mark"), "2": Opcode("dup"),
    # numbers and constants
    "N": Opcode("none"), "\x88": Opcode("newtrue"), "\x89": Opcode("newfalse"),
    "I": Opcode("int", "bool_or_int_line"), "J": Opcode("binint", "int4"), "K": Opcode("binint1", "uint1"),
    "M": Opcode("binint2", "uint2"), "L": Opcode("long", "long_line"),
    "\x8a": Opcode("long1", "long1"), "\x8b": Opcode("long4", "long4"),
    "F": Opcode("float", "float_line"), "G": Opcode("binfloat", "float8"),
    # text and bytes
    "S": Opcode("string", "quoted_line"), "T": Opcode("binstring", "string4"),
    "U": Opcode("short_binstring", "string1"), "V": Opcode("unicode", "text_line"),
    "X": Opcode("binunicode", "text4"), "\x8c": Opcode("short_binunicode", "text1"),
    "\x8d": Opcode("binunicode8", "text8"), "B": Opcode("binbytes", "bytes4"),
    "C": Opcode("short_binbytes", "bytes1"), "\x8e": Opcode("binbytes8", "bytes8"),
    "\x96": Opcode("bytearray8", "bytes8"), "\x97": Opcode("next_buffer"),
    "\x98": Opcode("readonly_buffer"),
    # containers
    ")": Opcode("empty_tuple"), "t": Opcode("tuple"), "\x85": Opcode("tuple1"),
    "\x86": Opcode("tuple2"), "\x87": Opcode("tuple3"), "]": Opcode("empty_list"),
    "l": Opcode("list"), "a": Opcode("append"), "e": Opcode("appends"), "}": Opcode("empty_dict"),
    "d": Opcode("dict"), "s": Opcode("setitem"), "u": Opcode("setitems"),
    "\x8f": Opcode("empty_set"), "\x90": Opcode("additems"), "\x91": Opcode("frozenset"),
    # memo
    "p": Opcode("put", "int_line"), "q": Opcode("binput", "uint1"),
    "r": Opcode("long_binput", "uint4"), "\x94": Opcode("memoize"), "g": Opcode("get", "int_line"),
    "h": Opcode("binget", "uint1"), "j": Opcode("long_binget", "uint4"),
    # names, references and calls
    "c": Opcode("global", "two_names"), "\x93": Opcode("stack_global"),
    "\x82": Opcode("ext1", "uint1"), "\x83": Opcode("ext2", "uint2"), "\x84": Opcode("ext4", "int4"),
    "P": Opcode("persid", "ascii_line"), "Q": Opcode("binpersid"), "R": Opcode("reduce"),
    "b": Opcode("build"), "i": Opcode("inst", "two_names"), "o": Opcode("obj"),
    "\x81": Opcode("newobj"), "\x92": Opcode("newobj_ex"),
}  # fmt: skip
"""The character of every opcode of protocols 0 to 5."""


class Arguments:
    """Reads what follows an opcode.

    Attributes:
        reader: Where the pickle is read.
        at: Offset of the present opcode; the machine sets it.
        probing: The bytes may be no pickle. Integers and keys of the memo past their limits are then
            skipped, and a reference past it is malformed: they end the reading only where unpicklers stop.
    """

    def __init__(self, source: Source, reader: ByteReader, limits: Limits) -> None:
        self.reader = reader
        self.at = reader.offset
        self.probing = False
        self._source = source
        self._limits = limits
        self._held = 0
        self._held_max = limits.inline_bytes
        self._value_max = limits.inline_value_bytes

    def fault(self, message: str, *, strict: bool = False) -> FormatError:
        """The error for a malformed pickle at the present opcode.

        Args:
            message: What is wrong.
            strict: CPython's unpickler might accept it.
        """
        return FormatError(
            f"the pickle is malformed: {message}",
            rule="pickle-strict" if strict else "pickle",
            path=self._source.name,
            offset=self.at,
        )

    def exceeded(self, name: str) -> FormatError:
        """The error for what goes past a limit at the present opcode."""
        return exceeded(name, getattr(self._limits, name), self._source.name, self.at)

    # -- numbers

    def uint1(self) -> int:
        """A byte."""
        return self.reader.take(1)[0]

    def uint2(self) -> int:
        """Two bytes, little-endian like all numbers below."""
        number: int = _UINT2(self.reader.take(2))[0]
        return number

    def int4(self) -> int:
        """Four bytes, signed."""
        number: int = _INT4(self.reader.take(4))[0]
        return number

    def uint4(self) -> int:
        """Four bytes."""
        number: int = _UINT4(self.reader.take(4))[0]
        return number

    def uint8(self) -> int:
        """Eight bytes."""
        number: int = _UINT8(self.reader.take(8))[0]
        return number

    def float8(self) -> float:
        """Eight bytes, big-endian."""
        number: float = _FLOAT8(self.reader.take(8))[0]
        return number

    def long1(self) -> int | Blob:
        """A signed integer with a 1-byte length prefix."""
        return self._long(self.uint1())

    def long4(self) -> int | Blob:
        """A signed integer with a 4-byte length prefix."""
        length = self.int4()
        if length < 0:
            raise self.fault("an integer has a negative length")
        return self._long(length)

    def _long(self, length: int) -> int | Blob:
        if length > min(self._limits.integer_bytes, _INTEGER_MAX):
            if self.probing:
                return self._blob(length, None)
            raise self.exceeded("integer_bytes")
        return int.from_bytes(self.reader.take(length), "little", signed=True)

    def _line(self) -> bytes:
        return self.reader.line(self._limits.inline_bytes)

    def _number(self) -> tuple[bytes, bool]:
        """A line with a number: the text up to a NUL, where C ends it, and whether there is one."""
        line = self._line()
        text, nul, _ = line.partition(b"\0")
        if len(text) > 2 * min(self._limits.integer_bytes, _INTEGER_MAX):
            if len(text.split()) != 1:
                raise self.fault("this is not a number")
            raise self.exceeded("integer_bytes")
        return text, bool(nul)

    def _integer(self, text: bytes, base: int) -> int:
        try:
            return int(text, base)
        except ValueError as error:
            raise self.fault("this is not an integer") from error

    def int_line(self) -> int:
        """A line with a decimal integer."""
        return self._integer(self._number()[0], 10)

    def bool_or_int_line(self) -> int:
        """A line with an integer, or with a boolean as protocol 0 writes it."""
        text, cut = self._number()
        if text in (b"00", b"01") and not cut:
            return text == b"01"
        if _OCTAL(text):
            return int(text, 8)
        return 0 if cut and not text else self._integer(text, 0)

    def long_line(self) -> int:
        """A line with an integer that may end in L."""
        text, cut = self._number()
        return self._integer(text[:-1] if text.endswith(b"L") and not cut else text, 0)

    def float_line(self) -> float:
        """A line with a number."""
        try:
            return float(self._number()[0])
        except ValueError as error:
            raise self.fault("this is not a number") from error

    # -- names

    def _name(self, *, module: bool) -> str:
        try:
            line = self._line()
        except FormatError as error:  # the unpickler in Python takes the last line without its end
            raise self.fault("a name does not end", strict=True) from error
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fault("a name is not UTF-8") from error
        if module and (not text or "\0" in text):
            raise self.fault("no module can have this name")
        if len(line) > self._limits.name_bytes:
            if not _DOTTED(text):
                raise self.fault("nothing can have this name")
            raise self.exceeded("name_bytes")
        return text

    def ascii_line(self) -> str:
        """A line of ASCII: a persistent id."""
        line = self._line()
        if not line.isascii():
            raise self.fault("a persistent id is not ASCII")
        if len(line) > self._limits.name_bytes:
            if self.probing:
                raise self.fault("nothing resolves such a persistent id")
            raise self.exceeded("name_bytes")
        return line.decode("ascii")

    def two_names(self) -> tuple[str, str]:
        """Two lines: a module and a name in it."""
        return self._name(module=True), self._name(module=False)

    # -- text and bytes

    def hold(self, count: int) -> None:
        """Count bytes of text or byte strings that are held in memory."""
        self._held += count
        if self._held > self._held_max:
            raise self.exceeded("inline_bytes")

    def _blob(self, length: int, encoding: str | None) -> Blob:
        return Blob(self._source, self.reader.skip(length), length, encoding)

    def quoted_line(self) -> str | bytes:
        """A line with a quoted string of Python 2, with escapes."""
        line = self._line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise self.fault("the string is not quoted")
        try:
            data = codecs.escape_decode(line[1:-1])[0]
        except ValueError as error:
            raise self.fault("the string has an invalid escape") from error
        return self._old_string(data)

    def _old_string(self, data: bytes) -> str | bytes:
        """Python 2's str: text if it is ASCII, else bytes, which is how arrays are stored in it."""
        self.hold(len(data))
        return data.decode("ascii") if data.isascii() else data

    def string1(self) -> str | bytes | Blob:
        """A string of Python 2 with a 1-byte length prefix."""
        return self._counted_string(self.uint1())

    def string4(self) -> str | bytes | Blob:
        """A string of Python 2 with a 4-byte length prefix."""
        length = self.int4()
        if length < 0:
            raise self.fault("a string has a negative length")
        return self._counted_string(length)

    def _counted_string(self, length: int) -> str | bytes | Blob:
        if length > self._value_max:
            return self._blob(length, "ascii")
        return self._old_string(self.reader.take(length))

    def text_line(self) -> str:
        """A line of text with escapes."""
        line = self._line()
        self.hold(len(line))
        try:
            return codecs.raw_unicode_escape_decode(line)[0]
        except UnicodeDecodeError as error:
            raise self.fault("the text has an invalid escape") from error

    def text1(self) -> str:
        """UTF-8 text with a 1-byte length prefix."""
        # The most frequent argument: `_text` without its calls, in two thirds of the time.
        data = self.reader.take_counted()
        self._held += len(data)
        if self._held > self._held_max:
            raise self.exceeded("inline_bytes")
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self.fault("the text is not UTF-8") from error

    def text4(self) -> str | Blob:
        """UTF-8 text with a 4-byte length prefix."""
        return self._text(self.uint4())

    def text8(self) -> str | Blob:
        """UTF-8 text with an 8-byte length prefix."""
        return self._text(self.uint8())

    def _text(self, length: int) -> str | Blob:
        if length > self._value_max:
            return self._blob(length, "utf-8")
        self.hold(length)
        try:
            return self.reader.take(length).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self.fault("the text is not UTF-8") from error

    def bytes1(self) -> bytes | Blob:
        """Bytes with a 1-byte length prefix."""
        return self._bytes(self.uint1())

    def bytes4(self) -> bytes | Blob:
        """Bytes with a 4-byte length prefix."""
        return self._bytes(self.uint4())

    def bytes8(self) -> bytes | Blob:
        """Bytes with an 8-byte length prefix."""
        return self._bytes(self.uint8())

    def _bytes(self, length: int) -> bytes | Blob:
        if length > self._value_max:
            return self._blob(length, None)
        self.hold(length)
        return self.reader.take(length)
