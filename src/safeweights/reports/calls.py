"""What loading a checkpoint with its own library would run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..checkpoint import Checkpoint

__all__ = ["loading_calls"]

_PICKLES: Final = frozenset(
    {"torch-zip", "torch-legacy", "torch-tar", "pickle", "joblib", "paddle"}
)
"""Formats that are pickles, or hold some."""

_CALLS_MAX: Final = 1000


def loading_calls(checkpoint: Checkpoint) -> list[str]:
    """The names that loading it with its own library calls, other than to build tensors; 1,000 at most.

    Cost: pickles are executed once more, symbolically; for safetensors, nothing.
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
        return  # scanning reads more than opening did; formats without code are not worth it
    for source in checkpoint.sources:
        found = scan(source)
        yield from (each.target for each in found.findings if each.grade > Grade.DATA)
