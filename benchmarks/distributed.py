"""Two ranks save and load one model (torch.distributed.checkpoint), beside torch's own ways.

    python benchmarks/distributed.py [--mib 1024]

Each of four things, to save and to load rows and columns, is done by two new processes (gloo): after
saves of rows in the same processes, saves of columns took up to half as long again. The ways take turns
on them, after one round that does not count; each round begins with another way, and the median counts.
With `--again` (see `bench.marks`), two more pairs of processes do the same. Before each save twice its
memory is touched, or the first would wait for the host to back it (see `bench/machine.py`). The clock runs
from a barrier to the next one. "Memory" is what the peak of a rank's resident set grew by, "disk" what is
in the folder afterwards. FSDP 2 divides rows; "columns" is what row-wise tensor parallelism divides: runs
of 2 to 8 KiB in a file.

All ways load the same files into the same tensors, in more rounds, which begin with another way each
time. The files were read back from the disk into the page cache before: after a save they lie there in
other pieces than after a load that read them from the disk, which decides how many page faults a mapping
costs. Each load opens the files and maps them anew, so that its page faults count. The tensors were
touched before. "Fetched" is what both ranks together read from the disk in one more load, before which
the files were dropped from the page cache, by the size of the model.

"Bare" ways show what limits `torch.distributed.checkpoint`. The writer puts each rank's tensors into a
file of its own, without header or index. The readers trust the headers, check no target, and do nothing
but copy, from a new mapping (NumPy) or with pread(2). The one that copies nothing shows what the planner
and its collective calls take, whatever the reader does.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from bench.machine import read_into_cache, touch_memory
from bench.marks import Mark, Marks, compared, parser, timed
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.futures import Future

from safeweights.distributed import StorageReader, StorageWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
    from torch.distributed.checkpoint.storage import WriteResult

Ways: TypeAlias = "dict[str, list[list[float]]]"
"""A way to do something -> a row of figures for each time."""

Found: TypeAlias = "dict[str, Ways]"
"""What was done -> the ways to do it."""

DONE = ("save rows", "save columns", "load rows", "load columns")

RUNS = 3
LOADS = 5
"""Rounds of loads for each round of saves."""
RANKS = 2


class BareWriter(dcp.FileSystemWriter):
    """Writes this rank's tensors to a new file of its own, with write(2), and does nothing else."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name = Path(self.path) / f"{dist.get_rank()}.bare"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        for item in plan.items:
            tensor = planner.resolve_data(item).detach().view(torch.int16)
            rest = memoryview(tensor.numpy()).cast("B")
            while rest:
                rest = rest[os.write(descriptor, rest[: 1 << 23]) :]
        os.close(descriptor)
        done: Future[list[WriteResult]] = Future()
        done.set_result([])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """No index is written."""


BARE = "bare, write(2)"
WRITERS = {
    "safeweights": lambda path: StorageWriter(path),
    "safeweights, durable": lambda path: StorageWriter(path, durable=True),
    "torch, Hugging Face with consolidation": lambda path: HuggingFaceStorageWriter(
        path, save_distributed=True, enable_consolidation=True
    ),
    "torch, .distcp": lambda path: dcp.FileSystemWriter(path, sync_files=False),
    "torch, .distcp, synced": lambda path: dcp.FileSystemWriter(path),
    BARE: lambda path: BareWriter(path),
}


