"""Report on files of other formats: calls that loading makes, tensors whose values cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..errors import quote
from ..text import escape, plural, printable

if TYPE_CHECKING:
    from ..reports.documents import UnreadableRecord
    from .output import Output

__all__ = ["draw_unreadable", "say_calls"]

_CALLS_SHOWN: Final = 3
_REASONS_SHOWN: Final = 5


def say_calls(out: Output, path: str, calls: list[str]) -> None:
    """Warn on standard error that loading the checkpoint with its own library would run code."""
    if calls:
        shown = ", ".join(map(quote, calls[:_CALLS_SHOWN])) + (
            ", ..." if len(calls) > _CALLS_SHOWN else ""
        )
        out.message(
            f"warning: loading this file with its own library runs code ({shown}); "
            f"run safeweights check {escape(path)}"
        )


def draw_unreadable(out: Output, found: list[UnreadableRecord]) -> None:
    """Print on a terminal which of the listed tensors have values that cannot be read, and why."""
    for some in found[:_REASONS_SHOWN]:
        what = f"{escape(some['first'])}" + (
            f" and {plural(some['tensors'] - 1, 'tensor')} more" if some["tensors"] > 1 else ""
        )
        out.pretty().text(
            ("values cannot be read", "yellow"), f"  {what}: {printable(some['reason'])}"
        )
    if len(found) > _REASONS_SHOWN:
        out.pretty().text((f"  and {len(found) - _REASONS_SHOWN} more reasons: see --json", "dim"))
