from __future__ import annotations

import json
import os
import pickle
import re

import numpy as np
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


def test_the_first_lines_say_what_the_model_is(run, terminal, plain, sharded):
    with open(os.path.join(sharded, "config.json"), "w") as file:
        json.dump({"architectures": ["Hostile\x1b[2J\u202eModel"]}, file)
    summary = dict(row[:2] for row in run("show", sharded).rows)["summary"]
    assert summary.startswith("Hostile\\x1b[2J\\u202eModel · 3.1K parameters · BF16")
    shown = plain(terminal("show", sharded)[0])
    assert "".join(summary.split()) in "".join(shown.split())
    assert re.search(r"layers\.\[0-11\]\.attn +12 x +2\.3K", shown)


@pytest.mark.parametrize("width", ["80", "40"])
def test_the_summary_breaks_between_its_facts(run, terminal, plain, sharded, width):
    with open(os.path.join(sharded, "config.json"), "w") as file:
        json.dump({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}, file)
    facts = dict(row[:2] for row in run("show", sharded).rows)["summary"].split(" · ")
    lines = [
        line.strip() for line in plain(terminal("show", sharded, COLUMNS=width)[0]).splitlines()
    ]
    begin = next(number for number, line in enumerate(lines) if line.startswith("Llama"))
    summary = lines[begin : lines.index("")]
    assert len(summary) > 1
    assert [fact for line in summary for fact in line.removesuffix(" ·").split(" · ")] == facts


def test_no_color_takes_colours_and_a_dumb_terminal_gets_no_codes(terminal, sharded):
    shown, _ = terminal("show", sharded, NO_COLOR="1")
    assert set(re.findall(r"\x1b\[[0-9;]*m", shown)) <= {"\x1b[0m", "\x1b[1m", "\x1b[2m"}
    for environment in ({"TERM": "dumb"}, {"TERM": "dumb", "NO_COLOR": "1"}):
        assert "\x1b" not in terminal("show", sharded, **environment)[0]


# --- other formats


class _Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.fixture
def evil(tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"w": np.zeros(3, "f4"), "x": _Evil()}))
    return str(path)


@pytest.mark.parametrize("command", [["show"], ["ls"], ["ls", "--tree"]])
def test_what_loading_would_run_is_said(run, evil, tmp_path, command):
    for path in (evil, str(tmp_path)):
        if path == str(tmp_path):
            os.rename(evil, tmp_path / "evil.pt")
        result = run(*command, path)
        assert result.exit_code == 0
        assert "warning: loading this file with its own library runs code" in result.stderr
        assert f"{os.system.__module__}.system" in result.stderr
        assert f"safeweights check {path}" in result.stderr
        assert "warning" not in result.stdout
        document = run(*command, path, "--json").document
        assert document["calls"] == [f"{os.system.__module__}.system"]


def test_what_loading_would_run_is_said_of_a_pipe_too(run, evil):
    with open(evil, "rb") as file:
        assert "runs code" in run("show", "-", stdin=file.read()).stderr


def test_harmless_files_get_no_warning(run, model, tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": np.zeros(3, "f4")}))
    for path in (model, str(tmp_path / "x.pkl")):
        result = run("show", path, "--json")
        assert result.document["calls"] == []
        assert result.stderr == ""


@pytest.fixture
def shards(tmp_path):
    """A folder of two files of another format, and their index."""
    for name, tensor in (("a-1.npz", "x"), ("a-2.npz", "y")):
        np.savez(tmp_path / name, **{tensor: np.arange(3, dtype="f4")})
    index = tmp_path / "a.npz.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a-1.npz", "y": "a-2.npz"}}))
    return str(tmp_path), str(index)


def test_shards_of_another_format_are_one_model(run, shards):
    folder, index = shards
    for path, kind in ((folder, "folder"), (index, "index")):
        document = run("show", path, "--json").document
        assert (document["kind"], document["format"], document["files"]) == (kind, "npz", [])
        assert run("ls", path).rows == [["x", "F32", "[3]", "12"], ["y", "F32", "[3]", "12"]]
        assert run("get", path, "y").rows == [["0.0", "1.0", "2.0"]]
    os.remove(index)
    assert run("ls", folder).rows == [["x", "F32", "[3]", "12"], ["y", "F32", "[3]", "12"]]
    np.savez(os.path.join(folder, "b.npz"), x=np.zeros(1))
    assert "tensor `x` is in two files" in run("ls", folder).stderr


