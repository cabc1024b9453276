"""Threads: the chunks of one buffer, a call for each of many items, and calls beside the caller."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interrupts import Alarm, Interrupt, posix
from new_threads import threads_since_now
from safeweights.storage import background, parallel, read_ahead
from safeweights.storage.background import AbandonedError, Background, Job, Stoppable, pause
from safeweights.storage.parallel import cut, in_order, in_parallel, in_threads, thread_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    started = threads_since_now()
    yield
    assert not started()


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[threading.Thread]]:
    """Given how many threads the system has left; gives those that were started."""

    def limit(available: int) -> list[threading.Thread]:
        start, started = threading.Thread.start, []

        def refuse(thread: threading.Thread) -> None:
            if len(started) == available:
                raise RuntimeError("can't start new thread")
            started.append(thread)
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        return started

    return limit


def until(fact: Callable[[], bool]) -> None:
    """Wait for other threads, for ten seconds at most."""
    deadline = time.monotonic() + 300
    while not fact():
        assert time.monotonic() < deadline, "nothing happened for five minutes"
        time.sleep(0.001)


@pytest.mark.parametrize("processors", [None, 1, 3, 64])
def test_thread_count(monkeypatch: pytest.MonkeyPatch, processors: int | None) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processors is None:
        monkeypatch.delattr(os, "sched_getaffinity")
        monkeypatch.setattr(os, "cpu_count", lambda: None)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(processors), raising=False)
    assert thread_count() == {None: 2, 1: 2, 3: 3, 64: 16}[processors]


@pytest.mark.parametrize(
    ("machine", "processors", "ranks", "threads"),
    [
        (2, 2, "2", 1),
        (2, 2, "8", 1),
        (96, 96, "8", 12),
        (96, 12, "8", 12),  # each rank is bound to its processors
        (96, 4, "8", 4),
        (192, 192, "4", 16),
        (1, 1, "2", 1),
        (8, 8, "1", 8),
        (8, 8, "all", 8),
        (8, 8, "", 8),
        (1, 1, "0", 2),
    ],
)
def test_ranks_of_one_machine_share_its_processors(
    monkeypatch: pytest.MonkeyPatch, machine: int, processors: int, ranks: str, threads: int
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setattr(parallel, "_MACHINE", machine)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(processors), raising=False)
    assert thread_count() == threads
    done: list[tuple[int, int]] = []
    in_parallel(lambda begin, end: done.append((begin, end)), 50, chunk=10)
    assert sorted(done) == [(at, at + 10) for at in range(0, 50, 10)]
    assert list(in_order(abs, [-1, -2, -3])) == [1, 2, 3]
    assert in_threads(lambda item, tell: abs(item), [-1, -2]) == [1, 2]


# ---- calls beside the caller


def test_a_result_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PATIENCE", 0.001)
    with Background() as beside:
        assert beside.submit(lambda: (time.sleep(0.05), 7)[1]).result() == 7


def test_jobs_run_one_at_a_time_in_order_and_keep_their_errors() -> None:
    ran: list[tuple[int, int]] = []

    def job(number: int) -> int:
        ran.append((number, threading.get_ident()))
        if number == 3:
            raise ZeroDivisionError
        return -number

    with Background() as beside:
        jobs = [beside.submit(job, number) for number in range(6)]
        assert [each.result() for each in (*jobs[:3], *jobs[4:])] == [0, -1, -2, -4, -5]
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                jobs[3].result()
    assert [number for number, _ in ran] == list(range(6))
    (thread,) = {thread for _, thread in ran}
    assert thread != threading.get_ident()


def test_no_more_threads_than_were_allowed_and_than_there_are_jobs() -> None:
    met = threading.Barrier(3)
    with Background(3) as beside:
        started = threads_since_now()
        jobs = [beside.submit(met.wait, 30) for _ in range(2)]
        assert len(started()) == 2
        jobs += [beside.submit(met.wait, 30) for _ in range(4)]
        assert sorted(job.result() for job in jobs) == [0, 0, 1, 1, 2, 2]
        assert len(started()) == 3
        assert beside.start() == 3


def test_closing_drops_what_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PATIENCE", 0.001)  # so that a wait is many of them
    begun, release = threading.Event(), threading.Event()

    def hold() -> str:
        begun.set()
        release.wait(30)
        return "held"

    beside = Background()
    held = beside.submit(hold)
    dropped = beside.submit(begun.clear)
    begun.wait(30)
    timer = threading.Timer(0.05, release.set)
    timer.start()
    beside.close()
    beside.close()
    timer.join()
    assert (held.result(), begun.is_set()) == ("held", True)
    with pytest.raises(AbandonedError):
        dropped.result()


def test_threads_end_when_everything_is_done_after_finish() -> None:
    beside = Background(2)
    started = threads_since_now()
    jobs = [beside.submit(int, number) for number in range(10)]
    beside.finish()
    assert [job.result() for job in jobs] == list(range(10))
    until(lambda: not started())
    beside.close()


def test_a_job_may_close_what_runs_it() -> None:
    """As a finalizer does that the garbage collector happens to run in this thread."""
    beside = Background()
    beside.submit(beside.close).result()
    beside.close()


def test_nothing_keeps_a_result_that_was_taken() -> None:
    class Large:
        pass

    with Background() as beside:
        large = beside.submit(Large).result()
        gone = weakref.ref(large)
        del large
        until(lambda: gone() is None)  # while the thread waits for the next job


def test_nothing_keeps_an_error_that_was_raised() -> None:
    class Large:
        pass

    def fail() -> None:
        nonlocal gone
        large = Large()
        gone = weakref.ref(large)
        raise ZeroDivisionError

    gone: Any = None
    gc.disable()
    try:
        with Background() as beside:
            with contextlib.suppress(ZeroDivisionError):
                beside.submit(fail).result()
            beside.submit(int).result()
        assert gone() is None
    finally:
        gc.enable()


@posix
@pytest.mark.parametrize("interrupts", [1, 2])
def test_an_interrupt_waits_for_the_call_under_way_and_a_second_one_does_not(
    interrupts: int,
) -> None:
    under_way, release, done = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        under_way.set()
        release.wait(30)
        done.set()

    left = iter(range(interrupts))

    def interrupt() -> None:
        if next(left, None) is not None:
            raise KeyboardInterrupt
        if interrupts == 1:
            release.set()

    beside = Background()
    beside.submit(hold)
    under_way.wait(30)
    with Alarm(interrupt), pytest.raises(KeyboardInterrupt):
        beside.close()
    assert done.is_set() is (interrupts == 1)
    release.set()
    beside.close()
    assert done.is_set()


@posix
def test_a_thread_whose_start_was_interrupted_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    beside = Background()
    started = threads_since_now()
    with pytest.raises(KeyboardInterrupt):
        beside.submit(int)
    assert len(started()) == 1
    beside.close()
    until(lambda: not started())


def test_an_interrupt_that_spoils_the_start_of_a_thread_is_not_taken_for_a_lack_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`Thread.start` waits for an Event, whose `with` releases a lock that an interrupt took away."""

    def interrupted(_: threading.Thread) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            threading.Lock().release()

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), Background() as beside:
        beside.submit(int)


