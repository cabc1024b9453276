"""Work that threads share, in three ways; all of them start their threads by `Background`.

- `in_parallel`: the chunks of one buffer, shared among threads. For filling and copying memory.
- `in_threads`: a call for each of many items, such as files; results in order, progress for the caller.
- `in_order`: results that are used one after another and made ahead, such as the pieces of a file.

`storage.background` has the rules that they keep. Knows nothing of what the calls do.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from .background import PATIENCE, TICK, AbandonedError, Background, Stoppable, next_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

__all__ = ["CHUNK", "cut", "in_order", "in_parallel", "in_threads", "thread_count"]

T = TypeVar("T")
R = TypeVar("R")

CHUNK: Final = 1 << 23
"""Bytes that one thread handles at a time: Python's share of the work is below 6 % of a core then."""

_BATCH: Final = 1 << 22
"""Cost, in bytes, of the items that one thread takes at a time; see `in_threads`."""

_MACHINE: Final = os.cpu_count() or 1
"""Processors of this machine. To ask reads a file (Linux), which takes 40 us between two copies."""


def thread_count() -> int:
    """Threads that share a transfer: as many as processors this process may use, from 2 to 16.

    Where torchrun has started several ranks on this machine (LOCAL_WORLD_SIZE), each uses its share of the
    processors, and at least one: two ranks with two threads each on two processors take a quarter longer.
    """
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        processors = os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    if ranks.isdecimal() and int(ranks) > 1:
        return max(1, min(16, processors, _MACHINE // int(ranks)))
    return max(2, min(16, processors))


# ---- the chunks of one buffer


def cut(
    total: int, *, most: int, least: int, after: int = 0, threads: int = 0
) -> Iterator[tuple[int, int]]:
    """Pieces that cover 0 to `total`, begin and end of each.

    Long pieces cost less, but a thread that takes the last of them keeps the others waiting. So a piece is
    as long as one thread's share of what is left, between two bounds.

    Args:
        total: End of the last piece.
        most: Length of a piece at most.
        least: At least, but for the last; a rest of up to an eighth of it is no piece of its own. If `most`
            is a multiple of it, all pieces begin at one.
        after: How much follows after these pieces, for the same threads.
        threads: How many take pieces; 0 for `thread_count`.

    >>> list(cut(100, most=32, least=4, threads=2))
    [(0, 32), (32, 64), (64, 80), (80, 88), (88, 92), (92, 96), (96, 100)]
    """
    threads = threads or thread_count()
    begin = 0
    while begin < total:
        share = (total - begin + after) // threads
        end = begin + max(least, min(most, share - share % least))
        rest = total - end
        if rest <= least // 8 and total - begin <= most:  # it would cost as much as a long one
            end = total
        yield begin, min(end, total)
        begin = end


def in_parallel(
    work: Callable[[int, int], object],
    total: int,
    *,
    chunk: int = CHUNK,
    least: int = 0,
    threads: int = 0,
) -> None:
    """Call ``work(begin, end)`` for chunks that cover 0 to `total`, beginning with the lowest.

    The calling thread takes part, and is the only one for up to two chunks. When this returns or
    raises, no thread is working any more (but see `Background.close` for a second Ctrl-C).

    Args:
        work: Called from several threads at once.
        total: End of the last chunk.
        chunk: Length of each but the last.
        least: Length to which chunks may become shorter towards the end, as `cut` has it; 0 for `chunk`.
        threads: How many share the work; 0 for `thread_count`.

    Raises:
        BaseException: The first that `work` raised; chunks that had not begun are left out.
    """
    if total <= (least or chunk):  # one piece: even to ask for the number of threads takes 5 us
        work(0, total)
        return
    threads = threads or thread_count()
    pieces = deque(cut(total, most=chunk, least=least or chunk, threads=threads))
    if len(pieces) <= 2:
        work(0, total)
        return
    failures: list[BaseException] = []

    def share() -> None:
        try:
            while (piece := next_of(pieces)) is not None:
                work(*piece)
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)
            stop()

    def stop() -> None:
        pieces.clear()
        others.stop()

    others = Background(min(len(pieces), threads) - 1, "safeweights-share")
    wanted = False
    try:
        with Stoppable(stop):
            for _ in range(others.start()):
                others.submit(share)
            share()
            wanted = not failures
    finally:
        # As `close`, but without a call before the `try`, at which an interrupt could get out.
        try:
            pieces.clear()
            others.end(stop=not wanted)
        except BaseException:
            others.end(stop=True)
            raise
    for error in failures:
        raise error


# ---- a call for each of many items


def in_threads(
    call: Callable[[T, Callable[[int], object]], R],
    items: Iterable[T],
    *,
    cost: Callable[[T], int] | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[R]:
    """The result of `call` for each item, in the order of the items.

    Args:
        call: Given an item and a function to be called now and then with the number of bytes of the item
            that are done. What that function raises must be let through: it ends a call whose result is
            not wanted any more.
        items: What there is to do.
        cost: What an item costs, in bytes that could be handled meanwhile. A thread takes neighbours
            together until they cost 4 MiB. Without it, it takes one item at a time.
        workers: Threads; by default `thread_count`.
        progress: Called in the calling thread, up to 20 times a second and at the end, with the number of
            bytes of all items that are done.

    Raises:
        BaseException: What `call` raised for the first item, in their order, that failed. No call begins
            after that, and those under way end at their next report. The same holds for what `progress`
            raises, and for Ctrl-C.
    """
    batches = _batches(items, cost)
    waiting = deque(enumerate(batches))
    meter = _Meter(progress, len(batches))

    def share() -> None:
        while (each := next_of(waiting)) is not None:
            index, batch = each
            batch.run(call, partial(meter.tell, index))
            if batch.error is not None:
                waiting.clear()  # all of it comes after this one
            meter.news.put(None)

    threads = Background(min(workers or thread_count(), len(batches)), "safeweights-job")
    done = False
    try:
        for _ in range(max(1, threads.start())):
            threads.submit(share)
        found: list[R] = []
        for batch in batches:
            meter.wait(batch)
            found += batch.results
        done = True
        return found
    finally:
        # As `close`, but without a call before the `try`, at which an interrupt could get out.
        try:
            meter.abandoned = True
            waiting.clear()
            threads.end(stop=not done)
        except BaseException:
            threads.end(stop=not done)
            raise


def in_order(call: Callable[[T], R], items: Iterable[T], *, workers: int = 0) -> Generator[R]:
    """The result of `call` for each item, in the order of the items, made by threads ahead of the caller.

    For results that are large and used once: beside the one that the caller has, one for each thread and
    one more exist at a time.

    Args:
        call: Called from several threads at once.
        items: What there is to do.
        workers: Threads; 0 for `thread_count`.

    Raises:
        BaseException: What `call` raised, after the results before it were given. Calls that had not
            begun are dropped, also when the generator is closed.

    >>> list(in_order(abs, [-1, -2, -3]))
    [1, 2, 3]
    """
    workers = workers or thread_count()
    remaining = iter(items)
    with Background(workers, "safeweights-ahead") as beside:
        jobs = deque(beside.submit(call, item) for item in islice(remaining, workers + 1))
        while jobs:
            result = jobs.popleft().result()
            jobs.extend(beside.submit(call, item) for item in islice(remaining, 1))
            yield result
            del result  # or its memory would be in use while the next one is waited for


class _Batch(Generic[T, R]):
    """Items that one thread handles, one after another, and what came of them.

    Attributes:
        results: Of the items done so far.
        error: What the call for one of them raised.
        ended: Whether nothing more will come.
    """

    __slots__ = ("_items", "ended", "error", "results")

    def __init__(self, items: list[T]) -> None:
        self._items = items
        self.results: list[R] = []
        self.error: BaseException | None = None
        self.ended = False

    def run(
        self, call: Callable[[T, Callable[[int], object]], R], tell: Callable[[int], object]
    ) -> None:
        before = current = 0

        def tell_item(done: int) -> None:
            nonlocal current
            current = done
            tell(before + done)

        try:
            for item in self._items:
                self.results.append(call(item, tell_item))
                before, current = before + current, 0
        except BaseException as error:  # noqa: BLE001 - raised in the calling thread
            self.error = error
        self.ended = True


def _batches(items: Iterable[T], cost: Callable[[T], int] | None) -> list[_Batch[T, Any]]:
    if cost is None:
        return [_Batch([item]) for item in items]
    return [_Batch(batch) for batch in _neighbours(items, cost)]


def _neighbours(items: Iterable[T], cost: Callable[[T], int]) -> Iterator[list[T]]:
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += cost(item)
        if total >= _BATCH:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


class _Meter:
    """Between the threads, which report, and the caller, who waits and passes it on.

    Attributes:
        abandoned: Whether the caller has stopped waiting.
        news: Something in it says that a batch has ended.
    """

    def __init__(self, progress: Callable[[int], object] | None, batches: int) -> None:
        self.abandoned = False
        self.news: SimpleQueue[None] = SimpleQueue()
        self._progress = progress
        self._done = [0] * batches  # bytes; each is written by one thread
        self._told = 0
        self._caller = get_ident()

    def tell(self, batch: int, done: int) -> None:
        """In a thread: `done` bytes of the batch are done."""
        if self.abandoned:
            raise AbandonedError
        self._done[batch] = done
        if get_ident() == self._caller:  # there was no thread to be had
            self._pass_on()

    def wait(self, batch: _Batch[Any, Any]) -> None:
        """In the caller: return when the batch has ended, or raise what it raised."""
        while not batch.ended:
            with suppress(Empty):
                self.news.get(timeout=PATIENCE if self._progress is None else TICK)
            self._pass_on()
        self._pass_on()
        if batch.error is not None:
            raise batch.error

    def _pass_on(self) -> None:
        if self._progress is not None and (total := sum(self._done)) != self._told:
            self._told = total
            self._progress(total)
