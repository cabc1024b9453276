"""A header rewritten within the space that it has, so that no data moves.

The new header has the old one's order and length: names are replaced where they stand, a shorter one is
followed by spaces, and what grows takes the spaces from the padding at the end. JSON allows white space
between tokens, and every reader that reads JSON accepts it; the data begins where it did.

Two ways to put it in place, neither of which can leave a file that is half of each:

- If all bytes that change lie in one block of 4,096 bytes, one pwrite(2) overwrites them. The kernel
  fills a page without looking at signals in between, so that no kill divides it, and a disk writes
  such a block whole.
- Otherwise a new file with the new header and the same data takes the place of the old one by renaming.

Several processes may edit one file: each overwrites bytes, or replaces the file, only while it has the file
locked (flock(2)), and only if the whole header is still the one that it read.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import contextmanager, suppress
from json.encoder import encode_basestring as _json_string
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import ChangedError, FormatError
from ..format.header import METADATA_KEY, PREFIX, parse
from ..format.strictjson import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..checkpoint import SafetensorsFile
    from ..storage import DescriptorSource

__all__ = ["Patch", "can_patch", "header_of", "locked", "new_header", "patch_of", "write_patch"]

BLOCK: Final = 4096
"""The size of a page, and of a sector of disks since 2011."""

_CHANGED: Final = "the file was changed meanwhile; edit it again"

_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL).match

_PLAIN_ENTRY: Final = re.compile(rb'\s*\{[^{}"\\]*(?:"[^{}"\\]*"[^{}"\\]*)*\}').match
"""A tensor's entry, in text that is known to be JSON. To step through its tokens takes 20 times as long."""


class Patch(NamedTuple):
    """Bytes of a file that are to be overwritten.

    Attributes:
        offset: Where they are.
        old: All bytes of the file up to its data, as they are now.
        new: What is written at `offset`.
    """

    offset: int
    old: bytes
    new: bytes


def header_of(file: SafetensorsFile) -> bytes:
    """The bytes of a file up to its data.

    Raises:
        ChangedError: They say something else than when the file was opened.
        OSError: Reading failed.
    """
    size = file.header.size
    head = file.source.read(0, PREFIX + size)
    try:
        found = parse(head[PREFIX:], file.source.size - PREFIX - size, path=file.name)
    except FormatError:
        found = None
    if found != file.header or int.from_bytes(head[:PREFIX], "little") != size:
        raise ChangedError(_CHANGED, path=file.name)
    return head


def new_header(
    file: SafetensorsFile,
    head: bytes,
    names: Mapping[str, str],
    metadata: Mapping[str, str] | None,
) -> bytes | None:
    """The first bytes of a file, up to its data, with other names and metadata; None without room.

    Args:
        file: The file.
        head: Its bytes up to its data.
        names: Old name -> new name, of all its tensors.
        metadata: All metadata there is to be.
    """
    old = head[PREFIX:]
    text = bytearray()
    copied = 0
    reader = Reader(old)
    placed = metadata is None
    for name, at in reader.members():
        begin, token = at, _TOKEN(old, at)
        assert token is not None
        if name != METADATA_KEY and (entry := _PLAIN_ENTRY(old, reader.position)):
            reader.position = entry.end()
        else:
            reader.skip(1)
        if name == METADATA_KEY and metadata == file.header.metadata:
            placed = True
            continue
        if name == METADATA_KEY:
            text += old[copied:begin]
            text += _padded(_metadata(metadata), reader.position - begin)
            copied = reader.position
            placed = True
            if metadata is None:
                text, copied = _without_member(text, old, copied)
            continue
        if names[name] != name:
            end = token.end()
            while old[end : end + 1] == b" ":  # which a longer name left before
                end += 1
            text += old[copied:begin]
            text += _padded(_json_string(names[name]).encode(), end - begin)
            copied = end
    text += old[copied:]
    text = text.rstrip()
    if not placed:
        opening = text.index(b"{") + 1
        comma = b"," if file.header.tensors else b""
        text[opening:opening] = _metadata(metadata) + comma
    if len(text) > len(old):
        return None
    text += b" " * (len(old) - len(text))
    parse(bytes(text), file.source.size - PREFIX - len(old), path=file.name)
    return len(text).to_bytes(PREFIX, "little") + bytes(text)


def _padded(token: bytes, length: int) -> bytes:
    return token.ljust(length)


def _metadata(metadata: Mapping[str, str] | None) -> bytes:
    pairs = ",".join(
        f"{_json_string(key)}:{_json_string(value)}"
        for key, value in sorted((metadata or {}).items())
    )
    return f"{_json_string(METADATA_KEY)}:{{{pairs}}}".encode()


def _without_member(text: bytearray, old: bytes, copied: int) -> tuple[bytearray, int]:
    """Replace the member that `text` ends with, and the comma that belongs to it, by spaces."""
    begin = text.rindex(f"{_json_string(METADATA_KEY)}:".encode())
    text[begin:] = b" " * (len(text) - begin)
    reader = Reader(old, copied)
    if reader.peek() == b",":
        return text + old[copied : reader.position] + b" ", reader.position + 1
    before = bytes(text[:begin]).rstrip()
    if before.endswith(b","):
        text[len(before) - 1] = ord(" ")
    return text, copied


def patch_of(old: bytes, head: bytes) -> Patch | None:
    """What to overwrite to replace a header by one of the same length; None if it is in several blocks."""
    # As one number, a header of megabytes is compared in a moment.
    differs = int.from_bytes(old, "big") ^ int.from_bytes(head, "big")
    first = len(old) - -(-differs.bit_length() // 8)
    last = len(old) - 1 - ((differs & -differs).bit_length() - 1) // 8
    if first // BLOCK != last // BLOCK:
        return None
    return Patch(first, old, head[first : last + 1])


@contextmanager
def locked(descriptor: int) -> Iterator[None]:
    """Keep other edits from overwriting or replacing a file, where the filesystem has locks (flock(2))."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def can_patch(path: str) -> bool:
    """Whether a file may be overwritten: no link leads there, and it has no other name."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and hasattr(os, "pwrite")


def write_patch(path: str, source: DescriptorSource, patch: Patch, *, durable: bool) -> None:
    """Overwrite a few bytes of a file.

    Args:
        path: The file.
        source: The file as it was opened.
        patch: The bytes.
        durable: Return only when they would survive a loss of power.

    Raises:
        ChangedError: The file at `path` is another one by now, or has another header.
        OSError: It cannot be written; nothing was changed.
    """
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        with locked(descriptor):
            same = os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
            same = same and os.path.samestat(os.fstat(descriptor), os.fstat(source.fileno()))
            if not same or os.pread(descriptor, len(patch.old), 0) != patch.old:
                raise ChangedError(_CHANGED, path=path)
            done = 0
            # The kernel does it at once; a library that stands for it may not.
            while done < len(patch.new):
                done += os.pwrite(descriptor, patch.new[done:], patch.offset + done)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
