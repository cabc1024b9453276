"""Which bytes of which file each rank writes: the coordinator decides, from the plans of all ranks.

Rules:
- Names are filled into shards in the order of the coordinator's state dict (`checkpoint.layout`).
- Every element of every tensor is written by exactly one rank. That is proved here, before a file exists.
- A tensor has one element type, and its shape is the same in every plan.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.distributed.checkpoint.planner import WriteItemType

from ....checkpoint.layout import PlannedTensor
from ....derived.boxes import Box, first_gap, first_overlap
from ....errors import DTypeError, FormatError, quote
from ....format.dtypes import DTYPES
from ....format.rules import byte_count
from ..adapter import CODES, logical_shape

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from torch.distributed.checkpoint.planner import SavePlan

    from ....checkpoint import Tensor

__all__ = ["Share", "planned"]


class Share(NamedTuple):
    """Where one rank's tensors are; what the coordinator tells it.

    Attributes:
        files: What `Store.fill` takes.
        places: Tensor -> number of the file, and the offset there at which the tensor begins.
        aliases: Tensor that is not written -> the one that has its values.
    """

    files: list[str]
    places: dict[str, list[int]]
    aliases: dict[str, str]


def planned(plans: Sequence[SavePlan], order: Iterable[str]) -> dict[str, Tensor]:
    """All tensors that some ranks are going to write together.

    Args:
        plans: What each rank writes.
        order: Names of tensors that come first, in this order.

    Raises:
        DTypeError: A tensor has a type that the format lacks.
        FormatError: Parts of a tensor are missing, overlap, or differ in type or shape.
    """
    # Models have the same few shapes, divided in the same way, many times. So each part is looked up by
    # what it is like once, and what is proved of some parts holds for all that are like them.
    no_tensor = WriteItemType.BYTE_IO
    numbers: dict[_Part, int] = {}
    found: dict[str, list[int]] = {name: [] for name in order}
    for plan in plans:
        for item in plan.items:
            if item.type is not no_tensor:
                data: Any = item.tensor_data
                chunk = data.chunk
                part = data.properties.dtype, data.size, chunk.offsets, chunk.sizes
                found.setdefault(item.index.fqn, []).append(numbers.setdefault(part, len(numbers)))
    parts = list(numbers)
    kinds: dict[tuple[int, ...], _Kind] = {}
    tensors: dict[str, Tensor] = {}
    for name, written in found.items():
        key = tuple(written)
        if (kind := kinds.get(key)) is None:
            if not written:
                continue
            kind = kinds[key] = _kind(name, [parts[number] for number in written])
        tensors[name] = PlannedTensor(name, *kind)
    return tensors


_Part = tuple[Any, Any, Any, Any]
"""Type and shape of a tensor, and offsets and lengths of a part of it, as torch describes them."""

_Kind = tuple[str, tuple[int, ...], int]
"""Code of the element type, shape, size in bytes."""


def _kind(name: str, parts: Sequence[_Part]) -> _Kind:
    dtype, size, *_ = parts[0]
    for other_dtype, other_size, *_ in parts[1:]:
        if other_size != size or other_dtype != dtype:
            raise FormatError(
                f"tensor {quote(name)} is {dtype} of shape {list(size)} on one rank, and "
                f"{other_dtype} of shape {list(other_size)} on another",
                rule="ranks", tensor=name,
            )  # fmt: skip
    code = CODES.get(dtype)
    if code is None:
        raise DTypeError(
            f"{dtype} of tensor {quote(name)} is no type of the format: convert it first",
            tensor=name,
        )
    _require_cover(name, tuple(size), [part[2:] for part in parts])
    shape = tuple(size) if DTYPES[code].packed == 1 else logical_shape(code, size)
    nbytes = byte_count(code, shape)
    return code, shape, -1 if nbytes is None else nbytes


def _require_cover(name: str, size: tuple[int, ...], parts: Collection[Any]) -> None:
    boxes = [Box(*part) for part in parts]
    for box in boxes:
        inside = len(box.offsets) == len(box.lengths) == len(size)
        if not inside or any(end > most for end, most in zip(box.ends, size, strict=True)):
            raise FormatError(
                f"a part of tensor {quote(name)}, of shape {list(size)}, is outside of it: {tuple(box)}",
                rule="ranks", tensor=name,
            )  # fmt: skip
    if len(boxes) > 1 and (pair := first_overlap(boxes)) is not None:
        first, second = (tuple(boxes[place]) for place in pair)
        raise FormatError(
            f"two ranks write the same elements of tensor {quote(name)}: offsets and lengths {first} and "
            f"{second}",
            rule="ranks", tensor=name,
        )  # fmt: skip
    if sum(box.volume for box in boxes) != math.prod(size):
        gap = first_gap(size, boxes)
        raise FormatError(
            f"no rank writes element {list(gap or ())} of tensor {quote(name)}, of shape {list(size)}",
            rule="ranks", tensor=name,
        )  # fmt: skip
