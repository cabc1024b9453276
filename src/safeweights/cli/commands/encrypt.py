"""`safeweights encrypt`: encrypt a model for selected recipients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...storage.places import shown
from ...text import escape, human_bytes, plural
from ..app import FILE, json_option
from ..identities import new_passphrase
from ..watching import watched_writing
from ..writing import not_stdout

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...reports.documents import EncryptDocument
    from ...trust import Encrypted
    from ..output import Output

__all__ = ["command", "recipient_options", "recipients_of"]


def recipient_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name recipients."""
    options = (
        click.option(
            "-r", "--recipient", "recipients", metavar="RECIPIENT", multiple=True,
            help="Encrypt for age1..., or an SSH public key.",
        ),
        click.option(
            "-R", "--recipients-file", "files", metavar="FILE", type=FILE, multiple=True,
            help="Encrypt for the recipients in FILE, one a line.",
        ),
        click.option("-p", "--passphrase", is_flag=True, help="Encrypt with a passphrase."),
        click.option(
            "--passphrase-file", metavar="FILE", type=FILE,
            help="File whose first line is the passphrase; - for standard input.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def recipients_of(
    recipients: tuple[str, ...],
    files: tuple[str, ...],
    passphrase: bool,
    passphrase_file: str | None,
) -> list[Any]:
    """What the options name, for `safeweights.encrypt`."""
    found: list[Any] = [*recipients, *map(Path, files)]
    if passphrase or passphrase_file:
        from ...trust import Passphrase

        if found:
            raise click.UsageError("a passphrase is the only recipient: leave out -r and -R")
        found.append(Passphrase(new_passphrase(passphrase_file)))
    return found


@click.command("encrypt")
@click.argument("path", metavar="PATH", type=FILE)
@recipient_options
@click.option(
    "-o", "--output", metavar="OUT", type=FILE, help="Where to write [default: PATH.age]."
)
@click.option(
    "--replace", is_flag=True, help="Write into the folder itself and remove the plaintext."
)
@click.option(
    "--only", metavar="GLOB", multiple=True, help="Encrypt only files with matching names."
)
@click.option(
    "--key-file", metavar="NAME", default="model.key.age", show_default=True,
    help="The name of the key file: groups of files can have their own.",
)  # fmt: skip
@click.option("-a", "--armor", is_flag=True, help="Write a single small file as text.")
@click.option(
    "--policy", metavar="FILE", type=FILE, help="Only for recipients that this policy allows."
)
@json_option
@click.pass_obj
def command(
    out: Output,
    /,
    path: str,
    *,
    recipients: tuple[str, ...],
    files: tuple[str, ...],
    passphrase: bool,
    passphrase_file: str | None,
    output: str | None,
    replace: bool,
    only: tuple[str, ...],
    key_file: str,
    armor: bool,
    policy: str | None,
) -> None:
    """Encrypt a model for selected recipients.

    Writes age files, which the program age reads too. In a folder, every file becomes NAME.age, encrypted
    for an identity that is made for this model. model.key.age has that identity, encrypted for the
    recipients. A single file is encrypted for the recipients directly. The plaintext stays, unless
    --replace is given. No file is replaced: all files are written, or none.

    File names and sizes are not hidden. Anyone can encrypt for a recipient, so sign the result: the
    signature tells readers who made it.

    Piped, the lines are output and its path; key and the name of the key file; recipient and RECIPIENT;
    encrypted and NAME for each file; removed and NAME; separated by tabs.

    \b
    Examples:
      safeweights encrypt model/ -r age1... -R team.txt
      safeweights encrypt model/ -R ~/.ssh/id_ed25519.pub -o private/
      safeweights encrypt model.safetensors -p
    """
    from ...trust import encrypt

    not_stdout("-o", output)
    chosen = recipients_of(recipients, files, passphrase, passphrase_file)
    if not chosen:
        raise click.UsageError("say who may read it: -r RECIPIENT, -R FILE or -p")
    with watched_writing("encrypting") as progress:
        done = encrypt(
            path, chosen, output, key_file=key_file, only=only, armor=armor, replace=replace,
            policy=policy, progress=progress,
        )  # fmt: skip
    if out.json:
        document: EncryptDocument = {
            "schema": "safeweights.encrypt/1",
            "path": shown(path),
            "output": done.path,
            "files": list(done.files),
            "bytes": done.size,
            "key_file": done.key_file,
            "recipients": list(done.recipients),
            "removed": list(done.removed),
        }
        out.document(document)
    elif out.terminal:
        _draw(out, shown(path), done)
    else:
        out.line("output", escape(done.path))
        out.lines([("key", escape(done.key_file))] if done.key_file else [])
        out.lines(("recipient", escape(each)) for each in done.recipients)
        out.lines(("encrypted", escape(each)) for each in done.files)
        out.lines(("removed", escape(each)) for each in done.removed)


def _draw(out: Output, path: str, done: Encrypted) -> None:
    screen = out.pretty()
    about = f"  {plural(len(done.files), 'file')}, {human_bytes(done.size)}"
    screen.text(("encrypted", "green"), "  ", (escape(path), "bold"), about)
    screen.text(("wrote", "green"), "  ", (escape(done.path), "bold"))
    for each in done.recipients:
        screen.text(("for", "green"), "  ", escape(each[:80]), indent=2)
    if done.removed:
        screen.text(("removed", "yellow"), f"  {plural(len(done.removed), 'file')} of plaintext")
    else:
        screen.text(("the plaintext is still there", "dim"))
