"""What a scan found: each thing that loading a file would execute, and what could not be read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..display import Displayed
from ..errors import quote
from .grading import Grade

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ScanFinding", "ScanReport", "Unread"]


@dataclass(frozen=True)
class ScanFinding:
    """One thing that loading the file would execute.

    Attributes:
        path: The file, with ``!member`` for each nesting.
        offset: Byte offset in that member.
        opcode: The pickle opcode, or ``"CODE"`` for code that is no pickle.
        module: Module of the name; None where the pickle computes it.
        name: Attribute; None where the pickle computes it.
        arguments: What it is called with, in a few words; empty where it only builds data.
        grade: How dangerous it is.
        reason: Why.
    """

    path: str
    offset: int
    opcode: str
    module: str | None
    name: str | None
    arguments: str
    grade: Grade
    reason: str = ""

    @property
    def target(self) -> str:
        """The dotted name."""
        return f"{self.module or '?'}.{self.name or '?'}"


@dataclass(frozen=True)
class Unread:
    """Something that could not be read to its end, so nothing can be said of the rest.

    Attributes:
        path: The file, with ``!member`` for each nesting.
        offset: Byte offset in that member, where that is known.
        reason: Why.
        pickled: An unpickler may read past this place, and do what was not seen.
    """

    path: str
    offset: int | None
    reason: str
    pickled: bool = False


@dataclass(repr=False)
class ScanReport(Displayed):
    """What a scan found.

    Attributes:
        path: The file.
        findings: What would be executed, in the order of the file; the first 50,000 of each grade.
        unread: What could not be read to its end.
        pickles: Pickles that were read to their end.
        format: What the file is, where that is known.
    """

    path: str
    findings: list[ScanFinding] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    pickles: int = 0
    format: str | None = None

    def _summary(self) -> str:
        counts = [f"{number:,} x {grade.label}" for grade, number in self.counts().items()]
        if self.unread:
            counts.append(f"{len(self.unread):,} x not read to its end")
        return ", ".join([f"{self.verdict} {quote(self.path, 300)}", *counts])

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
        worst = sorted(self.findings, key=lambda finding: -finding.grade)
        rows = [(each.grade.label, each.target, each.reason) for each in worst]
        rows += [("not read to its end", each.path, each.reason) for each in self.unread]
        return ("grade", "what", "why"), rows

    @property
    def grade(self) -> Grade:
        """The worst grade of all findings."""
        return max((finding.grade for finding in self.findings), default=Grade.DATA)

    @property
    def complete(self) -> bool:
        """Whether everything was read to its end."""
        return not self.unread

    @property
    def clean(self) -> bool:
        """Whether the file was read completely and builds nothing but data."""
        return self.complete and self.grade == Grade.DATA

    @property
    def verdict(self) -> str:
        """One word: ``clean``, ``unknown``, ``dangerous`` or ``incomplete``."""
        if self.grade == Grade.DANGEROUS:
            return "dangerous"
        if not self.complete:
            return "incomplete"
        return "clean" if self.clean else "unknown"

    def counts(self) -> Counter[Grade]:
        """How many findings there are of each grade."""
        return Counter(finding.grade for finding in self.findings)
