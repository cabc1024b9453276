"""Bytes that are computed while they are written: longer than copying them takes a processor.

In a local file several threads compute, and each writes its blocks at their place: base and delta of 117
MiB become a file in 119 ms on two cores, in 181 where one thread wrote what the others had handed it.
Everywhere else the bytes arrive in order, each piece when all of it is known to be right. Bytes of other
files are copied in the same way, where threads do that faster than the system (`storage.runs`).
"""

from __future__ import annotations

from collections import deque
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Final

from ..errors import SafetensorError
from .memory import allocate
from .parallel import in_order, in_threads, thread_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .source import Buffer

__all__ = ["Computed", "in_memory", "write_computed"]

_UNIT: Final = 1 << 21
"""Bytes that a thread computes, and then writes, at a time."""

_WHOLE: Final = 1 << 23
"""Size of a piece up to which it is computed at once, which is faster."""

_MEMORY: Final = 32 << 20
"""Bytes that all threads compute at a time, at most."""

_TOGETHER: Final = 1 << 24
"""Bytes that one thread computes at a time where they are not written at their place."""


class Computed:
    """Bytes that are computed when they are written.

    Args:
        length: How many.
        blocks: Given memory, yields all of them in order, in blocks that may lie in this memory: each is
            overwritten by the next. If the bytes are not what they should be, it raises by the end.
        read_into: Fills memory of `length` bytes with them; raises the same.
    """

    __slots__ = ("blocks", "length", "read_into")

    def __init__(
        self,
        length: int,
        blocks: Callable[[memoryview], Iterator[memoryview]],
        read_into: Callable[[memoryview], object],
    ) -> None:
        self.length = length
        self.blocks = blocks
        self.read_into = read_into


def write_computed(
    pieces: list[Computed],
    position: int,
    write: Callable[[memoryview, int], object],
    progress: Callable[[int], object],
    *,
    threads: int | None = None,
    unit: int = 0,
) -> None:
    """Have threads compute pieces that follow one another in a file, and write them.

    Memory: 32 MiB, and at most 8 MiB for each thread, besides what the pieces take; `unit` for each
    thread, if no piece is longer.

    Args:
        pieces: What to compute.
        position: Where the first one begins.
        write: Writes a block at a position; called by several threads at once.
        progress: Called in this thread with the number of bytes written so far.
        threads: How many; by default `thread_count`.
        unit: Bytes that a thread computes, and then writes, at a time; by default 2 MiB.

    Raises:
        SafetensorError: A piece has more or fewer bytes than it said.
        Exception: What computing or writing a piece raised, of the first such piece.
    """
    unit = unit or _UNIT
    units = list(_batches(pieces, unit))
    sizes = [sum(piece.length for piece in some) for some in units]
    whole = max(unit, min(_WHOLE, _MEMORY // thread_count(), max(sizes)))
    begins = accumulate(sizes, initial=position)
    spare: deque[memoryview] = deque()

    def one(item: tuple[list[Computed], int, int], tell: Callable[[int], object]) -> None:
        some, size, begin = item
        try:
            memory = spare.pop()
        except IndexError:
            memory = allocate(whole)
        if len(some) == 1:
            blocks = some[0].blocks(memory if size <= whole else memory[:unit])
        else:
            blocks = iter((_fill(memory[:size], some),))
        done = 0
        for block in blocks:
            if done + len(block) > size:  # it would be written over what another thread writes
                raise _wrong_size(size)
            write(block, begin + done)
            done += len(block)
            tell(done)
        if done != size:
            raise _wrong_size(size)
        spare.append(memory)

    items = zip(units, sizes, begins, strict=False)
    in_threads(one, items, workers=threads, progress=progress)


def _wrong_size(size: int) -> SafetensorError:
    return SafetensorError(f"a tensor of {size} bytes has more or fewer when it is computed")


def in_memory(pieces: Iterable[Computed]) -> Iterator[Buffer]:
    """The bytes of pieces, computed ahead by threads; all of a piece is known to be right.

    Memory: of pieces up to 16 MiB, two batches of 16 MiB more than there are threads; or one larger piece.
    """
    for large, group in groupby(pieces, lambda piece: piece.length > _TOGETHER):
        if large:
            yield from (_together([piece]) for piece in group)
        else:
            yield from in_order(_together, _batches(group, _TOGETHER))


def _batches(pieces: Iterable[Computed], most: int) -> Iterator[list[Computed]]:
    batch: list[Computed] = []
    size = 0
    for piece in pieces:
        if batch and size + piece.length > most:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.length
    yield batch


def _together(pieces: list[Computed]) -> memoryview:
    """The bytes of some pieces, computed one after another."""
    size = sum(piece.length for piece in pieces)
    # Buffers of one size are reused: a third of the time went into new memory for each tensor.
    memory = allocate(_TOGETHER if _TOGETHER // 4 <= size < _TOGETHER else size)
    return _fill(memory[:size], pieces)


def _fill(memory: memoryview, pieces: list[Computed]) -> memoryview:
    position = 0
    for piece in pieces:
        piece.read_into(memory[position : position + piece.length])
        position += piece.length
    return memory
