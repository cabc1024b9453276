"""Loading onto an accelerator and saving from it, beside the reference and the specialised loaders.

    python benchmarks/accelerators.py [--device cuda] [--mib 8192] [--runs 5] [--cold 2]
                                      [--only TEXT] [--prerelease FOLDER] [--json FILE]

Contenders take turns; each load is a process of its own, which has made the device's context before the
clock starts, loads the same file twice and is checked: all contenders must have the same bytes on the
device. The first load in a process pays what a process pays once (pinned memory, device memory, kernels);
the second does not. ``--prerelease`` names a folder that holds safetensors 0.9, whose `prefetch` 0.8 does
not have. What is not installed is named and left out. Beside them stands what the machine can do: one copy
of the same size from pinned memory, and to save, one write of it; and copies from a mapping of the file,
read-only and private writable, since some platforms were reported to copy from the latter 200 times slower
(sglang 37822). A save is checked by loading what it wrote.
"""

# ruff: noqa: ARG001 - every way is called alike
from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MIB = 1 << 20

Loaded = dict[str, "torch.Tensor"]
Way = Callable[[str, "torch.device", bool], Loaded]


def load_ours(path: str, device: torch.device, cold: bool) -> Loaded:
    import safeweights.torch

    return safeweights.torch.load_file(path, device=device)


def stream_ours(path: str, device: torch.device, cold: bool) -> Loaded:
    import safeweights

    with safeweights.stream(path, "pt", device=device) as tensors:
        return dict(tensors)


def load_reference(path: str, device: torch.device, cold: bool) -> Loaded:
    import safetensors.torch

    return safetensors.torch.load_file(path, device=str(device))


def prefetch_reference(path: str, device: torch.device, cold: bool) -> Loaded:
    import safetensors

    with safetensors.safe_open(path, "pt", device=str(device)) as file, file.prefetch() as loader:
        return dict(loader)


def no_preparation(path: str, device: torch.device) -> None: ...


def require_prefetch(path: str, device: torch.device) -> None:
    import safetensors

    if not hasattr(safetensors.safe_open, "prefetch"):
        raise ImportError(f"safetensors {safetensors.__version__} has no prefetch")


def load_fastsafetensors(path: str, device: torch.device, cold: bool) -> Loaded:
    from fastsafetensors import fastsafe_open

    os.environ["FASTSAFETENSORS_ODIRECT"] = str(int(cold))  # the faster of the two in either case
    with fastsafe_open([path], device=str(device), nogds=True) as file:
        # Its tensors are parts of memory that closing the file frees: they are copied to be kept.
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def load_instanttensor(path: str, device: torch.device, cold: bool) -> Loaded:
    from instanttensor import BackendPolicy, safe_open

    backend = None if cold else BackendPolicy.BUFFERED  # as its documentation advises
    with safe_open(path, framework="pt", device=device.index or 0, backend=backend) as file:
        return dict(file.tensors())


def load_ours_jax(path: str, device: torch.device, cold: bool) -> Loaded:
    import jax

    import safeweights.flax

    return jax.block_until_ready(safeweights.flax.load_file(path))


def load_reference_jax(path: str, device: torch.device, cold: bool) -> Loaded:
    import jax
    import safetensors.flax

    return jax.block_until_ready(safetensors.flax.load_file(path))


def stream_runai(path: str, device: torch.device, cold: bool) -> Loaded:
    os.environ.setdefault("RUNAI_STREAMER_LOG_LEVEL", "ERROR")
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_file(path, device=str(device))
        return dict(streamer.get_tensors())


def copy_pinned(path: str, device: torch.device, cold: bool) -> Loaded:
    import torch

    global _pinned
    if _pinned is None:
        _pinned = torch.ones(
            os.path.getsize(path), dtype=torch.uint8, pin_memory=device.type != "cpu"
        )
    return {"copy": _pinned.to(device)}


_pinned: torch.Tensor | None = None


def pin(path: str, device: torch.device) -> None:
    copy_pinned(path, device, False)


def start_jax(face: str, path: str, device: torch.device) -> None:
    import_module(face)
    import_module("jax").numpy.zeros(1 << 20).block_until_ready()  # makes its context


def copy_mapping(access: int, path: str, device: torch.device, cold: bool) -> Loaded:
    import numpy as np
    import torch

    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=access)
    return {"copy": torch.from_numpy(np.frombuffer(mapped, np.uint8)).to(device)}


