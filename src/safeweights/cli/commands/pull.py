"""`safeweights pull`: fetch a model into a folder, which gets its name when a policy admits it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...reports.problems import NO, YES
from ...storage.places import shown
from ...text import escape, human_bytes, plural
from ..app import FILE, json_option
from ..decisions import print_decision, record
from ..identities import identity_option
from ..watching import watched_writing

if TYPE_CHECKING:
    from ...reports.documents import PullDocument
    from ...trust import Keyring
    from ..output import Output

__all__ = ["command"]


@click.command("pull")
@click.argument("url", metavar="URL")
@click.argument("folder", metavar="DIR", type=FILE)
@click.option(
    "--policy", metavar="FILE", type=FILE, help="Admit the model under this policy first."
)
@click.option(
    "--name", help="The model's name in the policy's rules [default: DIR below its root]."
)
@click.option(
    "--file", "files", metavar="NAME", multiple=True, help="Fetch only this file of a folder."
)
@click.option("--force", is_flag=True, help="Delete files in DIR that the model does not have.")
@click.option("--explain", is_flag=True, help="Also print the reasons for the model.")
@identity_option
@json_option
@click.pass_obj
def command(
    out: Output,
    url: str,
    folder: str,
    *,
    policy: str | None,
    name: str | None,
    files: tuple[str, ...],
    force: bool,
    explain: bool,
    keyring: Keyring | None,
) -> int:
    """Fetch a model into a folder, if a policy admits it.

    URL is a folder or a file: https://, s3://, gs://, az://, hf://org/repository@revision,
    oci://registry/name:tag, or a path. Files that are already in DIR are not fetched again. An
    interrupted pull continues. If the policy refuses the model, the fetched files are deleted and DIR does
    not change. If DIR has other files, that is an error without --force. The exit status is 0 if DIR has
    the model, and 1 if the policy refuses it.

    With -i, the policy also judges the contents of encrypted files. The files stay encrypted.

    The environment variable SAFEWEIGHTS_CACHE names a folder that stores files by their SHA-256, for other
    pulls. SAFEWEIGHTS_CACHE_SIZE limits its size (50GB).

    Piped, the lines are pulled, DIR, FILES, bytes FETCHED and bytes REUSED, separated by tabs; before it
    what `admit` prints.

    \b
    Examples:
      safeweights pull hf://org/model@main model/ --policy policy.toml
      safeweights pull s3://bucket/model/ model/ --policy policy.toml --json
      safeweights pull oci://registry.example.org/team/model:v1 model/
    """
    from ...transfer import pull

    with watched_writing("pulling") as progress:
        done = pull(
            url, folder, policy=policy, name=name, files=files, identity=keyring, force=force,
            progress=progress,
        )  # fmt: skip
    if (error := done.not_cached) is not None:
        why = error.strerror or type(error).__name__
        out.message(f"files are not kept in SAFEWEIGHTS_CACHE: {why} ({error.filename})")
    decision = None if done.admission is None else record(done.admission.decision)
    document: PullDocument = {
        "schema": "safeweights.pull/1",
        "url": shown(url),
        "folder": folder,
        "admitted": None if decision is None else done.admitted,
        "files": [{"path": name, "bytes": size} for name, size in done.files.items()],
        "fetched": done.fetched,
        "reused": done.reused,
        "decision": decision,
    }
    if out.json:
        out.document(document)
        return YES if done.admitted else NO
    if decision is not None:
        print_decision(out, decision, explain=explain)
    if not done.admitted:
        return NO
    if out.terminal:
        about = f"  {plural(len(done.files), 'file')}, {human_bytes(done.fetched)} fetched"
        if done.reused:
            about += f", {human_bytes(done.reused)} were there"
        out.pretty().text(("pulled", "green"), "  ", (escape(folder), "bold"), about)
        if decision is None:
            out.pretty().text(("not verified: no policy was given", "yellow"), indent=2)
    else:
        out.line(
            "pulled", escape(folder), str(len(done.files)), str(done.fetched), str(done.reused)
        )
    return YES
