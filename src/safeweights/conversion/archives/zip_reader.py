"""A zip reader that refuses what two readers could see differently.

A zip file says everything twice, and readers disagree on which copy to believe: PyTorch's miniz
finds the first of two equal names, Python's zipfile the last; one scans for the end record, another
takes the last signature; one trusts the local header, another the directory. Scanners that read
with one and users who load with the other were fooled by each of these. Here all copies must agree,
and the members must tile the file from byte 0 to the directory without a gap or an overlap.

Also refused: encryption, symbolic links, other methods than stored and deflated, several disks,
names that are absolute, traverse, or differ only in case (miniz ignores case), alternative name
fields, and inflation past `Limits.inflation_ratio`.

Source of the rules: PKWARE APPNOTE 6.3.10. Knows nothing of what the members hold.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from ...errors import FormatError, TensorNotFoundError, quote
from ...storage.inflating import InflatedSource
from ...storage.limits import DEFAULT_LIMITS, Limits, exceeded
from ...storage.windows import Window, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...storage import Source

__all__ = ["ZipArchive", "ZipMember", "ends_in_zip", "looks_like_zip"]

_END: Final = struct.Struct("<4s4H2LH")
_END64_LOCATOR: Final = struct.Struct("<4sLQL")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_COMMENT_MAX: Final = 0xFFFF
_AHEAD: Final = 1 << 14
_HEADER: Final = 512
"""Bytes in which most local headers fit."""
_M16: Final = 0xFFFF
_M32: Final = 0xFFFFFFFF

_ENCRYPTED: Final = 1 << 0 | 1 << 6 | 1 << 13
_PATCHED: Final = 1 << 5
_DESCRIPTOR: Final = 1 << 3
_UTF8: Final = 1 << 11
_EXTRA_ZIP64: Final = 0x0001
_EXTRA_REFUSED: Final = {0x7075: "a Unicode path field", 0x9901: "AES encryption"}
_METHODS: Final = {0: "stored", 8: "deflate"}
_UNIX: Final = 3
_MACOS: Final = 19


def looks_like_zip(head: bytes) -> bool:
    """Whether a file that starts with `head` claims to be a zip archive."""
    return head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def ends_in_zip(source: Source) -> bool:
    """Whether Python's zip readers would find an archive at the end of `source`.

    They take the last end record, and look for the directory just before it. Weights contain the
    four bytes of an end record by chance once in 65,000 files; those and the four bytes of a
    directory in the right place, never.
    """
    count = min(source.size, _END.size + _COMMENT_MAX)
    base = source.size - count
    tail = read_bytes(source, base, count)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + _END.size:
        return False
    length = _END.unpack_from(tail, at)[5]
    if tail[max(at - _END64_LOCATOR.size, 0) : at].startswith(b"PK\x06\x07"):
        return True
    start = base + at - length
    if length == 0 or start < 0:
        return False
    return read_bytes(source, start, 4) == b"PK\x01\x02"


class ZipMember(NamedTuple):
    """One entry, as its directory record and its local header agree on it.

    Attributes:
        name: Its decoded name.
        raw_name: Its name's bytes.
        compressed: Whether it is deflated.
        crc: CRC-32 of the inflated bytes.
        stored_size, size: Bytes in the file, and inflated.
        header: Offset of the local header.
        start: Offset of the data.
    """

    name: str
    raw_name: bytes
    compressed: bool
    crc: int
    stored_size: int
    size: int
    flags: int
    header: int
    start: int = 0

    @property
    def is_folder(self) -> bool:
        """Whether the entry stands for a folder."""
        return self.name.endswith("/")


_STEPS: Final = 50
"""What reading one entry of the directory, and its local header, counts as steps."""


class ZipArchive:
    """The members of a zip file, checked as a whole when it is opened.

    Cost: the directory is read, and the local header of each member.

    Raises:
        FormatError: Any rule of this module's docstring is broken; the message names the member.
    """

    def __init__(self, source: Source, limits: Limits = DEFAULT_LIMITS) -> None:
        self.source = source
        self.limits = limits
        directory = _find_directory(source)
        limits.spend("members", directory.entries, source.name)
        limits.spend("opcodes", directory.entries * _STEPS, source.name)
        if directory.size > limits.directory_bytes:
            raise exceeded("directory_bytes", limits.directory_bytes, source.name)
        members = list(_read_directory(source, directory))
        _check_names(source, members)
        self.members: dict[str, ZipMember] = {
            member.name: member for member in _locate(source, members, directory.start)
        }
        for member in self.members.values():
            self._check_inflation(member)

    def _check_inflation(self, member: ZipMember) -> None:
        if not member.compressed or member.size <= self.limits.inflation_floor_bytes:
            return
        if member.size > member.stored_size * self.limits.inflation_ratio:
            label = f"{self.source.name}!{member.name}"
            raise exceeded("inflation_ratio", self.limits.inflation_ratio, label, member.header)

    def open(self, name: str) -> Source:
        """The bytes of member `name`; a deflated one checks its CRC at its end.

        Raises:
            TensorNotFoundError: There is no such member.
        """
        member = self.members.get(name)
        if member is None:
            raise TensorNotFoundError(
                f"the archive has no member {quote(name)}", path=self.source.name
            )
        label = f"{self.source.name}!{name}"
        window = Window(self.source, member.start, member.stored_size, label)
        if not member.compressed:
            return window
        return InflatedSource(window, "deflate", member.size, label, member.crc)

    def verify(self, name: str) -> None:
        """Read member `name` once and compare its CRC-32; 0 stands for one never computed.

        Raises:
            FormatError: It differs.
        """
        source = self.open(name)
        crc = 0
        for offset in range(0, source.size, 1 << 20):
            crc = zlib.crc32(read_bytes(source, offset, min(1 << 20, source.size - offset)), crc)
        if crc != self.members[name].crc and self.members[name].crc:
            raise FormatError(
                "the member does not match its CRC-32 checksum",
                rule="zip-crc",
                path=source.name,
                offset=self.members[name].start,
            )


@dataclass(frozen=True)
class _Directory:
    start: int
    size: int
    entries: int


def _fault(source: Source, message: str, offset: int | None = None) -> FormatError:
    return FormatError(
        f"two readers could see this zip archive differently: {message}",
        rule="zip",
        path=source.name,
        offset=offset,
    )


def _find_directory(source: Source) -> _Directory:
    position = _find_end(source)
    record = _END.unpack(read_bytes(source, position, _END.size))
    disk, start_disk, here, entries, size, start = record[1:7]
    records_start = position
    wide = _read_end64(source, position)
    if wide is not None:
        records_start, values = wide
        narrow = (disk, start_disk, here, entries, size, start)
        masks = (_M16, _M16, _M16, _M16, _M32, _M32)
        for small, large, mask in zip(narrow, values, masks, strict=True):
            if small not in (large, mask):
                raise _fault(source, "its two end records disagree", position)
        disk, start_disk, here, entries, size, start = values
    if disk or start_disk or here != entries:
        raise _fault(source, "it says it spans several disks", position)
    if start + size != records_start:
        raise _fault(source, "its directory does not end at the end record", position)
    return _Directory(start, size, entries)


def _find_end(source: Source) -> int:
    """Offset of the end record, of which there must be one by every way of looking for it."""
    count = min(source.size, _END.size + _COMMENT_MAX)
    base = source.size - count
    tail = read_bytes(source, base, count)
    fitting = []
    found = last = tail.find(b"PK\x05\x06")
    while found >= 0:
        last = found
        if count - found >= _END.size:
            (comment,) = struct.unpack_from("<H", tail, found + _END.size - 2)
            if found + _END.size + comment == count:
                fitting.append(found)
        found = tail.find(b"PK\x05\x06", found + 1)
    if not fitting:
        raise FormatError(
            "the zip archive has no end record: it is truncated, or data follows it",
            rule="zip-end",
            path=source.name,
            offset=source.size,
        )
    if len(fitting) > 1 or fitting[0] != last:
        raise _fault(source, "it has two end records", base + fitting[0])
    return base + fitting[0]


def _read_end64(source: Source, position: int) -> tuple[int, tuple[int, ...]] | None:
    """Start and fields of the 64-bit end record before the end record, if there is one."""
    at = position - _END64_LOCATOR.size
    if at < 0:
        return None
    signature, disk, start, disks = _END64_LOCATOR.unpack(
        read_bytes(source, at, _END64_LOCATOR.size)
    )
    if signature != b"PK\x06\x07":
        return None
    if disk != 0 or disks > 1 or start + _END64.size != at:
        raise _fault(source, "its 64-bit end record is not where its locator says", at)
    fields = _END64.unpack(read_bytes(source, start, _END64.size))
    if fields[0] != b"PK\x06\x06" or fields[1] != _END64.size - 12:
        raise _fault(source, "its 64-bit end record is malformed", start)
    return start, fields[4:]


def _read_directory(source: Source, directory: _Directory) -> Iterator[ZipMember]:
    data = read_bytes(source, directory.start, directory.size)
    position = 0
    for _ in range(directory.entries):
        if position + _CENTRAL.size > len(data):
            raise _fault(source, "its directory has fewer entries than it says", directory.start)
        fields = _CENTRAL.unpack_from(data, position)
        offset = directory.start + position
        if fields[0] != b"PK\x01\x02":
            raise _fault(source, "its directory is malformed", offset)
        position += _CENTRAL.size
        name_end = position + fields[10]
        extra_end = name_end + fields[11]
        if extra_end + fields[12] > len(data):
            raise _fault(source, "its directory is malformed", offset)
        yield _member(source, fields, data[position:name_end], data[name_end:extra_end], offset)
        position = extra_end + fields[12]
    if position != len(data):
        raise _fault(source, "its directory has more entries than it says", directory.start)


def _member(
    source: Source, fields: tuple[int, ...], raw_name: bytes, extra: bytes, offset: int
) -> ZipMember:
    made_by, flags, method = fields[1], fields[3], fields[4]
    crc, stored, size = fields[7:10]
    name = _decode_name(source, raw_name, flags, offset)
    where = quote(name)
    if flags & (_ENCRYPTED | _PATCHED):
        raise FormatError(
            f"zip member {where} is encrypted or a patch; extract it with its owner's tool first",
            rule="zip-encrypted", path=source.name, offset=offset,
        )  # fmt: skip
    if method not in _METHODS:
        raise FormatError(
            f"zip member {where} uses compression method {method}; only stored and deflated "
            "members are read",
            rule="zip-method", path=source.name, offset=offset,
        )  # fmt: skip
    _check_kind(source, made_by >> 8, fields[15] >> 16, where, offset)
    wide = _zip64(source, extra, where, offset)
    values = _widened(source, wide, (size, stored, fields[16]), where, offset)
    size, stored, header = values
    if fields[13] not in (0, _M16):
        raise _fault(source, f"member {where} is on another disk", offset)
    if method == 0 and size != stored:
        raise _fault(source, f"member {where} is stored but has two sizes", offset)
    if name.endswith("/") and size:
        raise _fault(source, f"folder {where} has contents", offset)
    return ZipMember(name, raw_name, method == 8, crc, stored, size, flags, header)


def _decode_name(source: Source, raw: bytes, flags: int, offset: int) -> str:
    try:
        # The flag for UTF-8 is often forgotten (miniz never sets it); code page 437 is the default.
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        if flags & _UTF8:
            raise _fault(source, "a member's name is not UTF-8 as it says", offset) from None
        name = raw.decode("cp437")
    parts = name[:-1].split("/") if name.endswith("/") else name.split("/")
    if "\0" in name or "\\" in name or ":" in parts[0] or any(p in ("", ".", "..") for p in parts):
        raise _fault(source, f"member {quote(name)} has a name that is not a plain path", offset)
    return name


def _check_kind(source: Source, host: int, mode: int, where: str, offset: int) -> None:
    kind = mode & 0o170000
    if host in (_UNIX, _MACOS) and kind not in (0, 0o100000, 0o040000):
        raise _fault(source, f"member {where} is a symbolic link or a special file", offset)


def _zip64(source: Source, extra: bytes, where: str, offset: int) -> bytes | None:
    """The contents of the 64-bit field; trailing bytes too short for a field are padding."""
    position, found = 0, None
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if position + length > len(extra):
            raise _fault(source, f"an extra field of member {where} is malformed", offset)
        if kind in _EXTRA_REFUSED:
            raise _fault(source, f"member {where} has {_EXTRA_REFUSED[kind]}", offset)
        if kind == _EXTRA_ZIP64:
            if found is not None:
                raise _fault(source, f"member {where} has two 64-bit fields", offset)
            found = extra[position : position + length]
        position += length
    return found


def _widened(
    source: Source, wide: bytes | None, values: tuple[int, ...], where: str, offset: int
) -> list[int]:
    """`values` with each that is saturated replaced by its 64-bit twin, in order."""
    result = []
    position = 0
    for value in values:
        if value != _M32:
            result.append(value)
        elif wide is None:
            raise _fault(source, f"member {where} lacks its 64-bit sizes", offset)
        elif position + 8 > len(wide):
            raise _fault(source, f"the 64-bit field of member {where} is too short", offset)
        else:
            result.append(struct.unpack_from("<Q", wide, position)[0])
            position += 8
    return result


def _check_names(source: Source, members: list[ZipMember]) -> None:
    seen: dict[str, str] = {}
    for member in members:
        key = member.name.lower().rstrip("/")
        if key in seen:
            both = quote(member.name)
            if seen[key] != member.name:
                both += f" and {quote(seen[key])}"
            raise _fault(source, f"duplicate member {both}", member.header)
        seen[key] = member.name


def _locate(source: Source, members: list[ZipMember], end: int) -> Iterator[ZipMember]:
    """Check the local headers; the members must tile [0, end). Yields them in directory order."""
    starts: dict[int, int] = {}
    position = 0
    ahead = _Ahead(source)
    for member in sorted(members, key=lambda each: each.header):
        where = quote(member.name)
        if member.header < position:
            raise _fault(source, f"member {where} overlaps another", member.header)
        if member.header > position:
            raise _fault(source, f"there is a gap in front of member {where}", position)
        start, wide = _check_local(source, member, ahead)
        position = start + member.stored_size
        if position > end:
            raise _fault(source, f"member {where} overlaps the directory", member.header)
        if member.flags & _DESCRIPTOR:
            position = _check_descriptor(source, member, position, wide)
        starts[member.header] = start
    if position != end:
        raise _fault(source, "there is a gap in front of the directory", position)
    for member in members:
        yield member._replace(start=starts[member.header])


class _Ahead:
    """Reads a little more than it is asked for, where members are small and so next to each other."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._start = 0
        self._data = b""

    def read(self, offset: int, count: int) -> bytes:
        skip = offset - self._start
        if not 0 <= skip <= skip + count <= len(self._data):
            left = max(self._source.size - offset, count)  # too few are an error of `read_bytes`
            most = _AHEAD if skip <= 2 * _AHEAD else _HEADER
            self._start = offset
            self._data = read_bytes(self._source, offset, max(count, min(most, left)))
            skip = 0
        return self._data[skip : skip + count]


