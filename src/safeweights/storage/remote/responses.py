"""What a server's answer says about a range of a file: pure functions of its headers.

Sources of the rules: RFC 9110 section 8.8 (validators), 14 (range requests), 10.2.3 (Retry-After).
"""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple, Protocol

__all__ = [
    "ContentRange",
    "Headers",
    "Version",
    "content_length",
    "parse_content_range",
    "retry_after",
]

_BLANKS: Final = " \t"
"""What may stand around the value of a field (RFC 9110, section 5.5)."""

_CONTENT_RANGE: Final = re.compile(r"bytes (?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19})")
_LENGTH: Final = re.compile(r"[0-9]{1,19}")
_ETAG: Final = re.compile(r'(W/)?"[\x21\x23-\x7e\x80-\xff]{0,1024}"')


class Headers(Protocol):
    """The fields of a response, whatever the case of their names; as `email.message.Message` has them."""

    def get(self, name: str, /) -> str | None:
        """The value of a field; None if it is missing."""


class ContentRange(NamedTuple):
    """The field ``Content-Range``: bytes `begin` to `end` (exclusive) of `size`; None if there are none."""

    begin: int | None
    end: int | None
    size: int


def parse_content_range(value: str | None) -> ContentRange | None:
    """The range that a response has; None if the field is missing, malformed, or leaves the size open.

    >>> parse_content_range("bytes 0-99/1000")
    ContentRange(begin=0, end=100, size=1000)
    >>> parse_content_range("bytes 5-4/10"), parse_content_range("bytes 0-99/*")
    (None, None)
    """
    match = _CONTENT_RANGE.fullmatch(value.strip(_BLANKS)) if value else None
    if match is None:
        return None
    size = int(match[3])
    if match[1] is None:
        return ContentRange(None, None, size)
    begin, end = int(match[1]), int(match[2]) + 1
    return ContentRange(begin, end, size) if begin < end <= size else None


def content_length(headers: Headers) -> int | None:
    """The field ``Content-Length``; None if it is missing, or is not one number."""
    value = (headers.get("Content-Length") or "").strip(_BLANKS)
    return int(value) if _LENGTH.fullmatch(value) else None


class Version(NamedTuple):
    """What tells one version of a file from another.

    Attributes:
        etag: The entity tag, with its quotes, and ``W/`` if it is weak; None if there is none.
        modified: The field ``Last-Modified``, only where there is no entity tag.
    """

    etag: str | None = None
    modified: str | None = None

    @classmethod
    def of(cls, headers: Headers) -> Version:
        """The version of a response."""
        etag = headers.get("ETag")
        if etag and _ETAG.fullmatch(etag):
            return cls(etag)
        return cls(None, headers.get("Last-Modified"))

    @property
    def text(self) -> str | None:
        """As a `Source.version`."""
        return self.etag or self.modified

    @property
    def condition(self) -> dict[str, str]:
        """Request fields that make the server refuse another version, as far as it can tell.

        A weak tag never matches If-Match, so that it cannot be sent (RFC 9110, section 13.1.1).
        """
        if self.etag is None or self.etag.startswith("W/"):
            return {}
        return {"If-Match": self.etag}

    def differs(self, other: Version) -> bool:
        """Whether a response of version `other` may have other bytes; weak tags are compared, too."""
        return self != other


def retry_after(headers: Headers) -> float | None:
    """Seconds that the server asks to wait; None if it does not say. Numbers and dates are understood."""
    value = (headers.get("Retry-After") or "").strip(_BLANKS)
    if re.fullmatch("[0-9]{1,9}", value):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    try:
        return max(0.0, when.timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
