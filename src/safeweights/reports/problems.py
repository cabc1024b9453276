"""Exceptions as records: what went wrong, where, and what to do."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from ..errors import (
    FormatError,
    MissingDependencyError,
    SafetensorError,
    SelectionError,
    TensorNotFoundError,
    UnsupportedError,
)
from ..text import escape, printable

if TYPE_CHECKING:
    from .documents import ErrorRecord

__all__ = [
    "INTERRUPTED",
    "NO",
    "PIPE_CLOSED",
    "UNREADABLE",
    "USAGE",
    "YES",
    "error_record",
    "explain",
]


YES: Final = 0
"""Exit status: the answer is yes."""

NO: Final = 1
"""Exit status: the content is invalid, or the answer is no."""

USAGE: Final = 2
"""Exit status: the command line is wrong."""

UNREADABLE: Final = 3
"""Exit status: input could not be read (missing file, no permission, missing package)."""

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as in shells."""

PIPE_CLOSED: Final = 141
"""Exit status after the reader of standard output ended: 128 + SIGPIPE, as in shells."""


_US: Final = "safeweights"


_KINDS: Final = (
    (FormatError, "format"),
    (TensorNotFoundError, "not-found"),
    (SelectionError, "selection"),
    (UnsupportedError, "unsupported"),
    (MissingDependencyError, "dependency"),
    (EOFError, "truncated"),
)


def explain(error: Exception) -> tuple[int, ErrorRecord]:
    """The exit status for an exception, and its description."""
    if isinstance(error, SafetensorError):
        return _explain_ours(error)
    if isinstance(error, OSError):
        return UNREADABLE, _explain_system(error)
    if isinstance(error, MemoryError):
        return UNREADABLE, error_record("memory", "not enough memory for this")
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith(_US):
        name = error.name.partition(".")[0]
        text = f"this needs the package {name}, which is not installed: pip install {name}"
        return UNREADABLE, error_record("dependency", text)
    return UNREADABLE, error_record("internal", _locate(error))


def _locate(error: Exception) -> str:
    """Message for an exception that no code expects: its type, text and place."""
    import traceback

    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"internal error, please report it: {type(error).__name__}: {error} "
        f"(at {place.name}, {place.filename}:{place.lineno})"
    )


def _explain_ours(error: SafetensorError) -> tuple[int, ErrorRecord]:
    kind = next((name for family, name in _KINDS if isinstance(error, family)), "refused")
    unread = isinstance(error, MissingDependencyError) or _rule(error) == "encrypted"
    default = UNREADABLE if unread else NO
    record = error_record(kind, str(error))
    # Errors of trust have an exit status of their own (NO or UNREADABLE), and a reason.
    record["rule"] = _rule(error)
    record["path"], record["tensor"], record["offset"] = error.path, error.tensor, error.offset
    return int(getattr(error, "exit_code", default)), record


def _rule(error: SafetensorError) -> str | None:
    return getattr(error, "rule", None) or getattr(error, "reason", None)


def _explain_system(error: OSError) -> ErrorRecord:
    names = [name for name in (error.filename, error.filename2) if name is not None]
    path = str(names[0]) if names else None
    what = error.strerror or str(error) or type(error).__name__
    if error.errno == errno.ENXIO or what.startswith("Not a regular file"):
        what = "not a regular file, but a device, a pipe or a socket; - reads standard input"
    if path == "-" and isinstance(error, FileNotFoundError):
        what = f"{what} (standard input is not read here: give a file)"
    if isinstance(error, FileExistsError) and what == os.strerror(errno.EEXIST):
        what = "it exists already and is not replaced; choose another name, or move it away"
    if path == "":
        what = f"the path is empty ({what})"
    record = error_record("os", f"{escape(path)}: {what}" if path else what)
    record["path"] = path
    return record


def error_record(kind: str, message: str) -> ErrorRecord:
    """A record of an error that has no place."""
    return {
        "kind": kind,
        "rule": None,
        "message": printable(message),
        "path": None,
        "tensor": None,
        "offset": None,
    }
