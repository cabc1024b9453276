"""A strict JSON reader (RFC 8259) over bytes, for input that may be hostile.

Why not `json`: it accepts NaN, duplicate keys, lone surrogates, a byte order mark and UTF-16, turns
`true` into an `int`, recurses, builds everything before anything can be checked, and cannot say at
which byte a value began. This reader is a cursor: the caller asks for what must come next, nothing
is built that was not asked for, nesting is counted instead of recursed into, and every error
carries its position.

It knows nothing of tensors.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ..errors import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["MAX_DEPTH", "JSONError", "Reader"]

MAX_DEPTH: Final = 127
"""Deepest nesting; the value of serde_json, by which the reference parses."""

MAX_NUMBER: Final = 4096
"""Most characters of a number that is skipped."""

MAX_UINT: Final = 2**64 - 1

_STEP: Final = 4096
"""Bytes of white space, or of a string, from which on whole blocks are looked at: expressions take a
nanosecond a byte, five times as long."""

_BLOCK: Final = 1 << 15
"""What is looked at many times over: it stays in the processor's nearest cache."""

_SPACE = re.compile(rb"[ \t\n\r]{0,%d}" % _STEP).match
# 2^64 has 20 digits; one more is enough to see that a number has more.
_UINT = re.compile(rb"(?:0|[1-9][0-9]{0,19})(?![0-9.eE])|[1-9][0-9]{20}").match
_DIGITS = rb"[0-9]{1,%d}" % (MAX_NUMBER + 1)
_NUMBER = re.compile(rb"-?(?:0|(?=[1-9])%b)(?:\.%b)?(?:[eE][+-]?%b)?" % ((_DIGITS,) * 3)).match
# sre keeps a record for each turn of a repeated group (about 120 bytes): a string of 50 million
# escapes must be scanned in bounded steps.
_RUN = rb'[^"\\\x00-\x1f]{0,%d}' % _STEP
_STRING_PART = re.compile(rb"%b(?:\\.%b){0,1000}" % (_RUN, _RUN), re.DOTALL).match
_PLAIN = re.compile(rb'"%b"' % _RUN).match
# What programs write, in one step; the rest is for what they do not.
_PLAIN_KEY = re.compile(rb'[ \t\n\r]{0,8}"([^"\\\x00-\x1f\x80-\xff]{0,200})"[ \t\n\r]{0,8}:').match
_PLAIN_UINT = rb"(?:0|[1-9][0-9]{0,18})"
_PLAIN_UINTS = re.compile(
    rb"[ \t\n\r]{0,8}\[(%b(?:, ?%b){0,7})\]" % (_PLAIN_UINT, _PLAIN_UINT)
).match
_CONTROLS: Final = tuple(range(32))
_PIECE: Final = 1 << 18
# Before an escape, though not one that may be the second half of a surrogate pair.
_CUT = re.compile(rb"[^\\](?=\\[^u])").search
_SURROGATE = re.compile("[\ud800-\udfff]").search
_LITERAL = re.compile(rb"true|false|null").match

Kind: TypeAlias = Literal["syntax", "limit", "duplicate-key"]

_KINDS: Final = {
    b"{": "an object",
    b"[": "an array",
    b'"': "a string",
    b"t": "a boolean",
    b"f": "a boolean",
    b"n": "null",
    b"": "the end",
    **dict.fromkeys((b"-", *(b"%d" % digit for digit in range(10))), "a number"),
}


def has_surrogates(text: str) -> bool:
    r"""Whether `text` has surrogate code points, which UTF-8 cannot express.

    >>> has_surrogates("\ud83d")
    True
    """
    return _SURROGATE(text) is not None


def _skip_blocks(text: bytes, position: int, last: int, alike: Callable[[bytes], int]) -> int:
    """Behind the blocks from `position` on of which `alike` takes something; none begins behind `last`."""
    while position <= last:
        block = text[position : position + _BLOCK]
        taken = alike(block) if len(block) == _BLOCK else 0
        if not taken:
            break
        position += taken
    return position


def _space_in(block: bytes) -> int:
    """The length of a block of white space; 0 where it is none."""
    return len(block) if block.isspace() and b"\v" not in block and b"\f" not in block else 0


def _string_in(block: bytes) -> int:
    """How much of a block is whole characters and escapes within a string; 0 where a string ends in it."""
    if True in map(block.__contains__, _CONTROLS):
        return 0
    if b'"' in block and b'"' in block.replace(b"\\\\", b"").replace(b'\\"', b""):
        return 0
    # Of backslashes in a row every second is escaped by the one before it.
    return len(block) - (len(block) - len(block.rstrip(b"\\"))) % 2


