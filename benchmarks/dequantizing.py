"""Dequantising: time and memory, beside the package gguf and a formula in PyTorch on the CPU.

    python benchmarks/dequantizing.py [--mib 256]

A tensor of so many MiB of float32 values is read from a file in the page cache into an array. Each way is a
process of its own, and they take turns; time is that of the values alone, the best of three in a process.
Extra memory is what the process's peak grows by, less the array: ours is measured as a conversion reads it,
16 MiB at a time, theirs as their functions are called, with the whole tensor.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.marks import Mark, Marks, compared, parser

RUNS = 5
COLUMNS = 4096
WORKER = """
import json, pathlib, sys, time
import numpy as np
way, kind, path = sys.argv[1:]
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
if way == "ours":
    import safeweights
    tensor = safeweights.open(path, backend="pread").dequantize()["a.weight"]
    def values():
        return tensor.view()
    def memory():
        for piece in tensor.chunks():
            del piece
        return 16
elif kind == "FP8":
    import torch
    from safetensors import safe_open
    with safe_open(path, "pt") as file:
        weight, scale = (file.get_tensor(f"a.weight{end}").clone() for end in ("", "_scale_inv"))
    rows, columns = weight.shape
    def values():
        blocks = weight.float().view(rows // 128, 128, columns // 128, 128)
        return (blocks * scale[:, None, :, None]).view(rows, columns)
    def memory():
        return values().numel() * 4 / 2**20
else:
    from gguf import GGUFReader, quants
    (found,) = GGUFReader(path).tensors
    data = np.array(found.data)
    def values():
        return quants.dequantize(data, found.tensor_type)
    def memory():
        return values().nbytes / 2**20
before = peak()
result = memory()
extra = peak() - before - result
seconds = []
for _ in range(3):
    began = time.perf_counter()
    values()
    seconds.append(time.perf_counter() - began)
print(json.dumps([min(seconds), max(0, extra)]))
"""


def write(folder: Path, kind: str, rows: int) -> Path:
    """A file with one weight of `rows` x `COLUMNS`."""
    import numpy as np

    random = np.random.default_rng(0)
    if kind == "FP8":
        import torch
        from safetensors.torch import save_file

        path = folder / "fp8" / "model.safetensors"
        path.parent.mkdir()
        weight = torch.randn(rows, COLUMNS).to(torch.float8_e4m3fn)
        scale = torch.rand(rows // 128, COLUMNS // 128) + 0.1
        save_file({"a.weight": weight, "a.weight_scale_inv": scale}, path)
        settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        (path.parent / "config.json").write_text(json.dumps({"quantization_config": settings}))
        return path
    import gguf

    which = gguf.GGMLQuantizationType[kind]
    values, nbytes = gguf.GGML_QUANT_SIZES[which]
    blocks = random.integers(0, 256, (rows * COLUMNS // values, nbytes), dtype=np.uint8)
    for place in (0, 2) if kind == "Q4_K" else (0,):  # scales
        scales = random.normal(size=len(blocks)).astype("<f2")
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    path = folder / f"{kind}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("a.weight", blocks.reshape(rows, -1), raw_dtype=which)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def measure(marks: Marks, kind: str, peer: str, path: Path) -> list[Mark]:
    """Dequantise in both ways, in turn, and print a line of the table."""
    samples: dict[str, list[list[float]]] = marks.samples(kind, ["ours", "theirs"])

    def found() -> Mark:
        ours, theirs = ([seconds for seconds, _ in runs] for runs in samples.values())
        return compared(f"{kind} / {peer}", ours, theirs, most=0.7)

    for turn in marks.rounds(RUNS, lambda: [found()]):
        for way in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
            command = [sys.executable, "-c", WORKER, way, kind, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            samples[way].append(json.loads(done.stdout))
    ours, theirs = (
        [statistics.median(column) for column in zip(*runs, strict=True)]
        for runs in samples.values()
    )
    print(
        f"| {kind} / {peer} | {ours[0]:.3f} s | {theirs[0]:.3f} s | {ours[0] / theirs[0]:.2f} "
        f"| {ours[1]:.0f} MiB, theirs {theirs[1]:.0f} MiB |"
    )
    return [found(), Mark(f"{kind}: extra memory", ours[1], most=64, unit="MiB")]


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=256, help="size of the values in F32")
    given = options.parse_args()
    rows = max(1, given.mib * (1 << 20) // 4 // COLUMNS // 128) * 128
    marks = Marks("dequantizing", given)
    print(f"| {rows * COLUMNS >> 18} MiB of values | ours | theirs | ratio | extra memory |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=".") as name:
        for kind, peer in (("Q4_K", "gguf"), ("Q8_0", "gguf"), ("FP8", "PyTorch, CPU")):
            path = write(Path(name), kind, rows)
            marks.found += measure(marks, kind, peer, path)
    return marks.close()


if __name__ == "__main__":
    sys.exit(main())
