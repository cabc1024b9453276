"""Recognise by its first bytes what a file is that is not safetensors. For error messages only."""

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

_SIGNATURES: Final[tuple[tuple[bytes, str], ...]] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer, not the file that it points to: run `git lfs pull`",
    ),
    (
        b"PK\x03\x04",
        "a zip archive, probably a PyTorch checkpoint (.pt, .bin): "
        "`safeweights convert` turns it into safetensors without executing it",
    ),
    (b"age-encryption.org/", ENCRYPTED),
    (b"-----BEGIN AGE ENCRYPTED FILE-----", ENCRYPTED),
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, probably Keras weights"),
    (b"\x93NUMPY", "a NumPy .npy array"),
    (b"\x1f\x8b", "gzip-compressed: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstandard-compressed: decompress it first"),
    (b"\xfd7zXZ\x00", "xz-compressed: decompress it first"),
    (b"BZh", "bzip2-compressed: decompress it first"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x7fELF", "an ELF program"),
    (b"%PDF-", "a PDF document"),
    (b"-----BEGIN ", "PEM text: a key or a certificate"),
)
# The error message of S3 and compatible services; some begin it with a byte order mark.
_STORAGE_ERROR = matcher(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<Error[\s>]")
_HTML = matcher(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|\?xml)", re.IGNORECASE)
# Eight printable bytes are no length of a header that any file could have. UTF-8 may be cut at the end.
_TEXT = matcher(r"[^\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]{8,}\ufffd?\Z")
_ERROR_REPLY = matcher(r"""\{\s*"(?:error|message|detail|statusCode|status)\w*"\s*:""")
# A pickle of protocol 2 to 5 begins with the opcode PROTO, and so does a legacy PyTorch file.
_PICKLE = matcher(rb"\x80[\x02-\x05]")
_TAR = matcher(rb".{257}ustar[ \0]", re.DOTALL)
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
    if _PICKLE(head):
        return (
            "a Python pickle, probably a PyTorch checkpoint: "
            "`safeweights convert` turns it into safetensors without executing it"
        )
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if _TAR(head):
        return (
            "a tar archive: unpack it, or if it is a very old PyTorch checkpoint "
            "`safeweights convert` it"
        )
    return _identify_text(head)


def _identify_text(head: bytes) -> str | None:
    """What a text is, with its beginning: a download that failed leaves the server's reply."""
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
