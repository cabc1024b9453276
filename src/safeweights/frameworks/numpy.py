"""NumPy, with the types of machine learning from ml_dtypes."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..checkpoint import MemoryTensor, Tensor
from ..errors import DTypeError, MissingDependencyError, UnsupportedError, quote
from ..format.dtypes import DTYPES
from ..storage import flat
from .adapter import COPY_MAX, Adapter
from .wording import advice

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from typing_extensions import Self

    from ..format.header import TensorInfo
    from ..storage import Buffer

__all__ = ["ADAPTER", "WIDENING", "code_of", "dtype_of_values", "numpy_dtype"]

_CODES: Final = {row.numpy: row.code for row in DTYPES.values()}


@cache
def numpy_dtype(code: str) -> np.dtype[Any]:
    """The NumPy dtype, little-endian, of element type `code`.

    Raises:
        MissingDependencyError: It is one of ml_dtypes, which is not installed.
        UnsupportedError: The format does not say how its elements are packed (F6).
    """
    row = DTYPES[code]
    if row.bits == 6:
        raise DTypeError(
            f"{code} elements cannot become an array: the format does not define how 6-bit values are "
            "packed; read the raw bytes with `get_bytes`"
        )
    if not row.ml_dtypes:
        return np.dtype(row.numpy).newbyteorder("<")
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingDependencyError(
            f"{code} arrays need the package ml_dtypes (pip install 'safeweights[ml-dtypes]'); without it "
            "`safeweights.open(path)[name].numpy()` decodes to F32, which holds every value"
        ) from error
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, row.numpy))
    return found


def _usual_dtype(code: str) -> np.dtype[Any] | None:
    """The NumPy dtype of types of whole bytes; None for those that have to be looked at more closely."""
    try:
        return numpy_dtype(code) if DTYPES[code].bits >= 8 else None
    except (KeyError, MissingDependencyError):
        return None


def code_of(dtype: np.dtype[Any]) -> str | None:
    """The code of an array's element type; None where the format has no such type."""
    code = _CODES.get(dtype.name)
    # A structured or foreign dtype may carry any name; its width must fit too.
    if code is None or dtype.fields is not None or dtype.itemsize * 8 < DTYPES[code].bits:
        return None
    return code


def _usual_code(dtype: np.dtype[Any]) -> str | None:
    """The code of a type whose arrays, as buffers, are the bytes of the format; None for others."""
    registered = dtype.isbuiltin == 2  # by ml_dtypes, for instance: no buffer has such elements
    shows = dtype.kind in "biufc" and not registered and not _is_big_endian(dtype)
    return code_of(dtype) if shows else None


