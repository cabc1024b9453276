"""A tensor that has not been read yet: its type, its shape, and where its bytes are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ..errors import SafetensorError, UnsupportedError, quote
from ..format import indexing
from ..format.header import TensorInfo
from ..lazy import deferred
from ..storage import Buffer, Source, allocate, flat, gather, gather_mapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from typing_extensions import Self

    from ..format.indexing import Selection

__all__ = ["UNKNOWN", "FileTensor", "MemoryTensor", "Tensor", "UnreadableTensor"]

_values_of = deferred("safeweights.frameworks.values", "values_of")
_selected = deferred("safeweights.frameworks.values", "selected")
_html_of = deferred("safeweights.reports.notebook", "tensor_html")

UNKNOWN: Final = "?"
"""The `Tensor.dtype` of a tensor whose type and shape the file does not tell."""


class Tensor(ABC):
    """A tensor that has not been read yet.

    Bytes are in the order of the format: little-endian, C order, sub-byte types packed. Values come from
    `numpy`, `torch`, `jax`, indexing and ``numpy.asarray``; those of many tensors faster from
    `safeweights.stream`, which takes a checkpoint.

    Attributes:
        name: Its name in the file, for messages; a renamed view keeps it.
        dtype: Code of the element type, e.g. ``"BF16"``.
        shape: Elements along each axis.
        nbytes: Size in bytes.
        in_memory: Whether `view` returns existing memory (also mapped memory) instead of reading.
        computed: Whether its bytes are computed, which takes a processor longer than copying them.
        streams: Whether `in_blocks` takes little memory; otherwise it computes the whole tensor first.
        unreadable: Why its values cannot be given; None for a tensor that can be read.
    """

    __slots__ = ("dtype", "name", "nbytes", "shape")
    in_memory = False
    computed = False
    streams = True
    unreadable: str | None = None

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

    def check_readable(self) -> None:  # noqa: B027 - most tensors have nothing to check
        """Do nothing for a tensor that can be read.

        Raises:
            UnsupportedError: The file describes the tensor, but its values cannot be given.
        """

    def prepare(self) -> None:  # noqa: B027 - most tensors have nothing to open
        """Find what would make reading it fail, as far as no element has to be read for that.

        Cost: nothing for most tensors; one that is made of parts opens all of them.

        Raises:
            SafetensorError: A part is not what it should be.
            OSError: A part cannot be opened or read.
        """

    def _repr_html_(self) -> str:
        """What notebooks show: type, shape, and of a tensor that is not large its values' statistics."""
        found: str = _html_of(self)
        return found

    def numpy(self) -> np.ndarray[Any, Any]:
        """All values as a NumPy array of their own memory.

        Cost: reads the tensor once; of one in memory a copy. Types that NumPy lacks (BF16, F8) are those
        of ml_dtypes; without that package they are decoded to F32.

        Raises:
            UnsupportedError: The file describes the tensor, but its values cannot be given.
            DTypeError: NumPy has no such element type.
            SafetensorError, OSError: Reading failed.

        >>> MemoryTensor("a", "F32", (2,), bytes(8)).numpy()
        array([0., 0.], dtype=float32)
        """
        found: np.ndarray[Any, Any] = _values_of(self, "np")
        return found

    def torch(self, device: Any = "cpu") -> Any:
        """All values as a torch tensor, which shares the memory of a mapped tensor; see `numpy`."""
        return _values_of(self, "pt", device)

    def jax(self, device: Any = "cpu") -> Any:
        """All values as a JAX array; see `numpy`."""
        return _values_of(self, "jax", device)

    def __getitem__(self, expression: Any) -> Any:
        """The selected values as a NumPy array; only what is selected is read.

        Integers, slices, ``...``, None, arrays and masks, as in NumPy; except that slice bounds beyond
        the axis are errors.

        Raises:
            SelectionError: The expression does not fit the shape.
            UnsupportedError, DTypeError, OSError: As `numpy`.

        >>> MemoryTensor("a", "U8", (2, 3), bytes(range(6)))[1, ::2]
        array([3, 5], dtype=uint8)
        """
        return _selected(self, expression)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False:
            raise ValueError(
                f"the values of tensor {quote(self.name)} are read: copy=False cannot be"
            )
        values = self.numpy()
        return values if dtype is None else values.astype(dtype)

    @property
    def info(self) -> TensorInfo:
        """Type, shape and place; the place counts from the beginning of its file's data, if any."""
        return TensorInfo(self.dtype, self.shape, 0, self.nbytes)

    def view(self) -> memoryview:
        """All bytes: the memory itself if they are in memory or mapped, otherwise a copy."""
        return self._read_range(0, self.nbytes)

    def chunks(self, size: int = 1 << 24) -> Iterator[Buffer]:
        """All bytes in order, at most `size` at a time; only one chunk is in memory at a time."""
        for begin in range(0, self.nbytes, size):
            yield self._read_copy(begin, min(size, self.nbytes - begin))

    def in_blocks(self, memory: memoryview) -> Iterator[memoryview]:
        """All bytes in order, in blocks as long as `memory`, which may lie there.

        A block is valid until the next one is asked for, and must not be changed. Of a tensor that is
        computed, an error at the end may say that all blocks are wrong: do not hand them out before.
        """
        for begin in range(0, self.nbytes, len(memory)):
            block = memory[: min(len(memory), self.nbytes - begin)]
            self.read_into(block, begin)
            yield block

    def read_selection(self, selection: Selection) -> memoryview:
        """The bytes of the selected elements, ascending along each axis, in C order.

        Cost: reads the runs of the selection, or where they lie close together what is between them
        too (never more than `Source.gap` bytes a run); memory for the result and at most 8 MiB.

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
            self._read_runs(runs, out)
        return out

    def _read_runs(self, runs: indexing.Runs, out: memoryview) -> None:
        gather(runs, self.read_into, out)

    def _read_range(self, offset: int, length: int) -> memoryview:
        return self._read_copy(offset, length)

    def _read_copy(self, offset: int, length: int) -> memoryview:
        buffer = allocate(length)
        self.read_into(buffer, offset)
        return buffer

    def _within(self, buffer: Any, offset: int) -> memoryview:
        """The bytes of a buffer to be filled with the tensor's bytes from `offset` on."""
        view = flat(buffer)
        if not 0 <= offset <= self.nbytes - len(view):
            raise SafetensorError(
                f"bytes {offset} to {offset + len(view)} asked of tensor {quote(self.name)}, which has "
                f"{self.nbytes}",
                tensor=self.name,
            )
        return view


