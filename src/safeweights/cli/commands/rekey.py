"""`safeweights rekey`: change who may read an encrypted model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...storage.places import continued, exists, shown
from ...text import escape
from ..app import FILE, json_option
from ..identities import keyring_of, new_passphrase

if TYPE_CHECKING:
    from ...reports.documents import RekeyDocument
    from ..output import Output

__all__ = ["command"]

_REMOVED = (
    "with a copy of the old key file, removed recipients can still read the files as they are now; to "
    "exclude them, decrypt the model and encrypt it again"
)


@click.command("rekey")
@click.argument("path", metavar="PATH", type=FILE)
@click.option(
    "-i", "--identity-file", "identities", metavar="FILE", type=FILE, multiple=True,
    help="The identity or SSH key of a recipient.",
)  # fmt: skip
@click.option("-p", "--passphrase", is_flag=True, help="Decrypt the key file with a passphrase.")
@click.option(
    "--passphrase-file", metavar="FILE", type=FILE,
    help="File whose first line is the passphrase; - for standard input.",
)  # fmt: skip
@click.option(
    "--add", metavar="RECIPIENT", multiple=True,
    help="A recipient to add, or a file of recipients.",
)  # fmt: skip
@click.option(
    "--remove", metavar="RECIPIENT", multiple=True,
    help="A recipient to remove, or a file of recipients.",
)  # fmt: skip
@click.option("--rotate", is_flag=True, help="Write new keys even if no recipient changes.")
@click.option("--new-passphrase", is_flag=True, help="Replace all recipients by a passphrase.")
@click.option("--key-file", metavar="NAME", help="The key file, if the folder has several.")
@click.option(
    "--policy", metavar="FILE", type=FILE, help="Only for recipients that this policy allows."
)
@json_option
@click.pass_obj
def command(out: Output, /, path: str, **given: Any) -> None:
    """Change the recipients of an encrypted model.

    Writes only the key file, with new keys. The files of the model do not change. Sign the key file again
    afterwards, if it was signed.

    Removed recipients can still read the files as they are now, if they have a copy of the old key file.
    To exclude them, decrypt the model and encrypt it again.

    Piped, the lines are key and its path; recipient, added or removed and RECIPIENT; separated by tabs.

    \b
    Examples:
      safeweights rekey model.age/ -i me --add age1...
      safeweights rekey model.age/ -i me --remove age1...
      safeweights rekey model.age/ -i me --rotate
    """
    from ...trust import rekey

    identity = keyring_of(given["identities"], given["passphrase"], given["passphrase_file"])
    if identity is None:
        raise click.UsageError("say who opens the key file: -i FILE or -p")
    changes: dict[str, Any] = {
        name: [_recipient(each) for each in given[name]] for name in ("add", "remove")
    }
    if given["new_passphrase"]:
        from ...trust import Passphrase

        if any(changes.values()):
            raise click.UsageError(
                "--new-passphrase replaces all recipients: leave out --add, --remove"
            )
        changes["recipients"] = [Passphrase(new_passphrase(None))]
    elif not (any(changes.values()) or given["rotate"]):
        raise click.UsageError("give --add, --remove, --new-passphrase or --rotate")
    done = rekey(path, identity, key_file=given["key_file"], policy=given["policy"], **changes)
    if out.json:
        document: RekeyDocument = {
            "schema": "safeweights.rekey/1",
            "path": shown(path),
            "key_file": done.path,
            "recipients": list(done.recipients),
            "added": list(done.added),
            "removed": list(done.removed),
        }
        out.document(document)
    else:
        out.line("key", escape(done.path))
        for word, some in (
            ("recipient", done.recipients), ("added", done.added), ("removed", done.removed),
        ):  # fmt: skip
            out.lines((word, escape(each)) for each in some)
    if done.removed:
        out.message(f"note: {_REMOVED}")
    if _is_signed(done.path):
        out.message(
            f"note: the key file has changed; sign it again: safeweights sign {escape(done.path)}"
        )


def _is_signed(path: str) -> bool:
    """Whether the key file has a signature, which is out of date now. The key file itself is written."""
    try:
        return exists(continued(path, ".sig"))
    except OSError:  # a store that does not answer: the note says what to do if there is one
        return True


def _recipient(text: str) -> Any:
    return Path(text) if os.path.isfile(text) else text
