"""The verdicts of all programs of `make bench`, one line a row: what it ends with.

    python benchmarks/summary.py [--since SECONDS]

Exit status 1: a row misses its mark, or a program did not end. Rows that are noisy are neither: their
samples differ too much to tell.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from bench.marks import Marks
from bench.report import remarks, results_of

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = (
    "batch",
    "command_line",
    "conversion",
    "dequantizing",
    "distributed",
    "growth",
    "looking",
    "remote",
    "serving",
)
"""Programs that keep `Marks`; a new one is named here and in the Makefile."""


def latest() -> Path | None:
    """The newest result of `run.py`."""
    found = [ROOT / "benchmarks/results/latest.json", ROOT / ".cache/bench/results/trial.json"]
    return max(
        (path for path in found if path.exists()), key=lambda p: p.stat().st_mtime, default=None
    )


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    verdicts: Counter[str] = Counter()
    path = latest()
    if path is None:
        print("run.py: no result")
        verdicts["FAIL"] += 1
    else:
        document = json.loads(path.read_text())
        for row in results_of(document):
            if row.verdict:
                verdicts[row.verdict] += 1
                ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
                print(f"{row.title[:62]:62} {ratio:>14}  <= {row.reach:7} {row.verdict}")
        print(*remarks(document), sep="\n")
    for program in PROGRAMS:
        found = Marks.kept(program)
        if found is None:
            verdicts["FAIL"] += 1
            print(f"{program}: did not end, or was not run")
            continue
        print(f"-- {program}")
        for mark in found:
            print(mark.line())
            if mark.verdict:
                verdicts[mark.verdict] += 1
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())))
    return 1 if verdicts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