class BareReader(HuggingFaceStorageReader):
    """Copies this rank's part of each tensor, and does nothing else.

    Args:
        path: The folder.
        way: ``"map"``, ``"pread"`` (for rows), or ``"nothing"``.
    """

    def __init__(self, path: str, way: str) -> None:
        super().__init__(path)
        self._way = way

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        opened: dict[str, tuple[int, mmap.mmap, int, Any]] = {}
        for item in plan.items:
            name = self.storage_data[item.storage_index].relative_path
            if name not in opened:
                opened[name] = _opened(name)
            descriptor, data, start, header = opened[name]
            info = header[item.storage_index.fqn]
            begin = start + info["data_offsets"][0]
            target = planner.resolve_tensor(item).detach().view(torch.int16).numpy()
            if self._way == "map":
                stored = np.ndarray(info["shape"], np.int16, data, begin)
                rows, columns = zip(item.storage_offsets, item.lengths, strict=True)
                target[...] = stored[rows[0] : sum(rows), columns[0] : sum(columns)]
            elif self._way == "pread":
                begin += item.storage_offsets[0] * info["shape"][1] * 2
                memory = memoryview(target).cast("B")
                for at in range(0, len(memory), 1 << 23):
                    os.preadv(descriptor, [memory[at : at + (1 << 23)]], begin + at)
        for descriptor, *_ in opened.values():
            os.close(descriptor)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _opened(name: str) -> tuple[int, mmap.mmap, int, Any]:
    descriptor = os.open(name, os.O_RDONLY)
    data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(data[:8], "little")
    return descriptor, data, start, json.loads(data[8:start])


MAPPED, READ, NOTHING = "bare, from a mapping", "bare, pread(2)", "bare, copies nothing"
READERS: dict[str, Callable[[str], Any]] = {
    "safeweights": lambda path: StorageReader(path),
    "torch, Hugging Face": lambda path: HuggingFaceStorageReader(path),
    MAPPED: lambda path: BareReader(path, "map"),
    READ: lambda path: BareReader(path, "pread"),
    NOTHING: lambda path: BareReader(path, "nothing"),
}


