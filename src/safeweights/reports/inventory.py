"""The contents of a checkpoint: rows of tensors, sums, and groups by the dots in their names."""

from __future__ import annotations

import math
import re
from functools import partial
from itertools import repeat
from operator import attrgetter, sub
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..checkpoint.tensor import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..checkpoint import Checkpoint
    from .documents import TensorRecord, TotalRecord, UnreadableRecord

__all__ = ["Branch", "Row", "branches", "natural", "rows", "total", "unreadable"]

MAX_BRANCH_DEPTH: Final = 64
"""Maximum number of nested groups; a name may have millions of dots."""

_NUMBERS = re.compile(r"([0-9]+)").split


class Row(NamedTuple):
    """One tensor.

    Attributes:
        name: Name of the tensor.
        dtype: Element type; `safeweights.checkpoint.tensor.UNKNOWN` if the file does not have it.
        shape: Elements along each axis.
        parameters: Number of elements; 0 if the shape is unknown.
        nbytes: Bytes of its data.
        file: The safetensors file that has it.
        offset: Position of its first byte in that file.
        unreadable: Why its values cannot be read; None if they can.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    nbytes: int
    file: str | None
    offset: int | None
    unreadable: str | None = None

    def record(self) -> TensorRecord:
        """The row as a JSON record."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "file": self.file,
            "offset": self.offset,
            "unreadable": self.unreadable,
        }


def rows(checkpoint: Checkpoint) -> Iterator[Row]:
    """The tensors of a checkpoint in the order of the data, without reading values."""
    if not checkpoint.files:
        for name, tensor in checkpoint.items():
            dtype, shape = tensor.dtype, tensor.shape
            count = 0 if dtype == UNKNOWN else math.prod(shape)
            yield Row(name, dtype, shape, count, tensor.nbytes, None, None, tensor.unreadable)
        return
    for file in checkpoint.files:
        tensors = file.header.tensors
        if not tensors:
            continue
        # Column by column: 0.3 us a tensor instead of 0.6.
        dtypes, shapes, begins, ends = zip(*tensors.values(), strict=True)
        offsets = map(file.header.data_start.__add__, begins)
        sizes = map(sub, ends, begins)
        parameters = map(math.prod, shapes)
        columns = (
            tensors,
            dtypes,
            shapes,
            parameters,
            sizes,
            repeat(file.name),
            offsets,
            repeat(None),
        )
        # `Row._make` would take twice as long.
        yield from map(partial(tuple.__new__, Row), zip(*columns))  # noqa: B905 - two are endless


def total(found: Iterable[Row]) -> TotalRecord:
    """Sums over tensors."""
    found = [*found]
    parameters, size = (sum(map(attrgetter(each), found)) for each in ("parameters", "nbytes"))
    return {"tensors": len(found), "parameters": parameters, "bytes": size}


def unreadable(found: Iterable[Row]) -> list[UnreadableRecord]:
    """The tensors whose values cannot be read, grouped by reason, in descending order of bytes."""
    groups: dict[str, list[Row]] = {}
    for row in found:
        if row.unreadable is not None:
            groups.setdefault(row.unreadable, []).append(row)
    records: list[UnreadableRecord] = [
        {"reason": reason, "first": some[0].name, **total(some)} for reason, some in groups.items()
    ]
    return sorted(records, key=lambda record: -record["bytes"])


def natural(name: str) -> list[Any]:
    """A sort key by which ``layers.2`` comes before ``layers.10``."""
    parts: list[Any] = _NUMBERS(name)
    for index in range(1, len(parts), 2):
        digits = parts[index].lstrip("0")
        # Compare lengths first: int() of a million digits would take minutes.
        parts[index] = (len(digits), digits)
    return parts


class Branch(NamedTuple):
    """A line of the tree: a group of tensors, or (with `row`) one tensor.

    Attributes:
        path: The common beginning of the group's names, including the final dot; or a tensor's name.
        label: The part of `path` after the enclosing group's.
        lasts: For each enclosing group and for itself, whether it is the last at its level.
        total: Sums over the group.
        row: The tensor, for a leaf.
    """

    path: str
    label: str
    lasts: tuple[bool, ...]
    total: TotalRecord
    row: Row | None


def branches(found: Iterable[Row], depth: int | None = None) -> Iterator[Branch]:
    """The tree of tensors by the dots in their names; every group precedes its members.

    A group with a single member is merged with it.

    Args:
        found: The tensors.
        depth: Maximum number of levels.
    """
    yield from _walk(list(found), 0, (), MAX_BRANCH_DEPTH if depth is None else depth - 1)


def _walk(found: list[Row], start: int, lasts: tuple[bool, ...], depth: int) -> Iterator[Branch]:
    """The branches of tensors whose names have the same first `start` characters."""
    groups: dict[str, list[Row]] = {}
    for row in found:
        name = row.name
        dot = name.find(".", start) if len(lasts) < MAX_BRANCH_DEPTH else -1
        groups.setdefault(name[start : dot + 1] if dot >= 0 else name[start:], []).append(row)
    ordered = sorted(groups, key=natural)
    for key in ordered:
        members, mine = groups[key], (*lasts, key is ordered[-1])
        first = members[0]
        if len(members) == 1:
            yield Branch(first.name, first.name[start:], mine, total(members), first)
            continue
        names = [row.name for row in members]
        shared = commonprefix([min(names), max(names)])  # noqa: RUF071 - character by character
        end = shared.rindex(".") + 1
        yield Branch(shared[:end], shared[start:end], mine, total(members), None)
        if len(lasts) < depth:
            yield from _walk(members, end, mine, depth)
