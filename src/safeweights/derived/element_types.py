"""Element types of other formats, beyond the 22 of safetensors, and their names in PyTorch and NumPy files.

A checkpoint of another format may have tensors of the types in `FOREIGN`. The writer refuses them until
the caller chooses a type to convert them to.
"""

from __future__ import annotations

from typing import Final

from ..errors import DTypeError, UnsupportedError, quote
from ..format.dtypes import BITS, DTYPES
from ..text import similar_names

__all__ = [
    "FLOATS",
    "FOREIGN",
    "NUMPY_CODES",
    "TORCH_DTYPES",
    "TORCH_STORAGES",
    "UNTOLD",
    "item_size",
    "parse_dtype",
    "parse_untold",
]

FOREIGN: Final = {
    "C128": (16, "complex128"),
    "C32": (4, "complex of two float16"),
    "QI8": (1, "quantised int8"),
    "QU8": (1, "quantised uint8"),
    "QI32": (4, "quantised int32"),
}
"""Code -> (bytes per element, description) of the types that the format lacks."""

UNTOLD: Final = ("V1", "V2", "f1")
"""NumPy's kinds of arrays of types that it does not know, BF16 and F8, once saved: which is not told."""

FLOATS: Final = frozenset(code for code in BITS if code.startswith(("F", "BF")))
"""Codes of real floating-point types."""

TORCH_DTYPES: Final = {
    **{row.torch: row.code for row in DTYPES.values() if row.torch},
    "complex128": "C128",
    "complex32": "C32",
    "qint8": "QI8",
    "quint8": "QU8",
    "qint32": "QI32",
    # aliases that old files and hand-written code use
    "float": "F32",
    "double": "F64",
    "half": "F16",
    "long": "I64",
    "int": "I32",
    "short": "I16",
    "cfloat": "C64",
    "cdouble": "C128",
    "chalf": "C32",
}
"""Attribute of the torch module -> code."""

TORCH_STORAGES: Final = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": "C128",
    "QInt8Storage": "QI8",
    "QUInt8Storage": "QU8",
    "QInt32Storage": "QI32",
}
"""Name of a typed storage class -> code."""

NUMPY_CODES: Final = {
    "b1": "BOOL",
    "u1": "U8",
    "i1": "I8",
    "u2": "U16",
    "i2": "I16",
    "f2": "F16",
    "u4": "U32",
    "i4": "I32",
    "f4": "F32",
    "u8": "U64",
    "i8": "I64",
    "f8": "F64",
    "c8": "C64",
    "c16": "C128",
}
"""Array-protocol type string without its byte order -> code."""


def item_size(code: str) -> int:
    """Bytes per element in memory; 1 for packed types.

    >>> item_size("BF16"), item_size("C128"), item_size("F4")
    (2, 16, 1)
    """
    if code in FOREIGN:
        return FOREIGN[code][0]
    return max(BITS[code] // 8, 1)


_SPOKEN: Final = {
    **{row.numpy: row.code for row in DTYPES.values()},
    **TORCH_DTYPES,
    **{f"fp{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"f{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bf16": "BF16",
    "single": "F32",
    "bool_": "BOOL",
    **{f"fp{code[1:]}".lower(): code for code in DTYPES if code.startswith(("F4", "F6", "F8_"))},
    **{code.lower(): code for code in (*DTYPES, *FOREIGN)},
}
"""Name of a type in lower case, as people write it -> code."""


def parse_dtype(text: str) -> str:
    """The code of an element type; its name in PyTorch or NumPy is taken too, in any case.

    Raises:
        DTypeError: There is no such type; the message names similar ones.

    >>> [parse_dtype(name) for name in ("bf16", "fp16", "half", "torch.float8_e4m3fn", "I8", "np.int8")]
    ['BF16', 'F16', 'F16', 'F8_E4M3', 'I8', 'I8']
    """
    name = text.strip().lower().rpartition(".")[2]
    if name in _SPOKEN:
        return _SPOKEN[name]
    longer = [near for near in _SPOKEN if near.startswith(name)] if len(name) > 1 else []
    close = dict.fromkeys(_SPOKEN[near] for near in longer or similar_names(name, _SPOKEN)[:1])
    hint = f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(DTYPES)}"
    raise DTypeError(f"{quote(text)} is not an element type{hint}")


def parse_untold(text: str) -> dict[str, str]:
    """Parse a request such as ``"V2=BF16,f1=F8_E5M2"`` into a mapping from NumPy's kinds to types.

    Raises:
        UnsupportedError: A kind is none of `UNTOLD`, or has another width than the type.

    >>> parse_untold("V2=BF16, <f1=float8_e5m2")
    {'V2': 'BF16', 'f1': 'F8_E5M2'}
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        given, _, wanted = part.strip().partition("=")
        kind = given.strip().lstrip("<>=|")
        if kind not in UNTOLD:
            raise UnsupportedError(
                f"{quote(given)} is no NumPy type that leaves open what it holds; those are "
                f"{', '.join(UNTOLD)}"
            )
        code = parse_dtype(wanted)
        if BITS.get(code) != 8 * int(kind[1:]):
            raise UnsupportedError(f"{quote(wanted)} has another width than {kind}")
        found[kind] = code
    return found
