"""What an engine is: workers that are given groups of units, and say what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from .units import Assignment

__all__ = ["Answer", "Engine", "Lost"]


class Answer(NamedTuple):
    """What came of units of a group, one after another.

    Attributes:
        ticket: Which group.
        place: Which unit of the group is the first of them.
        records: What `units.perform` returned for each.
    """

    ticket: int
    place: int
    records: Sequence[dict[str, Any]]


class Lost(NamedTuple):
    """A group whose worker ended; units without an answer were not done, or not known to be.

    Attributes:
        ticket: Which group.
        why: What is known of the reason, as a sentence.
    """

    ticket: int
    why: str


class Engine(Protocol):
    """Workers, wherever they are.

    Attributes:
        slots: How many groups they are given at a time; more than workers, so that none waits for its next.
    """

    slots: int

    def submit(self, ticket: int, group: Sequence[Assignment]) -> None:
        """Give a group to a worker; there are at most `slots` without an end."""

    def next(self) -> Answer | Lost:
        """Wait for something to happen. A worker that ends is always noticed."""

    def close(self) -> None:
        """End the workers, which have nothing to do."""

    def abort(self) -> None:
        """Make the workers undo what they have begun, and end them."""