def test_a_lack_of_threads_is_recognised_while_an_exception_is_handled(
    scarce: Callable[[int], list[threading.Thread]],
) -> None:
    scarce(0)
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        with Background() as beside:
            assert beside.submit(threading.get_ident).result() == threading.get_ident()


# ---- an interrupt at every point


def _items(call: Callable[..., Any]) -> None:
    in_threads(call, range(6), workers=2, progress=lambda _: None)


def _one_item(call: Callable[..., Any]) -> None:
    in_threads(call, range(1), progress=lambda _: None)


def _no_progress(call: Callable[..., Any]) -> None:
    in_threads(call, range(3), workers=2)


def _chunks(call: Callable[..., Any]) -> None:
    in_parallel(lambda begin, _: call(begin, lambda _: None), 60, chunk=10, threads=2)


@posix
@pytest.mark.parametrize("work", [_items, _one_item, _no_progress, _chunks])
def test_an_interrupt_at_any_point_ends_all_calls_and_is_raised(
    monkeypatch: pytest.MonkeyPatch, work: Callable[[Callable[..., Any]], None]
) -> None:
    monkeypatch.setattr(parallel, "TICK", 0.0005)
    under_way: list[int] = []

    def call(item: int, tell: Callable[[int], object]) -> None:
        under_way.append(item)
        try:
            for done in range(3):
                time.sleep(0.0003)
                tell(done)
        finally:
            under_way.remove(item)

    def hangs() -> None:
        raise TimeoutError(f"nothing ends after the interrupt at point {point}")

    with Interrupt(sys.maxsize, background, parallel):
        work(call)  # Python 3.12.1 traces no instructions the first time
    started = threads_since_now()
    for point in range(1000):
        # Twice, because the first is kept until what is under way has ended.
        with Alarm(hangs, every=30), Interrupt(point, background, parallel) as interrupt:
            try:
                work(call)
                raised = False
            except KeyboardInterrupt:
                raised = True
            assert not under_way, point
        assert raised is interrupt.raised, point
        assert not started(), point
        if not raised:
            break
    assert 10 < point < 999  # how many there are depends on the Python and on who takes which chunk


