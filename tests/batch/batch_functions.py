"""What units do in tests: imported by workers."""

from __future__ import annotations

import os
import signal
import sys
import time

from safeweights.batching import Outcome, Unit


def nap(arguments: tuple[str, ...], unit: Unit, again: bool) -> Outcome:
    """Take a while."""
    time.sleep(float(arguments[0]))
    return Outcome(0, {"source": unit.source, "again": again})


def die(arguments: tuple[str, ...], unit: Unit, again: bool) -> Outcome:
    """End the worker at the units named `arguments`, each time."""
    if unit.source in arguments:
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(0, {"source": unit.source})


def die_once(arguments: tuple[str, ...], unit: Unit, again: bool) -> Outcome:
    """End the worker when a unit is done for the first time; a file remembers it."""
    mark = os.path.join(arguments[0], unit.source)
    if not os.path.exists(mark):
        with open(mark, "w"):
            pass
        os._exit(7)
    return Outcome(0, {"source": unit.source})


def record(arguments: tuple[str, ...], unit: Unit, again: bool) -> Outcome:
    """Append to a log that it was called, and write the target."""
    with open(arguments[0], "a", encoding="utf-8") as log:
        log.write(f"{unit.source} {again}\n")
    if unit.target is None:
        return Outcome(0, {"source": unit.source})
    with open(unit.target, "w", encoding="utf-8") as file:
        file.write(unit.source)
    return Outcome(0, {"source": unit.source}, (), (unit.target,))


def wait_and_undo(arguments: tuple[str, ...], unit: Unit, again: bool) -> Outcome:
    """Make a file, wait for ever, and remove it when interrupted."""
    path = os.path.join(arguments[0], unit.source)
    with open(path, "w"):
        pass
    try:
        time.sleep(600)
    finally:
        os.unlink(path)
    raise AssertionError


def noisy(arguments: tuple[str, ...], unit: Unit, again: bool) -> Outcome:
    """Print where answers are expected."""
    print("nothing to see here")
    sys.stdout.flush()
    os.write(1, b"nor here\n")
    return Outcome(0, {"source": unit.source})
