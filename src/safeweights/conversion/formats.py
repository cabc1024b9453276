"""Which format a file is in, and the reader for it.

Decided by what is in the file, never by its name alone: a name is only asked where bytes do not
tell (a TensorFlow index, Paddle's pickles). `open` gives the same mapping for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ..checkpoint import SafetensorsFile
from ..derived.casting import cast
from ..errors import FormatError
from ..format.sniffing import identify
from ..storage import BytesSource, Source, open_source
from ..storage.windows import read_bytes
from ..trust.verifier import verifier
from .archives import tar_reader, zip_reader
from .foreign import ForeignCheckpoint, OpenOptions
from .pickles.materialize import Materialized
from .readers import flax_msgpack, gguf, hdf5, numpy_files, tensorflow_v2, torch_files, torch_tar

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from ..storage import Verifier
    from ..storage.limits import Limits

__all__ = ["FORMATS", "identify_format", "identify_zip", "open", "read"]

HEAD: Final = 1024

Reader = Callable[[Source, OpenOptions], ForeignCheckpoint]


def _read_safetensors(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """A safetensors file, so that conversion can rename, filter and cast one as well."""
    file = SafetensorsFile(source)
    tensors = {
        name: cast(file.tensor(name), options.casts, source.name) for name in file.header.tensors
    }
    return ForeignCheckpoint(
        source.name, "safetensors", Materialized(tensors), metadata=file.header.metadata
    )


FORMATS: Final[dict[str, Reader]] = {
    "safetensors": _read_safetensors,
    "torch-zip": torch_files.read_zip,
    "torch-legacy": torch_files.read_legacy,
    "torch-tar": torch_tar.read_tar,
    "npy": numpy_files.read_npy,
    "npz": numpy_files.read_npz,
    "pickle": numpy_files.read_object_pickle,
    "paddle": lambda source, options: numpy_files.read_object_pickle(
        source, replace(options, paddle=True)
    ),
    "flax-msgpack": flax_msgpack.read_flax,
    "tensorflow-v2": tensorflow_v2.read_tensorflow,
    "hdf5": hdf5.read_hdf5,
    "keras": hdf5.read_keras,
    "gguf": gguf.read_gguf,
}
"""Name of each format that can be read -> its reader."""

_PADDLE_SUFFIXES: Final = (".pdparams", ".pdopt", ".pdiparams")
_TEXT_PICKLES: Final = (b"(", b"c", b"]", b"}", b")", b"i", b"N", b"I", b"L", b"S", b"V", b"F")


def identify_format(source: Source, limits: Limits) -> str | None:
    """The key of `FORMATS` that `source` is in, or None.

    Cost: the first KiB; the directory of a zip or tar archive; the first 4 MiB of a compressed stream.

    Raises:
        FormatError: It is an archive that breaks a rule.
    """
    head = read_bytes(source, 0, min(HEAD, source.size))
    if zip_reader.looks_like_zip(head):
        return identify_zip(zip_reader.ZipArchive(source, limits))
    if torch_files.is_legacy(head):
        return "torch-legacy"
    for magic, name in (
        (numpy_files.NPY_MAGIC, "npy"),
        (hdf5.HDF5_MAGIC, "hdf5"),
        (gguf.GGUF_MAGIC, "gguf"),
    ):
        if head.startswith(magic):
            return name
    if tar_reader.looks_like_tar(head):
        archive = tar_reader.TarArchive(source, limits)
        return "torch-tar" if torch_tar.is_torch_tar(archive) else None
    if tensorflow_v2.is_table(source):
        return "tensorflow-v2"
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= source.size - 8:
        return "safetensors"
    return _identify_stream(head, source)


def identify_zip(archive: zip_reader.ZipArchive) -> str | None:
    """The key of `FORMATS` that an archive is in, or None."""
    if torch_files.torch_root(archive) is not None:
        return "torch-zip"
    if hdf5.KERAS_WEIGHTS in archive.members:
        return "keras"
    return "npz" if numpy_files.is_npz(archive) else None


def _identify_stream(head: bytes, source: Source) -> str | None:
    if source.name.endswith(_PADDLE_SUFFIXES):
        return "paddle"
    if head[:1] == b"\x80" and 2 <= head[1:2][0] <= 5 if len(head) > 1 else False:
        return "pickle"
    if numpy_files.compressed_kind(source) is not None:
        return "pickle" if numpy_files.holds_pickle(source) else None
    if flax_msgpack.looks_like_map(head):
        return "flax-msgpack"
    return "pickle" if head[:1] in _TEXT_PICKLES else None


def open(
    target: str | os.PathLike[str] | bytes | Any,
    *,
    format: str | None = None,  # noqa: A002 - what callers call it
    densify: bool = False,
    casts: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    trust: object = None,
) -> ForeignCheckpoint:
    """Open a checkpoint of another format as a mapping from names to tensors.

    Nothing in the file is executed, imported or called; tensors are read when they are asked for.

    Args:
        target: Path, bytes, or seekable file object.
        format: A key of `FORMATS`, for a file that cannot be told by its contents.
        densify: Make sparse and quantised tensors dense instead of refusing them.
        casts: Element type -> the type its tensors are converted to while they are read.
        limits: What the file may cost; see `Limits`.
        trust: What the file must fulfil before a byte of it is used; see `safeweights.open`.

    Raises:
        FormatError: The file is in no known format, or breaks a rule of its own.
        UnsupportedError: Something other than a path is to be trusted.
        TrustError: The file is not what `trust` asks for.
        OSError: It cannot be opened or read.

    >>> import io, numpy
    >>> file = io.BytesIO()
    >>> numpy.savez(file, a=numpy.zeros(3, "f4"))
    >>> open(file.getvalue())["a"]
    <StridedTensor `a` F32 [3]>
    """
    verify = verifier(trust)
    options = OpenOptions(densify=densify, casts=dict(casts or {}), verify=verify)
    if limits is not None:
        options = replace(options, limits=limits)
    return read(_source(target, verify), options, format)


def read(source: Source, options: OpenOptions, format: str | None = None) -> ForeignCheckpoint:  # noqa: A002
    """What `open` gives, of a source that is open and that is trusted as far as it has to be."""
    name = format or identify_format(source, options.limits)
    if name not in FORMATS:
        raise _unknown(source)
    return FORMATS[name](source, options)


def _source(target: Any, verify: Verifier | None) -> Source:
    if verify is None and isinstance(target, (bytes, bytearray, memoryview)):
        return BytesSource(target, "<bytes>")
    if verify is None and isinstance(target, Source):
        return target
    return open_source(target, backend="pread", verify=verify)


def _unknown(source: Source) -> FormatError:
    return FormatError(
        f"this is no checkpoint of a format that can be converted{_what(source)}",
        rule="unknown-format",
        path=source.name,
    )


def _what(source: Source) -> str:
    """What is known of a file that is not: an archive is one that was looked into."""
    head = read_bytes(source, 0, min(HEAD, source.size))
    for looks_like, kind in (
        (zip_reader.looks_like_zip, "zip"),
        (tar_reader.looks_like_tar, "tar"),
    ):
        if looks_like(head):
            return f"; it is a {kind} archive of other things than a checkpoint's: extract it first"
    if (packed := numpy_files.compressed_kind(source)) is not None:
        return f"; it is {packed}"
    found = identify(head)
    return f"; it looks like {found}" if found else ""
