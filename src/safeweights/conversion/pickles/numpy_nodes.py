"""NumPy arrays, scalars and types as pickles and .npy headers describe them.

Both spellings of NumPy's internals (``numpy.core`` before 2.0, ``numpy._core`` since) and
ml_dtypes' types are known by name; neither package is imported. The element data stays in the file.

NumPy believes what BUILD gives to a type: with the flags or the size of another type, eight bytes of
data become a pointer. So a type's state must be exactly the one that NumPy writes for it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ...derived.element_types import NUMPY_CODES, item_size
from ...derived.layout import Strided, contiguous_strides
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
    "BlocksNode",
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


_PLAIN: Final = re.compile(
    r"([<>=|]?)(b1|[iu][1248]|f(?:2|4|8|12|16)|c(?:8|16|24|32)|[SUV]\d{1,9}|[Mm]8|O[48]?)"
    r"(?:(?<=[Mm]8)\[\d{0,9}[A-Za-z]{1,8}(?:/\d{1,9})?\])?"
)
"""The types that NumPy writes into pickles: everything but structures and arrays of arrays."""

_ORDERS: Final = ("<", ">", "=", "|")
_OBJECT_FLAGS: Final = 63
_TEXT_FLAGS: Final = 8
_POINTER_FLAGS: Final = 1 | 2 | 4  # reference counts, pickled as a list, is a pointer
_KNOWN_FLAGS: Final = 8 | 16 | 32 | 64 | 128


def _malformed_dtype() -> FormatError:
    return FormatError(
        "the state of a numpy.dtype is not the one that NumPy writes", rule="numpy-dtype"
    )


@dataclass(eq=False, slots=True)
class DtypeNode:
    """A NumPy element type.

    Attributes:
        kind: Array-protocol string without byte order (``"f4"``), or ``"ml:NAME"``.
        swapped: Big-endian.
        fields: Whether it is structured or has a shape of its own.
        itemsize: Bytes of one element where `kind` does not say it.
        places: Name of each field of a structure -> its type and offset.
        fixed: Its state was set, or an array uses it, so BUILD may not change it any more.
    """

    kind: str
    swapped: bool = False
    fields: bool = False
    itemsize: int | None = None
    fixed: bool = False
    places: dict[str, tuple[DtypeNode, int]] = field(default_factory=dict)

    def set_state(self, state: Value) -> None:
        """Take what BUILD gives: (version, byte order, subarray, names, fields, size, alignment, flags).

        Raises:
            FormatError: It is not what NumPy writes for this type.
        """
        if self.fixed or not isinstance(state, tuple) or len(state) not in (8, 9):
            raise _malformed_dtype()
        self.fixed = True
        version, order, subarray, names, fields = state[:5]
        if not is_int(version) or len(state) != {3: 8, 4: 9}.get(version) or order not in _ORDERS:
            raise _malformed_dtype()
        if not all(is_int(number) for number in state[5:8]):
            raise _malformed_dtype()
        if subarray is None and names is None and fields is None:
            if state[5:8] not in self._plain_numbers():
                raise _malformed_dtype()
        elif subarray is None:
            self._set_fields(names, fields, state[5], state[7])
        else:
            self._set_subarray(subarray, names, fields, state[5], state[7])
        self.swapped = order == ">"

    def _plain_numbers(self) -> tuple[tuple[int, int, int], ...]:
        """Size, alignment and flags that NumPy writes for a type of this kind without fields."""
        letter, width = self.kind[0], self.width or 0
        if self.kind.startswith("ml:"):
            return (*((width, width, flags) for flags in (0, 64)), (-1, -1, 0))
        if letter in "SVU":
            align, flags = (4, _TEXT_FLAGS) if letter == "U" else (1, 0)
            return ((width, align, flags),)
        return ((-1, -1, _OBJECT_FLAGS if letter == "O" else 0),)

    def _set_fields(self, names: Value, fields: Value, size: int, flags: int) -> None:
        if not isinstance(names, tuple) or not hasattr(fields, "pairs") or self.kind[0] != "V":
            raise _malformed_dtype()
        known = [name for name in names if isinstance(name, str)]
        if size != self.width or len(known) != len(names) or not _plain_flags(flags):
            raise _malformed_dtype()
        given = dict(pair for pair in fields.pairs if isinstance(pair[0], str))
        if len(given) != len(fields.pairs) or given.keys() != set(known):
            raise _malformed_dtype()  # titles make further keys; nothing here reads them
        for part in given.values():
            match part:
                case (DtypeNode() as inner, offset) if is_int(offset) and inner.width is not None:
                    if inner.is_object or not 0 <= offset <= size - inner.width:
                        raise _malformed_dtype()
                    inner.fixed = True
                case _:
                    raise _malformed_dtype()
        self.fields, self.places = True, given

    def _set_subarray(
        self, subarray: Value, names: Value, fields: Value, size: int, flags: int
    ) -> None:
        match subarray:
            case (DtypeNode() as inner, shape) if names is None and fields is None:
                counts = int_tuple(shape)
                width = inner.width
                if counts is None or min(counts, default=0) < 0 or width is None:
                    raise _malformed_dtype()
                if inner.is_object or not size == self.width == width * math.prod(counts):
                    raise _malformed_dtype()
                if not _plain_flags(flags) or self.kind[0] != "V":
                    raise _malformed_dtype()
                inner.fixed = True
            case _:
                raise _malformed_dtype()
        self.fields = True

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
        """Bytes of one element, also of types that no tensor can have; None if unknown."""
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


def _plain_flags(flags: int) -> bool:
    """Whether `flags` are of a structure without objects: none says that data is pointers."""
    return not flags & _POINTER_FLAGS and not flags & ~_KNOWN_FLAGS


def plain_dtype(text: str) -> DtypeNode | None:
    """The type of an array-protocol string that is positively a plain scalar, or None.

    >>> plain_dtype("<f4").kind, plain_dtype("i4,O"), plain_dtype("(1,)O")
    ('f4', None, None)
    """
    match = _PLAIN.fullmatch(text)
    return None if match is None else DtypeNode(match[2], match[1] == ">")


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

    def set_state(self, state: Value) -> None:
        """Take what BUILD gives: (version, shape, dtype, is_fortran, data)."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise FormatError("the state of a numpy.ndarray is malformed", rule="numpy-array")
        shape, dtype, fortran, data = state[-4:]
        self.fill(shape, dtype, bool(fortran), data)

    def fill(self, shape: Value, dtype: Value, fortran: bool, data: Value) -> None:
        """Set what the array is.

        Raises:
            FormatError: The parts do not make an array: data of another length, of another kind.
        """
        numbers = int_tuple(shape)
        content = data if isinstance(data, list) else as_bytes(data)
        if numbers is None or not isinstance(dtype, DtypeNode) or content is None:
            raise FormatError("the state of a numpy.ndarray is malformed", rule="numpy-array")
        if any(count < 0 for count in numbers):
            raise FormatError("a numpy.ndarray has a negative size", rule="numpy-array")
        if dtype.is_object != isinstance(content, list):
            raise FormatError(
                "objects and bytes are confused in the state of a numpy.ndarray", rule="numpy-array"
            )
        dtype.fixed = True
        self.shape, self.dtype, self.data = numbers, dtype, content
        self.strides = contiguous_strides(numbers, fortran=fortran)
        self._check_length()

    def _check_length(self) -> None:
        """Compare the data with shape and type, where the length of the data is known."""
        width = 1 if self.dtype.is_object else self.dtype.width
        if isinstance(self.data, Blob):
            length = None if self.data.latin1 else self.data.length
        else:
            length = self.data.size if isinstance(self.data, Source) else len(self.data)
        if width is None or length is None:
            return
        need = math.prod(self.shape) * width
        if length != need:
            raise FormatError(
                f"an array of shape {quote(str(self.shape))} needs {need} "
                f"{'objects' if self.dtype.is_object else 'bytes'}, but {length} are there",
                rule="numpy-array",
            )

    def strided(self, label: str, untold: str | None = None) -> Strided | None:
        """Where the elements lie; None for types that no tensor can have.

        Args:
            label: What to call the source in messages.
            untold: What the elements are, if the type does not tell it.

        Raises:
            FormatError: The data is not exactly as long as shape and type need.
        """
        code = untold if self.dtype.code is None and not self.dtype.fields else self.dtype.code
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
    """An array in the file that the format cannot hold.

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


@dataclass(frozen=True, eq=False, slots=True)
class BlocksNode:
    """A tensor of a quantised type of GGML.

    Attributes:
        kind: Name of the type.
        shape: Its shape, in values.
        data: The bytes of its blocks.
    """

    kind: str
    shape: tuple[int, ...]
    data: Source


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
    """``numpy.dtype(type[, align=False, copy=True])``."""
    match call.arguments:
        case (given,) | (given, False | 0, True | 1):
            if isinstance(given, str):
                return plain_dtype(given) or named_dtype(given) or NotImplemented
            if isinstance(given, Global) and given.module in ("numpy", "ml_dtypes"):
                return named_dtype(given.name or "") or NotImplemented
    return NotImplemented


_ARRAY_TYPES: Final = frozenset(
    {("numpy", "ndarray"), ("numpy", "memmap"), ("numpy", "matrix"),
     ("numpy.core.memmap", "memmap"), ("numpy.matrixlib.defmatrix", "matrix")}
)  # fmt: skip


def _reconstruct(call: Call) -> Value:
    """``_reconstruct(ndarray, (0,), b"b")``: an empty array, which BUILD fills."""
    match call.arguments:
        case (Global() as kind, (0,), b"b" | "b"):
            if (kind.module, kind.name) in _ARRAY_TYPES:
                return ArrayNode(call.offset)
    return NotImplemented


def _scalar(call: Call) -> Value:
    match call.arguments:
        case (DtypeNode() as dtype, data):
            content = as_bytes(data)
            if content is not None and not dtype.is_object:
                node = ArrayNode(call.offset)
                node.fill((), dtype, False, content)
                return node
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
