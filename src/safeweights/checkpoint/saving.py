"""Writing a mapping of tensors as one safetensors file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby, islice
from operator import attrgetter, methodcaller
from typing import IO, TYPE_CHECKING, Final, NamedTuple, cast

from ..errors import FormatError, UnsupportedError, quote
from ..format.gcpause import gc_paused
from ..format.writer import layout
from ..storage import (
    Buffer,
    Computed,
    InMemory,
    Run,
    is_copyable,
    joined,
    read_ahead,
    write_file,
    write_stream,
)
from ..storage.runs import expanded
from .mapping import Checkpoint
from .tensor import FileTensor, MemoryTensor, Tensor

if TYPE_CHECKING:
    from ..format.header import Header, TensorInfo
    from ..storage import DescriptorSource

__all__ = ["Contents", "decided", "save", "serialized", "to_bytes", "wrong_size"]

_WHOLE: Final = 1 << 24
"""Bytes of a tensor that is computed as a whole up to which several threads do that at a time."""

_TINY: Final = 1 << 12
"""Bytes up to which a tensor is joined with its neighbours: to hand it on costs as much."""

_TOGETHER: Final = 64
"""Tensors that are handed on at a time: small ones, joined, fit in the processor's cache."""

_SLICE: Final = 1024
"""Tensors that are looked at together."""

_ALONE, _BESIDE, _JOINED = range(3)
"""How a tensor is handed on: by itself, beside its neighbours, or joined with them."""


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
        UnsupportedError: A tensor whose values cannot be given, or no mapping of tensors.
        OSError: Writing failed; the old file is untouched.
    """
    size, buffers = serialized(tensors, metadata)
    if isinstance(target, str | os.PathLike):
        write_file(target, buffers, size=size, durable=durable, progress=progress)
    elif hasattr(target, "write"):
        write_stream(target, buffers, progress=progress)
    else:
        kind = type(target).__name__
        raise UnsupportedError(f"expected a path or a writable file object, found {kind}")


def serialized(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> tuple[int, Iterator[Buffer | Computed]]:
    """Size and contents of the file that `save` would write.

    The header is made, and checked, at once; tensors are read as the iterator goes on.

    Raises:
        FormatError: What the format cannot hold.
        UnsupportedError: Not a mapping of names to tensors.
    """
    file = decided(tensors, metadata)
    contents = _contents(file, _chunks)
    if all(map(attrgetter("in_memory"), file.tensors.values())):
        return file.size, InMemory(contents, file.size)
    return file.size, read_ahead(contents)


class Contents(NamedTuple):
    """A safetensors file that is decided and not written yet.

    Attributes:
        head: Its first bytes, up to the data.
        header: What they say.
        tensors: Name -> tensor.
    """

    head: bytes
    header: Header
    tensors: Mapping[str, Tensor]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.head) + self.header.data_size

    def runs(self) -> Iterator[Run | str]:
        """The data in order: what is in open files already, in runs as long as can be; other names."""
        run: Run | None = None
        for name, info in self.header.tensors.items():
            if not info.nbytes:
                continue
            place = _place(self.tensors[name])
            if run is not None and place == (run.source, run.offset + run.length):
                run.length += info.nbytes
                continue
            if run is not None:
                yield run
            run = None if place is None else Run(*place, info.nbytes)
            if run is None:
                yield name
        if run is not None:
            yield run

    def pieces(self) -> Iterator[Buffer | Run | Computed]:
        """The file's bytes. What is in open files is not read here, but handed on as runs.

        Of mapped tensors the bytes of the file count, not what the process wrote to the mapping.
        """
        return read_ahead(self._pieces())

    def _pieces(self) -> Iterator[Buffer | Run | Computed]:
        yield self.head
        for item in self.runs():
            if isinstance(item, Run):
                yield item
            else:
                yield from _data(self, (item,), _chunks)


def decided(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    in_order: bool = False,
    align: int = 8,
) -> Contents:
    """Decide, and check, what the file of some tensors will be.

    Args:
        tensors: What is in it.
        metadata: Strings to strings. None takes the metadata of a `Checkpoint`.
        in_order: See `safeweights.format.writer.layout`.
        align: The same.

    Raises:
        FormatError: What the format cannot hold.
        UnsupportedError: Not a mapping of names to tensors, or one of them cannot be given.
    """
    if metadata is None and isinstance(tensors, Checkpoint):
        metadata = tensors.metadata
    found = _unread(tensors)
    with gc_paused():
        entries = [(name, t.dtype, t.shape) for name, t in found.items()]
        header, head = layout(entries, metadata, in_order=in_order, align=align)
        _check_sizes(found, header)
    return Contents(head, header, found)


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """What `save` would write, as bytes; one copy."""
    file = decided(tensors, metadata)
    return joined(expanded(_contents(file, _whole)), file.size)


_chunks: Final[Callable[[Tensor], Iterable[Buffer]]] = methodcaller("chunks")


def _whole(tensor: Tensor) -> Iterable[Buffer]:
    """What is not in memory in one piece: it stays until all are joined."""
    return tensor.chunks() if tensor.in_memory else (tensor.view(),)


def _unread(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of the mapping, if it is one of names to unread tensors."""
    if not isinstance(tensors, Mapping):
        kind = type(tensors).__name__
        raise UnsupportedError(f"expected a mapping of names to tensors, found {kind}")
    # A dictionary itself is copied without a look at its names.
    found = dict(tensors if type(tensors) is dict else tensors.items())
    for kind in set(map(type, found)):
        if not issubclass(kind, str):
            raise UnsupportedError(f"a tensor's name is a string, not {kind.__name__}")
    for kind in set(map(type, found.values())):
        if not issubclass(kind, Tensor):
            name = next(name for name, tensor in found.items() if type(tensor) is kind)
            raise UnsupportedError(
                f"{quote(name)} is a {kind.__module__}.{kind.__qualname__}, not a `safeweights.Tensor`: "
                "values are saved by `save_file` of `safeweights.numpy`, `safeweights.torch` ...",
                tensor=name,
            )
    for tensor in [tensor for tensor in found.values() if tensor.unreadable is not None]:
        tensor.check_readable()
    return found


