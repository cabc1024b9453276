"""Batches: many small checks on one and two processes, and Ray beside the process pool.

    python benchmarks/batch.py [--units 10000] [--only checks ray]

The small files are of 40 tensors and 6 kB each. Units of 50 ms are busy for that time, so that what an
engine costs beside them shows. The ways take turns; each number is the median of three, or of nine with
`--again` (see `bench.marks`). Modules have cached bytecode, as when installed, and each way is run once
before the clock runs. The time of processors is that of the parent process (finding units, giving them
out, the report) and of its workers. The limit of two processes is two programs that each check half of the
files: what two processors of this machine do at a time. Ray's cluster is one node on this machine, started
before the clock runs.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bench.machine import processor_time
from bench.marks import Mark, Marks, compared, parser
from bench.results import Sampled, slowest, undisturbed

import safeweights
import safeweights.numpy
from safeweights.batching import Outcome, Unit, Work, run_units

RUNS = 3
BUSY = 200


class Took(NamedTuple):
    """What a batch took, in seconds.

    Attributes:
        wall: From its call to its report.
        parent: Time of processors in this process.
        workers: In its workers.
    """

    wall: float
    parent: float
    workers: float


def busy(arguments: tuple[str, ...], unit: Unit, again: bool) -> Outcome:  # noqa: ARG001
    """A unit of 50 ms."""
    end = time.perf_counter() + 0.05
    while time.perf_counter() < end:
        pass
    return Outcome(0, {"source": unit.source})


def make(folder: Path, count: int) -> None:
    arrays = {f"layer.{i}.weight": np.zeros((4, 4), "f4") for i in range(40)}
    data = safeweights.numpy.save(arrays)
    for number in range(count):
        path = folder / f"{number // 100:04}" / f"{number:06}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def checks(folder: str, jobs: int) -> Took:
    before = processor_time(resource.RUSAGE_SELF), processor_time(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    report = safeweights.batch("check", folder, each="file", jobs=jobs)
    assert report.ok
    wall = time.perf_counter() - began
    return Took(
        wall,
        processor_time(resource.RUSAGE_SELF) - before[0],
        processor_time(resource.RUSAGE_CHILDREN) - before[1],
    )


def units(engine: str) -> float:
    work = Work("batch:busy")
    began = time.perf_counter()
    done = list(run_units([Unit(f"u{i}") for i in range(BUSY)], work, engine=engine))
    assert len(done) == BUSY
    return time.perf_counter() - began


ONE, TWO, APART = "one process", "two processes", "two programs"


def pairs(found: dict[str, list[list[float]]]) -> list[float]:
    """Of runs that followed one another: other programs that come and go meet both."""
    return [
        Took(*one).wall / Took(*two).wall for one, two in zip(found[ONE], found[TWO], strict=True)
    ]


def scaling(found: dict[str, list[list[float]]]) -> Mark:
    """How many times as fast two processes are as one, and two programs."""
    one, two, limit = (
        Sampled([Took(*took).wall for took in found[way]]) for way in (ONE, TWO, APART)
    )
    alone, beside, apart = (value or 1.0 for value in undisturbed(one, two, limit))
    return Mark(
        "small checks: rate on two processes / one",
        statistics.median(pairs(found)),
        least=1.7,
        bound=alone / apart,
        slowest=alone / slowest(limit, apart),
        best=alone / beside,
        noise=max(one.noise, two.noise),
    )


def measure_checks(count: int, marks: Marks) -> None:
    found = marks.samples("checks", [ONE, TWO, APART])
    with (
        tempfile.TemporaryDirectory(dir=".") as folder,
        ProcessPoolExecutor(2, get_context("spawn")) as programs,
    ):
        halves = [f"{folder}/{half}" for half in range(2)]
        for half in halves:
            Path(half).mkdir()
            make(Path(half), count // 2)

        def apart() -> Took:
            began = time.perf_counter()
            each = [*programs.map(checks, halves, [1, 1])]
            wall = time.perf_counter() - began
            return Took(wall, sum(took.parent for took in each), 0.0)

        ways = {ONE: lambda: checks(folder, 1), TWO: lambda: checks(folder, 2), APART: apart}
        for way in ways.values():
            way()
        for _ in marks.rounds(RUNS, lambda: [scaling(found)]):
            for name, way in ways.items():
                found[name].append([*way()])
    print(f"| {count} small checks | time | rate | parent | workers |\n|---|---|---|---|---|")
    for name in (ONE, TWO):
        took = Took(*map(statistics.median, zip(*found[name], strict=True)))
        print(
            f"| {name} | {took.wall:.2f} s | {count / took.wall:.0f} a second "
            f"| {took.parent:.2f} s | {took.workers:.2f} s |"
        )
    print(f"pairs: {', '.join(f'{each:.2f}' for each in pairs(found))}")
    mark = scaling(found)
    marks.found.append(mark)
    marks.add("small checks: rate of two programs, half of them each / one", mark.bound or 0.0)
    share = took.parent / (took.parent + took.workers)
    marks.add("small checks: the parent's share of the processors' time", share)


def measure_ray(marks: Marks) -> None:
    try:
        import ray
    except ImportError:
        print("\nRay is not installed: its row is left out")
        return
    ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    units("ray")  # its workers start
    found = marks.samples("units", ["process", "ray"])

    def judged() -> Mark:
        title = "units of 50 ms: time of Ray / of the process pool"
        return compared(title, found["ray"], found["process"], most=1.5)

    for _ in marks.rounds(RUNS, lambda: [judged()]):
        for engine, times in found.items():
            times.append(units(engine))
    pool, tasks = (statistics.median(times) for times in found.values())
    print(f"\n| {BUSY} units of 50 ms | time | to the pool |\n|---|---|---|")
    print(f"| process pool | {pool:.1f} s | 1 |\n| Ray | {tasks:.1f} s | {tasks / pool:.2f} |")
    marks.found.append(judged())


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--units", type=int, default=10_000, help="number of small files")
    options.add_argument("--only", nargs="+", choices=["checks", "ray"], default=["checks", "ray"])
    given = options.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    marks = Marks("batch", given)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PYTHONPYCACHEPREFIX"] = cache
        if "checks" in given.only:
            measure_checks(given.units, marks)
        if "ray" in given.only:
            measure_ray(marks)
    return marks.close()


if __name__ == "__main__":
    sys.exit(main())
