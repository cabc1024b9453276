"""How long it takes to look at a model: `show`, `stats`, and the page of `view`.

    python benchmarks/looking.py [--mib 1024]

Whole processes in turn, wall time, medians; output is piped, and files are in the page cache. The page is
painted when the browser has drawn the first line that says what the model is: that needs Debian's chromium
and Playwright, and is left out without them.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench.marks import Mark, Marks, parser, timed
from bench.processes import interpreter_environment

import safeweights.numpy

RUNS = 5
TENSORS = 100_000
SHARDS = 100
PROGRAM = [sys.executable, "-m", "safeweights"]

MINIMUM = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np

path, size, piece = sys.argv[1], os.path.getsize(sys.argv[1]), 4 << 20
start = size % 4
descriptor = os.open(path, os.O_RDONLY)

def part(begin):
    values = np.frombuffer(os.pread(descriptor, min(piece, size - begin), begin), "f4")
    return values.min(), values.max()

with ThreadPoolExecutor(os.cpu_count()) as pool:
    found = list(pool.map(part, range(start, size, piece)))
print(min(low for low, _ in found), max(high for _, high in found))
"""
"""Reads a file and finds the least and largest value, on all cores: what `stats` is compared with."""


def seconds(command: list[str]) -> float:
    """Of one run."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=interpreter_environment())
    return time.perf_counter() - began


def commands(marks: Marks, paths: dict[str, str], mib: int) -> list[Mark]:
    """Run the commands in turn."""
    asked = {
        "--help": (["--help"], 0.15),
        "show, one tensor": (["show", paths["small.st"]], 0.15),
        f"show, {TENSORS:,} tensors in {SHARDS} files": (["show", paths["shards"]], 1.0),
    }
    every = {
        **{title: [*PROGRAM, *arguments] for title, (arguments, _) in asked.items()},
        "stats": [*PROGRAM, "stats", paths["large.st"]],
        "minimum": [sys.executable, "-c", MINIMUM, paths["large.st"]],
    }
    samples = marks.samples("commands", every)

    def found() -> list[Mark]:
        speed = statistics.median(samples["minimum"]) / statistics.median(samples["stats"])
        return [
            *(timed(f"`{title}`", samples[title], most=most) for title, (_, most) in asked.items()),
            Mark(
                f"speed of `stats`, {mib} MiB / reading, min and max on all cores", speed, least=0.5
            ),
        ]

    for command in every.values():
        seconds(command)  # writes bytecode and fills the cache
    for _ in marks.rounds(RUNS, found):
        for title, command in every.items():
            samples[title].append(seconds(command))
    return found()


def models(folder: Path, mib: int) -> dict[str, str]:
    """Paths of models: of many tensors in one file and in shards, of one small tensor, of large ones."""
    zeros = np.zeros((4, 4), "f2")
    names = [f"model.layers.{i // 1000}.experts.{i % 1000}.weight" for i in range(TENSORS)]
    many = dict.fromkeys(names, zeros)
    paths = {name: str(folder / name) for name in ("many.st", "shards", "small.st", "large.st")}
    safeweights.numpy.save_file(many, paths["many.st"])
    size = TENSORS * zeros.nbytes // SHARDS
    separate = {name: zeros.copy() for name in names}  # tensors that share memory stay together
    safeweights.numpy.save_file(separate, paths["shards"], max_shard_size=size)
    safeweights.numpy.save_file({"a": zeros}, paths["small.st"])
    random = np.random.default_rng(0)
    layers = {f"layers.{n}.w": random.standard_normal((4096, 1024), "f4") for n in range(mib // 16)}
    safeweights.numpy.save_file(layers, paths["large.st"])
    return paths


def first_paint(path: str, runs: int) -> list[float]:
    """Seconds from opening the address to the first line about the model, in a fresh page each time."""
    from playwright.sync_api import sync_playwright

    server = subprocess.Popen(
        [*PROGRAM, "view", path, "--no-open", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=interpreter_environment(),
    )  # fmt: skip
    try:
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["address"]
        times = []
        with sync_playwright() as started:
            browser = started.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            for _ in range(runs + 1):
                page = browser.new_page()
                began = time.perf_counter()
                page.goto(address, wait_until="commit")
                page.wait_for_selector("dl")
                page.evaluate("() => new Promise(requestAnimationFrame)")
                times.append(time.perf_counter() - began)
                page.close()
            browser.close()
    finally:
        server.kill()
        server.wait()
    return times[1:]


def page(marks: Marks, path: str) -> list[Mark]:
    """Open the page of a model; no figure without Playwright."""
    times = marks.samples("page", ["first line"])["first line"]

    def found() -> Mark:
        return timed(f"`view`, {TENSORS:,} tensors: address to first line", times, most=1.0)

    try:
        for _ in marks.rounds(1, lambda: [found()]):
            times += first_paint(path, RUNS)
    except ImportError:
        print("no figure for the page: it needs Playwright")
        return []
    return [found()]


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=1024, help="values for `stats`")
    given = options.parse_args()
    mib, marks = given.mib, Marks("looking", given)
    with tempfile.TemporaryDirectory() as name:
        paths = models(Path(name), mib)
        marks.found += commands(marks, paths, mib)
        marks.found += page(marks, paths["many.st"])
    return marks.close()


if __name__ == "__main__":
    sys.exit(main())
