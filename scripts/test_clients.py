"""Test the clients, unmodified, on this package: what `make test-clients` runs."""

from __future__ import annotations

import sys

from environments import environment, run_pytest


def main() -> int:
    return run_pytest(environment("clients", "clients.txt"), "tests/clients", *sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
