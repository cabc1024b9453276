"""The formats other than safetensors: how each is recognised, and its reader.

The contents of a file decide; its name counts only if they do not tell (Paddle's pickles). Every reader
gives the same mapping. `opening` decides which format a file has.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ..checkpoint import SafetensorsFile
from ..errors import FormatError, UnsupportedError, quote
from ..format.gcpause import gc_paused
from ..format.sniffing import HEAD, identify
from ..lazy import deferred
from ..storage import Source
from ..storage.limits import DEFAULT_LIMITS
from ..storage.windows import Window, read_bytes
from .archives import tar_reader, zip_reader
from .distributed.finding import rank_note
from .foreign import ForeignCheckpoint, OpenOptions
from .pickles.flatten import Other
from .pickles.machine import PickleMachine
from .pickles.storages import Materialized
from .readers import numpy_files, signatures, torch_files

if TYPE_CHECKING:
    from ..checkpoint import Tensor
    from ..storage.limits import Limits

__all__ = ["FORMATS", "identify_foreign", "identify_zip", "read_as"]

FormatReader = Callable[[Source, OpenOptions], ForeignCheckpoint]


def _read_safetensors(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """A safetensors file as conversion takes it: its tensors are cast like those of other formats."""
    file, casts = SafetensorsFile(source), options.casts
    with gc_paused():
        tensors: dict[str, Tensor] = {**file.tensors()}
        if casts:
            from ..derived.casting import cast

            tensors = {name: cast(each, casts, source.name) for name, each in tensors.items()}
    return ForeignCheckpoint(
        source.name, "safetensors", Materialized(tensors), metadata=file.header.metadata
    )


def _reader(module: str, name: str) -> FormatReader:
    """A reader that is imported when it is first used."""
    return deferred(f"{__package__}.readers.{module}", name)


FORMATS: Final[dict[str, FormatReader]] = {
    "safetensors": _read_safetensors,
    "torch-zip": torch_files.read_zip,
    "torch-legacy": torch_files.read_legacy,
    "torch-tar": _reader("torch_tar", "read_tar"),
    "nemo": _reader("nemo", "read_nemo"),
    "npy": numpy_files.read_npy,
    "npz": numpy_files.read_npz,
    "pickle": numpy_files.read_object_pickle,
    "paddle": lambda source, options: numpy_files.read_object_pickle(
        source, replace(options, paddle=True)
    ),
    "flax-msgpack": _reader("flax_msgpack", "read_flax"),
    "tensorflow-v2": _reader("tensorflow_v2", "read_tensorflow"),
    "hdf5": _reader("hdf5", "read_hdf5"),
    "keras": _reader("hdf5", "read_keras"),
    "gguf": _reader("gguf", "read_gguf"),
}
"""Name of each format that can be read -> its reader."""

_NEMO_SUFFIX: Final = ".nemo"
_PADDLE_SUFFIXES: Final = (".pdparams", ".pdopt", ".pdiparams")
_PROSE: Final = 1 << 16
"""Bytes of a text that are read to find out that it is not a pickle."""

_TEXT_PICKLES: Final = (b"(", b"c", b"]", b"}", b")", b"i", b"N", b"I", b"L", b"S", b"V", b"F")


def identify_foreign(
    source: Source, head: bytes, limits: Limits, *, certain: bool = False, whole: bool = True
) -> str | None:
    """The format (a key of `FORMATS`) of a source that is not safetensors; None if it is not known.

    Cost: the directory of a zip or tar archive; the first 4 MiB of a compressed stream.

    Args:
        source: The file.
        head: Its first bytes.
        limits: Bounds on the work of reading an archive's directory.
        certain: Go by signatures alone, not by what text and plain pickles usually begin with.
        whole: `source` is all of the file, not only its beginning.

    Raises:
        FormatError: It is an archive that breaks a rule.
    """
    if zip_reader.looks_like_zip(head):
        return identify_zip(zip_reader.ZipArchive(source, limits))
    if torch_files.is_legacy(head):
        return "torch-legacy"
    for magic, name in (
        (signatures.NPY_MAGIC, "npy"),
        (signatures.HDF5_MAGIC, "hdf5"),
        (signatures.GGUF_MAGIC, "gguf"),
    ):
        if head.startswith(magic):
            return name
    if tar_reader.looks_like_tar(head):
        archive = tar_reader.TarArchive(source, limits)
        if signatures.is_nemo(archive):
            return "nemo"
        return "torch-tar" if signatures.is_torch_tar(archive) else None
    if not certain and signatures.is_table(source):  # known by the end of the file
        return "tensorflow-v2"
    return _identify_stream(head, source, certain=certain, whole=whole)


def identify_zip(archive: zip_reader.ZipArchive) -> str | None:
    """The key of `FORMATS` that an archive is in, or None."""
    if torch_files.torch_root(archive) is not None:
        return "torch-zip"
    if signatures.KERAS_WEIGHTS in archive.members:
        return "keras"
    return "npz" if numpy_files.is_npz(archive) else None


def _identify_stream(head: bytes, source: Source, *, certain: bool, whole: bool) -> str | None:
    if not certain and source.name.endswith(_PADDLE_SUFFIXES):
        return "paddle"
    if not certain and len(head) > 1 and head[:1] == b"\x80" and 2 <= head[1] <= 5:
        return "pickle"
    if numpy_files.compressed_kind(source) is not None:
        if source.name.endswith(_NEMO_SUFFIX) and numpy_files.holds_tar(source):
            return "nemo"
        return "pickle" if numpy_files.holds_pickle(source) else None
    if certain:
        return None
    if signatures.looks_like_map(head):
        return "flax-msgpack"
    return "pickle" if head[:1] in _TEXT_PICKLES and not _is_prose(source, whole=whole) else None


def _is_prose(source: Source, *, whole: bool) -> bool:
    """Whether an unpickler fails at the first words of a text, before it has imported or called anything.

    Any text may begin with letters that are opcodes, such as a server's reply, "Not Found".
    """
    size = min(source.size, _PROSE)
    if identify(read_bytes(source, 0, min(HEAD, size))) is None:
        return False  # not a text
    machine = PickleMachine(Window(source, 0, size), limits=DEFAULT_LIMITS)
    try:
        machine.run()
    except FormatError as error:
        # Only under the rule `pickle` is it certain that CPython stops here too.
        ends = whole and size == source.size
        fails = error.rule == "pickle" or (error.rule == "truncated" and ends)
        found = machine.result
        return fails and not (found.globals or found.calls or found.effects or found.persistent)
    return False


def read_as(name: str, source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """Read an open file as the format `name`; verification has already been applied to `source`.

    Raises:
        FormatError: There is no such format, or the file breaks a rule of it.
    """
    if name not in FORMATS:
        known = ", ".join(FORMATS)
        raise UnsupportedError(f"no such format: {quote(name)}; there are {known}")
    source.name = source.name or "<bytes>"
    found = FORMATS[name](source, options)
    found.sources = (source,)
    if note := rank_note(source.name):
        found.others.append(Other("(file)", os.path.basename(source.name), note))
        found.others_count += 1
    return found
