"""All programs of `make bench`, what they leave in doubt once more, and one verdict for each row.

    python benchmarks/everything.py [--quick]
    python benchmarks/everything.py --summary    only the verdicts of what was measured last

What misses its mark, or is too noisy to tell, has a second sitting when everything else was measured. Its
samples join those of the first. A machine's state often lasts for minutes, not for an hour.

Exit status 1: a row misses its mark, or a program did not end. Rows that are noisy are neither: their
samples differ too much to tell.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import run
from bench.marks import FOLDER, Marks
from bench.report import remarks, results_of

HERE = Path(__file__).resolve().parent
PROGRAMS: Final[dict[str, list[str]]] = {
    "command_line": ["--mib", "128"],
    "looking": ["--mib", "128"],
    "conversion": ["--mib", "256"],
    "dequantizing": ["--mib", "64"],
    "distributed": ["--mib", "256"],
    "serving": [],
    "growth": ["--quick"],
    "remote": ["--mib", "256"],
    "batch": ["--units", "2000"],
}
"""Programs that keep `Marks`, with their arguments in a quick run."""


def call(program: str, arguments: list[str]) -> None:
    """Run one; what it finds is in its result."""
    command = [sys.executable, str(HERE / f"{program}.py"), *arguments]
    print(f"\n== {program} {' '.join(arguments)}".rstrip(), flush=True)
    with subprocess.Popen(command) as process:
        try:
            process.wait()
        except SystemExit:  # SIGTERM; Ctrl-C meets both, and each cleans up
            process.terminate()
            raise
        finally:
            process.wait()


def measure(began: float, *, quick: bool) -> None:
    """Run all programs, then again those that left a doubt."""
    for path in FOLDER.glob("*.json"):  # also of a program that does not even start now
        path.unlink()
    arguments = {"run": ["--quick"], **PROGRAMS}
    if not quick:
        arguments = {program: [] for program in arguments}
    for program, given in arguments.items():
        call(program, given)
    document = run.latest(began)
    doubtful = ["run"] if document and run.doubtful(document) else []
    doubtful += [program for program in PROGRAMS if Marks.doubtful(program)]
    for program in doubtful:
        call(program, [*arguments[program], "--again"])


def summary(since: float) -> int:
    """Print the verdicts of what was measured last, and not before that time."""
    verdicts: Counter[str] = Counter()
    document = run.latest(since)
    if document is None:
        print("run: did not end, or was not run")
        verdicts["FAIL"] += 1
    else:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller files, fewer samples")
    parser.add_argument("--summary", action="store_true", help="measure nothing")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = 0.0 if given.summary else time.time()
    if not given.summary:
        try:
            measure(began, quick=given.quick)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130
    return summary(began)


if __name__ == "__main__":
    sys.exit(main())