# ---- where the system has no more threads


def test_without_threads_jobs_run_when_they_are_submitted(
    scarce: Callable[[int], list[threading.Thread]],
) -> None:
    scarce(0)
    with Background(3) as beside:
        assert beside.start() == 0
        job = beside.submit(threading.get_ident)
        failed = beside.submit(int, "x")
        assert job.result() == threading.get_ident()
        with pytest.raises(ValueError, match="invalid literal"):
            failed.result()
        with pytest.raises(KeyboardInterrupt):
            beside.submit(_interrupt)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_no_thread_is_started_while_the_interpreter_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    with Background(3) as beside:
        assert beside.submit(threading.get_ident).result() == threading.get_ident()


SUSPENDED = """
from safeweights.storage import read_ahead
pieces = read_ahead(iter([bytes(1 << 20)] * 9))
print(len(next(pieces)))
"""


def test_a_generator_that_is_half_used_does_not_keep_the_interpreter_from_ending() -> None:
    # It is freed when the threads have stopped already, and must not wait for them.
    command = [sys.executable, "-c", SUSPENDED]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.stdout, ended.stderr, ended.returncode) == (f"{1 << 20}\n", "", 0)


@pytest.mark.parametrize("available", [0, 1])
def test_work_is_done_without_threads(
    scarce: Callable[[int], list[threading.Thread]], available: int
) -> None:
    started = scarce(available)
    done: list[int] = []
    in_parallel(lambda begin, end: done.extend(range(begin, end)), 100, chunk=10, threads=4)
    assert sorted(done) == list(range(100))
    assert len(started) == available
    assert list(read_ahead(iter([b"a", b"b"]))) == [b"a", b"b"]
    started.clear()
    seen: list[int] = []

    def call(item: int, tell: Callable[[int], object]) -> int:
        tell(1)
        return -item

    assert in_threads(call, range(5), workers=3, progress=seen.append) == [0, -1, -2, -3, -4]
    assert seen[-1] == 5


