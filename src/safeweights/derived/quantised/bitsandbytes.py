"""bitsandbytes: 4 bits (``nf4``, ``fp4``) with the state in sibling tensors, and ``int8`` with ``SCB``.

    value = table[half of a byte, the high one first] * absmax[place // blocksize]
    value = weight * SCB[row] / 127                                                 (int8)

Places count in C order through the whole tensor. Nested absmax: ``nested_quant_map[absmax] *
nested_absmax[place // nested_blocksize] + nested_offset``. ``quant_state.bitsandbytes__nf4`` is JSON.

Source: bitsandbytes 0.50 ``functional.py`` (QuantState, dequantize_4bit), ``backends/default/ops.py``;
Dettmers et al. 2023, arXiv:2305.14314.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ...errors import FormatError
from .flat import Flat
from .scaled import Scaled
from .stored import Found, Names, Reshaped, read_all, require_shape, require_type
from .weight import Range, Weight, fault, numbers, read_box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...checkpoint import Tensor
    from .grouped import Grouped

__all__ = ["find_4bit", "find_int8"]

Array = np.ndarray[Any, Any]

_TABLES: Final = {
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ),
    "fp4": (
        0.0, 0.005208333333333333, 0.6666666666666666, 1.0, 0.3333333333333333, 0.5,
        0.16666666666666666, 0.25, 0.0, -0.005208333333333333, -0.6666666666666666, -1.0,
        -0.3333333333333333, -0.5, -0.16666666666666666, -0.25,
    ),
}  # fmt: skip
"""Values of the sixteen codes; bitsandbytes uses these, whatever ``quant_map`` says."""


class _Blockwise(Flat):
    """Blocks that run through the tensor in C order, across rows."""

    def __init__(
        self, name: str, shape: tuple[int, ...], parts: dict[str, Tensor], state: dict[str, Any]
    ) -> None:
        super().__init__(name, shape, parts)
        self.scheme = f"bitsandbytes-{state['quant_type']}"
        self._size: int = state["blocksize"]
        self._count = math.prod(shape)
        table = np.array(_TABLES[state["quant_type"]], "<f4")
        pairs = np.stack([np.repeat(table, 16), np.tile(table, 16)], axis=1)
        self._pairs = np.ascontiguousarray(pairs).view("<c8").reshape(256)
        self._flat = Reshaped(parts["weight"], (parts["weight"].nbytes,))
        self._absmax = Reshaped(parts["absmax"], (math.prod(parts["absmax"].shape),))
        self._nested = state.get("nested_blocksize") if "nested_absmax" in parts else None
        if self._nested is not None:
            self._offset = np.float32(state["nested_offset"])
            self._nested_map = numbers(
                parts["nested_quant_map"], read_all(parts["nested_quant_map"])
            )
            self._nested_absmax = Reshaped(
                parts["nested_absmax"], (math.prod(parts["nested_absmax"].shape),)
            )
        if self.columns % self._size == 0:
            self.grain = (1, self._size)

    def run(self, begin: int, end: int) -> Array:
        blocks = Range(begin, end).blocks(self._size)
        start = blocks.begin * self._size
        stored = read_box(self._flat, Range(start // 2, min(-(-end // 2), self._flat.shape[0])))
        values = self._pairs[stored].view("<f4")
        missing = len(blocks) * self._size - len(values)
        values = np.pad(values, (0, missing)) if missing else values
        scale = self._scales(blocks)
        if not np.isfinite(scale).all():
            raise fault(self.parts["absmax"], "a scale is NaN or infinite", rule="quantised-scale")
        found: Array = values.reshape(len(blocks), self._size) * scale[:, None]
        return found.reshape(-1)[begin - start : end - start]

    def _scales(self, blocks: Range) -> Array:
        stored = read_box(self._absmax, blocks)
        if self._nested is None:
            return numbers(self._absmax, stored)
        outer = blocks.blocks(self._nested)
        scale = numbers(self._nested_absmax, read_box(self._nested_absmax, outer))
        places = np.arange(blocks.begin, blocks.end) // self._nested - outer.begin
        found: Array = self._nested_map[stored] * scale[places] + self._offset
        return found


_ROLES: Final = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_STATE: Final = "quant_state.bitsandbytes__"


def find_4bit(names: Names, absmax_name: str) -> Iterator[Found]:
    """The weight that `absmax_name` belongs to, if its state is there."""
    weight_name = absmax_name.removesuffix(".absmax")
    if weight_name not in names.tensors:
        return
    kinds = names.present(*(f"{weight_name}.{_STATE}{kind}" for kind in _TABLES))
    parts = {role: f"{weight_name}.{role}" for role in _ROLES}
    parts = {role: name for role, name in parts.items() if name in names.tensors}
    scheme = f"bitsandbytes-{kinds[0].rpartition('__')[2]}" if kinds else "bitsandbytes"

    def build() -> Weight:
        tensors = {role: names.tensors[name] for role, name in parts.items()}
        weight = names.tensors[weight_name]
        if len(kinds) != 1:
            raise fault(weight, "it needs one quant_state.bitsandbytes__nf4 or __fp4 beside it")
        return _build_4bit(weight_name, weight, tensors, names.tensors[kinds[0]])

    yield Found(weight_name, scheme, (weight_name, *parts.values(), *kinds), build)


def _build_4bit(
    name: str, weight: Tensor, parts: dict[str, Tensor], state_tensor: Tensor
) -> Weight:
    state = _state(state_tensor)
    shape = tuple(state["shape"])
    count, size = math.prod(shape), state["blocksize"]
    if weight.nbytes != -(-count // 2):
        raise fault(
            weight,
            f"it has {weight.nbytes} bytes, but {count} values of 4 bits take {-(-count // 2)}",
            rule="quantised-shape",
        )
    blocks = -(-count // size)
    require_shape(parts["absmax"], (blocks,), (blocks, 1))
    if "quant_map" in parts:
        require_type(parts["quant_map"], "F32")
        require_shape(parts["quant_map"], (16,))
        table = np.array(_TABLES[state["quant_type"]], "<f4")
        if not np.allclose(read_all(parts["quant_map"]), table, rtol=0, atol=1e-6):
            raise fault(parts["quant_map"], f"it is not the table of {state['quant_type']}")
    if "nested_absmax" in parts:
        if "nested_blocksize" not in state or "nested_quant_map" not in parts:
            raise fault(state_tensor, "its absmax is nested, but the nested state is incomplete")
        require_type(parts["absmax"], "U8")
        require_type(parts["nested_absmax"], "F32")
        require_type(parts["nested_quant_map"], "F32")
        require_shape(parts["nested_quant_map"], (256,))
        require_shape(parts["nested_absmax"], (-(-blocks // state["nested_blocksize"]),))
    else:
        require_type(parts["absmax"], "F32")
    return _Blockwise(name, shape, {"weight": weight, **parts}, state)


def _state(tensor: Tensor) -> dict[str, Any]:
    require_type(tensor, "U8")
    kind = tensor.name.rpartition("__")[2]
    try:
        state = json.loads(bytes(read_all(tensor)))
        if not isinstance(state, dict):
            raise TypeError("no object")
    except (ValueError, TypeError, RecursionError) as error:
        raise fault(tensor, f"it is not JSON: {error}") from error
    state.setdefault("quant_type", kind)
    checks = {
        "quant_type": state["quant_type"] == kind and kind in _TABLES,
        "blocksize": _is_size(state.get("blocksize")) and state["blocksize"] % 2 == 0,
        "shape": isinstance(state.get("shape"), list)
        and all(type(n) is int and 0 < n < 1 << 48 for n in state["shape"])
        and 0 < len(state["shape"]) <= 8,
        "nested_blocksize": _is_size(state.get("nested_blocksize", 256)),
        "nested_offset": isinstance(state.get("nested_offset", 0.0), float | int)
        and math.isfinite(state.get("nested_offset", 0.0)),
    }
    for key, good in checks.items():
        if not good:
            raise fault(tensor, f"{key} is {str(state.get(key))[:80]!r}")
    if "nested_blocksize" in state:
        state.setdefault("nested_offset", 0.0)
    return state


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= 1 << 20


class _Int8(Scaled):
    """A row's scale is the largest magnitude in it, which stands for 127."""

    def values(self, batch: int, rows: Range, columns: Range) -> Array:
        return super().values(batch, rows, columns) * np.float32(1 / 127)


