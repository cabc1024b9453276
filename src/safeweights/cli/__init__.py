"""The command line: `safeweights show|ls|check|get ...`.

One module a command, imported when that command runs; `app` holds the table of them and what they
share: exit codes, errors, Ctrl-C and closed pipes. `records` defines what ``--json`` prints,
`output` how anything is printed at all. Rules:

- Whatever comes from a file is escaped before it is printed (`output.escape`).
- Tables, trees and progress are for terminals, and `rich` is imported only there; a pipe gets
  lines of tab-separated fields.
- Files are read through the pread backend: a file that shrinks meanwhile is an error, not a crash.
- No command decides anything about the format: the layers below do.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line on ``sys.argv`` and exit with its status."""
    try:
        from .app import cli

        cli(prog_name="safeweights")
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.stderr.write("safeweights: error: the command line needs click: pip install click\n")
        sys.exit(3)
    except KeyboardInterrupt:  # between two commands' own handling: while modules are imported
        sys.exit(130)
