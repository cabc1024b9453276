"""Writing a mapping of tensors as one safetensors file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING

from ..errors import FormatError, UnsupportedError, quote
from ..format.gcpause import gc_paused
from ..format.writer import layout
from ..storage import Buffer, joined, read_ahead, write_file, write_stream
from .mapping import Checkpoint
from .tensor import Tensor

if TYPE_CHECKING:
    from ..format.header import Header, TensorInfo

__all__ = ["save", "serialized", "to_bytes"]


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
) -> tuple[int, Iterator[Buffer]]:
    """Size and contents of the file that `save` would write.

    The header is made, and checked, at once; tensors are read as the iterator goes on.

    Raises:
        FormatError: What the format cannot hold.
        UnsupportedError: Not a mapping of names to tensors.
    """
    return _plan(tensors, metadata, _written)


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
    for tensor in found.values():
        if tensor.unreadable is not None:
            tensor.check_readable()
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
    return len(head) + header.data_size, contents if in_memory else read_ahead(contents)


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
