"""Calls that loading a checkpoint with its own library would make, as a warning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..errors import quote
from ..text import escape

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from .output import Output

__all__ = ["calls_of", "say_calls"]

_CALLS_SHOWN: Final = 3


def calls_of(checkpoint: Checkpoint) -> list[str]:
    """What loading it with its own library calls, other than to build tensors."""
    return list(getattr(checkpoint, "calls", ()))


def say_calls(out: Output, path: str, calls: list[str]) -> None:
    """Say on standard error that looking at a checkpoint was safe, and loading it would not be."""
    if calls:
        shown = ", ".join(map(quote, calls[:_CALLS_SHOWN])) + (
            ", ..." if len(calls) > _CALLS_SHOWN else ""
        )
        out.message(
            f"warning: loading this with its own library runs code ({shown}); "
            f"see safeweights check {escape(path)}"
        )
