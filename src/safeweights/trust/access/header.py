"""The header of an age v1 file (c2sp.org/age, "Header"): stanzas that wrap the file key, and a MAC.

The grammar is that of the specification, with nothing added: canonical base64 without padding, bodies in
lines of 64 columns that end with a shorter one, single spaces, LF. Sizes are bounded before anything is
parsed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ...errors import FormatError
from ...storage.encrypted import derive_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...storage import Source

__all__ = [
    "MAGIC", "MAX_HEADER", "Header", "Stanza", "build_header", "decode64", "encode64", "parse_header",
    "read_header",
]  # fmt: skip

MAGIC: Final = b"age-encryption.org/"
"""How every version of the format begins."""

MAX_HEADER: Final = 1 << 20
"""Bytes of a header; 600 recipients of the longest type."""

MAX_STANZAS: Final = 1000
MAX_STANZA: Final = 1 << 14
_VERSION: Final = MAGIC + b"v1\n"
_COLUMNS: Final = 64
_FIRST_READ: Final = 1 << 12
_END: Final = b"\n--- "
_MAC_LINE: Final = re.compile(rb"--- ([A-Za-z0-9+/]{43})\n")
_ARGUMENTS: Final = re.compile(rb"->(?: [!-~]+)+")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]*")


class Stanza(NamedTuple):
    """The file key, wrapped for one recipient. Nothing in it is secret.

    Attributes:
        type: The recipient type, such as ``X25519``.
        arguments: What follows the type on its line.
        body: The wrapped file key.
    """

    type: str
    arguments: tuple[str, ...]
    body: bytes


class Header(NamedTuple):
    """The header of a file.

    Attributes:
        stanzas: In the order of the file.
        size: In bytes: the offset of the payload.
        text: Its bytes up to and including ``---``, which the MAC covers.
        mac: The MAC.
        path: The file, for messages.
    """

    stanzas: tuple[Stanza, ...]
    size: int
    text: bytes
    mac: bytes
    path: str

    def check(self, file_key: bytes) -> None:
        """Check the MAC: that the header is as the author of the file key wrote it.

        Raises:
            FormatError: ``age-mac``.
        """
        if not hmac.compare_digest(_mac(file_key, self.text), self.mac):
            raise FormatError(
                "the header of the encrypted file was changed: its MAC does not match the file key",
                rule="age-mac", path=self.path,
            )  # fmt: skip


def encode64(data: bytes) -> str:
    """Base64 without padding."""
    return base64.b64encode(data).rstrip(b"=").decode()


def decode64(text: str | bytes) -> bytes | None:
    r"""The data in base64 without padding; None unless it is the one canonical encoding of that data.

    >>> decode64("AQ"), decode64("AR"), decode64("AQ==")
    (b'\x01', None, None)
    """
    data = text.encode() if isinstance(text, str) else text
    if not _BASE64.fullmatch(data) or len(data) % 4 == 1:
        return None
    try:
        found = base64.b64decode(data + b"=" * (-len(data) % 4))
    except binascii.Error:
        return None
    return found if base64.b64encode(found).rstrip(b"=") == data else None


def build_header(stanzas: Sequence[Stanza], file_key: bytes) -> bytes:
    """The header that wraps `file_key` in `stanzas`."""
    lines = [_VERSION]
    for stanza in stanzas:
        lines.append(f"-> {' '.join((stanza.type, *stanza.arguments))}\n".encode())
        body = encode64(stanza.body).encode()
        # A body that fills its last line is followed by an empty one.
        lines += [body[at : at + _COLUMNS] + b"\n" for at in range(0, len(body) + 1, _COLUMNS)]
    text = b"".join([*lines, b"---"])
    return text + b" " + encode64(_mac(file_key, text)).encode() + b"\n"


def _mac(file_key: bytes, text: bytes) -> bytes:
    return hmac.new(derive_key(file_key, b"", b"header"), text, hashlib.sha256).digest()


def read_header(source: Source) -> Header:
    """The header of a file; no more of the file is read than `MAX_HEADER` bytes, and usually 4 KiB.

    Raises:
        FormatError: ``age-header``: it is malformed, or no age file.
    """
    length = min(_FIRST_READ, source.size)
    while True:
        data = source.read(0, length)
        end = data.find(_END)
        whole = end >= 0 and b"\n" in data[end + 1 :]
        if whole or length == min(MAX_HEADER, source.size) or not data.startswith(_VERSION):
            return parse_header(data, source.name)
        length = min(4 * length, MAX_HEADER, source.size)


def parse_header(data: bytes, path: str) -> Header:
    """The header that `data` begins with.

    Raises:
        FormatError: ``age-header``.
    """
    if not data.startswith(_VERSION):
        raise _malformed(_wrong_version(data), path, 0)
    end = data.find(_END, len(_VERSION) - 1) + 1
    match = _MAC_LINE.match(data, end) if 0 < end <= MAX_HEADER else None
    mac = decode64(match[1]) if match else None
    if match is None or mac is None:
        problem = "its MAC line is missing or malformed, or the header is too long"
        raise _malformed(problem, path, end)
    stanzas = _parse_stanzas(data[:end], path)
    return Header(stanzas, match.end(), data[: end + 3], mac, path)


def _wrong_version(data: bytes) -> str:
    if not data.startswith(MAGIC):
        return "this is not an age file"
    version = data[len(MAGIC) : len(MAGIC) + 20].split(b"\n")[0].decode("ascii", "replace")
    return "only version v1 of the format is known, not " + ascii(version)


def _parse_stanzas(data: bytes, path: str) -> tuple[Stanza, ...]:
    """The stanzas between the version line and the end of `data`."""
    lines = data[len(_VERSION) :].split(b"\n")
    lines.pop()  # what is after the last line feed
    found: list[Stanza] = []
    offset, number = len(_VERSION), 0
    while number < len(lines):
        first = number
        while number < len(lines) and (number == first or len(lines[number]) == _COLUMNS):
            number += 1
        piece = lines[first : number + 1]
        number += 1
        length = sum(len(line) + 1 for line in piece)
        found.append(_parse_stanza(piece, length, path, offset))
        if len(found) > MAX_STANZAS:
            raise _malformed(f"it has more than {MAX_STANZAS} recipients", path, offset)
        offset += length
    if not found:
        raise _malformed("it has no recipient", path, offset)
    return tuple(found)


def _parse_stanza(lines: list[bytes], length: int, path: str, offset: int) -> Stanza:
    if length > MAX_STANZA:
        raise _malformed(f"a recipient takes more than {MAX_STANZA} bytes", path, offset)
    if not _ARGUMENTS.fullmatch(lines[0]):
        problem = "a recipient does not begin with `->` and arguments separated by single spaces"
        raise _malformed(problem, path, offset)
    # A line of 64 columns at the end means that the shorter one that must follow is missing.
    if len(lines) == 1 or len(lines[-1]) >= _COLUMNS:
        raise _malformed("the body of a recipient does not end with a short line", path, offset)
    parts = [decode64(line) for line in lines[1:]]
    if None in parts:
        raise _malformed("the body of a recipient is not canonical base64", path, offset)
    kind, *arguments = lines[0].decode().split(" ")[1:]
    return Stanza(kind, tuple(arguments), b"".join(part for part in parts if part))


def _malformed(problem: str, path: str, offset: int) -> FormatError:
    return FormatError(
        f"the header of the encrypted file is malformed: {problem}",
        rule="age-header", path=path, offset=offset,
    )  # fmt: skip
