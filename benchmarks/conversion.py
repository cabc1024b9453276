"""Converting a PyTorch checkpoint: time and memory, beside torch.load and the reference's save_file.

    python benchmarks/conversion.py [--mib 512]

Each conversion is a process of its own, and they take turns; wall time is that of the conversion alone,
without imports, memory what it adds to the process's peak. The files are in the page cache, and free
memory was touched before, since a virtual machine's is slow until its host has backed it. Ours is
measured twice: as it is by default, with the SHA-256 of source and output in the record beside the
output, and without digests and record, which is what the other does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.machine import touch_memory

RUNS = 6
WORKER = """
import json, pathlib, sys, time
way, source, target = sys.argv[1:]
import torch
if way == "reference":
    from safetensors.torch import save_file
    def convert():
        save_file(torch.load(source, weights_only=True, map_location="cpu"), target)
else:
    from safeweights import convert as run
    def convert():
        run(source, target, record=way == "record", digests=way == "record", force=True)
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before, began = peak(), time.perf_counter()
convert()
print(json.dumps([time.perf_counter() - began, (peak() - before) / 1024]))
"""
WAYS = {
    "safeweights, no digests": "plain",
    "safeweights, digests recorded": "record",
    "torch.load, save_file": "reference",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=512, help="size of the checkpoint")
    size = parser.parse_args().mib
    import torch

    with tempfile.TemporaryDirectory(dir=".") as folder:
        source, target = Path(folder) / "checkpoint.pt", Path(folder) / "out.safetensors"
        torch.save({f"layer.{i}.weight": torch.randn(1024, size * 4) for i in range(64)}, source)
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
        ways = list(WAYS.items())
        for turn in range(RUNS):
            for name, way in ways[turn % 3 :] + ways[: turn % 3]:  # nobody is always the first
                touch_memory(3 * size << 20)
                command = [sys.executable, "-c", WORKER, way, str(source), str(target)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                samples[name].append(tuple(json.loads(done.stdout)))
                target.unlink()
    print(f"| a checkpoint of {size} MiB | time | extra memory at the peak |\n|---|---|---|")
    for name, found in samples.items():
        seconds, memory = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {name} | {seconds:.2f} s | {memory:.0f} MiB |")


if __name__ == "__main__":
    main()
