"""Calls that run beside the caller: the one place that starts threads.

`Background` runs them, `News` wakes who waits for something they change, `Stoppable` and `pause` let one
that is not wanted any more end early: a server may be slow, or silent.

Rules, for all of `storage.parallel` too:
- No thread outlives the `Background`, or the call, that started it, unless a second Ctrl-C insists.
- Ctrl-C may arrive between any two instructions. So a flag says what has ended, and locks and queues
  only wake: `threading.Event` keeps its lock for ever if the interrupt comes just after it was taken.
- Where the system has no more threads (in a full container, at the interpreter's end) fewer share the
  work; where it has none, the calling thread does all of it.
- Threads are daemons: a read from a dead network mount must not keep the process from ending.

Knows nothing of what the calls do.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, RLock, Thread, current_thread, local
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

__all__ = [
    "PATIENCE", "TICK", "AbandonedError", "Background", "Job", "News", "Stoppable", "next_of", "pause",
]  # fmt: skip

T = TypeVar("T")
R = TypeVar("R")

PATIENCE: Final = 0.5
"""Seconds of one wait: Windows delivers Ctrl-C only between two waits."""

TICK: Final = 0.05
"""Seconds between two looks at the progress. Waking the caller at every report would make it compete
with the jobs for the interpreter's lock: 20,000 small files take three times as long."""


class AbandonedError(Exception):
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
            if self._wake.acquire(timeout=PATIENCE):
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
        return partial(wake.acquire, timeout=PATIENCE)

    def tell(self) -> None:
        """Wake all threads that wait."""
        while (wake := next_of(self._sleepers)) is not None:
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
        self._call, self.error = None, AbandonedError()
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
        In one of its own threads, where a finalizer may call this, it does not wait; nor at the
        interpreter's end.
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
        # At the interpreter's end, when what is left is freed, daemons have stopped: none would ever end.
        if current_thread() in self._threads or sys.is_finalizing():
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
                raise AbandonedError
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
                raise AbandonedError


def pause(seconds: float) -> None:
    """Sleep; less, and with an error, if the call of this thread is stopped (see `Stoppable`)."""
    worker: _Worker | None = getattr(_here, "worker", None)
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not (worker and worker.stopped):
        time.sleep(left if worker is None else min(left, TICK))
    if worker and worker.stopped:
        raise AbandonedError


def _work(queue: SimpleQueue[Job[Any] | None], worker: _Worker) -> None:
    """What a thread does. It knows the queue only, so that it keeps no `Background` alive."""
    _here.worker = worker
    worker.begun = True
    while (job := queue.get()) is not None:
        job.run()
        del job  # else its result would live on while the next job is waited for
    worker.end.set()


def next_of(waiting: deque[T]) -> T | None:
    """What a thread takes next; None when there is nothing left."""
    try:
        return waiting.popleft()
    except IndexError:
        return None
