"""Pausing the garbage collector: nesting, threads, and restoring its state."""

from __future__ import annotations

import gc
import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from safeweights.format import gcpause
from safeweights.format.gcpause import gc_paused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_paused_and_restored() -> None:
    with gc_paused():
        assert not gc.isenabled()
        with gc_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_restored_after_an_exception() -> None:
    with pytest.raises(KeyError), gc_paused():
        raise KeyError
    assert gc.isenabled()


def test_stays_off_where_it_was_off() -> None:
    gc.disable()
    with gc_paused():
        pass
    assert not gc.isenabled()


def test_threads_overlap() -> None:
    """A block that ends must not enable the collector while another block is open."""
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with gc_paused():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    with gc_paused():
        leave.set()
        thread.join(10)
        assert not gc.isenabled()
    assert gc.isenabled()


def test_many_threads_leave_it_as_it_was() -> None:
    def work() -> None:
        for _ in range(300):
            with gc_paused():
                assert not gc.isenabled()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert gc.isenabled()


@pytest.mark.skipif(
    gc.get_freeze_count() > 0, reason="Python 3.12 starts with objects that it froze itself"
)
def test_many_new_objects_are_promoted() -> None:
    """The next collection must not visit all of them."""
    with gc_paused():
        made = [[number] for number in range(20_000)]
    assert gc.get_count()[0] < 10_000
    assert any(found is made[-1] for found in gc.get_objects(generation=2))


def test_few_new_objects_stay_new() -> None:
    gc.collect()
    with gc_paused():
        made = [[number] for number in range(100)]
    assert any(found is made[-1] for found in gc.get_objects(generation=0))


def test_what_was_frozen_stays_frozen() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with gc_paused():
            made = [[number] for number in range(20_000)]
        assert len(made) == 20_000
        assert gc.get_freeze_count() >= frozen - 100  # some of them may have died
    finally:
        gc.unfreeze()


def test_a_signal_handler_may_pause_it_too() -> None:
    """Between any two lines: here between all of them."""
    handled: list[int] = []
    within: list[bool] = []

    def trace(frame: FrameType, event: str, _: object) -> object:
        if frame.f_code is not gc_paused.__wrapped__.__code__:  # type: ignore[attr-defined]
            return None
        if event == "line":
            sys.settrace(None)
            handled.append(frame.f_lineno)
            with gc_paused():
                pass
            sys.settrace(trace)
        return trace

    def work() -> None:
        sys.settrace(trace)
        with gc_paused():
            within.append(gc.isenabled())
        sys.settrace(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert len(set(handled)) >= 8
    assert within == [False]
    assert gc.isenabled()
    with gc_paused():
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_within_a_block_has_its_collector() -> None:
    """The thread that opened the block does not exist in the child and cannot close it there."""
    inside, leave = threading.Event(), threading.Event()

    def load() -> None:
        with gc_paused():
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=load)
    thread.start()
    assert inside.wait(30)
    child = os.fork()
    if not child:
        enabled = gc.isenabled()
        with gc_paused():
            paused = not gc.isenabled()
        os._exit(0 if enabled and paused and gc.isenabled() else 1)
    leave.set()
    thread.join(30)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert gc.isenabled()


def test_leaving_all_blocks_at_once() -> None:
    """The handler of a forked child, called in this process."""
    with gc_paused():
        gcpause._leave_all()
        assert gc.isenabled()
        with gc_paused():
            assert not gc.isenabled()
    assert gc.isenabled()
    gcpause._leave_all()
    gc.disable()
    with gc_paused():
        gcpause._leave_all()
    assert not gc.isenabled()
