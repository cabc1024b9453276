"""AWQ: ``qweight`` (I32), ``qzeros`` (I32), ``scales``: 4 bits, packed along the outputs, interleaved.

    weight[out, in] = (q[in, out] - zero[group, out]) * scales[group, out],  group = in // group_size

The eight values of a word are those of outputs 0, 2, 4, 6, 1, 3, 5, 7, from the lowest bits up.

Sources: AutoAWQ ``utils/packing_utils.py`` (dequantize_gemm); Lin et al. 2023, arXiv:2306.00978.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .grouped import Grouped, unpack
from .stored import Found, Names, integer, require_shape, require_type
from .weight import Range, fault, numbers, read_box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...checkpoint import Tensor

__all__ = ["find"]

Array = np.ndarray[Any, Any]
_PLACES: Final = [0, 4, 1, 5, 2, 6, 3, 7]
"""Output -> its place among the eight values of a word."""


class _Awq(Grouped):
    scheme = "awq"
    grain = (8, 1)
    tile = 1024

    def __init__(self, name: str, parts: dict[str, Tensor]) -> None:
        inputs, words = parts["qweight"].shape
        groups = parts["scales"].shape[0]
        super().__init__(name, (words * 8, inputs), parts, (1, inputs // groups))

    def codes(self, batch: int, rows: Range, columns: Range) -> Array:  # noqa: ARG002 - one matrix
        words = Range(rows.begin // 8, -(-rows.end // 8))
        return _outputs(read_box(self.parts["qweight"], columns, words))

    def scales(self, batch: int, rows: Range, columns: Range) -> Array:  # noqa: ARG002
        scales = self.parts["scales"]
        return np.ascontiguousarray(numbers(scales, read_box(scales, columns, rows)).T)

    def zeros(self, batch: int, rows: Range, columns: Range) -> Array:  # noqa: ARG002
        words = Range(rows.begin // 8, -(-rows.end // 8))
        return _outputs(read_box(self.parts["qzeros"], columns, words))


def _outputs(words: Array) -> Array:
    """Words of shape (inputs, n) -> values of shape (8 n, inputs)."""
    values = unpack(words, 4, words.shape[1] * 8).reshape(*words.shape, 8)
    ordered = values[:, :, _PLACES].reshape(len(words), -1)
    return np.ascontiguousarray(ordered.T)


def find(names: Names, qweight_name: str) -> Iterator[Found]:
    """The weight that `qweight_name` belongs to, if it is packed along the outputs."""
    stem = qweight_name.removesuffix("qweight")
    others = [f"{stem}{part}" for part in ("qzeros", "scales")]
    if len(names.present(*others)) < 2:
        return
    qweight, qzeros, scales = (names.tensors[part] for part in (qweight_name, *others))
    two = all(len(part.shape) == 2 for part in (qweight, qzeros, scales))
    if not two or qweight.shape[1] * 8 != scales.shape[1]:
        return
    extra = names.present(f"{stem}g_idx")

    def build() -> Grouped:
        require_type(qweight, "I32")
        require_type(qzeros, "I32")
        require_type(scales, "F16", "BF16", "F32")
        bits = integer(names, "bits", 1, 32) or integer(names, "w_bit", 1, 32) or 4
        if bits != 4:
            raise names.fault(f"AWQ packs 4 bits, not {bits}")
        version = names.setting("version")
        if version is not None and str(version).lower() != "gemm":
            raise names.fault(f"version is {str(version)[:80]!r}; only gemm is read")
        inputs, groups = qweight.shape[0], scales.shape[0]
        if not groups or not inputs or inputs % groups or not qweight.shape[1]:
            raise fault(
                scales, f"{groups} groups do not divide {inputs} inputs", rule="quantised-shape"
            )
        require_shape(qzeros, (groups, qweight.shape[1]))
        return _Awq(f"{stem}weight", {"qweight": qweight, "qzeros": qzeros, "scales": scales})

    yield Found(f"{stem}weight", "awq", (qweight_name, *others, *extra), build)
