"""Ctrl-C at every point of a load: no thread stays, nothing hangs, and a loader can still be closed."""

from __future__ import annotations

import gc
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import safeweights
import safeweights.numpy
from interrupts import Alarm, Interrupt, posix
from new_threads import threads_since_now
from safeweights import SafetensorError
from safeweights.frameworks import loading, prefetch
from safeweights.frameworks.loading import HostLanding
from safeweights.storage import background, parallel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = posix


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(HostLanding, "arena", 1)  # a job for each tensor
    path = tmp_path / "x.safetensors"
    safeweights.numpy.save_file({f"{i}": np.full(3, i, "f4") for i in range(4)}, path)
    return path


def every_point(work: Callable[[], object], *modules: Any, ends_at_once: bool = True) -> None:
    """Call `work` with an interrupt at its first point, its second ... until it needs no more.

    Args:
        work: What is interrupted.
        modules: Where.
        ends_at_once: No thread may be left when it has raised; otherwise each has to end soon.
    """

    def hangs() -> None:
        raise TimeoutError(f"nothing ends after the interrupt at point {point}")

    with Interrupt(sys.maxsize, *modules):
        work()  # Python 3.12.1 traces no instructions the first time
    started = threads_since_now()
    for point in range(2000):
        with Alarm(hangs, every=30):
            raised = False
            with suppress(KeyboardInterrupt), Interrupt(point, *modules) as interrupt:
                raised = True
                work()
                raised = False
            while not ends_at_once and started():
                gc.collect()  # tracing keeps frames in cycles
                time.sleep(0.0005)
        assert raised is interrupt.raised, point
        assert not started(), point
        if not raised:
            break
    assert 10 < point < 1999


@pytest.mark.parametrize("progress", [None, lambda _: None])
def test_a_load(model: Path, progress: Any) -> None:
    def load() -> None:
        found = safeweights.numpy.load_file(model, backend="pread", progress=progress)
        assert [int(found[f"{i}"][0]) for i in range(4)] == [0, 1, 2, 3]

    every_point(load, loading, background, parallel)


def test_a_loader(model: Path) -> None:
    """What was interrupted goes on, or says that it cannot; closing it always works."""

    def use() -> None:
        loader = safeweights.stream(model, "np", backend="pread", threads=2)
        try:
            loader.take("2")
            assert len(dict(loader)) == 3
        except KeyboardInterrupt:
            names = go_on(loader)
            assert len(names) == len(set(names)) <= 4
            raise
        finally:
            loader.close()

    def go_on(loader: Any) -> list[str]:
        try:
            return [name for name, _ in loader]
        except (SafetensorError, KeyboardInterrupt):  # it was stopped half-way
            return []

    # Where the making of a loader is interrupted, or its `close`, dropping it stops the threads.
    every_point(use, prefetch, ends_at_once=False)
    every_point(use, loading, ends_at_once=False)
