"""SHA-256 beside other work: of a source while it is read, of a file while it is written.

`sha256` reads a source and hashes it. `Hashing` hashes bytes that go elsewhere meanwhile, so that what is
saved or converted is not read back for its digest.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import TYPE_CHECKING, Final

from .background import Background
from .runs import expanded
from .source import flat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Self

    from .background import Job
    from .computing import Computed
    from .runs import Run
    from .source import Buffer, Source

__all__ = ["RUN", "Hashing", "sha256"]

RUN: Final = 4 << 20
"""Bytes that are read and hashed at a time."""

_TOGETHER: Final = 1 << 20
"""Bytes of small pieces handed over together: waking the thread costs as much as hashing 50 KiB."""

_BACKLOG: Final = 4 * RUN
"""Bytes that may wait for the thread. Writers hold up to 8 MiB before they write."""


def sha256(
    source: Source,
    *,
    into: memoryview | None = None,
    also: Callable[[memoryview], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> str:
    """The SHA-256 of all of `source`, in hexadecimal.

    Cost: one read; none of what is in the page cache and can be held there (`Source.held`), where nothing
    else needs the bytes: two files at a time take 0.96 s a GiB on two cores instead of 1.1. Otherwise, of
    a source of more than 4 MiB, the next 4 MiB are read, and `also` is called, in two more threads while
    this one hashes. Memory: two buffers of 4 MiB, or none with `into`.

    Args:
        source: What to hash. With `into` or `also`, all its bytes go through `read_into`, so that they are
            the same for all.
        into: Memory of ``source.size`` bytes that keeps what was hashed.
        also: Given the bytes in order, in runs of 4 MiB that it must not keep. No two calls overlap.
        progress: Called with the number of bytes hashed so far. What it raises ends the work.

    Raises:
        TruncatedError: The source has become shorter.
        OSError: Reading failed.

    >>> from safeweights.storage import BytesSource
    >>> sha256(BytesSource(b"abc"))[:16]
    'ba7816bf8f01cfea'
    """
    size, state, done = source.size, hashlib.sha256(), 0
    if into is None and also is None and size > RUN:
        state, done = _hash_held(source, progress)
        if done == size:
            return state.hexdigest()
    memory = memoryview(bytearray(min(size, 2 * RUN))) if into is None else into

    def read(begin: int) -> memoryview:
        place = begin if into is not None else begin % (2 * RUN)  # this run and the next one
        run = memory[place : place + min(RUN, size - begin)]
        source.read_into(begin, run)
        return run

    starts = range(done, size, RUN)
    threads = 0 if len(starts) <= 1 else 1 if also is None else 2
    with Background(threads, "safeweights-hash") as beside:
        coming = beside.submit(read, done)
        for begin in starts:
            run = coming.result()
            if begin + RUN < size:
                coming = beside.submit(read, begin + RUN)
            looking = None if also is None else beside.submit(also, run)
            state.update(run)
            if looking is not None:
                looking.result()
            if progress is not None:
                progress(begin + len(run))
    return state.hexdigest()


def _hash_held(
    source: Source, progress: Callable[[int], object] | None
) -> tuple[hashlib._Hash, int]:
    """The state of the hash over what can be held from the beginning on, and how many bytes that is."""
    state, done = hashlib.sha256(), 0
    while done < source.size:
        count = min(RUN, source.size - done)
        with source.held(done, count) as held:
            if held is None:
                break
            further = state.copy()
            further.update(held.view(done, count))
            if not held.is_held():  # it is read instead, whatever it is by then
                break
        state, done = further, done + count
        if progress is not None:
            progress(done)
    return state, done


class Hashing:
    """The SHA-256 of bytes that go elsewhere meanwhile, computed in a thread beside the caller.

    Use it as a context manager: it ends the thread. Cost: nothing is copied. Memory: up to 16 MiB of
    pieces are kept until they are hashed; then the caller waits.

    Args:
        also: Given the same pieces in order, in another thread; it must not keep them.

    >>> with Hashing() as hashing:
    ...     file = b"".join(hashing.passing([b"a", b"bc"]))
    ...     hashing.hexdigest()[:16]
    'ba7816bf8f01cfea'
    """

    def __init__(self, also: Callable[[memoryview], object] | None = None) -> None:
        self._state = hashlib.sha256()
        looks = [self._state.update, *([also] if also else [])]
        self._threads = [(look, Background(name="safeweights-hash")) for look in looks]
        self._waiting: deque[tuple[int, list[Job[None]]]] = deque()
        self._backlog = 0
        self._pieces: list[memoryview] = []
        self._size = 0

    def passing(self, pieces: Iterable[Buffer | Run | Computed]) -> Iterator[Buffer]:
        """The same bytes, which are hashed as they are asked for. Runs are read.

        The memory of a piece must not change before all is written and `hexdigest` was called.
        """
        for piece in expanded(pieces):
            self.update(piece)
            yield piece

    def update(self, piece: Buffer) -> None:
        """Have the next bytes hashed; waits while too many are not hashed yet.

        Raises:
            Exception: What `also` raised for bytes before.
        """
        view = flat(piece)
        self._pieces.append(view)
        self._size += len(view)
        if self._size >= _TOGETHER:
            self._submit()
        while self._backlog > _BACKLOG:
            self._wait()

    def hexdigest(self) -> str:
        """The digest of all bytes so far, in hexadecimal; waits for it.

        Raises:
            Exception: What `also` raised.
        """
        self._submit()
        while self._waiting:
            self._wait()
        return self._state.hexdigest()

    def _submit(self) -> None:
        pieces, size = self._pieces, self._size
        self._pieces, self._size = [], 0
        jobs = [beside.submit(_look, look, pieces) for look, beside in self._threads]
        self._waiting.append((size, jobs))
        self._backlog += size

    def _wait(self) -> None:
        size, jobs = self._waiting.popleft()
        for job in jobs:
            job.result()
        self._backlog -= size

    def close(self) -> None:
        """Give up what is not hashed yet, and wait until the threads have ended."""
        for _, beside in self._threads:
            beside.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _look(look: Callable[[memoryview], object], pieces: list[memoryview]) -> None:
    for piece in pieces:
        look(piece)
