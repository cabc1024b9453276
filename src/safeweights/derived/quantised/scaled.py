"""Small floats and integers with scales: ``weight`` beside ``weight_scale``, ``weight_scale_inv`` ...

    value = weight * scale                         one scale a tensor, row, block of rows and columns
    value = (weight - zero_point) * scale          int8 with zero points
    value = weight * (scale * weight_scale_2)      NVFP4 as Model Optimizer writes it
    value = weight * (scale / weight_global_scale) NVFP4 as compressed-tensors writes it

FP8 weights are F8 tensors, INT8 weights I8; two FP4 values (E2M1) share a byte of a U8 tensor, the first
in the low half. Scales are floats, or E8M0 (OCP Microscaling), also in a U8 tensor. ``weight_scale_inv``
is multiplied, too, whatever its name says.

Sources: DeepSeek-V3 ``inference/kernel.py`` (weight_dequant), OCP Microscaling Formats 1.0, ComfyUI
``ops.py`` (scaled_fp8_ops), compressed-tensors ``quantization/lifecycle/forward.py``, NVIDIA Model
Optimizer ``nvfp4_tensor.py`` (dequantize).
"""

from __future__ import annotations

import math
from operator import le
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ...errors import FormatError, quote
from ..small_floats import limits
from .grouped import Grouped
from .stored import Found, Names, Reshaped, one_number, require_shape, require_type
from .weight import Range, fault, numbers, read_box

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ...checkpoint import Tensor

__all__ = ["FLOATS8", "Scaled", "block_of", "find"]

Array = np.ndarray[Any, Any]

FLOATS8: Final = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
_EXPONENTS: Final = ("F8_E8M0", "U8")
_FLOATS: Final = ("F32", "BF16", "F16", "F64")


