"""Figures of the programs beside `run.py`: what they are to reach, and that the summary finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import summary
from bench.marks import Mark, Marks, compared, rounds, timed


@pytest.mark.parametrize(
    ("value", "most", "least", "verdict"),
    [
        (1.0, 1.0, None, "pass"),
        (1.004, 1.0, None, "pass"),
        (1.01, 1.0, None, "FAIL"),
        (0.9, None, 0.9, "pass"),
        (0.89, None, 0.9, "FAIL"),
        (5.0, 6.0, 4.0, "pass"),
        (9.0, None, None, ""),
    ],
)
def test_a_figure_is_judged(value, most, least, verdict) -> None:
    assert Mark("a", value, most, least).verdict == verdict
    assert len(Mark("a" * 90, value, most, least, "MiB").line()) <= 100


@pytest.mark.parametrize(
    ("value", "bound", "verdict"),
    [
        (0.8, 0.7, "pass"),
        (0.75, 0.7, "limit"),
        (0.7, 0.79, "limit"),
        (0.75, 0.9, "FAIL"),
        (0.6, 0.79, "FAIL"),
    ],
)
def test_the_machine_may_be_the_limit(value: float, bound: float, verdict: str) -> None:
    """Only where it misses the mark too, and the figure is near it."""
    assert Mark("a", value, least=0.8, bound=bound).verdict == verdict


@pytest.mark.parametrize(
    ("ours", "bound", "verdict"),
    [
        ([0.7, 0.8, 2.0], [], "pass"),
        ([0.9, 1.0, 1.1], [], "FAIL"),
        ([0.5, 1.0, 1.4], [], "noisy"),
        ([0.9, 1.0, 1.1], [0.7, 1.0], "FAIL"),  # the best is 0.9; 0.7 would do
        ([0.9, 1.0, 1.1], [0.85, 2.0], "limit"),
        ([0.84, 1.0, 1.1], [0.9], "limit"),
        ([0.9, 0.9, 0.9], [0.79], "FAIL"),
        ([0.9, 0.9, 0.9], [0.75, 0.79, 0.83], "limit"),  # it meets the mark by less than it spreads
        ([1.1, 1.2, 1.3], [0.9], "FAIL"),
    ],
)
def test_times_are_compared(ours: list[float], bound: list[float], verdict: str) -> None:
    """The mark is 0.8 by medians; the best samples decide about noise and the limit."""
    mark = compared("a", ours, [1.0, 1.0, 3.0], most=0.8, bound=bound)
    assert mark.verdict == verdict
    assert mark.value == ours[1]


@pytest.mark.parametrize(
    ("samples", "verdict"),
    [
        ([0.6, 0.8, 2.0], "pass"),
        ([0.7, 0.9, 0.9], "FAIL"),  # half of the samples are alike
        ([0.5, 0.9, 1.2], "noisy"),
        ([0.85, 1.0, 1.4], "FAIL"),
    ],
)
def test_seconds_are_judged(samples: list[float], verdict: str) -> None:
    mark = timed("a", samples, most=0.8)
    assert (mark.verdict, mark.value, mark.unit) == (verdict, samples[1], "s")


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ([0.7, 0.7, 0.7], 3),
        ([1.0, 1.0, 1.0], 9),
        ([0.4, 0.9, 1.4], 9),  # noisy
        ([0.7, 0.7, 0.7, 9.0, 9.0], 3),  # the next ones are not looked at
    ],
)
def test_more_rounds_where_few_do_not_decide(ours: list[float], expected: int) -> None:
    done: list[float] = []

    def judged() -> list[Mark]:
        return [Mark("memory", 1.0), compared("a", done, [1.0] * len(done), most=0.8)]

    for number in rounds(3, judged):
        done.append(ours[number] if number < len(ours) else 1.0)
    assert len(done) == expected


def test_figures_are_kept_for_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = Marks("some", tmp_path)
    marks.add("convert / two steps", 0.9, most=1.0)
    assert marks.close() == 0
    marks = Marks("some", tmp_path)
    assert Marks.kept("some", tmp_path) is None  # until it ends
    marks.add("convert / two steps", 1.2, most=1.0)
    marks.add("memory", 12.0, unit="MiB")
    assert marks.close() == 1
    lines = capsys.readouterr().out.split("\n")
    assert lines[-3].split() == ["convert", "/", "two", "steps", "1.20", "<=", "1", "FAIL"]
    assert lines[-2].split() == ["memory", "12.00", "MiB"]
    assert Marks.kept("some", tmp_path) == marks.found


def test_the_summary_names_what_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["summary.py"])
    monkeypatch.setattr(summary, "ROOT", tmp_path)
    monkeypatch.setattr(summary, "PROGRAMS", ("one", "two"))
    monkeypatch.setattr(summary, "latest", lambda: None)
    marks = Marks("one", tmp_path)
    marks.add("fast", 0.5, most=1.0)
    marks.close()
    capsys.readouterr()
    kept = Marks.kept
    monkeypatch.setattr(Marks, "kept", lambda program: kept(program, tmp_path))
    assert summary.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run.py: no result"
    assert lines[-2] == "two: did not end, or was not run"
    assert lines[-1] == "2 FAIL, 1 pass"


def test_the_summary_knows_every_program() -> None:
    programs = {
        path.stem
        for path in Path(summary.__file__).parent.glob("*.py")
        if f'Marks("{path.stem}")' in path.read_text()
    }
    assert programs == set(summary.PROGRAMS)
