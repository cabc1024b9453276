"""`safe_open`: one file, opened for one framework."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from .. import indexing
from ..checkpoint import SafetensorsFile
from ..dtypes import BITS
from ..errors import ClosedError, FormatError, SafetensorError, SelectionError, UnsupportedError
from ..storage import ENGINES
from .adapter import Adapter, adapter_for

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..checkpoint import FileTensor
    from ..header import TensorInfo

__all__ = ["Slice", "safe_open"]

_ARENA: Final = 1 << 28
"""Bytes read into one piece of memory: one tensor that lives on keeps its whole piece alive."""


@contextmanager
def prefixed(words: str) -> Iterator[None]:
    """Errors of format begin with the reference's words for what was being done."""
    try:
        yield
    except FormatError as error:
        error.message = f"{words}{error.message}"
        raise


class MissingFileError(FileNotFoundError):
    """FileNotFoundError with the reference's words."""

    def __str__(self) -> str:
        return f"No such file or directory: {self.filename}"


class safe_open:  # noqa: N801 - the reference's name
    """Open a file and hand out its tensors one at a time.

    Opening reads and checks the header; nothing else is read until it is asked for. Tensors and
    slices stay valid after the file is closed, and closing is optional.

    Args:
        filename: Path, or a readable file object.
        framework: ``"pt"``, ``"np"``, ``"jax"`` ... (`safeweights.frameworks.adapter.FRAMEWORKS`).
        device: Where tensors go; what the framework understands.
        backend: ``"mmap"``: tensors share a private mapping of the file; reading is left to the
            first use. ``"pread"``: every tensor is read into memory of its own.

    Raises:
        FormatError: The file breaks a rule of the format, or is of another format.
        OSError: It cannot be opened.
        SafetensorError: No such framework, device or backend.

    Example:
        >>> import numpy, safeweights.numpy, tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "x.safetensors")
        >>> safeweights.numpy.save_file({"a": numpy.arange(6.0).reshape(2, 3)}, path)
        >>> with safe_open(path, "np") as f:
        ...     f.keys(), f.get_slice("a")[1, ::2]
        (['a'], array([3., 5.]))
    """

    def __init__(
        self,
        filename: str | os.PathLike[str] | IO[bytes],
        framework: str,
        device: Any = "cpu",
        *,
        backend: str = "mmap",
    ) -> None:
        self._adapter = adapter_for(framework)
        self._device = self._adapter.check_device(device)
        if backend not in ENGINES:
            known = ", ".join(f'"{name}"' for name in ENGINES)
            raise SafetensorError(f'backend "{backend}" is invalid (expected one of: {known})')
        self._file: SafetensorsFile | None
        try:
            with prefixed("Error while deserializing header: "):
                self._file = SafetensorsFile.open(filename, engine=backend)
        except FileNotFoundError as error:
            raise MissingFileError(errno.ENOENT, error.strerror, error.filename) from error

    @classmethod
    def of(cls, data: Any, framework: str, device: Any = "cpu") -> Self:
        """A handle on bytes in memory that hold a whole file."""
        self = cls.__new__(cls)
        self._adapter = adapter_for(framework)
        self._device = self._adapter.check_device(device)
        with prefixed("Error while deserializing: "):
            self._file = SafetensorsFile.open(data)
        return self

    def _opened(self) -> SafetensorsFile:
        if self._file is None:
            raise ClosedError
        return self._file

    def keys(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._opened().header.tensors)

    def offset_keys(self) -> list[str]:
        """Names of the tensors, in the order of the data."""
        return list(self._opened().header.tensors)

    def metadata(self) -> dict[str, str] | None:
        """The file's metadata; None where it has none."""
        metadata = self._opened().header.metadata
        return None if metadata is None else dict(metadata)

    def info(self, name: str) -> TensorInfo:
        """Type, shape and place of a tensor, without reading it."""
        file = self._opened()
        file.tensor(name)
        return file.header.tensors[name]

    def get_tensor(self, name: str) -> Any:
        """A tensor.

        Cost with mmap on the CPU: no read, no copy. With pread: one read.

        Raises:
            TensorNotFoundError: There is none of that name.
            UnsupportedError: The framework has no such element type.
        """
        tensor = self._opened().tensor(name)
        return self._adapter.decode(tensor.view(), tensor.dtype, tensor.shape, self._device)

    def get_bytes(self, name: str) -> memoryview:
        """A tensor's bytes as they stand in the file, for types that no framework has."""
        return self._opened().tensor(name).view()

    def get_tensors(self) -> dict[str, Any]:
        """All tensors, in the order of the data."""
        file = self._opened()
        start = file.header.data_start
        source = file.source.for_all()
        result: dict[str, Any] = {}
        for group in _arenas(file.header.tensors, whole=source.in_memory):
            first, last = group[0][1], group[-1][1]
            data = source.view(start + first.begin, last.end - first.begin)
            result.update(self._adapter.decode_all(data, first.begin, group, self._device))
        return result

    def get_slice(self, name: str) -> Slice:
        """A tensor to take parts of, by indexing; only what is selected is read."""
        file = self._opened()
        return Slice(file.tensor(name), self._adapter, self._device, mapped=file.source.in_memory)

    def __getitem__(self, name: str) -> Any:
        return self.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._opened().header.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.offset_keys())

    def __len__(self) -> int:
        return len(self._opened().header.tensors)

    def items(self) -> Iterator[tuple[str, Any]]:
        """(name, tensor), in the order of the data, one at a time."""
        for name in self.offset_keys():
            yield name, self.get_tensor(name)

    def close(self) -> None:
        """Let go of the file; closing twice is allowed."""
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._file is None else repr(self._file.name)
        return f"<safe_open {state} for {self._adapter.name}>"


