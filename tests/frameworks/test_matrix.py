"""Every element type x every operation x every framework that is installed, beside the reference."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
from kits import CODES, KITS, Kit
from operations import OPERATIONS, outcome, perform

import safeweights

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("code", CODES)
def test_operation(
    kit: Kit, code: str, operation: str, tmp_path: Path, matrix: dict[str, Any]
) -> None:
    if kit.has(code):
        assert perform("safeweights", kit, code, operation, tmp_path) == "yes"
    elif operation.startswith(("get", "load")):
        with pytest.raises(safeweights.SafetensorError, match=code.split("_")[0]):
            perform("safeweights", kit, code, operation, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference's own
        theirs = outcome(lambda: perform("safetensors", kit, code, operation, tmp_path))
    ours = "yes" if kit.has(code) else "no"
    matrix.setdefault(kit.name, {}).setdefault(code, {})[operation] = [ours, theirs]
    assert ours == "yes" or theirs != "yes", "the reference works and we do not"


def test_all_spellings_open(kit: Kit, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    from kits import file_of, sample

    path.write_bytes(file_of({"x": ("F32", (2, 3), sample("F32", (2, 3)))}))
    for spelling in kit.spellings:
        with safeweights.safe_open(path, framework=spelling) as file:
            assert kit.look(file.get_tensor("x"))[1] == (2, 3)


def test_every_kit_has_a_face() -> None:
    assert {kit.face for kit in KITS.values()} == {
        "numpy", "torch", "flax", "tensorflow", "mlx", "paddle",
    }  # fmt: skip