def _check_sizes(tensors: Mapping[str, Tensor], header: Header) -> None:
    """Raise FormatError if a tensor has not as many bytes as its type and shape need."""
    dtype, shape, nbytes = "", None, -1
    for name, tensor in tensors.items():
        # What its neighbour has, which was compared: a look at the header takes three times as long.
        if tensor.shape is shape and tensor.dtype is dtype and tensor.nbytes == nbytes:
            continue
        dtype, shape, nbytes = tensor.dtype, tensor.shape, tensor.nbytes
        info = header.tensors[name]
        if nbytes != info.nbytes:
            raise wrong_size(name, info, nbytes)


def _contents(
    file: Contents, pieces: Callable[[Tensor], Iterable[Buffer]]
) -> Iterator[Buffer | Computed]:
    yield file.head
    yield from _data(file, file.header.tensors, pieces)


def _data(
    file: Contents, names: Iterable[str], pieces: Callable[[Tensor], Iterable[Buffer]]
) -> Iterator[Buffer | Computed]:
    """The bytes of some tensors, each if there are as many as there have to be."""
    remaining = iter(names)
    while names := [*islice(remaining, _SLICE)]:
        tensors = [file.tensors[name] for name in names]
        ways = [  # not by a function: a call for each takes as long as the rest
            _JOINED if each.nbytes <= _TINY and (each.in_memory or not each.computed)
            else _BESIDE if each.in_memory and not each.computed
            else _ALONE
            for each in tensors
        ]  # fmt: skip
        begin = 0
        for way, group in groupby(ways):
            end = begin + len([*group])
            if way == _ALONE:
                for name, tensor in zip(names[begin:end], tensors[begin:end], strict=True):
                    yield from _one(file, name, tensor, pieces)
            else:
                for first in range(begin, end, _TOGETHER):
                    some = slice(first, min(end, first + _TOGETHER))
                    found = _found(file, names[some], tensors[some], pieces)
                    yield from found if way == _BESIDE else (b"".join(found),)
            begin = end


def _one(
    file: Contents, name: str, tensor: Tensor, pieces: Callable[[Tensor], Iterable[Buffer]]
) -> Iterator[Buffer | Computed]:
    """The bytes of one tensor, if there are as many as there have to be."""
    if tensor.computed and (tensor.streams or tensor.nbytes <= _WHOLE):
        yield Computed(tensor.nbytes, tensor.in_blocks, tensor.read_into)
        return
    left = tensor.nbytes  # as many as the header says: `decided` compared them
    for piece in pieces(tensor):
        left -= len(piece)
        yield piece
    if left:
        raise wrong_size(name, file.header.tensors[name], tensor.nbytes - left)


def _found(
    file: Contents,
    names: list[str],
    tensors: list[Tensor],
    pieces: Callable[[Tensor], Iterable[Buffer]],
) -> list[Buffer]:
    """The bytes of some tensors, if each has as many as there have to be."""
    kinds: set[type[Tensor]] = set(map(type, tensors))
    kind = kinds.pop()
    if kinds or not issubclass(kind, MemoryTensor):
        found = [piece for tensor in tensors for piece in pieces(tensor)]
    else:
        found = kind.chunks_of(cast("list[MemoryTensor]", tensors))
    if [*map(len, found)] != [tensor.nbytes for tensor in tensors]:  # a piece each, as a rule
        found = []
        for name, tensor in zip(names, tensors, strict=True):
            some = [*pieces(tensor)]
            if (size := sum(map(len, some))) != tensor.nbytes:
                raise wrong_size(name, file.header.tensors[name], size)
            found += some
    return found


def _place(tensor: Tensor) -> tuple[DescriptorSource, int] | None:
    """The file that has the bytes of a tensor, and where; None if they have to be read or made."""
    if type(tensor) is not FileTensor or not is_copyable(tensor.source):
        return None
    return cast("DescriptorSource", tensor.source), tensor.data_start + tensor.info.begin


def wrong_size(name: str, info: TensorInfo, found: int) -> FormatError:
    """The error of a tensor that has another number of bytes than its type and shape need."""
    return FormatError(
        f"tensor {quote(name)}, {info.dtype} of shape {list(info.shape)}, takes {info.nbytes} bytes, "
        f"but has {found}",
        rule="size", tensor=name,
    )  # fmt: skip
