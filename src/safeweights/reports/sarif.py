"""The findings of `safeweights check` as a SARIF 2.1.0 log (OASIS), for code scanning services.

Results in, plain data out. Rules have their meaning and cure from `rules`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote as quote_url

from .. import __version__
from ..text import printable
from .rules import rule_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .documents import CheckResult, FindingRecord

__all__ = ["log"]

_SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def log(results: Iterable[CheckResult]) -> dict[str, Any]:
    """The log of one run of the command."""
    results = list(results)
    findings = [finding for result in results for finding in result["findings"]]
    rules = sorted({finding["rule"] for finding in findings})
    places = {rule: index for index, rule in enumerate(rules)}
    driver = {
        "name": "safeweights",
        "version": __version__,
        "rules": [_rule(rule) for rule in rules],
    }
    complete = all(result["status"] != "unreadable" for result in results)
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": complete}],
        "results": [_result(finding, places) for finding in findings],
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(identifier: str) -> dict[str, Any]:
    rule = rule_of(identifier)
    if rule is None:
        return {"id": identifier}
    return {
        "id": identifier,
        "shortDescription": {"text": rule.meaning},
        "help": {"text": f"{rule.meaning} {rule.cure}"},
    }


def _result(finding: FindingRecord, places: dict[str, int]) -> dict[str, Any]:
    # FILE!MEMBER names a member of an archive; the offset is then relative to the member.
    path = _file_of(finding["file"])
    physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(path)}}
    place: dict[str, Any] = {"physicalLocation": physical}
    if path != finding["file"]:
        place["logicalLocations"] = [{"fullyQualifiedName": printable(finding["file"])}]
    elif finding["offset"] is not None:
        physical["region"] = {"byteOffset": finding["offset"], "byteLength": 0}
    properties = {name: finding[name] for name in ("tensor", "offset") if finding[name] is not None}
    return {
        "ruleId": finding["rule"],
        "ruleIndex": places[finding["rule"]],
        "level": finding["level"],
        "message": {"text": printable(finding["message"])},
        "locations": [place],
        **({"properties": properties} if properties else {}),
    }


def _file_of(name: str) -> str:
    """The existing file FILE of FILE!MEMBER; both may contain exclamation marks."""
    path = name
    while "!" in path and not os.path.lexists(path):
        path = path.rpartition("!")[0]
    return path


def _uri(path: str) -> str:
    """A path as a URI reference (RFC 3986); a relative path stays relative to the current folder."""
    text = quote_url(os.fsencode(path.replace(os.sep, "/")))
    return f"file://{text}" if os.path.isabs(path) else text