WAYS: dict[str, Way] = {
    "safeweights load_file": load_ours,
    "safeweights stream": stream_ours,
    "safetensors load_file": load_reference,
    "safetensors 0.9 prefetch": prefetch_reference,
    "fastsafetensors": load_fastsafetensors,
    "InstantTensor": load_instanttensor,
    "Run:ai streamer": stream_runai,
    "safeweights flax.load_file": load_ours_jax,
    "safetensors flax.load_file": load_reference_jax,
}
MODULES = {
    "safeweights": "safeweights.torch",
    "safetensors": "safetensors.torch",
    "Run:ai": "runai_model_streamer",
    "InstantTensor": "instanttensor",
}
"""First word of a way -> what it imports, before the clock starts."""


def save_ours(tensors: Loaded, path: str) -> None:
    import safeweights.torch

    safeweights.torch.save_file(tensors, path)


def save_reference(tensors: Loaded, path: str) -> None:
    import safetensors.torch

    safetensors.torch.save_file(tensors, path)


def write_pinned(tensors: Loaded, path: str) -> None:
    with open(path, "wb", buffering=0) as file:
        rest = _pinned.numpy().data
        while rest:
            rest = rest[file.write(rest) :]


SAVES: dict[str, Callable[[Loaded, str], None]] = {
    "safeweights save_file": save_ours,
    "safetensors save_file": save_reference,
    "limit: one write of host memory": write_pinned,
}
LIMITS: dict[str, Way] = {
    "limit: one copy from pinned memory": copy_pinned,
    "limit: a copy from a read-only mapping": partial(copy_mapping, mmap.ACCESS_READ),
    "limit: a copy from a private writable mapping": partial(copy_mapping, mmap.ACCESS_COPY),
}
BEFORE: dict[str, Callable[[str, torch.device], None]] = {
    "safetensors 0.9 prefetch": require_prefetch,
    "safeweights flax.load_file": partial(start_jax, "safeweights.flax"),
    "safetensors flax.load_file": partial(start_jax, "safetensors.flax"),
    "limit: one copy from pinned memory": pin,
    "limit: one write of host memory": pin,
}
"""Way -> what it needs before the clock starts, beside its module."""


def work(way: str, path: str, at: str, cold: bool) -> dict[str, Any]:
    """One process of a contender: the seconds of two loads, and what they brought."""
    import torch

    device = torch.device(at, 0) if at in {"cuda", "xpu"} else torch.device(at)
    synchronize = torch.accelerator.synchronize if device.type != "cpu" else int
    torch.zeros(1 << 20, device=device).add_(1)  # makes the device's context
    package = way.split()[0]
    try:
        if package != "limit:":
            import_module(MODULES.get(package, package))
        BEFORE.get(way, no_preparation)(path, device)
    except ImportError as error:
        return {"missing": str(error)}
    saved = f"{path}.saved"
    held = load_ours(path, device, cold) if way in SAVES else {}
    synchronize()
    seconds, before = [], peak_memory()
    for number in range(2):
        began = time.perf_counter()
        if way in SAVES:
            SAVES[way](held, saved)
            tensors = held
        else:
            tensors = {**WAYS, **LIMITS}[way](path, device, cold)
            synchronize()
        seconds.append(time.perf_counter() - began)
        if number == 0:
            host = peak_memory() - before
            if way in SAVES and package != "limit:":
                tensors = load_ours(saved, device, cold)
            check = checksum(tensors, device)
        del tensors
        Path(saved).unlink(missing_ok=True)
    return {"seconds": seconds, "check": check, "host": host}


def checksum(tensors: Loaded, device: torch.device) -> list[int]:
    import torch

    total = 0
    for name, array in tensors.items():
        # One of JAX is looked at where it is.
        tensor = array if isinstance(array, torch.Tensor) else torch.from_dlpack(array)
        if tensor.device != device:
            raise SystemExit(f"{name} is on {tensor.device}, not {device}")
        data = tensor.reshape(-1).view(torch.uint8)
        total += sum(int(part.sum(dtype=torch.int64)) for part in data.split(256 * MIB))
        total += sum(name.encode()) * tensor.numel()
    return [len(tensors), total]


def peak_memory() -> int:
    """Bytes of memory this process had at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def write_model(path: Path, mib: int) -> int:
    """A file shaped like a decoder of bfloat16: per layer two norms and seven matrices; its tensors."""
    width, inner = 4096, 14336
    shapes = {
        "input_layernorm": (width,), "post_attention_layernorm": (width,),
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (width // 4, width),
        "self_attn.v_proj": (width // 4, width), "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner),
    }  # fmt: skip
    layer_bytes = 2 * sum(math.prod(shape) for shape in shapes.values())
    return write_file(
        path,
        {
            f"model.layers.{layer}.{name}.weight": shape
            for layer in range(max(1, mib * MIB // layer_bytes))
            for name, shape in shapes.items()
        },
    )


def write_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """A file of BF16 tensors of these shapes, with random bytes; their number."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for at in range(0, end, 64 * MIB):
            file.write(os.urandom(min(64 * MIB, end - at)))
    return len(header)


