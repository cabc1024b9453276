"""`safeweights admit`: one verdict for weights, configuration, templates and code together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...reports.problems import NO, YES
from ...storage.places import shown
from ...text import escape
from ..app import FILE, json_option
from ..decisions import print_decision, record
from ..identities import identity_option
from ..watching import watched_files
from ..writing import check_replaceable, not_stdout

if TYPE_CHECKING:
    from ...reports.documents import AdmitDocument
    from ...trust import Keyring
    from ..output import Output

__all__ = ["command"]


@click.command("admit")
@click.argument("path", metavar="PATH", type=FILE)
@click.option("--policy", metavar="FILE", type=FILE, required=True, help="The policy, in TOML.")
@click.option(
    "--name",
    help="The model's name in the policy's rules [default: its path below the policy's root].",
)
@click.option(
    "--signature", metavar="FILE", type=FILE,
    help="The signature [default: PATH/model.sig or PATH.sig].",
)  # fmt: skip
@click.option(
    "--lock", metavar="FILE", type=FILE, help="The lock file [default: as in the policy]."
)
@click.option("--log", metavar="FILE", type=FILE, help="Append the decision to this audit log.")
@click.option(
    "--warrant", metavar="OUT", type=FILE,
    help="Write a warrant to OUT: the digests of the admitted files, for later loads.",
)  # fmt: skip
@click.option("--explain", is_flag=True, help="Also print the reasons for the model.")
@identity_option
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
    keyring: Keyring | None,
) -> int:
    """Decide by a policy whether a model may be used.

    Every file of a folder is read, to find its digest, its signer, and whether loading it runs code. When a
    model is admitted for the first time, the lock file records it. The exit status is 0 if the model is
    admitted, 1 if it is refused.

    With -i, the contents of encrypted files are examined too. Without -i, encrypted files are refused,
    unless the policy requires encryption in its section [access].

    Piped, the first line is allow, warn or refuse, NAME, LEVEL, RULE and SIGNER. Each reason is a line:
    against or for, CODE, FILE and a sentence. The last lines are warrant or log, with a digest. Fields are
    separated by tabs.

    \b
    A policy that requires a signature by one key for everything:
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
            log=AuditLog(log) if log else None, identity=keyring, progress=progress,
        )  # fmt: skip
    document: AdmitDocument = {
        "schema": "safeweights.admit/1",
        "path": shown(path),
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
