r"""The manifest of a batch: what is done, so that a batch that was killed goes on where it was.

A file of lines, one JSON object each, which is only appended to. The first says which work it is about;
each other one that units were begun, or what came of one. Every line ends with the SHA-256 of what is
before it in the line. A process that is killed leaves at most a part of its last line, and a loss of
power at most lines that were written after the last fsync(2): from the first line that is not whole, the
file is cut off, and the units are done again. That a unit was begun is durable before a worker gets it.

One process at a time uses a manifest: it holds a lock on it (flock(2), where the system has it).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from ..errors import UnsupportedError
from .units import Known, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from .units import Unit, Work

__all__ = ["Manifest", "ManifestError"]


_VERSION: Final = 1
_HEAD: Final = b'{"batch":'
"""How every manifest begins."""

_SUM: Final = len(',"sum":"0123456789abcdef"}\n')
_LONGEST: Final = 1 << 30
_SYNC: Final = 0.25
"""Seconds between two fsync(2): a loss of power costs the units of this time, a kill none."""


class ManifestError(UnsupportedError):
    """The file that was given as a manifest is none, or that of another batch."""


class Manifest:
    """An open manifest; a context manager.

    Args:
        path: The file; it is made if there is none.
        work: What is done with each unit.

    Raises:
        UnsupportedError: The manifest is about other work, or is no manifest.
        BlockingIOError: Another process uses it.
        OSError: It cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], work: Work) -> None:
        self.path = os.fspath(path)
        self._begun: set[str] = set()
        self._known: dict[str, Known] = {}
        self._synced = 0.0
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        self._file = os.open(self.path, flags, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise OSError(errno.ENODEV, "is not a regular file", self.path)
            self._lock()
            self._read(asdict(work))
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: one process at a time is the caller's business
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                return  # a file system without locks
            message = "another process uses this manifest; each shard needs its own"
            raise BlockingIOError(errno.EAGAIN, message, self.path) from None

    def _read(self, work: dict[str, Any]) -> None:
        head = {"batch": _VERSION, "work": json.loads(json.dumps(work))}
        first = True
        whole = 0
        for record, end in self._records():
            if first and record != head:
                raise ManifestError(
                    "this manifest is of another batch, or of other options; use another file",
                    path=self.path,
                )
            if not first:
                self._note(record)
            first, whole = False, end
        if whole != os.fstat(self._file).st_size:
            os.ftruncate(self._file, whole)
        if first:
            self._append([head])
        os.fsync(self._file)

    def _records(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Every whole line, and where it ends."""
        with open(os.dup(self._file), "rb") as file:
            file.seek(0)
            end = 0
            while line := file.readline(_LONGEST):
                record = _parsed(line)
                if record is None:
                    if end == 0 and not (line.startswith(_HEAD) or _HEAD.startswith(line)):
                        raise ManifestError("this is not the manifest of a batch", path=self.path)
                    return
                end += len(line)
                yield record, end

    def _note(self, record: dict[str, Any]) -> None:
        if "begun" in record:
            self._begun.update(record["begun"])
            return
        outcome = Outcome.of(record["outcome"])
        self._known[record["unit"]] = Known(record["source"], record["outputs"], outcome)

    def known(self, unit: Unit) -> Known | None:
        """What came of a unit, if that can stand: not where it could not be read."""
        found = self._known.get(unit.key)
        return None if found is None or found.outcome.exit_code > 1 else found

    def was_begun(self, unit: Unit) -> bool:
        """Whether an earlier attempt may have written the unit's target."""
        return unit.key in self._begun

    def begin(self, units: Iterable[Unit]) -> None:
        """Record, before they are given to a worker, that these units may write their targets."""
        names = [unit.key for unit in units]
        if names:
            self._append([{"begun": names}])
            os.fsync(self._file)

    def done(self, found: Iterable[tuple[Unit, Known]]) -> None:
        """Record what came of units; one write(2) for all of them."""
        self._append({"unit": unit.key, **_record(known)} for unit, known in found)
        if (now := time.monotonic()) - self._synced > _SYNC:
            os.fsync(self._file)
            self._synced = now

    def _append(self, records: Iterable[dict[str, Any]]) -> None:
        data = memoryview(b"".join(map(_line, records)))
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from None

    def close(self) -> None:
        """Make all of it durable."""
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _record(known: Known) -> dict[str, Any]:
    return {
        "source": known.source,
        "outputs": known.outputs,
        "outcome": known.outcome.record(),
    }


def _line(record: dict[str, Any]) -> bytes:
    """A record as a line, with the digest of what is before it."""
    text = json.dumps(record, separators=(",", ":"), allow_nan=False)[:-1].encode()
    return b'%b,"sum":"%b"}\n' % (text, hashlib.sha256(text).hexdigest()[:16].encode())


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if it is not as `_line` writes it."""
    text = line[:-_SUM]
    digest = hashlib.sha256(text).hexdigest()[:16].encode()
    if line[len(text) :] != b',"sum":"%b"}\n' % digest:
        return None
    found: dict[str, Any] = json.loads(text + b"}")
    return found
