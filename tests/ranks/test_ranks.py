"""Real ranks: FSDP 2, tensor parallelism and every layout of a mesh, saved by 2 and 4 processes (gloo)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import safeweights
from safeweights.conversion import convert

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "conversion" / "distributed")]

import saving  # noqa: E402
from folders import assert_equal, by_torch  # noqa: E402
from launching import run_fine  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


@pytest.fixture(scope="module", params=[2, 4])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    (folder / "files").mkdir()
    run_fine(saving.rank, request.param, request.param, str(folder), limit=300)
    return folder


def expected(run: Path) -> dict[str, torch.Tensor]:
    whole = torch.arange(35.0).reshape(7, 5)
    model = torch.load(run / "expected.pt")
    layouts = {f"layout.{i}{j}": whole for i in range(3) for j in range(3)}
    return {**{f"model.{n}": t for n, t in model.items()}, **layouts, "layout.parameter": whole}


def test_the_folder(run: Path, tmp_path: Path) -> None:
    ours = safeweights.open(run / "ckpt")
    assert_equal(ours, by_torch(run / "ckpt"))
    convert(run / "ckpt", tmp_path / "one.safetensors", only=("model.*", "layout.*"))
    assert_equal(safeweights.open(tmp_path / "one.safetensors"), expected(run))


def test_the_files_of_the_ranks(run: Path, tmp_path: Path) -> None:
    convert(run / "files", tmp_path / "one.safetensors", only=("model.*", "layout.*"))
    assert_equal(safeweights.open(tmp_path / "one.safetensors"), expected(run))
