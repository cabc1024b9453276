"""Say in a message what a file is that is not safetensors, by its first bytes.

`kinds` is the table of what there is; this adds what often comes in place of a file: a reply of a server, a
pointer, a download that did not finish.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import quote
from ..lazy import matcher

__all__ = ["ENCRYPTED", "HEAD", "identify"]

HEAD: Final = 512
"""Number of bytes that `identify` needs."""

_REPLY_MAX: Final = 200
"""Bytes below which a text is taken for the reply of a server."""

ENCRYPTED: Final = "an encrypted file (age): say who opens it, with identity= or the option -i"

_CONVERT: Final = "`safeweights convert` turns it into safetensors without executing it"
_WORDS: Final = {
    "age": ENCRYPTED,
    "lfs": "a git-lfs pointer, not the file that it points to: run `git lfs pull`",
    "zip": f"a zip archive, probably a PyTorch checkpoint (.pt, .bin): {_CONVERT}",
    "pickle": f"a Python pickle, probably a PyTorch checkpoint: {_CONVERT}",
    "tar": "a tar archive: unpack it, or if it is a very old PyTorch checkpoint "
    "`safeweights convert` it",
    "gzip": "gzip-compressed: decompress it first",
    "zstd": "zstandard-compressed: decompress it first",
    "xz": "xz-compressed: decompress it first",
    "bzip2": "bzip2-compressed: decompress it first",
}
"""What to say of the kinds that are often given by mistake."""
_PEM: Final = b"-----BEGIN "
# The error message of S3 and compatible services; some begin it with a byte order mark.
_STORAGE_ERROR = matcher(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<Error[\s>]")
_HTML = matcher(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|\?xml)", re.IGNORECASE)
# Eight printable bytes are no length of a header that any file could have. UTF-8 may be cut at the end.
_TEXT = matcher(r"[^\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]{8,}\ufffd?\Z")
_ERROR_REPLY = matcher(r"""\{\s*"(?:error|message|detail|statusCode|status)\w*"\s*:""")
# The length of a header of less than 4 GiB, and the header's first character.
_SAFETENSORS = matcher(rb".{4}\0{4}\{", re.DOTALL)


def identify(head: bytes) -> str | None:
    """Name the format of a file whose first bytes are `head`; None if it is not recognised.

    The result is None for safetensors files too, even damaged ones: their first bytes are a number, which
    may happen to equal the signature of a pickle or of gzip.

    >>> identify(b"version https://git-lfs.github.com/spec/v1")
    'a git-lfs pointer, not the file that it points to: run `git lfs pull`'
    """
    if not head.strip(b"\0"):
        found = "nothing but zero bytes" if head else "an empty file"
        return f"{found}, as a download or copy leaves it that did not finish"
    if _SAFETENSORS(head):
        return None
    if _STORAGE_ERROR(head):
        return "an error message of a storage service (XML): the download was refused"
    if _HTML(head):
        return "an HTML page: the download returned a web page instead of the file"
    from .kinds import recognize  # only for an error: it is a large table

    kind = recognize(head, len(head))
    if kind is None or kind.id == "text":
        return _identify_text(head)
    return _WORDS.get(kind.id, kind.description)


def _identify_text(head: bytes) -> str | None:
    """What a text is, with its beginning: a download that failed leaves the server's reply."""
    if head.startswith(_PEM):
        return "PEM text: a key or a certificate"
    text = head.decode("utf-8", "replace").lstrip("\ufeff")
    if not _TEXT(text):
        return "JSON text" if head.startswith(b"{") else None
    reply = _ERROR_REPLY(text)
    if text.startswith("{") and not reply:
        return "JSON text, perhaps an index or a configuration"
    shown = quote(" ".join(text[:200].split()), 80)
    if reply or len(head) < _REPLY_MAX:
        return f"a text file with {shown}: perhaps a server's reply to a download that failed"
    return f"a text file that begins with {shown}"
