"""Standard input that cannot seek: as much of it is read as a command needs, and no more.

A pipe may be endless, so its first bytes decide. The header of a safetensors file says how long the rest
is. Other formats have their directory at the end, so that everything is kept, up to a bound. Anything else
is refused by its first bytes. What is kept on disk is in a file without a name, which does not outlive the
process, however that ends.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Final

from ..errors import UnsupportedError
from ..format.header import MAX_HEADER, PREFIX
from ..format.rules import Problems, Stop
from ..text import human_bytes
from .file_objects import FileObjectSource
from .files import DescriptorSource
from .source import BytesSource, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO

__all__ = ["NAME", "STDIN", "piped", "stdin_blocks", "stdin_source"]

NAME: Final = "<stdin>"

_HEAD: Final = 1024
"""Bytes that tell formats apart; see `safeweights.conversion.formats`."""

_BLOCK: Final = 1 << 20

_SPARE: Final = 1 << 20
"""Bytes that are read beyond the end that a header announces, to report how many there are."""

_MOST: Final = 1 << 36
"""Most bytes that are kept on disk; and never more than half of the free space."""


def piped(
    stream: IO[bytes], is_known: Callable[[bytes], bool], *, headers_only: bool = False
) -> Source:
    """A source of what a pipe gives.

    Args:
        stream: The pipe.
        is_known: Whether a file that begins with these bytes, and is not safetensors, can be read.
        headers_only: No tensor of a safetensors file will be read: its data is counted, not kept.

    Raises:
        OSError: There is more than can be kept, or reading or writing failed.
    """
    head = stream.read(_HEAD)
    length = int.from_bytes(head[:PREFIX], "little")
    has_header = head[PREFIX : PREFIX + 1] == b"{"
    if length <= MAX_HEADER and (has_header or not is_known(head)):
        head += stream.read(max(0, PREFIX + length - len(head)))
        return _by_header(stream, head, length, headers_only)
    return _kept(stream, head) if is_known(head) else BytesSource(head, NAME)


def _by_header(stream: IO[bytes], head: bytes, length: int, headers_only: bool) -> Source:
    """A safetensors file, up to the end that its header announces and a little beyond."""
    end = PREFIX + length + _announced(head[PREFIX : PREFIX + length])
    if headers_only:
        return _Counted(head, len(head) + _count(stream, end + _SPARE - len(head)))
    return _kept(stream, head, end)


def _announced(text: bytes) -> int:
    """Bytes of data that a header announces; 0 if it is damaged."""
    from ..format.entries import Entries

    try:
        entries = Entries(text, Problems(None, collect=True))
    except Stop:
        return 0
    return max((info.end for info in entries.tensors.values()), default=0)


class _Counted(BytesSource):
    """The first bytes of a stream of which the rest was not kept."""

    def __init__(self, head: bytes, size: int) -> None:
        super().__init__(head, NAME)
        self.size = size
        self._kept = len(head)

    def view(self, offset: int, length: int) -> memoryview:
        if offset + length > self._kept:
            raise UnsupportedError("only the header of standard input was kept", path=NAME)
        return super().view(offset, length)


def _count(stream: IO[bytes], most: int) -> int:
    """Read and drop up to `most` bytes; returns how many there were."""
    left = most
    while left > 0 and (block := stream.read(min(_BLOCK, left))):
        left -= len(block)
    return most - left if most > 0 else 0


def _kept(stream: IO[bytes], head: bytes, end: int | None = None) -> Source:
    """`head` and what follows it, in a temporary file; with `end`, only a little more than `end` bytes.

    Raises:
        OSError: There are more bytes than may be kept.
    """
    import shutil  # here, since they import two compression libraries
    import tempfile

    folder = tempfile.gettempdir()
    most = min(_MOST, shutil.disk_usage(folder).free // 2)
    if (end or len(head)) > most:
        raise _too_long(most)
    size = most + 1 if end is None else end + _SPARE
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(head)
            while file.tell() < size and (block := stream.read(min(_BLOCK, size - file.tell()))):
                file.write(block)
            file.flush()
            if end is None and file.tell() == size:
                raise _too_long(most)
            return DescriptorSource(os.dup(file.fileno()), NAME, mapped=False)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            error.filename = folder
        raise


def _too_long(most: int) -> OSError:
    message = (
        f"more than {human_bytes(most)}, the most that is kept of a pipe here; "
        "save it as a file and give its name"
    )
    return OSError(errno.EFBIG, message, "standard input")


STDIN: Final = "-"


def stdin_source(is_known: Callable[[bytes], bool], *, headers_only: bool = False) -> Source:
    """Standard input as a source: the file itself if it is a file, else as much of it as is needed.

    Args:
        is_known: See `piped`.
        headers_only: No tensor of a safetensors file will be read.

    Raises:
        OSError: It is closed, cannot be read, or is longer than what is kept of a pipe.
    """
    stream = _stdin()
    if not stream.seekable() or _is_device(stream):
        return piped(stream, is_known, headers_only=headers_only)
    source = FileObjectSource(stream)
    source.name = NAME
    return source


def _stdin() -> IO[bytes]:
    if sys.stdin is None:
        raise OSError(0, "standard input is closed")
    return sys.stdin.buffer


def stdin_blocks() -> Iterator[bytes]:
    """All that remains on standard input, which may be longer than memory, in blocks.

    Raises:
        OSError: It is closed, or cannot be read.
        BlockingIOError: It does not wait for data (O_NONBLOCK), and has none: this is not its end.
    """
    stream = _stdin()
    while (block := stream.read(_BLOCK)) != b"":
        if block is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), "standard input")
        yield block


def _is_device(stream: IO[bytes]) -> bool:
    """Whether it is a device such as /dev/zero, where seeking succeeds and does nothing."""
    try:
        return stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
    except OSError:
        return False  # an object without a descriptor