class FileTensor(Tensor):
    """A tensor whose bytes are contiguous in a source.

    Attributes:
        source: The source.
        data_start: Offset in the source from which the tensor's `info` counts.
    """

    __slots__ = ("_info", "_offset", "data_start", "in_memory", "source")

    def __init__(self, name: str, info: TensorInfo, source: Source, data_start: int) -> None:
        super().__init__(name, info.dtype, info.shape, info.nbytes)
        self.in_memory = source.in_memory
        self._info = info
        self.source = source
        self.data_start = data_start
        self._offset = data_start + info.begin

    def __reduce__(self) -> tuple[Any, ...]:
        return FileTensor, (self.name, self._info, self.source, self.data_start)

    @property
    def info(self) -> TensorInfo:
        return self._info

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        self.source.read_into(self._offset + offset, self._within(buffer, offset))

    def _read_runs(self, runs: indexing.Runs, out: memoryview) -> None:
        self.source.read_runs(runs._replace(offset=self._offset + runs.offset), out)

    def _read_range(self, offset: int, length: int) -> memoryview:
        return self.source.view(self._offset + offset, length)


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
    _data: Any

    # Sets what `Tensor.__init__` would: saving many small tensors makes one of these for each.
    def __init__(self, name: str, dtype: str, shape: Iterable[int], data: Any) -> None:
        self._data = view = flat(data)
        self.name = name
        self.dtype = dtype
        self.shape = tuple(shape)
        self.nbytes = len(view)

    def __reduce__(self) -> tuple[Any, ...]:
        return MemoryTensor, (self.name, self.dtype, self.shape, bytes(self.memory()))

    def memory(self) -> memoryview:
        """All bytes: the memory itself. Classes that have it in another form look it up here."""
        found: memoryview = self._data
        return found

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        view = self._within(buffer, offset)
        view[:] = self.memory()[offset : offset + len(view)]

    def chunks(self, size: int = 1 << 24) -> Iterator[Buffer]:  # noqa: ARG002 - no copy to bound
        return iter((self.memory(),))

    @classmethod
    def chunks_of(cls, tensors: Sequence[Self]) -> list[Buffer]:
        """The bytes of some tensors, one piece for each: a class may save a call for each."""
        return [tensor.memory() for tensor in tensors]

    def _read_range(self, offset: int, length: int) -> memoryview:
        return self.memory()[offset : offset + length]


class UnreadableTensor(Tensor):
    """A tensor that its file describes, but whose values cannot be given: reading it says why.

    Args:
        name: Its name in the file.
        dtype: The element type as its own format calls it, such as ``"Q4_K"``; `UNKNOWN` where the
            file does not tell it.
        shape: Elements along each axis; empty where the type is unknown.
        nbytes: Bytes that its data take in the file, as far as that is known.
        reason: Why it cannot be given, and what would allow it.
        path: The file, for messages.
    """

    __slots__ = ("_path", "unreadable")

    def __init__(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        nbytes: int,
        *,
        reason: str,
        path: str | None = None,
    ) -> None:
        super().__init__(name, dtype, shape, nbytes)
        self.unreadable = reason
        self._path = path

    def check_readable(self) -> NoReturn:
        raise UnsupportedError(
            f"tensor {quote(self.name)} cannot be given: {self.unreadable}",
            path=self._path or None,
            tensor=self.name,
        )

    def read_into(self, buffer: Any, offset: int = 0) -> NoReturn:  # noqa: ARG002
        self.check_readable()

    def chunks(self, size: int = 1 << 24) -> NoReturn:  # noqa: ARG002
        self.check_readable()

    def read_selection(self, selection: Selection) -> NoReturn:  # noqa: ARG002
        self.check_readable()

    def _read_range(self, offset: int, length: int) -> NoReturn:  # noqa: ARG002
        self.check_readable()
