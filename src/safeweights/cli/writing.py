"""Rules for output files: `-` is standard output, and only a document of the same kind is replaced.

``--force`` replaces any other file too, but not weights: a document takes the place of no model.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import click

from ..checkpoint.shardindex import ANY_INDEX
from ..errors import FormatError, SafetensorError
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
        force: Replace any existing file that has no weights.
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
    if not exists(path):
        return
    try:
        if not force and (data := read_document(path, elsewhere=True)):
            own(data)
    except SafetensorError:
        problem = f"exists and is not {what}; {advice}"
    else:
        problem = ""
    if (force or problem) and _has_weights(path):
        problem = f"has weights, which {what} never replaces; choose another name"
    if problem:
        raise FileExistsError(errno.EEXIST, problem, shown(path))


def _has_weights(path: str) -> bool:
    """Whether a file is a checkpoint that can be read, or the index of one."""
    from ..conversion.opening import FORMAT_HEAD, identify
    from ..storage import open_source

    if path.endswith(ANY_INDEX):
        return True
    source = open_source(path, backend="pread")
    try:
        return (
            identify(source, source.read(0, min(FORMAT_HEAD, source.size)), damaged=False)
            is not None
        )
    except FormatError:  # an archive that breaks a rule
        return True


def not_stdout(option: str, path: str | None) -> None:
    """Check that an output file is not `-`, for commands that print their result on standard output.

    Raises:
        click.UsageError: `path` is `-`.
    """
    if path == STDOUT:
        raise click.UsageError(
            f"{option} cannot be standard output, which has the result; write ./- for a file called -"
        )
