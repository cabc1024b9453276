"""ASCII armor: an age file as text, in the strict PEM of RFC 7468, section 3.

Only for small files: an armored file is decoded as a whole. White space is allowed before and after, and
CRLF in place of LF; anything else that the encoder would not write is refused.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from ...errors import FormatError

__all__ = ["MAX_ARMORED", "armored", "dearmored", "is_armored"]

MAX_ARMORED: Final = 1 << 26
"""Bytes of text that are decoded."""

_BEGIN: Final = b"-----BEGIN AGE ENCRYPTED FILE-----"
_END: Final = b"-----END AGE ENCRYPTED FILE-----"
_SPACE: Final = b" \t\r\n"
_COLUMNS: Final = 64


def is_armored(head: bytes) -> bool:
    r"""Whether a file that begins with `head` is meant to be an armored age file.

    >>> is_armored(b"\n-----BEGIN AGE ENCRYPTED FILE-----\n")
    True
    """
    return head.lstrip(_SPACE).startswith(_BEGIN)


def armored(data: bytes) -> bytes:
    """The text of a file."""
    text = base64.b64encode(data)
    lines = [text[at : at + _COLUMNS] for at in range(0, len(text), _COLUMNS)]
    return b"\n".join([_BEGIN, *lines, _END, b""])


def dearmored(text: bytes, path: str) -> bytes:
    """The file in `text`.

    Raises:
        FormatError: ``age-armor``.
    """
    if len(text) > MAX_ARMORED:
        raise _malformed(f"longer than {MAX_ARMORED} bytes; write it without armor", path)
    lines = text.strip(_SPACE).split(b"\n")
    lines = [line.removesuffix(b"\r") for line in lines[:-1]] + lines[-1:]
    if len(lines) < 2 or lines[0] != _BEGIN or lines[-1] != _END:
        raise _malformed("its first or last line is not that of an armored file", path)
    body = lines[1:-1]
    if any(len(line) != _COLUMNS for line in body[:-1]) or (body and not 0 < len(body[-1]) <= 64):
        raise _malformed("its lines do not have 64 columns", path)
    joined = b"".join(body)
    try:
        data = base64.b64decode(joined, validate=True)
    except binascii.Error:
        raise _malformed("it is not base64", path) from None
    if base64.b64encode(data) != joined:
        raise _malformed("its base64 is not canonical", path)
    return data


def _malformed(problem: str, path: str) -> FormatError:
    return FormatError(f"the ASCII armor is malformed: {problem}", rule="age-armor", path=path)
