"""The element types of the format, in one table.

Each of the 22 types has a code (its name in the header), a width in bits, and a rank. The reference
writer sorts tensors by descending rank (last row of the table first), then by name. The table also holds
the names that frameworks use, so that no other module needs a table. Whether the installed version of a
framework has a type must be asked of the framework.

Pure data: this module imports no framework and knows nothing of files. Source: the `Dtype` enumeration
of safetensors 0.8.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["BITS", "CODES", "DTYPES", "ORDER", "DType", "byte_count"]


class DType(NamedTuple):
    """One element type.

    Attributes:
        code: Name in a header, e.g. ``"BF16"``.
        bits: Width of one element.
        numpy: Name of the scalar type in NumPy, or in ml_dtypes if `ml_dtypes` is True.
        torch: Attribute of the `torch` module; None if torch has no such type.
        ml_dtypes: NumPy lacks the type, ml_dtypes has it.
        packed: Elements per byte in torch's memory; 1 if each element has bytes of its own.
    """

    code: str
    bits: int
    numpy: str
    torch: str | None
    ml_dtypes: bool = False
    packed: int = 1


_TABLE: Final = (
    DType("BOOL", 8, "bool", "bool"),
    DType("F4", 4, "float4_e2m1fn", "float4_e2m1fn_x2", ml_dtypes=True, packed=2),
    DType("F6_E2M3", 6, "float6_e2m3fn", None, ml_dtypes=True),
    DType("F6_E3M2", 6, "float6_e3m2fn", None, ml_dtypes=True),
    DType("U8", 8, "uint8", "uint8"),
    DType("I8", 8, "int8", "int8"),
    DType("F8_E5M2", 8, "float8_e5m2", "float8_e5m2", ml_dtypes=True),
    DType("F8_E4M3", 8, "float8_e4m3fn", "float8_e4m3fn", ml_dtypes=True),
    DType("F8_E8M0", 8, "float8_e8m0fnu", "float8_e8m0fnu", ml_dtypes=True),
    DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", "float8_e4m3fnuz", ml_dtypes=True),
    DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", "float8_e5m2fnuz", ml_dtypes=True),
    DType("I16", 16, "int16", "int16"),
    DType("U16", 16, "uint16", "uint16"),
    DType("F16", 16, "float16", "float16"),
    DType("BF16", 16, "bfloat16", "bfloat16", ml_dtypes=True),
    DType("I32", 32, "int32", "int32"),
    DType("U32", 32, "uint32", "uint32"),
    DType("F32", 32, "float32", "float32"),
    DType("C64", 64, "complex64", "complex64"),
    DType("F64", 64, "float64", "float64"),
    DType("I64", 64, "int64", "int64"),
    DType("U64", 64, "uint64", "uint64"),
)

DTYPES: Final[dict[str, DType]] = {row.code: row for row in _TABLE}
"""Code -> row, in the order of the format."""

CODES: Final = tuple(DTYPES)
"""All 22 codes, in the order of the format."""

BITS: Final = {row.code: row.bits for row in _TABLE}
"""Code -> bits per element in the file."""

ORDER: Final = {row.code: rank for rank, row in enumerate(_TABLE)}
"""Code -> rank; the writer sorts by descending rank, then by name."""


def byte_count(code: str, elements: int) -> int:
    """Size in bytes of `elements` values of type `code` in a file.

    Raises:
        ValueError: The values do not fill a whole number of bytes.

    >>> byte_count("BF16", 3), byte_count("F4", 4)
    (6, 2)
    """
    size, rest = divmod(BITS[code] * elements, 8)
    if rest:
        raise ValueError(f"{elements} elements of {code} do not end at a byte boundary")
    return size
