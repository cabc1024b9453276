"""Open any path, file object or bytes, in any format, as a checkpoint; nothing in it is executed.

Everything that opens a model goes through here: `safeweights.open`, the command line, the tools for
agents, the guard. The contents of a file decide its format, from one look at its first bytes; its name
counts only if they do not tell. Opening safetensors imports no reader of another format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..checkpoint import SUFFIX, Checkpoint, SafetensorsFile
from ..checkpoint.opening import Files, beside, find_files
from ..checkpoint.shardindex import is_delta
from ..errors import FormatError
from ..format import sniffing
from ..format.header import MAX_HEADER, PREFIX
from ..lazy import deferred, matcher
from ..storage import Source, open_source
from ..storage.pipes import STDIN
from ..trust.verifier import plain_stdin, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..storage import Verifier
    from ..storage.limits import Limits
    from .foreign import ForeignCheckpoint, OpenOptions

__all__ = [
    "FORMAT_HEAD",
    "SAFETENSORS",
    "WEIGHT_SUFFIXES",
    "identify",
    "is_known",
    "open",
    "open_checkpoint",
    "read_foreign",
    "read_source",
    "unknown_format",
]

_open_delta = deferred("safeweights.editing.deltas", "open_delta")

SAFETENSORS: Final = "safetensors"

FORMAT_HEAD: Final = 1024
"""Bytes at the beginning of a file by which formats are told apart."""

WEIGHT_SUFFIXES: Final = (
    ".bin", ".pt", ".pth", ".ckpt", ".npz", ".npy", ".pdparams", ".msgpack", ".h5", ".keras",
)  # fmt: skip
"""How the names of weight files of other formats end, in a folder that is opened as a whole."""

_PART_NAME = matcher(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors\Z")
"""Names of safetensors files that have a part of each tensor."""

_HINTED: Final = frozenset({"text", "empty", "html", "xml", "lfs", "image", "pdf"})
"""Kinds of which `sniffing` knows more than the catalogue, e.g. which page a download returned."""


def open(
    target: Any,
    *,
    backend: str = "mmap",
    trust: object = None,
    identity: Any = None,
    format: str | None = None,  # noqa: A002 - what callers call it
    densify: bool = False,
    casts: Mapping[str, str] | None = None,
    dtype_of: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    base: Any = None,
) -> Checkpoint:
    """Open a checkpoint of any format: a file, an index, a folder, a file object, or bytes.

    Reads and checks headers only, or what a format has instead; nothing in a file is executed, imported
    or called. A folder is read through its index if it has one; otherwise all its ``.safetensors`` files
    are taken together, or if it has none, its weight files of other formats.

    Args:
        target: Path, store, readable file object, or bytes-like object that holds a file.
        backend: ``"mmap"`` maps files, ``"pread"`` reads what is asked for. A mapping is fastest, but
            if another process truncates the file, touching it kills the process.
        trust: A policy, a public key, a warrant, or the path of one (`safeweights.trust.as_verifier`).
            Of every file, the index too, only bytes that were checked are then handed out; of one that
            was signed with a block tree only the blocks that are read.
        identity: Who opens an encrypted model: the path of a file of identities or of an SSH key, a
            `safeweights.trust.Passphrase`, a function from a stanza to a file key, or several of these.
            Files are decrypted as they are read; those that are not encrypted are refused.
        format: A key of `safeweights.conversion.FORMATS`, for a file that cannot be told by its
            contents.
        densify: Give sparse and quantised tensors dense; otherwise reading them is an error.
        casts: Element type -> the type its tensors are converted to while they are read.
        dtype_of: NumPy's kind of an array that does not tell what it holds -> its element type:
            ``{"V2": "BF16"}`` for BF16 saved where NumPy does not know it.
        limits: Bounds on what a file of another format may cost; see `safeweights.conversion.Limits`.
        base: What a delta checkpoint is based on: a path, or a `Checkpoint`; see
            `safeweights.editing.open_delta`.

    Returns:
        A mapping from names to unread tensors: a `safeweights.conversion.ForeignCheckpoint` if not all
        files are safetensors.

    Raises:
        FormatError: A file breaks its format, or is of none that is known; an index disagrees with its
            shards; shards are missing.
        UnsupportedError: `target` is none of these, or there is no such backend, or something other
            than a path is to be trusted; or `casts` would convert a part of a quantised weight alone
            (see `Checkpoint.dequantize`).
        TrustError: A file is not what `trust` asks for, here or when it is read.
        OSError: Something cannot be opened or read.

    >>> import io, numpy, safeweights.numpy
    >>> open(safeweights.numpy.save({"a": numpy.zeros(3, "f4")}))["a"]
    <FileTensor `a` F32 [3]>
    >>> file = io.BytesIO()
    >>> numpy.savez(file, a=numpy.zeros(3, "f4"))
    >>> open(file.getvalue())["a"]
    <StridedTensor `a` F32 [3]>
    """
    if base is not None:
        over_base: Checkpoint = _open_delta(
            target, base, trust=trust, identity=identity, backend=backend
        )
        return over_base
    target, verify = resolve(target, trust, identity)
    given: dict[str, Any] = {"verify": verify, "backend": backend}
    if densify or casts or limits or dtype_of:
        given |= {"densify": densify, "casts": dict(casts or {}), "limits": limits}
        given |= {"dtype_of": dict(dtype_of or {})}
    found: Checkpoint
    if not isinstance(target, Source) or verify is not None:  # a source is refused then, below
        files = _find_files(target, verify)
        if callable(files):
            from .foreign import OpenOptions

            found = files(OpenOptions.of(given))
        elif files is not None:
            if is_delta(files.index_metadata):
                raise FormatError(
                    "this is a delta: say what it is based on (base=), or apply it (`safeweights delta "
                    "apply`)",
                    rule="delta", path=files.name,
                )  # fmt: skip
            found = _read_files(files, given)
            found.beside = beside(files.store, verify)
        else:
            source = open_source(target, backend=backend, verify=verify)
            found = read_source(source, given, format)
            found.beside = beside(target, verify)
    else:
        found = read_source(target, given, format)
    if casts:
        from ..derived.quantised.schemes import names_of, refuse_casts

        refuse_casts(names_of(found), found)
    return found


def open_checkpoint(path: str, *, headers_only: bool = False) -> Checkpoint:
    """Open a PATH of the command line: what `open` takes, or ``-`` for standard input.

    Args:
        path: The path as it was given.
        headers_only: No tensor will be read, so that less of standard input has to be kept.

    Raises:
        FormatError, OSError: See `open`.
    """
    if path == STDIN:
        return read_source(plain_stdin(is_known, headers_only=headers_only))
    return open(path, backend="pread")


def read_source(
    source: Source,
    given: Mapping[str, Any] | None = None,
    format: str | None = None,  # noqa: A002
) -> Checkpoint:
    """The checkpoint in one file that is open.

    Args:
        source: The file.
        given: Fields of `OpenOptions`, for other formats.
        format: See `open`.

    Raises:
        FormatError: It breaks its format, or is of none that is known.
    """
    head = source.read(0, min(FORMAT_HEAD, source.size)) if format is None else b""
    if format is None and head[PREFIX : PREFIX + 1] != b"{":
        _refuse_part(source)
    kind = format or identify(source, head) or _unknown(source, head)
    if kind == SAFETENSORS and not (given and given.get("casts")):
        file = SafetensorsFile(source, head)
        return Checkpoint.from_files([file], file.name)
    from .foreign import OpenOptions  # readers are imported only for other formats
    from .formats import read_as

    return read_as(kind, source, OpenOptions.of(given or {}))


def _refuse_part(source: Source) -> None:
    """Raise an error for a file that makes sense only together with others, which says with which.

    Raises:
        FormatError: Its name is that of a part of a distributed checkpoint.
    """
    from .distributed.finding import part_of

    if (whole := part_of(source.name)) is not None:
        raise FormatError(whole, rule="part", path=source.name)


def _unknown(source: Source, head: bytes) -> str:
    """The format whose reader describes what is wrong: safetensors, if the file may be a damaged one.

    Raises:
        FormatError: It is clearly not a safetensors file.
    """
    if len(head) <= PREFIX or head[PREFIX : PREFIX + 1] == b"{":
        return SAFETENSORS
    raise unknown_format(source)


def unknown_format(source: Source) -> FormatError:
    """The error for a file that is not read here: what it is, what it can do, what to do with it."""
    from ..format.kinds import KIND_HEAD, by_name, recognize

    head = source.read(0, min(KIND_HEAD, source.size))
    name = source.name or ""
    kind = recognize(head, source.size, name) or by_name(name)
    if kind is not None and kind.id == "age":
        return FormatError(f"this is {sniffing.ENCRYPTED}", rule="encrypted", path=name or None)
    hint = sniffing.identify(head) if kind is None or kind.id in _HINTED else kind.description
    what = f"; it looks like {hint}" if hint else ""
    return FormatError(
        f"this is no checkpoint of a known format{what}",
        rule="unknown-format",
        path=source.name or None,
    )


def read_foreign(
    source: Source,
    options: OpenOptions,
    format: str | None = None,  # noqa: A002
) -> ForeignCheckpoint:
    """Like `read_source`, for conversion: safetensors files are read like those of other formats.

    Raises:
        FormatError: It is in no format that is known, or breaks a rule of its own.
    """
    from .formats import read_as

    if format is None:
        _refuse_part(source)
        head = source.read(0, min(FORMAT_HEAD, source.size))
        format = identify(source, head, options.limits, damaged=False)
    if format is None:
        raise unknown_format(source)
    return read_as(format, source, options)


def identify(
    source: Source,
    head: bytes,
    limits: Limits | None = None,
    *,
    damaged: bool = True,
    whole: bool = True,
) -> str | None:
    """The format of a file: ``"safetensors"``, another key of `FORMATS`, or None if it is not known.

    Cost: nothing more is read for safetensors; of others, what `formats.identify_foreign` says.

    Args:
        source: The file.
        head: Its first `FORMAT_HEAD` bytes, or all it has.
        limits: Bounds on the work of reading an archive's directory.
        damaged: Also take a file for safetensors of which only the first 8 bytes, the length of a
            header, make sense, unless it has the signature of another format. Errors then describe a
            damaged file as what it was meant to be. (Some gzip streams begin with such a number too.)
        whole: `source` is all of the file, not only its beginning.

    Raises:
        FormatError: It is an archive that breaks a rule.
    """
    length = int.from_bytes(head[:PREFIX], "little") if len(head) >= PREFIX else MAX_HEADER + 1
    most = MAX_HEADER if damaged else min(MAX_HEADER, source.size - PREFIX)
    if length <= most and head[PREFIX : PREFIX + 1] == b"{":
        return SAFETENSORS
    from ..storage.limits import DEFAULT_LIMITS
    from .formats import identify_foreign

    likely = damaged and length <= MAX_HEADER
    limits = limits or DEFAULT_LIMITS
    found = identify_foreign(source, head, limits, certain=likely, whole=whole)
    return SAFETENSORS if found is None and likely else found


def is_known(head: bytes) -> bool:
    """Whether a file of a format other than safetensors may begin with `head`."""
    from ..storage import BytesSource
    from .readers.numpy_files import COMPRESSED

    if head.startswith(tuple(magic for magic, _ in COMPRESSED)):
        return True  # the beginning of a compressed block need not tell what is in it
    try:
        whole = len(head) < FORMAT_HEAD
        found = identify(BytesSource(head, "<stdin>"), head, whole=whole)
        return found not in {None, SAFETENSORS}
    except FormatError:  # an archive, of which this is only the beginning
        return True


def _find_files(
    target: Any, verify: Verifier | None
) -> Files | Callable[[OpenOptions], ForeignCheckpoint] | None:
    """The files of a folder, or what reads them together; None if `target` is no folder or index."""
    try:
        files = find_files(target, shard_suffix="", verify=verify)
    except FormatError as error:
        if error.rule != "folder":
            raise
    else:
        if files is None or not any(map(_PART_NAME, files.names)):
            return files
    from .distributed.finding import find_distributed

    found = find_distributed(target)
    return _find_other_files(target, verify) if found is None else found


def _find_other_files(target: Any, verify: Verifier | None) -> Files | None:
    return find_files(
        target,
        suffixes=((SUFFIX,), WEIGHT_SUFFIXES),
        shard_suffix="",
        verify=verify,
        missing=f"the folder has no {SUFFIX} file, no index and no file of another format",
    )


def _read_files(files: Files, given: Mapping[str, Any]) -> Checkpoint:
    parts = {
        name: read_source(source, given)
        for name, source in files.open(given["backend"], given["verify"])
    }
    files.check(parts)
    if all(part.files for part in parts.values()):
        return Checkpoint.from_files(
            [file for part in parts.values() for file in part.files], files.name
        )
    from .distributed.ranks import has_parts, join_ranks
    from .foreign import ForeignCheckpoint, OpenOptions

    foreign = [part for part in parts.values() if isinstance(part, ForeignCheckpoint)]
    if any(map(has_parts, foreign)) and len(foreign) == len(parts):
        return join_ranks(foreign, files.name, OpenOptions.of(given))
    return ForeignCheckpoint.union(parts.values(), files.name)