def _pieces(text: bytes, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The contents of a string in pieces that can be decoded by themselves: at once needs more memory."""
    while end - begin > _PIECE and (cut := _CUT(text, begin + _PIECE, end)):
        yield begin, cut.end()
        begin = cut.end()
    yield begin, end


class JSONError(ValueError):
    """Text that is not the JSON asked for.

    Attributes:
        position: Byte position in the text.
        kind: ``"syntax"``; or ``"limit"`` where the text may be JSON but exceeds a bound of this
            reader, ``"duplicate-key"`` where it repeats a key.
    """

    def __init__(self, message: str, position: int, *, kind: Kind = "syntax") -> None:
        super().__init__(message)
        self.position = position
        self.kind: Kind = kind


class Reader:
    """A cursor over JSON text.

    Every method skips white space first, consumes what it returns, and raises `JSONError` where
    the text has something else. Memory is that of the values returned.

    Args:
        text: UTF-8; a byte order mark is not JSON.
        position: Where to begin.
        unique: Whether `skip` refuses keys that repeat within one object.

    >>> reader = Reader(b'{"a": [1, 2]}')
    >>> {key: list(reader.integers()) for key, _ in reader.members()}
    {'a': [1, 2]}
    """

    __slots__ = ("position", "text", "unique")

    def __init__(self, text: bytes, position: int = 0, *, unique: bool = True) -> None:
        self.text = text
        self.position = position
        self.unique = unique

    def peek(self) -> bytes:
        """The next significant byte, unconsumed; empty at the end."""
        found = self.text[self.position : self.position + 1]
        if found > b" ":
            return found
        self._skip_space()
        return self.text[self.position : self.position + 1]

    def _skip_space(self) -> None:
        while True:
            match = _SPACE(self.text, self.position)
            assert match is not None
            self.position = match.end()
            if match.end() - match.start() < _STEP:
                return
            self.position = _skip_blocks(self.text, self.position, len(self.text), _space_in)

    def kind(self) -> str:
        """What comes next, in words for a message."""
        found = self.peek()
        return _KINDS.get(found, f"byte 0x{found.hex()}")

    def fail(self, expected: str) -> JSONError:
        """The error for a text that has something other than `expected` here."""
        return JSONError(f"expected {expected}, found {self.kind()}", self.position)

    def take(self, char: bytes) -> None:
        """Consume the one byte `char`."""
        if self.peek() != char:
            raise self.fail(f"`{char.decode()}`")
        self.position += 1

    def end(self) -> None:
        """Only white space may follow."""
        if self.peek():
            raise JSONError(f"trailing characters: {self.kind()}", self.position)

    def string(self, expected: str = "a string", *, limit: int | None = None) -> str:
        """One string, decoded; RFC 8259 section 7, and no lone surrogates (section 8.2).

        Args:
            expected: What the caller asked for, in words.
            limit: Most bytes it may take in the text.
        """
        if self.peek() != b'"':
            raise self.fail(expected)
        begin, end = self.position, self._string_end(limit)
        if limit is not None and end - begin > limit:
            raise JSONError(f"value longer than {limit} bytes", begin, kind="limit")
        escaped = self.text.find(b"\\", begin, end) >= 0
        try:
            # A copy of a long one would take as long as the rest.
            source = self.text if end - begin < _STEP else memoryview(self.text)
            if escaped:
                places = _pieces(self.text, begin + 1, end - 1)
                text = "".join([json.loads(f'"{str(source[a:b], "utf-8")}"') for a, b in places])
            else:
                text = str(source[begin + 1 : end - 1], "utf-8")
        except UnicodeDecodeError as error:
            raise JSONError(f"invalid UTF-8 in a string: {error.reason}", begin) from error
        except ValueError as error:
            raise JSONError(f"invalid escape in a string: {error}", begin) from error
        coded = escaped and not text.isascii() and self.text.find(b"\\u", begin, end) >= 0
        if coded and has_surrogates(text):
            raise JSONError("lone surrogate in hex escape", begin)
        self.position = end
        return text

    def _string_end(self, limit: int | None) -> int:
        """Where the string ends that begins here, closing quote included; or some place above `limit`."""
        text, begin = self.text, self.position
        if plain := _PLAIN(text, begin):
            return plain.end()
        position, last = begin + 1, len(text) if limit is None else begin + limit
        while position <= last:
            match = _STRING_PART(text, position)
            assert match is not None
            position = match.end()
            following = text[position : position + 1]
            if following == b'"':
                return position + 1
            if not following or (following == b"\\" and position + 1 >= len(text)):
                raise JSONError("end of text inside a string", begin)
            if following < b" ":
                raise JSONError(f"control character 0x{following.hex()} in a string", position)
            position = _skip_blocks(text, position, last, _string_in)
        return position

    def integer(self, expected: str = "an unsigned integer") -> int:
        """One integer of 0 to 2^64-1, written without sign, fraction or exponent."""
        self.peek()
        match = _UINT(self.text, self.position)
        if match is None:
            raise self.fail(expected)
        # 2^64 has 20 digits; int() of a long text is quadratic.
        if match.end() - self.position > 20 or (value := int(match[0])) > MAX_UINT:
            raise JSONError("integer exceeds 2^64-1", self.position)
        self.position = match.end()
        return value

    def members(self, expected: str = "an object") -> Iterator[tuple[str, int]]:
        """The members of an object: (key, position of the key), each before its value.

        The caller consumes the value before it asks for the next member.
        """
        if self.peek() != b"{":
            raise self.fail(expected)
        self.position += 1
        if self.peek() == b"}":
            self.position += 1
            return
        yield from self.more_members()

    def more_members(self) -> Iterator[tuple[str, int]]:
        """The members of an object from within it, where a key stands."""
        while True:
            if plain := _PLAIN_KEY(self.text, self.position):
                key, at = plain[1].decode(), plain.start(1) - 1
                self.position = plain.end()
            else:
                self.peek()
                at = self.position
                key = self.string("a key in double quotes")
                self.take(b":")
            yield key, at
            if self._closed_by(b"}"):
                return

    def integers(self, expected: str = "an array of unsigned integers") -> Iterator[int]:
        """The elements of an array of unsigned integers, one at a time."""
        if plain := _PLAIN_UINTS(self.text, self.position):
            self.position = plain.end()
            yield from map(int, plain[1].split(b","))
            return
        if self.peek() != b"[":
            raise self.fail(expected)
        self.position += 1
        if self.peek() == b"]":
            self.position += 1
            return
        while True:
            yield self.integer()
            if self._closed_by(b"]"):
                return

    def _closed_by(self, closing: bytes) -> bool:
        found = self.peek()
        if found not in (b",", closing):
            raise self.fail(f"`,` or `{closing.decode()}`")
        self.position += 1
        return found == closing

    def skip(self, depth: int = 0, limit: int | None = None) -> None:
        """Check one value of any kind and drop it.

        Args:
            depth: Levels already open around the value.
            limit: Most bytes the value may take.

        Raises:
            JSONError: Not JSON, a key repeated within one object, deeper than `MAX_DEPTH`, or
                longer than `limit` (these with another `JSONError.kind`).
        """
        begin = self.position
        stack: list[set[str] | None] = []  # the keys of each open object, None for an array
        while True:
            if limit is not None and self.position - begin > limit:
                raise JSONError(f"value longer than {limit} bytes", begin, kind="limit")
            if depth + len(stack) >= MAX_DEPTH and self.peek() in {b"{", b"["}:
                raise JSONError("recursion limit exceeded", self.position, kind="limit")
            if self._skip_start(stack, limit):
                continue
            while stack and self._closed_by(b"]" if stack[-1] is None else b"}"):
                stack.pop()
            if not stack:
                return
            self._skip_key(stack[-1], limit)

    def _skip_start(self, stack: list[set[str] | None], limit: int | None) -> bool:
        """Consume a scalar, an empty container, or the opening of a container (True)."""
        found = self.peek()
        if found == b'"':
            self.string(limit=limit)
        elif found in {b"{", b"["}:
            self.position += 1
            closing = b"}" if found == b"{" else b"]"
            if self.peek() == closing:
                self.position += 1
                return False
            stack.append(set() if found == b"{" else None)
            self._skip_key(stack[-1], limit)
            return True
        elif match := _LITERAL(self.text, self.position):
            self.position = match.end()
        elif (match := _NUMBER(self.text, self.position)) is not None:
            if match.end() - self.position > MAX_NUMBER:
                raise JSONError(f"number of over {MAX_NUMBER} digits", self.position, kind="limit")
            if abs(float(match[0])) == float("inf"):
                raise JSONError("number out of range", self.position)
            self.position = match.end()
        else:
            raise self.fail("a value")
        return False

    def _skip_key(self, keys: set[str] | None, limit: int | None) -> None:
        if keys is None:
            return
        self.peek()
        at = self.position
        key = self.string("a key in double quotes", limit=limit)
        if self.unique and key in keys:
            raise JSONError(f"duplicate key {quote(key)}", at, kind="duplicate-key")
        keys.add(key)
        self.take(b":")
