"""The type checker's view of what callers write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import safeweights


def test_examples_of_callers_type_check(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is a tool of `make lint`")
    pytest.importorskip("torch", reason="the examples use torch")
    configuration = tmp_path / "mypy.ini"
    configuration.write_text(
        "[mypy]\nstrict = True\nwarn_unused_ignores = True\nmypy_path = "
        f"{Path(safeweights.__file__).parent.parent}\n"
        + "".join(
            f"[mypy-{name}.*]\nignore_missing_imports = True\nfollow_imports = skip\n"
            for name in ("jax", "tensorflow", "mlx", "paddle", "ml_dtypes")
        )
    )
    command = [
        sys.executable, "-m", "mypy", "--config-file", str(configuration),
        "--cache-dir", str(tmp_path / "cache"), str(Path(__file__).with_name("clients.py")),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(safeweights.__file__).with_name("py.typed").exists()
