"""Curves: how steep they are, and that their picture is well formed."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import growth
import pytest
from bench.curves import draw, slope


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(10, 0.1), (100, 1.0)], 1.0),
        ([(10, 0.1), (100, 10.0)], 2.0),
        ([(1, 5.0), (10, 0.1), (50, 0.3), (100, 0.1)], 0.0),  # over the last decade
        ([(10, 0.001), (100, 0.01)], None),  # too short to tell
        ([(10, 0.1), (50, 1.0)], None),  # no decade
        ([(10, 0.0), (100, 1.0)], None),
    ],
)
def test_the_exponent_is_that_of_the_last_decade(points, expected) -> None:
    assert slope(points) == expected


def test_each_curve_is_drawn_with_its_name() -> None:
    curves = {"a < b": [(1.0, 0.001), (1000.0, 2.0)], "flat": [(1.0, 0.0), (100.0, 1e-6)]}
    text = draw("Time & work", "tensors", curves)
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert len(list(root.iter(f"{space}polyline"))) == 2
    names = [element.text for element in root.iter(f"{space}text")]
    assert {"a < b", "flat", "Time & work", "tensors", "1 s", "1 ms"} <= set(names)


def test_a_table_leaves_out_what_was_not_measured() -> None:
    text = growth.table("MiB", {"open": [(1, 0.001), (10, 0.002)], "save": [(1, 0.5)]})
    assert text.splitlines()[2:] == [
        "| open | 1 ms | 2 ms |  |",
        "| save | 500 ms |  |  |",
    ]


def test_what_would_take_too_long_is_left_out_of_larger_sizes(monkeypatch, tmp_path) -> None:
    done: list[tuple[int, str]] = []

    def make(size, folder):
        assert folder.is_dir()
        yield "fast", lambda: done.append((size, "fast"))
        yield "slow", lambda: done.append((size, "slow"))

    monkeypatch.setattr(growth, "ROOT", tmp_path)
    (tmp_path / ".cache").mkdir()
    monkeypatch.setattr(growth, "CURVES", {"some": ("", "tensors", make, [1, 10, 100], [1, 10])})

    def repeated(work, *, wall):
        assert not wall
        work()
        return 0.2 if done[-1][1] == "slow" and done[-1][0] == 10 else 1e-3

    monkeypatch.setattr(growth, "repeated", repeated)
    monkeypatch.setattr(growth, "MOST", 1.0)
    found = growth.measure("some", quick=False)
    assert [work for work, _ in found["fast"]] == [1, 10, 100]
    assert [work for work, _ in found["slow"]] == [1, 10]
    assert [work for work, _ in growth.measure("some", quick=True)["slow"]] == [1, 10]


def test_what_seems_to_grow_faster_is_measured_again(monkeypatch, tmp_path) -> None:
    """The host was busy with others once: the figure that does not come back is not kept."""
    asked: list[tuple[int, str]] = []

    def make(size, folder):
        yield "disturbed", lambda: asked.append((size, "disturbed"))
        yield "steep", lambda: asked.append((size, "steep"))
        yield "calm", lambda: asked.append((size, "calm"))

    monkeypatch.setattr(growth, "ROOT", tmp_path)
    (tmp_path / ".cache").mkdir()
    monkeypatch.setattr(growth, "CURVES", {"some": ("", "tensors", make, [1, 10, 100], [1, 10])})

    def repeated(work, *, wall):
        work()
        size, name = asked[-1]
        if name == "disturbed" and size == 100 and asked.count(asked[-1]) < 3:
            return 0.9
        return {"steep": size**2, "disturbed": size, "calm": size}[name] / 1000

    monkeypatch.setattr(growth, "repeated", repeated)
    found = growth.measure("some", quick=False)
    assert found["disturbed"] == found["calm"] == [(1, 0.001), (10, 0.01), (100, 0.1)]
    assert found["steep"][-1] == (100, 10.0)
    assert asked.count((100, "disturbed")) == 3
    assert asked.count((100, "steep")) == 4
    assert asked.count((100, "calm")) == asked.count((1, "steep")) == 1
