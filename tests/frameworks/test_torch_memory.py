"""What processes on one host share: mapped tensors are one copy for all of them, others one for each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from safeweights.torch import save_file

MIB = 1 << 20
PROCESSES = 3


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="needs smaps_rollup (Linux 4.14)"
)
def test_processes_share_what_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"{i}.weight": torch.full((1024, 2048), float(i)) for i in range(4)}, path)
    size = path.stat().st_size
    script = Path(__file__).with_name("sharing.py")
    command = [sys.executable, str(script), str(path)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]

    def said() -> list[str]:
        return [each.stdout.readline() for each in running]  # type: ignore[union-attr]

    def tell() -> None:
        for each in running:
            each.stdin.write("\n")  # type: ignore[union-attr]
            each.stdin.flush()  # type: ignore[union-attr]

    found = []
    for _ in range(3):
        assert said() == ["ready\n"] * PROCESSES
        tell()
        answers = [line.split() for line in said()]
        assert {answer[1] for answer in answers} == {str(float(6 * 1024 * 2048))}
        found.append([int(answer[0]) for answer in answers])
        tell()
    for each in running:
        each.communicate()
        assert each.returncode == 0
    by_file, by_module, copies = found
    for sizes in (by_file, by_module):
        assert all(each < size / PROCESSES + 8 * MIB for each in sizes), sizes
    assert all(each > 0.9 * size for each in copies), copies
