"""Real ranks load their parts of a checkpoint: FSDP 2, tensor parallelism, stages, and every layout."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from safeweights.torch import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import serving  # noqa: E402
from launching import END, run_ranks  # noqa: E402


@pytest.fixture(scope="module", params=[2, 4])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    results = run_ranks(serving.rank, request.param, request.param, str(folder), limit=300)
    (folder / "errors").write_text("\n".join(each.error or "" for each in results))
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
    assert done == list(range(ranks)), (run / "errors").read_text()[-3000:]


def test_the_page_runs(tmp_path: Path) -> None:
    """`serve.py` of docs/serving.md, on two ranks."""
    page = (HERE.parents[1] / "docs" / "serving.md").read_text()
    (program,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        if "init_process_group" in block
    )
    (tmp_path / "serve.py").write_text(program + END)
    torch.manual_seed(2)
    state: dict[str, torch.Tensor] = {}
    expected = []
    for i in range(2):
        parts = {name: torch.randn(rows, 64) for name, rows in (("q", 64), ("k", 32), ("v", 32))}
        out = torch.randn(64, 128)
        state |= {f"{i}.{name}.weight": part for name, part in parts.items()}
        state[f"{i}.out.weight"] = out
        inner = torch.relu(torch.ones(1, 64) @ torch.cat([*parts.values()]).T)
        expected.append((inner @ out.T).sum().item())
    (tmp_path / "model").mkdir()
    save_file(state, tmp_path / "model" / "model.safetensors")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--redirects", "1", "--log-dir", "logs", "serve.py", "model",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = [each.read_text() for each in (tmp_path / "logs").rglob("stdout.log")]
    found = sorted(map(float, " ".join(printed).split()))
    assert found == pytest.approx(sorted(expected * 2), rel=1e-3, abs=1e-2)
