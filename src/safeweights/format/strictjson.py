"""A strict JSON reader (RFC 8259) for bytes that may be hostile.

Why not `json`: it accepts NaN, duplicate keys, lone surrogates, a byte order mark and UTF-16; its `true`
is an `int`; it recurses; it builds the whole result before the caller can check anything; and it does not
tell at which byte a value begins. This reader is a cursor: the caller asks for the next value by its type,
values that it skips are checked but not built, nesting is counted without recursion, and every error
has a position. Text is strict UTF-8 (RFC 3629), which excludes surrogates.

It knows nothing of tensors.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ..errors import quote
from ..lazy import matcher
from .rules import MAX_UINT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["MAX_DEPTH", "JSONError", "Reader"]

MAX_DEPTH: Final = 127
"""Maximum nesting; the limit of serde_json, the reference's parser."""

MAX_NUMBER: Final = 4096
"""Maximum length in bytes of a number that is skipped."""

_STEP: Final = 4096
"""Length in bytes above which white space and strings are scanned block by block: a regular expression
takes 1 ns per byte, methods of bytes on whole blocks take 0.2 ns."""

_BLOCK: Final = 1 << 15
"""Bytes of such a block. Each is scanned several times, so it should fit the level 1 cache."""

_SPACE = re.compile(rb"[ \t\n\r]{0,%d}" % _STEP).match
# 2^64 has 20 digits; one more is enough to see that a number has more.
_UINT = re.compile(rb"(?:0|[1-9][0-9]{0,19})(?![0-9.eE])|[1-9][0-9]{20}").match
_DIGITS = rb"[0-9]{1,%d}" % (MAX_NUMBER + 1)
_NUMBER = matcher(rb"-?(?:0|(?=[1-9])%b)(?:\.%b)?(?:[eE][+-]?%b)?" % ((_DIGITS,) * 3))
# The re module keeps about 120 bytes per repetition of a group: a string of 50 million escapes must be
# scanned in bounded steps.
_RUN = rb'[^"\\\x00-\x1f]{0,%d}' % _STEP
_STRING_PART = matcher(rb"%b(?:\\.%b){0,1000}" % (_RUN, _RUN), re.DOTALL)
_PLAIN = re.compile(rb'"%b"' % _RUN).match
# Keys and arrays as programs write them are matched in one step, other spellings by several methods.
_PLAIN_STRING = rb'[ \t\n\r]{0,8}"([^"\\\x00-\x1f\x80-\xff]{0,200})"[ \t\n\r]{0,8}'
_PLAIN_KEY = re.compile(_PLAIN_STRING + b":").match
_PLAIN_UINT = rb"(?:0|[1-9][0-9]{0,18})"
_PLAIN_UINTS = re.compile(
    rb"[ \t\n\r]{0,8}\[(%b(?:, ?%b){0,7})\]" % (_PLAIN_UINT, _PLAIN_UINT)
).match
_CONTROLS: Final = tuple(range(32))
_CONTROL_TEXTS: Final = tuple(map(chr, _CONTROLS))
_SPACES: Final = " \t\n\r"
_TEXTS_STEP: Final = 1 << 17
"""Bytes of members whose values are texts that are read at a time."""
_BRACES: Final = 8
"""Braces within strings, in such a step, after which members are read one by one."""
_PIECE: Final = 1 << 18
# Ends before an escape other than \u, which might be the second half of a surrogate pair.
_CUT = matcher(rb"[^\\](?=\\[^u])", search=True)
_SURROGATE = matcher("[\ud800-\udfff]", search=True)
_LITERAL = matcher(rb"true|false|null")

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
    """The position after all blocks, from `position`, of which `alike` accepts at least one byte.

    No block begins after `last`. `alike` returns how many bytes of a block it accepts.
    """
    while position <= last:
        block = text[position : position + _BLOCK]
        taken = alike(block) if len(block) == _BLOCK else 0
        if not taken:
            break
        position += taken
    return position


def _space_in(block: bytes) -> int:
    """The length of `block` if it is all white space, else 0."""
    return len(block) if block.isspace() and b"\v" not in block and b"\f" not in block else 0


def _string_in(block: bytes) -> int:
    """How many bytes of `block` are the inside of a string; 0 if the string ends in it or has an error."""
    if True in map(block.__contains__, _CONTROLS):
        return 0
    if b'"' in block and b'"' in block.replace(b"\\\\", b"").replace(b'\\"', b""):
        return 0
    # An odd number of backslashes at the end begins an escape that the next block completes.
    return len(block) - (len(block) - len(block.rstrip(b"\\"))) % 2


