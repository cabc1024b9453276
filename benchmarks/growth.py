"""Curves of cost against work: tensors, shards, bytes and threads, for what people do with models.

    python benchmarks/growth.py                    all curves; writes docs/images/growth-*.svg
    python benchmarks/growth.py --quick            smaller, a minute; writes .cache/bench/growth/
    python benchmarks/growth.py --curve tensors    one of them

Time is processor time, of all threads and children, the best of five: wall time on a machine that does
other things too would tell of those. (Of threads it is wall time: that is what they are for.) A figure is
not taken where it would need more than 10 seconds. Files of many bytes are sparse, so that they are read
from no disk. The mark: nothing grows faster than the work. An exponent of 1.2 is allowed for, since names
are sorted, and a million objects do not fit the processor's caches. A processor that others share may be
half as fast for a minute: what seems to grow faster is measured three times more, small and large in turn.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from resource import RUSAGE_CHILDREN
from typing import TYPE_CHECKING, Any

import numpy as np
from bench.curves import Points, draw, last_decade, slope
from bench.machine import processor_time, touch_memory
from bench.marks import Marks
from bench.processes import interpreter_environment

import safeweights
import safeweights.numpy
from safeweights import trust
from safeweights.checkpoint import MemoryTensor
from safeweights.checkpoint.sharding import save_sharded
from safeweights.format import header
from safeweights.format.writer import layout
from safeweights.storage.parallel import in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

ROOT = Path(__file__).resolve().parent.parent
MOST = 10.0
STEEPEST = 1.2
MIB = 1 << 20

Operations = dict[str, "Callable[[], object]"]


def spent(work: Callable[[], object], *, wall: bool = False) -> float:
    """Seconds of the best of five, of three above half a second, of one above six seconds."""
    best = float("inf")
    for number in range(5):
        gc.collect()
        begun = time.perf_counter(), time.process_time(), processor_time(RUSAGE_CHILDREN)
        work()
        ended = time.perf_counter(), time.process_time(), processor_time(RUSAGE_CHILDREN)
        real, own, children = (after - before for before, after in zip(begun, ended, strict=True))
        best = min(best, real if wall else own + children)
        if best > 6 or (best > 0.5 and number == 2):
            break
    return best


def repeated(work: Callable[[], object], *, wall: bool = False) -> float:
    """The same for what takes less than 50 ms: one of so many that take a tenth of a second."""
    first = spent(work, wall=wall)
    if first >= 0.05:
        return first
    began = time.perf_counter()
    work()
    count = max(1, min(2000, round(0.1 / max(time.perf_counter() - began, 1e-5))))
    return spent(lambda: [work() for _ in range(count)], wall=wall) / count


def command(*arguments: str) -> Callable[[], object]:
    """A run of the command line, as a process."""
    line = [sys.executable, "-m", "safeweights", *arguments]
    environment = interpreter_environment()
    return lambda: subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=environment)


def many(count: int) -> dict[str, MemoryTensor]:
    data = bytes(32)
    return {f"layers.{i}.weight": MemoryTensor(str(i), "F16", (4, 4), data) for i in range(count)}


def of_tensors(count: int, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """A file of `count` tensors of 32 bytes."""
    path, copy = str(folder / "a.safetensors"), str(folder / "b.safetensors")
    tensors = many(count)
    safeweights.save(tensors, path)
    yield "save", lambda: safeweights.save(tensors, copy)
    yield "open", lambda: safeweights.open(path)
    yield "load", lambda: safeweights.numpy.load_file(path)
    yield "check", lambda: safeweights.check(path)
    yield "ls", command("ls", path)
    yield "convert", lambda: safeweights.convert(path, copy, force=True)
    yield from _signed(folder, path)


def of_shards(count: int, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """A model of `count` shards, each of ten tensors of 1 KiB."""
    model, copy = folder / "model", folder / "copy"
    data = bytes(1024)
    tensors = {
        f"layers.{i}.weight": MemoryTensor(str(i), "U8", (1024,), data) for i in range(10 * count)
    }
    save_sharded(tensors, model, max_shard_size=10 * 1024)
    yield "save", lambda: save_sharded(tensors, copy, max_shard_size=10 * 1024)
    yield "open", lambda: safeweights.open(str(model))
    yield "load", lambda: [each.numpy() for each in safeweights.open(str(model)).values()]
    yield "check", lambda: safeweights.check(str(model))
    yield "ls", command("ls", str(model))
    yield "convert", lambda: safeweights.convert(str(model), str(folder / "c"), force=True)
    yield from _signed(folder, str(model))


def _signed(folder: Path, path: str) -> Iterator[tuple[str, Callable[[], object]]]:
    key = folder / "key"
    trust.generate_key(str(key))
    public = trust.load_public_key(str(key.with_suffix(".pub")))
    trust.sign(path, trust.load_private_key(str(key)), force=True)
    yield "verify", lambda: trust.verify(path, public)


def of_bytes(mib: int, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """A file of one matrix of `mib` MiB, with rows of 64 KiB, that takes no room on the disk."""
    path = folder / "a.safetensors"
    # The first byte of a file is the length of its header, and some lengths are opcodes of pickles that
    # `check` follows: with this alignment it is the same one for all sizes.
    _, head = layout([("a", "U8", (mib * 16, 1 << 16))], align=128)
    path.write_bytes(head)
    os.truncate(path, len(head) + (mib << 20))
    tensor = safeweights.open(str(path), backend="pread")["a"]
    yield "open", lambda: safeweights.open(str(path))
    yield "load, mapped", lambda: safeweights.open(str(path))["a"].view()
    yield "a row", lambda: tensor[mib * 8]
    yield "ls", command("ls", str(path))
    yield "check", lambda: safeweights.check(str(path))
    if mib <= 4096:
        yield "every 64th row", lambda: tensor[::64]
        yield "columns", lambda: tensor[:, 100:108]
    if mib <= 1024:
        touch_memory(
            3 * mib << 20
        )  # the host may have to back it first, which takes ten times as long
        yield "load, read", lambda: safeweights.open(str(path), backend="pread")["a"].numpy()
        copy = str(folder / "b.safetensors")
        yield "save", lambda: safeweights.save({"a": tensor}, copy)
        yield "convert", lambda: safeweights.convert(str(path), copy, force=True)
        yield from _signed(folder, str(path))


def of_threads(count: int, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """The same work for `count` threads."""
    names = [folder / str(number) for number in range(64)]
    for name in names:
        name.write_bytes(bytes(2 * MIB))
    source, target = np.ones(256 * MIB, np.uint8), np.ones(256 * MIB, np.uint8)

    def copy(begin: int, end: int) -> None:
        np.copyto(target[begin:end], source[begin:end])

    yield "hash 128 MiB", lambda: trust.hash_paths([str(folder)], workers=count)
    yield "copy 256 MiB", lambda: in_parallel(copy, len(source), threads=count)


CURVES: dict[str, tuple[str, str, Callable[..., Any], list[int], list[int]]] = {
    "tensors": (
        "Processor time against tensors of 32 bytes", "tensors", of_tensors,
        [10, 100, 1000, 10_000, 100_000, 1_000_000], [10, 1000, 10_000],
    ),
    "shards": (
        "Processor time against shards of ten tensors", "shards", of_shards,
        [1, 5, 50, 500], [1, 10],
    ),
    "bytes": (
        "Processor time against the size of one matrix, MiB", "MiB", of_bytes,
        [1, 16, 128, 1024, 4096, 65536], [1, 16],
    ),
    "threads": (
        "Wall time of the same work against threads", "threads", of_threads,
        [1, 2, 4, 8, 16], [1, 2],
    ),
}  # fmt: skip
"""Name -> title, axis, what is measured, sizes, sizes of a quick run."""


def measure(name: str, *, quick: bool) -> dict[str, Points]:
    """The curves of one axis."""
    _, axis, make, sizes, few = CURVES[name]
    found: dict[str, dict[int, float]] = {}

    def measure_at(size: int, *, only: Collection[str] = (), without: Collection[str] = ()) -> None:
        with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
            for operation, work in make(size, Path(folder)):
                if operation not in without and (not only or operation in only):
                    seconds = repeated(partial(_forgetful, work), wall=name == "threads")
                    print(
                        f"{size:>9,} {axis:8} {operation:16} {seconds * 1e3:12.3f} ms", flush=True
                    )
                    points = found.setdefault(operation, {})
                    points[size] = min(seconds, points.get(size, seconds))

    given_up: set[str] = set()
    chosen = few if quick else sizes
    for size, larger in zip(chosen, [*chosen[1:], chosen[-1]], strict=True):
        measure_at(size, without=given_up)
        given_up |= {
            each for each, points in found.items() if points.get(size, 0) * larger / size > MOST
        }
    for _ in range(0 if name == "threads" else 3):
        curves = {operation: [*points.items()] for operation, points in found.items()}
        again: dict[int, list[str]] = {}
        for operation, points in curves.items():
            if (slope(points) or 0) > STEEPEST:
                for size, _ in last_decade(points) or ():
                    again.setdefault(size, []).append(operation)
        for size, operations in sorted(again.items()):
            measure_at(size, only=operations)
    return {operation: [*points.items()] for operation, points in found.items()}


def _forgetful(work: Callable[[], object]) -> None:
    """Do it as the first time in a process: small headers that were read before are remembered."""
    header._checked.clear()
    work()


def _shown(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def table(axis: str, curves: dict[str, Points]) -> str:
    """The figures as Markdown."""
    sizes = sorted({work for points in curves.values() for work, _ in points})
    lines = [
        f"| {axis} | " + " | ".join(f"{size:,}" for size in sizes) + " | exponent |",
        "|---|" + "--:|" * (len(sizes) + 1),
    ]
    for name, points in curves.items():
        by_size = dict(points)
        cells = [_shown(by_size[size]) if size in by_size else "" for size in sizes]
        steep = slope(points)
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if steep is None else steep} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes; replaces no picture")
    parser.add_argument("--curve", action="append", choices=CURVES, help="only this one")
    given = parser.parse_args()
    folder = ROOT / (".cache/bench/growth" if given.quick else "docs/images")
    folder.mkdir(parents=True, exist_ok=True)
    (ROOT / ".cache").mkdir(exist_ok=True)
    marks = Marks("growth")
    for name in given.curve or CURVES:
        title, axis, *_ = CURVES[name]
        curves = measure(name, quick=given.quick)
        (folder / f"growth-{name}.svg").write_text(draw(title, axis, curves))
        print(f"\n{table(axis, curves)}")
        for operation, points in curves.items():
            steep = slope(points)
            if name != "threads" and steep is not None:
                marks.add(f"{operation} by {axis}: exponent", steep, most=STEEPEST)
    return marks.close()


if __name__ == "__main__":
    sys.exit(main())
