"""Every difference from the installed reference is explained, and every explanation is of a difference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import safeweights

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_reference.py"


def test_no_difference_is_unexplained() -> None:
    source = str(Path(safeweights.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), source]))
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "differences" in done.stdout
