"""HDF5 files, which Keras writes its weights to, and .keras archives around one.

pyfive, an optional package, reads HDF5 in Python. It was written for honest files, so each dataset's
size is checked before it is read and whatever it raises on damaged ones becomes a `FormatError`.
Model configurations are not looked at: what Keras builds from them can execute code.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ...derived.strided import contiguous_strides
from ...errors import FormatError, MissingDependencyError, SafetensorError
from ...storage import BytesSource, Source
from ...storage.limits import Limits, exceeded
from ...storage.windows import read_bytes
from ..archives.zip_reader import ZipArchive
from ..foreign import ForeignCheckpoint, OpenOptions, from_tree
from ..pickles.nodes import DictNode, Value
from ..pickles.numpy_nodes import ArrayNode, DtypeNode, RefusedNode

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

__all__ = ["HDF5_MAGIC", "KERAS_WEIGHTS", "read_hdf5", "read_keras"]

HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"
KERAS_WEIGHTS: Final = "model.weights.h5"


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
    pyfive = _pyfive()
    file = _guarded(lambda: pyfive.File(io.BufferedReader(_SourceFile(source))), source.name)
    tree = _guarded(lambda: _group(pyfive, file, source, options.limits), source.name)
    return from_tree("hdf5", source.name, tree, options)


def _group(pyfive: Any, root: Any, source: Source, limits: Limits) -> DictNode:
    """The tree of groups and datasets; a hard link back to a group ends at the depth limit."""
    tree = DictNode()
    pending: list[tuple[Any, DictNode, int]] = [(root, tree, 0)]
    count = 0
    while pending:
        group, node, depth = pending.pop()
        if depth > limits.depth:
            raise exceeded("depth", limits.depth, source.name)
        for key in group:
            count += 1
            if count > limits.tensors:
                raise exceeded("tensors", limits.tensors, source.name)
            child = group.get(key) if isinstance(group, pyfive.Group) else None
            if isinstance(child, pyfive.Dataset):
                node.pairs.append((key, _dataset(child, source, limits)))
            elif isinstance(child, pyfive.Group):
                inner = DictNode()
                node.pairs.append((key, inner))
                pending.append((child, inner, depth + 1))
            else:
                node.pairs.append((key, "a link or object that is no dataset"))
    return tree


def _dataset(dataset: Any, source: Source, limits: Limits) -> Value:
    shape = tuple(int(count) for count in dataset.shape)
    kind = np.dtype(dataset.dtype) if isinstance(dataset.dtype, (np.dtype, str)) else None
    if kind is None or kind.hasobject or kind.kind in "SUO":
        return "an array of text or objects"
    dtype = DtypeNode(kind.str.lstrip("<>=|"), kind.str.startswith(">"))
    if dtype.code is None:
        reason = f"its HDF5 type {kind.str} has no counterpart in the format"
        return RefusedNode(reason, dtype.kind, shape, math.prod(shape) * kind.itemsize)
    size = math.prod(shape) * kind.itemsize
    # A damaged or hostile header can announce any shape; the file must be able to hold it.
    if size > max(limits.inflation_floor_bytes, source.size * limits.inflation_ratio):
        raise exceeded("inflation_ratio", limits.inflation_ratio, source.name)
    data = _Dataset(lambda: dataset[()], size, f"{source.name}!{dataset.name}")
    return ArrayNode(0, dtype, shape, contiguous_strides(shape), data)


def read_keras(source: Source, options: OpenOptions) -> ForeignCheckpoint:
    """The weights in a .keras archive; its configuration is not looked at."""
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
