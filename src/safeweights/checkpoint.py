"""A checkpoint: a mapping from a name to a tensor that has not been read yet.

Everything above this module produces or consumes that mapping: one file, a folder of shards, a
checkpoint of another format being converted. Filtering, renaming and merging are mapping -> mapping.
Frameworks appear only above: here a tensor is its type, its shape and its bytes.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import IO, TYPE_CHECKING, Any, Final

from . import indexing
from .errors import ClosedError, FormatError, SafetensorError, TensorNotFoundError, quote
from .header import PREFIX, Header, TensorInfo, header_length, layout, parse
from .sniffing import HEAD, identify
from .storage import Buffer, BytesSource, Source, open_source, write_file, write_stream
from .strictjson import JSONError, Reader

if TYPE_CHECKING:
    from typing_extensions import Self

    from .indexing import Selection

__all__ = ["Checkpoint", "MemoryTensor", "SafetensorsFile", "Tensor", "open", "save"]

SUFFIX: Final = ".safetensors"
INDEX_SUFFIX: Final = f"{SUFFIX}.index.json"
_INDEX_MAX: Final = 1 << 28
_SHARD = re.compile(r"(.*)-(\d{5,})-of-(\d{5,})(.*)").fullmatch
_GATHER_MAX: Final = 1 << 23


class Tensor(ABC):
    """A tensor that has not been read yet.

    Bytes are in the order of the format: little-endian, C order, sub-byte types packed.

    Attributes:
        name: What its file calls it; for messages (a renamed view keeps it).
        dtype: Code of the element type, e.g. ``"BF16"``.
        shape: Elements along each axis.
        nbytes: Bytes it takes.
    """

    __slots__ = ("dtype", "name", "nbytes", "shape")

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

    def view(self) -> memoryview:
        """All its bytes: the memory itself where they are in memory or mapped, else a fresh copy."""
        buffer = memoryview(bytearray(self.nbytes))
        self.read_into(buffer)
        return buffer

    def chunks(self, size: int = 1 << 24) -> Iterator[memoryview]:
        """Its bytes in order, at most `size` at a time; memory for one chunk at a time."""
        for begin in range(0, self.nbytes, size):
            buffer = memoryview(bytearray(min(size, self.nbytes - begin)))
            self.read_into(buffer, begin)
            yield buffer

    def read_selection(self, selection: Selection) -> memoryview:
        """The bytes of the selected elements, ascending along each axis, in C order.

        Cost: reads the runs of the selection, or where they lie close together what is between them
        too (never more than 4 KiB a run); memory for the result and at most 8 MiB.

        Raises:
            SelectionError: Elements of a sub-byte type that do not fill whole bytes.
        """
        runs = indexing.runs(selection, self.shape, self.dtype)
        if runs.run_count <= 1:
            return self._read_range(runs.offset, runs.nbytes)
        out = memoryview(bytearray(runs.nbytes))
        _gather(self, runs, out)
        return out

    def _read_range(self, offset: int, length: int) -> memoryview:
        buffer = memoryview(bytearray(length))
        self.read_into(buffer, offset)
        return buffer


class FileTensor(Tensor):
    """A tensor whose bytes stand in one piece in a source."""

    __slots__ = ("_offset", "_source")

    def __init__(self, name: str, info: TensorInfo, source: Source, data_start: int) -> None:
        super().__init__(name, info.dtype, info.shape, info.nbytes)
        self._source = source
        self._offset = data_start + info.begin

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        view = memoryview(buffer).cast("B")
        if offset < 0 or offset + len(view) > self.nbytes:
            raise SafetensorError(
                f"bytes {offset} to {offset + len(view)} asked of tensor {quote(self.name)}, which has "
                f"{self.nbytes}",
                path=self._source.name,
                tensor=self.name,
            )
        self._source.read_into(self._offset + offset, view)

    def view(self) -> memoryview:
        return self._source.view(self._offset, self.nbytes)

    def _read_range(self, offset: int, length: int) -> memoryview:
        return self._source.view(self._offset + offset, length)


class MemoryTensor(Tensor):
    """A tensor whose bytes are in memory.

    Args:
        name: For messages.
        dtype: Code of the element type.
        shape: Elements along each axis.
        data: Its bytes: any contiguous buffer, shared and not copied.
    """

    __slots__ = ("_data",)

    def __init__(self, name: str, dtype: str, shape: Iterable[int], data: Any) -> None:
        self._data = memoryview(data).cast("B")
        super().__init__(name, dtype, tuple(shape), len(self._data))

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        view = memoryview(buffer).cast("B")
        view[:] = self._data[offset : offset + len(view)]

    def view(self) -> memoryview:
        return self._data

    def chunks(self, size: int = 1 << 24) -> Iterator[memoryview]:  # noqa: ARG002 - no copy to bound
        yield self._data

    def _read_range(self, offset: int, length: int) -> memoryview:
        return self._data[offset : offset + length]


def _gather(tensor: Tensor, runs: indexing.Runs, out: memoryview) -> None:
    """Read the runs into `out`, one after another.

    Runs whose gaps are small are read together with what is between them and sorted out in memory.
    """
    *outer, (count, stride) = runs.loops
    inner = indexing.Runs(0, runs.length, ((count, stride),))
    size = inner.nbytes
    position = 0
    for offset in indexing.Runs(runs.offset, 0, tuple(outer)).offsets():
        if stride - runs.length > _GAP_MAX:
            for distance in range(0, count * stride, stride):
                tensor.read_into(out[position : position + runs.length], offset + distance)
                position += runs.length
        else:
            _gather_close(tensor, offset, inner, out[position : position + size])
            position += size


_GAP_MAX: Final = 4096


def _gather_close(tensor: Tensor, offset: int, runs: indexing.Runs, out: memoryview) -> None:
    """Read equidistant runs with the gaps between them, some megabytes at a time."""
    import numpy as np

    ((count, stride),) = runs.loops
    length = runs.length
    step = max(1, _GATHER_MAX // stride)
    target = np.frombuffer(out, np.uint8).reshape(count, length)
    for first in range(0, count, step):
        rows = min(step, count - first)
        span = (rows - 1) * stride + length
        data = np.frombuffer(tensor._read_range(offset + first * stride, span), np.uint8)  # noqa: SLF001
        target[first : first + rows] = np.lib.stride_tricks.as_strided(
            data, (rows, length), (stride, 1), writeable=False
        )


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
    def open(cls, target: Any, *, engine: str = "mmap") -> SafetensorsFile:
        """Open a path, a readable file object, or memory that holds a file.

        Raises:
            FormatError: The file breaks a rule of the format, or is of another format.
            OSError: It cannot be opened or read.
        """
        if isinstance(target, bytes | bytearray | memoryview):
            return cls(BytesSource(target))
        return cls(open_source(target, engine=engine))

    def tensor(self, name: str) -> FileTensor:
        """The tensor called `name`, unread."""
        info = self.header.tensors.get(name)
        if info is None:
            raise not_found(name, self.name)
        return FileTensor(name, info, self.source, self.header.data_start)


def not_found(name: object, path: str | None) -> TensorNotFoundError:
    """The error for a name that a checkpoint does not have; the reference's words."""
    shown = quote(name) if isinstance(name, str) else repr(name)
    where = name if isinstance(name, str) else None
    return TensorNotFoundError(
        f"File does not contain tensor {shown[1:-1]}", path=path, tensor=where
    )


