"""A worker process: reads groups of units from standard input, and writes what came of each.

What the units print goes elsewhere: the two pipes are taken away from standard input and output first. If
the pipe to the caller ends while a unit is done, the caller was killed or gives up: the unit is
interrupted, as by Ctrl-C, and so undone. Ctrl-C itself, which a terminal sends to all processes of a
program, is left to the caller.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from queue import SimpleQueue
from typing import IO, Any, Final

from ..storage.background import Background
from .units import Assignment, Work, perform

__all__ = ["main"]

_TICK: Final = 0.05
"""Seconds between two answers: waking the caller for each small unit takes a tenth of the time."""


class _State:
    """Between the thread that reads and the one that works.

    Attributes:
        groups: What there is to do; None at the end.
        busy: Whether a group is being done.
    """

    def __init__(self) -> None:
        self.groups: SimpleQueue[list[dict[str, Any]] | None] = SimpleQueue()
        self.busy = False


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    requests, answers = _pipes()
    try:
        work = Work.of(json.loads(requests.readline()))
        work.resolve()  # what it imports is not part of the first unit
        state = _State()
        reader = Background()
        reader.start()
        reader.submit(_read, requests, state)
        answers.write(b"ready\n")
        answers.flush()
        while (group := state.groups.get()) is not None:
            told = time.monotonic()
            found: list[dict[str, Any]] = []
            for place, record in enumerate(group, 1):
                found.append(perform(work, Assignment.of(record)))
                state.busy = place < len(group)
                if not state.busy or time.monotonic() - told > _TICK:
                    answers.write(json.dumps(found).encode() + b"\n")
                    answers.flush()
                    told, found = time.monotonic(), []
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    # The thread waits for a line that never comes, and nothing is left to be cleaned up.
    os._exit(0)


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough; undoing must not be interrupted
    raise KeyboardInterrupt


def _pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The pipes to the caller; standard input is empty then, and standard output is standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    if sys.stderr is not None:
        os.dup2(2, 1)
    return requests, answers


def _read(requests: IO[bytes], state: _State) -> None:
    while (line := requests.readline())[-1:] == b"\n":
        state.busy = True
        state.groups.put(json.loads(line))
    state.groups.put(None)
    if state.busy:
        os.kill(os.getpid(), signal.SIGTERM)
