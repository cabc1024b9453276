"""What a command writes: to standard output for `-`, and over nothing but a document of its own kind."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

import click

from ..errors import SafetensorError

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
    """Find out, before anything is read, that a document can be written to `path` and loses nothing.

    Args:
        path: The file; one without a byte in it is nobody's.
        own: Raises `SafetensorError` for what is no such document, or one to be kept.
        what: What it has to be.
        force: Replace whatever is there.
        advice: What to do about it.

    Raises:
        FileExistsError: There is something else.
        OSError: No file can be made there.
    """
    from ..trust.files import check_writable, read_document

    check_writable(path)
    if force or not os.path.exists(path):
        return
    try:
        if data := read_document(path):
            own(data)
    except SafetensorError:
        message = f"exists and is not {what}; {advice}"
        raise FileExistsError(errno.EEXIST, message, path) from None


def not_stdout(option: str, path: str | None) -> None:
    """Refuse `-` where standard output says what was done.

    Raises:
        click.UsageError: It is `-`.
    """
    if path == STDOUT:
        raise click.UsageError(
            f"{option} takes a file, standard output has the result; ./- is a file called -"
        )