class NumPyAdapter(Adapter):
    """Arrays share mapped or owned memory; F4 is unpacked, one byte an element, as ml_dtypes has it."""

    name = "numpy"

    def make(self, data: memoryview, dtype: str, shape: tuple[int, ...], device: Any) -> Any:
        del device  # there is one
        return decode_array(data, dtype, shape)

    def decode_all(
        self, data: memoryview, base: int, tensors: Iterable[tuple[str, TensorInfo]], device: Any
    ) -> dict[str, Any]:
        # A type is looked up once for all its neighbours: half the time for a file of small tensors.
        address = np.frombuffer(data, np.uint8).ctypes.data - base if data.nbytes else 0
        result: dict[str, Any] = {}
        last, array = "", np.ndarray
        for name, (dtype, shape, begin, end) in tensors:
            if dtype != last:
                last, usual = dtype, _usual_dtype(dtype)
            if usual is None or begin == end or (address + begin) % usual.alignment:
                piece = data[begin - base : end - base]
                result[name] = self.decode(piece, dtype, shape, device, name=name)
            else:
                result[name] = array(shape, usual, data, begin - base)
        return result

    def encode(self, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        if not hasattr(tensors, "items"):
            raise UnsupportedError(
                f"Expected a dict of [str, numpy.ndarray] but received {type(tensors)}"
            )
        found: dict[str, Tensor] = {}
        last, usual, plain = None, None, np.ndarray
        shape: tuple[int, ...] = ()
        nbytes = 0
        for name, array in tensors.items():
            if type(array) is plain and array.flags.c_contiguous:
                # A type is looked up once for all its neighbours: a quarter of the time for small arrays.
                if (dtype := array.dtype) is not last:
                    last, usual = dtype, _usual_code(dtype)
                    shape, nbytes = (), dtype.itemsize
                if usual is not None:
                    if array.shape != shape:
                        # One object for all neighbours: `layout` knows it again.
                        shape, nbytes = array.shape, array.nbytes
                    found[name] = ArrayTensor(name, usual, shape, nbytes, array)
                    continue
            found[name] = encode_array(name, array)
        return found


class ArrayTensor(MemoryTensor):
    """A contiguous array of a usual type; its memory is looked up when it is written."""

    __slots__ = ()

    def __init__(
        self,
        name: str,
        code: str,
        shape: tuple[int, ...],
        nbytes: int,
        array: np.ndarray[Any, Any],
    ) -> None:
        # What the base's does, but for the view, which takes as long as all the rest.
        self.name = name
        self.dtype = code
        self.shape = shape
        self.nbytes = nbytes
        self._data = array

    def memory(self) -> memoryview:
        return flat(self._data)

    @classmethod
    def chunks_of(cls, tensors: Sequence[Self]) -> list[Buffer]:
        if max(tensor.nbytes for tensor in tensors) > COPY_MAX:
            return super().chunks_of(tensors)
        return [tensor._data.tobytes() for tensor in tensors]  # noqa: SLF001 - of this class


class WideningAdapter(NumPyAdapter):
    """Types that only ml_dtypes has are decoded to F32 where it is not installed."""

    def make(self, data: memoryview, dtype: str, shape: tuple[int, ...], device: Any) -> Any:
        try:
            return super().make(data, dtype, shape, device)
        except MissingDependencyError:
            from ..derived.small_floats import widened

            return widened(dtype, data).reshape(shape)


def dtype_of_values(code: str) -> np.dtype[Any]:
    """The type of the arrays that `WideningAdapter` makes."""
    try:
        return numpy_dtype(code)
    except MissingDependencyError:
        return np.dtype("<f4")


def decode_array(data: memoryview, dtype: str, shape: tuple[int, ...]) -> Any:
    """An array over `data`; a copy where that memory is not aligned for its type, or packed.

    Raises:
        UnsupportedError: NumPy cannot have such elements.
        MissingDependencyError: Only ml_dtypes has them.
    """
    found = numpy_dtype(dtype)
    if DTYPES[dtype].packed > 1:
        return unpack(data).view(found).reshape(shape)
    array = np.ndarray(shape, found, data)
    return array if array.flags.aligned else array.copy()


def carried(data: memoryview, dtype: str, shape: tuple[int, ...]) -> Any:
    """Like `decode_array`, but types of ml_dtypes are carried as unsigned integers of their width."""
    row = DTYPES[dtype]
    found = np.dtype(f"<u{row.bits // 8}") if row.ml_dtypes else numpy_dtype(dtype)
    array = np.ndarray(shape, found, data)
    return array if array.flags.aligned else array.copy()


def tensor_of(name: str, code: str, array: Any) -> Tensor:
    """The tensor whose elements of type `code` are those of `array`, byte for byte."""
    return MemoryTensor(
        name, code, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    )


def encode_array(name: str, array: Any) -> Tensor:
    """An array's values in the order of the format; copied only where its memory is laid out otherwise.

    Raises:
        UnsupportedError: Not an array, or of a type that the format does not have.
    """
    masked = isinstance(array, np.ma.MaskedArray)
    if masked or not isinstance(array, np.ndarray | np.generic):
        hint = (
            ": the format has no masks: say what stands in their place (`.filled(...)`)"
            if masked
            else advice(name, array, "numpy.asarray")
        )
        raise UnsupportedError(
            f"Key {quote(name)} is invalid, expected numpy.ndarray but received {type(array)}{hint}",
            tensor=name,
        )
    array = np.asarray(array)
    code = code_of(array.dtype)
    if code is None:
        known = ", ".join(_CODES)
        raise DTypeError(
            f'Unknown dtype "{array.dtype.name}" of tensor {quote(name)}. Supported dtypes: {known}',
            tensor=name,
        )
    if _is_big_endian(array.dtype):
        array = array.astype(array.dtype.newbyteorder("<"))
    if DTYPES[code].bits == 6:
        numpy_dtype(code)
    if DTYPES[code].packed > 1:
        values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return MemoryTensor(name, code, array.shape, pack(values, name))
    return tensor_of(name, code, array)


def _is_big_endian(dtype: np.dtype[Any]) -> bool:
    return dtype.byteorder == ">" or (dtype.byteorder == "=" and sys.byteorder == "big")


def unpack(data: memoryview) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Two 4-bit values a byte, the first in the low half -> one value a byte."""
    packed = np.frombuffer(data, np.uint8)
    values = np.empty((len(packed), 2), np.uint8)
    np.bitwise_and(packed, 15, out=values[:, 0])
    np.right_shift(packed, 4, out=values[:, 1])
    return values.reshape(-1)


def pack(values: Any, name: str) -> Any:
    """The inverse of `unpack`."""
    if len(values) % 2:
        raise UnsupportedError(
            f"tensor {quote(name)} has {len(values)} elements of 4 bits, which do not end at a byte "
            "boundary: pad it to an even number",
            tensor=name,
        )
    pairs = values.reshape(-1, 2)
    return (pairs[:, 0] & 15) | (pairs[:, 1] << 4)


ADAPTER: Final = NumPyAdapter()
WIDENING: Final = WideningAdapter()
"""For values that are looked at or computed with, not loaded to be saved again."""