def _pieces(text: bytes, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Spans of a string's contents that can be decoded separately, which needs less memory."""
    while end - begin > _PIECE and (cut := _CUT(text, begin + _PIECE, end)):
        yield begin, cut.end()
        begin = cut.end()
    yield begin, end


class JSONError(ValueError):
    """The text is not JSON, or its next value is not of the expected type.

    Attributes:
        position: Byte offset in the text.
        kind: ``"syntax"``; ``"limit"`` if a limit of this reader is exceeded; ``"duplicate-key"`` if a
            key is repeated.
    """

    def __init__(self, message: str, position: int, *, kind: Kind = "syntax") -> None:
        super().__init__(message)
        self.position = position
        self.kind: Kind = kind


class Reader:
    """A cursor over JSON text.

    Every method skips white space, consumes the value that it returns, and raises `JSONError` if the text
    has something else. Only the returned values take memory.

    Args:
        text: UTF-8, without a byte order mark.
        position: Byte offset to begin at.
        unique: Whether `skip` refuses keys that are repeated within one object.

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
        """The next byte that is not white space, without consuming it; empty at the end of the text."""
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
        """The type of the next value, in words for a message."""
        found = self.peek()
        return _KINDS.get(found, f"byte 0x{found.hex()}")

    def fail(self, expected: str) -> JSONError:
        """The error for text that continues with something other than `expected`."""
        return JSONError(f"expected {expected}, found {self.kind()}", self.position)

    def take(self, char: bytes) -> None:
        """Consume the byte `char`."""
        if self.peek() != char:
            raise self.fail(f"`{char.decode()}`")
        self.position += 1

    def end(self) -> None:
        """Check that only white space follows."""
        if self.peek():
            raise JSONError(f"trailing characters: {self.kind()}", self.position)

    def string(self, expected: str = "a string", *, limit: int | None = None) -> str:
        """Read a string and decode it (RFC 8259 section 7); lone surrogates are an error (section 8.2).

        Args:
            expected: What the caller expects, in words for the message.
            limit: Maximum length in bytes within the text.
        """
        if self.peek() != b'"':
            raise self.fail(expected)
        begin, end = self.position, self._string_end(limit)
        if limit is not None and end - begin > limit:
            raise JSONError(f"value longer than {limit} bytes", begin, kind="limit")
        escaped = self.text.find(b"\\", begin, end) >= 0
        try:
            # A memoryview avoids copying a long string, which takes as long as decoding it.
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
        """One past the closing quote of the string at the cursor; any position past `limit` if too long."""
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
        """Read an integer from 0 to 2^64-1 without sign, fraction or exponent."""
        self.peek()
        match = _UINT(self.text, self.position)
        if match is None:
            raise self.fail(expected)
        # 2^64 has 20 digits. Longer text must not reach int(), whose time is quadratic in its length.
        if match.end() - self.position > 20 or (value := int(match[0])) > MAX_UINT:
            raise JSONError("integer exceeds 2^64-1", self.position)
        self.position = match.end()
        return value

    def members(self, expected: str = "an object") -> Iterator[tuple[str, int]]:
        """Iterate over the members of an object: (key, position of the key).

        The caller must consume the value of each member before it asks for the next member.
        """
        if self.peek() != b"{":
            raise self.fail(expected)
        self.position += 1
        if self.peek() == b"}":
            self.position += 1
            return
        yield from self.more_members()

    def more_members(self) -> Iterator[tuple[str, int]]:
        """The remaining members of an object, if the cursor is at a key."""
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

    def texts(self, expected: str, value: str) -> Iterator[tuple[list[str], list[str], int]]:
        """Iterate over an object whose values are all strings, many members at a time.

        0.3 us a member; `members` and `string` take 4. Keys may repeat.

        Args:
            expected: What the caller expects, in words for the message.
            value: What each value should be, in words for the message.

        Yields:
            Keys, their values, and the position of the first key.
        """
        unusual = 0  # the end of text that has to be read member by member
        for key, at in self.members(expected):
            yield [key], [self.string(value)], at
            while self.position >= unusual:
                begin = self.position
                pairs = self._plain_texts()
                if pairs is None:
                    unusual = begin + _TEXTS_STEP
                    break
                yield (*pairs, self.text.index(b'"', begin))

    def _plain_texts(self) -> tuple[list[str], list[str]] | None:
        """Members of an object of texts from the comma at the cursor; None if some may have escapes.

        Where no string has an escape, every quote opens or closes one: text that is split at its quotes
        has the strings at all odd places, and between them must be commas and colons in turn.
        """
        step = self.text[self.position : self.position + _TEXTS_STEP]
        end = step.find(b"}")
        for _ in range(_BRACES):
            if end < 0 or step.count(b'"', 0, end) % 2 == 0:
                break
            end = step.find(b"}", end + 1)  # that one is in a string
        else:
            return None
        # The rest of the last member is read with the next step.
        last = step.rfind(b'"', 0, end) if end >= 0 else step.rfind(b'",')
        members = step[: last + 1]
        if last < 0 or b"\\" in members:
            return None
        try:
            pieces = members.decode().split('"')
        except UnicodeDecodeError:
            return None
        strings = pieces[1::2]
        joined = "".join(strings)
        if (
            len(pieces) % 4 != 1
            or pieces[-1]
            or {piece.strip(_SPACES) for piece in set(pieces[:-1:4])} != {","}
            or {piece.strip(_SPACES) for piece in set(pieces[2::4])} != {":"}
            or any(map(joined.__contains__, _CONTROL_TEXTS))
        ):
            return None
        self.position += len(members)
        return strings[::2], strings[1::2]

    def integers(self, expected: str = "an array of unsigned integers") -> Iterator[int]:
        """Iterate over an array of unsigned integers."""
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
        """Check one value of any type without building it.

        Args:
            depth: Number of objects and arrays that enclose the value.
            limit: Maximum length of the value in bytes.

        Raises:
            JSONError: It is not JSON; with kind ``"duplicate-key"``, an object repeats a key; with kind
                ``"limit"``, it is nested deeper than `MAX_DEPTH` or longer than `limit`.
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
        """Consume a scalar, an empty container, or the opening of another container; True for the last."""
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
                what = f"number longer than {MAX_NUMBER} digits"
                raise JSONError(what, self.position, kind="limit")
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
