"""What holds for all tests; faults at system calls, and counts of them."""

from __future__ import annotations

import gc
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

sys.path.insert(0, str(Path(__file__).parent))  # `interrupts`

# A property has to hold on a busy machine too: neither an example nor making it has a time limit.
settings.register_profile(
    "safeweights", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("safeweights")

# Started in the background of a script, this process ignores Ctrl-C (by nohup, a closed terminal), and so
# would those that tests start to interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def descriptors() -> Callable[[], int]:
    """Counts the descriptors that are open."""

    def count() -> int:
        gc.collect()  # what earlier tests left in cycles of frames and exceptions
        return len(os.listdir("/proc/self/fd"))

    return count


CALLS = (
    "open", "stat", "fstat", "fchown", "fchmod", "writev", "pwritev", "write", "fsync", "link", "close",
    "replace", "pread", "copy_file_range", "pwrite",
)  # fmt: skip


class SystemCalls:
    """Records the calls of `os` functions, and makes chosen ones fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: tuple[str, ...] = CALLS) -> None:
        self.log: list[str] = []
        self._faults: dict[int, BaseException] = {}
        for name in filter(partial(hasattr, os), calls):
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            fault = self._faults.get(len(self.log))
            self.log.append(name)
            if fault is None:
                return real(*args, **kwargs)
            if name == "close":  # close(2) reports an error and closes all the same
                real(*args, **kwargs)
            raise fault

        return call

    def fail(self, number: int, fault: BaseException) -> None:
        """Let the call of this number (counted from now) raise `fault`."""
        self.log.clear()
        self._faults = {number: fault}

    def watch(self) -> None:
        """Record from now on, and let nothing fail."""
        self.log.clear()
        self._faults = {}


@pytest.fixture
def system_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[SystemCalls]:
    with monkeypatch.context() as patch:
        yield SystemCalls(patch)


@pytest.fixture
def system_calls_class() -> type[SystemCalls]:
    """For tests that patch several times, or other calls."""
    return SystemCalls
