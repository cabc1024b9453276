"""How the weights of a model are quantised: schemes, numbers of weights, effective bits a weight."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..derived.quantised.schemes import find_quantised, names_of
from ..errors import SafetensorError
from ..trust.errors import TrustError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..checkpoint import Checkpoint
    from ..derived.quantised.stored import Found, Names
    from .documents import QuantisedRecord

__all__ = ["quantised_records"]


def quantised_records(
    checkpoints: Iterable[Checkpoint],
) -> tuple[list[QuantisedRecord], list[str]]:
    """A record for each scheme, in descending order of bytes, and what keeps weights from being read.

    Reads headers, settings and small parts of weights, such as their shape.

    Raises:
        TrustError: A checkpoint was opened with ``trust=``, and its settings are not what that asks for.
    """
    records: dict[str, QuantisedRecord] = {}
    problems: dict[str, None] = {}
    for checkpoint in checkpoints:
        try:
            names = names_of(checkpoint)
            found = find_quantised(names)
        except TrustError:
            raise
        except (SafetensorError, OSError) as error:
            problems[str(error)] = None
            continue
        for each in found.values():
            _count(records, names, each, problems)
    ordered = sorted(records.values(), key=lambda record: -record["bytes"])
    for record in ordered:
        if record["parameters"]:
            record["bits_per_weight"] = round(8 * record["bytes"] / record["parameters"], 3)
    return ordered, list(problems)[:_PROBLEMS_MAX]


_PROBLEMS_MAX = 20


def _count(
    records: dict[str, QuantisedRecord], names: Names, found: Found, problems: dict[str, None]
) -> None:
    record = records.setdefault(
        found.scheme,
        {
            "scheme": found.scheme, "weights": 0, "parameters": 0, "bytes": 0,
            "bits_per_weight": None,
        },
    )  # fmt: skip
    try:
        weight = found.build()
    except (SafetensorError, OSError) as error:
        if len(problems) < _PROBLEMS_MAX:
            problems[str(error)] = None
        return
    record["weights"] += 1
    record["parameters"] += math.prod(weight.shape)
    record["bytes"] += sum(names.tensors[part].nbytes for part in found.parts)
