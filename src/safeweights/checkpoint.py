"""A checkpoint: a mapping from a name to a tensor that has not been read yet.

Everything above this module produces or consumes that mapping: one file, a folder of shards, a
checkpoint of another format being converted. Filtering, renaming and merging are mapping -> mapping.
Frameworks appear only above: here a tensor is its type, its shape and its bytes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import IO, TYPE_CHECKING, Any, NoReturn

from . import indexing
from .errors import (
    ClosedError,
    FormatError,
    SafetensorError,
    TensorNotFoundError,
    UnsupportedError,
    quote,
)
from .gcpause import gc_paused
from .header import PREFIX, Header, TensorInfo, header_length, layout, parse
from .shardindex import INDEX_SUFFIX, SUFFIX, check_complete, read_index
from .sniffing import HEAD, identify
from .storage import (
    Buffer,
    Source,
    Verify,
    allocate,
    flat,
    gather,
    gather_mapped,
    joined,
    made_ahead,
    open_source,
    write_file,
    write_stream,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from .indexing import Selection

__all__ = [
    "INDEX_SUFFIX",
    "SUFFIX",
    "Checkpoint",
    "MemoryTensor",
    "SafetensorsFile",
    "Tensor",
    "open",
    "read_index",
    "save",
]


class Tensor(ABC):
    """A tensor that has not been read yet.

    Bytes are in the order of the format: little-endian, C order, sub-byte types packed. For values, as
    arrays of some framework, there are `safeweights.stream`, `safe_open` and ``load_file``.

    Attributes:
        name: What its file calls it; for messages (a renamed view keeps it).
        dtype: Code of the element type, e.g. ``"BF16"``.
        shape: Elements along each axis.
        nbytes: Bytes it takes.
        in_memory: Whether `view` gives memory that is there already, mapped too, instead of reading.
    """

    __slots__ = ("dtype", "name", "nbytes", "shape")
    in_memory = False

    def __init__(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.nbytes = nbytes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {quote(self.name)} {self.dtype} {list(self.shape)}>"

    @abstractmethod
    def read_into(self, buffer: Any, offset: int = 0) -> None:
        """Fill a writable buffer with the tensor's bytes from `offset` on.

        Raises:
            SafetensorError: The bytes are not there (truncated file, closed file).
            OSError: Reading failed.
        """

    def __array__(self, *_: object, **__: object) -> NoReturn:
        # Without it NumPy would make an array of one object.
        raise UnsupportedError(
            f"tensor {quote(self.name)} has not been read: values come from "
            '`safeweights.stream(path, "np")`, `safe_open` or `safeweights.numpy.load_file`',
            tensor=self.name,
        )

    @property
    def info(self) -> TensorInfo:
        """Type, shape and place; the place counts from the beginning of its file's data, if any."""
        return TensorInfo(self.dtype, self.shape, 0, self.nbytes)

    def view(self) -> memoryview:
        """All its bytes: the memory itself where they are in memory or mapped, else a fresh copy."""
        return self._read_range(0, self.nbytes)

    def chunks(self, size: int = 1 << 24) -> Iterator[Buffer]:
        """Its bytes in order, at most `size` at a time; memory for one chunk at a time."""
        for begin in range(0, self.nbytes, size):
            yield self._read_copy(begin, min(size, self.nbytes - begin))

    def read_selection(self, selection: Selection) -> memoryview:
        """The bytes of the selected elements, ascending along each axis, in C order.

        Cost: reads the runs of the selection, or where they lie close together what is between them
        too (never more than 4 KiB a run); memory for the result and at most 8 MiB.

        Raises:
            SelectionError: Elements of a sub-byte type that do not fill whole bytes.
        """
        runs = indexing.runs(selection, self.shape, self.dtype)
        if runs.run_count == 1:
            return self._read_range(runs.offset, runs.nbytes)
        out = allocate(runs.nbytes)
        if self.in_memory:
            gather_mapped(runs, self.view(), out)
        else:
            gather(runs, self.read_into, out)
        return out

    def _read_range(self, offset: int, length: int) -> memoryview:
        return self._read_copy(offset, length)

    def _read_copy(self, offset: int, length: int) -> memoryview:
        buffer = allocate(length)
        self.read_into(buffer, offset)
        return buffer

    def _within(self, buffer: Any, offset: int) -> memoryview:
        """The bytes of a buffer that is to be filled from `offset` on."""
        view = flat(buffer)
        if not 0 <= offset <= self.nbytes - len(view):
            raise SafetensorError(
                f"bytes {offset} to {offset + len(view)} asked of tensor {quote(self.name)}, which has "
                f"{self.nbytes}",
                tensor=self.name,
            )
        return view


