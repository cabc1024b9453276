"""Real ranks load their parts of a checkpoint: FSDP 2, tensor parallelism, stages, and every layout."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=[2, 4])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    command = [sys.executable, str(HERE / "serving.py"), str(request.param), str(folder)]
    done = subprocess.run(
        command, env={**os.environ, "RANKS_PORT": port}, timeout=600, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    (folder / "stderr").write_text(done.stderr)
    return folder


@pytest.mark.parametrize(
    "case",
    ["fsdp", "fsdp_trains", "both", "rows_and_columns", "layouts", "stages", "refusals"],
)
def test_every_rank_has_its_part(run: Path, case: str) -> None:
    ranks = int(run.name.removeprefix("world")[0])
    if case == "layouts" and ranks < 4:
        pytest.skip("a mesh of two dimensions needs four ranks")
    done = [number for number in range(ranks) if (run / f"{case}-{number}").exists()]
    assert done == list(range(ranks)), (run / "stderr").read_text()[-3000:]
