"""Aligned columns on a terminal, for any number of rows and any text."""

from __future__ import annotations

import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from safeweights.cli import terminal
from safeweights.cli.columns import GAP, Column, Fitting, cells, fold, lay_out, shorten
from safeweights.text import escape

NAMES = st.text(
    st.sampled_from([*"abz. [],│├模型重🙂é\u0301שלم\x1b\u202e\\"]) | st.characters(codec="utf-8"),
    max_size=90,
).map(escape)


@given(NAMES)
@example("│ └ layers.0")
def test_cells_are_those_of_rich(text):
    assert cells(text) == cell_len(text)


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("", 5, [""]),
        ("abcde", 5, ["abcde"]),
        ("abcdef", 5, ["abcde", "f"]),
        ("ab cd ef", 5, ["ab cd", "ef"]),
        ("ab cdefgh ij", 5, ["ab", "cdefg", "h ij"]),
        ("模型重量", 5, ["模型", "重量"]),
        ("     abcdef", 5, ["     ", "abcde", "f"]),
        ("ab      ", 5, ["ab"]),
        (" " * 9, 5, [""]),
        ("e\u0301" * 6, 5, ["e\u0301" * 5, "e\u0301"]),
    ],
)
def test_folding(text, width, lines):
    assert fold(text, width) == lines


@given(NAMES, st.integers(4, 100))
def test_folding_loses_nothing_but_spaces_and_fits(text, width):
    lines = fold(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    if "\ufe0f" not in text:  # makes the character before it wide, which a terminal may not know
        assert max(map(cells, lines)) <= width


@given(st.lists(st.tuples(NAMES, NAMES, NAMES), min_size=1, max_size=5), st.integers(25, 120))
def test_every_line_of_a_table_is_as_wide_as_all_and_fits_the_window(rows, window):
    columns = (Column("name"), Column("shape"), Column("s", right=True))
    fitting = Fitting(columns, window)
    fitting.add(rows)
    assert not fitting.stacked or fitting.widths[0] == window
    for group in fitting.groups if fitting.stacked else [slice(0, None)]:
        wide, parts = fitting.widths[group], [row[group] for row in rows]
        indent = GAP if fitting.stacked else 0
        assert indent + sum(wide) + GAP * (len(wide) - 1) <= window
        for line in lay_out(columns[group], parts, wide):
            if not any("\ufe0f" in text for row in parts for text in row):
                assert [cells(text) for text in line] == wide


def test_numbers_that_do_not_fit_beside_each_other_are_below_each_other():
    columns = (Column("tensor"), *(Column(title, right=True) for title in ("mean", "std", "max")))
    stream = io.StringIO()
    drawn = terminal.Terminal(stream)
    drawn.width = 20
    drawn.table(columns, [("a.weight", "0.00394", "1.008", "3.85612"), ("b", "0", "1", "2")])
    assert stream.getvalue().splitlines() == [
        "tensor",
        "     mean    std",
        "      max",
        "a.weight",
        "  0.00394  1.008",
        "  3.85612",
        "b",
        "        0      1",
        "        2",
    ]


def test_where_a_name_has_no_room_it_gets_lines_of_its_own():
    columns = (Column("name"), Column("dtype"), Column("shape"), Column("size", right=True))
    name = "model.layers.0.self_attn.k_proj.weight"
    rows = [(name, "F8_E4M3FNUZ", "[1024, 1024]", "1.0 MB"), ("step", "I64", "[]", "8 B")]
    shown = {}
    for width in (30, 40, 80):
        stream = io.StringIO()
        drawn = terminal.Terminal(stream)
        drawn.width = width
        drawn.table(columns, rows)
        shown[width] = stream.getvalue().splitlines()
        assert max(map(len, shown[width])) <= width
    assert shown[80][1].split() == [name, "F8_E4M3FNUZ", "[1024,", "1024]", "1.0", "MB"]
    assert shown[40] == [
        "name",
        "  dtype        shape           size",
        name,
        "  F8_E4M3FNUZ  [1024, 1024]  1.0 MB",
        "step",
        "  I64          []               8 B",
    ]
    # In a narrower window columns are broken at spaces, but not within words.
    assert shown[30][2:6] == [
        name[:30],
        name[30:],
        "  F8_E4M3FNUZ  [1024,   1.0 MB",
        "               1024]          ",
    ]


def test_long_fields_are_shortened():
    assert shorten("x" * 5000).endswith("… (4,790 more)")


def test_a_long_table_asks_rich_no_more_than_a_short_one(monkeypatch):
    calls = []

    def text(*arguments, **options):
        calls.append(arguments)
        return Text(*arguments, **options)

    Text = terminal.Text
    monkeypatch.setattr(terminal, "Text", text)
    columns = (Column("name"), Column("size", right=True, style="green"))
    for number, width in ((1, 80), (5000, 80), (5000, 8)):
        calls.clear()
        stream = io.StringIO()
        drawn = terminal.Terminal(stream)
        drawn.width = width
        drawn.table(columns, ((f"层.{i}", str(i)) for i in range(number)))
        assert len(stream.getvalue().splitlines()) == (number + 1) * (1 if width == 80 else 2)
        assert len(calls) <= 10


def test_an_empty_table_is_nothing():
    stream = io.StringIO()
    terminal.Terminal(stream).table((Column("name"),), [])
    assert stream.getvalue() == ""


def test_long_lists_of_hostile_names_on_a_terminal(terminal, plain, write, tmp_path):
    names = [f"\x1b[2J\u202e{i} 模型%s\u0301 {'x' * (i % 90)}" for i in range(3000)]
    write(tmp_path / "x", [(name, "F32", ()) for name in names])
    for options in ([], ["--tree"]):
        shown, status = terminal("ls", str(tmp_path / "x"), *options)
        text = plain(shown)
        assert status == 0
        assert all(c.isprintable() or c == "\n" for c in text)
        assert max(map(cells, text.splitlines())) <= 80
        assert text.count("F32") == 3000
        assert text.count("x1b[2J\\u202e") == 3000 or options
