"""Functions that a checkpoint's own library would call while loading it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..checkpoint import Checkpoint

__all__ = ["loading_calls"]

_PICKLES: Final = frozenset(
    {"torch-zip", "torch-legacy", "torch-tar", "pickle", "joblib", "paddle"}
)
"""Formats that are pickles or contain pickles."""

_CALLS_MAX: Final = 1000


def loading_calls(checkpoint: Checkpoint) -> list[str]:
    """At most 1,000 functions that its own library would call, except those that build tensors.

    Cost: pickles are evaluated symbolically once more; safetensors files cost nothing.
    """
    if checkpoint.files:
        return []
    return list(dict.fromkeys(_calls(checkpoint)))[:_CALLS_MAX]


def _calls(checkpoint: Checkpoint) -> Iterator[str]:
    from ..conversion.foreign import ForeignCheckpoint
    from ..conversion.grading import Grade
    from ..conversion.scanning import scan

    if not isinstance(checkpoint, ForeignCheckpoint):
        return
    if not (checkpoint.calls or _PICKLES.intersection(checkpoint.format.split(", "))):
        return  # scanning reads more than opening; formats without code do not need it
    for source in checkpoint.sources:
        found = scan(source)
        yield from (each.target for each in found.findings if each.grade > Grade.DATA)
