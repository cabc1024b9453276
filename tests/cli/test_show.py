from __future__ import annotations

import pytest

from safeweights import checkpoint


def test_counts_add_up(run, model):
    document = run("show", model, "--json").document
    tensors = checkpoint.open(model)
    assert (
        document["total"]["tensors"]
        == len(tensors)
        == sum(kind["tensors"] for kind in document["dtypes"])
    )
    assert document["total"]["bytes"] == sum(t.nbytes for t in tensors.values())
    assert [kind["dtype"] for kind in document["dtypes"]] == ["BF16", "F32", "I64"]
    assert document["metadata"] == {"format": "pt"}
    assert document["kind"] == "file"


@pytest.mark.parametrize(
    ("of", "kind"), [(str, "folder"), (lambda folder: folder.index_path, "index")]
)
def test_shards_are_one_model(run, sharded, of, kind):
    document = run("show", of(sharded), "--json").document
    assert document["kind"] == kind
    assert document["total"]["tensors"] == 39
    assert [file["tensors"] for file in document["files"]] == [13, 13, 13]


def test_piped_lines_say_the_same(run, model):
    rows = run("show", model).rows
    assert ["tensors", "39"] in rows
    assert ["dtype", "I64", "1", "1", "8"] in rows
    assert ["metadata", "format", "pt"] in rows


def test_a_model_of_nothing(run, write, tmp_path):
    write(tmp_path / "empty", [])
    document = run("show", str(tmp_path / "empty"), "--json").document
    assert document["total"] == {"tensors": 0, "parameters": 0, "bytes": 0}
    assert document["metadata"] is None


def test_values_of_metadata_take_one_line_each(run, write, tmp_path):
    write(tmp_path / "x", [], {"a": "1\n2\t3", "b": ""})
    assert run("show", str(tmp_path / "x")).rows[-2:] == [
        ["metadata", "a", "1\\n2\\t3"],
        ["metadata", "b", ""],
    ]


def test_on_a_terminal_at_80_columns(terminal, plain, sharded):
    shown, status = terminal("show", sharded)
    lines = plain(shown).splitlines()
    assert status == 0
    assert max(map(len, lines)) <= 80
    assert any("parameters" in line and "3,113" in line for line in lines)
    assert "\x1b[" in shown


def test_no_color_means_none(terminal, sharded):
    shown, _ = terminal("show", sharded, NO_COLOR="1", TERM="dumb")
    assert "\x1b" not in shown
