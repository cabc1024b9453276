"""What a file that is not safetensors really is, from its first bytes. For messages only."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["HEAD", "identify"]

HEAD: Final = 512
"""Bytes of the beginning that `identify` looks at."""

_SIGNATURES: Final[tuple[tuple[bytes, str], ...]] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer, not the file it points to: run `git lfs pull`",
    ),
    (
        b"PK\x03\x04",
        "a zip archive, probably a PyTorch checkpoint (.pt, .bin): "
        "`safeweights convert` turns it into safetensors without executing it",
    ),
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, probably Keras weights"),
    (b"\x93NUMPY", "a NumPy .npy array"),
    (b"\x1f\x8b", "gzip-compressed: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstandard-compressed: decompress it first"),
    (b"\xfd7zXZ\x00", "xz-compressed: decompress it first"),
    (b"BZh", "bzip2-compressed: decompress it first"),
    (b"\x7fELF", "an ELF program"),
    (b"%PDF-", "a PDF document"),
    (b"-----BEGIN ", "PEM text: a key or a certificate"),
    (b"{", "JSON text, perhaps an index or a configuration"),
)
_HTML = re.compile(rb"\s*<(?:!doctype|html|head|\?xml)", re.IGNORECASE).match
_TEXT = re.compile(rb"[\t\n\r -~]{16,}").fullmatch
# A pickle of protocol 2 to 5 begins with PROTO; legacy PyTorch files with that and a LONG1.
_PICKLE = re.compile(rb"\x80[\x02-\x05]").match


def identify(head: bytes) -> str | None:
    """Name the format that a file beginning with `head` is in; None for what is not recognised.

    Safetensors files themselves are not recognised: their first bytes are a number.

    >>> identify(b"version https://git-lfs.github.com/spec/v1")
    'a git-lfs pointer, not the file it points to: run `git lfs pull`'
    """
    if not head.strip(b"\0"):
        return "nothing but zero bytes" if head else "an empty file"
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
    return "a text file" if _TEXT(head) else None
