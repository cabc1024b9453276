"""The files that are read and the tensors that are written: made once, the same on every machine.

Files are written by a few lines of this module, not by any contender, and kept under
``.cache/bench/data`` under a name that says all their parameters. Values are random bits: nothing that
stores, transfers or deduplicates blocks can gain from them.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "CHANGES", "MIB", "Spec", "changed", "ensure", "entries", "header_of", "read_tensors", "shards",
    "synced", "tensor_views",
]  # fmt: skip

MIB: Final = 1 << 20
CHANGES: Final = 60
"""Elements of which one changes in a delta: 1.7 %, as in an update of reinforcement learning."""

_SEED: Final = 20_231_016
_BLOCK: Final = 64 * MIB
_BYTES: Final = {"BF16": 2, "F16": 2, "F32": 4}

Entry = tuple[str, str, tuple[int, ...], int, int]
"""Name, dtype, shape, first byte and one past the last, counted from the start of the data."""


@dataclass(frozen=True)
class Spec:
    """What a file holds.

    Attributes:
        layout: ``"model"``: `count` tensors in the proportions of a decoder; ``"equal"``: `count`
            tensors of equal size; ``"square"``: one matrix; ``"folder"``: no file, but a folder of
            `count` files of equal size in folders of 500.
        dtype: Code of the element type.
        count: Number of tensors.
        nbytes: Bytes of all of them, about.
    """

    layout: str
    dtype: str
    count: int
    nbytes: int

    @property
    def filename(self) -> str:
        suffix = "" if self.layout == "folder" else ".safetensors"
        return f"{self.layout}-{self.dtype}-{self.count}x-{self.nbytes}{suffix}"


def entries(spec: Spec) -> list[Entry]:
    """The tensors of a file in order; without looking at it."""
    result, offset = [], 0
    for name, shape in _shapes(spec):
        end = offset + math.prod(shape) * _BYTES[spec.dtype]
        result.append((name, spec.dtype, shape, offset, end))
        offset = end
    return result


def _shapes(spec: Spec) -> Iterator[tuple[str, tuple[int, ...]]]:
    size = _BYTES[spec.dtype]
    if spec.layout == "folder":
        for number in range(spec.count):
            yield (
                f"{number // 500:03}/{number:06}.bin",
                (max(1, spec.nbytes // spec.count // size),),
            )
    elif spec.layout == "square":
        side = math.isqrt(spec.nbytes // size) // 64 * 64
        yield "matrix", (side, side)
    elif spec.layout == "equal":
        each = max(1, spec.nbytes // spec.count // size)
        columns = math.gcd(each, 1 << 10)
        for number in range(spec.count):
            layer, expert = divmod(number, 128)
            yield f"model.layers.{layer}.mlp.experts.{expert}.w1", (each // columns, columns)
    else:
        yield from _decoder(spec, size)


_PARTS: Final = (
    ("self_attn.q_proj.weight", 4, 4),
    ("self_attn.k_proj.weight", 1, 4),
    ("self_attn.v_proj.weight", 1, 4),
    ("self_attn.o_proj.weight", 4, 4),
    ("mlp.gate_proj.weight", 11, 4),
    ("mlp.up_proj.weight", 11, 4),
    ("mlp.down_proj.weight", 4, 11),
    ("input_layernorm.weight", 4, 0),
    ("post_attention_layernorm.weight", 4, 0),
)
"""A decoder layer: name, rows and columns in units; no columns: a vector."""


def _decoder(spec: Spec, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    layers = max(1, spec.count // len(_PARTS))
    units = sum(rows * columns for _, rows, columns in _PARTS) * layers
    unit = max(8, math.isqrt(spec.nbytes // size // units) // 8 * 8)
    for number in range(spec.count):
        layer, part = divmod(number, len(_PARTS))
        name, rows, columns = _PARTS[part]
        shape = (rows * unit, columns * unit) if columns else (rows * unit,)
        yield f"model.layers.{layer}.{name}", shape


def ensure(spec: Spec, folder: Path) -> Path:
    """The file or folder, made if it is not there; synced, so that no write-back disturbs a timing."""
    path = folder / spec.filename
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    if spec.layout == "folder":
        _make_folder(spec, partial)
        partial.rename(path)
        return path
    try:
        with partial.open("wb", buffering=0) as file:
            found = entries(spec)
            file.write(_head(found))
            for block in _noise(found[-1][4]):
                file.write(block)
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _make_folder(spec: Spec, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)  # left by a run that was killed
    generator = np.random.Generator(np.random.SFC64(_SEED))
    try:
        for name, _, _, begin, end in entries(spec):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(generator.bytes(end - begin))
        os.sync()
    except BaseException:
        shutil.rmtree(path)
        raise


def shards(path: str, folder: str, count: int) -> list[str]:
    """The tensors of a file in `count` files of about equal size; made once."""
    if not os.path.exists(folder):
        found, start = header_of(path)
        total, groups = found[-1][4], [[] for _ in range(count)]
        for entry in found:
            groups[entry[3] * count // total].append(entry)
        os.mkdir(folder)
        with open(path, "rb") as source:
            for number, group in enumerate(filter(None, groups), 1):
                first = group[0][3]
                moved = [(*entry[:3], entry[3] - first, entry[4] - first) for entry in group]
                with open(f"{folder}/model-{number:05}-of-{count:05}.safetensors", "wb") as file:
                    file.write(_head(moved))
                    source.seek(start + first)
                    left = range(moved[-1][4], 0, -MIB)
                    file.writelines(source.read(min(MIB, size)) for size in left)
        os.sync()
    return sorted(os.path.join(folder, name) for name in os.listdir(folder))


def changed(path: str, other: str, *, every: int | None) -> str:
    """A copy of a file of two-byte elements with one bit of every so many changed; of one if None."""
    if not os.path.exists(other):
        shutil.copy(path, other)
        _, start = header_of(path)
        values = np.memmap(other, np.uint16, "r+", start)
        chance = np.random.default_rng(_SEED)
        places = [0] if every is None else chance.integers(0, len(values), len(values) // every)
        values[places] ^= 1
        values.flush()
    return other


def _head(found: list[Entry]) -> bytes:
    table = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
        for name, dtype, shape, begin, end in found
    }
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _noise(nbytes: int) -> Iterator[memoryview]:
    generator = np.random.Generator(np.random.SFC64(_SEED))
    for begin in range(0, nbytes, _BLOCK):
        words = generator.integers(0, 1 << 64, _BLOCK // 8, np.uint64)
        yield words.view(np.uint8).data[: min(_BLOCK, nbytes - begin)]


def header_of(path: str | Path) -> tuple[list[Entry], int]:
    """The entries of a safetensors file in the order of the data, and where the data starts."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(length))
    table.pop("__metadata__", None)
    found = [
        (name, entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
        for name, entry in table.items()
    ]
    return sorted(found, key=lambda entry: entry[3:]), 8 + length


@contextlib.contextmanager
def tensor_views(path: str | Path) -> Iterator[dict[str, memoryview]]:
    """Each tensor's bytes in a safetensors file."""
    found, start = header_of(path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        views = {
            name: memoryview(mapped)[start + begin : start + end]
            for name, _, _, begin, end in found
        }
        try:
            yield views
        finally:
            for view in views.values():
                view.release()


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Torch tensors with the contents of a file, each in memory of its own, as a model has them."""
    import torch

    types = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    found, start = header_of(path)
    result = {}
    with open(path, "rb", buffering=MIB) as file:
        file.seek(start)
        for name, dtype, shape, _, _ in found:
            tensor = torch.empty(shape, dtype=types[dtype])
            file.readinto(tensor.view(-1).view(torch.uint8).numpy().data)
            result[name] = tensor
    return result


def synced(path: str) -> None:
    """What makes a plain save durable: fsync of the file, then of its directory."""
    for target in (path, os.path.dirname(path)):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
