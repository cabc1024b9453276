"""compressed-tensors, pack-quantized: ``weight_packed`` (I32), ``weight_scale``, ``weight_shape`` ...

    weight = (q - zero) * weight_scale

q is packed along the columns as a stream of bits, the first value in the lowest bits, each plus
2^(bits - 1); earlier versions packed 32 // bits values into a word and left the rest empty, which differs
for 3, 5, 6 and 7 bits. ``weight_zero_point`` (I32) is packed in the same way along the rows.
``weight_g_idx`` is the group of each column. The other formats of compressed-tensors are read by `scaled`.

Source: compressed-tensors 0.20 ``compressors/pack_quantized``, ``quantization/lifecycle/forward.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ...errors import quote
from .grouped import Grouped, unpack
from .stored import Found, Names, read_all, require_shape, require_type
from .weight import Range, fault, numbers, read_box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...checkpoint import Tensor

__all__ = ["find"]

Array = np.ndarray[Any, Any]
SCHEME: Final = "compressed-tensors"


class _Packed(Grouped):
    scheme = SCHEME

    def __init__(
        self, name: str, shape: tuple[int, int], parts: dict[str, Tensor], bits: int, *, dense: bool
    ) -> None:
        scale = parts["weight_scale"]
        rows = shape[0] if scale.shape[0] == 1 else 1
        super().__init__(name, shape, parts, (rows, -(-shape[1] // scale.shape[1])))
        self._bits, self._dense = bits, dense
        self._wide = 32 if dense else 32 // bits  # values that begin and end with words
        self.grain = (1, self._wide)
        if "weight_zero_point" in parts:
            self.grain = (self._wide, self._wide)

    def _words(self, reach: Range) -> Range:
        if self._dense:
            return Range(reach.begin * self._bits // 32, -(-reach.end * self._bits // 32))
        return reach.blocks(self._wide)

    def _unpacked(self, words: Array, count: int) -> Array:
        if not self._dense:
            shifts = (np.arange(self._wide) * self._bits).astype("<u4")
            wide = np.ascontiguousarray(words).view("<u4")[:, :, None] >> shifts
            wide &= np.uint32((1 << self._bits) - 1)
            found: Array = wide.astype("<f4").reshape(len(words), -1)[:, :count]
        else:
            found = unpack(words, self._bits, count)
        found -= np.float32(1 << (self._bits - 1))
        return found

    def codes(self, batch: int, rows: Range, columns: Range) -> Array:  # noqa: ARG002 - one matrix
        stored = read_box(self.parts["weight_packed"], rows, self._words(columns))
        return self._unpacked(stored, len(columns))

    def scales(self, batch: int, rows: Range, columns: Range) -> Array:  # noqa: ARG002
        scale = self.parts["weight_scale"]
        return numbers(scale, read_box(scale, rows, columns))

    def zeros(self, batch: int, rows: Range, columns: Range) -> Array | None:  # noqa: ARG002
        packed = self.parts.get("weight_zero_point")
        if packed is None:
            return None
        if packed.dtype != "I32":
            return numbers(packed, read_box(packed, rows, columns))
        stored = read_box(packed, self._words(rows), columns)
        return np.ascontiguousarray(self._unpacked(stored.T, len(rows)).T)


_ROLES: Final = (
    "weight_packed",
    "weight_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
)


def find(names: Names, packed_name: str) -> Iterator[Found]:
    """The weight that `packed_name` belongs to, if it is packed into 32-bit words."""
    stem = packed_name.removesuffix("weight_packed")
    if names.tensors[packed_name].dtype != "I32":
        return
    parts = {role: f"{stem}{role}" for role in _ROLES if f"{stem}{role}" in names.tensors}
    if "weight_scale" not in parts or "weight_shape" not in parts:
        return
    extras = names.present(
        *(f"{stem}input_{each}" for each in ("scale", "zero_point", "global_scale"))
    )
    tensors = {role: names.tensors[part] for role, part in parts.items()}
    yield Found(
        f"{stem}weight", SCHEME, (*parts.values(), *extras),
        lambda: _build(names, f"{stem}weight", tensors),
    )  # fmt: skip


def _build(names: Names, name: str, parts: dict[str, Tensor]) -> Grouped:
    packed, scale = parts["weight_packed"], parts["weight_scale"]
    require_type(scale, "F32", "BF16", "F16")
    require_type(parts["weight_shape"], "I64", "I32")
    require_shape(parts["weight_shape"], (2,))
    rows, columns = map(int, read_all(parts["weight_shape"]).tolist())
    if len(packed.shape) != 2 or packed.shape[0] != rows or columns < 1 or not rows:
        raise fault(
            parts["weight_shape"],
            f"it says [{rows}, {columns}], but {quote(packed.name)} has {list(packed.shape)}",
            rule="quantised-shape",
        )
    bits, dense = _width(names, packed, columns)
    if len(scale.shape) != 2 or scale.shape[0] not in (1, rows) or not scale.shape[1]:
        require_shape(scale, (rows, max(1, scale.shape[-1] if scale.shape else 1)))
    groups = scale.shape[1]
    size = _group_size(names)
    if columns % groups and (size is None or -(-columns // size) != groups):
        raise fault(
            scale, f"{groups} groups do not divide {columns} columns", rule="quantised-shape"
        )
    weight = _Packed(name, (rows, columns), parts, bits, dense=dense)
    if size is not None and -(-columns // size) == groups:
        weight.block = (weight.block[0], size)
    if (zero := parts.get("weight_zero_point")) is not None:
        require_type(zero, "I32", "I8")
        words = weight._words(Range(0, rows)).end if zero.dtype == "I32" else rows  # noqa: SLF001
        require_shape(zero, (words, groups))
    if (g_idx := parts.get("weight_g_idx")) is not None:
        weight.group_of = _group_of(g_idx, columns, groups)
    return weight


def _weights_settings(names: Names) -> Iterator[dict[str, Any]]:
    groups = names.setting("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            yield weights


def _group_size(names: Names) -> int | None:
    sizes = {each.get("group_size") for each in _weights_settings(names)}
    sizes = {size for size in sizes if type(size) is int and 0 < size < 1 << 31}
    return sizes.pop() if len(sizes) == 1 else None


def _width(names: Names, packed: Tensor, columns: int) -> tuple[int, bool]:
    """Bits of each value, and whether words are filled completely."""
    words = packed.shape[1]
    fits = [
        (bits, dense)
        for bits in range(1, 9)
        for dense in (True, False)
        if words == -(-columns * bits // 32 if dense else -columns // (32 // bits))
        and (dense or 32 % bits)
    ]
    given = [each.get("num_bits") for each in _weights_settings(names)]
    for bits in given:
        if type(bits) is not int or not 1 <= bits <= 16:
            raise names.fault(f"num_bits is {str(bits)[:80]!r}")
    found = [fit for fit in fits if not given or fit[0] in given]
    if not found:
        wanted = f"{' or '.join(map(str, given)) or '1 to 8'} bits"
        raise fault(
            packed,
            f"its {words} words a row are not {columns} integers of {wanted}",
            rule="quantised-bits",
        )
    if len(found) > 1:
        choices = ", ".join(f"{bits} bits{'' if dense else ' with gaps'}" for bits, dense in found)
        raise fault(
            packed, f"its width fits {choices}: give config_groups", rule="quantised-ambiguous"
        )
    return found[0]


def _group_of(g_idx: Tensor, columns: int, groups: int) -> Array | None:
    require_type(g_idx, "I32", "I64")
    require_shape(g_idx, (columns,))
    found = read_box(g_idx, Range(0, columns)).astype(np.int64)
    if (found == -1).all():  # not set
        return None
    if int(found.min()) < 0 or int(found.max()) >= groups:
        raise fault(g_idx, f"an index is outside the {groups} groups", rule="quantised-order")
    return found