def test_an_index_that_is_wrong_is_refused(run, shards):
    folder, index = shards
    with open(index, "w") as file:
        json.dump({"weight_map": {"x": "a-1.npz", "z": "a-2.npz"}}, file)
    for path in shards:
        assert "the index places tensor `z`" in run("show", path).stderr
    with open(index, "w") as file:
        json.dump({"weight_map": {"x": "a-1.npz", "z": "a-3.npz"}}, file)
    result = run("show", folder)
    assert (result.exit_code, "missing, the first is `a-3.npz`" in result.stderr) == (1, True)


def test_an_index_of_any_name_may_list_safetensors(run, sharded):
    other = os.path.join(sharded, "other.index.json")
    os.rename(sharded.index_path, other)
    assert len(run("show", other, "--json").document["files"]) == 3


@pytest.mark.parametrize("name", [None, "config.json"])
def test_a_folder_without_any_model(run, tmp_path, name):
    if name:
        (tmp_path / name).write_text("{}")
    result = run("show", str(tmp_path))
    assert result.exit_code == 1
    assert "the folder has no .safetensors file" in result.stderr


class _Made:
    def __reduce__(self):
        return repr, (np.zeros(3, "f4"),)


def test_a_tensor_that_cannot_be_given_says_why(run, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"x": _Made(), "y": np.zeros(1, "f4")}))
    given, refused = run("ls", str(path)).rows
    assert given == ["y", "F32", "[1]", "4"]
    assert refused[:4] == ["x", "?", "[]", "0"]
    assert refused[4].startswith("it is the result of REDUCE of `builtins.repr`")
    result = run("get", str(path), "x")
    assert (result.exit_code, "`x` cannot be given" in result.stderr) == (1, True)


def test_tensors_that_cannot_be_given_are_counted_by_the_reason(run, quantised, terminal, plain):
    document = run("show", quantised, "--json").document
    assert document["total"]["tensors"] == 4
    assert {kind["dtype"]: kind["tensors"] for kind in document["dtypes"]} == {
        "Q8_0": 2, "F32": 1, "Q4_0": 1,
    }  # fmt: skip
    assert [(some["first"], some["tensors"]) for some in document["unreadable"]] == [
        ("blk.0.weight", 2),
        ("norm", 1),
    ]
    reason = "it is quantised as Q8_0; dequantize (--dequantize) gives numbers"
    assert ["unreadable", reason, "2", "384", "408"] in run("show", quantised).rows
    assert f"blk.0.weight and 1 tensor more: {reason}" in " ".join(
        plain(terminal("show", quantised)[0]).split()
    )


def test_values_that_cannot_be_given_are_not_printed(run, quantised, tmp_path):
    for options in ([], ["--stats"], ["-o", str(tmp_path / "x.npy")], ["--json"]):
        result = run("get", quantised, "norm", *options)
        assert result.exit_code == 1
        assert "tensor `norm` cannot be given: it is quantised as Q4_0" in result.stderr
    assert not (tmp_path / "x.npy").exists()


def test_a_line_shows_where_the_bytes_are(terminal, plain, sharded, hostile):
    for width in (80, 30):
        lines = plain(terminal("show", sharded, width=width)[0]).splitlines()
        at = lines.index("where the bytes are")
        assert len(lines[at + 1]) == width
        assert set(lines[at + 1]) <= set("░█▓▒▚▞▄")
        assert any(line.startswith("██ embed") for line in lines[at + 2 :])
    shown = plain(terminal("show", hostile)[0])
    assert "where the bytes are\n" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_the_map_of_bytes_is_in_the_document(run, sharded):
    document = run("show", sharded, "--json").document
    assert [each["file"] for each in document["map"]] == [f["path"] for f in document["files"]]
    assert sum(piece["tensors"] for each in document["map"] for piece in each["pieces"]) == 39


def test_an_index_that_was_opened_leaves_no_doubt_about_code(run, sharded):
    """Whatever its size: opening the folder has read it."""
    with open(sharded.index_path, "a") as file:
        file.write(" " * (9 << 20))
    assert run("show", sharded, "--json").document["model"]["code"]["verdict"] == "no"
