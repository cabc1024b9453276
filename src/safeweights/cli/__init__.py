"""The command line: `safeweights show|ls|check|get ...`.

Each command is a module of `commands`, imported when it runs. `app` has the table of commands and handles
exit codes, errors, Ctrl-C and closed pipes for all of them. `output` prints; `reports.documents` defines
the documents of ``--json``. Rules:

- Text from files is escaped before it is printed (`text.escape`).
- A terminal gets tables, trees and progress, drawn by `rich`, which is imported only then. A pipe gets
  lines of tab-separated fields.
- Files are read by the pread backend: a file that another process truncates is an error, not a crash.
- Commands make no decision about the format or about trust: lower layers do.
"""

from __future__ import annotations

import gc
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line on ``sys.argv`` and exit with its status."""
    # A command makes many objects that live until it ends, such as a row for each of 100,000 tensors.
    # The collector would visit them again and again: `show` of 100 files takes 1.0 s of CPU time instead
    # of 1.3 (with Python's own threshold 1.8). A million objects are enough for garbage in cycles.
    gc.set_threshold(1_000_000, 20, 20)
    try:
        from .app import cli

        cli(prog_name="safeweights")
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.stderr.write("safeweights: error: the command line needs click: pip install click\n")
        sys.exit(3)
    except KeyboardInterrupt:  # while modules are imported; `app` handles it later
        sys.exit(130)
    finally:
        gc.freeze()  # the interpreter would look for garbage once more while it ends: 50 ms
