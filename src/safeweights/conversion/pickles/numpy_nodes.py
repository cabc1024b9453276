"""NumPy arrays, scalars and types as pickles and .npy headers describe them.

Both spellings of NumPy's internals (``numpy.core`` before 2.0, ``numpy._core`` since) and
ml_dtypes' types are known by name; neither package is asked. The element data stays where it is.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ...derived.element_types import NUMPY_CODES, item_size
from ...derived.strided import Strided, contiguous_strides
from ...errors import FormatError, quote
from ...format.dtypes import DTYPES
from ...storage import BytesSource, Source
from ...storage.windows import Window
from .nodes import Blob, Call, Global, Value
from .object_nodes import as_bytes, is_int

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "NUMPY_CONSTRUCTORS",
    "ArrayNode",
    "DtypeNode",
    "RefusedNode",
    "array_code",
    "blob_source",
    "int_tuple",
    "named_dtype",
]

_NATIVE_NAMES: Final = {
    "bool": "b1", "bool_": "b1", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2",
    "int32": "i4", "uint32": "u4", "int64": "i8", "uint64": "u8", "float16": "f2",
    "float32": "f4", "float64": "f8", "complex64": "c8", "complex128": "c16",
}  # fmt: skip
_ML_DTYPES: Final = {row.numpy: row.code for row in DTYPES.values() if row.ml_dtypes}
_PACKED_ML: Final = {"F4", "F6_E2M3", "F6_E3M2"}  # ml_dtypes spreads these over a byte each


def int_tuple(value: Value) -> tuple[int, ...] | None:
    """`value` as a tuple of integers, or None."""
    if isinstance(value, (tuple, list)) and all(is_int(item) for item in value):
        return tuple(value)
    return None


def array_code(descr: str) -> tuple[str | None, bool]:
    """The element type code of an array-protocol type string, and whether it is big-endian.

    >>> array_code("<f4"), array_code(">c8"), array_code("|O")
    (('F32', False), ('C64', True), (None, False))
    """
    match = re.fullmatch(r"([<>=|]?)([a-zA-Z]\d*)", descr)
    if match is None:
        return None, False
    order, kind = match.groups()
    return NUMPY_CODES.get(kind), order == ">"


@dataclass(eq=False, slots=True)
class DtypeNode:
    """A NumPy element type.

    Attributes:
        kind: Array-protocol string without byte order (``"f4"``), or ``"ml:NAME"``.
        swapped: Big-endian.
        fields: Whether it is structured or has a shape of its own.
        itemsize: Bytes of one element where `kind` does not say it.
    """

    kind: str
    swapped: bool = False
    fields: bool = False
    itemsize: int | None = None

    def set_state(self, state: Value) -> None:
        """Take what BUILD gives: (version, byte order, subdtype, names, fields, ...)."""
        if not isinstance(state, tuple) or len(state) < 5 or not isinstance(state[1], str):
            raise FormatError("the state of a numpy.dtype is malformed", rule="numpy-dtype")
        self.swapped = state[1] == ">"
        self.fields = state[2] is not None or state[3] is not None
        if len(state) > 5 and is_int(state[5]) and state[5] >= 0:
            self.itemsize = state[5]

    @property
    def code(self) -> str | None:
        """The element type code, or None where no tensor can have this type."""
        if self.fields:
            return None
        if self.kind.startswith("ml:"):
            code = _ML_DTYPES.get(self.kind[3:])
            return None if code in _PACKED_ML else code
        return array_code(self.kind)[0]

    @property
    def width(self) -> int | None:
        """Bytes of one element, of types too that no tensor can have; None if unknown."""
        if self.code is not None:
            return item_size(self.code)
        match = re.fullmatch(r"[a-zA-Z](\d{1,9})", self.kind)
        if self.itemsize is not None or match is None:
            return self.itemsize
        return int(match[1]) * (4 if self.kind[0] == "U" else 1)

    @property
    def is_data(self) -> bool:
        """Whether the elements are text, objects or times: nothing that a tensor would hold."""
        return self.kind[:1] in "OUSMma" and not self.kind.startswith("ml:")

    @property
    def is_object(self) -> bool:
        """Whether the elements are Python objects."""
        return self.kind.startswith("O") or self.kind == "object"


def named_dtype(name: str) -> DtypeNode | None:
    """The type that NumPy or ml_dtypes calls `name`, e.g. ``"float32"``; None for another."""
    if name in _NATIVE_NAMES:
        return DtypeNode(_NATIVE_NAMES[name])
    return DtypeNode(f"ml:{name}") if name in _ML_DTYPES else None


@dataclass(eq=False, slots=True, repr=False)
class ArrayNode:
    """A NumPy array whose elements lie in a file.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        strides: Steps along each axis in the data, in elements.
        data: The bytes, the `Blob` that stands for them, a source, or the list of objects.
        offset: Where the pickle made it.
    """

    offset: int
    dtype: DtypeNode = field(default_factory=lambda: DtypeNode("f8"))
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    data: bytes | Blob | Source | list[Value] = b""
    attributes: list[Value] = field(default_factory=list)

    def set_state(self, state: Value) -> None:
        """Take what BUILD gives: (version, shape, dtype, is_fortran, data)."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            self.attributes.append(state)  # a subclass's own state
            return
        shape, dtype, fortran, data = state[-4:]
        self.fill(shape, dtype, bool(fortran), data)

    def fill(self, shape: Value, dtype: Value, fortran: bool, data: Value) -> None:
        """Set what the array is; FormatError where the parts do not make one."""
        numbers = int_tuple(shape)
        content = data if isinstance(data, list) else as_bytes(data)
        if numbers is None or not isinstance(dtype, DtypeNode) or content is None:
            raise FormatError("the state of a numpy.ndarray is malformed", rule="numpy-array")
        if any(count < 0 for count in numbers):
            raise FormatError("a numpy.ndarray has a negative size", rule="numpy-array")
        self.shape, self.dtype, self.data = numbers, dtype, content
        self.strides = contiguous_strides(numbers, fortran=fortran)

    def strided(self, label: str) -> Strided | None:
        """Where the elements lie; None for types that no tensor can have.

        Raises:
            FormatError: The data is not exactly as long as shape and type need.
        """
        code = self.dtype.code
        if code is None or isinstance(self.data, list):
            return None
        source = blob_source(self.data, label)
        need = math.prod(self.shape) * item_size(code)
        if source.size != need:
            raise FormatError(
                f"an array of shape {quote(str(self.shape))} and type {code} needs {need} bytes, "
                f"but {source.size} are there",
                rule="numpy-array",
                path=label,
                offset=self.offset,
            )
        return Strided(source, 0, code, self.shape, self.strides, swapped=self.dtype.swapped)


