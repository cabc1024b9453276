"""The report of a batch: a JSON document, and JUnit's XML for the systems that show test results.

Neither has times, hosts or attempts in it: the same units give the same bytes, whatever did them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..storage.places import shown
from ..text import escape, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..reports.documents import BatchDocument, BatchUnitRecord
    from .units import Outcome, Unit

__all__ = ["STATUSES", "BatchReport", "record_of"]

STATUSES: Final = ("ok", "bad", "usage", "unreadable")
"""What the exit statuses 0 to 3 of a unit are called."""


@dataclass(frozen=True)
class BatchReport:
    """What came of a batch.

    Attributes:
        command: What was done.
        units: What came of each unit, in the order of the sources; see docs/schema.
    """

    command: str
    units: tuple[BatchUnitRecord, ...]

    @property
    def ok(self) -> bool:
        """Whether every unit is."""
        return not self.exit_code

    @property
    def exit_code(self) -> int:
        """As that of the command: 1 if a unit is bad, else 2 or 3 if one is that, else 0."""
        return min({unit["exit_code"] for unit in self.units} - {0}, default=0)

    def document(self) -> BatchDocument:
        """What ``batch --json`` prints."""
        counted = Counter(unit["status"] for unit in self.units)
        return {
            "schema": "safeweights.batch/1",
            "ok": self.ok,
            "command": self.command,
            "counts": {status: counted[status] for status in STATUSES},
            "units": list(self.units),
        }

    def junit(self) -> str:
        """JUnit's XML: a test case for each unit, a bad one a failure, an unread one an error."""
        return "".join(_junit(self.command, self.units))


def record_of(unit: Unit, outcome: Outcome) -> BatchUnitRecord:
    """What the report says of a unit."""
    code = outcome.exit_code
    return {
        "source": shown(unit.source),
        "target": None if unit.target is None else shown(unit.target),
        "status": STATUSES[code] if code < len(STATUSES) else "unreadable",
        "exit_code": code,
        "message": _message(outcome),
        "document": outcome.document,
    }


def _junit(command: str, units: Sequence[BatchUnitRecord]) -> Iterator[str]:
    from xml.sax.saxutils import (
        quoteattr,
    )  # which imports http.client: a quarter of a worker's start

    failures = sum(unit["status"] == "bad" for unit in units)
    errors = sum(unit["status"] in {"usage", "unreadable"} for unit in units)
    numbers = f'tests="{len(units)}" failures="{failures}" errors="{errors}"'
    suite = quoteattr(f"safeweights batch {command}")
    yield '<?xml version="1.0" encoding="UTF-8"?>\n'
    yield f"<testsuites {numbers}>\n<testsuite name={suite} {numbers}>\n"
    for unit in units:
        # Names may have characters that XML cannot hold: they are escaped as in Python.
        group, name = quoteattr(f"safeweights.{command}"), quoteattr(escape(unit["source"]))
        case = f"<testcase classname={group} name={name}"
        if unit["status"] == "ok":
            yield f"{case}/>\n"
            continue
        kind = "failure" if unit["status"] == "bad" else "error"
        message = quoteattr(printable(unit["message"] or unit["status"]))
        yield f'{case}><{kind} type="{unit["status"]}" message={message}/></testcase>\n'
    yield "</testsuite>\n</testsuites>\n"


def _message(outcome: Outcome) -> str | None:
    """Why a unit is not ok, in a sentence; None if it is."""
    if not outcome.exit_code:
        return None
    document = outcome.document or {}
    for found in _reasons(document):
        return found
    return outcome.messages[0] if outcome.messages else None


def _reasons(document: dict[str, Any]) -> Iterator[str]:
    """What the documents of commands say against a model, the most important first."""
    if document.get("error"):
        yield document["error"]["message"]
    for result in document.get("results") or ():
        ordered = sorted(result["findings"], key=lambda each: each["level"] != "error")
        yield from (f"{each['rule']}: {each['message']}" for each in ordered)
    for reason in (document.get("decision") or {}).get("reasons") or ():
        if reason["against"]:
            yield reason["text"]
    yield from (each["message"] for each in document.get("failed") or ())
