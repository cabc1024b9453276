"""Load plans that travel quickly between ranks.

torch pickles the plan of each rank for the coordinator, and then once more for the rank: eight objects for
each tensor. 72 tensors take 0.5 ms to pickle and 0.3 ms to unpickle, one rank after another, and twice as
long when the caches are cold; as tuples 0.15 ms and 0.04. Most planners do not look at the items of other
ranks. So items travel as tuples, and are made again when a planner or reader asks for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CompactPlan", "compact"]


def compact(plan: LoadPlan) -> LoadPlan:
    """The same plan, one that travels quickly; a plan of a planner's own class stays as it is."""
    if type(plan) is not LoadPlan:
        return plan
    return CompactPlan(plan.items, plan.storage_data, plan.planner_data)


class CompactPlan(LoadPlan):
    """A load plan that is pickled with its items as tuples, and otherwise like any other.

    >>> import pickle
    >>> plan = compact(LoadPlan([]))
    >>> pickle.loads(pickle.dumps(plan)) == plan
    True
    """

    _items: list[ReadItem]
    _rows: list[Any] | None
    _sent: tuple[list[Any], list[ReadItem]] | None

    # No dataclass of its own: `dataclasses.replace` calls this with the fields of the one above.
    def __init__(
        self, items: list[ReadItem], storage_data: Any = None, planner_data: Any = None
    ) -> None:
        super().__init__(items, storage_data, planner_data)

    @property
    def items(self) -> list[ReadItem]:
        """The items; those that came from another rank are made now, if they were not asked for before."""
        if self._rows is not None:
            # The caller may change the list, so that the tuples are of no use any more.
            self._items, self._rows = _items(self._rows), None
        return self._items

    @items.setter
    def items(self, items: list[ReadItem]) -> None:
        self._items, self._rows, self._sent = items, None, None

    def take_items(self, sent: CompactPlan) -> None:
        """Use the items of a plan that this rank sent, if they came back as they were: none is made."""
        if self._rows is not None and sent._sent is not None and sent._sent[0] == self._rows:
            self.items = [*sent._sent[1]]

    def __reduce__(self) -> tuple[Any, ...]:
        rows = self._rows
        if rows is None:
            rows = _rows(self._items)
            self._sent = rows, [*self._items]
        return _received, (rows, self.storage_data, self.planner_data)


def _received(rows: list[Any], storage_data: Any, planner_data: Any) -> CompactPlan:
    plan = CompactPlan([], storage_data, planner_data)
    plan._rows = rows  # noqa: SLF001 - this is how it is made
    return plan


def _rows(items: Iterable[ReadItem]) -> list[Any]:
    """Items as tuples; one with anything else in it than torch's own planner makes stays as it is."""
    return [_row(item) if _is_usual(item) else item for item in items]


def _is_usual(item: ReadItem) -> bool:
    return type(item) is ReadItem and (
        type(item.dest_index) is type(item.storage_index) is MetadataIndex
        and type(item.dest_offsets) is type(item.storage_offsets) is torch.Size
        and type(item.lengths) is torch.Size
    )


def _row(item: ReadItem) -> tuple[Any, ...]:
    return (
        item.type.value,
        _index(item.dest_index), tuple(item.dest_offsets),
        _index(item.storage_index), tuple(item.storage_offsets),
        tuple(item.lengths),
    )  # fmt: skip


def _index(index: MetadataIndex) -> tuple[Any, ...]:
    return index.fqn, None if index.offset is None else tuple(index.offset), index.index


def _items(rows: Iterable[Any]) -> list[ReadItem]:
    return [_item(row) if type(row) is tuple else row for row in rows]


def _item(row: tuple[Any, ...]) -> ReadItem:
    kind, target, target_offsets, stored, stored_offsets, lengths = row
    return ReadItem(
        LoadItemType(kind),
        MetadataIndex(*target), torch.Size(target_offsets),
        MetadataIndex(*stored), torch.Size(stored_offsets), torch.Size(lengths),
    )  # fmt: skip
