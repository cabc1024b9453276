"""The tutorials, followed from top to bottom in an empty folder, as a newcomer would."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("cryptography", reason="signatures need cryptography")

DOCS = Path(__file__).parents[1] / "docs"
SERVERS = {"remote.md", *(path.name for path in DOCS.glob("remote-*.md"))}
"""Pages whose commands need servers: tests/remote has them."""

PAGES = sorted(
    path.name
    for path in DOCS.glob("*.md")
    if re.search(r"^```(py|console)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    and path.name not in SERVERS
)
BLOCK = re.compile(r"^```(py|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (?P<line>.*?)(?: +# exit status (?P<status>\d+))?$", re.MULTILINE)


class Step(NamedTuple):
    """Something that the reader is told to run."""

    arguments: list[str]
    status: int
    shown: str


def steps(page: str) -> list[Step]:
    found = []
    for language, text in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        if language == "py":
            found.append(Step([sys.executable, "-c", text], 0, text))
        for match in COMMAND.finditer(text) if language == "console" else ():
            found.append(
                Step(["bash", "-ec", match["line"]], int(match["status"] or 0), match["line"])
            )
    return found


@pytest.fixture
def follow(tmp_path):
    """Run a step as the reader does; `safeweights` is the program of this package."""
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "safeweights"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m safeweights "$@"\n')
    script.chmod(0o755)
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}

    def follow(step):
        return subprocess.run(
            step.arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    return follow


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed(page, follow):
    outputs = []
    for step in steps(page):
        done = follow(step)
        assert done.returncode == step.status, f"{step.shown}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        outputs.append(done.stdout)
    assert outputs


def test_the_first_line_of_the_tutorial_is_what_show_prints(follow):
    first, second, *_ = steps("tutorial.md")
    follow(first)
    summary = follow(second).stdout.splitlines()[1].removeprefix("summary\t")
    page = " ".join((DOCS / "tutorial.md").read_text(encoding="utf-8").split())
    assert f"*{summary}*" in page
