"""Batches: many small checks on one and two processes, and Ray beside the process pool.

    python benchmarks/batch.py [--units 10000]

The small files are of 40 tensors and 6 kB each. Units of 50 ms are busy for that time, so that what an
engine costs beside them shows. Each number is the median of three; the ways take turns. Ray's cluster is
one node on this machine, started before the clock runs."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import safeweights
import safeweights.numpy
from safeweights.batching import Outcome, Unit, Work, run_units

RUNS = 3
BUSY = 200


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


def checks(folder: str, jobs: int) -> float:
    began = time.perf_counter()
    report = safeweights.batch("check", folder, each="file", jobs=jobs)
    assert report.ok
    return time.perf_counter() - began


def units(engine: str) -> float:
    work = Work("batch:busy")
    began = time.perf_counter()
    done = list(run_units([Unit(f"u{i}") for i in range(BUSY)], work, engine=engine))
    assert len(done) == BUSY
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=10_000, help="number of small files")
    count = parser.parse_args().units
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    with tempfile.TemporaryDirectory(dir=".") as folder:
        make(Path(folder), count)
        small = {1: [], 2: []}
        for _ in range(RUNS):
            for jobs, found in small.items():
                found.append(checks(folder, jobs))
    one, two = (statistics.median(found) for found in small.values())
    print(f"| {count} small checks | time | rate |\n|---|---|---|")
    print(f"| 1 process | {one:.1f} s | {count / one:.0f} a second |")
    print(f"| 2 processes | {two:.1f} s | {count / two:.0f} a second, {one / two:.2f} times one |")
    try:
        import ray
    except ImportError:
        print("\nRay is not installed: its row is left out")
        return
    ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    units("ray")  # its workers start
    found = {"process": [], "ray": []}
    for _ in range(RUNS):
        for engine, times in found.items():
            times.append(units(engine))
    pool, tasks = (statistics.median(times) for times in found.values())
    print(f"\n| {BUSY} units of 50 ms | time | to the pool |\n|---|---|---|")
    print(f"| process pool | {pool:.1f} s | 1 |\n| Ray | {tasks:.1f} s | {tasks / pool:.2f} |")


if __name__ == "__main__":
    main()
