"""The quantised types of GGML, as GGUF files hold them: blocks of 32, 64 or 256 values with their scales.

Each function takes blocks as bytes, (n, bytes of a block), and gives float32 values, (n, values of a
block), in the order of operations of the package gguf (``gguf.quants.dequantize``), so that results are
equal bit for bit. A scale that is NaN or infinite is an error, as in llama.cpp (ggml_validate_row_data).

Sources: gguf 0.19 ``quants.py``, ggml ``src/ggml-common.h``, ``src/ggml-quants.c`` (MIT licence).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ...checkpoint.tensor import UnreadableTensor
from ...errors import UnsupportedError
from .ggml_grids import grid
from .stored import Found, Names, Reshaped
from .weight import Range, Weight, fault, read_box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ...checkpoint import Tensor

__all__ = ["BLOCKS", "GgmlTensor", "find"]

Array = np.ndarray[Any, Any]


class Block(NamedTuple):
    """Values and bytes of a block of one type."""

    values: int
    nbytes: int


BLOCKS: Final = {
    "Q4_0": Block(32, 18), "Q4_1": Block(32, 20), "Q5_0": Block(32, 22), "Q5_1": Block(32, 24),
    "Q8_0": Block(32, 34), "Q8_1": Block(32, 36), "Q2_K": Block(256, 84), "Q3_K": Block(256, 110),
    "Q4_K": Block(256, 144), "Q5_K": Block(256, 176), "Q6_K": Block(256, 210),
    "Q8_K": Block(256, 292), "IQ2_XXS": Block(256, 66), "IQ2_XS": Block(256, 74),
    "IQ3_XXS": Block(256, 98), "IQ1_S": Block(256, 50), "IQ4_NL": Block(32, 18),
    "IQ3_S": Block(256, 110), "IQ2_S": Block(256, 82), "IQ4_XS": Block(256, 136),
    "IQ1_M": Block(256, 56), "TQ1_0": Block(256, 54), "TQ2_0": Block(256, 66),
    "MXFP4": Block(32, 17), "NVFP4": Block(64, 36),
}  # fmt: skip
"""Name of a type -> its blocks."""


class _ScaleError(ValueError):
    """A scale is NaN or infinite."""


def _finite(scale: Array) -> Array:
    if not np.isfinite(scale).all():
        raise _ScaleError
    return scale


def _half(blocks: Array, at: int) -> Array:
    """The F16 at byte `at` of each block, as float32 of shape (n, 1)."""
    return _finite(np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype("<f4"))


def _words(blocks: Array, begin: int, end: int, kind: str) -> Array:
    return np.ascontiguousarray(blocks[:, begin:end]).view(kind)


def _split(data: Array, bits: int, run: int) -> Array:
    """Small integers of bytes: all lowest ones of `run` bytes, then all next ones; (n, values)."""
    parts = 8 // bits
    bytes_of = data.reshape(len(data), -1, run)
    out = np.empty((len(data), bytes_of.shape[1], parts, run), np.uint8)
    for place in range(parts):
        np.right_shift(bytes_of, bits * place, out=out[:, :, place])
    if bits < 8:
        out &= np.uint8((1 << bits) - 1)
    return out.reshape(len(data), -1)


def _scaled(scale: Array, codes: Array, minus: Array | None = None) -> Array:
    """``scale * codes - minus`` for groups: scale and minus (n, groups), codes (n, values)."""
    groups = scale.shape[1]
    out = codes.astype("<f4").reshape(len(codes), groups, -1)
    out *= scale[:, :, None]
    if minus is not None:
        out -= minus[:, :, None]
    return out.reshape(len(codes), -1)


def _q4_0(blocks: Array) -> Array:
    codes = _split(blocks[:, 2:], 4, 16).view(np.int8) - np.int8(8)
    return _scaled(_half(blocks, 0), codes)


def _q4_1(blocks: Array) -> Array:
    out = _scaled(_half(blocks, 0), _split(blocks[:, 4:], 4, 16))
    out += _half(blocks, 2)
    return out


def _fifth_bits(blocks: Array, at: int) -> Array:
    data = np.ascontiguousarray(blocks[:, at : at + 4])
    return np.unpackbits(data, axis=1, bitorder="little") << np.uint8(4)


def _q5_0(blocks: Array) -> Array:
    codes = _split(blocks[:, 6:], 4, 16) | _fifth_bits(blocks, 2)
    return _scaled(_half(blocks, 0), codes.view(np.int8) - np.int8(16))


def _q5_1(blocks: Array) -> Array:
    codes = _split(blocks[:, 8:], 4, 16) | _fifth_bits(blocks, 4)
    out = _scaled(_half(blocks, 0), codes)
    out += _half(blocks, 2)
    return out


def _q8_0(blocks: Array) -> Array:
    return _scaled(_half(blocks, 0), blocks[:, 2:].view(np.int8))


def _q8_k(blocks: Array) -> Array:
    scale = _finite(_words(blocks, 0, 4, "<f4"))
    return _scaled(scale, blocks[:, 4:260].view(np.int8))


def _q2_k(blocks: Array) -> Array:
    scale = _half(blocks, 80) * (blocks[:, :16] & np.uint8(15)).astype("<f4")
    minus = _half(blocks, 82) * (blocks[:, :16] >> np.uint8(4)).astype("<f4")
    return _scaled(scale, _split(blocks[:, 16:80], 2, 32), minus)


def _q3_k(blocks: Array) -> Array:
    scales = blocks[:, 96:108]
    low = _split(scales[:, :8], 4, 8)
    high = _split(scales[:, 8:], 2, 4)
    scale = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    missing = _split(blocks[:, :32], 1, 32) ^ np.uint8(1)  # a set bit means: nothing to subtract
    codes = _split(blocks[:, 32:96], 2, 32).view(np.int8) - (missing << np.uint8(2)).view(np.int8)
    return _scaled(_half(blocks, 108) * scale.astype("<f4"), codes)


def _scales_and_minima(blocks: Array) -> tuple[Array, Array]:
    """Eight scales and eight minima of 6 bits in the bytes 4 to 16, times the F16 at 0 and at 2."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    six, two = np.uint8(0x3F), np.uint8(0x30)
    scale = [first & six, (rest & np.uint8(15)) | ((first >> np.uint8(2)) & two)]
    minus = [second & six, (rest >> np.uint8(4)) | ((second >> np.uint8(2)) & two)]
    return (
        _half(blocks, 0) * np.concatenate(scale, axis=1).astype("<f4"),
        _half(blocks, 2) * np.concatenate(minus, axis=1).astype("<f4"),
    )


