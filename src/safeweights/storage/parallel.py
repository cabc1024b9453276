"""Many files at once: jobs in threads, and one caller who waits for them.

Results come in the order of the items, as does the first failure; how far the jobs have come is told
to the caller in the caller's own thread; and when the caller leaves, as by Ctrl-C, the jobs end at
their next report and no thread is left behind.

Knows nothing of what the jobs do.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["CHUNK", "in_parallel", "in_threads", "thread_count"]

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE: Final = 0.5
"""Seconds of one wait: Windows delivers Ctrl-C only in between."""


class _AbandonedError(Exception):
    """Ends a job for whose result nobody waits any more."""


def in_threads(
    call: Callable[[T, Callable[[int], object]], R],
    items: Iterable[T],
    *,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[R]:
    """The result of `call` for each item, in the order of the items.

    The first failure is raised in its turn; what has not begun by then is not begun, and what is
    under way is given up.

    Args:
        call: Given an item, and a callable to be told now and then how many bytes of the item are
            done; what that raises has to be let through.
        items: What there is to do.
        workers: Threads; the number of cores unless told.
        progress: Called with the bytes done so far of all items, from the calling thread.
    """
    meter = _Meter(progress)
    futures: list[Future[R]] = []
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        for index, item in enumerate(items):
            future = pool.submit(call, item, partial(meter.tell, index))
            future.add_done_callback(meter.wake)
            futures.append(future)
        return [meter.wait(future) for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        meter.abandoned = True
        pool.shutdown()


class _Meter:
    """Between the jobs, which report, and the caller, who waits and passes it on.

    However often jobs report, the caller is told no faster than it listens.

    Attributes:
        abandoned: The caller has left.
    """

    def __init__(self, progress: Callable[[int], object] | None) -> None:
        self.abandoned = False
        self._progress = progress
        self._news = Event()
        self._lock = Lock()
        self._done: dict[int, int] = {}
        self._total = self._told = 0

    def tell(self, item: int, done: int) -> None:
        """In a job: `done` bytes of the item are done."""
        if self.abandoned:
            raise _AbandonedError
        with self._lock:
            self._total += done - self._done.get(item, 0)
            self._done[item] = done
        self._news.set()

    def wake(self, _: Future[Any]) -> None:
        """In a job, when it has ended."""
        self._news.set()

    def wait(self, future: Future[R]) -> R:
        """In the caller: the result of a job, once it is there and what was told before is passed on."""
        while not future.done():
            self._news.wait(_PATIENCE)
            self._news.clear()
            self._pass_on()
        self._pass_on()
        return future.result()

    def _pass_on(self) -> None:
        total = self._total
        if self._progress is not None and total != self._told:
            self._told = total
            self._progress(total)


CHUNK: Final = 1 << 23
"""Bytes that one thread handles at a time: Python's share of the work is lost in it."""


def in_parallel(
    work: Callable[[int, int], object], total: int, *, chunk: int = CHUNK, threads: int = 0
) -> None:
    """Call ``work(begin, end)`` for chunks that cover 0 to `total`, in ascending order of begin.

    With `threads` as many share the work, else `thread_count()`; the calling thread is one of them, and
    the only one for up to two chunks, and where the system has no more: at the interpreter's end, or in
    a full container.

    The first exception is raised after the chunks that are under way have ended, so that no thread
    touches the memory afterwards; chunks not begun are not begun any more. The same holds for an
    interrupt (Ctrl-C); another one meanwhile ends the waiting, since a dead mount may never answer.
    """
    starts = deque(range(0, total, chunk))
    if len(starts) <= 2:
        work(0, total)
        return
    failures: list[BaseException] = []
    locks: list[Lock] = []  # each held by a thread as long as it works
    others: list[Thread] = []

    def share(working: Lock) -> None:
        with working:
            try:
                while (begin := _next_of(starts)) is not None:
                    work(begin, min(begin + chunk, total))
            except BaseException as error:  # noqa: BLE001 - raised below
                starts.clear()
                failures.append(error)

    try:
        for _ in range(min(len(starts), threads or thread_count()) - 1):
            locks.append(Lock())
            thread = Thread(target=share, args=locks[-1:], name="safeweights-share")
            try:
                thread.start()
            except RuntimeError:
                break
            others.append(thread)
        share(Lock())
    finally:
        # A thread that begins only now, as one may whose start was interrupted, finds nothing to do.
        starts.clear()
        interrupts = [error for lock in locks if (error := _wait_for(lock))]
        for thread in others:
            thread.join()
    for error in (*failures, *interrupts):
        raise error


def _wait_for(lock: Lock) -> BaseException | None:
    """Return when nobody holds `lock`; one interrupt meanwhile is the result, the next one is raised."""
    interrupt = None
    while True:
        try:
            with lock:
                return interrupt
        except BaseException as error:  # noqa: PERF203 - the first is raised by the caller
            if interrupt is not None:
                raise
            interrupt = error


def _next_of(starts: deque[int]) -> int | None:
    try:
        return starts.popleft()
    except IndexError:
        return None


def thread_count() -> int:
    """Threads that share a transfer: as many as processors this process may use, from 2 to 16."""
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        processors = os.cpu_count() or 1
    return max(2, min(16, processors))
