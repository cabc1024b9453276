"""Print a policy's decision as JSON, as lines or on a terminal. Shared by `verify` and `admit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..text import escape, plural, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..reports.documents import DecisionRecord, ReasonRecord
    from ..trust import Decision
    from .output import Output

__all__ = ["print_decision", "record"]

_SHOWN: Final = 50
"""Maximum number of reasons on a terminal; a folder may have a hundred thousand unsigned files."""

_STYLES: Final = {"allow": "green", "warn": "yellow", "refuse": "bold red"}


def record(decision: Decision) -> DecisionRecord:
    """The decision as a JSON record."""
    return {
        "verdict": decision.verdict,
        "subject": decision.subject,
        "level": decision.level,
        "rule": decision.rule,
        "signer": decision.signer,
        "reasons": [
            {"code": each.code, "text": each.text, "against": each.against, "file": each.file}
            for each in decision.reasons
        ],
        "files": decision.files,
    }


def print_decision(out: Output, decision: DecisionRecord, *, explain: bool) -> None:
    """Print the verdict and the reasons against the model; with `explain` also those for it."""
    reasons = [each for each in decision["reasons"] if explain or each["against"]]
    if out.terminal:
        _draw(out, decision, reasons)
        return
    out.line(
        decision["verdict"],
        escape(decision["subject"]),
        decision["level"],
        escape(decision["rule"] or ""),
        escape(decision["signer"] or ""),
    )
    for each in reasons:
        side = "against" if each["against"] else "for"
        out.line(side, each["code"], escape(each["file"] or ""), printable(each["text"]))


def _draw(out: Output, decision: DecisionRecord, reasons: Sequence[ReasonRecord]) -> None:
    screen = out.pretty()
    verdict = decision["verdict"]
    about = f"  level {decision['level']}"
    if decision["rule"] is not None:
        about += f", rule {escape(decision['rule'])}"
    screen.text((verdict, _STYLES[verdict]), "  ", (escape(decision["subject"]), "bold"), about)
    for each in reasons[:_SHOWN]:
        mark = ("-", "red") if each["against"] else ("+", "green")
        screen.text(mark, (f" {each['code']}  ", "dim"), printable(each["text"]), indent=2)
    if len(reasons) > _SHOWN:
        screen.text((f"  and {plural(len(reasons) - _SHOWN, 'reason')} more: see --json", "dim"))
