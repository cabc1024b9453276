"""The document of `check`."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from .common import TotalRecord

__all__ = [
    "CheckDocument",
    "CheckResult",
    "FindingRecord",
    "Level",
    "Status",
]

Level = Literal["error", "warning", "note"]
Status = Literal["ok", "bad", "unreadable"]


class FindingRecord(TypedDict):
    """A finding of `safeweights check`."""

    level: Annotated[Level, "An error breaks the format; a warning fails with `--strict`."]
    rule: Annotated[str, "Stable identifier of the rule."]
    message: Annotated[str, "A sentence for people."]
    file: Annotated[str, "The file."]
    tensor: Annotated[str | None, "The tensor's name."]
    offset: Annotated[int | None, "Byte offset in the file."]


class CheckResult(TypedDict):
    """The findings of `safeweights check` at one path."""

    path: str
    status: Annotated[Status, "`unreadable`: it could not be read, so it is neither ok nor bad."]
    formats: Annotated[list[str], "Formats of the files found there, e.g. `safetensors`."]
    total: Annotated[TotalRecord | None, "Sums over the safetensors files; null if none is valid."]
    findings: list[FindingRecord]
    truncated: Annotated[bool, "More findings exist than are listed."]


class CheckDocument(TypedDict):
    """`safeweights check`: every problem."""

    schema: Literal["safeweights.check/1"]
    ok: Annotated[bool, "Every path has the status `ok`."]
    strict: bool
    results: list[CheckResult]
    notes: Annotated[list[str], "Advice for all valid files."]


DOCUMENTS = (CheckDocument,)
