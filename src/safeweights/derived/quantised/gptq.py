"""GPTQ: ``qweight`` (I32), ``qzeros`` (I32), ``scales``, perhaps ``g_idx``: 2, 3, 4 or 8 bits.

    weight[out, in] = (q[in, out] - zero[group, out]) * scales[group, out]

q is packed along the inputs, zeros along the outputs, as streams of bits in 32-bit words, the first value
in the lowest bits. ``group`` is ``g_idx[in]`` (act-order), or without it ``in // group_size``. The first
format (``gptq``) stores zeros less 1, within the width; the second (``gptq_v2``) stores them as they are.

Sources: GPTQModel ``nn_modules/qlinear`` (dequantize_weight) and ``utils/model.py``
(convert_gptq_v1_to_v2_format), AutoGPTQ ``qlinear_cuda_old.py``; Frantar et al. 2022, arXiv:2210.17323.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ...errors import FormatError, quote
from .grouped import Grouped, unpack
from .stored import Found, Names, integer, require_shape, require_type
from .weight import Range, fault, numbers, read_box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...checkpoint import Tensor

__all__ = ["FORMATS", "find"]

Array = np.ndarray[Any, Any]

FORMATS: Final = {"gptq": 1, "gptq_v2": 0}
"""Format -> what is added to a stored zero."""
_BITS: Final = (2, 3, 4, 8)


class _Gptq(Grouped):
    scheme = "gptq"
    tile = 1024

    def __init__(
        self, name: str, parts: dict[str, Tensor], bits: int, offset: int, group_of: Array | None
    ) -> None:
        qweight, scales = parts["qweight"], parts["scales"]
        inputs, outputs = qweight.shape[0] * 32 // bits, qweight.shape[1]
        groups = scales.shape[0]
        super().__init__(name, (outputs, inputs), parts, (1, -(-inputs // groups)))
        self.group_of = group_of
        self._bits, self._offset = bits, offset
        self.grain = (32, 32)  # a multiple of whole words, for inputs and for the zeros of outputs

    def codes(self, batch: int, rows: Range, columns: Range) -> Array:  # noqa: ARG002 - one matrix
        words = Range(columns.begin * self._bits // 32, columns.end * self._bits // 32)
        stored = read_box(self.parts["qweight"], words, rows)
        return unpack(stored.T, self._bits, len(columns))

    def scales(self, batch: int, rows: Range, columns: Range) -> Array:  # noqa: ARG002
        scales = self.parts["scales"]
        return np.ascontiguousarray(numbers(scales, read_box(scales, columns, rows)).T)

    def zeros(self, batch: int, rows: Range, columns: Range) -> Array:  # noqa: ARG002
        words = Range(rows.begin * self._bits // 32, -(-rows.end * self._bits // 32))
        stored = read_box(self.parts["qzeros"], columns, words)
        found = unpack(stored, self._bits, len(rows))
        if self._offset:
            found += np.float32(self._offset)
            found[found > (1 << self._bits) - 1] = 0  # stored as 0 - 1, within the width
        return np.ascontiguousarray(found.T)


def find(names: Names, qweight_name: str) -> Iterator[Found]:
    """The weight that `qweight_name` belongs to, if it is packed along the inputs."""
    stem = qweight_name.removesuffix("qweight")
    others = [f"{stem}{part}" for part in ("qzeros", "scales")]
    if len(names.present(*others)) < 2:
        return
    qweight, qzeros, scales = (names.tensors[part] for part in (qweight_name, *others))
    two = all(len(part.shape) == 2 for part in (qweight, qzeros, scales))
    if not two or qweight.shape[1] != scales.shape[1]:
        return
    extra = names.present(f"{stem}g_idx")
    parts = {"qweight": qweight, "qzeros": qzeros, "scales": scales}
    if extra:
        parts["g_idx"] = names.tensors[extra[0]]
    form = _format(names)
    scheme = form if form in FORMATS else "gptq"
    yield Found(
        f"{stem}weight", scheme, (qweight_name, *others, *extra),
        lambda: _build(names, f"{stem}weight", parts),
    )  # fmt: skip


def _format(names: Names) -> str | None:
    """The format that the caller or the settings name."""
    if names.chosen is not None:
        return names.chosen
    given = names.setting("checkpoint_format") or names.setting("format")
    if given is None and names.setting("quant_method") == "gptq":
        return "gptq"  # what the field means by no format
    return given if isinstance(given, str) else None


def _build(names: Names, name: str, parts: dict[str, Tensor]) -> Grouped:
    qweight, qzeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
    form = _format(names)
    if form is None:
        raise FormatError(
            f"{quote(qweight.name)} is GPTQ, but nothing tells whether zeros are stored less 1: choose "
            "the scheme gptq (they are) or gptq_v2 (they are not), or give the settings",
            rule="quantised-ambiguous", path=names.path or None, tensor=qweight.name,
        )  # fmt: skip
    if form not in FORMATS:
        raise names.fault(
            f"checkpoint_format {quote(form[:80])} is not read, only gptq and gptq_v2"
        )
    require_type(qweight, "I32")
    require_type(qzeros, "I32")
    require_type(scales, "F16", "BF16", "F32")
    outputs, groups = scales.shape[1], scales.shape[0]
    bits = _width(names, qzeros, outputs)
    if qweight.shape[0] * 32 % bits or not groups or not outputs or not qweight.shape[0]:
        raise fault(qweight, f"its {qweight.shape[0]} rows are not made of {bits}-bit integers")
    inputs = qweight.shape[0] * 32 // bits
    require_shape(qzeros, (groups, -(-outputs * bits // 32)))
    group_of = _group_of(names, parts.get("g_idx"), inputs, groups)
    weight = _Gptq(name, parts, bits, FORMATS[form], group_of)
    weight.scheme = form
    return weight


def _width(names: Names, qzeros: Tensor, outputs: int) -> int:
    fits = [bits for bits in _BITS if qzeros.shape[1] == -(-outputs * bits // 32)]
    given = integer(names, "bits", 1, 32)
    if given is not None and given not in fits:
        raise fault(
            qzeros,
            f"shape is {list(qzeros.shape)}, which {given} bits of {outputs} outputs do not give",
            rule="quantised-bits",
        )
    if given is None and len(fits) != 1:
        raise fault(
            qzeros,
            "its width does not tell the number of bits; give bits",
            rule="quantised-ambiguous",
        )
    return fits[0] if given is None else given


def _group_of(names: Names, g_idx: Tensor | None, inputs: int, groups: int) -> Array | None:
    """The group of each input, where it is not its place divided by the size of groups."""
    if g_idx is None:
        size = integer(names, "group_size", -1, 1 << 31)
        if inputs % groups and (size is None or size <= 0 or -(-inputs // size) != groups):
            raise names.fault(f"{groups} groups do not divide {inputs} inputs")
        return None
    require_type(g_idx, "I32", "I64")
    require_shape(g_idx, (inputs,))
    found = read_box(g_idx, Range(0, inputs)).astype(np.int64)
    if int(found.min()) < 0 or int(found.max()) >= groups:
        raise fault(g_idx, f"an index is outside the {groups} groups", rule="quantised-order")
    return found
