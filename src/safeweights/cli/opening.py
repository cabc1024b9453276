"""PATH -> checkpoint, for every command in the same way."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Final, Literal

from .. import checkpoint
from ..errors import FormatError
from ..storage import FileObjectSource, Source, open_source

if TYPE_CHECKING:
    from typing import IO

    from ..checkpoint import Checkpoint

__all__ = ["SAFETENSORS", "STDIN", "foreign_format", "kind_of", "open_checkpoint", "stdin_source"]

STDIN: Final = "-"
SAFETENSORS: Final = "safetensors"


def open_checkpoint(path: str) -> Checkpoint:
    """The checkpoint at a file, index.json or folder, or on standard input.

    A file of another format that `safeweights.convert` reads is opened through it; nothing in it is
    executed.

    Raises:
        FormatError: See `safeweights.checkpoint.open` and `safeweights.convert.open`.
        OSError: It cannot be opened or read.
    """
    kind = kind_of(path)
    if kind in {"folder", "index"}:
        return checkpoint.open(path, backend="pread")
    source = stdin_source() if kind == "stdin" else open_source(path, engine="pread")
    try:
        file = checkpoint.SafetensorsFile(source)
    except FormatError as error:
        if (name := foreign_format(source, error)) is None:
            raise
        from ..convert import FORMATS
        from ..convert.foreign import OpenOptions

        return FORMATS[name](source, OpenOptions())
    return checkpoint.Checkpoint.from_files([file], file.name)


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


def stdin_source() -> Source:
    """Standard input, at any place: as it is if it is a file, else kept in a temporary file."""
    if sys.stdin is None:
        raise OSError(0, "standard input is closed")
    stream: IO[bytes] = sys.stdin.buffer
    if not stream.seekable():
        stream = _kept(stream)
    source = FileObjectSource(stream)
    source.name = "<stdin>"
    return source


def _kept(stream: IO[bytes]) -> IO[bytes]:
    """What comes out of a pipe, as a temporary file."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the source
    try:
        shutil.copyfileobj(stream, file, 1 << 20)
    except BaseException:
        file.close()
        raise
    return file
