"""torchao's tensors as it writes them to safetensors: ``MODULE._weight_qdata``, ``_weight_scale`` ...

The metadata has JSON under the name of each weight, ``MODULE.weight``, whose ``_type`` is its class.

    Float8Tensor, MXTensor     qdata * scale
    Int8Tensor, IntxUnpackedToInt8Tensor    (qdata - zero_point) * scale
    NVFP4Tensor                qdata * (scale * per_tensor_scale)

Layouts for one kind of device (Int4TilePackedTo4dTensor, Int4PlainInt32Tensor, swizzled scales) and
Int4Tensor, whose formula only a GPU kernel states, are refused.

Source: torchao 0.18 ``prototype/safetensors``, ``quantization/quantize_/workflows``,
``prototype/mx_formats``.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from ...errors import FormatError, UnsupportedError, quote
from .scaled import FLOATS8, Scaled
from .stored import Found, Names, one_number, require_shape, require_type
from .weight import fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...checkpoint import Tensor

__all__ = ["SCHEMES", "find"]

SCHEMES: Final = {
    "Float8Tensor": "torchao-float8",
    "Int8Tensor": "torchao-int8",
    "IntxUnpackedToInt8Tensor": "torchao-intx",
    "MXTensor": "torchao-mx",
    "NVFP4Tensor": "torchao-nvfp4",
}
"""Class -> name of the scheme."""
_PARTS: Final = (
    "qdata", "scale", "zero_point", "per_tensor_scale", "act_per_tensor_scale", "act_pre_scale",
    "act_quant_scale", "act_quant_zero_point",
)  # fmt: skip
_TEXT_MAX: Final = 1 << 16


def find(names: Names, qdata_name: str) -> Iterator[Found]:
    """The weight that `qdata_name` belongs to, if the metadata has it."""
    module, dot, last = qdata_name.rpartition(".")
    base = last.removesuffix("_qdata").removeprefix("_")
    name = f"{module}{dot}{base}"
    text = names.metadata.get(name)
    if text is None:
        return
    prefix = f"{module}{dot}_{base}_"
    parts = {part: prefix + part for part in _PARTS if prefix + part in names.tensors}
    described = _described(names, name, text)
    kind = str(described.get("_type"))[:80]
    scheme = SCHEMES.get(kind, "torchao")

    def build() -> Scaled:
        if kind not in SCHEMES:
            raise UnsupportedError(
                f"{quote(name)} is torchao's {quote(kind)}, which is not read; there are "
                f"{', '.join(SCHEMES)}",
                path=names.path or None, tensor=qdata_name,
            )  # fmt: skip
        tensors = {part: names.tensors[stored] for part, stored in parts.items()}
        data = described.get("_data")
        return _build(names, name, kind, tensors, data if isinstance(data, dict) else {})

    yield Found(name, scheme, tuple(parts.values()), build)


def _described(names: Names, name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if len(text) <= _TEXT_MAX else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FormatError(
            f"the metadata of {quote(name)} is no description of a torchao tensor",
            rule="quantised", path=names.path or None, tensor=name,
        )  # fmt: skip
    return found


def _build(
    names: Names, name: str, kind: str, parts: dict[str, Tensor], data: dict[str, Any]
) -> Scaled:
    qdata = parts["qdata"]
    for needed in ("scale", *(["zero_point"] if kind.startswith("Intx") else [])):
        if needed not in parts:
            raise fault(qdata, f"torchao's {needed} of {quote(name)} is missing")
    if data.get("is_swizzled_scales"):
        raise UnsupportedError(
            f"the scales of {quote(name)} are in a layout for one kind of GPU (swizzled), which is "
            "not read",
            path=names.path or None, tensor=qdata.name,
        )  # fmt: skip
    if "act_pre_scale" in parts:
        raise UnsupportedError(
            f"{quote(name)} has a scale of its inputs (act_pre_scale), which no dense weight can have",
            path=names.path or None, tensor=qdata.name,
        )  # fmt: skip
    four = kind == "NVFP4Tensor" or (kind == "MXTensor" and qdata.dtype in ("U8", "F4"))
    shape = qdata.shape
    if four and qdata.dtype != "F4":
        shape = (*shape[:-1], shape[-1] * 2)
    if len(shape) < 2 or not math.prod(shape):
        raise fault(qdata, f"shape is {list(shape)}", rule="quantised-shape")
    types = {
        "Float8Tensor": FLOATS8,
        "NVFP4Tensor": ("U8", "F4"),
        "MXTensor": ("U8", "F4", *FLOATS8),
    }
    require_type(qdata, *types.get(kind, ("I8",)))
    block = _block(names, name, kind, data, shape)
    scale = parts["scale"]
    scales = {"NVFP4Tensor": ("F8_E4M3",), "MXTensor": ("F8_E8M0", "U8")}
    require_type(scale, *scales.get(kind, ("F32", "BF16", "F16")))
    roles = {"weight": qdata, "scale": scale}
    if "zero_point" in parts:
        require_type(parts["zero_point"], "I8", "I32", "I64", "F32", "BF16", "F16")
        require_shape(parts["zero_point"], scale.shape)
        roles["zero_point"] = parts["zero_point"]
    factor = one_number(parts["per_tensor_scale"]) if "per_tensor_scale" in parts else 1.0
    return Scaled(
        name, SCHEMES[kind], roles, shape, code="F4" if four else qdata.dtype, block=block,
        factor=factor,
    )  # fmt: skip


def _block(
    names: Names, name: str, kind: str, data: dict[str, Any], shape: tuple[int, ...]
) -> tuple[int, int]:
    given = data.get("block_size")
    if kind in ("MXTensor", "NVFP4Tensor"):
        given = [1] * (len(shape) - 1) + [given]
    good = isinstance(given, list) and len(given) == len(shape)
    if not good or any(type(n) is not int or not 0 < n < 1 << 48 for n in given or ()):
        raise FormatError(
            f"block_size of {quote(name)} is {str(given)[:80]!r}",
            rule="quantised", path=names.path or None, tensor=name,
        )  # fmt: skip
    assert given is not None
    if any(size not in (1, whole) for size, whole in zip(given[:-2], shape, strict=False)):
        raise UnsupportedError(f"{quote(name)} has blocks across matrices: {given}", tensor=name)
    return given[-2], given[-1]