def _q4_k(blocks: Array) -> Array:
    scale, minus = _scales_and_minima(blocks)
    return _scaled(scale, _split(blocks[:, 16:], 4, 32), minus)


def _q5_k(blocks: Array) -> Array:
    scale, minus = _scales_and_minima(blocks)
    fifth = _split(blocks[:, 16:48], 1, 32) << np.uint8(4)
    return _scaled(scale, _split(blocks[:, 48:], 4, 32) | fifth, minus)


def _q6_k(blocks: Array) -> Array:
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype("<f4")
    high = _split(blocks[:, 128:192], 2, 32) << np.uint8(4)
    codes = (_split(blocks[:, :128], 4, 64) | high).view(np.int8) - np.int8(32)
    return _scaled(scale, codes)


def _tq1_0(blocks: Array) -> Array:
    parts = []
    for begin, end, run, powers in ((0, 32, 32, 5), (32, 48, 16, 5), (48, 52, 4, 4)):
        data = blocks[:, begin:end].reshape(len(blocks), -1, 1, run)
        threes = (3 ** np.arange(powers)).astype(np.uint8).reshape(1, 1, -1, 1)
        parts.append((data * threes).reshape(len(blocks), -1))
    codes = ((np.concatenate(parts, axis=1).astype(np.uint16) * 3) >> 8).astype(np.int8)
    return _scaled(_half(blocks, 52), codes - np.int8(1))


def _tq2_0(blocks: Array) -> Array:
    codes = _split(blocks[:, :64], 2, 32).view(np.int8) - np.int8(1)
    return _scaled(_half(blocks, 64), codes)


_DOUBLED: Final = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], "<f4")
"""E2M1 values, doubled: scales are halved."""


def _mxfp4(blocks: Array) -> Array:
    exponent = blocks[:, :1].astype("<u4")
    small = np.uint32(0x00200000) << np.minimum(exponent, 2)  # subnormal numbers
    scale = np.where(exponent < 2, small, (exponent - np.uint32(1)) << np.uint32(23)).view("<f4")
    return _finite(_scaled(scale, _DOUBLED[_split(blocks[:, 1:], 4, 16)]))


def _nvfp4(blocks: Array) -> Array:
    return _scaled(_HALF_E4M3[blocks[:, :4]], _DOUBLED[_split(blocks[:, 4:], 4, 8)])


def _half_of_e4m3() -> Array:
    """Half the value of each unsigned E4M3; the sign bit is ignored, and NaN is 0."""
    from ..small_floats import widened

    table = widened("F8_E4M3", bytes(range(128))) * np.float32(0.5)
    table[0x7F] = 0
    table = np.concatenate([table, table])
    table[0xFF] = 240  # only 0x7F is taken for NaN
    return table


