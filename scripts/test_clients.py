"""Test the clients, unmodified, on this package: what `make test-clients` runs.

Afterwards the names that the next version of the reference brings, beside its pre-release.
"""

from __future__ import annotations

import os
import sys

from environments import ROOT, WORKERS, beside, environment, run_pytest


def main() -> int:
    python = environment("clients", "clients.txt")
    failed = run_pytest(python, "-n", WORKERS, "tests/clients", *sys.argv[1:])
    path = os.pathsep.join([str(ROOT / "src"), str(beside("next", "next.txt", python))])
    return run_pytest(python, "tests/next", PYTHONPATH=path) or failed


if __name__ == "__main__":
    sys.exit(main())