def _read_header(source: Source) -> Header:
    name = source.name or None
    head = bytes(source.view(0, min(PREFIX, source.size)))
    try:
        length = header_length(head, source.size, path=name)
        text = memoryview(bytearray(length))
        source.read_into(PREFIX, text)
        return parse(bytes(text), source.size - PREFIX - length, path=name)
    except FormatError as error:
        found = identify(bytes(source.view(0, min(HEAD, source.size))))
        if found is not None:
            error.message += f"; this looks like {found}"
        raise


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
        tensors: dict[str, Tensor] = {}
        for file in files:
            for key in file.header.tensors:
                if key in tensors:
                    first = next(other.name for other in files if key in other.header.tensors)
                    raise FormatError(
                        f"tensor {quote(key)} is in two files: {quote(first)} and {quote(file.name)}",
                        rule="duplicate-key", path=name, tensor=key,
                    )  # fmt: skip
                tensors[key] = file.tensor(key)
        return cls(tensors, _common_metadata(files), name=name, files=files)

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

    def __repr__(self) -> str:
        state = "closed" if self._tensors is None else f"{len(self._tensors)} tensors"
        return f"<Checkpoint {quote(self.name)}: {state}>"

    def info(self, name: str) -> TensorInfo:
        """Type, shape and place of a tensor; the place counts from the beginning of its file's data."""
        for file in self.files:
            if name in file.header.tensors:
                return file.header.tensors[name]
        tensor = self[name]
        return TensorInfo(tensor.dtype, tensor.shape, 0, tensor.nbytes)

    def filter(self, *, only: Iterable[str] = (), skip: Iterable[str] = ()) -> Checkpoint:
        """A view of the tensors that match one of `only` (all, if empty) and none of `skip`.

        Args:
            only: Shell patterns, case-sensitive: ``*`` matches anything, dots and slashes too.
            skip: The same.
        """
        wanted, unwanted = list(only), list(skip)
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


