"""Gather many runs of bytes, at regular distances, into one buffer.

Rules:
- Where the gaps between runs are small, runs are read together with the gaps and separated in memory: at
  most `Source.gap` unwanted bytes are read for each run.
- Where the gaps are large, each run is read by itself, straight to its place; several threads share them.
- Runs of a local file that is in the page cache are copied from a mapping while a lease keeps the file as
  it is (`DescriptorSource.read_runs`). Without a lease the system copies small runs, hundreds with one
  call: from the file, see `gather_over`, or if the gaps are large from a mapping, see `gather_guarded`.
- Memory beside the result is bounded by one slab of 8 MiB, whatever the shape.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any, Final

from ..format.indexing import Runs
from .parallel import CHUNK, in_parallel
from .syscalls import VECTOR, address_of, read_vectors, write_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

__all__ = [
    "gather",
    "gather_guarded",
    "gather_mapped",
    "gather_over",
    "lie_apart",
    "parts_of",
    "spread_and_packed",
]

_SLAB: Final = 1 << 23
_RELAY: Final = 1 << 20
_SHARES: Final = 32
"""Parts into which threads divide runs: no thread waits long for the last one."""
_WORD_MAX: Final = 1 << 13
"""Length of runs up to which NumPy copies each as one element: 8,192 runs of 512 bytes take 0.46 ms, not
0.86 ms. It holds the interpreter's lock while it copies up to 500 elements: not for longer runs."""

_Loops = tuple[tuple[int, int], ...]
"""(repetitions, distance in bytes), outermost first."""


def gather(
    runs: Runs,
    read_into: Callable[[memoryview, int], None],
    out: memoryview,
    *,
    gap: int = 4096,
    threads: int = 1,
) -> None:
    """Read `runs` into `out`, without gaps.

    Args:
        runs: What to read.
        read_into: ``read_into(buffer, offset)`` fills a buffer with the bytes from an offset on.
        out: Memory of ``runs.nbytes`` bytes.
        gap: Unwanted bytes that may be read for each run; see `Source.gap`.
        threads: How many share runs that are read one by one; 0 for `thread_count`.
    """
    far, close = _split(runs.length, _merged(runs.loops), gap)
    if not close:
        _read_each(runs, read_into, out, threads)
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


def lie_apart(runs: Runs, gap: int) -> bool:
    """Whether `gather` reads runs one by one, since there are more than `gap` bytes between them."""
    return not _split(runs.length, _merged(runs.loops), gap)[1]


