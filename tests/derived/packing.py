"""Quantised weights made by hand: each scheme's packing written forwards, from integers to bytes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from safeweights.checkpoint import Checkpoint, MemoryTensor

Array = np.ndarray[Any, Any]

CODES = {
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "bfloat16": "BF16", "float32": "F32", "float16": "F16", "float64": "F64", "int8": "I8",
    "uint8": "U8", "complex64": "C64", "int32": "I32", "int64": "I64", "float8_e4m3fnuz": "F8_E4M3FNUZ",
}  # fmt: skip

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], "f4")


def stored(values: Array, code: str | None = None) -> MemoryTensor:
    """An array as an unread tensor."""
    code = code or CODES[values.dtype.name]
    shape = values.shape
    return MemoryTensor("?", code, shape, np.ascontiguousarray(values).tobytes())


def checkpoint(arrays: dict[str, Array], codes: dict[str, str] | None = None) -> Checkpoint:
    """Arrays as a checkpoint in memory; `codes` are element types that NumPy's do not tell."""
    tensors = {}
    for name, values in arrays.items():
        each = stored(values, (codes or {}).get(name))
        each.name = name
        tensors[name] = each
    return Checkpoint(tensors)


def as_words(integers: Array, bits: int) -> Array:
    """Integers of each row as a stream of bits in 32-bit words, the first in the lowest bits."""
    rows, count = integers.shape
    words = -(-count * bits // 32)
    out = np.zeros((rows, words), np.uint32)
    for row in range(rows):
        stream = 0
        for place, value in enumerate(integers[row].tolist()):
            stream |= value << (place * bits)
        out[row] = [(stream >> (32 * word)) & 0xFFFFFFFF for word in range(words)]
    return out.view(np.int32)


def as_gptq(q: Array, zeros: Array, bits: int, minus: int) -> tuple[Array, Array]:
    """(qweight, qzeros) of integers [inputs, outputs] and zeros [groups, outputs]."""
    low = (zeros.astype(int) - minus) % (1 << bits)
    return np.ascontiguousarray(as_words(q.T, bits).T), as_words(low, bits)


def as_awq(integers: Array) -> Array:
    """Integers [n, outputs] packed eight to a word in AWQ's order."""
    rows, count = integers.shape
    out = np.zeros((rows, count // 8), np.uint32)
    for place, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
        out |= integers[:, output::8].astype(np.uint32) << np.uint32(4 * place)
    return out.view(np.int32)


def as_fp4(codes: Array) -> Array:
    """Codes of E2M1, two to a byte, the first in the low half."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)


def float8(values: Array) -> Array:
    """Values as E4M3."""
    return values.astype(ml_dtypes.float8_e4m3fn)
