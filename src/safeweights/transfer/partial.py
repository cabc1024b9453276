"""Fetching one file into a folder so that a process that is killed loses at most a few blocks.

A journal has a line for each block that was written: its number and its SHA-256, after a first line that
names the version of the file and its size. What is found later is hashed again: blocks whose bytes are as
the journal says are kept, all others are fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ClosedError
from ..storage import Source
from ..storage.background import Background
from ..storage.hashing import sha256
from ..storage.parallel import CHUNK, in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Fetched", "fetch"]


class Fetched(NamedTuple):
    """What came of `fetch`.

    Attributes:
        nbytes: How many bytes were fetched; the others were there.
        sha256: The digest of the whole file, where asked for.
    """

    nbytes: int
    sha256: str | None


def fetch(
    source: Source,
    target: str,
    journal: str,
    *,
    check: Callable[[int, memoryview], object] | None = None,
    hashed: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Fetched:
    """Fetch all of a file, in blocks and several at a time.

    Args:
        source: The file, of one version.
        target: Where it goes; its folder exists. Until this returns it may have any content.
        journal: Where the journal is, or will be.
        check: Given the offset of a block and its bytes before they are written; raises if they are not
            good. It is not called for blocks that are there from an earlier attempt.
        hashed: Whether to compute the digest of the whole, beside the fetching: from the file, as its
            blocks arrive.
        progress: Called with the number of bytes that are there so far.

    Raises:
        OSError: Reading or writing failed. What was written is there for the next attempt.
    """
    kept = _Journal(journal, source)
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    with ExitStack() as stack:
        stack.callback(kept.close)
        stack.callback(os.close, descriptor)
        with _naming(target):
            os.ftruncate(descriptor, source.size)
        known = kept.verified(descriptor)
        arriving = _Arriving(descriptor, source.size, target, known)
        beside = stack.enter_context(Background(name="safeweights-digest"))
        stack.callback(arriving.give_up)
        follows = hashed and beside.start() > 0  # it would wait for ever in the thread that fetches
        following = beside.submit(sha256, arriving) if follows else None
        wanted = [begin for begin in range(0, source.size, CHUNK) if begin // CHUNK not in known]
        done = [source.size - sum(min(CHUNK, source.size - begin) for begin in wanted)]
        if progress is not None:
            progress(done[0])

        def one(begin: int, _: object) -> int:
            block = memoryview(bytearray(min(CHUNK, source.size - begin)))
            source.read_into(begin, block)
            if check is not None:
                check(begin, block)
            with _naming(target, begin):
                _write(descriptor, block, begin)
            kept.add(begin // CHUNK, hashlib.sha256(block).hexdigest())
            arriving.arrived(begin // CHUNK)
            return len(block)

        fetched = sum(
            in_threads(one, wanted, workers=source.threads or None)
            if progress is None
            else _counted(one, wanted, source.threads or 4, done, progress)
        )
        with _naming(target):
            os.fsync(descriptor)
        if following is not None:
            return Fetched(fetched, following.result())
        return Fetched(fetched, sha256(arriving) if hashed else None)


class _Arriving(Source):
    """The file, while its blocks arrive: a read waits until they are there.

    Args:
        descriptor: The file.
        size: Its bytes.
        name: Its path.
        known: The numbers of the blocks that are there.
    """

    def __init__(self, descriptor: int, size: int, name: str, known: set[int]) -> None:
        self.name = name
        self.size = size
        self._descriptor = descriptor
        self._there = set(known)
        self._given_up = False
        self._changed = threading.Condition()

    def arrived(self, number: int) -> None:
        """A block has been written."""
        with self._changed:
            self._there.add(number)
            self._changed.notify_all()

    def give_up(self) -> None:
        """Let no read wait any more."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        needed = set(range(offset // CHUNK, -(-(offset + len(buffer)) // CHUNK)))
        with self._changed:
            self._changed.wait_for(lambda: self._given_up or needed <= self._there)
            if not needed <= self._there:
                raise ClosedError("the rest was not fetched", path=self.name)
        while len(buffer):
            data = _read(self._descriptor, offset, len(buffer))
            if not data:
                raise self._truncated(offset, len(buffer), self.size)
            buffer[: len(data)] = data
            buffer, offset = buffer[len(data) :], offset + len(data)


def _counted(
    one: Callable[[int, object], int],
    wanted: list[int],
    workers: int,
    done: list[int],
    progress: Callable[[int], object],
) -> list[int]:
    """The same, with progress: a few rounds of blocks at a time."""
    found: list[int] = []
    step = workers * 4
    for first in range(0, len(wanted), step):
        found += in_threads(one, wanted[first : first + step], workers=workers)
        progress(done[0] + sum(found))
    return found


@contextmanager
def _naming(path: str, offset: int | None = None) -> Iterator[None]:
    """Errors of the system name the file, and the byte, which those of descriptors do not."""
    try:
        yield
    except OSError as error:
        place = "" if offset is None else f" (at byte {offset})"
        raise OSError(error.errno, f"{error.strerror}{place}", path) from None


_seeking = threading.Lock()
"""Windows has no pread and pwrite: there, one thread at a time uses the position of a file."""


def _write(descriptor: int, block: memoryview, offset: int) -> None:
    while len(block):
        if hasattr(os, "pwrite"):
            count = os.pwrite(descriptor, block, offset)
        else:
            with _seeking:
                os.lseek(descriptor, offset, os.SEEK_SET)
                count = os.write(descriptor, block)
        block, offset = block[count:], offset + count


def _read(descriptor: int, offset: int, length: int = CHUNK) -> bytes:
    """A block, or what is there of it."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, length)


class _Journal:
    """What has been written of one version of a file.

    Args:
        path: The journal.
        source: The file.
    """

    def __init__(self, path: str, source: Source) -> None:
        self.path = path
        self._head = json.dumps([source.version, source.size])
        self._size = source.size
        self._lock = threading.Lock()
        self._known = self._read() if source.version is not None else {}
        fresh = not self._known
        self._file = open(path, "w" if fresh else "a", encoding="ascii")  # noqa: SIM115
        if fresh:
            self._file.write(f"{self._head}\n")
            self._file.flush()

    def _read(self) -> dict[int, str]:
        try:
            with open(self.path, encoding="ascii") as file:
                lines = file.read().split("\n")
        except (OSError, UnicodeDecodeError):
            return {}
        if lines[0] != self._head:
            return {}
        known: dict[int, str] = {}
        for line in lines[1:-1]:  # a line that was cut has no end
            with suppress(ValueError):
                number, digest = line.split(" ")
                known[int(number)] = digest
        return known

    def verified(self, descriptor: int) -> set[int]:
        """The blocks whose bytes are as the journal says."""

        def one(number: int, _: object) -> bool:
            block = _read(descriptor, number * CHUNK)
            return hashlib.sha256(block).hexdigest() == self._known[number]

        numbers = [number for number in self._known if 0 <= number * CHUNK < self._size]
        return {
            number for number, good in zip(numbers, in_threads(one, numbers), strict=True) if good
        }

    def add(self, number: int, digest: str) -> None:
        with self._lock:
            self._file.write(f"{number} {digest}\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()
