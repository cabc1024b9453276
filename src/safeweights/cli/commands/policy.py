"""`safeweights policy`: write a policy, check one, and see which rule applies to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...reports.problems import NO, YES
from ...text import escape, plural, printable
from ..app import FILE, json_option
from ..writing import not_stdout

if TYPE_CHECKING:
    from ...reports.documents import (
        PolicyCheckDocument,
        PolicyExplainDocument,
        PolicyNewDocument,
        RuleRecord,
    )
    from ...trust.policies.explaining import Explanation
    from ...trust.policies.policy import Policy
    from ..output import Output

__all__ = ["command"]

_KINDS = ("lab", "gate", "mirror", "first-use", "air-gap")
_SHOWN = 20
"""Maximum number of files on a terminal."""


@click.group("policy", no_args_is_help=True)
def command() -> None:
    """Write, check and explain policies.

    A policy is a TOML file that says what must be true of a model before it is used: who must have
    signed it, which digests it must have, which files may be in it. docs/policy.md describes every
    field.

    \b
    Examples:
      safeweights policy new --kind lab
      safeweights policy check policy.toml
      safeweights policy explain models/org/m --policy policy.toml
    """


@command.command("new")
@click.argument("path", metavar="[PATH]", type=FILE, default="policy.toml")
@click.option(
    "--kind", type=click.Choice(_KINDS), default="lab", show_default=True,
    help="The policy to start from.",
)  # fmt: skip
@json_option
@click.pass_obj
def new(out: Output, path: str, kind: str) -> None:
    """Write an annotated policy to start from.

    The kinds are: lab (one key for a team), gate (releases only, with an allow list), mirror (a vendor's
    certificate, signatures kept elsewhere), first-use (record the first version of a model) and air-gap
    (pinned digests). An existing file is never replaced.

    \b
    Examples:
      safeweights policy new
      safeweights policy new models/policy.toml --kind gate
    """
    from ...trust.files import create_document
    from ...trust.policies.starters import STARTERS

    not_stdout("PATH", path)
    create_document(path, STARTERS[kind].encode())
    document: PolicyNewDocument = {"schema": "safeweights.policy-new/1", "path": path, "kind": kind}
    if out.json:
        out.document(document)
    elif out.terminal:
        out.pretty().text("wrote ", (escape(path), "bold"), f", kind {kind}")
    else:
        out.line("wrote", escape(path), kind)


@command.command("check")
@click.argument("path", metavar="POLICY", type=FILE)
@json_option
@click.pass_obj
def check(out: Output, path: str) -> int:
    """Check a policy, with the keys and certificates it names.

    The exit status is 1 if the policy is malformed, if a setting is unknown or a pattern can never match.
    A rule that never applies, because an earlier one matches all its models, is reported.

    Piped, the first line is ok, POLICY, MODE and ROOT; a line for each rule follows: rule, NUMBER,
    PATTERN, LEVEL and SIGNERS; then unreachable and NUMBER. Fields are separated by tabs.

    \b
    Examples:
      safeweights policy check policy.toml
      safeweights policy check policy.toml --json
    """
    from ...trust import load_policy
    from ...trust.errors import refusing
    from ...trust.policies.explaining import unreachable

    with refusing(path):
        policy = load_policy(path)
    never = unreachable(policy)
    document: PolicyCheckDocument = {
        "schema": "safeweights.policy-check/1",
        "path": path,
        "mode": policy.mode,
        "root": policy.base or "",
        "rules": _rules(policy),
        "unreachable": never,
    }
    if out.json:
        out.document(document)
        return YES
    if not out.terminal:
        out.line("ok", escape(path), policy.mode, escape(document["root"]))
        out.lines(
            ("rule", str(rule["number"]), escape(rule["pattern"]), rule["level"],
             escape(",".join(rule["signers"])))
            for rule in document["rules"]
        )  # fmt: skip
        out.lines(("unreachable", str(number)) for number in never)
        return YES
    screen = out.pretty()
    about = f"  {plural(len(policy.rules), 'rule')}, mode {policy.mode}"
    screen.text(("ok", "green"), "  ", (escape(path), "bold"), about)
    screen.pairs([("root", escape(document["root"]))])
    for rule in document["rules"]:
        screen.text(*_described(rule), indent=2)
    for number in never:
        text = f"rule {number} never applies: an earlier rule matches all its models"
        screen.text(("unreachable  ", "yellow"), text, indent=2)
    return YES


@command.command("explain")
@click.argument("path", metavar="PATH", type=FILE)
@click.option("--policy", metavar="FILE", type=FILE, required=True, help="The policy, in TOML.")
@click.option(
    "--name",
    help="The model's name in the policy's rules [default: its path below the policy's root].",
)
@json_option
@click.pass_obj
def explain(out: Output, path: str, policy: str, name: str | None) -> int:
    """Show which rule applies to a model, and why.

    Prints the name that rules are compared with, the rules in order and what they match, the signature
    that is used, and the entry in the lock file. No file is hashed and no signature is checked; admit does
    that. The exit status is 1 if no rule applies.

    Piped, the lines are path, subject, root and signature, with a value; rule, NUMBER, PATTERN and what
    it matches, with applies on the one that decides; and remembered, LEVEL, SIGNER and RELEASE. Fields
    are separated by tabs.

    \b
    Examples:
      safeweights policy explain models/org/m --policy policy.toml
      safeweights policy explain x --name org/m --policy policy.toml
    """
    from ...trust import load_policy
    from ...trust.files import check_model
    from ...trust.policies import explaining

    check_model(path)
    loaded = load_policy(policy)
    found = explaining.explain(path, loaded, name=name)
    if out.json:
        out.document(_explained(found, loaded))
    else:
        _print(out, found)
    return NO if found.rule is None else YES


def _rules(policy: Policy) -> list[RuleRecord]:
    return [
        {
            "number": number,
            "pattern": rule.pattern,
            "level": rule.level,
            "signers": list(rule.signers),
            "first_use": rule.first_use,
        }
        for number, rule in enumerate(policy.rules, 1)
    ]


def _described(rule: RuleRecord) -> tuple[str | tuple[str, str], ...]:
    signers = f" by {escape(', '.join(rule['signers']))}" if rule["signers"] else ""
    first = ", first use" if rule["first_use"] else ""
    about = f"  level {rule['level']}{signers}{first}"
    return (f"{rule['number']}  ", "dim"), (escape(rule["pattern"]), "bold"), about


def _explained(found: Explanation, policy: Policy) -> PolicyExplainDocument:
    entry = found.remembered
    return {
        "schema": "safeweights.policy-explain/1",
        "path": found.path,
        "subject": found.subject,
        "root": found.root,
        "problem": found.problem,
        "rules": _rules(policy),
        "matches": [each.matched for each in found.matches],
        "applies": found.rule.number if found.rule else None,
        "signature": found.signature,
        "has_signature": found.has_signature,
        "other_rules": list(found.others),
        "remembered": {
            "level": entry.level, "signer": entry.signer, "release": entry.release,
            "files": entry.files,
        } if entry else None,
    }  # fmt: skip


def _print(out: Output, found: Explanation) -> None:
    there = "" if found.has_signature else "missing"
    items = [
        ("path", escape(found.path)),
        ("subject", escape(found.subject)),
        ("root", escape(found.root or "")),
        ("signature", escape(found.signature)),
    ]
    entry = found.remembered
    known = [entry.level, entry.signer or "", str(entry.release or "")] if entry else []
    if not out.terminal:
        out.lines(items[:3])
        out.line("signature", items[3][1], there)
        for match in found.matches:
            fields = [str(match.number), escape(match.rule.pattern), escape(match.matched or "")]
            out.line("rule", *fields, "applies" if match.applies else "")
        if found.problem:
            out.line("problem", printable(found.problem))
        if entry:
            out.line("remembered", *map(escape, known))
        out.lines(("other-rule", escape(name)) for name in found.others)
        return
    screen = out.pretty()
    screen.pairs([*items[:3], ("signature", f"{items[3][1]} {there and '(missing)'}")], indent=0)
    for match in found.matches:
        mark = ("applies  ", "green") if match.applies else ("         ", "dim")
        how = f"  matches {escape(match.matched)}" if match.matched else "  does not match"
        screen.text(mark, f"{match.number}  ", (escape(match.rule.pattern), "bold"), how)
    if found.problem:
        screen.text(("no rule  ", "red"), printable(found.problem))
    elif found.rule is None:
        screen.text(("no rule  ", "red"), "no pattern matches; the model is refused")
    if entry:
        screen.text(("remembered  ", "cyan"), escape("  ".join(filter(None, known))))
    for name in found.others[:_SHOWN]:
        screen.text(("other rule  ", "yellow"), escape(name))
