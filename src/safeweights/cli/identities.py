"""Who opens encrypted models: the options ``-i``, ``-p`` and ``--passphrase-file`` of commands that read.

Passphrases are typed or come from a file; never from an option, which others see in the list of processes.
"""

from __future__ import annotations

import os
import stat
import sys
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any

import click

from ..text import escape
from .app import FILE
from .passphrases import ask_for, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..trust import Keyring

__all__ = ["identity_option", "keyring_of", "new_passphrase"]


def identity_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; while the command runs, everything that it opens is decrypted.

    A command with an argument ``keyring`` gets the keyring, or None, instead.
    """
    takes_it = "keyring" in signature(command).parameters

    @click.option(
        "-i", "--identity-file", "identities", metavar="FILE", type=FILE, multiple=True,
        help="Decrypt with the identity or SSH key in FILE.",
    )  # fmt: skip
    @click.option(
        "-p", "--passphrase", "with_passphrase", is_flag=True, help="Decrypt with a passphrase."
    )
    @click.option(
        "--passphrase-file", metavar="FILE", type=FILE,
        help="File whose first line is the passphrase; - for standard input.",
    )  # fmt: skip
    @wraps(command)
    def wrapped(
        *args: Any,
        identities: tuple[str, ...],
        with_passphrase: bool,
        passphrase_file: str | None,
        **given: Any,
    ) -> Any:
        keyring = keyring_of(identities, with_passphrase, passphrase_file)
        if takes_it:
            return command(*args, keyring=keyring, **given)
        if keyring is None:
            return command(*args, **given)
        from ..trust.verifier import set_identity

        set_identity(keyring)
        try:
            return command(*args, **given)
        finally:
            set_identity(None)

    return wrapped


def keyring_of(
    paths: tuple[str, ...], with_passphrase: bool, passphrase_file: str | None
) -> Keyring | None:
    """What opens encrypted files, as the options say; None if they say nothing.

    A passphrase is asked for only when a file, or an identity, needs it.
    """
    if not (paths or with_passphrase or passphrase_file):
        return None
    for path in paths:
        _check_path(path)
    from ..trust import Passphrase, as_keyring

    def asking(what: str) -> Callable[[], str]:
        return lambda: read(passphrase_file) if passphrase_file else ask_for(what)

    given: list[Any] = list(paths)
    if with_passphrase or not paths:
        given.append(Passphrase(asking("Passphrase of the model")))
    return as_keyring(given, passphrase=asking("Passphrase of the identity"))


def _check_path(path: str) -> None:
    """Refuse a key in the place of its file, and note that others can read a file of keys.

    Raises:
        click.UsageError: The message does not quote it.
    """
    if path.strip().upper().startswith(("AGE-SECRET-KEY-", "AGE-PLUGIN-")):
        raise click.UsageError(
            "-i takes the name of a file: a key that is an argument is seen in the list of processes, and "
            "kept in the history of the shell; make a new one"
        )
    try:
        status = os.stat(os.path.expanduser(path))
    except OSError:
        return  # reading it says what is wrong
    if os.name == "posix" and stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        click.echo(
            f"note: others can read {escape(path)} (mode {mode:o}); chmod 600 hides it", err=True
        )


def new_passphrase(path: str | None) -> str:
    """A passphrase to encrypt with: from a file, or typed twice on the terminal.

    Raises:
        click.UsageError: It is empty, or there is neither a file nor a terminal.
    """
    if path is not None:
        return read(path)
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("-p asks on a terminal: give --passphrase-file")
    return ask_for("New passphrase", twice=True)