def parts_of(runs: Runs, *, nbytes: int, span: int) -> Iterator[Runs]:
    """Divide runs into parts, in order. Each has one run, or at most `nbytes` bytes within `span` bytes.

    >>> [part.offset for part in parts_of(Runs(0, 4, ((5, 100),)), nbytes=8, span=1000)]
    [0, 200, 400]
    """
    loops = _merged(runs.loops)
    for axis, (count, stride) in enumerate(loops):
        inner = Runs(0, runs.length, loops[axis + 1 :])
        if axis + 1 < len(loops) and (inner.nbytes > nbytes or inner.span > span):
            continue
        step = max(1, min(nbytes // inner.nbytes, (span - inner.span) // stride + 1, count))
        for offset in Runs(runs.offset, 0, loops[:axis]).offsets():
            for first in range(0, count, step):
                loop = min(step, count - first), stride
                yield Runs(offset + first * stride, runs.length, (loop, *inner.loops))
        return
    yield runs


def _read_each(
    runs: Runs, read_into: Callable[[memoryview, int], None], out: memoryview, threads: int
) -> None:
    length = runs.length

    def share(begin: int, end: int) -> None:
        for index, offset in enumerate(_offsets(runs, begin, end).tolist(), begin):
            read_into(out[index * length : (index + 1) * length], offset)

    if threads != 1:
        chunk = max(1, min(CHUNK // length, runs.run_count // _SHARES))
        in_parallel(share, runs.run_count, chunk=chunk, threads=threads)
        return
    for index, offset in enumerate(runs.offsets()):
        read_into(out[index * length : (index + 1) * length], offset)


def gather_over(runs: Runs, descriptor: int, out: memoryview, *, gap: int) -> bool:
    """Read `runs` of a file straight into `out`; False if that is not possible, or not to the end.

    One system call reads some hundred runs and the gaps between them (preadv(2)): runs to their places,
    all gaps into the same few bytes, which stay in the processor's cache. Nothing is mapped, so there are
    no page faults, and a truncated file is an error. 256 MiB in runs of 2 KiB, with as much between them,
    take 72 ms; from a mapping 110 ms, with a pread(2) each 218 ms.

    Args:
        runs: What to read, with at most `gap` bytes between them.
        descriptor: The file.
        out: Memory of ``runs.nbytes`` bytes. If the result is False, its contents are undefined.
        gap: See `gather`.

    Raises:
        ValueError: `out` has another size: the system would write beyond it.
    """
    import numpy as np

    if out.nbytes != runs.nbytes:
        raise ValueError(f"{runs.nbytes} bytes are read, and the memory for them has {out.nbytes}")
    far, close = _split(runs.length, _merged(runs.loops), gap)
    near = Runs(0, runs.length, close)
    count = near.run_count
    step = max(1, min(VECTOR // 2, _SLAB * count // near.span, count))
    unwanted = memoryview(bytearray(gap + 1))
    vectors = np.empty((step, 2, 2), np.uintp)  # run, gap, run, gap ...: address and length
    vectors[:, 0, 1] = runs.length
    vectors[:, 1, 0] = address_of(unwanted)
    base = address_of(out)
    places = _offsets(near, 0, step)
    vectors[:-1, 1, 1] = np.diff(places) - runs.length
    for outer in Runs(runs.offset, 0, far).offsets():
        for begin in range(0, count, step):
            number = min(step, count - begin)
            if step < count:
                places = _offsets(near, begin, begin + number)
                vectors[: number - 1, 1, 1] = np.diff(places) - runs.length
            vectors[:number, 0, 0] = np.arange(base, base + number * runs.length, runs.length)
            start, nbytes = outer + int(places[0]), int(places[-1] - places[0]) + runs.length
            # The last gap is left out.
            if read_vectors(descriptor, vectors.ctypes.data, 2 * number - 1, start) != nbytes:
                return False
            base += number * runs.length
    return True


def gather_guarded(runs: Runs, data: memoryview, out: memoryview) -> bool:
    """Copy `runs` of `data`, a mapped file, to `out`; False if that is not possible, or not to the end.

    Here the system copies, not this process: if the file was truncated meanwhile, the call fails, where
    this process would be killed (SIGBUS). No system call gathers memory into memory that fast, so the runs
    are written to a file in memory, a thousand at a time (pwritev(2), memfd_create(2), Linux), and copied
    from there: 16,384 runs of 1 KiB take 6 ms, with a pread(2) each 26 ms, with process_vm_readv(2) 11 ms.

    Args:
        runs: What to copy: many, of less than 1 MiB each.
        data: A writable mapping; it is not written to.
        out: Memory of ``runs.nbytes`` bytes. If the result is False, its contents are undefined.
    """
    import numpy as np

    if not hasattr(os, "memfd_create"):
        return False
    length, count = runs.length, runs.run_count
    step = max(1, min(VECTOR, _RELAY // length, count))
    try:
        descriptor = os.memfd_create("safeweights-gather")
    except OSError:  # forbidden by a sandbox
        return False
    target = np.frombuffer(out, np.uint8)
    vectors = np.empty((step, 2), np.uintp)
    vectors[:, 1] = length
    base = address_of(data)
    try:
        os.ftruncate(descriptor, step * length)
        with mmap.mmap(descriptor, step * length, prot=mmap.PROT_READ) as relay:
            for begin in range(0, count, step):
                end = min(begin + step, count)
                vectors[: end - begin, 0] = base + _offsets(runs, begin, end)
                nbytes = (end - begin) * length
                if write_vectors(descriptor, vectors.ctypes.data, end - begin) != nbytes:
                    return False
                np.copyto(
                    target[begin * length : end * length], np.frombuffer(relay, np.uint8, nbytes)
                )
    except OSError:  # no memory for it
        return False
    finally:
        os.close(descriptor)
    return True


def _offsets(runs: Runs, begin: int, end: int) -> np.ndarray[Any, Any]:
    """The byte offsets of some of the runs."""
    import numpy as np

    indexes = np.arange(begin, end)
    found = np.full(end - begin, runs.offset)
    for repetitions, distance in reversed(runs.loops):
        found += indexes % repetitions * distance
        indexes //= repetitions
    return found


def gather_mapped(runs: Runs, data: memoryview, out: memoryview) -> None:
    """Copy `runs` of `data`, which is in memory, to `out`, without gaps."""
    spread, packed = spread_and_packed(runs, data, out)
    packed[...] = spread


def spread_and_packed(runs: Runs, spread: memoryview, packed: memoryview) -> tuple[Any, Any]:
    """Arrays of one shape over the same runs, where they lie apart and where they lie together.

    Args:
        runs: The runs, as they lie in `spread`.
        spread: Memory that has other bytes between the runs.
        packed: Memory that has the runs one after another.
    """
    loops = _merged(runs.loops)
    together, distance = [], runs.length
    for count, _ in reversed(loops):
        together.append((count, distance))
        distance *= count
    return (
        _strided(spread, runs.offset, loops, runs.length),
        _strided(packed, 0, tuple(together[::-1]), runs.length),
    )


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
    if length <= _WORD_MAX:
        return np.ndarray(counts, f"V{length}", data, offset, strides)
    return np.ndarray((*counts, length), np.uint8, data, offset, (*strides, 1))