def test_interrupts_without_threads(scarce: Callable[[int], list[threading.Thread]]) -> None:
    scarce(0)
    begun: list[int] = []

    def call(item: int, tell: Callable[[int], object]) -> None:
        begun.append(item)
        tell(1)

    def progress(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_threads(call, range(5), progress=progress)
    assert begun == [0]


# ---- the chunks of one buffer


@given(
    total=st.integers(0, 5000),
    most=st.integers(1, 40),
    least=st.integers(1, 40),
    after=st.integers(0, 5000),
    threads=st.integers(0, 20),
)
def test_pieces_cover_everything_once_and_get_no_longer(
    total: int, most: int, least: int, after: int, threads: int
) -> None:
    most *= least
    pieces = list(cut(total, most=most, least=least, after=after, threads=threads))
    assert [place for piece in pieces for place in range(*piece)] == list(range(total))
    lengths = [end - begin for begin, end in pieces]
    assert lengths[:-1] == sorted(lengths[:-1], reverse=True)
    assert max(lengths, default=0) <= most
    if len(lengths) > 1:
        rest = lengths[-1] % least
        assert lengths[-1] - rest <= lengths[-2]
        # A short rest is no piece of its own, unless the piece before it is as long as it can be.
        assert lengths[-1] > least // 8 or lengths[-2] + lengths[-1] > most
    assert all(least <= length <= most and length % least == 0 for length in lengths[:-1])
    if after >= most * (threads or 16):
        assert all(length == most for length in lengths[:-1])


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_no_thread_waits_long_for_the_last_piece(threads: int) -> None:
    """Threads that are equally fast end within the time of the shortest piece, or a few of them."""
    free = [0] * threads
    for begin, end in cut(1000, most=64, least=4, threads=threads):
        free[free.index(min(free))] += end - begin
    assert max(free) - min(free) <= 8


@pytest.mark.parametrize("threads", [0, 1, 5])
@pytest.mark.parametrize("total", [0, 1, 10, 11, 20, 1000])
def test_chunks_cover_everything_once(total: int, threads: int) -> None:
    seen: list[tuple[int, int]] = []
    in_parallel(lambda begin, end: seen.append((begin, end)), total, chunk=10, threads=threads)
    places = [place for begin, end in sorted(seen) for place in range(begin, end)]
    assert places == list(range(total))
    shorter: list[tuple[int, int]] = []
    in_parallel(
        lambda begin, end: shorter.append((begin, end)), total, chunk=10, least=2, threads=threads
    )
    assert [place for begin, end in sorted(shorter) for place in range(begin, end)] == places


@pytest.mark.parametrize("in_the_caller", [False, True])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_nothing_runs_after_a_failure(error: type[BaseException], in_the_caller: bool) -> None:
    begun: list[int] = []
    caller = threading.current_thread()

    def work(begin: int, end: int) -> None:
        begun.append(begin)
        if (threading.current_thread() is caller) is in_the_caller:
            raise error
        time.sleep(0.001)

    with pytest.raises(error):
        in_parallel(work, 20_000, chunk=10)
    assert len(begun) < 2_000


@posix
def test_an_interrupt_waits_for_work_under_way() -> None:
    """The caller may reuse the memory then: no thread may be writing to it."""
    under_way, done = threading.Event(), threading.Event()
    main = threading.current_thread()
    interrupted = []

    def work(begin: int, end: int) -> None:
        if threading.current_thread() is main:
            under_way.wait(30)
        else:
            under_way.set()
            while not interrupted:
                time.sleep(0.001)
            time.sleep(0.05)
            done.set()

    def interrupt() -> None:
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    with Alarm(interrupt), pytest.raises(KeyboardInterrupt):
        in_parallel(work, 30, chunk=10, threads=2)
    assert done.is_set()


def test_an_index_error_of_the_work_is_raised() -> None:
    with pytest.raises(IndexError, match="pop from empty list"):
        in_parallel(lambda begin, end: [][begin:end].pop(), 100, chunk=10)


# ---- a call for each of many items


def test_results_and_the_first_failure_come_in_the_order_of_the_items() -> None:
    later = threading.Event()

    def call(item: int, tell: object) -> int:
        if item == 0:
            assert later.wait(30)  # the first to begin is the last to end
        if item == 2:
            later.set()
        return -item

    assert in_threads(call, range(3), workers=3) == [0, -1, -2]

    def fail(item: int, tell: object) -> int:
        if item == 0:
            assert later.wait(30)
        later.set()
        raise ValueError(item)

    later.clear()
    with pytest.raises(ValueError, match="0"):
        in_threads(fail, range(3), workers=3)
    assert in_threads(call, [], workers=3) == []


@pytest.mark.parametrize("cost", [None, lambda item: item << 20])
def test_progress_is_told_in_the_calling_thread_and_adds_up(
    cost: Callable[[int], int] | None,
) -> None:
    seen: list[int] = []

    def call(item: int, tell: Callable[[int], object]) -> None:
        for done in range(1, item + 1):
            tell(done)

    def progress(done: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append(done)

    in_threads(call, [5, 0, 1, 1, 1, 7, 100, 0], workers=3, cost=cost, progress=progress)
    assert seen == sorted(set(seen))
    assert seen[-1] == 115


def test_progress_comes_while_a_call_is_under_way() -> None:
    seen: list[int] = []
    heard = threading.Event()

    def call(item: int, tell: Callable[[int], object]) -> None:
        for done in range(1, 4):
            heard.clear()
            tell(done)
            assert heard.wait(30)

    def progress(done: int) -> None:
        seen.append(done)
        heard.set()

    in_threads(call, [1], progress=progress)
    assert seen == [1, 2, 3]


def test_cheap_neighbours_are_handled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_BATCH", 10)
    ran: list[list[int]] = []
    run = parallel._Batch.run

    def noting(batch: Any, *given: Any) -> None:
        ran.append(batch._items)
        run(batch, *given)

    monkeypatch.setattr(parallel._Batch, "run", noting)
    costs = [1, 2, 7, 50, 3, 3, 3, 3]
    assert in_threads(lambda item, _: item, costs, cost=int, workers=2) == costs
    assert sorted(ran) == [[1, 2, 7], [3, 3, 3, 3], [50]]
    ran.clear()
    assert in_threads(lambda item, _: item, [*costs, 9], cost=int, workers=2) == [*costs, 9]
    assert sorted(ran) == [[1, 2, 7], [3, 3, 3, 3], [9], [50]]
    assert in_threads(lambda item, _: item, [], cost=int) == []


def test_a_failure_among_neighbours_is_the_first_in_order() -> None:
    begun: list[int] = []

    def call(item: int, tell: object) -> None:
        begun.append(item)
        if item in {4, 7}:
            raise ValueError(item)

    with pytest.raises(ValueError, match="4"):
        in_threads(call, range(10), cost=lambda _: 1, workers=2)
    assert begun == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_caller_that_leaves_ends_what_is_under_way(error: type[BaseException]) -> None:
    begun = []

    def call(item: int, tell: Callable[[int], object]) -> None:
        begun.append(item)
        while True:  # until the report ends it
            tell(1)

    def progress(done: int) -> None:
        raise error

    with pytest.raises(error):
        in_threads(call, range(50), workers=2, progress=progress)
    assert len(begun) <= 3


def test_a_failure_ends_what_is_under_way() -> None:
    begun = threading.Event()

    def call(item: int, tell: Callable[[int], object]) -> None:
        if item == 0:
            begun.wait(30)
            raise ZeroDivisionError
        begun.set()
        while True:
            tell(1)

    with pytest.raises(ZeroDivisionError):
        in_threads(call, [0, 1], workers=2)


@posix
def test_an_interrupt_while_calls_end_after_a_failure_waits_for_them() -> None:
    begun, done = threading.Event(), threading.Event()
    interrupted: list[bool] = []

    def call(item: int, tell: object) -> None:
        if item == 0:
            begun.wait(30)
            raise ZeroDivisionError
        begun.set()
        until(lambda: bool(interrupted))
        time.sleep(0.05)
        done.set()

    def interrupt() -> None:
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    with Alarm(interrupt), pytest.raises(KeyboardInterrupt):
        in_threads(call, [0, 1], workers=2)
    assert done.is_set()


# ---- results ahead of the caller


def test_results_come_in_order_and_only_so_many_exist_at_a_time() -> None:
    class Result:
        alive = most = 0

        def __init__(self, number: int) -> None:
            self.number = number
            with lock:
                Result.alive += 1
                Result.most = max(Result.most, Result.alive)

        def __del__(self) -> None:
            with lock:
                Result.alive -= 1

    lock = threading.Lock()
    numbers = []
    for result in in_order(Result, range(50), workers=3):
        numbers.append(result.number)
        del result
    assert numbers == list(range(50))
    assert Result.alive == 0
    assert Result.most <= 3 + 2
    assert list(in_order(abs, [])) == []


def test_a_failure_comes_in_its_turn_and_nothing_runs_after_the_caller_left() -> None:
    def call(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    found: list[int] = []
    with pytest.raises(ValueError, match="three"):
        found.extend(in_order(call, range(10), workers=2))
    assert found == [0, 1, 2]
    results = in_order(call, range(3), workers=2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]  # and its threads end: see `no_thread_is_left`


# ---- calls that are not wanted any more


class Waits:
    """A call, in several threads at once, that waits until it is stopped there."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._stops: list[threading.Event] = []

    def __call__(self, *_: object) -> None:
        stop = threading.Event()
        with Stoppable(stop.set):
            self._stops.append(stop)
            self.begun.set()
            assert stop.wait(30)

    @property
    def was_stopped(self) -> bool:
        return bool(self._stops) and all(each.is_set() for each in self._stops)


def stop_and_close(beside: Background, job: Job[object]) -> None:
    """Stop a call, which does not return a result then."""
    beside.stop()
    with pytest.raises(AbandonedError):
        job.result()
    beside.close()


def test_a_block_that_raises_stops_what_runs_beside_it() -> None:
    wait = Waits()
    with pytest.raises(ZeroDivisionError), Background() as beside:
        job = beside.submit(wait)
        assert wait.begun.wait(30)
        raise ZeroDivisionError
    with pytest.raises(AbandonedError):
        job.result()


def test_a_call_that_was_stopped_begins_no_wait() -> None:
    begun, stopped, wait = threading.Event(), threading.Event(), Waits()

    def call() -> None:
        begun.set()
        stopped.wait(30)
        wait()

    beside = Background()
    job = beside.submit(call)
    begun.wait(30)
    beside.stop()
    stopped.set()
    with pytest.raises(AbandonedError):
        job.result()
    assert not wait.begun.is_set()
    beside.close()


def test_a_wait_that_ends_by_itself_is_not_stopped() -> None:
    def call() -> int:
        with Stoppable(pytest.fail):
            return 7

    with Background() as beside:
        assert beside.submit(call).result() == 7


def test_nothing_is_stopped_in_other_threads() -> None:
    with Stoppable(pytest.fail):
        pass
    with Background() as beside, Stoppable(pytest.fail):
        beside.stop()
        assert beside.submit(int).result() == 0


def test_a_pause_ends_when_it_is_not_wanted() -> None:
    pause(0.001)
    begun = threading.Event()
    beside = Background()
    beside.submit(pause, 0.001).result()
    job = beside.submit(lambda: (begun.set(), pause(3600)))
    begun.wait(30)
    stop_and_close(beside, job)


def test_a_chunk_that_fails_stops_the_others() -> None:
    wait = Waits()
    caller = threading.current_thread()

    def work(begin: int, end: int) -> None:
        if threading.current_thread() is caller or begin == 2:
            assert wait.begun.wait(30)
            raise ZeroDivisionError
        wait()

    with pytest.raises(ZeroDivisionError):
        in_parallel(work, 3, chunk=1, threads=3)
    assert wait.was_stopped


def test_chunks_of_a_call_that_is_stopped_are_stopped() -> None:
    """And the call does not take them for done."""
    wait = Waits()
    beside = Background()
    job = beside.submit(lambda: in_parallel(wait, 3, chunk=1, threads=3))
    assert wait.begun.wait(30)
    stop_and_close(beside, job)


def test_what_a_thread_made_goes_on_when_its_own_work_is_done() -> None:
    def started(_: int, __: object) -> Background:
        beside = Background()
        beside.start()
        return beside

    made = in_threads(started, range(4))
    waits = []
    for beside in made:
        wait = Waits()
        waits.append((beside, beside.submit(wait), wait))
    for beside, job, wait in waits:
        assert wait.begun.wait(30)
        assert not wait.was_stopped
        stop_and_close(beside, job)


def test_threads_of_a_thread_are_stopped_with_it() -> None:
    wait = Waits()

    def call() -> None:
        with Background() as inner:
            inner.submit(wait).result()

    beside = Background()
    job = beside.submit(call)
    assert wait.begun.wait(30)
    stop_and_close(beside, job)
    assert wait.was_stopped


def test_a_thread_that_was_stopped_starts_no_other() -> None:
    begun, stopped, wait = threading.Event(), threading.Event(), Waits()

    def call() -> None:
        begun.set()
        stopped.wait(30)
        with Background() as inner:
            inner.submit(wait)

    beside = Background()
    job = beside.submit(call)
    begun.wait(30)
    beside.stop()
    stopped.set()
    with pytest.raises(AbandonedError):
        job.result()
    beside.close()
    assert not wait.begun.is_set()
