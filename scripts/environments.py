"""Virtual environments for tests that cannot share one: made once, remade when their list changes.

Each lies below ``.venvs`` and holds what one file of ``requirements`` names; pip keeps the wheels.
This package itself is imported from ``src``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
WORKERS = os.environ.get("WORKERS", "2")
"""Processes of pytest that run at a time, as in the Makefile."""


def environment(name: str, requirements: str) -> Path:
    """The Python of the environment `name`, which has what ``requirements/<requirements>`` names."""
    folder = ROOT / ".venvs" / name
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    with _made(folder, requirements) as listed:
        if listed:
            venv.create(folder, with_pip=True, clear=True)
            _install(python, "-r", listed)
    return python


def beside(name: str, requirements: str, python: Path) -> Path:
    """A folder for PYTHONPATH with what ``requirements/<requirements>`` names, without what that needs."""
    folder = ROOT / ".venvs" / name
    with _made(folder, requirements) as listed:
        if listed:
            shutil.rmtree(folder, ignore_errors=True)
            # Without isolation: what is built here needs the setuptools of the environment only.
            _install(python, "--no-deps", "--no-build-isolation", "--target", folder, "-r", listed)
    return folder


@contextmanager
def _made(folder: Path, requirements: str) -> Iterator[Path | None]:
    """Gives the list if what it names is to be installed now, and notes afterwards that it was."""
    listed = ROOT / "requirements" / requirements
    stamp = folder / ".installed"
    wanted = hashlib.sha256(listed.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        yield None
        return
    began = time.monotonic()
    yield listed
    stamp.write_text(wanted)
    print(f"{folder.name}: environment made in {time.monotonic() - began:.0f} s", flush=True)


def _install(python: Path, *arguments: str | Path) -> None:
    command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


def run_pytest(python: Path, *arguments: str, **variables: str) -> int:
    """Run pytest in an environment; its exit code."""
    command, settings = _pytest(python, arguments, variables)
    return subprocess.run(command, cwd=ROOT, env=settings, check=False).returncode


def output_of_pytest(python: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run pytest in an environment, maybe beside others; its exit code and what it printed."""
    command, settings = _pytest(python, arguments, variables)
    done = subprocess.run(
        command, cwd=ROOT, env=settings, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def _pytest(
    python: Path, arguments: tuple[str, ...], variables: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    settings = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": "0"} | variables
    return [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], settings