def run_once(way: str, path: Path, options: argparse.Namespace, *, cold: bool) -> dict[str, Any]:
    environment = dict(os.environ)
    if way.startswith("safetensors 0.9"):
        if options.prerelease is None:
            return {"missing": "no --prerelease folder"}
        paths = [str(options.prerelease), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if cold:
        from bench.machine import drop_from_cache

        drop_from_cache(path)
    command = [sys.executable, __file__, "--device", options.device, "--way", way, str(path)]
    command += ["--cold", str(int(cold))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=300
        )
    except subprocess.TimeoutExpired:
        return {"failed": "it hung for five minutes"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    path: Path, ways: Sequence[str], options: argparse.Namespace, cold_runs: int
) -> dict[str, Any]:
    """Every way in turn, `runs` times with the file in the page cache, `cold_runs` times without."""
    found: dict[str, Any] = {
        way: {"first": [], "again": [], "cold": [], "host": []}
        for way in ways
        if options.only in way
    }
    checks: dict[str, list[int]] = {}
    for number in range(options.runs + cold_runs):
        cold = number >= options.runs
        for way, row in found.items():
            if "missing" in row or "failed" in row:
                continue
            answer = run_once(way, path, options, cold=cold)
            print(f"{way}{', cold' * cold}: {answer}", file=sys.stderr)
            if "seconds" not in answer:
                row.update(answer)
                continue
            row["cold" if cold else "first"].append(answer["seconds"][0])
            if not cold:
                row["again"].append(answer["seconds"][1])
            row["host"].append(answer["host"])
            if not way.startswith("limit"):
                check = checks.setdefault(way, answer["check"])
                if check != next(iter(checks.values())):
                    row["failed"] = "other bytes than the others"
    return found


def device_line(device: str) -> str:
    import torch

    module = getattr(torch, torch.device(device).type)
    name = module.get_device_name() if hasattr(module, "get_device_name") else device
    return f"{name}, torch {torch.__version__}, {os.cpu_count()} cores, Linux {platform.release()}"


def table(found: dict[str, Any], verb: str, nbytes: int) -> str:
    def rate(samples: list[float]) -> str:
        if not samples:
            return "-"
        best = statistics.median(samples)
        spread = (max(samples) - min(samples)) / best
        return f"{nbytes / best / 2**30:.2f} (±{spread / 2:.0%})"

    lines = [
        f"| | first {verb} in a process | second | not in the page cache | host memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for way, row in found.items():
        if reason := row.get("missing") or row.get("failed"):
            lines.append(f"| {way} | {reason} | | | |")
            continue
        host = statistics.median(row["host"]) / MIB
        cells = [rate(row["first"]), rate(row["again"]), rate(row["cold"])]
        lines.append(f"| {way} | {' | '.join(cells)} | {host:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--mib", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cold", type=int, default=2, help="loads of a file not in the page cache")
    parser.add_argument("--only", default="", metavar="TEXT", help="ways whose name has this text")
    parser.add_argument("--prerelease", type=Path, help="folder that holds safetensors 0.9")
    parser.add_argument("--folder", type=Path, help="where the file is made (a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write every sample here")
    parser.add_argument("--way", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(work(*options.way, options.device, bool(options.cold))))
        return
    from bench.machine import NotCold, drop_from_cache, read_into_cache

    line = device_line(options.device)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder, "model.safetensors")
        count = write_model(path, options.mib)
        try:
            drop_from_cache(path)
        except NotCold as error:
            print(f"no loads from disk: {error}", file=sys.stderr)
            options.cold = 0
        read_into_cache(path)
        loads = measure(path, [*WAYS, *LIMITS], options, options.cold)
        saves = measure(path, [*SAVES], options, 0)
        nbytes = path.stat().st_size
    print(
        f"{line}: {nbytes / 2**30:.2f} GiB of BF16 in {count} tensors; GiB/s, median and half the spread."
    )
    print("", table(loads, "load", nbytes), "", table(saves, "save", nbytes), sep="\n")
    if options.json:
        found = {"machine": line, "bytes": nbytes, "ways": loads, "saves": saves}
        options.json.write_text(json.dumps(found, indent=1))
    if wrong := [way for way, row in {**loads, **saves}.items() if "failed" in row]:
        sys.exit(f"failed: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
