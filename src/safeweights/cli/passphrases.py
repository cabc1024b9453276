"""Passphrases of private keys: typed, or from a file; never on a command line, which others can see."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from ..storage.pipes import STDIN
from .app import FILE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ask", "passphrase_option", "read"]

_MAX: Final = 4096


def passphrase_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--passphrase-file``."""
    option = click.option(
        "--passphrase-file", metavar="FILE", type=FILE,
        help="Where the key's passphrase is the first line; - for standard input.",
    )  # fmt: skip
    return option(command)


def read(path: str) -> str:
    """The first line of a file, of a pipe too, without its line break.

    Raises:
        click.UsageError: It is empty, too long, or no text; nothing of it is in the message.
        OSError: It cannot be read.
    """
    if path == STDIN:
        line = sys.stdin.buffer.readline(_MAX + 1)
    else:
        with open(path, "rb") as file:
            line = file.readline(_MAX + 1)
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise click.UsageError("the passphrase is not UTF-8") from None
    if not text or len(line) > _MAX:
        problem = "too long" if text else "empty: leave the option out for a key without one"
        raise click.UsageError(f"the passphrase is {problem}")
    return text


def ask(*, twice: bool = False) -> str:
    """What somebody types at a terminal, unseen.

    Raises:
        click.UsageError: There is no terminal.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("the key needs a passphrase: give --passphrase-file")
    try:
        typed: str = click.prompt(
            "Passphrase of the key", hide_input=True, err=True, confirmation_prompt=twice
        )
    except click.Abort:  # what click makes of Ctrl-C
        raise KeyboardInterrupt from None
    return typed