class FileTensor(Tensor):
    """A tensor whose bytes stand in one piece in a source."""

    __slots__ = ("_info", "_offset", "_source", "in_memory")

    def __init__(self, name: str, info: TensorInfo, source: Source, data_start: int) -> None:
        super().__init__(name, info.dtype, info.shape, info.nbytes)
        self.in_memory = source.in_memory
        self._info = info
        self._source = source
        self._offset = data_start + info.begin

    @property
    def info(self) -> TensorInfo:
        return self._info

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        self._source.read_into(self._offset + offset, self._within(buffer, offset))

    def _read_range(self, offset: int, length: int) -> memoryview:
        return self._source.view(self._offset + offset, length)


class MemoryTensor(Tensor):
    """A tensor whose bytes are in memory.

    Args:
        name: For messages.
        dtype: Code of the element type.
        shape: Elements along each axis.
        data: Its bytes: any contiguous buffer, shared and not copied.

    Raises:
        UnsupportedError: `data` is no contiguous buffer.
    """

    __slots__ = ("_data",)
    in_memory = True

    def __init__(self, name: str, dtype: str, shape: Iterable[int], data: Any) -> None:
        self._data = flat(data)
        super().__init__(name, dtype, tuple(shape), len(self._data))

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        view = self._within(buffer, offset)
        view[:] = self._data[offset : offset + len(view)]

    def chunks(self, size: int = 1 << 24) -> Iterator[memoryview]:  # noqa: ARG002 - no copy to bound
        yield self._data

    def _read_range(self, offset: int, length: int) -> memoryview:
        return self._data[offset : offset + length]


class SafetensorsFile:
    """One opened safetensors file: its source and its header.

    Attributes:
        name: Path, or what else to call it.
        header: The validated header.
        source: Where the bytes are.
    """

    __slots__ = ("header", "name", "source")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = source.name
        self.header = _read_header(source)

    @classmethod
    def open(
        cls, target: Any, *, engine: str = "mmap", verify: Verify | None = None
    ) -> SafetensorsFile:
        """Open a path, a readable file object, or memory that holds a file.

        Args:
            target: One of these.
            engine: How a path is read; see `safeweights.storage.open_source`.
            verify: Given the source of a path and the path, the source to read from instead.

        Raises:
            FormatError: The file breaks a rule of the format, or is of another format.
            UnsupportedError: `target` is none of these.
            OSError: It cannot be opened or read.
        """
        return cls(open_source(target, engine=engine, verify=verify))

    def tensor(self, name: str) -> FileTensor:
        """The tensor called `name`, unread."""
        info = self.header.tensors.get(name) if isinstance(name, str) else None
        if info is None:
            raise not_found(name, self.name)
        return FileTensor(name, info, self.source, self.header.data_start)


def not_found(name: object, path: str | None) -> TensorNotFoundError:
    """The error for a name that a checkpoint does not have; the reference's words."""
    where = name if isinstance(name, str) else None
    shown = repr(name) if where is None else quote(where)[1:-1]
    return TensorNotFoundError(
        f"File does not contain tensor {shown}", path=path or None, tensor=where
    )


def _read_header(source: Source) -> Header:
    name = source.name or None
    # Not viewed: the first touch of a mapping takes longer than reading.
    head = source.read(0, min(PREFIX, source.size))
    try:
        length = header_length(head, source.size, path=name)
        return parse(source.read(PREFIX, length), source.size - PREFIX - length, path=name)
    except FormatError as error:
        found = identify(bytes(source.view(0, min(HEAD, source.size))))
        if found is not None:
            error.message += f"; this looks like {found}"
        raise


class _Unread(Mapping[str, Tensor]):
    """The tensors of files, each made when it is asked for: few who open 100,000 want them all.

    Args:
        owners: Name -> where `file_of` finds its file; only its keys and order are used here.
        file_of: The file that has a tensor.
    """

    def __init__(
        self, owners: Mapping[str, Any], file_of: Callable[[str], SafetensorsFile]
    ) -> None:
        self._owners = owners
        self._file_of = file_of

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of(name).tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._owners)

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, name: object) -> bool:
        return name in self._owners