def find_int8(names: Names, scb_name: str) -> Iterator[Found]:
    """The int8 weight that `scb_name` belongs to."""
    stem = scb_name.removesuffix("SCB")
    weight_name = f"{stem}weight"
    weight = names.tensors.get(weight_name)
    if weight is None or weight.dtype != "I8":
        return
    extras = names.present(f"{stem}weight_format")

    def build() -> Grouped:
        scale = names.tensors[scb_name]
        require_type(scale, "F32", "F16", "BF16")
        if len(weight.shape) != 2:
            raise fault(
                weight,
                f"shape is {list(weight.shape)}, but must be a matrix",
                rule="quantised-shape",
            )
        require_shape(scale, (weight.shape[0],))
        for each in extras:
            if math.prod(names.tensors[each].shape) == 1 and read_all(names.tensors[each]).any():
                raise FormatError(
                    "weight_format is not 0 (row), which alone is read",
                    rule="quantised", tensor=each, path=names.path or None,
                )  # fmt: skip
        return _Int8(
            weight_name, "bitsandbytes-int8", {"weight": weight, "scale": scale}, weight.shape,
            code="I8", block=(1, weight.shape[1]),
        )  # fmt: skip

    yield Found(weight_name, "bitsandbytes-int8", (weight_name, scb_name, *extras), build)
