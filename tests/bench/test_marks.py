"""Figures of the programs beside `run.py`: what they are to reach, and that the summary finds them."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.marks import Mark, Marks, compared, timed


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


def sitting(
    folder: Path, ours: Iterator[float], *, again: bool = False, mib: int = 3
) -> list[Mark]:
    """A program that measures a time in three rounds; the mark is 0.8."""
    marks = Marks("some", Namespace(again=again, mib=mib), folder)
    samples = marks.samples("work", ["ours", "theirs"])

    def judged() -> list[Mark]:
        return [Mark("memory", 1.0), compared("a", *samples.values(), most=0.8)]

    for _ in marks.rounds(3, judged):
        samples["ours"].append(next(ours))
        samples["theirs"].append(1.0)
    marks.found += judged()
    marks.close()
    return marks.found


@pytest.mark.parametrize(
    ("first", "then", "verdicts"),
    [
        ([0.7, 0.7, 0.7], None, ["pass", "pass"]),  # no doubt: nothing more is measured
        ([1.0, 1.0, 1.0], 0.7, ["FAIL", "pass"]),
        ([1.0, 1.0, 1.0], 0.9, ["FAIL", "FAIL"]),
        ([0.4, 0.9, 1.4], 0.9, ["noisy", "FAIL"]),
    ],
)
def test_a_second_sitting_joins_the_first(
    tmp_path: Path, first: list[float], then: float | None, verdicts: list[str]
) -> None:
    found = [sitting(tmp_path, iter(first))]
    assert Marks.doubtful("some", tmp_path) is (then is not None)
    found.append(sitting(tmp_path, iter([then] * 6 if then else []), again=True))
    assert [marks[1].verdict for marks in found] == verdicts
    kept = json.loads((tmp_path / "some.json").read_text())["samples"]["work"]
    assert kept["ours"] == first + ([then] * 6 if then else [])
    assert len(kept["theirs"]) == len(kept["ours"])


def test_a_second_sitting_goes_on_from_a_run_like_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="some: no run"):
        sitting(tmp_path, iter([]), again=True)
    sitting(tmp_path, iter([1.0] * 3))
    with pytest.raises(SystemExit, match="with these options"):
        sitting(tmp_path, iter([]), again=True, mib=4)
    assert Marks.kept("some", tmp_path) is not None, "the figures of before are still there"


def test_figures_without_samples_have_no_second_sitting(tmp_path: Path) -> None:
    """It would only be another try."""
    marks = Marks("some", folder=tmp_path)
    marks.add("bytes", 1.2, most=1.0)
    marks.close()
    assert not Marks.doubtful("some", tmp_path)
    assert not Marks.doubtful("other", tmp_path)


def test_figures_are_kept_for_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = Marks("some", folder=tmp_path)
    marks.add("convert / two steps", 0.9, most=1.0)
    assert marks.close() == 0
    marks = Marks("some", folder=tmp_path)
    assert Marks.kept("some", tmp_path) is None  # until it ends
    marks.add("convert / two steps", 1.2, most=1.0)
    marks.add("memory", 12.0, unit="MiB")
    assert marks.close() == 1
    lines = capsys.readouterr().out.split("\n")
    assert lines[-3].split() == ["convert", "/", "two", "steps", "1.20", "<=", "1", "FAIL"]
    assert lines[-2].split() == ["memory", "12.00", "MiB"]
    assert Marks.kept("some", tmp_path) == marks.found