def _common_metadata(files: Iterable[SafetensorsFile]) -> dict[str, str] | None:
    found = [file.header.metadata for file in files if file.header.metadata is not None]
    merged: dict[str, str] = {}
    disputed: set[str] = set()
    for metadata in found:
        for key, value in metadata.items():
            if merged.setdefault(key, value) != value:
                disputed.add(key)
    return {key: merged[key] for key in merged if key not in disputed} if found else None


def open(target: Any, *, backend: str = "mmap") -> Checkpoint:
    """Open a checkpoint: a file, an ``index.json``, a folder, a file object, or bytes.

    Reads and checks headers only. A folder is read through its index where it has one; without one
    all its ``.safetensors`` files are taken together.

    Args:
        target: Path, readable file object, or bytes-like object that holds a file.
        backend: ``"mmap"`` maps the file, ``"pread"`` reads what is asked for. A mapping is fastest,
            but if another process truncates the file, touching it kills the process.

    Raises:
        FormatError: A file breaks the format; an index disagrees with its shards; shards are missing.
        OSError: Something cannot be opened or read.

    >>> import safeweights.numpy, numpy
    >>> data = safeweights.numpy.save({"a": numpy.zeros(3, "f4")})
    >>> open(data)["a"]
    <FileTensor `a` F32 [3]>
    """
    if isinstance(target, bytes | bytearray | memoryview) or hasattr(target, "read"):
        file = SafetensorsFile.open(target, engine=backend)
        return Checkpoint.from_files([file], file.name)
    path = os.fspath(target)
    if os.path.isdir(path):
        return _open_folder(path, backend)
    if os.fsdecode(path).endswith(".json"):
        return _open_index(path, backend)
    return Checkpoint.from_files([SafetensorsFile.open(path, engine=backend)], path)


def _open_folder(path: str, backend: str) -> Checkpoint:
    names = sorted(os.listdir(path))
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if len(indexes) == 1:
        return _open_index(os.path.join(path, indexes[0]), backend, name=path)
    if indexes:
        listed = ", ".join(map(quote, indexes))
        raise FormatError(f"the folder has several indexes, name one of them: {listed}", path=path)
    shards = [name for name in names if name.endswith(SUFFIX)]
    if not shards:
        raise FormatError(f"the folder has no {SUFFIX} file and no index", path=path)
    _check_shard_names(shards, path)
    files = [SafetensorsFile.open(os.path.join(path, name), engine=backend) for name in shards]
    return Checkpoint.from_files(files, path)


def _check_shard_names(names: Iterable[str], path: str) -> None:
    """Files called ``x-00001-of-00005`` are whole only together."""
    series: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        if match := _SHARD(name):
            stem, number, total, suffix = match.groups()
            series.setdefault((stem, total, suffix), set()).add(int(number))
    for (stem, total, suffix), numbers in series.items():
        missing = set(range(1, min(int(total), 100_000) + 1)) - numbers
        if missing:
            first = f"{stem}-{min(missing):0{len(total)}}-of-{total}{suffix}"
            raise FormatError(
                f"{len(missing)} of {int(total)} shards are missing, the first is {quote(first)}",
                path=path,
            )


