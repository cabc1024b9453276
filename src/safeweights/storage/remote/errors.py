"""Errors of remote stores: one kind for each thing that can go wrong, naming the URL and the byte."""

from __future__ import annotations

import errno
import os

from ...errors import ChangedError, UnsupportedError

__all__ = ["absent", "broken", "changed_meanwhile", "denied", "is_folder", "of_status", "read_only"]


def absent(where: str) -> FileNotFoundError:
    """There is no such file."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where)


def is_folder(where: str) -> IsADirectoryError:
    """There is a folder in place of a file."""
    return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), where)


def denied(where: str, why: str = "the server refuses access") -> PermissionError:
    """The server does not give it to us."""
    return PermissionError(errno.EACCES, f"{why}; are credentials set, and valid?", where)


def broken(where: str, what: str, offset: int | None = None) -> OSError:
    """The server, or the way to it, failed: what happened, and at which byte."""
    place = "" if offset is None else f" (at byte {offset})"
    return OSError(errno.EIO, f"{what}{place}", where)


def changed_meanwhile(where: str, what: str, offset: int | None = None) -> ChangedError:
    """The file is not the version that was opened."""
    return ChangedError(
        f"the file was replaced since it was first opened ({what}); open it again",
        path=where, offset=offset,
    )  # fmt: skip


def read_only(where: str, what: str) -> UnsupportedError:
    """The store cannot do that."""
    return UnsupportedError(what, path=where)


def of_status(where: str, status: int, offset: int | None = None) -> Exception:
    """The error for a response of that status; its text is left out, it may repeat what was sent."""
    if status in {404, 410}:
        return absent(where)
    if status in {401, 403, 407}:
        return denied(where, f"the server refuses access (status {status})")
    if status == 412:
        return changed_meanwhile(where, "the server has another version", offset)
    return broken(where, f"the server answered with status {status}", offset)
