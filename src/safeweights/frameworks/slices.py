"""A tensor of a file, to be indexed: reads what is selected, and nothing else."""

from __future__ import annotations

import sys
from operator import index as as_index
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, TypeVar

import numpy as np

from ..errors import DTypeError, IndexTypeError, SelectionError, StepError, UnsupportedError, quote
from ..format import indexing
from ..format.dtypes import BITS
from ..storage.memory import copied

if TYPE_CHECKING:
    from ..checkpoint import Tensor
    from .adapter import Adapter

__all__ = ["ReadPart", "Slice", "read_part"]

T = TypeVar("T")

_INDEX_ERRORS: Final = (IndexError, TypeError, ValueError, OverflowError)


class ReadPart(NamedTuple):
    """The bytes of a selection, in C order, and the shape they have."""

    data: memoryview
    shape: tuple[int, ...]


def read_part(tensor: Tensor, expression: Any, *, clamp: bool = False) -> ReadPart:
    """Read the part of `tensor` that a basic index expression selects.

    Args:
        tensor: Any.
        expression: Integers, slices, ``...`` and None.
        clamp: Slice bounds beyond the axis mean its end, as in NumPy, instead of an error.

    Raises:
        SelectionError: The expression does not fit the shape, or is by arrays or masks.
    """
    selection = indexing.select(expression, tensor.shape, clamp=clamp)
    data = tensor.read_selection(selection)
    if selection.reversed and len(data):
        data = _reverse(data, selection, tensor.dtype)
    return ReadPart(data, selection.shape)


class Slice(Generic[T]):
    """A tensor of an open file, to be indexed; see `safe_open.get_slice`.

    It stays usable when the file is closed, and from several threads at once.
    """

    __slots__ = ("_adapter", "_copies", "_device", "_mapped", "_tensor")

    def __init__(
        self,
        tensor: Tensor,
        adapter: Adapter,
        device: Any,
        *,
        mapped: bool,
        copies: bool = False,
    ) -> None:
        tensor.check_readable()
        if tensor.dtype not in BITS:
            raise DTypeError(
                f"tensor {quote(tensor.name)} is of type {tensor.dtype}, which cannot be indexed",
                tensor=tensor.name,
            )
        self._tensor = tensor
        self._adapter = adapter
        self._device = device
        self._mapped = mapped
        self._copies = copies and tensor.in_memory

    def get_shape(self) -> list[int]:
        """Elements along each axis."""
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """Code of the element type."""
        return self._tensor.dtype

    def __getitem__(self, expression: Any) -> T:
        """The selected part.

        Torch tensors of mapped memory are indexed by torch. Everything else follows NumPy, except
        that slice bounds beyond the axis are errors; indexes by arrays and masks read the tensor
        first.

        Raises:
            SelectionError: The expression does not fit the shape.
        """
        tensor, adapter = self._tensor, self._adapter
        native = adapter.native_indexing and self._mapped and BITS[tensor.dtype] >= 8
        by_array = _has_arrays(expression)
        if adapter.native_indexing and (by_array or (native and not _has_other_steps(expression))):
            return self._index_natively(expression)
        if by_array:
            data, shape = _take(tensor, expression)
        else:
            data, shape = read_part(tensor, expression, clamp=native)
        if self._copies:
            data = copied(data)
        part: T = adapter.decode(data, tensor.dtype, shape, self._device, name=tensor.name)
        return part

    def _index_natively(self, expression: Any) -> T:
        """Index the whole tensor on the host, then move the part: a device never sees the rest."""
        tensor, adapter = self._tensor, self._adapter
        whole = adapter.decode(tensor.view(), tensor.dtype, tensor.shape, None, name=tensor.name)
        try:
            part = whole[expression]
        except (*_INDEX_ERRORS, RuntimeError) as error:
            if "allocate" in str(error):
                raise  # torch has no class of its own for having run out of host memory
            kinds = {ValueError: StepError, TypeError: IndexTypeError}
            kind = kinds.get(type(error), SelectionError)
            raise kind(str(error), tensor=tensor.name) from error
        placed: T = adapter.place(part, self._device)
        return placed

    def __array__(self, *_: object, **__: object) -> NoReturn:
        # Without it NumPy would make an array of one object.
        raise UnsupportedError(
            f"a slice of tensor {quote(self._tensor.name)} has no values before it is indexed: `[...]` "
            "reads all of it",
            tensor=self._tensor.name,
        )

    def __repr__(self) -> str:
        return f"<Slice of {self._tensor!r}>"


def _take(tensor: Tensor, expression: Any) -> ReadPart:
    """Index by arrays and masks as NumPy does; frameworks differ, and some clamp what is out of bounds."""
    bits = BITS[tensor.dtype]
    if bits < 8:
        raise UnsupportedError(
            f"{tensor.dtype} elements share bytes and cannot be selected one by one: use slices",
            tensor=tensor.name,
        )
    try:
        whole = np.ndarray(tensor.shape, np.dtype((np.void, bits // 8)), tensor.view())
        part = np.asarray(whole[expression])
    except _INDEX_ERRORS as error:
        raise SelectionError(str(error), tensor=tensor.name) from error
    return ReadPart(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, part.shape)


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


def _has_other_steps(expression: Any) -> bool:
    """Whether there are steps that torch does not know: descending ones, and those beyond 64 bits."""
    return any(
        isinstance(item, slice) and item.step is not None and not _is_usual(item.step)
        for item in _items(expression)
    )


def _is_usual(step: Any) -> bool:
    try:
        return 0 <= as_index(step) <= sys.maxsize
    except TypeError:  # no integer, which is said where it is used
        return True


def _reverse(data: memoryview, selection: indexing.Selection, dtype: str) -> memoryview:
    """Bytes read in ascending order, turned round along the axes that were asked for descending."""
    indexing.require_reversible(selection, dtype)
    counts = selection.counts
    bits = BITS[dtype]
    if bits < 8:
        counts, bits = (*counts[:-1], counts[-1] * bits // 8), 8
    array = np.frombuffer(data, np.dtype((np.void, bits // 8))).reshape(counts)
    flipped = np.ascontiguousarray(np.flip(array, selection.reversed))
    return flipped.reshape(-1).view(np.uint8).data
