"""`import safeweights` alone gives every public module, when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from safeweights.lazy import lazy_names

NAMES = (
    "agents",
    "checkpoint",
    "compat",
    "conformance",
    "conversion",
    "guard",
    "numpy",
    "torch",
    "trust",
)


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_loaded_when_it_is_asked_for(name: str) -> None:
    program = f"""
import sys, safeweights
assert "safeweights.{name}" not in sys.modules
print(safeweights.{name}.__name__)
"""
    assert run(program) == f"safeweights.{name}"


def test_standing_in_as_the_readme_writes_it() -> None:
    program = """
import safeweights; safeweights.compat.install()
import safetensors.torch
print(safetensors.torch.load_file.__module__)
"""
    assert run(program) == "safeweights.torch"


def test_a_module_whose_framework_is_missing() -> None:
    program = """
import sys, safeweights
sys.modules["torch"] = None
print(hasattr(safeweights, "torch"), hasattr(safeweights, "nothing"))
try:
    safeweights.torch
except AttributeError as error:
    print(error)
"""
    first, second = run(program).splitlines()
    assert first == "False False"
    assert second.startswith("safeweights.torch cannot be imported: ")
    assert "torch" in second.partition(":")[2]


def test_names_of_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    get, listed = lazy_names("safeweights", {"guard": ""}, modules=("compat", "absent"))
    assert "guard" in listed()
    assert "absent" not in listed()
    assert get("compat") is sys.modules["safeweights.compat"]
    with pytest.raises(AttributeError, match=r"safeweights\.absent cannot be imported: No module"):
        get("absent")
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        get("other")