class Scaled(Grouped):
    """A weight whose codes are numbers of a small type, with scales.

    Args:
        name: Name of the dense tensor.
        scheme: Name of the scheme.
        parts: ``weight`` and ``scale``; perhaps ``zero_point``.
        shape: Dense shape.
        code: Element type of the codes; ``F4`` for two in a byte.
        block: Rows and columns with one scale.
        factor: Multiplies every scale.
        divisor: Divides every scale.
    """

    def __init__(
        self,
        name: str,
        scheme: str,
        parts: Mapping[str, Tensor],
        shape: tuple[int, ...],
        *,
        code: str,
        block: tuple[int, int],
        factor: float = 1.0,
        divisor: float = 1.0,
    ) -> None:
        super().__init__(name, shape, parts, block)
        self.scheme = scheme
        self._code = code
        self._factor, self._divisor = np.float32(factor), np.float32(divisor)
        self._packed = code == "F4"
        self.grain = (1, 2 if self._packed else 1)
        self.code_limit = 256.0 if code in ("I8", "U8") else float(limits(code).max)
        self._weight = self._matrices(parts["weight"])
        self._scale = self._grid(parts["scale"])
        self._zero = self._grid(parts["zero_point"]) if "zero_point" in parts else None

    def _matrices(self, weight: Tensor) -> Tensor:
        columns = self.columns
        if self._packed and weight.dtype != "F4":
            columns //= 2
        return Reshaped(weight, (math.prod(self.shape[:-2]), self.rows, columns))

    def _grid(self, scale: Tensor) -> Tensor:
        """The scales as (batches, rows of blocks, columns of blocks); 1 where all share one."""
        if not math.prod(self.shape):
            self._require_few(scale)
            return scale
        tall, wide = self.block
        grid = -(-self.rows // tall), -(-self.columns // wide)
        batches = math.prod(self.shape[:-2])
        if math.prod(scale.shape) == 1:
            grid = (1, 1)
            self.block = (self.rows, self.columns)
        one = math.prod(scale.shape) != batches * math.prod(grid)
        expected = (*self.shape[:-2], *grid)
        if one and math.prod(scale.shape) != math.prod(grid):
            require_shape(scale, expected)
        return Reshaped(scale, (1 if one else batches, *grid))

    def _require_few(self, scale: Tensor) -> None:
        """Check the scales of a weight without elements: one for all, a matrix or a row, or any blocks."""
        most = [max(1, size) for size in self.shape]
        blocks = len(scale.shape) == len(most) and all(map(le, scale.shape, most))
        if not blocks and math.prod(scale.shape) not in (1, math.prod(self.shape[:-2])):
            require_shape(scale, (self.rows,))

    def codes(self, batch: int, rows: Range, columns: Range) -> Array:
        if self._packed and self._weight.dtype != "F4":
            columns = Range(columns.begin // 2, -(-columns.end // 2))
        stored = read_box(self._weight, Range(batch, batch + 1), rows, columns)[0]
        return numbers(self._weight, stored, self._code)

    def scales(self, batch: int, rows: Range, columns: Range) -> Array:
        found = self._blocks(self._scale, batch, rows, columns)
        if self._factor != 1:
            found = found * self._factor
        return found / self._divisor if self._divisor != 1 else found

    def zeros(self, batch: int, rows: Range, columns: Range) -> Array | None:
        return None if self._zero is None else self._blocks(self._zero, batch, rows, columns)

    def _blocks(self, grid: Tensor, batch: int, rows: Range, columns: Range) -> Array:
        batch = batch if grid.shape[0] > 1 else 0
        code = "F8_E8M0" if grid.dtype == "U8" and grid is self._scale else None
        return numbers(grid, read_box(grid, Range(batch, batch + 1), rows, columns)[0], code)


def block_of(
    names: Names, weight: Tensor, scale: Tensor, shape: tuple[int, ...]
) -> tuple[int, int]:
    """Rows and columns that share a scale, from the settings or from both shapes.

    Raises:
        FormatError: The shapes do not fit together, or fit blocks of several sizes.
    """
    rows, columns = (shape[-2] if len(shape) > 1 else 1), (shape[-1] if shape else 1)
    if math.prod(scale.shape) in (1, math.prod(shape[:-2])) or not math.prod(shape):
        return rows, columns
    if len(scale.shape) == 1:
        require_shape(scale, (rows,))
        return 1, columns
    if scale.shape[:-2] != shape[:-2]:
        require_shape(scale, (*shape[:-2], *scale.shape[-2:]))
    given = names.setting("weight_block_size")
    if given is not None:
        valid = isinstance(given, list) and len(given) == 2
        if not valid or any(type(n) is not int or not 0 < n < 1 << 31 for n in given):
            raise names.fault(f"weight_block_size is {quote(str(given)[:80])}, not two sizes")
    tall = _extent(weight, scale, -2, rows, given)
    wide = _extent(weight, scale, -1, columns, given)
    return tall, wide


def _extent(weight: Tensor, scale: Tensor, axis: int, size: int, given: list[int] | None) -> int:
    count = scale.shape[axis]
    if count == 1:
        return size
    if given is not None and -(-size // given[axis]) == count:
        return given[axis]
    fits = [1 << k for k in range(size.bit_length()) if -(-size // (1 << k)) == count]
    if count and size % count == 0 and size // count not in fits:
        fits.append(size // count)
    if len(fits) == 1:
        return fits[0]
    if not fits:
        raise fault(
            scale,
            f"shape is {list(scale.shape)}, which does not divide the {list(weight.shape)} of "
            f"{quote(weight.name)} into blocks",
            rule="quantised-shape",
        )
    sizes = " or ".join(map(str, fits))
    raise fault(
        scale,
        f"shape is {list(scale.shape)}: blocks of {sizes} would fit {list(weight.shape)}; the settings "
        "(config.json, settings=) must give weight_block_size",
        rule="quantised-ambiguous",
    )


# ---- finding


def find(names: Names, scale_name: str) -> Iterator[Found]:
    """The weight that the scales called `scale_name` belong to, if there is one."""
    name = _weight_of(scale_name)
    packed = name not in names.tensors
    weight_name = f"{name}_packed" if packed else name
    weight = names.tensors.get(weight_name)
    if weight is None or not weight.shape:
        return
    scale = names.tensors[scale_name]
    scheme = _scheme(weight, scale, name, scale_name, names, packed=packed)
    if scheme is None:
        return
    stem = name.removesuffix("weight")
    zero = names.present(f"{name}_zero_point") if scheme == "int8" else ()
    second = names.present(f"{name}_scale_2", f"{name}_global_scale") if scheme == "nvfp4" else ()
    extras = names.present(
        *(f"{stem}{each}" for each in _EXTRAS), *((f"{name}_shape",) if packed else ())
    )
    used = (weight_name, scale_name, *zero, *second)
    yield Found(name, scheme, (*used, *extras), lambda: _build(names, name, scheme, used))


_EXTRAS: Final = (
    "input_scale", "input_global_scale", "input_zero_point", "scale_input", "comfy_quant",
)  # fmt: skip
"""Parts of a layer that concern its input only; a dense layer has none."""


def _weight_of(scale_name: str) -> str:
    stem, dot, last = scale_name.rpartition(".")
    if last in ("scale_weight", "scale"):
        return f"{stem}{dot}weight"
    return scale_name.removesuffix("_inv").removesuffix("_scale")


def _scheme(
    weight: Tensor, scale: Tensor, name: str, scale_name: str, names: Names, *, packed: bool
) -> str | None:
    if weight.dtype in FLOATS8 and not packed:
        groups = (*weight.shape[:-1], -(-weight.shape[-1] // 32))
        if scale.dtype in _EXPONENTS and scale.shape == groups:
            return "mxfp8"
        if scale_name.endswith("scale_weight") or f"{name[:-6]}comfy_quant" in names.tensors:
            return "comfyui-fp8"
        return "fp8" if scale.dtype in (*_FLOATS, *_EXPONENTS) else None
    if weight.dtype == "I8" and scale.dtype in _FLOATS and len(weight.shape) > 1:
        return "int8"
    if weight.dtype == "F4" or (weight.dtype == "U8" and len(weight.shape) > 1):
        if scale.dtype == "F8_E4M3":
            return "nvfp4"
        if scale.dtype in _EXPONENTS:
            return "mxfp4"
    return None


def _build(names: Names, name: str, scheme: str, used: tuple[str, ...]) -> Scaled:
    parts = [names.tensors[part] for part in used]
    weight, scale = parts[:2]
    four = scheme in ("nvfp4", "mxfp4")
    code = "F4" if four else weight.dtype
    shape = weight.shape
    if four and weight.dtype != "F4":
        shape = (*shape[:-1], shape[-1] * 2)
    if scheme in ("mxfp8", "mxfp4", "nvfp4"):
        size = 16 if scheme == "nvfp4" else 32
        require_shape(scale, (*shape[:-1], -(-shape[-1] // size)))
        block = (1, size)
    else:
        block = block_of(names, weight, scale, shape)
    roles = {"weight": weight, "scale": scale}
    options: dict[str, float] = {}
    for role, part in zip(used[2:], parts[2:], strict=True):
        if role.endswith("zero_point"):
            require_type(part, "I8", "U8")
            require_shape(part, scale.shape)
            roles["zero_point"] = part
        elif role.endswith("scale_2"):
            options["factor"] = one_number(part)
        else:
            options["divisor"] = one_number(part)
    if scheme == "nvfp4" and not options:
        raise FormatError(
            f"{quote(name)} lacks the second scale of NVFP4, weight_scale_2 or weight_global_scale",
            rule="quantised", path=names.path or None, tensor=weight.name,
        )  # fmt: skip
    return Scaled(name, scheme, roles, shape, code=code, block=block, **options)
