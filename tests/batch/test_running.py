"""Workers that end, hang, print and are interrupted; groups; order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from new_threads import threads_since_now
from safeweights.batching import Unit, Work, processes, run_units, running
from safeweights.batching.engines import Answer, Lost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safeweights.batching.units import Assignment

UNITS = [Unit(f"u{number:02}") for number in range(30)]
HERE = str(Path(__file__).parent)


def sources(work: Work, units: list[Unit] = UNITS, **given: object) -> list[object]:
    return [
        (outcome.document or {}).get("source", outcome.exit_code)
        for outcome in run_units(units, work, **given)  # type: ignore[arg-type]
    ]


def wait_for(condition: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def test_outcomes_are_in_the_order_of_the_units() -> None:
    work = Work("batch_functions:nap", ("0.001",))
    for jobs in (1, 3):
        assert sources(work, jobs=jobs) == [unit.source for unit in UNITS]


def test_no_units_start_no_worker() -> None:
    assert list(run_units([], Work("there.is.no:such_module"))) == []


def test_what_a_unit_prints_is_no_answer() -> None:
    assert sources(Work("batch_functions:noisy"), jobs=1) == [unit.source for unit in UNITS]


class TestWorkersThatEnd:
    def test_a_unit_that_always_ends_its_worker_is_reported_and_the_others_are_done(self) -> None:
        told: list[str] = []
        found = list(
            run_units(
                UNITS, Work("batch_functions:die", ("u03", "u17")), jobs=2, notice=told.append
            )
        )
        assert [i for i, outcome in enumerate(found) if outcome.exit_code] == [3, 17]
        assert found[3].exit_code == 3
        assert found[3].document is not None
        assert "SIGKILL, 3 times, while it worked on u03" in found[3].document["error"]["message"]
        assert any("SIGKILL" in text and "another worker" in text for text in told)

    def test_one_that_ends_it_once_is_done(self, tmp_path: Path) -> None:
        work = Work("batch_functions:die_once", (str(tmp_path),))
        assert sources(work, UNITS[:6], jobs=2) == [unit.source for unit in UNITS[:6]]

    def test_workers_that_cannot_start_are_an_error(self) -> None:
        with pytest.raises(OSError, match="cannot be started"):
            list(run_units(UNITS, Work("there.is.no:such_module"), jobs=2))


class TestInterrupts:
    def test_an_exception_in_the_caller_makes_workers_undo(self, tmp_path: Path) -> None:
        work = Work("batch_functions:wait_and_undo", (str(tmp_path),))
        main = threading.main_thread().ident
        assert main is not None

        def interrupt() -> None:
            wait_for(lambda: len(os.listdir(tmp_path)) == 2)
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            list(run_units(UNITS, work, jobs=2))
        thread.join()
        assert os.listdir(tmp_path) == []

    @pytest.mark.skipif(os.name == "nt", reason="Windows starts no process with blocked signals")
    def test_ctrl_c_does_not_reach_workers_that_start(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A terminal sends it to them too: it would be raised in any import, and print a traceback."""
        begun = "import os, signal; os.kill(os.getpid(), signal.SIGINT); "
        monkeypatch.setattr(processes, "_START", begun + processes._START)
        found = sources(Work("batch_functions:nap", ("0",)), UNITS[:4], jobs=2)
        assert found == [unit.source for unit in UNITS[:4]]
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    def test_closing_the_iterator_ends_the_workers(self) -> None:
        started = threads_since_now()
        with closing(run_units(UNITS, Work("batch_functions:nap", ("0.05",)), jobs=2)) as outcomes:
            next(outcomes)
        assert not started()

    def test_workers_end_with_a_caller_that_is_killed(self, tmp_path: Path) -> None:
        code = (
            f"import sys; sys.path.insert(0, {HERE!r})\n"
            "from safeweights.batching import *\n"
            f"work = Work('batch_functions:wait_and_undo', ({str(tmp_path)!r},))\n"
            "list(run_units([Unit('a'), Unit('b')], work, jobs=2))\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code])
        wait_for(lambda: len(os.listdir(tmp_path)) == 2)
        process.kill()
        process.wait()
        wait_for(lambda: not os.listdir(tmp_path))


class FakeEngine:
    """Answers what it is told to, without any worker."""

    def __init__(self, slots: int, lose: Sequence[int] = ()) -> None:
        self.slots = slots
        self.sizes: list[int] = []
        self.ended = ""
        self._lose = set(lose)
        self._waiting: list[tuple[int, Sequence[Assignment]]] = []
        self._events: list[Answer | Lost] = []

    def submit(self, ticket: int, group: Sequence[Assignment]) -> None:
        self.sizes.append(len(group))
        self._waiting.append((ticket, group))
        assert len(self._waiting) <= self.slots

    def next(self) -> Answer | Lost:
        if not self._events:
            ticket, group = self._waiting.pop()  # the last one first
            if ticket in self._lose:
                return Lost(ticket, "it is gone")
            records = []
            for each in group:
                outcome = {"exit_code": 0, "document": {"source": each.unit.source}}
                outcome |= {"messages": [], "outputs": []}
                records.append({"source": "", "outputs": "", "outcome": outcome})
            # A worker says what came of some, and then of the others.
            self._events.append(Answer(ticket, 0, records[:1]))
            if records[1:]:
                self._events.append(Answer(ticket, 1, records[1:]))
        return self._events.pop(0)

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> FakeEngine:
    engine = FakeEngine(*getattr(request, "param", (2,)))
    monkeypatch.setitem(running.ENGINES, "fake", lambda *_: engine)
    return engine


class TestGroups:
    def test_small_units_share_one_and_the_last_ones_do_not(self, fake: FakeEngine) -> None:
        units = [Unit(f"u{number}", cost=100) for number in range(4000)]
        assert sources(Work(""), units, engine="fake") == [unit.source for unit in units]
        assert max(fake.sizes) == 256
        assert fake.sizes[-1] == 1
        assert len(fake.sizes) < 100
        assert fake.ended == "closed"

    def test_large_units_are_alone(self, fake: FakeEngine) -> None:
        list(run_units([Unit(f"u{i}", cost=9 << 20) for i in range(50)], Work(""), engine="fake"))
        assert set(fake.sizes) == {1}

    @pytest.mark.parametrize("fake", [(2, (1, 2, 3, 7))], indirect=True)
    def test_the_units_of_a_worker_that_ended_are_given_out_alone(self, fake: FakeEngine) -> None:
        units = [Unit(f"u{number}") for number in range(100)]
        assert sources(Work(""), units, engine="fake") == [unit.source for unit in units]

    @pytest.mark.parametrize("fake", [(1, range(1, 200))], indirect=True)
    def test_what_never_has_a_worker_is_reported(self, fake: FakeEngine) -> None:
        assert [o.exit_code for o in run_units(UNITS, Work(""), engine="fake")] == [3] * len(UNITS)

    def test_an_exception_aborts(self, fake: FakeEngine) -> None:
        with closing(run_units(UNITS, Work(""), engine="fake")) as outcomes:
            next(outcomes)
        assert fake.ended == "aborted"