def _open_index(path: str, backend: str, *, name: str | None = None) -> Checkpoint:
    weight_map = read_index(path)
    folder = os.path.dirname(path)
    files = {
        shard: SafetensorsFile.open(os.path.join(folder, shard), engine=backend)
        for shard in sorted(set(weight_map.values()))
    }
    for tensor, shard in weight_map.items():
        if tensor not in files[shard].header.tensors:
            raise FormatError(
                f"the index places tensor {quote(tensor)} in {quote(shard)}, which does not have it",
                path=path, tensor=tensor,
            )  # fmt: skip
    for shard, file in files.items():
        for tensor in file.header.tensors:
            if weight_map.get(tensor) != shard:
                raise FormatError(
                    f"{quote(shard)} has tensor {quote(tensor)}, which the index does not place there",
                    path=path, tensor=tensor,
                )  # fmt: skip
    return Checkpoint.from_files(files.values(), name or path)


def read_index(path: str) -> dict[str, str]:
    """The ``weight_map`` of an index file: tensor -> file, relative to the index.

    Raises:
        FormatError: Not JSON, no weight_map, or an entry that leaves the folder.
    """
    source = open_source(path, engine="pread")
    if source.size > _INDEX_MAX:
        raise FormatError(
            f"an index of {source.size} bytes, at most {_INDEX_MAX} are read", path=path
        )
    reader = Reader(bytes(source.view(0, source.size)))
    weight_map: dict[str, str] | None = None
    try:
        for key, at in reader.members("an object"):
            if key != "weight_map":
                reader.skip(1)
                continue
            if weight_map is not None:
                raise JSONError("duplicate key `weight_map`", at)
            weight_map = dict(_weight_map(reader))
        reader.end()
    except JSONError as error:
        message = f"invalid index: {error}"
        raise FormatError(message, rule="json", path=path, offset=error.position) from error
    if weight_map is None:
        raise FormatError("the index has no `weight_map`", rule="json", path=path)
    return weight_map


def _weight_map(reader: Reader) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for tensor, at in reader.members("an object as `weight_map`"):
        if tensor in seen:
            raise JSONError(f"duplicate key {quote(tensor)} in `weight_map`", at)
        seen.add(tensor)
        shard = reader.string("a file name")
        if not is_safe_shard(shard):
            raise JSONError(
                f"{quote(shard)} is not the name of a {SUFFIX} file below the index", at
            )
        yield tensor, shard


def is_safe_shard(name: str) -> bool:
    """Whether an index may name `name`: a relative path that stays below its folder."""
    parts = name.replace("\\", "/").split("/")
    return (
        name.endswith(SUFFIX)
        and name.isprintable()
        and ":" not in name
        and all(part not in {"", ".", ".."} for part in parts)
    )


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
    if metadata is None and isinstance(tensors, Checkpoint):
        metadata = tensors.metadata
    header, head = _plan(tensors, metadata)
    buffers = _contents(head, header, tensors)
    if isinstance(target, str | os.PathLike):
        write_file(target, buffers, durable=durable, progress=progress)
    else:
        write_stream(target, buffers, progress=progress)


def _plan(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> tuple[Header, bytes]:
    header, head = layout(((name, t.dtype, t.shape) for name, t in tensors.items()), metadata)
    for name, info in header.tensors.items():
        if tensors[name].nbytes != info.nbytes:
            raise FormatError(
                f"tensor {quote(name)}, {info.dtype} of shape {list(info.shape)}, takes "
                f"{info.nbytes} bytes, but has {tensors[name].nbytes}",
                rule="size", tensor=name,
            )  # fmt: skip
    return header, head


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """What `save` would write, as bytes; one copy."""
    header, head = _plan(tensors, metadata)
    return b"".join(_contents(head, header, tensors))


def _contents(head: bytes, header: Header, tensors: Mapping[str, Tensor]) -> Iterator[Buffer]:
    yield head
    for name in header.tensors:
        yield from tensors[name].chunks()
