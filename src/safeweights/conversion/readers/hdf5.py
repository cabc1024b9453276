"""HDF5 files, which Keras writes its weights to, and .keras archives around one.

pyfive, an optional package, reads HDF5 in Python. It was written for honest files: it takes every
number for an integer or an IEEE float that fills its bytes, and data in other files for zeros. So the
messages of each dataset are checked here before pyfive reads it, and any exception that it raises on
damaged files becomes a `FormatError`. Model configurations are not read here.

Source of the messages: HDF5 File Format Specification 3.0, IV.A.2.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ...derived.element_types import UNTOLD
from ...derived.layout import contiguous_strides
from ...errors import FormatError, MissingDependencyError, SafetensorError
from ...storage import BytesSource, Source
from ...storage.limits import Limits, exceeded
from ...storage.windows import read_bytes
from ..archives.zip_reader import ZipArchive
from ..foreign import ForeignCheckpoint, OpenOptions, from_tree
from ..pickles.nodes import DictNode, Value
from ..pickles.numpy_nodes import ArrayNode, DtypeNode, RefusedNode
from .signatures import KERAS_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Buffer

__all__ = [
    "KERAS_CONFIGS",
    "byte_strings",
    "read_hdf5",
    "read_keras",
]

KERAS_CONFIGS: Final = ("@model_config", "@training_config")
"""What `byte_strings` calls the attributes with the configuration of a whole Keras model."""

_TYPE: Final = 0x0003
_EXTERNAL_FILES: Final = 0x0007
_LAYOUT: Final = 0x0008
_SHARED: Final = 2  # a flag of a message: its contents are elsewhere
_VIRTUAL: Final = 3
_INTEGER: Final = 0
_FLOAT: Final = 1
_FLOATS: Final = {
    (2, 16, 15, 10, 5, 0, 10, 15): "f2", (4, 32, 31, 23, 8, 0, 23, 127): "f4",
    (8, 64, 63, 52, 11, 0, 52, 1023): "f8", (2, 16, 15, 7, 8, 0, 7, 127): "ml:bfloat16",
}  # fmt: skip
"""Bytes, bits, place of the sign, place and size of exponent and mantissa, bias -> array type."""


class _SourceFile(io.RawIOBase):
    """A source as the read-only file object that pyfive takes."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source
        self._position = 0
        self.name = source.name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._position, self._source.size)[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        target = memoryview(buffer).cast("B")
        count = max(min(len(target), self._source.size - self._position), 0)
        if count:
            self._source.read_into(self._position, target[:count])
        self._position += count
        return count


class _Dataset(Source):
    """The bytes of one dataset, read whole at the first read and held while they are in use."""

    def __init__(self, read: Callable[[], Any], size: int, name: str) -> None:
        self.name = name
        self.size = size
        self._read = read

    def view(self, offset: int, length: int) -> memoryview:
        data = _guarded(lambda: np.ascontiguousarray(self._read()), self.name)
        if data.nbytes != self.size:
            raise FormatError(
                f"the dataset holds {data.nbytes} bytes, not {self.size}",
                rule="hdf5",
                path=self.name,
            )
        return memoryview(data.reshape(-1).view(np.uint8))[offset : offset + length]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.view(offset, len(buffer))


def _guarded(action: Callable[[], Any], path: str) -> Any:
    """What `action` gives; whatever pyfive raises on a damaged file is a FormatError."""
    try:
        return action()
    except SafetensorError:
        raise
    except Exception as error:  # a parser of untrusted input that is not ours: anything may come
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not the parser's
        raise FormatError(
            f"the HDF5 file is damaged or uses what pyfive cannot read: {error!r:.200}",
            rule="hdf5",
            path=path,
        ) from error


def _pyfive() -> Any:
    try:
        import pyfive
    except ImportError as error:
        raise MissingDependencyError(
            "HDF5 files are read with pyfive: pip install 'safeweights[hdf5]'"
        ) from error
    return pyfive


def read_hdf5(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """The datasets of an HDF5 file, by their paths with dots for slashes.

    Cost: a dataset is read whole when its tensor is read.

    Raises:
        MissingDependencyError: pyfive is not installed.
        FormatError: The file is damaged.
    """
    tree = DictNode()
    nodes: dict[str, DictNode] = {"": tree}
    for name, child, messages in _objects(source, options.limits):
        group, _, key = name.rpartition("/")
        if messages is not None:
            value = _guarded(lambda: _dataset(child, messages, source, options.limits), source.name)  # noqa: B023 - called at once
        elif child is not None:
            value = nodes[name] = DictNode()
        else:
            value = "a link, or an object that is not a dataset"
        nodes[group].pairs.append((key, value))
    return from_tree("hdf5", source.name, tree, options)


def byte_strings(source: Source, limits: Limits) -> Iterator[tuple[str, bytes]]:
    """The byte strings in attributes and datasets of objects, which PyTables and pandas unpickle.

    Raises:
        MissingDependencyError, FormatError: See `read_hdf5`; or a dataset of objects cannot be read.
    """
    root: tuple[str, Any, _Messages | None] = "", _root(source), None
    for name, child, messages in chain([root], _objects(source, limits)):
        if child is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # types that hold no byte strings
            attributes = _guarded(lambda: dict(child.attrs), source.name)  # noqa: B023 - called at once
        for key, value in attributes.items():
            for data in _as_byte_strings(value):
                yield f"{name}@{key}", data
        if messages is not None and getattr(child.dtype, "kind", "O") in "OV":
            for data in _as_byte_strings(_guarded(lambda: child[()], source.name)):  # noqa: B023
                yield name, data


def _as_byte_strings(value: Any) -> Iterator[bytes]:
    """The byte strings in what pyfive gives for an attribute or a dataset of objects."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, str):
        yield value.encode("utf-8", "surrogateescape")
    elif isinstance(value, (np.void, np.ndarray)):
        array = np.asarray(value)
        if array.dtype.kind == "O":
            for item in array.reshape(-1):
                if not (isinstance(item, np.ndarray) and item.dtype.kind == "O"):
                    yield from _as_byte_strings(item)
        elif array.dtype.kind in "SV":
            yield from (bytes(item) for item in array.reshape(-1))
        elif array.dtype.itemsize == 1:
            yield array.tobytes()


def _root(source: Source) -> Any:
    """The root group, as pyfive gives it."""
    pyfive = _pyfive()
    return _guarded(lambda: pyfive.File(io.BufferedReader(_SourceFile(source))), source.name)


_Messages = dict[int, list[tuple[int, bytes]]]
"""Number of a message -> flags and contents of each of that number."""


def _objects(source: Source, limits: Limits) -> Iterator[tuple[str, Any, _Messages | None]]:
    """Path, pyfive's object and, for a dataset, its messages; links that lead nowhere have no object.

    A hard link back to a group ends at the depth limit.

    Raises:
        FormatError: The file is damaged, or exceeds a limit.
    """
    pyfive = _pyfive()
    root = _root(source)
    pending: list[tuple[Any, str, int]] = [(root, "", 0)]
    count = 0
    while pending:
        group, path, depth = pending.pop()
        if depth > limits.depth:
            raise exceeded("depth", limits.depth, source.name)
        for key in _guarded(lambda: list(group), source.name):  # noqa: B023 - called at once
            count += 1
            if count > limits.tensors:
                raise exceeded("tensors", limits.tensors, source.name)
            name = f"{path}/{key}"
            child = _guarded(lambda: group.get(key), source.name)  # noqa: B023
            if isinstance(child, pyfive.Dataset):
                yield name, child, _guarded(lambda: _messages(root, group, key), source.name)  # noqa: B023
            elif isinstance(child, pyfive.Group):
                yield name, child, None
                pending.append((child, name, depth + 1))
            else:
                yield name, None, None


def _messages(root: Any, group: Any, key: str) -> _Messages:
    """The messages in the header of the object that `key` links to."""
    target = group._links[key]  # noqa: SLF001 - pyfive has no public way to them
    while isinstance(target, str):
        parent, _, last = target.rpartition("/")
        group = (
            root[parent]
            if target.startswith("/") and parent
            else (group[parent] if parent else group)
        )
        target = group._links[last]  # noqa: SLF001
    found: _Messages = {}
    objects = root._get_dataobjects(target)  # noqa: SLF001
    for message in objects.msgs:
        start = message["offset_to_message"]
        data = bytes(objects.msg_data[start : start + message["size"]])
        found.setdefault(message["type"], []).append((message.get("flags", 0), data))
    return found


def _exact_type(messages: _Messages) -> tuple[str, bool] | str:
    """Array type and byte order of a dataset of numbers, or why its values cannot be read exactly."""
    if _EXTERNAL_FILES in messages:
        return "its values are in other files, which are not read (external storage)"
    layouts, types = messages.get(_LAYOUT, []), messages.get(_TYPE, [])
    if len(layouts) != 1 or len(types) != 1:
        return "its header has not exactly one type and one layout"
    (_, layout), (flags, kind) = layouts[0], types[0]
    if layout[1 if layout[0] >= 3 else 2] == _VIRTUAL:
        return "its values are in other datasets, perhaps of other files (a virtual dataset)"
    if flags & _SHARED:
        return "its type is stored apart from it"
    (size,) = struct.unpack_from("<I", kind, 4)
    swapped = bool(kind[1] & 1)
    if kind[0] & 0x0F == _INTEGER:
        offset, bits = struct.unpack_from("<2H", kind, 8)
        if offset or bits != 8 * size:
            return f"its integers have {bits} bits at bit {offset} of {size} bytes"
        return f"{'i' if kind[1] & 8 else 'u'}{size}", swapped
    if kind[0] & 0x0F == _FLOAT:
        offset, bits, *places, bias = struct.unpack_from("<2H4BI", kind, 8)
        known = _FLOATS.get((size, bits, kind[2], *places, bias))
        implied = kind[1] & 0x30 == 0x20  # the first bit of the mantissa is not stored
        if known is None or offset or not implied or kind[1] & 0x40:
            return f"its floats of {bits} bits are not one of the standard types"
        return known, swapped
    return "", False


def _dataset(dataset: Any, messages: _Messages, source: Source, limits: Limits) -> Value:
    shape = tuple(int(count) for count in dataset.shape)
    exact = _exact_type(messages)
    if isinstance(exact, str):
        return RefusedNode(exact, "", shape)
    kind = np.dtype(dataset.dtype) if isinstance(dataset.dtype, (np.dtype, str)) else None
    if kind is None or kind.hasobject or kind.kind in "SUO":
        return "an array of text or objects"
    dtype = DtypeNode(exact[0] or kind.str.lstrip("<>=|"), kind.str.startswith(">"))
    if dtype.code is None and (dtype.kind not in UNTOLD or kind.fields):
        reason = f"its HDF5 type {kind.str} has no counterpart in the format"
        return RefusedNode(reason, dtype.kind, shape, math.prod(shape) * kind.itemsize)
    if dtype.width != kind.itemsize or (
        exact[0] and exact[1] != dtype.swapped and kind.itemsize > 1
    ):
        return RefusedNode("its type is read differently by pyfive", dtype.kind, shape)
    size = math.prod(shape) * kind.itemsize
    # A damaged or hostile header can announce any shape; the file must be able to hold it.
    if size > max(limits.inflation_floor_bytes, source.size * limits.inflation_ratio):
        raise exceeded("inflation_ratio", limits.inflation_ratio, source.name)
    data = _Dataset(lambda: dataset[()], size, f"{source.name}!{dataset.name}")
    return ArrayNode(0, dtype, shape, contiguous_strides(shape), data)


def read_keras(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """The weights in a .keras archive; its configuration is not read."""
    archive = ZipArchive(source, options.limits)
    inner = archive.open(KERAS_WEIGHTS)
    if archive.members[KERAS_WEIGHTS].compressed:
        if inner.size > options.limits.inline_bytes:
            raise exceeded("inline_bytes", options.limits.inline_bytes, source.name)
        inner = BytesSource(read_bytes(inner, 0, inner.size), inner.name)
    found = read_hdf5(inner, options)
    found.format = "keras"
    found.name = source.name
    return found
