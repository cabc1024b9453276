"""Run the core's tests on every Python from 3.10 to 3.14 on this machine, without torch.

Each version gets an environment of its own, .venv-3.X, made once. Versions that are not installed are
named and skipped; the one that runs `make test` is tested there.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ((3, 10), (3, 11), (3, 12), (3, 13), (3, 14))
FOLDERS = ("format", "storage", "checkpoint", "cli", "remote")
NOT_CORE = (
    "checkpoint/test_values.py", "cli/test_check_folder.py", "cli/test_convert.py",
    "cli/test_policy.py", "cli/test_trust.py",
)  # fmt: skip
"""Tests of these folders that need torch, onnx or the extra `trust`."""


def interpreter(version: tuple[int, int]) -> str | None:
    """A working interpreter of `version`: on the PATH, or one of pyenv's."""
    label = ".".join(map(str, version))
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    installed = sorted(glob.glob(f"{pyenv}/versions/{label}.*/bin/python"))
    for candidate in [shutil.which(f"python{label}"), *installed]:
        if candidate is None:
            continue
        # A pyenv shim is on the PATH for versions that are not selected: ask, do not trust the name.
        question = [candidate, "-c", "import sys; print(*sys.version_info[:2])"]
        found = subprocess.run(question, capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.split() == [str(part) for part in version]:
            return candidate
    return None


def test(version: tuple[int, int], python: str) -> int:
    label = ".".join(map(str, version))
    venv = ROOT / f".venv-{label}"
    stamp = venv / ".installed"
    wanted = ROOT / "requirements/core.txt"
    newest = max(path.stat().st_mtime for path in (wanted, ROOT / "pyproject.toml"))
    if not stamp.exists() or stamp.stat().st_mtime < newest:
        subprocess.run([python, "-m", "venv", venv], check=True)
        pip = [venv / "bin/python", "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "-r", wanted, "-e", ROOT], check=True)
        stamp.touch()
    folders = [f"tests/{name}" for name in FOLDERS if (ROOT / "tests" / name).is_dir()]
    print(f"Python {label}: {' '.join(folders)}", flush=True)
    marked = [
        venv / "bin/python",
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "-m",
        "not slow and not real and not servers",
    ]
    ignored = [f"--ignore=tests/{name}" for name in NOT_CORE]
    return subprocess.run([*marked, *ignored, *folders], cwd=ROOT, check=False).returncode


def main() -> int:
    failed = []
    for version in VERSIONS:
        if version == sys.version_info[:2]:
            continue
        python = interpreter(version)
        if python is None:
            print(f"Python {'.'.join(map(str, version))}: not installed, skipped")
        elif test(version, python):
            failed.append(version)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
