"""Encrypted files that a reader must open or refuse: conformance/age, rebuilt from the specification."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

sys.path.insert(0, str(Path(__file__).parent))
from age_vectors import AgeVector, outcome, read_vector

ROOT = Path(__file__).parents[2]
VECTORS = [read_vector(path) for path in sorted((ROOT / "conformance" / "age").iterdir())]


def test_the_folder_is_what_the_generator_writes() -> None:
    script = ROOT / "scripts" / "make_age_vectors.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_kind_of_fault_has_vectors() -> None:
    kinds = [vector.expect for vector in VECTORS]
    assert len(kinds) >= 160
    assert set(kinds) == {
        "success", "no match", "HMAC failure", "header failure", "armor failure", "payload failure",
    }  # fmt: skip


@pytest.mark.parametrize("vector", VECTORS, ids=[vector.name for vector in VECTORS])
def test_vector(vector: AgeVector) -> None:
    said, digest = outcome(vector)
    assert said == vector.expect
    assert digest == vector.payload
