"""SHA-256 of files, of tensors and of blocks, on all processors.

`hashlib` releases the interpreter's lock, so that files are hashed in several threads. The digest of a file
and its block tree come from one pass over the same bytes, so that they cannot be of different versions.
Check files have the format of coreutils' ``sha256sum``.

Nothing here decides what to trust.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from ...checkpoint import Checkpoint, SafetensorsFile
from ...errors import quote
from ...storage import DescriptorSource, LocalStore, TruncatedError, is_url, open_source
from ...storage.hashing import RUN, sha256
from ...storage.parallel import in_threads
from ...storage.places import is_folder, join, shown
from ..access.stores import EncryptedStore, plain_name
from ..errors import DocumentError, VerificationError
from ..files import Entry, list_folder, open_regular, read_document
from .blocktree import BlockTree, TreeBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ...checkpoint import Tensor
    from ...storage import Source

__all__ = [
    "CheckedFile",
    "FileDigest",
    "TensorDigest",
    "check",
    "check_lines",
    "format_check_file",
    "hash_file",
    "hash_files",
    "hash_mapping",
    "hash_paths",
    "hash_tensors",
    "parse_check_file",
]

_SMALL: Final = 1 << 18
"""Largest file that is read at once."""

_FILE_COST: Final = 1 << 14
"""Bytes that could be hashed in the 10 us that a file costs before its first byte."""

_TENSOR_COST: Final = 1 << 13
"""Bytes that could be hashed in the 5 us that a tensor costs before its first byte."""

_CHECK_LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)", re.DOTALL)


@dataclass(frozen=True)
class FileDigest:
    """The digest of one file.

    Attributes:
        name: The name under which it was asked for or found.
        size: Number of bytes.
        sha256: The digest, in lower-case hexadecimal.
        tree: The digests of its blocks, where asked for.
    """

    name: str
    size: int
    sha256: str
    tree: BlockTree | None = field(default=None, repr=False)


@dataclass(frozen=True)
class TensorDigest:
    """The digest of one tensor: of its type, shape and bytes, wherever in a file they are."""

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class CheckedFile:
    """One line of a check file, compared with the disk."""

    name: str
    status: Literal["ok", "mismatch", "missing", "unreadable"]


def hash_file(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    tree: bool = False,
    follow: bool = True,
    beneath: str | None = None,
    also: Callable[[memoryview], object] | None = None,
    progress: Callable[[int], object] | None = None,
    opened: Source | None = None,
) -> FileDigest:
    """The SHA-256 of a file and, with `tree`, its block tree, from one pass.

    Cost: one read of the file; a small file costs four system calls and no thread. Of a large one the
    blocks are hashed in a second thread, where `also` is given the same bytes, and the next 4 MiB are
    read in a third.

    Args:
        path: The file.
        name: What the result calls it; by default `path`.
        tree: Whether to make a block tree.
        follow: Whether a symbolic link may stand for the file.
        beneath: The folder that the file must be in, links included.
        also: Given all bytes in order, in runs that it must not keep.
        progress: Called with the number of bytes hashed so far.
        opened: Its bytes, where it is not on this machine; by default they are opened.

    Raises:
        VerificationError: ``not-a-file``, ``symlink``, or ``changed``: its size changed meanwhile.
        OSError: As the operating system reports it.
    """
    path = os.fspath(path)
    builder = TreeBuilder() if tree else None
    looks = [look for look in (builder and builder.update, also) if look]

    def look(run: memoryview) -> None:
        for each in looks:
            each(run)

    if beneath is None and is_url(path):
        source = open_source(path) if opened is None else opened
        digest = sha256(source, also=look if looks else None, progress=progress)
        built = builder.finish() if builder else None
        return FileDigest(shown(path) if name is None else name, source.size, digest, built)
    with open_regular(path, follow=follow, beneath=beneath) as (descriptor, size):
        found = _small(descriptor, size, look) if size <= _SMALL else None
        if found is None:
            found = _large(descriptor, size, path, look if looks else None, progress)
        elif progress is not None:
            progress(size)
    built = builder.finish() if builder else None
    return FileDigest(path if name is None else name, size, found, built)


def _small(descriptor: int, size: int, look: Callable[[memoryview], None]) -> str | None:
    """The digest of a file that one read gives whole; None where that gives more or less."""
    data = os.read(descriptor, size + 1)
    if len(data) != size:
        return None
    if data:
        look(memoryview(data))
    return hashlib.sha256(data).hexdigest()


def _large(
    descriptor: int,
    size: int,
    path: str,
    look: Callable[[memoryview], None] | None,
    progress: Callable[[int], object] | None,
) -> str:
    source = DescriptorSource(os.dup(descriptor), path, mapped=False)
    try:
        digest = sha256(source, also=look, progress=progress) if source.size == size else ""
    except TruncatedError:
        digest = ""
    if not digest or os.fstat(descriptor).st_size != size:
        raise VerificationError(
            "the file changed its size while it was read", reason="changed", path=path
        )
    return digest


def file_cost(path: str) -> int:
    """What hashing a file costs, in bytes that could be hashed meanwhile; see `in_threads`."""
    if is_url(path):
        return RUN  # one at a time for each thread
    try:
        return _FILE_COST + os.stat(path).st_size
    except (OSError, ValueError):  # reported when it is opened
        return _FILE_COST


def hash_files(
    paths: Iterable[tuple[str, str]],
    *,
    tree: Callable[[str], bool] = lambda _: False,
    follow: bool = True,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[FileDigest]:
    """`hash_file` over (name, path) pairs, in threads, in the order given.

    Cost: as for `hash_file`; small files go to a thread together, until they have about 4 MiB.

    Args:
        paths: Names to report and the files to read.
        tree: Which names get a block tree.
        follow: Whether a symbolic link may stand for a file.
        workers: Files read at a time; by default the number of processors.
        progress: Called with the number of bytes read so far, from the calling thread.
    """

    def one(item: tuple[str, str], tell: Callable[[int], object]) -> FileDigest:
        name, path = item
        return hash_file(path, name=name, tree=tree(name), follow=follow, progress=tell)

    return in_threads(
        one, paths, cost=lambda item: file_cost(item[1]), workers=workers, progress=progress
    )


def hash_paths(
    paths: Iterable[str],
    *,
    leave_out: str | None = None,
    failed: Callable[[str, OSError | VerificationError], object] | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[FileDigest]:
    """The SHA-256 of files, and of every file below folders. Their names are paths: PATH/NAME in a folder.

    Args:
        paths: Files and folders.
        leave_out: A file that is skipped wherever it is found, because the digests will be written to it.
        failed: Called with the path of what cannot be read, and the error; the rest is read all the
            same. By default, the error is raised.
        workers: Files read at a time; by default the number of processors.
        progress: Called with the number of bytes read so far, from the calling thread.

    Raises:
        VerificationError: There is a special file in a folder.
        OSError: As the operating system reports it.
    """

    def one(path: str, tell: Callable[[int], object]) -> FileDigest | _Failure:
        try:
            return hash_file(path, progress=tell)
        except (OSError, VerificationError) as error:
            if failed is None:
                raise
            return _Failure(path, error)

    found: list[FileDigest] = []
    for each in in_threads(
        one, _each(paths, leave_out, failed), cost=file_cost, workers=workers, progress=progress
    ):
        if isinstance(each, FileDigest):
            found.append(each)
        elif failed is not None:
            failed(each.path, each.error)
    return found


@dataclass(frozen=True)
class _Failure:
    path: str
    error: OSError | VerificationError


def _each(
    paths: Iterable[str],
    leave_out: str | None,
    failed: Callable[[str, OSError | VerificationError], object] | None,
) -> list[str]:
    """The files among `paths`, and every file below the folders among them."""
    left_out = None if leave_out is None else os.path.realpath(leave_out)
    found: list[str] = []
    for path in paths:
        if not is_folder(path):
            if left_out is None or os.path.realpath(path) != left_out:
                found.append(path)
            continue
        try:
            inside = list_folder(path)
        except (OSError, VerificationError) as error:
            if failed is None:
                raise
            failed(path, error)
        else:
            found += _inside(path, inside, left_out)
    return found


def _inside(folder: str, entries: list[Entry], left_out: str | None) -> Iterator[str]:
    """The files among the entries of a folder, without the one that is left out."""
    base = None if left_out is None else os.path.basename(left_out)
    for entry in entries:
        path = join(folder, entry.name)
        if entry.kind == "link" and os.path.isdir(path):
            continue
        # Asking for the real path of every file would cost more than hashing it.
        may_be = entry.kind == "link" or os.path.basename(entry.name) == base
        if not (may_be and os.path.realpath(path) == left_out):
            yield path


def hash_tensors(
    path: str,
    *,
    identity: Any = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[TensorDigest]:
    """One digest for each tensor of a safetensors file, in the order of the names.

    The digest covers dtype, shape and bytes (``dtype NUL shape NUL data``), not the name or the position:
    equal tensors have equal digests in every file. `workers` and `progress` are those of `hash_files`, and
    `identity` opens an encrypted file (see `safeweights.open`).

    Raises:
        FormatError: Not a valid safetensors file.
        AccessError: The identity does not open it.
    """
    if identity is None:
        file = SafetensorsFile.open(path, backend="pread")
    else:
        folder, name = os.path.split(path)
        file = SafetensorsFile(
            EncryptedStore(LocalStore(folder), identity, named=name).open(plain_name(name) or name)
        )
    tensors = Checkpoint.from_files([file], path)
    return hash_mapping(tensors, path, workers=workers, progress=progress)


def hash_mapping(
    tensors: Mapping[str, Tensor],
    path: str,
    *,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[TensorDigest]:
    """The same for any mapping; `path` is what the digests name as its file."""

    def one(name: str, tell: Callable[[int], object]) -> TensorDigest:
        tensor = tensors[name]
        kind = f"{tensor.dtype}\0{','.join(map(str, tensor.shape))}\0"
        state = hashlib.sha256(kind.encode())
        done = 0
        for chunk in tensor.chunks(RUN):
            state.update(chunk)
            done += len(chunk)
            tell(done)
        return TensorDigest(path, name, tensor.dtype, tensor.shape, state.hexdigest())

    def cost(name: str) -> int:
        return _TENSOR_COST + tensors[name].nbytes

    return in_threads(one, sorted(tensors), cost=cost, workers=workers, progress=progress)


def format_check_file(digests: Iterable[FileDigest]) -> str:
    r"""A check file that ``sha256sum --check`` reads.

    A name with a newline, carriage return or backslash is escaped, and its line begins with a
    backslash, as coreutils does since 8.25.
    """
    lines = []
    for digest in digests:
        name = digest.name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        lines.append(f"{'' if name == digest.name else chr(92)}{digest.sha256}  {name}\n")
    return "".join(lines)


def parse_check_file(data: bytes, *, path: str | None = None) -> list[tuple[str, str]]:
    """The (name, digest) pair of every line; empty lines and lines that begin with ``#`` are skipped.

    Raises:
        DocumentError: A line is something else, a name is given twice, or there is no line.
    """
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise DocumentError("not UTF-8", path=path, offset=error.start) from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _CHECK_LINE.fullmatch(line.removesuffix("\r"))
        if match is None:
            raise DocumentError(
                "expected 64 hexadecimal digits, two spaces and a name",
                field=f"line {number}",
                path=path,
            )
        name = _unescape(match[3]) if match[1] else match[3]
        if name in found:
            raise DocumentError(
                f"the name {quote(name)} is given twice", field=f"line {number}", path=path
            )
        found[name] = match[2].lower()
    if not found:
        raise DocumentError("the check file names no file", path=path)
    return list(found.items())


def _unescape(name: str) -> str:
    escapes = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
    return re.sub(r"\\[\\nr]", lambda match: escapes[match[0]], name)


def check(
    path: str,
    *,
    base: str | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[CheckedFile]:
    """Compare every line of the check file `path` with the disk.

    Args:
        path: The check file.
        base: The folder that its names are relative to; by default the current one, as for sha256sum.
        workers: Files read at a time; by default the number of processors.
        progress: Called with the number of bytes read so far, from the calling thread.

    Raises:
        DocumentError: It is not a check file.
        OSError: It cannot be read.
    """
    lines = parse_check_file(read_document(path), path=path)
    return check_lines(lines, base=base, workers=workers, progress=progress)


def check_lines(
    lines: Iterable[tuple[str, str]],
    *,
    base: str | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[CheckedFile]:
    """Compare (name, digest) pairs, as `parse_check_file` gives them, with the disk."""

    def path_of(line: tuple[str, str]) -> str:
        # Always a path: a line of the file must not make this process ask another machine.
        return os.path.join(base or os.curdir, line[0])

    def one(line: tuple[str, str], tell: Callable[[int], object]) -> CheckedFile:
        name, expected = line
        try:
            found = hash_file(path_of(line), progress=tell).sha256
        except FileNotFoundError:
            return CheckedFile(name, "missing")
        except (OSError, VerificationError):  # no permission, a folder, changed while it was read
            return CheckedFile(name, "unreadable")
        return CheckedFile(name, "ok" if found == expected else "mismatch")

    return in_threads(
        one, lines, cost=lambda line: file_cost(path_of(line)), workers=workers, progress=progress
    )
