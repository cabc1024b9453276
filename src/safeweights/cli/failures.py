"""Exceptions -> what is said and how the process exits.

Exit status: 0 yes, 1 no (the content is not what it should be), 2 the command was used wrongly,
3 could not look (missing file, no permission, missing package). 130 after Ctrl-C and 141 when
whoever read standard output left, as shells report these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..reports.problems import explain

if TYPE_CHECKING:
    from ..reports.documents import ErrorDocument
    from .output import Output

__all__ = ["report"]


def report(out: Output, error: Exception) -> int:
    """Say what went wrong, on standard error and where asked also as JSON; the exit status."""
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
