"""PyTorch's oldest container, a tar file of three streams, which PyTorch wrote before version 0.1.10.

Why it is still read: `torch.load` reads it today (with ``weights_only=False``, which runs its pickles), so
the scanner must find the pickles in it, and conversion is the only way to read it without running code.

`storages` has a count, then for each storage a pickle (key, location, class) and its bytes, then the list
of views; `tensors` has a count, then for each tensor a pickle (key, storage, class) and its geometry in
binary; `pickle` refers to both by number. Source: `legacy_load` in torch/serialization.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ...derived.element_types import item_size
from ...errors import FormatError
from ...storage.windows import read_bytes
from ..archives.tar_reader import TarArchive
from ..foreign import ALL_CONSTRUCTORS, ForeignCheckpoint, OpenOptions, from_tree
from ..pickles.machine import Pickle, read_pickle
from ..pickles.object_nodes import is_int
from ..pickles.storages import located
from ..pickles.torch_nodes import StorageNode, TensorNode, storage_type
from .torch_files import LegacyStorages

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...storage import Source
    from ..pickles.nodes import Value

__all__ = ["STREAMS", "read_tar", "tar_pickles"]


@dataclass
class _Stream:
    """One member, read forward."""

    source: Source
    options: OpenOptions
    offset: int = 0
    pickles: list[Pickle] = field(default_factory=list)

    def fault(self, message: str) -> FormatError:
        return FormatError(message, rule="torch-tar", path=self.source.name, offset=self.offset)

    def pickle(self, persistent: Callable[[Value], Value] | None = None) -> Value:
        found = read_pickle(
            self.source,
            offset=self.offset,
            constructors=ALL_CONSTRUCTORS,
            persistent=persistent,
            limits=self.options.limits,
        )
        self.offset = found.end
        self.pickles.append(found)
        return found.value

    def count(self) -> int:
        value = self.pickle()
        if not is_int(value) or not 0 <= value <= self.options.limits.tensors:
            raise self.fault("a count is malformed")
        return int(value)

    def numbers(self, count: int) -> tuple[int, ...]:
        data = read_bytes(self.source, self.offset, 8 * count)
        self.offset += len(data)
        return struct.unpack(f"<{count}q", data)


STREAMS: Final = ("storages", "tensors", "pickle")
"""The members that hold pickles."""


@dataclass
class TarContents:
    """What the three streams hold, as far as they could be read.

    Attributes:
        pickles: Each pickle that was read to its end, and the name of its stream.
        storages: Where the storages are.
        error: Why the streams could not be read to their end.
    """

    pickles: list[tuple[Pickle, str]] = field(default_factory=list)
    storages: LegacyStorages = field(default_factory=LegacyStorages)
    error: FormatError | None = None


def tar_pickles(archive: TarArchive, options: OpenOptions) -> TarContents:
    """Read the three streams of `archive`; the last pickle is the body."""
    streams = [_Stream(archive.open(name), options) for name in STREAMS]
    contents = TarContents()
    try:
        objects: dict[int, Value] = dict(_storages(streams[0], contents.storages))
        tensors = _tensors(streams[1], objects)
        for key, tensor in tensors.items():
            located(tensor, contents.storages, f"number {key}")
        objects.update(tensors)
        streams[2].pickle(lambda value: _resolve(value, objects))
        for stream in streams:
            if stream.offset != stream.source.size:
                raise stream.fault(f"{stream.source.size - stream.offset} bytes follow the stream")
    except FormatError as error:
        contents.error = error
    contents.pickles = [(each, one.source.name) for one in streams for each in one.pickles]
    return contents


def _resolve(value: Value, objects: dict[int, Value]) -> Value:
    """What a persistent id of the body stands for."""
    if isinstance(value, tuple) and value:
        return value[0]  # a class with its source
    key = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not is_int(key) or key not in objects:
        raise FormatError("a persistent id refers to nothing", rule="torch-tar")
    return objects[key]


def read_tar(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """A file of `torch.save` before 0.1.10.

    Raises:
        FormatError: The archive or one of its streams breaks a rule.
    """
    contents = tar_pickles(TarArchive(source, options.limits), options)
    if contents.error is not None:
        raise contents.error
    pickles = tuple(pickle for pickle, _ in contents.pickles)
    return from_tree(
        "torch-tar",
        source.name,
        pickles[-1].value,
        options,
        pickles=pickles,
        storages=contents.storages,
    )


def _storages(stream: _Stream, places: LegacyStorages) -> dict[int, StorageNode]:
    nodes: dict[int, StorageNode] = {}
    for _ in range(stream.count()):
        match stream.pickle():
            case (key, _, kind) if is_int(key) and key not in nodes:
                code = storage_type(kind)
            case _:
                raise stream.fault("a storage's description is malformed")
        (elements,) = stream.numbers(1)
        if code is None or elements < 0:
            raise stream.fault("a storage's description is malformed")
        size = elements * item_size(code[0] or "U8")
        places.add(str(key), stream.source, stream.offset, size)
        nodes[key] = StorageNode(str(key), code[0], elements)
        stream.offset += size
    views = stream.pickle()
    for view in views if isinstance(views, list) else [None]:
        target, node = _view(stream, view, nodes)
        nodes[target] = node
    return nodes


def _view(stream: _Stream, view: Value, nodes: dict[int, StorageNode]) -> tuple[int, StorageNode]:
    if not isinstance(view, tuple) or len(view) != 4 or not all(map(is_int, view)):
        raise stream.fault("a view of a storage is malformed")
    target, root, first, elements = view
    parent = nodes.get(root)
    if parent is None or first < 0 or elements < 0 or first + elements > parent.elements:
        raise stream.fault("a view reaches outside its storage")
    return target, StorageNode(parent.key, parent.dtype, elements, parent.first + first)


def _tensors(stream: _Stream, nodes: dict[int, Value]) -> dict[int, TensorNode]:
    tensors: dict[int, TensorNode] = {}
    for _ in range(stream.count()):
        match stream.pickle():
            case (key, storage, _) if is_int(key) and is_int(storage):
                node = nodes.get(storage)
            case _:
                raise stream.fault("a tensor's description is malformed")
        if not isinstance(node, StorageNode) or node.dtype is None or key in nodes:
            raise stream.fault("a tensor refers to a storage that is not there")
        (rank,) = struct.unpack("<i4x", read_bytes(stream.source, stream.offset, 8))
        stream.offset += 8
        if not 0 <= rank <= stream.options.limits.tensor_rank:
            raise stream.fault(f"a tensor has {rank} dimensions")
        shape, strides = stream.numbers(rank), stream.numbers(rank)
        (offset,) = stream.numbers(1)
        tensors[key] = TensorNode(node, node.dtype, offset, shape, strides)
    return tensors
