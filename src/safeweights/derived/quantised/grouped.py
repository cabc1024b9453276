"""The formula that most schemes share: value = (code - zero) * scale, with a scale for each block.

A block is a rectangle of rows and columns: 128 x 128 (block-scaled FP8), one row of 32 (MX), one row of 128
(GPTQ), a whole row (per channel) or everything (per tensor). A scheme says how codes, scales and zeros are
read; this module multiplies, and checks the scales.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .weight import Range, Weight, fault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...checkpoint import Tensor

__all__ = ["Grouped", "unpack"]

Array = np.ndarray[Any, Any]
_LARGEST: Final = float(np.finfo("<f4").max)


class Grouped(Weight):
    """A weight of (code - zero) * scale.

    Attributes:
        block: Rows and columns that share a scale.
        group_of: Scale of each column, for columns that are not in the order of their groups (act-order).
        code_limit: Largest magnitude of ``code - zero``.
        zero_scale_allowed: Whether a scale of 0 may stand for codes that are not all zero.
    """

    block = (1, 1)
    group_of: Array | None = None
    code_limit = 512.0

    def __init__(
        self, name: str, shape: tuple[int, ...], parts: Mapping[str, Tensor], block: tuple[int, int]
    ) -> None:
        super().__init__(name, shape, parts)
        self.block = (max(1, min(block[0], self.rows)), max(1, min(block[1], self.columns)))

    @abstractmethod
    def codes(self, batch: int, rows: Range, columns: Range) -> Array:
        """The codes of a rectangle, as a new float32 array."""

    @abstractmethod
    def scales(self, batch: int, rows: Range, columns: Range) -> Array:
        """The scales of a rectangle of blocks, as float32."""

    def zeros(self, batch: int, rows: Range, columns: Range) -> Array | None:  # noqa: ARG002
        """The zero points of a rectangle of blocks, as float32; None if there are none."""
        return None

    def values(self, batch: int, rows: Range, columns: Range) -> Array:
        out = self.codes(batch, rows, columns)
        tall, wide = self.block
        if self.group_of is not None:
            wanted = self.group_of[columns.begin : columns.end]
            reach = Range(int(wanted.min()), int(wanted.max()) + 1)
        else:
            reach = columns.blocks(wide)
        blocks = rows.blocks(tall)
        scale = self.scales(batch, blocks, reach)
        zero = self.zeros(batch, blocks, reach)
        self._check(scale)
        if zero is not None:
            out -= self._spread(zero, rows, columns, reach)
        if not scale.all():
            self._check_zero(scale, out, rows, columns, reach)
        spread = self._spread(scale, rows, columns, reach)
        if float(np.abs(scale).max(initial=0)) * self.code_limit > _LARGEST:
            return self._multiplied(out, spread)
        out *= spread
        return out

    def _multiplied(self, out: Array, scale: Array) -> Array:
        """The product where it may be too large for float32."""
        found: Array = out * scale
        if not np.isfinite(found[np.isfinite(out)]).all():
            raise fault(self.scale_part, "a scale times its value is beyond the range of F32")
        return found

    @property
    def scale_part(self) -> Tensor:
        """The stored tensor that an error about scales names."""
        return next((part for role, part in self.parts.items() if "scale" in role), self.anchor)

    def _check(self, scale: Array) -> None:
        if not np.isfinite(scale).all():
            raise fault(self.scale_part, "a scale is NaN or infinite", rule="quantised-scale")

    def _check_zero(
        self, scale: Array, out: Array, rows: Range, columns: Range, reach: Range
    ) -> None:
        zero = self._spread((scale == 0).astype("<f4"), rows, columns, reach)
        if (np.nan_to_num(out, nan=1.0) * zero).any():
            raise fault(
                self.scale_part,
                "a scale is 0, but the values it scales are not",
                rule="quantised-scale",
            )

    def _spread(self, blocks: Array, rows: Range, columns: Range, reach: Range) -> Array:
        """One number a block -> an array that broadcasts against the rectangle of elements."""
        tall, wide = self.block
        if self.group_of is not None:
            blocks = blocks[:, self.group_of[columns.begin : columns.end] - reach.begin]
        elif blocks.shape[1] > 1:
            skip = columns.begin - reach.begin * wide
            blocks = np.repeat(blocks, wide, axis=1)[:, skip : skip + len(columns)]
        if blocks.shape[0] > 1 and tall > 1:
            skip = rows.begin - rows.begin // tall * tall
            blocks = np.repeat(blocks, tall, axis=0)[skip : skip + len(rows)]
        return blocks


def unpack(words: Array, bits: int, count: int) -> Array:
    """Integers packed into a stream of bits along the last axis, the first in the lowest bits.

    Args:
        words: 32-bit words, or bytes, of shape (rows, n).
        bits: Width of each integer, 1 to 8.
        count: Integers of each row.

    Returns:
        A new float32 array of shape (rows, count).
    """
    data = np.ascontiguousarray(words).view("u1")
    if 8 % bits == 0:
        table = _table(bits)
        found = table[data].view("<f4").reshape(len(data), -1)
    else:
        found = _unpack_across_words(data, bits)
    return found if found.shape[1] == count else np.ascontiguousarray(found[:, :count])


def _unpack_across_words(data: Array, bits: int) -> Array:
    """For widths that do not divide a byte: each group of `bits` bytes holds 8 integers."""
    rest = -data.shape[1] % bits
    if rest:
        data = np.pad(data, ((0, 0), (0, rest)))
    groups = data.reshape(len(data), -1, bits).astype("<u8")
    wide = np.zeros(groups.shape[:2], "<u8")
    for place in range(bits):
        wide |= groups[:, :, place] << np.uint64(8 * place)
    shifts = (np.arange(8) * bits).astype("<u8")
    found = (wide[:, :, None] >> shifts) & np.uint64((1 << bits) - 1)
    integers: Array = found.astype("<f4").reshape(len(data), -1)
    return integers


_tables: dict[int, Array] = {}


def _table(bits: int) -> Array:
    """Byte -> the integers in it, as one element of that many float32 values."""
    if bits not in _tables:
        shifts = np.arange(0, 8, bits)
        integers = (np.arange(256)[:, None] >> shifts) & ((1 << bits) - 1)
        values = np.ascontiguousarray(integers.astype("<f4"))
        kinds = {1: "V32", 2: "<c16", 4: "<c8", 8: "<f4"}
        _tables[bits] = values.view(kinds[bits]).reshape(256)
    return _tables[bits]
