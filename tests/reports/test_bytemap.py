"""The map of a model's bytes, as data and as a line of blocks."""

from __future__ import annotations

from itertools import groupby, pairwise

from hypothesis import given
from hypothesis import strategies as st

from safeweights.cli.figures import byte_strip
from safeweights.reports.bytemap import byte_map
from safeweights.reports.inventory import Row

HEAD = 100


def model(files):
    """Records of files and rows of tensors: file -> names and sizes of its tensors."""
    records, rows = [], []
    for path, tensors in files.items():
        position = HEAD
        for name, size in tensors:
            rows.append(Row(name, "U8", (size,), size, size, path, position))
            position += size
        records.append(
            {"path": path, "bytes": position, "header_bytes": HEAD - 8, "tensors": len(tensors)}
        )
    return records, rows


def modules(found):
    return [(piece["module"], piece["tensors"]) for piece in found["pieces"]]


def test_neighbours_of_one_module_are_one_piece():
    names = ["a.q.weight", "a.q.bias", "a.k.weight", "a.q.scale", "norm", "b.weight"]
    (found,) = byte_map(*model({"m": [(name, 10) for name in names]}), 100)
    assert modules(found) == [
        ("header", 0), ("a.q", 2), ("a.k", 1), ("a.q", 1), ("norm", 1), ("b", 1),
    ]  # fmt: skip


def test_names_that_begin_alike_are_not_one_module():
    deep = "a.b.c.d.e.f"
    names = [f"{deep}.x", f"{deep}.y.z", f"{deep}2.x", deep, "a.b.c.d.e"]
    (found,) = byte_map(*model({"m": [(name, 1) for name in names]}), 100)
    assert modules(found)[1:] == [(deep, 2), (f"{deep}2", 1), ("a.b.c.d.e", 1), ("a.b.c.d", 1)]


def test_many_modules_are_shown_less_deeply():
    names = [f"layers.{n}.{part}.weight" for n in range(30) for part in "qkv"]
    files = {path: [(f"{path}.{name}", 4) for name in names] for path in "ab"}
    deep, flat, least = (byte_map(*model(files), most) for most in (1000, 70, 1))
    assert len(deep[0]["pieces"]) == 91
    assert modules(flat[0])[1] == ("a.layers.0", 3)
    assert modules(least[1]) == [("header", 0), ("tensors", 90)]


def files_of(parts):
    names = st.lists(st.sampled_from(parts), min_size=1, max_size=9).map(".".join)
    return st.lists(st.lists(st.tuples(names, st.integers(0, 9)), max_size=9), max_size=3)


@given(files_of(["a", "b", "0", "1", ""]), st.integers(1, 20), st.integers(1, 30))
def test_pieces_cover_every_byte_and_every_tensor(files, most, width):
    records, rows = model({str(number): tensors for number, tensors in enumerate(files)})
    found = byte_map(records, rows, most)
    for record, each in zip(records, found, strict=True):
        pieces = each["pieces"]
        assert (pieces[0]["begin"], pieces[-1]["end"]) == (0, record["bytes"])
        assert all(one["end"] == other["begin"] for one, other in pairwise(pieces))
        assert sum(piece["tensors"] for piece in pieces) == record["tensors"]
    assert sum(len(each["pieces"]) for each in found) <= max(most, 2 * len(records))
    strip = byte_strip(found, width, 4)
    assert len(strip.cells) == (width if records else 0)
    assert len(strip.kinds) <= 4
    assert sum(strip.kinds.values()) == sum(record["bytes"] for record in records)


@given(files_of(["a", "b", "0"]), st.integers(1, 20))
def test_names_are_cut_no_more_than_needed(files, most):
    records, rows = model({str(number): tensors for number, tensors in enumerate(files)})

    def runs(depth):
        cut = [(row.file, (row.name.split(".")[:-1] or [row.name])[:depth]) for row in rows]
        return [".".join(key[1]) for key, _ in groupby(cut)]

    fitting = [depth for depth in range(1, 7) if len(runs(depth)) + len(records) <= most]
    found = [piece["module"] for each in byte_map(records, rows, most) for piece in each["pieces"]]
    expected = runs(max(fitting)) if fitting else ["tensors"] * len({row.file for row in rows})
    assert [module for module in found if module != "header"] == expected


def test_a_cell_shows_what_most_of_its_bytes_are():
    files = byte_map(*model({"m": [("layers.0.w", 290), ("layers.11.w", 9), ("head.w", 1)]}), 100)
    strip = byte_strip(files, 4, 5)
    assert strip.cells == ["header", "layers.[N]", "layers.[N]", "layers.[N]"]
    assert strip.kinds == {"header": HEAD, "layers.[N]": 299, "head": 1}
