"""Threads: the one place that starts any, and the four ways in which the package uses them.

- `in_parallel`: the chunks of one buffer, shared among threads. For filling and copying memory.
- `in_threads`: a call for each of many items, such as files; results in order, progress for the caller.
- `in_order`: results that are used one after another and made ahead, such as the pieces of a file.
- `Background`: calls that run beside the caller: reading the next piece while this one is used.

Rules for all of them:
- No thread outlives the call, or the `Background`, that started it, unless a second Ctrl-C insists.
- Ctrl-C may arrive between any two instructions. So a flag says what has ended, and locks and queues
  only wake: `threading.Event` keeps its lock for ever if the interrupt comes just after it was taken.
- Where the system has no more threads (in a full container, at the interpreter's end) fewer share the
  work; where it has none, the calling thread does all of it.
- Threads are daemons: a read from a dead network mount must not keep the process from ending.
- A call that is not wanted any more ends early where it is `Stoppable`: a server may be slow, or silent.

Knows nothing of what the calls do.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Lock, RLock, Thread, current_thread, get_ident, local
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Self

__all__ = [
    "CHUNK", "Background", "Job", "News", "Stoppable", "cut", "in_order", "in_parallel", "in_threads",
    "pause", "thread_count",
]  # fmt: skip

T = TypeVar("T")
R = TypeVar("R")

CHUNK: Final = 1 << 23
"""Bytes that one thread handles at a time: Python's share of the work is below 6 % of a core then."""

_BATCH: Final = 1 << 22
"""Cost, in bytes, of the items that one thread takes at a time; see `in_threads`."""

_PATIENCE: Final = 0.5
"""Seconds of one wait: Windows delivers Ctrl-C only between two waits."""

_TICK: Final = 0.05
"""Seconds between two looks at the progress. Waking the caller at every report would make it compete
with the jobs for the interpreter's lock: 20,000 small files take three times as long."""


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


# ---- calls beside the caller


class _AbandonedError(Exception):
    """The caller does not wait for this result any more."""


class _End:
    """The end of something in another thread, which can be waited for.

    Attributes:
        came: Whether it has come.
    """

    __slots__ = ("_wake", "came")

    def __init__(self) -> None:
        self.came = False
        self._wake = Lock()
        self._wake.acquire()  # until the end

    def set(self) -> None:
        self.came = True
        self._wake.release()

    def wait(self) -> None:
        while not self.came:
            # An interrupt between these two keeps the lock; other threads then look at the flag.
            if self._wake.acquire(timeout=_PATIENCE):
                self._wake.release()


class News:
    """Wakes threads that wait until something has changed.

    Unlike with `threading.Condition`, an interrupt (Ctrl-C) at any point leaves nothing locked. What has
    changed is told by the caller's own data, which it guards with a lock of its own; a wake that an
    interrupt loses costs the one that waits half a second.

    >>> news, lock, found = News(), Lock(), []
    >>> with Background() as beside:
    ...     _ = beside.submit(lambda: (found.append(1), news.tell()))
    ...     while not found:
    ...         with lock:
    ...             waiting = None if found else news.expect()
    ...         if waiting is not None:
    ...             _ = waiting()
    """

    __slots__ = ("_sleepers",)

    def __init__(self) -> None:
        self._sleepers: deque[Lock] = deque()

    def expect(self) -> Callable[[], object]:
        """A function that waits for the next `tell`; call this while the data cannot change."""
        wake = Lock()
        wake.acquire()
        self._sleepers.append(wake)
        return partial(wake.acquire, timeout=_PATIENCE)

    def tell(self) -> None:
        """Wake all threads that wait."""
        while (wake := _next_of(self._sleepers)) is not None:
            wake.release()


