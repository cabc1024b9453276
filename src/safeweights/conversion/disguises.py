"""Whether a valid safetensors file may be a file of another format too: a quick look, without readers.

Nearly every file passes it, so that checking one costs neither NumPy nor the readers of other formats. It
errs on the side of yes; `scanning.scan_other_readers` then says what is really so.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ..format.header import PREFIX

if TYPE_CHECKING:
    from ..storage import Source

__all__ = ["hdf5_start", "may_be_another_format"]

_TAIL: Final = 22 + 65_535
_ALONE: Final = frozenset(b"(]})N\x88\x89\x8f\x97")
"""Opcodes without an argument that a pickle may begin with."""
_SIZES: Final = {ord("K"): 1, ord("M"): 2}
"""Opcodes whose argument of so many bytes may end within the prefix."""
_WITH_ARGUMENTS: Final = frozenset(b"XTBUCJGIFLSVicP\x82\x83\x84\x8a\x8b\x8c\x8d\x8e\x95\x96\x80")
"""Opcodes whose argument may reach past the prefix, or that find something in a registry (EXT1 ...)."""
_CHECKSUM = re.compile(rb"[0-7 \0]{8}|\x80.{7}", re.DOTALL).fullmatch
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_TABLE: Final = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"


def may_be_another_format(source: Source, head: bytes) -> bool:
    """Whether a reader of pickles, zip or tar archives, HDF5 or TensorFlow tables may accept a file.

    Cost: the last 64 KiB, and eight bytes at each power of two from 512 on.

    Args:
        source: A valid safetensors file.
        head: Its first bytes, 512 or more if it has them.
    """
    size = min(source.size, _TAIL)
    tail = source.read(source.size - size, size)
    if b"PK\x05\x06" in tail or tail.endswith(_TABLE) or _may_be_pickle(head[:PREFIX]):
        return True
    if len(head) >= 512 and _CHECKSUM(head[148:156]):
        return True
    return hdf5_start(source) is not None


def hdf5_start(source: Source) -> int | None:
    """Where HDF5's readers find a file: they look at 0, 512, 1024 and so on, doubling."""
    offset = 0
    while offset + len(_HDF5) <= source.size:
        if source.read(offset, len(_HDF5)) == _HDF5:
            return offset
        offset = offset * 2 or 512
    return None


def _may_be_pickle(prefix: bytes) -> bool:
    """Whether an unpickler may get past the length of a header, four of whose bytes are zero.

    Zero is no opcode, so one of those before must take the zeros as its argument.
    """
    at = 0
    while at < len(prefix):
        code = prefix[at]
        if code in _WITH_ARGUMENTS:
            return True
        if code in _ALONE:
            at += 1
        elif code in _SIZES:
            at += 1 + _SIZES[code]
        else:
            # Any other opcode needs something on the stack or in the memo; what a prefix of eight bytes
            # can put there is not worth following.
            return at > 0 and code != 0
    return True
