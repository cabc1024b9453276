"""Any path, file object or bytes, in any format -> a checkpoint; nothing in it is executed.

Where ``trust=`` is given, only bytes that were verified are handed out. Without it `trust` is not
imported; without a foreign format neither are the readers.
"""

from __future__ import annotations

import os
from typing import Any, Final, Literal

from .. import checkpoint
from ..checkpoint import INDEX_SUFFIX, SUFFIX, Checkpoint
from ..errors import FormatError
from ..storage import Source, open_source
from ..storage.pipes import STDIN, stdin_source
from ..trust.verifier import verifier

__all__ = ["SAFETENSORS", "foreign_format", "kind_of", "open", "open_checkpoint"]


def open(target: Any, *, backend: str = "mmap", trust: object = None) -> checkpoint.Checkpoint:
    """Open a checkpoint: a file, an ``index.json``, a folder, a file object, or bytes.

    Reads and checks headers only. A folder is read through its index where it has one; without one
    all its ``.safetensors`` files are taken together.

    Args:
        target: Path, readable file object, or bytes-like object that holds a file.
        backend: ``"mmap"`` maps files, ``"pread"`` reads what is asked for. A mapping is fastest, but
            if another process truncates the file, touching it kills the process.
        trust: A policy, a public key, a warrant, or the path of one (`safeweights.trust.as_verifier`).
            Of every file, the index too, only bytes that were checked are then handed out; of one that was
            signed with a block tree only the blocks that are read.

    Raises:
        FormatError: A file breaks the format; an index disagrees with its shards; shards are missing.
        UnsupportedError: `target` is none of these, or there is no such backend, or something other
            than a path is to be trusted.
        TrustError: A file is not what `trust` asks for, here or when it is read.
        OSError: Something cannot be opened or read.

    >>> import safeweights.numpy, numpy
    >>> data = safeweights.numpy.save({"a": numpy.zeros(3, "f4")})
    >>> open(data)["a"]
    <FileTensor `a` F32 [3]>
    """
    return checkpoint.open(target, backend=backend, verify=verifier(trust))


SAFETENSORS: Final = "safetensors"


def open_checkpoint(path: str, *, headers_only: bool = False) -> Checkpoint:
    """The checkpoint at a file, index.json or folder, or on standard input.

    A file of another format that `safeweights.convert` reads is opened through it; nothing in it is
    executed.

    Args:
        path: The path as it was given; ``-`` is standard input.
        headers_only: No tensor will be read.

    Raises:
        FormatError: See `safeweights.checkpoint.open` and `safeweights.conversion.open`.
        OSError: It cannot be opened or read.
    """
    kind = kind_of(path)
    if kind == "folder" and not _has_safetensors(path):
        from .folders import open_folder  # readers are imported where there is a foreign format

        return open_folder(path)
    if kind == "index" and path.endswith(".index.json") and not path.endswith(INDEX_SUFFIX):
        from .folders import open_index

        return open_index(path)
    if kind in {"folder", "index"}:
        return checkpoint.open(path, backend="pread")
    if kind == "stdin":
        source = stdin_source(is_known, headers_only=headers_only)
    else:
        source = open_source(path, backend="pread")
    try:
        file = checkpoint.SafetensorsFile(source)
    except FormatError as error:
        if (name := foreign_format(source, error)) is None:
            raise
        from .folders import open_foreign

        return open_foreign(source, name)
    return checkpoint.Checkpoint.from_files([file], file.name)


def _has_safetensors(folder: str) -> bool:
    """Whether it is for `safeweights.open`: also where it holds nothing at all, to say so."""
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    return not names or any(name.endswith((SUFFIX, INDEX_SUFFIX)) for name in names)


def foreign_format(source: Source, refused: FormatError) -> str | None:
    """The format that a file is in which was refused as safetensors; None if none is recognised.

    Only where the length of a header makes no sense: other formats begin with their name, which is
    no small number, and a damaged safetensors file should be described as what it was meant to be.
    """
    if refused.rule not in {"header-too-small", "header-too-large"}:
        return None
    from ..storage.limits import DEFAULT_LIMITS
    from .formats import identify_format

    return identify_format(source, DEFAULT_LIMITS)


def kind_of(path: str) -> Literal["file", "index", "folder", "stdin"]:
    """What PATH is."""
    if path == STDIN:
        return "stdin"
    if os.path.isdir(path):
        return "folder"
    return "index" if path.endswith(".json") else "file"


def is_known(head: bytes) -> bool:
    """Whether a file of a format other than safetensors may begin with `head`."""
    from ..storage import BytesSource
    from ..storage.limits import DEFAULT_LIMITS
    from .formats import identify_format
    from .readers.numpy_files import COMPRESSED

    if head.startswith(tuple(magic for magic, _ in COMPRESSED)):
        return True  # the beginning of a compressed block may tell nothing of what is in it
    try:
        return identify_format(BytesSource(head, "<stdin>"), DEFAULT_LIMITS) is not None
    except FormatError:  # an archive, of which this is only the beginning
        return True
