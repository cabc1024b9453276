from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeweights import checkpoint
from safeweights.reports.inventory import MAX_BRANCH_DEPTH, Row, branches, natural


def test_lists_name_type_shape_and_bytes_in_the_order_of_the_file(run, model):
    found = checkpoint.open(model)
    expected = [
        [name, t.dtype, str(list(t.shape)).replace(" ", ""), str(t.nbytes)]
        for name, t in found.items()
    ]
    result = run("ls", model)
    assert result.rows == expected
    assert result.exit_code == 0


def test_globs_match_dots_and_take_any_of_several(run, model):
    rows = run("ls", model, "layers.[0-1].*", "step").rows
    assert len(rows) == 7
    assert {row[0].rsplit(".", 3)[0] for row in rows} == {"layers.0", "layers.1", "step"}


def test_a_name_with_brackets_matches_itself(run, write, tmp_path):
    write(tmp_path / "x", [("a[0]", "U8", (1,)), ("a0", "U8", (1,))])
    assert [row[0] for row in run("ls", str(tmp_path / "x"), "a[0]").rows] == ["a0", "a[0]"]


def test_no_match_is_a_no(run, model):
    result = run("ls", model, "nothing*")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no tensor matches nothing*" in result.stderr
    assert run("ls", model, "nothing*", "--json").exit_code == 1


def test_sorting(run, model):
    assert [row[0] for row in run("ls", model, "*.q.weight", "--sort", "name").rows] == [
        f"layers.{i}.attn.q.weight" for i in range(12)
    ]
    sizes = [int(row[3]) for row in run("ls", model, "--sort", "size").rows]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("of", [str, lambda folder: folder.index_path], ids=["folder", "index"])
def test_json_says_where_in_which_file(run, sharded, of):
    document = run("ls", of(sharded), "--json").document
    assert document["total"]["tensors"] == 39
    for record in document["tensors"]:
        found = checkpoint.open(record["file"])
        (file,) = found.files
        assert record["offset"] == file.header.data_start + found.info(record["name"]).begin
        assert record["shape"] == list(found[record["name"]].shape)


def test_standard_input_piped_and_from_a_file(run, process, model):
    contents = Path(model).read_bytes()
    expected = run("ls", model).stdout
    assert run("ls", "-", stdin=contents).stdout == expected
    child = process("ls", "-", stdin=-1)
    assert child.communicate(contents, timeout=60)[0].decode() == expected
    with open(model, "rb") as file:
        assert process("ls", "-", stdin=file).communicate(timeout=60)[0].decode() == expected


def test_tree_has_totals_for_every_group(run, model):
    rows = {row[0]: row[1:] for row in run("ls", model, "--tree").rows}
    assert rows["layers."] == ["-", "-", str(36 * 128), "36", str(36 * 64)]
    assert rows["layers.11.attn."] == ["-", "-", str(3 * 128), "3", str(3 * 64)]
    assert rows["embed.weight"] == ["BF16", "[100,8]", "1600", "1", "800"]
    assert "embed." not in rows  # a group of one tensor is that tensor
    names = list(rows)
    assert names.index("layers.2.attn.") < names.index("layers.10.attn.")


def test_depth_limits_the_tree(run, model):
    rows = run("ls", model, "--tree", "--depth", "1").rows
    assert [row[0] for row in rows] == ["embed.weight", "layers.", "norm.weight", "step"]
    groups = run("ls", model, "--tree", "--depth", "2", "--json").document["groups"]
    assert {group["depth"] for group in groups} == {0, 1}
    assert run("ls", model, "--depth", "2").exit_code == 2


def row(name):
    return Row(name, "U8", (), 1, 1, None, None)


def test_names_that_end_in_dots_or_consist_of_them():
    names = ["a", "a.", "a.b", "a..", "", ".", "..b"]
    found = [branch.row.name for branch in branches(map(row, names)) if branch.row]
    assert sorted(found) == sorted(names)


def test_the_tree_is_bounded_for_a_name_of_a_million_dots():
    names = ["." * 1_000_000, "." * 1_000_000 + "x", *("a." * n for n in range(500))]
    found = list(branches(map(row, names)))
    assert max(len(branch.lasts) for branch in found) <= MAX_BRANCH_DEPTH + 1
    assert sum(branch.row is not None for branch in found) == len(names)


