"""Virtual environments for tests that cannot share one: made once, remade when their list changes.

Each lies below ``.venvs`` and holds what one file of ``requirements`` names; pip keeps the wheels.
This package itself is imported from ``src``.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment(name: str, requirements: str) -> Path:
    """The Python of the environment `name`, which has what ``requirements/<requirements>`` names."""
    listed = ROOT / "requirements" / requirements
    folder = ROOT / ".venvs" / name
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp = folder / ".installed"
    wanted = hashlib.sha256(listed.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    began = time.monotonic()
    venv.create(folder, with_pip=True, clear=True)
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", listed]
    subprocess.run(install, check=True)
    stamp.write_text(wanted)
    print(f"{name}: environment made in {time.monotonic() - began:.0f} s", flush=True)
    return python


def run_pytest(python: Path, *arguments: str, **variables: str) -> int:
    """Run pytest in an environment; its exit code."""
    settings = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": "0"} | variables
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=settings, check=False).returncode
