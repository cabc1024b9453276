"""Zip archives written in one pass: members are stored, and their digests follow them.

APPNOTE.TXT 6.3.10: local header with a data descriptor (section 4.4.4, bit 3), ZIP64 where sizes or offsets
need it. The data of every member begins at a multiple of 64 bytes, so that it can be mapped.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ...storage import Buffer

__all__ = ["Member", "archive"]

_ALIGN: Final = 64
_MAX32: Final = 0xFFFFFFFF
_FLAGS: Final = 1 << 3 | 1 << 11  # a data descriptor follows; names are UTF-8
_DATE: Final = (1 << 5 | 1) | 0  # 1 January 1980: equal input gives equal bytes
_PADDING: Final = 0x4246  # "FB", the field that PyTorch pads with


class Member(NamedTuple):
    """A member: its name, its size, and what makes its bytes."""

    name: str
    size: int
    chunks: Callable[[], Iterable[Buffer]]


class _Placed(NamedTuple):
    member: Member
    offset: int
    head: bytes
    large: bool

    @property
    def end(self) -> int:
        """Where the descriptor ends that follows the data."""
        return self.offset + len(self.head) + self.member.size + (24 if self.large else 16)


def archive(members: Sequence[Member]) -> tuple[int, Iterator[Buffer]]:
    """Size and contents of an archive of `members`, in that order."""
    placed: list[_Placed] = []
    position = 0
    for member in members:
        placed.append(_placed(member, position))
        position = placed[-1].end
    directory = sum(len(_entry(each, 0)) for each in placed)
    size = position + directory + len(_ending(len(placed), directory, position))
    return size, _contents(placed, position)


def _placed(member: Member, offset: int) -> _Placed:
    large = member.size >= _MAX32
    name = member.name.encode()
    extra = struct.pack("<HHQQ", 1, 16, 0, 0) if large else b""
    fixed = offset + 30 + len(name) + len(extra) + 4
    extra += struct.pack("<HH", _PADDING, -fixed % _ALIGN) + bytes(-fixed % _ALIGN)
    sizes = (_MAX32, _MAX32) if large else (0, 0)
    version = 45 if large else 20
    fields = (b"PK\3\4", version, _FLAGS, 0, 0, _DATE, 0, *sizes, len(name), len(extra))
    head = struct.pack("<4s5H3I2H", *fields) + name + extra
    return _Placed(member, offset, head, large)


def _entry(placed: _Placed, crc: int) -> bytes:
    """The member's entry in the central directory."""
    member, name = placed.member, placed.member.name.encode()
    far = placed.offset >= _MAX32
    wide = [member.size, member.size] if placed.large else []
    wide += [placed.offset] if far else []
    extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    size = _MAX32 if placed.large else member.size
    version = 45 if wide else 20
    return (
        struct.pack(
            "<4s6H3I5H2I",
            b"PK\1\2", version, version, _FLAGS, 0, 0, _DATE, crc, size, size, len(name), len(extra),
            0, 0, 0, 0, _MAX32 if far else placed.offset,
        )
        + name
        + extra
    )  # fmt: skip


def _ending(count: int, directory: int, offset: int) -> bytes:
    """What ends the archive, after a directory of so many bytes at `offset`."""
    end = b""
    if count >= 0xFFFF or offset + directory >= _MAX32:
        end = struct.pack(
            "<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, directory, offset
        ) + struct.pack("<4sIQI", b"PK\6\7", 0, offset + directory, 1)
    number = min(count, 0xFFFF)
    sizes = min(directory, _MAX32), min(offset, _MAX32)
    return end + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, number, number, *sizes, 0)


def _contents(placed: Sequence[_Placed], end: int) -> Iterator[Buffer]:
    entries = []
    for each in placed:
        yield each.head
        crc = 0
        for chunk in each.member.chunks():
            crc = zlib.crc32(chunk, crc)
            yield chunk
        layout = "<4sIQQ" if each.large else "<4sIII"
        yield struct.pack(layout, b"PK\7\x08", crc, each.member.size, each.member.size)
        entries.append(_entry(each, crc))
    directory = b"".join(entries)
    yield directory
    yield _ending(len(placed), len(directory), end)
