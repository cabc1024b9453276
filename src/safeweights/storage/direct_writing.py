"""Write a large new file to the disk past the page cache, from copies of what is written.

A durable save waits for the disk. Through the page cache every page is looked up, marked, and sent to the
disk later, and one thread at a time copies. 512 MiB take 178 to 185 ms this way, and through the page cache
206 to 302 with twice the processor time (ADR 13).

Rules:
- Direct I/O needs places in memory and in the file that are multiples of a block, which those of tensors
  are not. So each thread copies a batch into memory of its own, and writes that when it is its turn.
- The memory is in huge pages: a disk takes few pieces in one request. In small pages 512 MiB take 250 ms.
- No more threads copy than there are processors, so that the first batch is ready soon, also where the
  system has to find the memory first; and each takes the memory that was used last.
- The rest of a last block, and whatever the system does not take, is left to the caller, who writes it
  through the page cache.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Final

from .buffer_pool import borrow
from .copying import Copier
from .memory import PAGE
from .parallel import thread_count
from .syscalls import has_huge_pages, writes_past_cache

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DirectFile"]

_WRITES: Final = 8
"""Batches that are sent to the disk at a time; any number from 4 to 16 is as good (ADR 13)."""

_THREADS: Final = 12
"""Threads at most. A disk ends batches that began together at the same time; those of other threads have to
be ready then. With only 8 threads, 512 MiB take 190 to 199 ms instead of 178 to 185; 16 are no faster."""


class DirectFile:
    """A new file that threads write, each batch at its place.

    Args:
        descriptor: The file, open for direct writes; `close` closes it.
        memories: Where batches are copied, one for each thread.

    Attributes:
        threads: How many may write at the same time.
    """

    def __init__(self, descriptor: int, memories: list[memoryview]) -> None:
        self._descriptor = descriptor
        self.threads = len(memories)
        self._idle = deque(memories)
        self._copies = BoundedSemaphore(thread_count())
        self._writes = BoundedSemaphore(_WRITES)
        self._copier = Copier()
        self._refused = False

    @classmethod
    def of(cls, descriptor: int, size: int, *, batch: int) -> Self | None:
        """Give a file its final size, and open it for direct writes; None where that brings nothing.

        Args:
            descriptor: The file, for reading and writing; space for it is reserved.
            size: In bytes.
            batch: Bytes that are written at a time, at most; a multiple of `PAGE`.
        """
        if not (writes_past_cache(descriptor) and has_huge_pages()):
            return None
        count = min(_THREADS, -(-size // batch))
        memory = borrow(count * batch)
        if memory is None:
            return None
        try:
            direct = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT)
        except OSError:  # no /proc, or a filesystem without direct I/O
            return None
        try:
            os.ftruncate(descriptor, size)  # writes beyond the end wait for each other
            return cls(
                direct, [memory[begin : begin + batch] for begin in range(0, len(memory), batch)]
            )
        except BaseException:
            os.close(direct)
            raise

    def write(self, buffers: list[memoryview], position: int) -> int:
        """Write buffers (flat), one after another, at a place in the file; how many bytes were written.

        They are fewer than all if the batch does not begin or end at a block, if memory of a buffer cannot
        be had, or if the system does not write this way. `threads` may call this at the same time, for
        different places.
        """
        if self._refused or position % PAGE:
            return 0
        memory = None
        try:
            with self._copies:
                memory = self._idle.pop()  # what was used last; other memory may have no pages yet
                copied = self._copier.copy(buffers, memory)
            with self._writes:
                return self._write(memory[: copied - copied % PAGE], position)
        finally:
            if memory is not None:
                self._idle.append(memory)

    def _write(self, blocks: memoryview, position: int) -> int:
        if not blocks:
            return 0
        try:
            return os.pwrite(self._descriptor, blocks, position)
        except OSError as error:
            # The disk has larger blocks, or the filesystem does not write this file directly.
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                raise
            self._refused = True
            return 0

    def close(self) -> None:
        """Close the descriptor; no thread may be writing."""
        # A thread that was not waited for, after a second Ctrl-C, must not write to what is opened next.
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)