def _check_local(source: Source, member: ZipMember, ahead: _Ahead) -> tuple[int, bool]:
    """Offset of the member's data, and whether its sizes are written in 64 bits."""
    where = quote(member.name)
    fields = _LOCAL.unpack(ahead.read(member.header, _LOCAL.size))
    flags, method, crc, stored, size = fields[2], fields[3], fields[6], fields[7], fields[8]
    names = ahead.read(member.header + _LOCAL.size, fields[9] + fields[10])
    offset = member.header
    agree = fields[0] == b"PK\x03\x04" and names[: fields[9]] == member.raw_name
    if (
        not agree
        or flags != member.flags
        or (method == 8) != member.compressed
        or method not in _METHODS
    ):
        raise _fault(source, f"the local header and the directory disagree on {where}", offset)
    wide = _zip64(source, names[fields[9] :], where, offset)
    if flags & _DESCRIPTOR and not (crc or stored or size):
        return offset + _LOCAL.size + len(names), wide is not None
    size, stored = _widened(source, wide, (size, stored), where, offset)
    if flags & _DESCRIPTOR:
        # Some writers fill in what they know and leave the rest to the descriptor.
        same = crc in (0, member.crc) and size in (0, member.size)
        same = same and stored in (0, member.stored_size)
    else:
        same = (crc, size, stored) == (member.crc, member.size, member.stored_size)
    if not same:
        raise _fault(source, f"the local header and the directory disagree on {where}", offset)
    return offset + _LOCAL.size + len(names), wide is not None


def _check_descriptor(source: Source, member: ZipMember, position: int, wide: bool) -> int:
    """Offset after the data descriptor, whose signature and width are the writer's choice."""
    expected = (member.crc, member.stored_size, member.size)
    layouts = ("<L2Q", "<L2L") if wide else ("<L2L", "<L2Q")
    for layout in layouts:
        size = struct.calcsize(layout)
        for signature in (b"PK\x07\x08", b""):
            count = len(signature) + size
            if position + count > source.size:
                continue
            data = read_bytes(source, position, count)
            if data.startswith(signature) and struct.unpack(layout, data[-size:]) == expected:
                return position + count
    raise _fault(source, f"the data descriptor of member {quote(member.name)} disagrees", position)
