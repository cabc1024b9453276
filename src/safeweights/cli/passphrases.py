"""Passphrases of private keys: typed, or read from a file. Never an option: others see command lines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from ..storage.pipes import STDIN
from .app import FILE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ask", "ask_for", "passphrase_option", "read"]

_MAX: Final = 4096


def passphrase_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option ``--passphrase-file``."""
    option = click.option(
        "--passphrase-file", metavar="FILE", type=FILE,
        help="File whose first line is the key's passphrase; - for standard input.",
    )  # fmt: skip
    return option(command)


def read(path: str, *, what: str = "passphrase", limit: int = _MAX) -> str:
    """The first line of a file or pipe, without its line break.

    Args:
        path: The file; - for standard input.
        what: What the line is, for errors.
        limit: Longest line in bytes.

    Raises:
        click.UsageError: The line is empty, longer than `limit` or not UTF-8. The message does not
            quote it.
        OSError: The file cannot be read.
    """
    if path == STDIN:
        line = sys.stdin.buffer.readline(limit + 1)
    else:
        with open(path, "rb") as file:
            line = file.readline(limit + 1)
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise click.UsageError(f"the {what} is not UTF-8") from None
    if not text or len(line) > limit:
        problem = "too long" if text else "empty: omit the option if there is none"
        raise click.UsageError(f"the {what} is {problem}")
    return text


def ask(*, twice: bool = False) -> str:
    """Ask for the passphrase of a key on the terminal; see `ask_for`."""
    return ask_for("Passphrase of the key", twice=twice)


def ask_for(what: str, *, twice: bool = False) -> str:
    """Ask for a passphrase on the terminal, without echo.

    Args:
        what: Whose it is.
        twice: Ask for it again, to detect a typing error.

    Raises:
        click.UsageError: Standard input is not a terminal.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        needs = "the key needs a passphrase" if what.endswith("key") else f"{what} is needed"
        raise click.UsageError(f"{needs}: give --passphrase-file")
    try:
        typed: str = click.prompt(what, hide_input=True, err=True, confirmation_prompt=twice)
    except click.Abort:  # click's exception for Ctrl-C
        raise KeyboardInterrupt from None
    return typed
