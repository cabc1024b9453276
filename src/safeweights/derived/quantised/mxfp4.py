"""MXFP4 as gpt-oss stores its experts: ``NAME_blocks`` (U8) and ``NAME_scales`` (U8, E8M0).

    value = E2M1(half of a byte, the low one first) * 2 ** (scale - 127)

Blocks are [experts, rows, groups, 16], 32 values each; scales [experts, rows, groups]. Hugging Face's
checkpoints (``NAME_blocks``) stand for the transpose, [experts, 32 * groups, rows]; OpenAI's own
(``NAME.blocks``) for [experts, rows, 32 * groups].

Sources: transformers ``integrations/mxfp4.py`` (convert_moe_packed_tensors), gpt-oss ``torch/weights.py``
(_get_mxfp4_tensor), OCP Microscaling Formats 1.0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .grouped import Grouped
from .stored import Found, Names, Reshaped, require_shape, require_type
from .weight import Range, fault, numbers, read_box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...checkpoint import Tensor

__all__ = ["find"]

Array = np.ndarray[Any, Any]
_GROUP: Final = 32


class _Blocks(Grouped):
    scheme = "mxfp4"
    code_limit = 6.0

    def __init__(self, name: str, blocks: Tensor, scales: Tensor, *, transposed: bool) -> None:
        outer, rows, groups = blocks.shape[:-3], blocks.shape[-3], blocks.shape[-2]
        inner = groups * _GROUP
        shape = (*outer, inner, rows) if transposed else (*outer, rows, inner)
        block = (_GROUP, 1) if transposed else (1, _GROUP)
        super().__init__(name, shape, {"blocks": blocks, "scales": scales}, block)
        self._transposed = transposed
        self.grain = block
        self.tile = 512 if transposed else 0
        batches = math.prod(outer)
        self._codes = Reshaped(blocks, (batches, rows, inner // 2))
        self._scales = Reshaped(scales, (batches, rows, groups))

    def codes(self, batch: int, rows: Range, columns: Range) -> Array:
        if self._transposed:
            rows, columns = columns, rows
        packed = Range(columns.begin // 2, columns.end // 2)
        stored = read_box(self._codes, Range(batch, batch + 1), rows, packed)[0]
        found = numbers(self._codes, stored, "F4")
        return np.ascontiguousarray(found.T) if self._transposed else found

    def scales(self, batch: int, rows: Range, columns: Range) -> Array:
        if self._transposed:
            rows, columns = columns, rows
        stored = read_box(self._scales, Range(batch, batch + 1), rows, columns)[0]
        found = numbers(self._scales, stored, "F8_E8M0")
        return found.T if self._transposed else found


def find(names: Names, blocks_name: str) -> Iterator[Found]:
    """The experts that `blocks_name` holds, if their scales are there."""
    stem = blocks_name.removesuffix("blocks")
    scales_name = f"{stem}scales"
    blocks, scales = names.tensors[blocks_name], names.tensors.get(scales_name)
    if scales is None or blocks.dtype != "U8" or len(blocks.shape) < 3 or blocks.shape[-1] != 16:
        return
    transposed = stem.endswith("_")

    def build() -> Grouped:
        require_type(scales, "U8", "F8_E8M0")
        require_shape(scales, blocks.shape[:-1])
        if not math.prod(blocks.shape):
            raise fault(blocks, "it is empty")
        return _Blocks(stem[:-1], blocks, scales, transposed=transposed)

    yield Found(stem[:-1], "mxfp4", (blocks_name, scales_name), build)
