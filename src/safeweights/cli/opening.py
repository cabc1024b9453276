"""PATH -> checkpoint, for every command in the same way."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, Final, Literal

from .. import checkpoint
from ..checkpoint import INDEX_SUFFIX, SUFFIX
from ..errors import FormatError, quote
from ..storage import FileObjectSource, Source, open_source
from .output import escape

if TYPE_CHECKING:
    from typing import IO

    from ..checkpoint import Checkpoint
    from .output import Output

__all__ = [
    "SAFETENSORS",
    "STDIN",
    "calls_of",
    "foreign_format",
    "kind_of",
    "open_checkpoint",
    "say_calls",
    "stdin_source",
]

STDIN: Final = "-"
SAFETENSORS: Final = "safetensors"

_CALLS_SHOWN: Final = 3


def open_checkpoint(path: str, *, headers_only: bool = False) -> Checkpoint:
    """The checkpoint at a file, index.json or folder, or on standard input.

    A file of another format that `safeweights.convert` reads is opened through it; nothing in it is
    executed.

    Args:
        path: The path as it was given; ``-`` is standard input.
        headers_only: No tensor will be read.

    Raises:
        FormatError: See `safeweights.checkpoint.open` and `safeweights.convert.open`.
        OSError: It cannot be opened or read.
    """
    kind = kind_of(path)
    if kind == "folder" and not _has_safetensors(path):
        from .foreign import open_folder

        return open_folder(path)
    if kind == "index" and path.endswith(".index.json") and not path.endswith(INDEX_SUFFIX):
        from .foreign import open_index

        return open_index(path)
    if kind in {"folder", "index"}:
        return checkpoint.open(path, backend="pread")
    if kind == "stdin":
        source = stdin_source(headers_only=headers_only)
    else:
        source = open_source(path, engine="pread")
    try:
        file = checkpoint.SafetensorsFile(source)
    except FormatError as error:
        if (name := foreign_format(source, error)) is None:
            raise
        from .foreign import open_foreign

        return open_foreign(source, name)
    return checkpoint.Checkpoint.from_files([file], file.name)


def _has_safetensors(folder: str) -> bool:
    """Whether it is for `safeweights.open`: also where it holds nothing at all, to say so."""
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    return not names or any(name.endswith((SUFFIX, INDEX_SUFFIX)) for name in names)


def calls_of(checkpoint: Checkpoint) -> list[str]:
    """What loading it with its own library calls, other than to build tensors."""
    return list(getattr(checkpoint, "calls", ()))


def say_calls(out: Output, path: str, calls: list[str]) -> None:
    """Say on standard error that looking at a checkpoint was safe, and loading it would not be."""
    if calls:
        shown = ", ".join(map(quote, calls[:_CALLS_SHOWN])) + (
            ", ..." if len(calls) > _CALLS_SHOWN else ""
        )
        out.message(
            f"warning: loading this with its own library runs code ({shown}); "
            f"see safeweights check {escape(path)}"
        )


def foreign_format(source: Source, refused: FormatError) -> str | None:
    """The format that a file is in which was refused as safetensors; None if none is recognised.

    Only where the length of a header makes no sense: other formats begin with their name, which is
    no small number, and a damaged safetensors file should be described as what it was meant to be.
    """
    if refused.rule not in {"header-too-small", "header-too-large"}:
        return None
    from ..convert import DEFAULT_LIMITS
    from ..convert.formats import identify_format

    return identify_format(source, DEFAULT_LIMITS)


def kind_of(path: str) -> Literal["file", "index", "folder", "stdin"]:
    """What PATH is."""
    if path == STDIN:
        return "stdin"
    if os.path.isdir(path):
        return "folder"
    return "index" if path.endswith(".json") else "file"


def stdin_source(*, headers_only: bool = False) -> Source:
    """Standard input, at any place: as it is if it is a file, else as much of it as is needed.

    Args:
        headers_only: No tensor of a safetensors file will be read.

    Raises:
        OSError: It is closed, cannot be read, or is longer than what may be kept of a pipe.
    """
    if sys.stdin is None:
        raise OSError(0, "standard input is closed")
    stream: IO[bytes] = sys.stdin.buffer
    if not stream.seekable() or _is_device(stream):
        from .piping import piped

        return piped(stream, headers_only=headers_only)
    source = FileObjectSource(stream)
    source.name = "<stdin>"
    return source


def _is_device(stream: IO[bytes]) -> bool:
    """Whether it is one without an end, such as /dev/zero, where seeking succeeds and does nothing."""
    try:
        return stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
    except OSError:
        return False  # not a real file: a test's
