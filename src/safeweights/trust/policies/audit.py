"""An append-only log of decisions: a hash chain, in which every line covers the ones before it.

One JSON object a line; ``hash`` is the SHA-256 of the line without it, which includes the hash of
the line before. A line that is changed, removed or inserted breaks the chain from there on. A chain
cannot show that its end was cut off, or that all of it was rewritten: for that, keep the head (the
last hash, which `AuditLog.append` returns) elsewhere, and give it to `verify_log`.

A line has at most 16 MiB, also of a model with a million files: a longer one is shortened before it
is written, and a digest of what was left out takes its place.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from ..documents import canonical_json, parse_json
from ..errors import DocumentError, TrustError, VerificationError, refusing
from ..files import check_writable, locked, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AuditLog", "read_log", "verify_log"]

_START: Final = "0" * 64
_MAX_LINE: Final = 16 << 20
_MAX_DETAILS: Final = 8 << 20
_MAX_VALUE: Final = 1 << 18
_TAIL: Final = 1 << 16


class AuditLog:
    """The log at `path`, created when something is first appended.

    Several processes may append at a time: each locks the file for one line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def __repr__(self) -> str:
        return f"AuditLog({self.path!r})"

    def append(self, event: str, details: dict[str, Any]) -> str:
        """Append one line, durably; the new head of the chain.

        Cost: the last line is read and checked, not the whole log.

        Raises:
            DocumentError: The last line is not one of a log: nothing is appended to it.
            OSError: The log cannot be written.
        """
        with _about_the_log(self.path), locked(self.path) as descriptor:
            number, previous = _end(descriptor, self.path)
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            line = {"seq": number + 1, "time": now, "event": event, "details": _bounded(details)}
            line["prev"] = previous
            line["hash"] = _hash(line)
            data = canonical_json(line) + b"\n"
            written = os.write(descriptor, data)
            if written != len(data):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                raise OSError(f"only {written} of {len(data)} bytes could be appended")
            os.fsync(descriptor)
        return str(line["hash"])

    def check(self) -> None:
        """Check, before a model is read, that a line can be appended.

        Raises:
            DocumentError: See `append`.
            OSError: See `append`.
        """
        with _about_the_log(self.path):
            if not os.path.exists(self.path):
                check_writable(self.path)
                return
            with locked(self.path) as descriptor:
                _end(descriptor, self.path)


@contextmanager
def _about_the_log(path: str) -> Iterator[None]:
    """Errors within say that they are about the log, not about a model."""
    try:
        yield
    except TrustError as error:
        message = f"the audit log cannot be appended to: {error}"
        raise DocumentError(message, reason=error.reason) from None
    except OSError as error:
        what = f"the audit log cannot be written: {error.strerror or error}"
        raise OSError(error.errno or errno.EIO, what, path) from None


def verify_log(path: str | os.PathLike[str], *, head: str | None = None) -> int:
    """How many lines the log has, once every one of them follows from the one before.

    Args:
        path: The log.
        head: The hash that the last line must have, kept elsewhere.

    Raises:
        VerificationError: ``audit-broken`` with the line, or ``audit-head``.
        RefusedDocumentError: A line is not one of a log; it is a `VerificationError` too.
        DocumentError: ``not-a-file``.
        OSError: As the operating system has it.
    """
    return read_log(os.fspath(path), head=head)[0]


def read_log(path: str, *, head: str | None = None) -> tuple[int, str]:
    """The same, and the log's own head."""
    count, previous = 0, _START
    with refusing(path):
        for count, line in enumerate(_lines(path), 1):
            number, found = _check_line(line, previous, path, f"line {count}")
            if number != count:
                raise VerificationError(
                    f"line {count} has the number {number}", reason="audit-broken", path=path
                )
            previous = found
    if head is not None and previous != head:
        raise VerificationError(
            "the log does not end with the given head: lines were cut off or added, or all of it was "
            "rewritten", reason="audit-head", path=path,
        )  # fmt: skip
    return count, previous


def _bounded(details: dict[str, Any]) -> dict[str, Any]:
    """`details` as text that is valid UTF-8, short enough for a line.

    Whatever is too long, a list of files above all, is replaced by its length and its digest.
    """
    details = _valid(details)
    if len(canonical_json(details)) <= _MAX_DETAILS:
        return details
    found = {}
    for name, value in details.items():
        data = canonical_json(value)
        count = len(value) if isinstance(value, dict | list | str) else 1
        short = {"left_out": count, "sha256": hashlib.sha256(data).hexdigest()}
        found[name] = short if len(data) > _MAX_VALUE else value
    return found


def _valid(value: Any) -> Any:
    """`value` with strings that are not valid UTF-8 escaped, and tuples as lists."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_valid(key): _valid(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(item) for item in value]
    return value


def _lines(path: str) -> Iterator[bytes]:
    with (
        open_regular(path, error=DocumentError) as (descriptor, _),
        open(descriptor, "rb", closefd=False) as file,
    ):
        while line := file.readline(_MAX_LINE):
            yield line


def _end(descriptor: int, path: str) -> tuple[int, str]:
    """The number and hash of the last line, which must be whole."""
    last = _last_line(descriptor, path)
    return (0, _START) if last is None else _check_line(last, None, path)


def _check_line(
    line: bytes, previous: str | None, path: str, where: str = "last line"
) -> tuple[int, str]:
    """The number and hash of a complete line which, where `previous` is given, follows it."""
    if not line.endswith(b"\n"):
        raise DocumentError("the line is incomplete", field=where, path=path, reason="audit-broken")
    try:
        entry = parse_json(line, path=path).only("seq", "time", "event", "details", "prev", "hash")
        number, found = entry.member("seq").integer(1), entry.member("hash").hex(32).hex()
        before = entry.member("prev").hex(32).hex()
    except DocumentError as error:
        error.field = f"{where}: {error.field}" if error.field else where
        raise
    body = {key: value for key, value in entry.table().items() if key != "hash"}
    if _hash(body) != found or (previous is not None and before != previous):
        raise VerificationError(
            f"{where} was changed, or a line before it is missing", reason="audit-broken",
            path=path,
        )  # fmt: skip
    return number, found


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body)).hexdigest()


def _last_line(descriptor: int, path: str) -> bytes | None:
    size = os.fstat(descriptor).st_size
    if size == 0:
        return None
    with open(descriptor, "rb", closefd=False) as file:
        span = _TAIL
        while True:
            file.seek(max(0, size - span))
            data = file.read()
            begin = data.rfind(b"\n", 0, -1) + 1
            if begin or span >= size:
                return data[begin:]
            if span > _MAX_LINE:
                raise DocumentError("line too long", field="last line", path=path)
            span *= 8
