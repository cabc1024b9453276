"""How long the command line takes: the table of the README.

    python benchmarks/command_line.py

Whole processes, wall time, median and fastest of nine; a bare interpreter beside them, since that is the
floor. Progress, colours and tables are for terminals: here everything is piped.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench.processes import interpreter_environment

import safeweights.numpy

RUNS = 9
TENSORS = 100_000


def seconds(command: str) -> list[float]:
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        subprocess.run(
            ["/bin/sh", "-c", command],
            check=True, stdout=subprocess.DEVNULL, env=interpreter_environment(),
        )  # fmt: skip
        times.append(time.perf_counter() - began)
    return times


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.safetensors"
        zeros = np.zeros((4, 4), "f2")
        names = (f"layers.{i // 100}.experts.{i % 100}.weight" for i in range(TENSORS))
        safeweights.numpy.save_file(dict.fromkeys(names, zeros), path)
        program = f'"{sys.executable}" -m safeweights'
        commands = {
            "a bare interpreter": f'"{sys.executable}" -c pass',
            "`safeweights --help`": f"{program} --help",
            f"`safeweights ls`, {TENSORS:,} tensors, piped to `wc -l`": f'{program} ls "{path}" | wc -l',
            f"`safeweights check`, {TENSORS:,} tensors": f'{program} check "{path}"',
        }
        print("| command | median | fastest |\n|---|---|---|")
        for name, command in commands.items():
            times = seconds(command)
            print(f"| {name} | {statistics.median(times):.2f} s | {min(times):.2f} s |", flush=True)


if __name__ == "__main__":
    main()
