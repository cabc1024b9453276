"""Editing, comparing and shipping updates, measured: what `docs/editing.md` promises.

    benchmarks/editing.py [--mib N] [--rounds N]

Each figure is a ratio to what somebody does without these commands, on the same machine in the same
minute; the median of a few rounds. Files are in the page cache. Exit status 1 if one misses its target.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.numpy as reference

import safeweights
from safeweights.editing import edit, make_delta, open_delta
from safeweights.reports.difference import compare

MIB = 1 << 20


def timed(work):
    gc.collect()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def weights(mib, seed=0, tensors=16):
    """Random BF16 bit patterns, as bytes of F16 tensors."""
    chance = np.random.default_rng(seed)
    size = mib * MIB // tensors
    return {
        f"layers.{n}.weight": chance.integers(0, 0x7C00, size // 2, "u2").view("f2")
        for n in range(tensors)
    }


def rename(folder, mib, rounds):
    path = folder / "model.safetensors"
    reference.save_file(weights(mib), path, {"format": "np"})
    names = ["layers.0.weight", "layers.0.w"]

    def ours():
        edit(path, in_place=True, rename={names[0]: names[1]})
        names.reverse()

    def theirs():
        loaded = reference.load_file(path)
        loaded["x"] = loaded.pop(next(iter(loaded)))
        reference.save_file(loaded, folder / "other.safetensors", {"format": "np"})

    return median(ours, theirs, rounds)


def merge(folder, mib, rounds):
    path = folder / "model.safetensors"
    edit(path, f"{folder}/shards/", split=mib * MIB // 8, force=True)
    peak = []

    def ours():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        edit(folder / "shards", folder / "merged.safetensors", force=True)
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    def theirs():
        loaded = {}
        for shard in sorted((folder / "shards").glob("*.safetensors")):
            loaded |= reference.load_file(shard)
        reference.save_file(loaded, folder / "other.safetensors", {"format": "np"})

    ratio = median(ours, theirs, rounds)
    return ratio, max(peak) / 1024


def difference(folder, mib, rounds):
    one, two = folder / "one.safetensors", folder / "two.safetensors"
    changed = weights(mib, 1)
    reference.save_file(changed, one)
    changed["layers.3.weight"] = changed["layers.3.weight"] + np.float16(1)
    reference.save_file(changed, two)
    del changed

    def ours():
        compare(*(safeweights.open(path, backend="pread") for path in (one, two)))

    def theirs():
        for path in (one, two):
            reference.load_file(path)

    return median(ours, theirs, rounds)


def deltas(folder, mib, rounds):
    import zstandard

    base = weights(mib, 2)
    new = {name: value.copy() for name, value in base.items()}
    chance = np.random.default_rng(5)
    for value in new.values():
        places = chance.integers(0, len(value), len(value) // 60)
        value.view("u2")[places] ^= 1
    paths = folder / "base.safetensors", folder / "new.safetensors"
    for path, tensors in zip(paths, (base, new), strict=True):
        reference.save_file(tensors, path)
    done = make_delta(*paths, folder / "weight_v000001")
    formula = sum(
        len(
            zstandard.ZstdCompressor(level=1).compress(
                (base[n].view("u1") ^ new[n].view("u1")).tobytes()
            )
        )
        for n in base
    )
    del base, new
    model = open_delta(folder / "weight_v000001", paths[0])
    size = sum(tensor.nbytes for tensor in model.values())
    source, target = np.ones(size, "u1"), np.empty(size, "u1")

    def ours():
        for tensor in open_delta(folder / "weight_v000001", paths[0]).values():
            tensor.view()

    def theirs():
        np.copyto(target, source)

    theirs()
    return 1 / median(ours, theirs, rounds), done.nbytes / formula


def median(ours, theirs, rounds):
    """Ours by theirs, alternately."""
    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR")))
    try:
        half = given.mib // 2
        rows = [
            (
                "rename a tensor in place / load and save",
                rename(folder, given.mib, given.rounds),
                0.05,
            )
        ]
        ratio, memory = merge(folder, given.mib, given.rounds)
        rows += [
            ("merge 8 shards / load and save", ratio, 0.7),
            ("  extra memory, MiB", memory, 64),
        ]
        shutil.rmtree(folder)
        folder.mkdir()
        rows += [("diff / reading both", difference(folder, half, given.rounds), 1.3)]
        shutil.rmtree(folder)
        folder.mkdir()
        speed, size = deltas(folder, half // 2, given.rounds)
        rows += [("delta applied / memcpy", speed, -0.2), ("  size / the convention's", size, 1.05)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    missed = 0
    for title, value, target in rows:
        good = value <= target if target > 0 else value >= -target
        missed += not good
        sign = "<=" if target > 0 else ">="
        print(f"{title:45} {value:8.3f}   {sign} {abs(target):g}   {'yes' if good else 'NO'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
