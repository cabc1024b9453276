"""Gather many runs of bytes, at regular distances, into one buffer.

Rules:
- Where the gaps between runs are small, runs are read together with the gaps and separated in memory: at
  most `Source.gap` bytes are read in vain for each run.
- Where the gaps are large, each run is read by itself, straight to its place.
- Memory beside the result is bounded by one slab of 8 MiB, whatever the shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..format.indexing import Runs

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["gather", "gather_mapped"]

_SLAB: Final = 1 << 23
_WORD_MAX: Final = 256

_Loops = tuple[tuple[int, int], ...]
"""(repetitions, distance in bytes), outermost first."""


def gather(
    runs: Runs, read_into: Callable[[memoryview, int], None], out: memoryview, *, gap: int = 4096
) -> None:
    """Read `runs` into `out`, without gaps.

    Args:
        runs: What to read.
        read_into: ``read_into(buffer, offset)`` fills a buffer with the bytes from an offset on.
        out: Memory of ``runs.nbytes`` bytes.
        gap: Bytes that may be read in vain for each run; see `Source.gap`.
    """
    far, close = _split(runs.length, _merged(runs.loops), gap)
    if not close:
        for index, offset in enumerate(runs.offsets()):
            read_into(out[index * runs.length : (index + 1) * runs.length], offset)
        return
    (count, stride), *inner = close
    inner_span = Runs(0, runs.length, tuple(inner)).span
    step = min(count, _SLAB // stride)
    slab = memoryview(bytearray((step - 1) * stride + inner_span))
    position = 0
    for offset in Runs(runs.offset, 0, far).offsets():
        for first in range(0, count, step):
            rows = min(step, count - first)
            read_into(slab[: (rows - 1) * stride + inner_span], offset + first * stride)
            part = Runs(0, runs.length, ((rows, stride), *inner))
            gather_mapped(part, slab, out[position : position + part.nbytes])
            position += part.nbytes


def gather_mapped(runs: Runs, data: memoryview, out: memoryview) -> None:
    """Copy `runs` of `data`, which is in memory, to `out`, without gaps."""
    loops = _merged(runs.loops)
    source = _strided(data, runs.offset, loops, runs.length)
    target = []
    packed = runs.length
    for count, _ in reversed(loops):
        target.append((count, packed))
        packed *= count
    _strided(out, 0, tuple(target[::-1]), runs.length)[...] = source


def _merged(loops: _Loops) -> _Loops:
    """The same runs with as few loops as possible: a loop that continues the next one is merged with it."""
    merged: list[tuple[int, int]] = []
    for count, stride in loops:
        if merged and merged[-1][1] == count * stride:
            count *= merged.pop()[0]  # noqa: PLW2901
        merged.append((count, stride))
    return tuple(merged)


def _split(length: int, loops: _Loops, gap: int) -> tuple[_Loops, _Loops]:
    """The loops outside of one read, and those inside it."""
    span = length
    for axis in reversed(range(len(loops))):
        count, stride = loops[axis]
        if stride - span > gap or stride > _SLAB:
            return loops[: axis + 1], loops[axis + 1 :]
        span += (count - 1) * stride
    return (), loops


def _strided(data: memoryview, offset: int, loops: _Loops, length: int) -> Any:
    """An array over the runs in `data`; NumPy checks that they lie inside."""
    import numpy as np

    counts = [count for count, _ in loops]
    strides = [stride for _, stride in loops]
    if length <= _WORD_MAX:  # one opaque element for each run is copied faster than single bytes
        return np.ndarray(counts, f"V{length}", data, offset, strides)
    return np.ndarray((*counts, length), np.uint8, data, offset, (*strides, 1))
