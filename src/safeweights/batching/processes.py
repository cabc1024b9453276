"""The engine of one machine: worker processes, each fed by a thread of this one.

A worker is a new interpreter that runs `worker`: it imports nothing of the caller's program, so that no
``if __name__ == "__main__"`` is needed, and shares no lock or thread with it. Requests and answers are
lines of JSON on its standard input and output: a group in one, what came of several units in the other.
That a worker ends shows at once: its output ends.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from ..format.gcpause import gc_paused
from ..storage.background import Background
from .engines import Answer, Lost

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .units import Assignment, Work

__all__ = ["Processes"]

_START: Final = (
    "import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from safeweights.batching.worker import main; main()"
)
_AHEAD: Final = 2
"""Groups given out for each worker: one it has, and one that its thread hands over without a wait."""

_TICK: Final = 0.5
_UNDO: Final = 20.0
"""Seconds that workers have to undo what they have begun before they are killed."""


class Processes:
    """Worker processes; see `engines.Engine`.

    Args:
        work: What they do.
        jobs: How many; by default one a processor that this process may use.

    Raises:
        OSError: There are no threads, or no processes, to be had.
    """

    def __init__(self, work: Work, jobs: int | None) -> None:
        self._work = json.dumps(asdict(work))
        self._groups: SimpleQueue[tuple[int, Sequence[Assignment]] | None] = SimpleQueue()
        self._events: SimpleQueue[Answer | Lost | OSError] = SimpleQueue()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ending = False
        self._threads = Background(jobs or _processors(), "safeweights-worker")
        self._workers = self._threads.start()
        if not self._workers:
            raise OSError(errno.EAGAIN, "no thread can be started")
        self.slots = self._workers * _AHEAD
        for _ in range(self._workers):
            self._threads.submit(self._serve)

    def submit(self, ticket: int, group: Sequence[Assignment]) -> None:
        self._groups.put((ticket, group))

    def next(self) -> Answer | Lost:
        while True:
            with suppress(Empty):  # Windows delivers Ctrl-C only between two waits
                event = self._events.get(timeout=_TICK)
                if isinstance(event, OSError):
                    raise event
                return event

    def close(self) -> None:
        for _ in range(self._workers):
            self._groups.put(None)
        self._threads.close()

    def abort(self) -> None:
        self._ending = True
        for process in tuple(self._running):
            process.terminate()
        deadline = time.monotonic() + _UNDO
        try:
            while self._running and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:  # a second Ctrl-C does not wait
            for process in tuple(self._running):
                process.kill()
            self.close()

    # ---- in a thread for each worker

    def _serve(self) -> None:
        process: subprocess.Popen[bytes] | None = None
        try:
            while (given := self._groups.get()) is not None and not self._ending:
                process = process or self._start()
                if not self._do(process, *given):
                    self._end(process)
                    process = None
        except OSError as error:
            self._events.put(error)
        finally:
            if process is not None:
                self._end(process)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _START, json.dumps(sys.path)]
        with _interrupts_blocked():
            process = subprocess.Popen(  # noqa: S603 - this interpreter
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        self._running.add(process)
        if self._ending:
            process.terminate()
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(f"{self._work}\n".encode())
            process.stdin.flush()
        # One that was killed before it was ready is noticed as any other; one that fails always would.
        if process.stdout.readline() != b"ready\n" and process.wait() > 0:
            self._end(process)
            message = f"a worker process cannot be started: it ended with status {process.wait()}"
            raise OSError(errno.ECHILD, message)
        return process

    def _do(
        self, process: subprocess.Popen[bytes], ticket: int, group: Sequence[Assignment]
    ) -> bool:
        """Have a group done; whether the worker is still there."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{json.dumps([each.record() for each in group])}\n".encode())
            process.stdin.flush()
        except OSError:
            self._events.put(Lost(ticket, _ending_of(process)))
            return False
        place = 0
        while place < len(group):
            line = process.stdout.readline()
            if line[-1:] != b"\n":
                self._events.put(Lost(ticket, _ending_of(process)))
                return False
            with gc_paused():  # otherwise collections take twice as long as parsing
                records: list[dict[str, Any]] = json.loads(line)
            self._events.put(Answer(ticket, place, records))
            place += len(records)
        return True

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):
            process.stdin.close()
        process.wait()
        process.stdout.close()
        self._running.discard(process)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that this thread starts meanwhile never sees Ctrl-C, not even while Python itself starts.

    A terminal sends it to all processes of a program. The caller's other threads take its own.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ending_of(process: subprocess.Popen[bytes]) -> str:
    """Why a worker is not there any more."""
    status = process.wait()
    if status >= 0:
        return f"a worker process ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = str(-status)
    return f"a worker process was ended by {name}"


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
