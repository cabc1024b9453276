"""Statistics of all tensors of a checkpoint, or of two checkpoints side by side.

Records come one by one, in the order of the tensors, while later tensors are still being read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..format.indexing import select
from .statistics import statistics_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ..checkpoint import Tensor
    from .documents import (
        ComparedStatisticsRecord,
        StatisticsChangeRecord,
        StatisticsRecord,
        TensorStatisticsRecord,
    )

__all__ = ["compare", "is_finite", "survey"]


def survey(
    tensors: Mapping[str, Tensor], progress: Callable[[int], object] | None = None
) -> Iterator[TensorStatisticsRecord]:
    """The statistics of each tensor.

    Cost: see `statistics_of`. A tensor whose values cannot be read has a record that says why.

    Args:
        tensors: Name -> tensor, such as a `safeweights.Checkpoint`.
        progress: Called with the number of values that are done.

    Raises:
        UnsupportedError: NumPy cannot represent a type (F6).
        OSError: Reading failed.
    """
    return _records(list(tensors.items()), progress)


def compare(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    progress: Callable[[int], object] | None = None,
) -> Iterator[ComparedStatisticsRecord]:
    """The statistics of each tensor in two checkpoints, and how they changed.

    Tensors of the same name are compared, whatever their types and shapes. Those that only `after` has
    come last.

    Args:
        before: Name -> tensor.
        after: Name -> tensor.
        progress: Called with the number of values of both that are done.

    Raises:
        UnsupportedError, OSError: See `survey`.
    """
    names = [*before, *(name for name in after if name not in before)]
    sides = [
        (name, side[name]) for name in names for side in (before, after) if name in side
    ]  # the order in which `_records` gives them
    records = _records(sides, progress)
    for name in names:
        old = next(records) if name in before else None
        new = next(records) if name in after else None
        yield {"name": name, "before": old, "after": new, "change": _change(old, new)}


def is_finite(record: TensorStatisticsRecord | None) -> bool:
    """Whether no value of a tensor was NaN or infinite, as far as values were read."""
    found = record and record["statistics"]
    return not found or not (found["nan"] or found["inf"])


def _records(
    tensors: Iterable[tuple[str, Tensor]], progress: Callable[[int], object] | None
) -> Iterator[TensorStatisticsRecord]:
    tensors = list(tensors)
    readable = (tensor for _, tensor in tensors if tensor.unreadable is None)
    computed = statistics_of(((each, select(..., each.shape)) for each in readable), progress)
    for name, tensor in tensors:
        yield {
            "name": name,
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "statistics": next(computed) if tensor.unreadable is None else None,
            "unreadable": tensor.unreadable,
        }


def _change(
    before: TensorStatisticsRecord | None, after: TensorStatisticsRecord | None
) -> StatisticsChangeRecord | None:
    old = before and before["statistics"]
    new = after and after["statistics"]
    if old is None or new is None:
        return None
    return {
        "min": _minus(new["min"], old["min"]),
        "max": _minus(new["max"], old["max"]),
        "mean": _minus(new["mean"], old["mean"]),
        "std": _minus(new["std"], old["std"]),
        "zeros": new["zeros"] - old["zeros"],
        "nan": new["nan"] - old["nan"],
        "inf": new["inf"] - old["inf"],
        "dead_rows": _minus(new["dead_rows"], old["dead_rows"]),
        "quantiles": _quantiles(old, new),
    }


def _minus(new: Any, old: Any) -> Any:
    """The difference of two numbers; None if there is none that JSON can hold."""
    if isinstance(new, int | float) and isinstance(old, int | float):
        difference = new - old
        return difference if math.isfinite(difference) else None
    return None


def _quantiles(old: StatisticsRecord, new: StatisticsRecord) -> dict[str, float]:
    if old["distribution"] is None or new["distribution"] is None:
        return {}
    before, after = old["distribution"]["quantiles"], new["distribution"]["quantiles"]
    changes = ((share, _minus(after[share], value)) for share, value in before.items())
    return {share: change for share, change in changes if change is not None}
