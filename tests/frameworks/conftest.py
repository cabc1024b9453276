"""Fixtures of the tests of frameworks; each test with a `kit` runs for every framework installed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from typing import TYPE_CHECKING

from kits import KITS, Kit, installed

if TYPE_CHECKING:
    from collections.abc import Iterator

# A file whose name begins with a framework's tests that one alone: it is not read where that is missing.
INSTALLED = [name for name, kit in KITS.items() if installed(kit)]
collect_ignore_glob = [f"test_{name}*.py" for name in KITS if name not in INSTALLED]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kit" in metafunc.fixturenames:
        metafunc.parametrize("kit", INSTALLED, indirect=True)


@pytest.fixture
def kit(request: pytest.FixtureRequest) -> Iterator[Kit]:
    found: Kit = KITS[request.param]
    with found.settings():
        yield found


@pytest.fixture(scope="session")
def matrix() -> Iterator[dict[str, dict[str, dict[str, list[str]]]]]:
    """Framework -> element type -> operation -> (ours, the reference's).

    Written to the file that SAFEWEIGHTS_MATRIX names.
    """
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    yield found
    target = os.environ.get("SAFEWEIGHTS_MATRIX")
    if target:
        Path(target).write_text(json.dumps(found, indent=1))