class Job(Generic[R]):
    """One call that was given to a `Background`, which runs or drops it.

    Attributes:
        error: What the call raised.
    """

    __slots__ = ("_call", "_end", "_result", "error")

    def __init__(self, call: Callable[[], R]) -> None:
        self._call: Callable[[], R] | None = call
        self._end = _End()
        self._result: R | None = None
        self.error: BaseException | None = None

    def result(self) -> R:
        """What the call returned; waits for it.

        Raises:
            BaseException: What the call raised.
        """
        self._end.wait()
        if self.error is None:
            return cast("R", self._result)
        try:
            raise self.error
        finally:
            del (
                self
            )  # or job, error and traceback would keep each other alive, and all they refer to

    def run(self) -> None:
        """Make the call; in whichever thread."""
        call, self._call = self._call, None  # what it holds is free as soon as it has returned
        assert call is not None
        try:
            self._result = call()
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            self.error = error
        self._end.set()
        del self  # see `result`

    def drop(self) -> None:
        """Make `result` an error, instead of running the call."""
        self._call, self.error = None, _AbandonedError()
        self._end.set()


class Background:
    """Threads that work beside the caller, on what it will need next or only at the end.

    Use it as a context manager, or `close` it. Calls begin in the order in which they were submitted; with
    one thread, the default, they also run one at a time. Unlike the standard library's executor it
    works where no thread can be started, does not keep a process from ending, may be closed by a
    finalizer in one of its own threads, and takes no time to import.

    Args:
        threads: At most so many; each starts when a call is submitted.
        name: Of the threads.

    >>> with Background() as beside:
    ...     job = beside.submit(sum, [1, 2, 3])
    ...     job.result()
    6
    """

    def __init__(self, threads: int = 1, name: str = "safeweights-background") -> None:
        self._most = threads
        self._name = name
        # Its `put` is re-entrant, which a finalizer needs that runs in the middle of another one.
        self._queue: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._workers: list[_Worker] = []  # one for each start that was tried
        # The thread that started them: if it is stopped, they are, too.
        self._above: _Worker | None = None

    def start(self) -> int:
        """Start all threads now, or as many as the system has; how many there are."""
        while len(self._threads) < self._most and self._start_one():
            pass
        return len(self._threads)

    def submit(self, call: Callable[..., R], *arguments: Any) -> Job[R]:
        """Have ``call(*arguments)`` run in a thread; where there is none, it runs here and now."""
        job = Job(partial(call, *arguments))
        if len(self._threads) < self._most:
            self._start_one()
        if self._threads:
            self._queue.put(job)
            return job
        job.run()
        if job.error is not None and not isinstance(job.error, Exception):
            job.result()  # Ctrl-C, which must not wait until the result is asked for
        return job

    def finish(self) -> None:
        """Let the threads end when all that was submitted is done. Returns at once; submit no more."""
        # A thread whose start was interrupted may be running, too.
        for _ in self._workers:
            self._queue.put(None)

    def close(self, *, stop: bool = False) -> None:
        """Drop the calls that have not begun, and wait for those that have.

        Args:
            stop: Whether those that have begun are not wanted either; see `Stoppable`.

        An interrupt (Ctrl-C) meanwhile is raised when they have ended, so that no thread touches memory
        that the caller is about to reuse. A second one is raised at once: a dead mount may never answer.
        In one of its own threads, where a finalizer may call this, it does not wait.
        """
        try:
            self.end(stop=stop)
        except BaseException:
            self.end(stop=True)
            raise

    def end(self, *, stop: bool = False) -> None:
        """`close`, but an interrupt is raised at once; another call does what is left."""
        while (job := self._next_unbegun()) is not None:
            job.drop()
        self.finish()
        if stop:
            self.stop()
        if current_thread() in self._threads:
            return
        # Not `join` alone: up to Python 3.12, one that is interrupted takes the thread for ended. A
        # thread that has not begun, since its start was interrupted, will find no call.
        for worker in self._workers:
            if worker.begun:
                worker.end.wait()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._workers.clear()
        above, self._above = self._above, None
        if above is not None:
            above.remove(self.stop)

    def stop(self) -> None:
        """Have the calls that have begun end early, where they are `Stoppable`; in any thread."""
        for worker in [*self._workers]:
            worker.stop()

    def _next_unbegun(self) -> Job[Any] | None:
        try:
            return self._queue.get_nowait()
        except Empty:
            return None

    def _start_one(self) -> bool:
        if sys.is_finalizing():  # up to Python 3.11 the start of a thread would never return then
            return False
        above: _Worker | None = getattr(_here, "worker", None)
        if above is not None and self._above is None:
            above.add(self.stop)
            self._above = above
        self._workers.append(_Worker())
        thread = Thread(
            target=_work, args=(self._queue, self._workers[-1]), name=self._name, daemon=True
        )
        handled = sys.exc_info()[1]
        try:
            thread.start()
        except RuntimeError as error:
            # Either there are no more threads, or an interrupt left the lock of an Event in disorder.
            if error.__context__ is not None and error.__context__ is not handled:
                raise error.__context__ from None
            return False
        self._threads.append(thread)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(stop=kind is not None)


