"""Faults at system calls, and counts of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CALLS = (
    "open", "stat", "fstat", "fchown", "fchmod", "writev", "pwritev", "write", "fsync", "link", "close",
    "replace", "pread",
)  # fmt: skip


class SystemCalls:
    """Records the calls of `os` functions, and makes chosen ones fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: tuple[str, ...] = CALLS) -> None:
        self.log: list[str] = []
        self._faults: dict[int, BaseException] = {}
        for name in calls:
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


@pytest.fixture
def no_leak(descriptors: Callable[[], int]) -> Iterator[None]:
    """Fails if the test leaves a descriptor open."""
    before = descriptors()
    yield
    assert descriptors() == before