@dataclass(frozen=True, eq=False, slots=True)
class RefusedNode:
    """What is an array in the file but cannot be one in the format.

    Attributes:
        reason: Why.
        dtype: Its element type as its own format calls it; empty where that is unknown.
        shape: Its shape.
        nbytes: Bytes that it takes in the file.
    """

    reason: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    nbytes: int = 0


class _TextSource(Source):
    """The bytes that latin-1 text in a pickle stands for; each read decodes from the start."""

    def __init__(self, blob: Blob, name: str) -> None:
        self._blob = blob
        self.name = name
        self.size = sum(len(piece) for piece in blob.pieces())

    def read_into(self, offset: int, buffer: memoryview) -> None:
        position = 0
        end = offset + len(buffer)
        for piece in self._blob.pieces():
            first, last = max(offset, position), min(end, position + len(piece))
            if first < last:
                buffer[first - offset : last - offset] = piece[first - position : last - position]
            position += len(piece)
            if position >= end:
                return


def blob_source(data: bytes | Blob | Source, label: str) -> Source:
    """The bytes of a byte string, wherever they are."""
    if isinstance(data, bytes):
        return BytesSource(data, label)
    if not isinstance(data, Blob):
        return data
    if data.latin1:
        return _TextSource(data, label)
    return Window(data.source, data.offset, data.length, label)


def _dtype(call: Call) -> Value:
    if not call.arguments:
        return NotImplemented
    given = call.arguments[0]
    if isinstance(given, str):
        return DtypeNode(given.lstrip("<>=|"), given.startswith(">"))
    if isinstance(given, Global) and given.module in ("numpy", "ml_dtypes"):
        return named_dtype(given.name or "") or NotImplemented
    return NotImplemented


def _reconstruct(call: Call) -> Value:
    match call.arguments:
        case (Global(module="numpy" | "numpy.core.memmap" | "numpy.matrixlib.defmatrix", name=
              "ndarray" | "memmap" | "matrix"), _, _):  # fmt: skip
            return ArrayNode(call.offset)
    return NotImplemented


def _scalar(call: Call) -> Value:
    match call.arguments:
        case (DtypeNode() as dtype, data):
            content = as_bytes(data)
            if content is not None and not dtype.is_object:
                return ArrayNode(call.offset, dtype, data=content)
    return NotImplemented


def _frombuffer(call: Call) -> Value:
    """Protocol 5: ``_frombuffer(buffer, dtype, shape, order[, axis order])``."""
    match call.arguments:
        case (data, DtypeNode() as dtype, shape, "K", axes):
            node = ArrayNode(call.offset)
            order = int_tuple(axes)
            if as_bytes(data) is None or order is None:
                return NotImplemented
            node.fill(shape, dtype, False, data)
            if sorted(order) != list(range(len(node.shape))):
                raise FormatError("the axis order of an array is malformed", rule="numpy-array")
            node.shape = tuple(node.shape[axis] for axis in order)
            node.strides = tuple(node.strides[axis] for axis in order)
            return node
        case (data, DtypeNode() as dtype, shape, "C" | "F" as order):
            node = ArrayNode(call.offset)
            if as_bytes(data) is not None:
                node.fill(shape, dtype, order == "F", data)
                return node
    return NotImplemented


def _core(
    module: str, name: str, build: Callable[[Call], Value]
) -> dict[tuple[str, str], Callable[[Call], Value]]:
    return {(f"numpy.{core}.{module}", name): build for core in ("core", "_core")}


NUMPY_CONSTRUCTORS: Final[dict[tuple[str, str], Callable[[Call], Value]]] = {
    ("numpy", "dtype"): _dtype,
    **_core("multiarray", "_reconstruct", _reconstruct),
    **_core("multiarray", "scalar", _scalar),
    **_core("numeric", "_frombuffer", _frombuffer),
}
"""Calls of NumPy's whose result this module describes."""
