"""The folded tree of modules."""

from __future__ import annotations

from safeweights.reports.inventory import Row
from safeweights.reports.modules import module_tree, most_repeated, outline


def rows(*names, shape=(2,)):
    return [Row(name, "F32", shape, 2, 8, None, None) for name in names]


def tree(found):
    return [(each.depth, each.path, each.copies, each.tensors) for each in module_tree(found)]


def test_layers_of_one_structure_are_one_line_whatever_the_order_in_the_file():
    names = [f"layers.{n}.{part}.weight" for n in (10, 2, 0, 1) for part in ("q", "k")]
    names += [f"layers.{n}.{part}.weight" for n in (3, 4, 5, 6, 7, 8, 9) for part in ("k", "q")]
    assert tree(rows(*names, "norm.weight")) == [
        (0, "layers.[0-10]", 11, 22),
        (1, "layers.[0-10].k", 11, 11),
        (1, "layers.[0-10].q", 11, 11),
        (0, "norm", 1, 1),
    ]


def test_layers_that_differ_are_lines_of_their_own():
    found = rows(*(f"h.{n}.w" for n in range(6)))
    found[3] = found[3]._replace(shape=(3,))
    assert tree(found) == [(0, "h", 1, 6), (1, "h.[0-2,4-5]", 5, 5), (1, "h.3", 1, 1)]
    found[4] = found[4]._replace(dtype="F16")
    assert [path for _, path, _, _ in tree(found)] == ["h", "h.[0-2,5]", "h.3", "h.4"]


def test_experts_count_with_the_layers_around_them():
    found = rows(*(f"l.{n}.e.{e}.w" for n in range(4) for e in range(8)), "l.9.x.w")
    assert tree(found)[:2] == [(0, "l", 1, 33), (1, "l.[0-3].e.[0-7]", 32, 32)]


def test_many_runs_get_a_short_label():
    found = rows(*(f"h.{n}.{'a' if n % 2 else 'b'}.w" for n in range(40)))
    assert [path for _, path, _, _ in tree(found)][1:3] == [
        "h.[20 of 0-38].b",
        "h.[20 of 1-39].a",
    ]


def test_numbers_that_are_none_and_numbers_without_end_are_names():
    found = rows("a.0.w", "a.١.w", "a." + "9" * 5000 + ".w", "a.00.w")
    assert {copies for _, _, copies, _ in tree(found)} <= {1, 2}
    assert sum(tensors for depth, _, _, tensors in tree(found) if depth == 1) == 4


def test_a_tensor_may_be_called_like_a_module():
    assert tree(rows("a", "a.b", "a.b.c", "", ".", "..")) == [
        (0, "", 1, 2),
        (1, ".", 1, 1),
        (0, "a", 1, 2),
        (1, "a.b", 1, 1),
    ]


def test_a_name_that_begins_with_a_dot_hides_no_other():
    found = tree(rows("a.w", ".a.w", ".a.v"))
    assert sum(tensors for depth, _, _, tensors in found if depth == 0) == 3


def test_a_name_of_many_dots_is_cut():
    found = module_tree(rows("x" + ".x" * 100_000, "x" + ".x" * 100_000 + ".y", "x.y"))
    assert max(each.depth for each in found) <= 64
    assert found[0].tensors == 3


def test_an_outline_has_whole_levels():
    names = [f"{top}.{inner}.{leaf}.w" for top in "ab" for inner in "cd" for leaf in "ef"]
    records = [each.record() for each in module_tree(rows(*names))]
    assert [len(outline(records, most)) for most in (1, 2, 5, 6, 13, 14)] == [1, 2, 2, 6, 6, 14]
    assert outline([], 5) == []


def test_the_largest_repeated_module_counts_the_layers():
    found = rows(*(f"l.{n}.w" for n in range(3)), *(f"small.{n}.w" for n in range(2)), "n.w")
    repeated = most_repeated(module_tree(found))
    assert repeated is not None
    assert (repeated.path, repeated.copies) == ("l.[0-2]", 3)
    assert most_repeated(module_tree(rows("a.w"))) is None
