"""The public API is a list: docs/api.md states it, and modules export exactly what it states."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "public_api.py"
NEEDS = {"flax": "jax", "jax": "jax", "tensorflow": "tensorflow", "mlx": "mlx", "paddle": "paddle"}


def documented() -> dict[str, list[str]]:
    """Module -> names, as the page lists them."""
    rows = [line.split("|") for line in (ROOT / "docs" / "api.md").read_text().splitlines()]
    return {
        row[1].split("`")[1]: row[2].split("`")[1::2]
        for row in rows
        if len(row) > 3 and row[1].startswith(" `safeweights")
    }


def test_the_page_lists_what_the_modules_export() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", list(documented()))
def test_every_documented_name_can_be_imported(module: str) -> None:
    needs = NEEDS.get(module.rpartition(".")[2])
    if needs:
        pytest.importorskip(needs, reason=f"{module} needs {needs}: `make test-frameworks`")
    found = importlib.import_module(module)
    missing = [name for name in documented()[module] if not hasattr(found, name)]
    assert not missing
    assert documented()[module], "a public module exports nothing"


def test_the_front_door_names_nothing_that_is_not_documented() -> None:
    """In a fresh process: a module that another test imported is an attribute of its package."""
    code = "import safeweights; print(*[n for n in dir(safeweights) if not n.startswith('_')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = {"errors", "lazy", "TYPE_CHECKING", "annotations", "lazy_names"}
    assert set(done.stdout.split()) - modules <= set(documented()["safeweights"])