@given(st.lists(st.text("ab.01", max_size=12), unique=True))
def test_every_tensor_is_in_the_tree_once_and_groups_add_up(names):
    found = list(branches(map(row, names)))
    assert sorted(b.path for b in found if b.row) == sorted(names)
    for group in (b for b in found if not b.row):
        inside = [name for name in names if name.startswith(group.path)]
        assert group.total["tensors"] == len(inside) > 1
        assert group.path.endswith(".")


def test_natural_order_survives_numbers_of_a_million_digits():
    long = "9" * 1_000_000
    assert max(["a10", "a2", f"a{long}", "a02", "b"], key=natural) == "b"
    assert natural("a2") < natural("a10") < natural(f"a{long}")


@given(st.lists(st.text(max_size=20).filter("__metadata__".__ne__), unique=True, min_size=1))
def test_piped_names_can_be_read_back(tmp_path_factory, write, run_plain, names):
    path = tmp_path_factory.mktemp("names") / "x"
    write(path, [(name, "U8", ()) for name in names])
    shown = run_plain("ls", str(path))
    read = [
        ast.literal_eval('"' + line.split("\t")[0].replace('"', '\\"') + '"')
        for line in shown.split("\n")[:-1]
    ]
    assert sorted(read) == sorted(names)


@pytest.fixture(scope="module")
def run_plain():
    from click.testing import CliRunner

    from safeweights.cli.app import cli

    return lambda *arguments: CliRunner().invoke(cli, list(arguments)).stdout


def test_a_numpy_archive_is_listed_as_tensors(run, tmp_path):
    numpy = pytest.importorskip("numpy")
    numpy.savez(tmp_path / "x.npz", a=numpy.zeros((2, 3), "f4"))
    result = run("ls", os.fspath(tmp_path / "x.npz"), "--json")
    (record,) = result.document["tensors"]
    assert (record["name"], record["dtype"], record["shape"]) == ("a", "F32", [2, 3])
    assert record["file"] is None
    assert record["offset"] is None


def test_tensors_that_cannot_be_given_are_listed_with_the_reason(run, quantised, terminal, plain):
    document = run("ls", quantised, "--json").document
    assert document["total"] == {"tensors": 4, "parameters": 64 * 6 + 32 + 64, "bytes": 682}
    kinds = {row["name"]: (row["dtype"], row["unreadable"] is None) for row in document["tensors"]}
    assert kinds == {
        "blk.0.weight": ("Q8_0", False), "blk.1.weight": ("Q8_0", False),
        "norm": ("Q4_0", False), "scale": ("F32", True),
    }  # fmt: skip
    first, *_, last = run("ls", quantised).rows
    assert first == [
        "blk.0.weight",
        "Q8_0",
        "[4,64]",
        "272",
        "it is quantised as Q8_0; dequantize (--dequantize) gives numbers",
    ]
    assert last == ["scale", "F32", "[8,8]", "256"]
    tree = run("ls", quantised, "--tree").rows
    assert [len(row) for row in tree] == [6, 7, 7, 7, 6]
    for options in ([], ["--tree"]):
        shown = " ".join(plain(terminal("ls", quantised, *options)[0]).split())
        assert "blk.0.weight and 1 tensor more: it is quantised as Q8_0" in shown
        assert "norm: it is quantised as Q4_0" in shown


def test_what_a_file_does_not_tell_is_not_counted(run, tmp_path):
    torch = pytest.importorskip("torch")

    class Odd:
        def __reduce__(self):
            return print, (torch.ones(3),)

    torch.save({"w": torch.ones(2), "odd": Odd()}, tmp_path / "m.pt")
    document = run("ls", os.fspath(tmp_path / "m.pt"), "--json").document
    assert document["total"] == {"tensors": 2, "parameters": 2, "bytes": 8}
    (odd,) = [row for row in document["tensors"] if row["unreadable"]]
    assert (odd["name"], odd["dtype"], odd["shape"]) == ("odd", "?", [])
    assert "in__.print`" in odd["unreadable"]
