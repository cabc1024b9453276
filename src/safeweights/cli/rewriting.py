"""What the commands that write models share: options, their values, and lists of names on a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from ..errors import UnsupportedError
from .app import FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .terminal import Terminal

__all__ = ["SHOWN", "as_usage", "draw_names", "dtype_option", "pairs", "trust_option"]

SHOWN: Final = 20
"""Maximum number of names, or of files, of each kind on a terminal."""

dtype_option: Final = click.option(
    "--dtype", metavar="TYPE", help="Convert values: BF16 (or bfloat16), or F64=F32,C128=C64."
)

trust_option: Final = click.option(
    "--trust",
    metavar="FILE",
    type=FILE,
    help="Read only files that this policy, public key or warrant admits.",
)


@contextmanager
def as_usage(option: str = "") -> Iterator[None]:
    """Make a usage error of what the package says about the value of an option."""
    try:
        yield
    except UnsupportedError as error:
        about = f"{option}: " if option else ""
        raise click.UsageError(f"{about}{error.message}") from error


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """The values of an option that is given as ``KEY=VALUE``, several times.

    Raises:
        click.UsageError: There is no ``=``, or a key is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise click.UsageError(f"{option}: {text!r} lacks a =")
        if key in found:
            raise click.UsageError(f"{option}: {key!r} is given twice")
        found[key] = value
    return found


def draw_names(
    screen: Terminal, title: str, lines: Sequence[str], number: int | None = None
) -> None:
    """The first of some lines, below their title and number; nothing if there are none."""
    number = len(lines) if number is None else number
    if not number:
        return
    screen.text((title, "yellow"), f" ({number:,})")
    for line in lines[:SHOWN]:
        screen.text(line, indent=2)
    if number > SHOWN:
        screen.text((f"  and {number - SHOWN:,} more: see --json", "dim"))
