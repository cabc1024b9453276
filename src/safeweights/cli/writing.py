"""Rules for output files: `-` is standard output, and only a document of the same kind is replaced."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import click

from ..errors import SafetensorError
from ..storage.places import exists, is_url, place_of, shown

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["STDOUT", "check_replaceable", "not_stdout"]

STDOUT: Final = "-"


def check_replaceable(
    path: str,
    own: Callable[[bytes], object],
    what: str,
    *,
    force: bool,
    advice: str = "--force replaces it",
) -> None:
    """Check, before any work, that a document can be written to `path` without losing another file.

    Args:
        path: The file to write. An empty file may be replaced.
        own: Raises `SafetensorError` for contents that must not be replaced.
        what: Name of the kind of document, for the message.
        force: Replace any existing file.
        advice: What the user can do, for the message.

    Raises:
        FileExistsError: `path` is a file that must not be replaced.
        OSError: No file can be created there.
    """
    from ..trust.files import check_writable, read_document

    if is_url(path):
        place_of(path).store.check_writable()
    else:
        check_writable(path)
    if force or not exists(path):
        return
    try:
        if data := read_document(path, elsewhere=True):
            own(data)
    except SafetensorError:
        message = f"exists and is not {what}; {advice}"
        raise FileExistsError(errno.EEXIST, message, shown(path)) from None


def not_stdout(option: str, path: str | None) -> None:
    """Check that an output file is not `-`, for commands that print their result on standard output.

    Raises:
        click.UsageError: `path` is `-`.
    """
    if path == STDOUT:
        raise click.UsageError(
            f"{option} cannot be standard output, which has the result; write ./- for a file called -"
        )
