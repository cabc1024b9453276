"""A tar reader that refuses what two readers could see differently.

Regular files and folders only. A wrong checksum, a duplicate or traversing name, a folder with
contents, a header that changes the next member's name or size, and bytes after the end are errors.
Extended headers are accepted where they only carry times and owners, as PyTorch's writer made them.
Source of the layout: POSIX.1-2008, pax.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ...errors import FormatError, TensorNotFoundError, quote
from ...storage.limits import DEFAULT_LIMITS, Limits
from ...storage.windows import Window, read_bytes

if TYPE_CHECKING:
    from ...storage import Source

__all__ = ["TarArchive", "looks_like_tar"]

_BLOCK: Final = 512
_STEPS: Final = 100
"""What reading one member's header counts as steps."""
_REGULAR: Final = (b"0", b"\0", b"7")
_FOLDER: Final = b"5"
_EXTENDED: Final = (b"x", b"g")
_HARMLESS: Final = frozenset({"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"})


def looks_like_tar(head: bytes) -> bool:
    """Whether a file that starts with `head` (512 bytes) starts with a tar header."""
    return len(head) >= _BLOCK and head[0] != 0 and _checksum_holds(head[:_BLOCK])


def _checksum_holds(block: bytes) -> bool:
    stored = _octal(block[148:156])
    return stored is not None and stored == sum(block[:148]) + 8 * 32 + sum(block[156:])


def _octal(field: bytes) -> int | None:
    """A number field; None where it is neither octal text nor base 256."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    return int(text or b"0", 8) if re.fullmatch(rb"[0-7]*", text) else None


class TarArchive:
    """The members of a tar file.

    Raises:
        FormatError: Any rule of this module's docstring is broken.
    """

    def __init__(self, source: Source, limits: Limits = DEFAULT_LIMITS) -> None:
        self.source = source
        self.members: dict[str, tuple[int, int]] = {}
        self._limits = limits
        self._read()

    def _fault(self, message: str, offset: int) -> FormatError:
        return FormatError(
            f"the tar archive is refused: {message}",
            rule="tar",
            path=self.source.name,
            offset=offset,
        )

    def _read(self) -> None:
        offset = 0
        while offset + _BLOCK <= self.source.size:
            block = read_bytes(self.source, offset, _BLOCK)
            if not any(block):
                self._check_end(offset)
                return
            offset = self._member(block, offset)
        raise self._fault("it has no end mark", offset)

    def _member(self, block: bytes, offset: int) -> int:
        """Take in the member whose header is at `offset`; the offset of the next."""
        size = _octal(block[124:136])
        if size is None or not _checksum_holds(block):
            raise self._fault("a header is damaged", offset)
        start = offset + _BLOCK
        end = start + size
        if end > self.source.size:
            raise self._fault("a member reaches past the end", offset)
        kind = block[156:157]
        if kind in _EXTENDED:
            self._check_extended(start, size)
        elif kind == _FOLDER:
            if size:  # Python's tarfile reads members there, others skip the bytes
                raise self._fault("a folder has contents", offset)
        elif kind in _REGULAR:
            self._add(block, start, size)
        else:
            raise self._fault("a member is a link, a device or of an unknown kind", offset)
        return start + -(-size // _BLOCK) * _BLOCK

    def _add(self, block: bytes, start: int, size: int) -> None:
        prefix = block[345:500] if block[257:262] == b"ustar" and block[263:265] == b"00" else b""
        raw = b"/".join(
            part.split(b"\0", 1)[0] for part in (prefix, block[:100]) if part.strip(b"\0")
        )
        name = raw.decode("utf-8", "surrogateescape").removeprefix("./")
        parts = name.split("/")
        if "\\" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
            raise self._fault(f"member {quote(name)} has a name that is not a plain path", start)
        if name in self.members:
            raise self._fault(f"duplicate member {quote(name)}", start)
        self.members[name] = start, size
        self._limits.spend("members", 1, self.source.name)
        self._limits.spend("opcodes", _STEPS, self.source.name)

    def _check_extended(self, start: int, size: int) -> None:
        """Refuse extended headers that change what the next header says."""
        if size > self._limits.inline_value_bytes * 16:
            raise self._fault("an extended header is too large", start)
        data = read_bytes(self.source, start, size)
        position = 0
        while position < len(data):
            match = re.compile(rb"(\d{1,6}) ([^=\n]+)=").match(data, position)
            length = int(match[1]) if match else 0
            if match is None or position + length > len(data) or length < len(match[0]):
                raise self._fault("an extended header is malformed", start)
            if match[2].decode("latin-1") not in _HARMLESS:
                raise self._fault("an extended header changes a member's name or size", start)
            position += length

    def _check_end(self, offset: int) -> None:
        for at in range(offset, self.source.size, 1 << 20):
            if any(read_bytes(self.source, at, min(1 << 20, self.source.size - at))):
                raise self._fault("data follows its end mark", at)

    def open(self, name: str) -> Source:
        """The bytes of member `name`.

        Raises:
            TensorNotFoundError: There is no such member.
        """
        if name not in self.members:
            raise TensorNotFoundError(
                f"the archive has no member {quote(name)}", path=self.source.name
            )
        start, size = self.members[name]
        return Window(self.source, start, size, f"{self.source.name}!{name}")
