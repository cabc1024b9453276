"""Exceptions -> message and exit status.

Exit status: 0 yes, 1 no (the content is invalid or not as expected), 2 wrong usage, 3 input could not be
read (missing file, no permission, missing package). As in shells, 130 after Ctrl-C, and 141 if the process
that read standard output ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from ..reports.problems import USAGE, error_record, explain

if TYPE_CHECKING:
    from ..reports.documents import ErrorDocument
    from .output import Output

__all__ = ["report"]

_NO_ARGUMENTS: Final[Any] = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What click raises for a group of commands without one, from 8.2 on; before, it prints the help itself."""


def report(out: Output, error: Exception) -> int:
    """Print an error on standard error, and as JSON with ``--json``; return the exit status."""
    if isinstance(error, _NO_ARGUMENTS):  # the message is the help
        click.echo(error.format_message(), err=True)
        return USAGE
    if isinstance(error, click.ClickException):
        status, record = error.exit_code, error_record("usage", error.format_message())
    else:
        status, record = explain(error)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(error.ctx.get_usage(), err=True)
        click.echo(f"Try '{error.ctx.command_path} --help' for help.\n", err=True)
    out.message(f"error: {record['message']}")
    if out.json:
        document: ErrorDocument = {
            "schema": "safeweights.error/1",
            "exit_code": status,
            "error": record,
        }
        out.document(document)
    return status