def state(mib: int, axis: int, value: float) -> dict[str, DTensor]:
    """Layers of the size of Llama 3.2 1B, of which this rank has a half."""
    mesh = init_device_mesh("cpu", (RANKS,))
    layer = {
        "self_attn.q_proj": (2048, 2048), "self_attn.k_proj": (512, 2048),
        "self_attn.v_proj": (512, 2048), "self_attn.o_proj": (2048, 2048), "mlp.gate_proj": (8192, 2048),
        "mlp.up_proj": (8192, 2048), "mlp.down_proj": (2048, 8192), "input_layernorm": (2048, 2),
        "post_attention_layernorm": (2048, 2),
    }  # fmt: skip
    found = {}
    for number in range(max(1, (mib << 20) // sum(2 * a * b for a, b in layer.values()))):
        for name, (rows, columns) in layer.items():
            shape = [rows, columns]
            shape[axis] //= RANKS
            local = torch.full(shape, value + dist.get_rank(), dtype=torch.bfloat16)
            placed = DTensor.from_local(local, mesh, [Shard(axis)])
            found[f"model.layers.{number}.{name}.weight"] = placed
    return found


def counters() -> tuple[int, int]:
    """Resident set in bytes, after its peak was set back to it; bytes that this process read from disks."""
    Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    io = dict(line.split(":") for line in Path("/proc/self/io").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) << 10, int(io["read_bytes"])


def peak() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10


def measured(work: Callable[[], object]) -> list[float]:
    """Seconds and growth of the resident set in bytes, of the rank with the most; bytes read by all."""
    resident, read = counters()
    dist.barrier()
    began = time.perf_counter()
    work()
    dist.barrier()
    found = [time.perf_counter() - began, peak() - resident, counters()[1] - read]
    every: list[Any] = [None] * RANKS
    dist.all_gather_object(every, found)
    seconds, grown, fetched = zip(*every, strict=True)
    return [max(seconds), max(grown), sum(fetched)]


def drop(path: str) -> None:
    """Take files out of the page cache."""
    for file in Path(path).iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rank(folder: str, mib: int, runs: int, what: str) -> NoReturn:
    """What each of two processes does; the first one prints what was measured."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    action, side = what.split()
    axis = ("rows", "columns").index(side)
    if action == "save":
        found = saves(state(mib, axis, 1), folder, runs)
    else:
        path = f"{folder}/loaded"
        dcp.save(state(mib, axis, 1), storage_writer=StorageWriter(path))
        found = loads(state(mib, axis, 0), path, axis, LOADS * runs)
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()
    os._exit(0)  # PyTorch may abort when Python exits: see END in tests/ranks/launching.py


def saves(tensors: dict[str, DTensor], folder: str, runs: int) -> Ways:
    """Of each way to save: seconds, growth of memory, and size on the disk by that of the model."""
    first = dist.get_rank() == 0
    need = RANKS * sum(tensor.to_local().nbytes for tensor in tensors.values())
    found: Ways = {way: [] for way in WRITERS}
    for number in range(1 + runs):
        for way in in_turn(WRITERS, number):
            path = f"{folder}/{way}"
            if first:
                touch_memory(2 * need)
            row = measured(partial(dcp.save, tensors, storage_writer=WRITERS[way](path)))
            found[way].append([*row[:2], size_of(path) / need])
            dist.barrier()
            if first:
                shutil.rmtree(path)
            dist.barrier()
    return without_first(found)


def loads(targets: dict[str, DTensor], path: str, axis: int, runs: int) -> Ways:
    """Of each way to load: seconds, growth of memory, and bytes fetched by the size of the model."""
    need = RANKS * sum(tensor.to_local().nbytes for tensor in targets.values())
    found: Ways = {}
    for way in READERS:
        if way != READ or axis == 0:
            found[way] = []

    def load(way: str) -> list[float]:
        for target in targets.values():
            target.to_local().zero_()
        row = measured(partial(dcp.load, targets, storage_reader=READERS[way](path)))
        value = 0 if way == NOTHING else 1 + dist.get_rank()
        # As integers: to compare numbers of two bytes takes longer than to load them.
        bits = torch.full((4,), value, dtype=torch.bfloat16).view(torch.int64)
        for target in targets.values():
            assert bool((target.to_local().flatten().view(torch.int64) == bits[0]).all()), way
        return row

    if dist.get_rank() == 0:
        for file in Path(path).iterdir():
            read_into_cache(file)
    for number in range(1 + runs):
        for way in in_turn(found, number):
            found[way].append(load(way)[:2])
    for way, rows in found.items():
        if dist.get_rank() == 0:
            drop(path)
        dist.barrier()
        fetched = load(way)[2] / need
        for row in rows:
            row.append(fetched)
    return without_first(found)


def in_turn(ways: Iterable[str], number: int) -> list[str]:
    """The order of the ways in a round: each begins with another one."""
    order = [*ways]
    begin = number % len(order)
    return order[begin:] + order[:begin]


def without_first(found: Ways) -> Ways:
    """Without the first round: modules were imported, and memory was used for the first time."""
    return {way: rows[1:] for way, rows in found.items()}


def planning(count: int) -> float:
    """Seconds that laying out the files of so many tensors, in halves on two ranks, takes."""
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        MetadataIndex,
        TensorProperties,
    )
    from torch.distributed.checkpoint.planner import (
        SavePlan,
        TensorWriteData,
        WriteItem,
        WriteItemType,
    )

    from safeweights.frameworks.torch.distributed.coordinating import Options, Report, Save
    from safeweights.storage import LocalStore

    def plan(number: int) -> SavePlan:
        items = []
        for i in range(count):
            size = torch.Size([64, 2 + i % 50])
            half = torch.Size([32, size[1]])
            chunk = ChunkStorageMetadata(torch.Size([32 * number, 0]), half)
            data = TensorWriteData(chunk, TensorProperties(torch.bfloat16), size)
            index = MetadataIndex(f"model.layers.{i}.mlp.experts.weight", chunk.offsets)
            items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
        return SavePlan(items)

    plans = [plan(0), plan(1)]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        options = Options("model", "5GB", None, durable=False)
        save = Save(LocalStore(folder), options, plans, [item.index.fqn for item in plans[0].items])
        save.begin([Report({}, []), Report({}, [])])
        seconds = time.perf_counter() - began
        save.discard(RuntimeError())
    return seconds


def times_of(ways: Ways) -> dict[str, list[float]]:
    """Of each way, the seconds of its runs."""
    return {way: [seconds for seconds, *_ in rows] for way, rows in ways.items()}


def size_of(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def medians_of(found: Found) -> dict[str, dict[str, list[float]]]:
    """Of each way, the medians of what was measured."""
    return {
        what: {
            way: [statistics.median(each) for each in zip(*rows, strict=True)]
            for way, rows in ways.items()
        }
        for what, ways in found.items()
    }


def judged(found: Found) -> list[Mark]:
    """The figures of what was measured."""
    medians = medians_of(found)
    marks: list[Mark] = []
    for what in ("rows", "columns"):
        save, load = f"save {what}", f"load {what}"
        saving, loading = times_of(found[save]), times_of(found[load])
        ours, theirs = "safeweights", "torch, Hugging Face with consolidation"
        (_, memory, disk), others = medians[save][ours], medians[save][theirs]
        plain = saving["torch, .distcp"]
        marks += [
            compared(
                f"{save} / torch's Hugging Face writer", saving[ours], saving[theirs], most=0.5
            ),
            Mark(f"{save}: disk / the same", disk / others[2], most=0.5),
            Mark(f"{save}: extra memory a rank", memory / (1 << 20), most=64, unit="MiB"),
            compared(
                f"{save} / torch's .distcp, unsynced",
                saving[ours],
                plain,
                most=1.0,
                bound=saving[BARE],
            ),
            compared(f"{save}: the bare writer / the same", saving[BARE], plain),
        ]
        theirs = "torch, Hugging Face"
        bare = min((loading[way] for way in (MAPPED, READ) if way in loading), key=min)
        title = f"{load} / torch's Hugging Face reader"
        fetched = medians[load][ours][2]
        marks += [
            compared(title, loading[ours], loading[theirs], most=0.8, bound=bare),
            compared(f"{load}: the fastest bare reader / the same", bare, loading[theirs]),
            Mark(f"{load}: bytes fetched from the disk / needed", fetched, most=1.05),
        ]
    return marks


def measure(folder: str, mib: int, runs: int, what: str) -> Ways:
    """What `saves` or `loads` gives in two new processes."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [
            sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={RANKS}", __file__, "--rank", temporary, "--mib", str(mib),
            "--runs", str(runs), "--what", what,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
    measured: Ways = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=1024, help="size of the model")
    options.add_argument("--folder", default=".", help="where to save")
    options.add_argument("--runs", type=int, default=RUNS)
    options.add_argument("--rank", help=argparse.SUPPRESS)
    options.add_argument("--what", choices=DONE, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.rank:
        rank(given.rank, given.mib, given.runs, given.what)
    marks = Marks("distributed", given)
    found: Found = {what: marks.samples(what, ()) for what in DONE}
    for _ in marks.rounds(1, lambda: judged(found)):
        for what in DONE:
            for way, rows in measure(given.folder, given.mib, given.runs, what).items():
                found[what].setdefault(way, []).extend(rows)
    last = {"save": "disk", "load": "fetched"}
    medians = medians_of(found)
    for what, ways in medians.items():
        print(f"\n| {what}, {given.mib} MiB on 2 ranks | time | memory a rank | {last[what[:4]]} |")
        print("|---|---|---|---|")
        for way, (seconds, memory, ratio) in ways.items():
            print(f"| {way} | {seconds:.3f} s | {memory / (1 << 20):.0f} MiB | {ratio:.2f} x |")
    print()
    marks.found += judged(found)
    title = "plan of 50,000 tensors on 2 ranks"
    times = marks.samples(title, ["seconds"])["seconds"]
    for _ in marks.rounds(1, lambda: [timed(title, times, most=0.5)]):
        times.append(planning(50_000))
    marks.found.append(timed(title, times, most=0.5))
    return marks.close()


if __name__ == "__main__":
    raise SystemExit(main())
