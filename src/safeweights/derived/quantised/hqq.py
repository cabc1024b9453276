"""HQQ: ``W_q`` with ``scale``, ``zero`` and the state as tensors: 1, 2, 3, 4 or 8 bits.

    value = (q - zero) * scale

q is a matrix of ``group_size`` columns (``axis`` 1) or rows (``axis`` 0) that holds the weight in C order.
Its upper part lies in the highest bits, the next part in those below: row r of a packed matrix of n rows
holds the rows r, n + r, 2 n + r ... Scales and zeros are one a row, or one a column.

Source: HQQ 0.2.8 ``core/quantize.py`` (Quantizer.dequantize, HQQLinear.state_dict), ``core/bitpack.py``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ...errors import UnsupportedError, quote
from .flat import Flat
from .stored import Found, Names, Reshaped, read_all, require_shape, require_type
from .weight import Range, fault, numbers, read_box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...checkpoint import Tensor

__all__ = ["find"]

Array = np.ndarray[Any, Any]

_PACKINGS: Final = {
    "8bit_u8": ("U8", 8, 1), "4bit_u8": ("U8", 4, 2), "2bit_u8": ("U8", 2, 4),
    "1bit_u8": ("U8", 1, 8), "3bit_32": ("I32", 3, 10),
}  # fmt: skip
"""Packing -> type of the packed matrix, bits of a value, values in an element."""


class _State(NamedTuple):
    shape: tuple[int, ...]
    group_size: int
    axis: int
    packing: str


class _Hqq(Flat):
    scheme = "hqq"

    def __init__(self, name: str, parts: dict[str, Tensor], state: _State) -> None:
        super().__init__(name, state.shape, parts)
        _, self._bits, self._fold = _PACKINGS[state.packing]
        count = math.prod(state.shape)
        groups = count // state.group_size
        self._by_row = state.axis == 1
        self._height, self._width = (
            (groups, state.group_size) if self._by_row else (state.group_size, groups)
        )
        self._packed_rows = -(-self._height // self._fold)
        self._codes = Reshaped(parts["W_q"], (self._packed_rows, self._width))
        self._scale = Reshaped(parts["scale"], (groups,))
        self._zero = Reshaped(parts["zero"], (groups,))

    def run(self, begin: int, end: int) -> Array:
        out = np.empty(end - begin, "<f4")
        at = begin
        while at < end:
            row, column = divmod(at, self._width)
            fold, packed = divmod(row, self._packed_rows)
            if column or end - at < self._width:
                count = min(end - at, self._width - column)
                rows, columns = Range(packed, packed + 1), Range(column, column + count)
            else:
                some = min((end - at) // self._width, self._packed_rows - packed)
                count = some * self._width
                rows, columns = Range(packed, packed + some), Range(0, self._width)
            part = out[at - begin : at - begin + count].reshape(len(rows), len(columns))
            self._decode(fold, rows, columns, part)
            at += count
        return out

    def _decode(self, fold: int, rows: Range, columns: Range, out: Array) -> None:
        """Rows of the packed matrix, of which the part `fold` from above is wanted."""
        stored = read_box(self._codes, rows, columns)
        shift = (self._fold - 1 - fold) * self._bits
        out[...] = (stored >> shift) & ((1 << self._bits) - 1)
        first = fold * self._packed_rows
        groups = Range(first + rows.begin, first + rows.end) if self._by_row else columns
        scale = numbers(self._scale, read_box(self._scale, groups))
        zero = numbers(self._zero, read_box(self._zero, groups))
        if not np.isfinite(scale).all() or not np.isfinite(zero).all() or not scale.all():
            raise fault(
                self.parts["scale"], "a scale is 0, NaN or infinite", rule="quantised-scale"
            )
        if self._by_row:
            scale, zero = scale[:, None], zero[:, None]
        out -= zero
        out *= scale


_STATE: Final = (
    "nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float",
    "quant_scale", "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict",
    "stores_quant_config", "channel_wise", "optimize", "round_zero",
)  # fmt: skip


def find(names: Names, codes_name: str) -> Iterator[Found]:
    """The weight that `codes_name` belongs to, if its state is there."""
    stem = codes_name.removesuffix("W_q")
    parts = {role: f"{stem}{role}" for role in ("W_q", "scale", "zero")}
    if len(names.present(*parts.values())) < 3:
        return
    state = names.present(*(f"{stem}{each}" for each in _STATE))

    def build() -> Flat:
        tensors = {role: names.tensors[part] for role, part in parts.items()}
        return _build(f"{stem}weight", tensors, _state(names, stem, tensors["W_q"]))

    yield Found(f"{stem}weight", "hqq", (*parts.values(), *state), build)


def _state(names: Names, stem: str, codes: Tensor) -> _State:
    missing = [
        key
        for key in ("shape", "group_size", "axis", "packing")
        if f"{stem}{key}" not in names.tensors
    ]
    if missing:
        raise fault(codes, f"it needs {quote(stem + missing[0])} beside it")
    read = {
        key: names.tensors[f"{stem}{key}"] for key in ("shape", "group_size", "axis", "packing")
    }
    for key in ("view_as_float", "quant_scale", "quant_zero"):
        flag = names.tensors.get(f"{stem}{key}")
        if flag is not None and read_all(flag).any():
            raise UnsupportedError(
                f"{quote(stem + key)} is set, which is not read", tensor=stem + key
            )
    require_type(read["packing"], "U8")
    require_type(read["shape"], "I64", "I32")
    packing = bytes(read_all(read["packing"])).decode("latin-1")
    shape = tuple(int(n) for n in read_all(read["shape"]).reshape(-1)[:9])
    numbers_of = {}
    for key in ("group_size", "axis"):
        require_type(read[key], "I32", "I64", "U8")
        value = read_all(read[key]).reshape(-1)
        if len(value) != 1:
            raise fault(read[key], "it is not one number", rule="quantised-shape")
        numbers_of[key] = int(value[0])
    if packing not in _PACKINGS:
        raise fault(
            read["packing"], f"{quote(packing[:80])} is no packing of HQQ", rule="quantised-bits"
        )
    if len(shape) > 8 or not shape or min(shape) < 1 or math.prod(shape) >= 1 << 48:
        raise fault(read["shape"], f"{list(shape)} is no shape", rule="quantised-shape")
    size, axis = numbers_of["group_size"], numbers_of["axis"]
    if size < 1 or math.prod(shape) % size or axis not in (0, 1):
        raise fault(
            read["group_size"], f"groups of {size} along axis {axis} do not divide {list(shape)}"
        )
    return _State(shape, size, axis, packing)


def _build(name: str, parts: dict[str, Tensor], state: _State) -> Flat:
    kind, _, fold = _PACKINGS[state.packing]
    require_type(parts["W_q"], kind)
    groups = math.prod(state.shape) // state.group_size
    height, width = (groups, state.group_size) if state.axis == 1 else (state.group_size, groups)
    if fold != 10 and height % fold:
        raise fault(
            parts["W_q"], f"{height} rows are not packed {fold} in one", rule="quantised-shape"
        )
    require_shape(parts["W_q"], (-(-height // fold), width))
    for role in ("scale", "zero"):
        require_type(parts[role], "F32", "F16", "BF16")
        require_shape(parts[role], (groups, 1) if state.axis == 1 else (1, groups), (groups,))
    return _Hqq(name, parts, state)
