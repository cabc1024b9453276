"""Scan reports as text, JSON and SARIF 2.1.0. Pure functions from reports to data.

Names come from the files and are escaped before they reach a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final
from urllib.parse import quote as url_quote

from safeweights.convert.grading import Grade
from safeweights.convert.scanning import Finding, Report  # noqa: TC001 - get_type_hints must work
from safeweights.errors import quote

__all__ = ["to_json", "to_sarif", "to_text"]

SARIF_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
_RULES: Final = {
    "dangerous-call": ("Loading the file would run code that is known to be dangerous.", "error"),
    "unknown-call": (
        "Loading the file would run code that is not known to be harmless.",
        "warning",
    ),
    "unread": ("A part of the file could not be read to its end.", "warning"),
}


def to_text(report: Report, *, verbose: bool = False) -> str:
    """The report for a terminal; calls that only build tensors are counted unless `verbose`."""
    kind = f" ({report.format})" if report.format else ""
    lines = [f"{quote(report.path, 400)}{kind}: {report.verdict}"]
    counts = report.counts()
    lines.append(
        f"  {report.pickles} pickle{'s' if report.pickles != 1 else ''}; "
        + ", ".join(f"{counts[grade]} {grade.label}" for grade in Grade)
    )
    shown = [each for each in report.findings if each.grade > Grade.TENSORS or verbose]
    lines += [f"  {_finding_line(finding, report.path)}" for finding in shown]
    for unread in report.unread:
        where = "" if unread.offset is None else f" at byte {unread.offset}"
        member = _member(unread.path, report.path)
        lines.append(f"  not read to the end{member}{where}: {_escaped(unread.reason)}")
    return "\n".join(lines)


def _finding_line(finding: Finding, path: str) -> str:
    arguments = f" {_escaped(finding.arguments)}" if finding.arguments else ""
    reason = f" - {finding.reason}" if finding.reason else ""
    return (
        f"{finding.grade.label}: {finding.opcode} {quote(finding.target)}{arguments} "
        f"at byte {finding.offset}{_member(finding.path, path)}{_escaped(reason)}"
    )


def _member(path: str, base: str) -> str:
    inner = path.removeprefix(base).removeprefix("!")
    return f" of {quote(inner)}" if inner else ""


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain data for `json.dumps`."""
    findings = [
        {**asdict(finding), "grade": finding.grade.name.lower()} for finding in report.findings
    ]
    return {
        "path": report.path,
        "format": report.format,
        "verdict": report.verdict,
        "complete": report.complete,
        "pickles": report.pickles,
        "findings": findings,
        "unread": [asdict(unread) for unread in report.unread],
    }


def to_sarif(reports: Iterable[Report], version: str) -> dict[str, Any]:
    """The reports as one SARIF 2.1.0 log; calls that only build tensors are left out."""
    results = [result for report in reports for result in _results(report)]
    rules = [
        {"id": rule, "shortDescription": {"text": text}, "defaultConfiguration": {"level": level}}
        for rule, (text, level) in _RULES.items()
    ]
    driver = {"name": "safeweights", "version": version, "rules": rules}
    run = {"tool": {"driver": driver}, "results": results, "columnKind": "utf16CodeUnits"}
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}


def _results(report: Report) -> list[dict[str, Any]]:
    results = []
    for finding in report.findings:
        if finding.grade > Grade.TENSORS:
            rule = "dangerous-call" if finding.grade == Grade.DANGEROUS else "unknown-call"
            text = _finding_line(finding, report.path)
            results.append(_result(rule, text, report.path, finding.offset, finding.path))
    for unread in report.unread:
        text = f"not read to the end: {_escaped(unread.reason)}"
        results.append(_result("unread", text, report.path, unread.offset, unread.path))
    return results


def _result(rule: str, text: str, path: str, offset: int | None, inner: str) -> dict[str, Any]:
    physical: dict[str, Any] = {"artifactLocation": {"uri": url_quote(path.replace("\\", "/"))}}
    if offset is not None and inner == path:
        physical["region"] = {"byteOffset": offset, "byteLength": 1}
    location: dict[str, Any] = {"physicalLocation": physical}
    if inner != path:
        location["logicalLocations"] = [{"fullyQualifiedName": _escaped(inner)}]
    return {
        "ruleId": rule,
        "level": _RULES[rule][1],
        "message": {"text": text},
        "locations": [location],
    }
