"""`safeweights admit`: one verdict for weights, configuration, templates and code together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...reports.problems import NO, YES
from ...text import escape
from ..app import FILE, json_option
from ..decisions import print_decision, record
from ..watching import watched_files
from ..writing import check_replaceable, not_stdout

if TYPE_CHECKING:
    from ...reports.documents import AdmitDocument
    from ..output import Output

__all__ = ["command"]


@click.command("admit")
@click.argument("path", metavar="PATH", type=FILE)
@click.option("--policy", metavar="FILE", type=FILE, required=True, help="The policy, in TOML.")
@click.option("--name", help="What the policy's rules call the model, instead of its path.")
@click.option("--signature", metavar="FILE", type=FILE, help="Not PATH/model.sig or PATH.sig.")
@click.option("--lock", metavar="FILE", type=FILE, help="Not the lock file that the policy names.")
@click.option("--log", metavar="FILE", type=FILE, help="Append the decision to this audit log.")
@click.option(
    "--warrant", metavar="OUT", type=FILE, help="Write what was admitted, for a later load."
)
@click.option("--explain", is_flag=True, help="Also print what speaks for the model.")
@json_option
@click.pass_obj
def command(
    out: Output,
    path: str,
    *,
    policy: str,
    name: str | None,
    signature: str | None,
    lock: str | None,
    log: str | None,
    warrant: str | None,
    explain: bool,
) -> int:
    """Decide by a policy whether a model may be used.

    Every file of a folder is read: its digest, who signed it, and whether it runs code. What is seen
    for the first time and accepted is remembered in the lock file. The exit status is 0 if the model
    is admitted, and 1 if it is refused.

    Piped, the first line is allow, warn or refuse, NAME, LEVEL, RULE and SIGNER; then for each reason
    against or for, CODE, FILE and a sentence; then warrant or log and their digest; separated by tabs.

    \b
    A policy by which the owner of one key must have signed everything:
      [signers.us]
      public_key = "models.pub"
      [[rules]]
      pattern = "*"
      signers = ["us"]

    \b
    Examples:
      safeweights admit model/ --policy policy.toml --explain
      safeweights admit model/ --policy policy.toml --log audit.jsonl
      safeweights admit model/ --policy p.toml --json | jq .decision.verdict
    """
    from ...trust import AuditLog, LockFile, Warrant, admit
    from ...trust.files import check_model, check_writable

    for option, written in (("--warrant", warrant), ("--log", log), ("--lock", lock)):
        not_stdout(option, written)
    check_model(path)
    if warrant is not None:
        check_replaceable(
            warrant, Warrant.from_json, "a warrant", force=False, advice="choose another name"
        )
    if lock is not None:
        check_writable(lock)
    with watched_files("reading", [path]) as progress:
        admission = admit(
            path, policy, name=name, signature=signature, lock=LockFile(lock) if lock else None,
            log=AuditLog(log) if log else None, progress=progress,
        )  # fmt: skip
    document: AdmitDocument = {
        "schema": "safeweights.admit/1",
        "path": path,
        "decision": record(admission.decision),
        "warrant": None,
        "warrant_file": None,
        "log_head": admission.log_head,
    }
    if admission.warrant is not None:
        document["warrant"] = admission.warrant.id
        if warrant is not None:
            from ...storage import write_file

            write_file(warrant, [admission.warrant.to_json().encode() + b"\n"])
            document["warrant_file"] = warrant
    _print(out, document, explain=explain)
    return NO if admission.warrant is None else YES


def _print(out: Output, document: AdmitDocument, *, explain: bool) -> None:
    if out.json:
        out.document(document)
        return
    print_decision(out, document["decision"], explain=explain)
    items = [("warrant", document["warrant"]), ("log", document["log_head"])]
    shown = [(name, value) for name, value in items if value is not None]
    if out.terminal:
        out.pretty().pairs(shown)
    else:
        out.lines(shown)
    if document["warrant_file"] is not None and out.terminal:
        out.pretty().text("  wrote ", (escape(document["warrant_file"]), "bold"))