class _Worker:
    """How far a thread is.

    Attributes:
        begun: Whether it takes calls.
        end: When it takes no more.
        stopped: Whether what it does is not wanted any more.
    """

    __slots__ = ("_lock", "_stops", "begun", "end", "stopped")

    def __init__(self) -> None:
        self.begun = False
        self.end = _End()
        self.stopped = False
        self._lock = RLock()  # a finalizer, in this thread too, may close the `Background`
        self._stops: list[Callable[[], object]] = []

    def add(self, stop: Callable[[], object]) -> None:
        with self._lock:
            if self.stopped:
                raise _AbandonedError
            self._stops.append(stop)

    def remove(self, stop: Callable[[], object]) -> None:
        with self._lock:  # a `stop` under way is waited for: what it stops may be closed afterwards
            self._stops.remove(stop)

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            for stop in self._stops:
                stop()


_here: Final = local()
"""Its `worker`: the one that the current thread is; none in threads that others started."""


class Stoppable:
    """A wait that another thread can end, if what it is for is not wanted any more.

    A context manager. Outside of the threads of a `Background` it does nothing.

    Args:
        stop: Makes the block end soon, also by an error. Called in another thread, at most until the block
            has ended; must not wait, nor raise an `Exception`.

    Raises:
        Exception: At the beginning or the end of the block, if the call of this thread was stopped.
    """

    __slots__ = ("_stop", "_worker")

    def __init__(self, stop: Callable[[], object]) -> None:
        self._stop = stop
        self._worker: _Worker | None = getattr(_here, "worker", None)

    def __enter__(self) -> None:
        if self._worker is not None:
            self._worker.add(self._stop)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._worker is not None:
            self._worker.remove(self._stop)
            if self._worker.stopped and kind is None:
                raise _AbandonedError


def pause(seconds: float) -> None:
    """Sleep; less, and with an error, if the call of this thread is stopped (see `Stoppable`)."""
    worker: _Worker | None = getattr(_here, "worker", None)
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not (worker and worker.stopped):
        time.sleep(left if worker is None else min(left, _TICK))
    if worker and worker.stopped:
        raise _AbandonedError


def _work(queue: SimpleQueue[Job[Any] | None], worker: _Worker) -> None:
    """What a thread does. It knows the queue only, so that it keeps no `Background` alive."""
    _here.worker = worker
    worker.begun = True
    while (job := queue.get()) is not None:
        job.run()
        del job  # else its result would live on while the next job is waited for
    worker.end.set()


def _next_of(waiting: deque[T]) -> T | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


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
    threads = threads or thread_count()
    pieces = deque(cut(total, most=chunk, least=least or chunk, threads=threads))
    if len(pieces) <= 2:
        work(0, total)
        return
    failures: list[BaseException] = []

    def share() -> None:
        try:
            while (piece := _next_of(pieces)) is not None:
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
        while (each := _next_of(waiting)) is not None:
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


def in_order(call: Callable[[T], R], items: Iterable[T], *, workers: int = 0) -> Iterator[R]:
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
            raise _AbandonedError
        self._done[batch] = done
        if get_ident() == self._caller:  # there was no thread to be had
            self._pass_on()

    def wait(self, batch: _Batch[Any, Any]) -> None:
        """In the caller: return when the batch has ended, or raise what it raised."""
        while not batch.ended:
            with suppress(Empty):
                self.news.get(timeout=_PATIENCE if self._progress is None else _TICK)
            self._pass_on()
        self._pass_on()
        if batch.error is not None:
            raise batch.error

    def _pass_on(self) -> None:
        if self._progress is not None and (total := sum(self._done)) != self._told:
            self._told = total
            self._progress(total)