_HALF_E4M3: Final = _half_of_e4m3()

_IQ4: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], "<f4"
)


def _iq4_nl(blocks: Array) -> Array:
    return _scaled(_half(blocks, 0), _IQ4[_split(blocks[:, 2:], 4, 16)])


def _iq4_xs(blocks: Array) -> Array:
    low = blocks[:, 4:8, None] >> np.array([0, 4], np.uint8)
    low = low.reshape(len(blocks), -1) & np.uint8(15)
    high = _words(blocks, 2, 4, "<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    high = (high.astype(np.uint8) & np.uint8(3)) << np.uint8(4)
    scale = ((low | high).view(np.int8) - np.int8(32)).astype("<f4")
    return _scaled(_half(blocks, 0) * scale, _IQ4[_split(blocks[:, 8:], 4, 16)])


def _signs_of_seven(words: Array) -> Array:
    """Eight signs for each 7 bits: the eighth makes the number of minus signs even."""
    index = (words[:, :, None] >> np.array([0, 7, 14, 21], "<u4")) & np.uint32(0x7F)
    signs: Array = _EVEN_SIGNS[index].reshape(len(words), -1)
    return signs


def _even_signs() -> Array:
    codes = np.arange(128, dtype=np.uint8)
    bits = np.unpackbits(codes[:, None], axis=1, bitorder="little")
    bits[:, 7] = bits.sum(axis=1) & 1
    signs: Array = np.where(bits == 0, np.float32(1), np.float32(-1))
    return signs


_EVEN_SIGNS: Final = _even_signs()


def _signs(data: Array) -> Array:
    bits = np.unpackbits(np.ascontiguousarray(data), axis=1, bitorder="little")
    return np.where(bits == 0, np.float32(1), np.float32(-1))


def _lattice(scale: Array, kind: str, index: Array, signs: Array) -> Array:
    """``scale * grid * signs`` in groups: scale (n, groups), index (n, codes), signs (n, values)."""
    out = _scaled(scale, grid(kind)[index].reshape(len(scale), -1))
    out *= signs
    return out


def _fraction(scale: Array, small: Array, step: float) -> Array:
    """``scale * (0.5 + small) * step``."""
    return scale * (np.float32(0.5) + small) * np.float32(step)


def _nibbles_in_order(data: Array) -> Array:
    halves = data[:, :, None] >> np.array([0, 4], np.uint8)
    return (halves & np.uint8(15)).reshape(len(data), -1)


def _iq2_xxs(blocks: Array) -> Array:
    words = _words(blocks, 2, 66, "<u4").reshape(len(blocks), -1, 2)
    second = words[:, :, 1]
    scale = _fraction(_half(blocks, 0), (second >> np.uint32(28)).astype("<f4"), 0.25)
    index = np.ascontiguousarray(words[:, :, 0]).view(np.uint8)
    return _lattice(scale, "IQ2_XXS", index, _signs_of_seven(second))


def _iq2_xs(blocks: Array) -> Array:
    codes = _words(blocks, 2, 66, "<u2")
    scale = _fraction(_half(blocks, 0), _nibbles_in_order(blocks[:, 66:]), 0.25)
    signs = _EVEN_SIGNS[codes >> np.uint16(9)].reshape(len(blocks), -1)
    return _lattice(scale, "IQ2_XS", codes & np.uint16(511), signs)


def _iq2_s(blocks: Array) -> Array:
    scale = _fraction(_half(blocks, 0), _nibbles_in_order(blocks[:, 74:]), 0.25)
    high = (blocks[:, 66:74, None] >> np.array([0, 2, 4, 6], np.uint8)) & np.uint8(3)
    index = blocks[:, 2:34].astype(np.uint16) | (high.astype(np.uint16) << 8).reshape(
        len(blocks), -1
    )
    return _lattice(scale, "IQ2_S", index, _signs(blocks[:, 34:66]))


def _iq3_xxs(blocks: Array) -> Array:
    words = _words(blocks, 66, 98, "<u4")
    scale = _fraction(_half(blocks, 0), (words >> np.uint32(28)).astype("<f4"), 0.5)
    return _lattice(scale, "IQ3_XXS", blocks[:, 2:66], _signs_of_seven(words))


def _iq3_s(blocks: Array) -> Array:
    scale = _half(blocks, 0) * (1 + 2 * _nibbles_in_order(blocks[:, 106:]))
    ninth = np.unpackbits(np.ascontiguousarray(blocks[:, 66:74]), axis=1, bitorder="little")
    index = blocks[:, 2:66].astype(np.uint16) | (ninth.astype(np.uint16) << 8)
    return _lattice(scale, "IQ3_S", index, _signs(blocks[:, 74:106]))


_DELTA: Final = np.float32(0.125)


def _shifted(scale: Array, index: Array, delta: Array) -> Array:
    """``scale * (grid + delta)``: scale (n, groups), delta (n, as many groups or more)."""
    found = grid("IQ1_S")[index].reshape(len(scale), delta.shape[1], -1) + delta[:, :, None]
    return _scaled(scale, found.reshape(len(scale), -1))


def _iq1_s(blocks: Array) -> Array:
    high = _words(blocks, 34, 50, "<u2")
    scale = _half(blocks, 0) * (2 * ((high >> 12) & 7) + 1)
    delta = np.where((high & np.uint16(0x8000)) == 0, _DELTA, -_DELTA)
    bits = (high[:, :, None] >> np.array([0, 3, 6, 9], np.uint16)) & 7
    index = blocks[:, 2:34].astype(np.uint16) | (bits << 8).reshape(len(blocks), -1)
    return _shifted(scale, index, delta)


def _iq1_m(blocks: Array) -> Array:
    packed = _words(blocks, 48, 56, "<u2")
    parts = (packed & np.uint16(0xF000)) >> np.array([12, 8, 4, 0], np.uint16)
    top = np.bitwise_or.reduce(parts, axis=1).view("<f2").astype("<f4").reshape(-1, 1)
    small = (packed[:, :, None] >> np.array([0, 3, 6, 9], np.uint16)) & 7
    scale = _finite(top) * (2 * small.reshape(len(blocks), -1) + 1)
    high = (blocks[:, 32:48, None] >> np.array([0, 4], np.uint8)).reshape(len(blocks), -1)
    index = blocks[:, :32].astype(np.uint16) | ((high & np.uint8(7)).astype(np.uint16) << 8)
    delta = np.where((high & np.uint8(8)) == 0, _DELTA, -_DELTA)
    return _shifted(scale, index, delta)


_DECODERS: Final[dict[str, Callable[[Array], Array]]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q8_K": _q8_k,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0, "MXFP4": _mxfp4, "NVFP4": _nvfp4, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
    "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s, "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s, "IQ1_S": _iq1_s, "IQ1_M": _iq1_m,
}  # fmt: skip


class GgmlTensor(UnreadableTensor):
    """A tensor of a quantised type of GGML: its blocks are there, its values only when dequantised.

    Args:
        name: Name of the tensor.
        kind: A key of `BLOCKS`.
        shape: Values along each axis; the last is a multiple of a block's.
        blocks: The bytes of all blocks.
    """

    __slots__ = ("blocks",)

    def __init__(
        self, name: str, kind: str, shape: tuple[int, ...], blocks: Tensor, path: str | None
    ) -> None:
        reason = (
            f"it is quantised as {kind}; dequantize (--dequantize) gives numbers"
            if kind in _DECODERS
            else f"it is quantised as {kind}, which is not read"
        )
        super().__init__(name, kind, shape, blocks.nbytes, reason=reason, path=path)
        self.blocks = blocks


class _Ggml(Weight):
    def __init__(self, name: str, tensor: GgmlTensor) -> None:
        super().__init__(name, tensor.shape, {"blocks": tensor.blocks})
        kind = tensor.dtype
        self.scheme = f"ggml-{kind}"
        self._decode = _DECODERS[kind]
        self._block = BLOCKS[kind]
        self.grain = (1, self._block.values)
        rows = math.prod(self.shape[:-1])
        groups = self.columns // self._block.values
        self._stored = Reshaped(tensor.blocks, (rows, groups * self._block.nbytes))

    def values(self, batch: int, rows: Range, columns: Range) -> Array:
        size, nbytes = self._block
        first = batch * self.rows
        reach = columns.blocks(size)
        stored = read_box(
            self._stored,
            Range(first + rows.begin, first + rows.end),
            Range(reach.begin * nbytes, reach.end * nbytes),
        )
        try:
            return self._decode(stored.reshape(-1, nbytes)).reshape(len(rows), -1)
        except _ScaleError as error:
            raise fault(
                self.anchor, "a scale is NaN or infinite", rule="quantised-scale"
            ) from error


def find(names: Names, name: str, tensor: GgmlTensor) -> Iterator[Found]:
    """The weight that a tensor of a GGUF file is."""

    def build() -> Weight:
        if tensor.dtype not in _DECODERS:
            raise UnsupportedError(
                f"GGML's type {tensor.dtype} is not read", path=names.path or None, tensor=name
            )
        return _Ggml(name, tensor)

    yield Found(name, f"ggml-{tensor.dtype}", (name,), build)