class Slice:
    """A tensor of an open file, to be indexed; see `safe_open.get_slice`."""

    __slots__ = ("_adapter", "_device", "_mapped", "_tensor")

    def __init__(self, tensor: FileTensor, adapter: Adapter, device: Any, *, mapped: bool) -> None:
        self._tensor = tensor
        self._adapter = adapter
        self._device = device
        self._mapped = mapped

    def get_shape(self) -> list[int]:
        """Elements along each axis."""
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """Code of the element type."""
        return self._tensor.dtype

    def __getitem__(self, expression: Any) -> Any:
        """The selected part.

        Torch tensors of mapped memory are indexed by torch. Everything else follows NumPy, except
        that slice bounds beyond the axis are errors; indexes by arrays and masks read the tensor
        first.

        Raises:
            SelectionError: The expression does not fit the shape.
        """
        tensor, adapter = self._tensor, self._adapter
        native = adapter.native_indexing and self._mapped and BITS[tensor.dtype] >= 8
        if _has_arrays(expression) or (native and not _has_negative_step(expression)):
            return self._index_whole(expression)
        selection = indexing.select(
            expression, tensor.shape, clamp=adapter.native_indexing and native
        )
        data = tensor.read_selection(selection)
        if selection.reversed:
            data = _reverse(data, selection, tensor.dtype)
        return adapter.decode(data, tensor.dtype, selection.shape, self._device)

    def _index_whole(self, expression: Any) -> Any:
        tensor = self._tensor
        whole = self._adapter.decode(tensor.view(), tensor.dtype, tensor.shape, self._device)
        try:
            return whole[expression]
        except (IndexError, TypeError, ValueError, RuntimeError) as error:
            raise SelectionError(str(error), tensor=tensor.name) from error

    def __repr__(self) -> str:
        return f"<Slice of {self._tensor!r}>"


def _arenas(
    tensors: dict[str, TensorInfo], *, whole: bool
) -> Iterator[list[tuple[str, TensorInfo]]]:
    """Group neighbours that are read into one piece of memory; all of them where nothing is read."""
    items = list(tensors.items())
    if whole:
        if items:
            yield items
        return
    group: list[tuple[str, TensorInfo]] = []
    for item in items:
        if group and item[1].end - group[0][1].begin > _ARENA:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _items(expression: Any) -> tuple[Any, ...]:
    return expression if isinstance(expression, tuple) else (expression,)


def _has_arrays(expression: Any) -> bool:
    """Whether an index is by arrays, masks or truth values; a bare list never was allowed."""
    return any(
        isinstance(item, bool | np.bool_)
        or (isinstance(item, list) and isinstance(expression, tuple))
        or getattr(item, "ndim", 0) > 0
        for item in _items(expression)
    )


def _has_negative_step(expression: Any) -> bool:
    return any(
        isinstance(item, slice) and item.step is not None and item.step < 0
        for item in _items(expression)
    )


def _reverse(data: memoryview, selection: indexing.Selection, dtype: str) -> memoryview:
    """Bytes read in ascending order, turned round along the axes that were asked for descending."""
    counts = selection.counts
    bits = BITS[dtype]
    if bits < 8:
        last = len(counts) - 1
        if last in selection.reversed:
            raise UnsupportedError(f"{dtype} elements share bytes: their axis cannot be reversed")
        counts, bits = (*counts[:-1], counts[-1] * bits // 8), 8
    array = np.frombuffer(data, np.dtype((np.void, bits // 8))).reshape(counts)
    flipped = np.ascontiguousarray(np.flip(array, selection.reversed))
    return flipped.reshape(-1).view(np.uint8).data
