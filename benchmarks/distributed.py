"""Two ranks save and load one model (torch.distributed.checkpoint), beside torch's own ways.

    python benchmarks/distributed.py [--mib 1024]

Each way runs on two fresh processes (gloo); ways take turns, and the median counts. The clock runs from a
barrier to the next one. "Memory" is what the peak of a rank's resident set grew by, "disk" what is in the
folder afterwards. Everything is in the page cache: the work is compared, not the disk. FSDP 2 divides rows;
"columns" is what row-wise tensor parallelism divides: runs of 2 to 8 KiB in a file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from safeweights.distributed import StorageReader, StorageWriter

RUNS = 3
RANKS = 2

WRITERS = {
    "safeweights": lambda path: StorageWriter(path),
    "safeweights, durable": lambda path: StorageWriter(path, durable=True),
    "torch, Hugging Face with consolidation": lambda path: HuggingFaceStorageWriter(
        path, save_distributed=True, enable_consolidation=True
    ),
    "torch, .distcp": lambda path: dcp.FileSystemWriter(path, sync_files=False),
    "torch, .distcp, synced": lambda path: dcp.FileSystemWriter(path),
}
READERS = {
    "safeweights": lambda path: StorageReader(path),
    "torch, Hugging Face": lambda path: HuggingFaceStorageReader(path),
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
    """Resident set in bytes, after its peak was set back to it; bytes read by this process."""
    Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    io = dict(line.split(":") for line in Path("/proc/self/io").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) << 10, int(io["rchar"])


def peak() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10


def rank(verb: str, way: str, path: str, mib: int, axis: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    tensors = state(mib, axis, 1 if verb == "save" else 0)
    resident, read = counters()
    dist.barrier()
    began = time.perf_counter()
    if verb == "save":
        dcp.save(tensors, storage_writer=WRITERS[way](path))
    else:
        dcp.load(tensors, storage_reader=READERS[way](path))
    dist.barrier()
    seconds = time.perf_counter() - began
    need = sum(tensor.to_local().nbytes for tensor in tensors.values())
    for tensor in tensors.values():
        assert tensor.to_local()[-1, -1] == 1 + dist.get_rank()
    found = [seconds, peak() - resident, (counters()[1] - read) / need]
    every = [None] * RANKS if dist.get_rank() == 0 else None
    dist.gather_object(found, every)
    if every:
        print(json.dumps([max(each[i] for each in every) for i in range(3)]))
    dist.destroy_process_group()


def measured(verb: str, way: str, path: str, mib: int, axis: int) -> list[float]:
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={RANKS}", __file__, "--rank", verb, way, path, str(mib), str(axis),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


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


def size_of(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the model")
    parser.add_argument("--folder", default=".", help="where to save")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--rank", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        verb, way, path, mib, axis = given.rank
        rank(verb, way, path, int(mib), int(axis))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for axis, what in ((0, "rows"), (1, "columns")):
            saves: dict[str, list[list[float]]] = {way: [] for way in WRITERS}
            loads: dict[str, list[list[float]]] = {way: [] for way in READERS}
            disk = {}
            for _ in range(given.runs):
                for way, found in saves.items():
                    path = f"{folder}/{way[:3]}"
                    found.append([*measured("save", way, path, given.mib, axis)])
                    disk[way] = size_of(path) / (given.mib << 20)
                    if way == "safeweights":
                        for reader, times in loads.items():
                            times.append(measured("load", reader, path, given.mib, axis))
                    shutil.rmtree(path)
            print(f"| save {given.mib} MiB, {what} on 2 ranks | time | memory a rank | disk |")
            print("|---|---|---|---|")
            for way, found in saves.items():
                seconds, memory, _ = (statistics.median(each) for each in zip(*found, strict=True))
                row = f"{seconds:.2f} s | {memory / (1 << 20):.0f} MiB | {disk[way]:.2f} x"
                print(f"| {way} | {row} |")
            print(
                f"\n| load {given.mib} MiB, {what} on 2 ranks | time | memory a rank | bytes read |"
            )
            print("|---|---|---|---|")
            for way, found in loads.items():
                seconds, memory, read = (
                    statistics.median(each) for each in zip(*found, strict=True)
                )
                row = f"{seconds:.2f} s | {memory / (1 << 20):.0f} MiB | {read:.3f} of need"
                print(f"| {way} | {row} |")
            print()
    print(f"| plan of 50,000 tensors on 2 ranks | {planning(50_000):.2f} s |")


if __name__ == "__main__":
    main()
