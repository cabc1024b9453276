"""Compare dequantised values with the libraries that quantise: what `make test-quantised` runs.

The libraries lie beside the environment of the clients, which has torch and what they import.
"""

from __future__ import annotations

import os
import sys

from environments import ROOT, WORKERS, beside, environment, run_pytest


def main() -> int:
    python = environment("clients", "clients.txt")
    path = os.pathsep.join([str(ROOT / "src"), str(beside("quantised", "quantised.txt", python))])
    return run_pytest(python, "-n", WORKERS, "tests/quantised", *sys.argv[1:], PYTHONPATH=path)


if __name__ == "__main__":
    sys.exit(main())
