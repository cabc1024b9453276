"""Converting a PyTorch checkpoint and a distributed one: time and memory, beside PyTorch and the reference.

    python benchmarks/conversion.py [--mib 512]

Each conversion is a process of its own, and they take turns; wall time is that of the conversion alone,
without imports, memory what it adds to the process's peak. The files are in the page cache, and free
memory was touched before, since a virtual machine's is slow until its host has backed it. Ours is
measured twice: as it is by default, with the SHA-256 of source and output in the record beside the
output, and without digests and record, which is what the other does. The limit of the first is what these
two digests take, each in a thread with read(2) of the source, and write(2) of the output. The source is
read twice: the digest needs its bytes in the file's order, the output in that of its tensors, and what lies
between would take more memory than the mark allows.
"""

from __future__ import annotations

import json
import pickle
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypeAlias

from bench.machine import touch_memory
from bench.marks import Mark, Marks, compared, parser

RUNS = 6
WORKER = """
import json, pathlib, sys, time
way, source, target = sys.argv[1:]
import torch
if way == "two steps":
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
    def convert():
        whole = pathlib.Path(target).with_suffix(".pt")
        dcp_to_torch_save(source, whole)
        save_file(torch.load(whole, weights_only=True, map_location="cpu"), target)
        whole.unlink()
elif way == "reference":
    from safetensors.torch import save_file
    def convert():
        save_file(torch.load(source, weights_only=True, map_location="cpu"), target)
elif way == "bound":
    import hashlib, threading
    path = pathlib.Path(source)
    sources = sorted(path.glob("*.distcp")) if path.is_dir() else [path]
    def pieces(path, memory):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(memory):
                yield memory[:count]
    def read():
        memory = memoryview(bytearray(4 << 20))
        for each in sources:
            digest = hashlib.sha256()
            for piece in pieces(each, memory):
                digest.update(piece)
    def write():
        memory = memoryview(bytearray(4 << 20))
        digest = hashlib.sha256()
        with open(target, "wb", buffering=0) as file:
            for each in sources:
                for piece in pieces(each, memory):
                    digest.update(piece)
                    file.write(piece)
    def convert():
        threads = [threading.Thread(target=work) for work in (read, write)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
else:
    from safeweights import convert as run
    def convert():
        run(source, target, record=way == "record", digests=way == "record", force=True)
print("ready", flush=True)
sys.stdin.readline()
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before, began = peak(), time.perf_counter()
convert()
print(json.dumps([time.perf_counter() - began, (peak() - before) / 1024]))
"""
BOUND = "two digests, write(2)"
WAYS = {
    "safeweights, no digests": "plain",
    "safeweights, digests recorded": "record",
    BOUND: "bound",
    "torch.load, save_file": "reference",
}
DISTRIBUTED = {
    "safeweights, no digests": "plain",
    "safeweights, digests recorded": "record",
    BOUND: "bound",
    "dcp_to_torch_save, torch.load, save_file": "two steps",
}


def write_distributed(folder: Path, mib: int, ranks: int = 2) -> None:
    """A folder of torch.distributed.checkpoint, 64 tensors, each divided by rows among the ranks."""
    import io

    import torch
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    folder.mkdir()
    tables = dcp.Metadata({}, {}, {}, dcp.StorageMeta(), "1.0.0")
    rows, columns = 1024 // ranks, mib * 4
    for rank in range(ranks):
        with (folder / f"__{rank}_0.distcp").open("wb") as file:
            for number in range(64):
                name = f"layer.{number}.weight"
                offset = rank * rows, 0
                chunk = dcp.ChunkStorageMetadata(torch.Size(offset), torch.Size((rows, columns)))
                kind = dcp.TensorStorageMetadata(
                    dcp.TensorProperties(torch.float32), torch.Size((1024, columns)), []
                )
                tables.state_dict_metadata.setdefault(name, kind).chunks.append(chunk)
                tables.planner_data[name] = (name,)
                item = io.BytesIO()
                torch.save(torch.randn(rows, columns), item)
                place = _StorageInfo(
                    file.name.rpartition("/")[2], file.tell(), len(item.getvalue())
                )
                tables.storage_data[dcp.MetadataIndex(name, offset, rank)] = place
                file.write(item.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(tables))


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=512, help="size of the checkpoint")
    given = options.parse_args()
    size, marks = given.mib, Marks("conversion", given)
    import torch

    with tempfile.TemporaryDirectory(dir=".") as folder:
        source = Path(folder) / "checkpoint.pt"
        torch.save({f"layer.{i}.weight": torch.randn(1024, size * 4) for i in range(64)}, source)
        shown = f"a checkpoint of {size} MiB"
        marks.found += measure(marks, "convert", shown, WAYS, source, size, 1.0)
        source.unlink()
        source = Path(folder) / "distributed"
        write_distributed(source, 2 * size)
        shown = f"a distributed checkpoint of {2 * size} MiB, 2 ranks"
        found = measure(marks, "convert, 2 ranks", shown, DISTRIBUTED, source, 2 * size, 0.4)
        marks.found += found
    return marks.close()


Samples: TypeAlias = "list[list[float]]"
"""Seconds and MiB of each run of one way."""


def judged(title: str, found: dict[str, Samples], most: float) -> list[Mark]:
    """Our two ways, divided by the last way."""
    times = {way: [seconds for seconds, _ in samples] for way, samples in found.items()}
    other = [*found][-1]
    marks = [compared(f"{title}: {BOUND} / {other}", times[BOUND], times[other])]
    for way in [*found][:2]:
        recorded = "recorded" in way
        digests = ", digests" if recorded else ""
        bound = times[BOUND] if recorded else ()
        memory = medians(found[way])[1]
        marks += [
            compared(
                f"{title}{digests} / {other}", times[way], times[other], most=most, bound=bound
            ),
            Mark(f"{title}{digests}: extra memory", memory, most=64, unit="MiB"),
        ]
    return marks


def medians(samples: Samples) -> tuple[float, float]:
    """Seconds and MiB."""
    seconds, memory = (statistics.median(column) for column in zip(*samples, strict=True))
    return seconds, memory


def converted(way: str, source: Path, target: Path, size: int) -> list[float]:
    """Seconds and MiB of one conversion. Memory is touched when the process has imported its modules:
    after two seconds the host may have taken it back."""
    command = [sys.executable, "-c", WORKER, way, str(source), str(target)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        touch_memory(3 * size << 20)
        found, _ = process.communicate("go\n")
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    took: list[float] = json.loads(found)
    return took


def measure(
    marks: Marks, title: str, what: str, ways: dict[str, str], source: Path, size: int, most: float
) -> list[Mark]:
    """Convert in each way, in turn, and print a table of medians; the marks of what was measured."""
    target = source.with_name("out.safetensors")
    samples: dict[str, Samples] = marks.samples(title, ways)
    turns = list(ways.items())
    for turn in marks.rounds(RUNS, lambda: judged(title, samples, most)):
        begin = turn % len(turns)  # none is always the first
        for name, way in turns[begin:] + turns[:begin]:
            samples[name].append(converted(way, source, target, size))
            target.unlink()
    print(
        f"| {what}, {len(samples[BOUND])} times | time | extra memory at the peak |\n|---|---|---|"
    )
    for name, found in samples.items():
        seconds, memory = medians(found)
        print(f"| {name} | {seconds:.2f} s | {memory:.0f} MiB |")
    print()
    return judged(title, samples, most)


if __name__ == "__main__":
    sys.exit(main())