class Checkpoint(Mapping[str, Tensor]):
    """A mapping from names to unread tensors, with what else a file says.

    Iteration follows the order of the data, so that reading one after another reads the disk in
    order. Closing is optional: files are closed when nobody uses them any more.

    Attributes:
        name: Path of the file or folder, for messages.
        files: The safetensors files behind it, in order; empty for other formats and views of them.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
        *,
        name: str = "",
        files: Iterable[SafetensorsFile] = (),
    ) -> None:
        self._tensors: Mapping[str, Tensor] | None = tensors
        self._metadata = None if metadata is None else dict(metadata)
        self.name = name
        self.files = tuple(files)

    @classmethod
    def from_files(cls, files: Iterable[SafetensorsFile], name: str) -> Checkpoint:
        """The union of files.

        Metadata is that of all files together; a key on whose value they disagree is left out.

        Raises:
            FormatError: Two files have a tensor of the same name.
        """
        files = tuple(files)
        if len(files) == 1:  # nothing to unite: the header's own table serves
            (only,) = files
            unread = _Unread(only.header.tensors, lambda _: only)
            return cls(unread, only.header.metadata, name=name, files=files)
        owners: dict[str, SafetensorsFile] = {}
        for file in files:
            tensors = file.header.tensors
            if not owners.keys().isdisjoint(tensors):
                twice = next(key for key in tensors if key in owners)
                raise FormatError(
                    f"tensor {quote(twice)} is in two files: {quote(owners[twice].name)} and "
                    f"{quote(file.name)}; if they are two models, open one of them by its name",
                    rule="duplicate-key", path=name, tensor=twice,
                )  # fmt: skip
            owners.update(dict.fromkeys(tensors, file))
        return cls(
            _Unread(owners, owners.__getitem__), _common_metadata(files), name=name, files=files
        )

    @property
    def metadata(self) -> dict[str, str] | None:
        """A copy of the file's metadata, or None where it has none."""
        return None if self._metadata is None else dict(self._metadata)

    def _open_tensors(self) -> Mapping[str, Tensor]:
        if self._tensors is None:
            raise ClosedError(path=self.name or None)
        return self._tensors

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._open_tensors()[name]
        except (KeyError, TypeError):
            raise not_found(name, self.name or None) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._open_tensors())

    def __len__(self) -> int:
        return len(self._open_tensors())

    def __contains__(self, name: object) -> bool:
        return name in self._open_tensors()

    # Two are the same if they are one: comparing unread tensors would say nothing of their values.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        state = "closed" if self._tensors is None else f"{len(self._tensors)} tensors"
        return f"<Checkpoint {quote(self.name)}: {state}>"

    def info(self, name: str) -> TensorInfo:
        """Type, shape and place of a tensor; the place counts from the beginning of its file's data."""
        return self[name].info

    def filter(
        self, *, only: str | Iterable[str] = (), skip: str | Iterable[str] = ()
    ) -> Checkpoint:
        """A view of the tensors that match one of `only` (all, if empty) and none of `skip`.

        Args:
            only: Shell pattern or patterns, case-sensitive: ``*`` matches anything, dots and slashes
                too.
            skip: The same.
        """
        wanted, unwanted = _patterns(only), _patterns(skip)
        return self._with(
            {
                name: tensor
                for name, tensor in self._open_tensors().items()
                if (not wanted or any(fnmatchcase(name, pattern) for pattern in wanted))
                and not any(fnmatchcase(name, pattern) for pattern in unwanted)
            }
        )

    def rename(self, new_name: Callable[[str], str]) -> Checkpoint:
        """A view in which each tensor is called what `new_name` makes of its name.

        Raises:
            SafetensorError: Two tensors would get the same name.
        """
        renamed: dict[str, Tensor] = {}
        for name, tensor in self._open_tensors().items():
            target = new_name(name)
            if target in renamed:
                raise SafetensorError(
                    f"{quote(name)} and {quote(renamed[target].name)} would both be called "
                    f"{quote(target)}",
                    path=self.name or None,
                    tensor=name,
                )
            renamed[target] = tensor
        return self._with(renamed)

    def _with(self, tensors: Mapping[str, Tensor]) -> Checkpoint:
        return Checkpoint(tensors, self._metadata, name=self.name)

    def close(self) -> None:
        """Let go of the files; tensors already handed out stay usable."""
        self._tensors = None
        self.files = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _patterns(given: str | Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _common_metadata(files: Iterable[SafetensorsFile]) -> dict[str, str] | None:
    found = [file.header.metadata for file in files if file.header.metadata is not None]
    merged: dict[str, str] = {}
    disputed: set[str] = set()
    for metadata in found:
        for key, value in metadata.items():
            if merged.setdefault(key, value) != value:
                disputed.add(key)
    return {key: merged[key] for key in merged if key not in disputed} if found else None


def open(target: Any, *, backend: str = "mmap", verify: Verify | None = None) -> Checkpoint:
    """Open a checkpoint: a file, an ``index.json``, a folder, a file object, or bytes.

    Reads and checks headers only. A folder is read through its index where it has one; without one
    all its ``.safetensors`` files are taken together.

    Args:
        target: Path, readable file object, or bytes-like object that holds a file.
        backend: ``"mmap"`` maps the file, ``"pread"`` reads what is asked for. A mapping is fastest,
            but if another process truncates the file, touching it kills the process. ``"direct"``,
            ``"auto"``: see `safeweights.storage.open_source`.
        verify: Called with every source that is opened, the index's too, and its path; what it
            returns is read instead. `safeweights.open` makes one of a policy or a key.

    Raises:
        FormatError: A file breaks the format; an index disagrees with its shards; shards are missing.
        UnsupportedError: `target` is none of these, or there is no such backend.
        OSError: Something cannot be opened or read.

    >>> import safeweights.numpy, numpy
    >>> data = safeweights.numpy.save({"a": numpy.zeros(3, "f4")})
    >>> open(data)["a"]
    <FileTensor `a` F32 [3]>
    """
    if not isinstance(target, str | os.PathLike):
        file = SafetensorsFile.open(target, engine=backend, verify=verify)
        return Checkpoint.from_files([file], file.name)
    path = os.fsdecode(target)
    read = partial(SafetensorsFile.open, engine=backend, verify=verify)
    if os.path.isdir(path):
        return _open_folder(path, read, verify)
    if path.endswith(".json"):
        return _open_index(path, read, verify)
    return Checkpoint.from_files([read(path)], path)


def _open_folder(
    path: str, read: Callable[[str], SafetensorsFile], verify: Verify | None
) -> Checkpoint:
    # Hidden ones are an editor's, a file manager's ("._model.safetensors") or a save's under way.
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if len(indexes) == 1:
        return _open_index(os.path.join(path, indexes[0]), read, verify, name=path)
    if indexes:
        listed = ", ".join(map(quote, indexes))
        raise FormatError(f"the folder has several indexes, name one of them: {listed}", path=path)
    shards = [name for name in names if name.endswith(SUFFIX)]
    if not shards:
        raise FormatError(f"the folder has no {SUFFIX} file and no index", path=path)
    check_complete(shards, path)
    files = [read(os.path.join(path, name)) for name in shards]
    return Checkpoint.from_files(files, path)


def _open_index(
    path: str,
    read: Callable[[str], SafetensorsFile],
    verify: Verify | None,
    *,
    name: str | None = None,
) -> Checkpoint:
    weight_map = read_index(path, verify=verify)
    folder = os.path.dirname(path)
    shards = sorted(set(weight_map.values()))
    _check_present(shards, folder, path)
    files = {shard: read(os.path.join(folder, shard)) for shard in shards}
    for tensor, shard in weight_map.items():
        if tensor not in files[shard].header.tensors:
            raise FormatError(
                f"the index places tensor {quote(tensor)} in {quote(shard)}, which does not have it",
                rule="index", path=path, tensor=tensor,
            )  # fmt: skip
    for shard, file in files.items():
        for tensor in file.header.tensors:
            if weight_map.get(tensor) != shard:
                raise FormatError(
                    f"{quote(shard)} has tensor {quote(tensor)}, which the index does not place there",
                    rule="index", path=path, tensor=tensor,
                )  # fmt: skip
    return Checkpoint.from_files(files.values(), name or path)


def _check_present(shards: list[str], folder: str, path: str) -> None:
    missing = [shard for shard in shards if not os.path.lexists(os.path.join(folder, shard))]
    if missing:
        raise FormatError(
            f"{len(missing)} of {len(shards)} shards that the index names are missing, the first is "
            f"{quote(missing[0])}",
            rule="index", path=path,
        )  # fmt: skip


def save(
    tensors: Mapping[str, Tensor],
    target: str | os.PathLike[str] | IO[bytes],
    metadata: Mapping[str, str] | None = None,
    *,
    durable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write a mapping of tensors as one safetensors file.

    The bytes are the reference writer's for the same tensors and metadata (of at most one key: its
    order is random beyond that, ours is sorted). Tensors are read as they are written, so memory is
    that of the largest chunk that a tensor hands out.

    Args:
        tensors: What to write; a `Checkpoint` too.
        target: A path, which is replaced atomically, or an open file object.
        metadata: Strings to strings. None takes the metadata of a `Checkpoint`.
        durable: See `safeweights.storage.write_file`.
        progress: Called with the number of bytes written so far.

    Raises:
        FormatError: What the format cannot hold; nothing is written then.
        OSError: Writing failed; the old file is untouched.
    """
    size, buffers = _plan(tensors, metadata, _written)
    if isinstance(target, str | os.PathLike):
        write_file(target, buffers, size=size, durable=durable, progress=progress)
    elif hasattr(target, "write"):
        write_stream(target, buffers, progress=progress)
    else:
        kind = type(target).__name__
        raise UnsupportedError(f"expected a path or a writable file object, found {kind}")


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """What `save` would write, as bytes; one copy."""
    size, buffers = _plan(tensors, metadata, _whole)
    return joined(buffers, size)


def _written(tensor: Tensor) -> Iterable[Buffer]:
    return tensor.chunks()


def _whole(tensor: Tensor) -> Iterable[Buffer]:
    """What is not in memory in one piece: it stays until all are joined."""
    return tensor.chunks() if tensor.in_memory else (tensor.view(),)


def _unread(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of the mapping, if it is one of names to unread tensors."""
    if not isinstance(tensors, Mapping):
        kind = type(tensors).__name__
        raise UnsupportedError(f"expected a mapping of names to tensors, found {kind}")
    found = dict(tensors.items())
    for name in found:
        if not isinstance(name, str):
            raise UnsupportedError(f"a tensor's name is a string, not {type(name).__name__}")
    for kind in set(map(type, found.values())):
        if not issubclass(kind, Tensor):
            name = next(name for name, tensor in found.items() if type(tensor) is kind)
            raise UnsupportedError(
                f"{quote(name)} is a {kind.__module__}.{kind.__qualname__}, not a `safeweights.Tensor`: "
                "values are saved by `save_file` of `safeweights.numpy`, `safeweights.torch` ...",
                tensor=name,
            )
    return found


def _plan(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None,
    pieces: Callable[[Tensor], Iterable[Buffer]],
) -> tuple[int, Iterator[Buffer]]:
    """Size and contents of the file; the header is made, and checked, at once."""
    if metadata is None and isinstance(tensors, Checkpoint):
        metadata = tensors.metadata
    found = _unread(tensors)
    with gc_paused():
        header, head = layout([(name, t.dtype, t.shape) for name, t in found.items()], metadata)
    for name, info in header.tensors.items():
        if found[name].nbytes != info.nbytes:
            raise _wrong_size(name, info, found[name].nbytes)
    contents = _contents(head, header, found, pieces)
    in_memory = all(tensor.in_memory for tensor in found.values())
    return len(head) + header.data_size, contents if in_memory else made_ahead(contents)


def _contents(
    head: bytes,
    header: Header,
    tensors: Mapping[str, Tensor],
    pieces: Callable[[Tensor], Iterable[Buffer]],
) -> Iterator[Buffer]:
    yield head
    for name, info in header.tensors.items():
        size = 0
        for chunk in pieces(tensors[name]):
            size += len(chunk)
            yield chunk
        if size != info.nbytes:
            raise _wrong_size(name, info, size)


def _wrong_size(name: str, info: TensorInfo, found: int) -> FormatError:
    return FormatError(
        f"tensor {quote(name)}, {info.dtype} of shape {list(info.shape)}, takes {info.nbytes} bytes, "
        f"but has {found}",
        rule="size", tensor=name,
    )  # fmt: skip
