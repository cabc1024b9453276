"""All programs of the bench: who runs, who runs again, and what is said at the end."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import everything
import pytest
import run
from bench.marks import Marks
from bench.results import RowResult, Sampled, judge
from bench.rows import OURS, ROWS, Reach, Scale


def result(name: str, ours: float) -> RowResult:
    contenders = {OURS: Sampled([ours] * 3), "0.8 mmap": Sampled([1.0] * 3)}
    return judge(
        RowResult(name, name, "s", 1, 1, "0.5", "0.8 mmap", contenders, {}), Reach(ratio=0.5)
    )


def document(*results: RowResult) -> dict[str, object]:
    found = {"load_at_start": 0.0, "cpu": "c", "cores": 2, "memory_gib": 1.0, "kernel": "6",
             "filesystem": "ext4", "python": "3.11"}  # fmt: skip
    rows = [each.as_json() for each in results]
    return {"rows": rows, "scale": asdict(Scale(quick=True)), "machine": found, "versions": {},
            "complete": False, "started": "2026-11-29"}  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results and figures of a bench of two programs, and `run.py`."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(run, "CACHE", tmp_path)
    monkeypatch.setattr(run, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(everything, "FOLDER", tmp_path)
    monkeypatch.setattr(everything, "PROGRAMS", {"one": ["--mib", "1"], "two": []})
    monkeypatch.setattr(Marks, "kept", partial(Marks.kept, folder=tmp_path))
    monkeypatch.setattr(Marks, "doubtful", partial(Marks.doubtful, folder=tmp_path))
    return tmp_path


def write(cache: Path, *results: RowResult) -> Path:
    path = cache / "results" / "trial.json"
    path.write_text(json.dumps(document(*results)))
    return path


def figure(cache: Path, program: str, value: float) -> None:
    marks = Marks(program, folder=cache)
    marks.samples("work", ["ours"])["ours"].append(value)
    marks.add("fast", value, most=1.0)
    marks.close()


@pytest.mark.parametrize(
    ("ours", "one", "two", "again"),
    [
        (0.4, 0.5, 0.5, []),
        (0.6, 0.5, 0.5, ["run"]),
        (0.4, 1.5, 0.5, ["one"]),
        (0.6, 1.5, 1.5, ["run", "one", "two"]),
    ],
)
def test_what_is_in_doubt_runs_again_after_everything_else(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    ours: float,
    one: float,
    two: float,
    again: list[str],
) -> None:
    called = []

    def call(program: str, arguments: list[str]) -> None:
        called.append((program, arguments))
        if program == "run":
            write(cache, result("load", ours))
        else:
            figure(cache, program, {"one": one, "two": two}[program])

    monkeypatch.setattr(everything, "call", call)
    figure(cache, "gone", 1.0)  # of a bench before
    everything.measure(time.time() - 1, quick=True)
    arguments = {"run": ["--quick"], "one": ["--mib", "1"], "two": []}
    assert called[:3] == [*arguments.items()]
    assert called[3:] == [(program, [*arguments[program], "--again"]) for program in again]
    assert not (cache / "gone.json").exists()


def test_the_summary_names_what_fails(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure(cache, "one", 0.5)
    capsys.readouterr()
    assert everything.summary(0.0) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run: did not end, or was not run"
    assert lines[-2] == "two: did not end, or was not run"
    assert lines[-1] == "2 FAIL, 1 pass"
    os.utime(write(cache, result("load", 0.4)), (1.0, 1.0))
    figure(cache, "two", 0.5)
    capsys.readouterr()
    assert everything.summary(2.0) == 1, "a result of before does not count"
    assert everything.summary(0.0) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 pass"


def test_every_program_is_known() -> None:
    programs = {
        path.stem
        for path in Path(everything.__file__).parent.glob("*.py")
        if f'Marks("{path.stem}"' in path.read_text()
    }
    assert programs == set(everything.PROGRAMS)


def test_rows_in_doubt_are_measured_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other rows stay as they were, in their order."""
    names = [row.name for row in ROWS[:3]]
    write(cache, result(names[0], 0.4), result(names[1], 0.6), result(names[2], 0.5))
    asked = []

    def measure(rows, scale, scratch, before):  # type: ignore[no-untyped-def]
        asked.extend((row.name, before[row.name].ratio) for row in rows)
        return document(*(result(row.name, 0.45) for row in rows))

    monkeypatch.setattr(run, "measure", measure)
    options = run.parse(["--again", "--quick"])
    found = run.resumed(options, Scale(quick=True), [*ROWS])
    assert asked == [(names[1], 0.6)]
    assert [(row["name"], row["ratio"]) for row in found["rows"]] == [
        (names[0], 0.4), (names[1], 0.45), (names[2], 0.5)
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="no run with these options"):
        run.resumed(options, Scale(), [*ROWS])
