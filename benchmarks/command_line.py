"""How long the command line takes: whole processes, each beside one that does the least of the same.

    python benchmarks/command_line.py [--mib 1024]

Wall time, medians of runs that take turns. Progress, colours and tables are for terminals: here
everything is piped.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench.marks import Mark, Marks, compared, parser
from bench.processes import interpreter_environment

import safeweights.numpy

RUNS = 5
TENSORS = 100_000


def seconds(command: str) -> float:
    """Of one run."""
    began = time.perf_counter()
    subprocess.run(
        ["/bin/sh", "-c", command],
        check=True, stdout=subprocess.DEVNULL, env=interpreter_environment(),
    )  # fmt: skip
    return time.perf_counter() - began


HEADER = """
import json, sys
with open(sys.argv[1], "rb") as file:
    print(len(json.loads(file.read(int.from_bytes(file.read(8), "little")))))
"""
STATISTICS = """
import sys, numpy, safetensors.numpy
for array in safetensors.numpy.load_file(sys.argv[1]).values():
    print(array.min(), array.max(), array.mean(), array.std(), (array == 0).sum(), numpy.isnan(array).sum())
"""


def measure(marks: Marks, title: str, ours: str, other: str, theirs: str, most: float) -> Mark:
    """Run our command and the other one in turn."""
    samples = marks.samples(title, ["ours", "theirs"])

    def found() -> Mark:
        shown = f"`{title}` / {other} ({statistics.median(samples['ours']):.2f} s)"
        return compared(shown, *samples.values(), most=most)

    for _ in marks.rounds(RUNS, lambda: [found()]):
        for times, command in zip(samples.values(), (ours, theirs), strict=True):
            times.append(seconds(command))
    return found()


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=1024, help="values for `stats`")
    given = options.parse_args()
    mib, marks = given.mib, Marks("command_line", given)
    with tempfile.TemporaryDirectory() as folder:
        path, values = Path(folder) / "many.safetensors", Path(folder) / "values.safetensors"
        zeros = np.zeros((4, 4), "f2")
        names = (f"layers.{i // 100}.experts.{i % 100}.weight" for i in range(TENSORS))
        safeweights.numpy.save_file(dict.fromkeys(names, zeros), path)
        numbers = np.random.default_rng(1).standard_normal((8, mib << 15), "f4")
        safeweights.numpy.save_file({str(i): row for i, row in enumerate(numbers)}, values)
        del numbers
        python = f'"{sys.executable}"'
        program = f"{python} -m safeweights"
        rows = [
            ("--help", f"{program} --help", "a bare interpreter", f"{python} -c pass", 6.0),
            *(
                (f"{verb}, {TENSORS:,} tensors", f'{program} {verb} "{path}" | wc -l',
                 "json.loads of the header", f"{python} -c '{HEADER}' \"{path}\"", 2.0)
                for verb in ("ls", "check", "show")
            ),
            (f"stats, {mib} MiB of F32", f'{program} stats "{values}"',
             "six functions of NumPy", f"{python} -c '{STATISTICS}' \"{values}\"", 1.0),
        ]  # fmt: skip
        marks.found += [measure(marks, *row) for row in rows]
    return marks.close()


if __name__ == "__main__":
    sys.exit(main())
