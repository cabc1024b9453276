"""What else a file may be: looks at its bytes, for the scanner, which asks every reader that takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..checkpoint import SafetensorsFile
from ..errors import SafetensorError
from ..format.kinds import recognize
from ..storage.windows import read_bytes

if TYPE_CHECKING:
    from ..storage import Source

__all__ = ["PICKLE_STARTS", "is_safetensors", "is_text", "occurrences"]

_TEXT_MAX: Final = 1 << 20
PICKLE_STARTS: Final = tuple(
    code.encode("latin-1") for code in "\x80\x95(N\x88\x89IJKMLFGSTUVXBC)]}cP"
) + tuple(bytes([code]) for code in (*range(0x82, 0x85), *range(0x8A, 0x90), 0x96, 0x97))
"""The opcodes that need nothing on the stack and nothing in the memo."""


def is_safetensors(source: Source) -> bool:
    """Whether a file is a valid safetensors file."""
    if source.size < 10 or read_bytes(source, 8, 1) != b"{":
        return False
    try:
        SafetensorsFile(source)
    except SafetensorError:
        return False
    return True


def is_text(source: Source) -> bool:
    """Whether all of a file is text, and its name none of code or settings."""
    if source.size > _TEXT_MAX:
        return False
    data = read_bytes(source, 0, source.size)
    kind = recognize(data, source.size, source.name.rpartition("!")[2])
    return kind is not None and kind.id == "text"


def occurrences(source: Source, needle: bytes) -> int:
    """How often `needle` stands in a file."""
    block, found = 1 << 20, 0
    for offset in range(0, source.size, block):
        count = min(block + len(needle) - 1, source.size - offset)
        found += read_bytes(source, offset, count).count(needle)
    return found
