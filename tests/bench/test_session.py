"""Taking turns: who is sampled when, who drops out, what is left behind."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle

import pytest
from bench.data import MIB, Spec
from bench.processes import Crew, Failed, Missing
from bench.results import RowResult
from bench.rows import BEST, OURS, ROWS, Entry, Reach, Row, Scale
from bench.session import Session

from bench import machine, session


class StandIn:
    """A worker that answers from a script and notes what it is asked."""

    def __init__(self, name, crew):
        self.name, self.crew = name, crew

    def ask(self, do, **arguments):
        if do == "prepare":
            return {"way": "default"}
        check = arguments.get("check", False)
        self.crew.asked.append((self.name, "check" if check else do))
        step = self.crew.script.get((self.name, len(self.crew.asked_of(self.name))))
        if step is not None:
            raise step
        seconds = self.crew.seconds[self.name]
        return {"seconds": seconds, "processor_seconds": seconds / 4, "bytes": 10, "extra": 3 * MIB,
                "fingerprint": self.crew.fingerprints.get(self.name)}  # fmt: skip

    def end(self):
        self.crew.ended.append(self.name)


class _Seconds(dict):
    """What contenders answer, ours one after another, after a warm-up."""

    def __init__(self, others, ours, theirs):
        super().__init__({**others, "safetensors-0-8": theirs})
        self.ours = ours

    def __getitem__(self, name):
        return next(self.ours) if name == "safeweights" else super().__getitem__(name)


class StandInCrew:
    def __init__(self, **seconds):
        self.seconds = {name.replace("_", "-"): value for name, value in seconds.items()}
        self.asked, self.ended, self.released = [], [], 0
        self.script, self.fingerprints = {}, {}

    def worker(self, name):
        return StandIn(name, self)

    fresh = worker

    def asked_of(self, name):
        return [do for who, do in self.asked if who == name]

    def release(self):
        self.released += 1


@pytest.fixture
def crew():
    return StandInCrew(safeweights=1.0, safetensors_0_8=2.0, runai=4.0, machine=0.5)


def row(**more):
    defaults = {
        "name": "row",
        "title": "{count} tensors, {size}",
        "verb": "open header",
        "entries": (
            Entry(OURS, "safeweights"),
            Entry("0.8 mmap", "safetensors-0-8"),
            Entry("runai", "runai"),
        ),
        "data": Spec("equal", "F32", 4, 4096),
        "limits": ("json.loads",),
        "reach": Reach(ratio=0.5),
    }
    return Row(**{**defaults, **more})


@pytest.fixture
def measure(crew, tmp_path, monkeypatch):
    monkeypatch.setattr(Scale, "rounds", property(lambda self: (3, 3)))
    (tmp_path / "out").mkdir()

    def run(row, scale=Scale(), earlier=None):
        session = Session(crew, scale, tmp_path / "data", tmp_path / "out")
        return session.measure(row, earlier=earlier)

    return run


def test_contenders_and_limits_take_turns(crew, measure):
    found = measure(row())
    everybody = ["safeweights", "safetensors-0-8", "runai", "machine"]
    assert [who for who, _ in crew.asked] == [
        *everybody,  # the warm-up
        *everybody,
        *everybody[1:], everybody[0],
        *everybody[2:], *everybody[:2],
    ]  # fmt: skip
    assert [do for _, do in crew.asked[:4]] == ["check"] * 4
    assert found.contenders[OURS].values == [1.0] * 3
    assert (found.ratio, found.limit_ratio, found.verdict) == (0.5, 2.0, "pass")
    assert found.title == "4 tensors, 0.00390625 MiB"
    assert crew.released == 1


@pytest.mark.parametrize("reason", [Missing("reads files only"), Failed("ValueError: no")])
def test_who_fails_drops_out_and_the_others_go_on(crew, measure, reason):
    crew.script = {("runai", 3): reason}
    found = measure(row())
    assert found.contenders["runai"].as_json() == {"missing": str(reason)}
    assert len(crew.asked_of("runai")) == 3
    assert len(found.contenders["0.8 mmap"].values) == 3


def test_other_bytes_than_the_others_do_not_count(crew, measure):
    crew.fingerprints = {"safeweights": 7, "safetensors-0-8": 7, "runai": 8}
    found = measure(row())
    assert "differs" in found.contenders["runai"].missing
    assert found.contenders[OURS].values


def test_loads_are_compared_with_the_file_itself(crew, measure):
    crew.fingerprints = {"safeweights": 7, "safetensors-0-8": 7, "runai": 7}
    found = measure(row(verb="load"))  # all agree, and all are wrong
    assert all(not sampled.values for sampled in found.contenders.values())
    assert found.verdict == "FAIL"


def test_a_warm_file_is_cached_by_reading_once(measure, crew, tmp_path, monkeypatch):
    cached = []
    monkeypatch.setattr(machine, "read_into_cache", cached.append)
    warm = row(verb="first tensor")
    measuring = Session(crew, Scale(), tmp_path / "data", tmp_path / "out")
    for _ in range(2):
        measuring.measure(warm)
    assert [os.path.basename(path) for path in cached] == [warm.data.filename]
    measure(row(verb="save file"))
    assert len(cached) == 1


def test_a_cold_file_is_dropped_before_each_sample(crew, measure, monkeypatch):
    dropped = []
    monkeypatch.setattr(machine, "drop_from_cache", lambda path: dropped.append(len(crew.asked)))
    measure(row(cold=True))
    assert dropped == list(range(16))


def test_a_file_that_stays_cached_is_no_cold_sample(crew, measure, monkeypatch):
    def stays(path):
        raise machine.NotCold("it stays")

    monkeypatch.setattr(machine, "drop_from_cache", stays)
    found = measure(row(cold=True))
    assert found.contenders[OURS].missing == "it stays"
    assert crew.asked == []


def test_each_row_has_the_rate_at_which_its_memory_was_touched(measure, monkeypatch):
    rates = iter([*map(float, range(1, 17)), *[5.0] * 16, *[9.0] * 16])
    monkeypatch.setattr(machine, "touch_memory", lambda nbytes: next(rates))
    small = measure(row())
    monkeypatch.setattr(session, "_MUCH", 1)
    assert small.memory_rate is None
    assert [measure(row()).memory_rate for _ in range(2)] == [5.0, 9.0]


def test_what_a_sample_wrote_is_gone_before_the_next(crew, measure, tmp_path, monkeypatch):
    seen = []
    ask = StandIn.ask

    def writing(self, do, **arguments):
        if do == "sample":
            seen.append(os.listdir(tmp_path / "out"))
            (tmp_path / "out" / "model-00001-of-00001.safetensors").write_text("x")
            (tmp_path / "out" / "folder").mkdir()
        return ask(self, do, **arguments)

    monkeypatch.setattr(StandIn, "ask", writing)
    crew.script = {("runai", 2): Failed("half-way")}
    measure(row(writes=True))
    assert seen
    assert not any(seen)
    assert os.listdir(tmp_path / "out") == []


def test_memory_is_measured_in_a_process_of_its_own(crew, measure):
    found = measure(row(kind="memory", unit="B", limits=(), reach=Reach(most=2.0 * MIB)))
    assert crew.ended.count("safeweights") == 3
    assert found.contenders[OURS].values == [3.0 * MIB] * 3
    assert found.verdict == "FAIL"


def test_bytes_are_a_share_of_those_allowed(crew, measure):
    square = row(
        kind="bytes", verb="slice", unit="x", data=Spec("square", "F32", 1, 1 << 16), limits=(),
        arguments={"selection": "rows"}, reach=Reach(most=1.0),
    )  # fmt: skip
    nbytes = 2 * 128 * 4
    ours = measure(square).contenders[OURS]
    assert ours.values == [10 / (nbytes + 4096)] * 2
    assert ours.processor_seconds == []


def again(found):
    """A result as the second sitting gets it: from a file."""
    return RowResult.from_json(json.loads(json.dumps(found.as_json())))


@pytest.mark.parametrize(("theirs", "verdict"), [(3.0, "pass"), (1.9, "noisy"), (0.5, "FAIL")])
def test_a_sitting_is_as_long_whatever_the_verdict(crew, measure, theirs, verdict):
    """Ours are 0.5, 1.5, 1: the median is below half of 3; of 1.9 only the fastest are."""
    crew.seconds = _Seconds(crew.seconds, cycle([1.0, 0.5, 1.5, 1.0]), theirs)
    found = measure(row(limits=()))
    assert len(found.contenders[OURS].values) == 3
    assert (found.verdict, found.sittings) == (verdict, 1)


def test_a_second_sitting_adds_twice_as_many_samples(crew, measure):
    """The first one is disturbed; then 6 samples say what 3 did not."""
    crew.seconds = _Seconds(crew.seconds, cycle([2.0]), 2.0)
    first = measure(row())
    assert first.verdict == "FAIL"
    crew.asked.clear()
    crew.seconds = _Seconds(crew.seconds, cycle([0.9]), 2.0)
    second = measure(row(), earlier=again(first))
    assert second.contenders[OURS].values == [2.0] * 3 + [0.9] * 6
    assert second.contenders[OURS].processor_seconds == [0.5] * 3 + [0.225] * 6
    assert second.contenders["0.8 mmap"].values == [2.0] * 9
    assert second.limits["json.loads"].values == [0.5] * 9
    assert second.contenders["runai"].values == first.contenders["runai"].values
    assert not crew.asked_of("runai"), "the verdict does not depend on it"
    assert (second.ratio, second.verdict, second.sittings) == (0.45, "pass", 2)


def test_a_second_sitting_is_no_second_chance(crew, measure):
    """As many samples of the first sitting as of the second would have missed the mark."""
    crew.seconds = _Seconds(crew.seconds, cycle([1.5]), 2.0)
    first = measure(row())
    crew.seconds = _Seconds(crew.seconds, cycle([1.5, 0.9, 1.5]), 2.0)
    second = measure(row(), earlier=again(first))
    assert second.contenders[OURS].median == 1.5
    assert second.verdict == "FAIL"


def test_who_was_missing_stays_missing_in_a_second_sitting(crew, measure):
    crew.script = {("safetensors-0-8", 2): Failed("no")}
    first = measure(row(versus=BEST, reach=Reach(ratio=0.1)))
    crew.asked.clear()
    crew.script = {}
    second = measure(row(versus=BEST, reach=Reach(ratio=0.1)), earlier=again(first))
    assert second.contenders["0.8 mmap"].missing == "no"
    assert not crew.asked_of("safetensors-0-8")
    assert len(second.contenders["runai"].values) == 9


def test_memory_has_second_sittings_too(crew, measure):
    peak = row(kind="memory", unit="B", limits=(), reach=Reach(most=2.0 * MIB))
    second = measure(peak, earlier=again(measure(peak)))
    assert second.contenders[OURS].values == [3.0 * MIB] * 9


def test_less_memory_than_at_the_first_sitting(crew, measure, monkeypatch):
    """Samples of other data do not join; what was found stays, with the reason."""
    save = row(verb="save file", data=Spec("equal", "F32", 4, 64 * MIB), reach=Reach(ratio=0.1))
    first = measure(save)
    monkeypatch.setattr(machine, "available_memory", lambda: 320 * MIB)
    crew.asked.clear()
    second = measure(save, earlier=again(first))
    assert not crew.asked
    assert second.contenders == first.contenders
    assert second.notes == ["not measured again", "32 MiB instead of 64: memory"]
    assert (second.verdict, second.sittings) == ("FAIL", 1)


def test_slow_peers_take_no_time_from_more_samples(crew, measure, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(session.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(machine, "touch_memory", lambda nbytes: 1.0)
    monkeypatch.setattr(Scale, "rounds", property(lambda self: (2, 50)))
    monkeypatch.setattr(Scale, "seconds", 3)  # over when two rounds more are taken
    crew.seconds = _Seconds(crew.seconds, cycle([1.0]), 0.5)
    found = measure(row(limits=()))
    assert [len(each.values) for each in found.contenders.values()] == [4, 4, 2]


def test_slow_peers_are_left_out_of_quick_runs(crew, measure):
    slow = row()
    slow = replace(slow, entries=(*slow.entries[:2], replace(slow.entries[2], slow=True)))
    found = measure(slow, Scale(quick=True))
    assert "quick" in found.contenders["runai"].missing
    assert measure(slow).contenders["runai"].values


def test_data_that_memory_cannot_hold_is_halved(crew, measure, monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 320 * MIB)
    # As many copies as there are processes, limits, and three.
    found = measure(row(verb="save file", data=Spec("equal", "F32", 4, 64 * MIB)))
    assert found.nbytes == 32 * MIB
    assert "memory" in found.notes[0]


@contextmanager
def _crew(tmp_path):
    with (
        (tmp_path / "log").open("wb") as log,
        Crew({}, {"runai": "not for this system"}, log) as found,
    ):
        yield found


def test_real_workers_agree_and_end(tmp_path):
    (tmp_path / "out").mkdir()
    names = {"load-torch", "save-torch", "slice-columns", "bytes-columns", "memory-save-file"}
    quick = Scale(quick=True, mib=1, count=20)
    with _crew(tmp_path) as crew:
        found = {}
        for chosen in (row for row in ROWS if row.name in names):
            entries = tuple(
                entry
                for entry in chosen.entries
                if entry.process in {"safeweights", "safetensors-0.8", "runai"}
            )
            measuring = Session(crew, quick, tmp_path / "data", tmp_path / "out")
            found[chosen.name] = measuring.measure(replace(chosen, entries=entries))
        worker = crew.worker("safeweights")
    assert not worker.alive
    for name, result in found.items():
        ours, theirs = (
            result.contenders[OURS],
            result.contenders["0.8 pread" if "columns" in name else "0.8 mmap"],
        )
        assert ours.values, (name, ours.missing)
        assert theirs.values, (name, theirs.missing)
        timed = ours.values if result.unit == "s" else []
        assert len(ours.processor_seconds) == len(timed)
        assert not result.notes
    assert sum(found["save-torch"].contenders[OURS].processor_seconds) > 0
    assert found["load-torch"].contenders["runai"].missing == "not for this system"
    assert all(sampled.values for sampled in found["load-torch"].limits.values())
    assert found["bytes-columns"].contenders[OURS].values[0] <= 1.0
    assert os.listdir(tmp_path / "out") == []


def test_encrypted_files_are_loaded_and_written_by_real_workers(tmp_path):
    pytest.importorskip("cryptography", reason="needs the package cryptography")
    (tmp_path / "out").mkdir()
    quick = Scale(quick=True, mib=1, count=20)
    with _crew(tmp_path) as crew:
        measuring = Session(crew, quick, tmp_path / "data", tmp_path / "out")
        found = [measuring.measure(row) for row in ROWS if "encrypt" in row.name]
    assert len(found) == 5
    for result in found:
        assert result.contenders[OURS].values, (result.name, result.contenders[OURS].missing)
        assert not result.notes
        assert all(sampled.values for sampled in result.limits.values())


def test_a_worker_that_dies_is_reported(tmp_path):
    with _crew(tmp_path) as crew:
        worker = crew.worker("machine")
        os.kill(worker.ask("hello")["pid"], 9)
        with pytest.raises(Failed, match="ended"):
            worker.ask("hello")
        assert crew.worker("machine").ask("hello")["ok"]  # another one


def test_imports_are_timed_in_processes_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(session, "_IMPORT_ROUNDS", (3, 3))
    chosen = next(row for row in ROWS if row.name == "import")
    entries = (replace(chosen.entries[0], arguments={"module": "json"}),)
    with _crew(tmp_path) as crew:
        measuring = Session(crew, Scale(), tmp_path / "data", tmp_path / "out")
        found = measuring.measure(replace(chosen, entries=entries))
    bare = found.limits["the interpreter without it"]
    for each in (found.contenders[OURS], bare):
        assert len(each.values) == 3
        assert min(each.values) > 0
