from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import safeweights
from safeweights import checkpoint
from safeweights.errors import SafetensorError
from safeweights.reports.checking import (
    check_path,
)
from safeweights.reports.findings import (
    MAX_FINDINGS,
)


def raw(text, data=b""):
    text = text if isinstance(text, bytes) else text.encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def file(tmp_path):
    def file(contents, name="x.safetensors"):
        (tmp_path / name).write_bytes(contents)
        return str(tmp_path / name)

    return file


def entry(name, dtype="U8", shape=(1,), begin=0, end=1):
    return (
        json.dumps(name)
        + ":"
        + json.dumps({"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]})
    )


def header(*entries):
    return "{" + ",".join(entries) + "}"


def rules(result, level="error"):
    return [
        finding["rule"]
        for each in result.document["results"]
        for finding in each["findings"]
        if finding["level"] == level
    ]


def test_a_good_file(run, model):
    result = run("check", model, "--json")
    assert (result.exit_code, result.document["ok"]) == (0, True)
    assert result.document["results"][0]["findings"] == []
    assert run("check", model).rows == [["ok", model]]


def test_what_truncating_a_mapped_file_does_is_said_once(run, terminal, plain, model, tmp_path):
    other = tmp_path / "other.safetensors"
    shutil.copy(model, other)
    shown = plain(terminal("check", model, str(other))[0])
    assert shown.count("do not truncate") == 1
    assert run("check", model, "--strict", "--json").document["notes"][0].startswith("do not")
    # Not for standard input, nor for bad files, nor in piped lines and SARIF.
    for stdin, *arguments in (
        (Path(model).read_bytes(), "-", "--json"),
        (b"", "-", "--json"),
        (None, model),
        (None, model, "--sarif"),
    ):
        assert "do not truncate" not in run("check", *arguments, stdin=stdin).stdout


@pytest.mark.parametrize("whole", [True, False])
def test_safetensors_of_another_name_are_safetensors(run, model, tmp_path, whole):
    path = tmp_path / "pytorch_model.bin"
    shutil.copy(model, path)
    result = run("check", str(tmp_path) if whole else str(path), "--json")
    assert rules(result, "note") == ["other-suffix"]
    (found,) = result.document["results"]
    assert (found["status"], found["formats"]) == ("ok", ["safetensors"])
    assert found["total"]["tensors"] == 39


def test_everything_wrong_is_listed_with_rule_tensor_and_offset(run, file):
    contents = raw(
        header(
            entry("a", "F32", (2,), 0, 4),
            entry("b", "U8", (1,), 6, 7),
            entry("c", "F4", (1,), 7, 8),
        ),
        bytes(20),
    )
    result = run("check", file(contents), "--json")
    assert result.exit_code == 1
    (only,) = result.document["results"]
    found = [(f["rule"], f["tensor"]) for f in only["findings"]]
    assert found == [("size", "a"), ("offsets", "b"), ("byte-boundary", "c"), ("coverage", None)]
    for finding in only["findings"][:3]:
        assert contents[finding["offset"] :].startswith(b'"%s":{' % finding["tensor"].encode())


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (bytes(100), "nothing but zero bytes"),
        (raw("{}   ")[:-2], "the file ends at byte 11"),
    ],
)
def test_other_contents_are_recognised(run, file, contents, words):
    result = run("check", file(contents))
    assert result.exit_code == 1
    assert words in result.stdout


class Harmful:
    def __reduce__(self):
        return os.system, ("echo harm",)


def test_pickles_are_scanned_and_not_executed(run, file, tmp_path):
    bad = file(pickle.dumps(Harmful()), "bad.pkl")
    result = run("check", bad, "--json")
    assert result.exit_code == 1
    (finding,) = result.document["results"][0]["findings"]
    assert finding["rule"] == "dangerous-call"
    assert "system" in finding["message"]
    assert finding["offset"] is not None
    good = file(pickle.dumps({"a": 1}), "good.pkl")
    assert run("check", good).exit_code == 0
    assert run("check", str(tmp_path)).exit_code == 1
    piped = run("check", "-", stdin=Path(bad).read_bytes())
    assert (piped.exit_code, "dangerous-call" in piped.stdout) == (1, True)


def test_a_pickle_called_safetensors_is_wrong_even_if_harmless(run, file):
    result = run("check", file(pickle.dumps({"a": 1})), "--json")
    assert result.exit_code == 1
    assert "wrong-name" in rules(result)


def test_suspicious_names_are_warnings_and_fail_when_strict(run, hostile):
    result = run("check", hostile, "--json")
    assert result.exit_code == 0
    found = set(rules(result, "warning"))
    assert found >= {"name-empty", "name-control", "name-bidi", "name-long", "name-path"}
    assert "metadata-control" in found
    assert run("check", "--strict", hostile).exit_code == 1


def test_strict_reports_what_no_good_writer_writes(run, file):
    path = file(raw(f" {header(entry('a'))}\n", b"1"))
    assert run("check", path).exit_code == 0
    result = run("check", "--strict", path, "--json")
    assert result.exit_code == 1
    assert "strict-space" in rules(result, "warning")


def test_misaligned_data_is_noted_when_strict(run, file):
    path = file(raw(header(entry("a", "F64", (1,), 0, 8)), bytes(8)))
    assert "misaligned" in rules(run("check", "--strict", path, "--json"), "note")


def test_thousands_of_problems_are_bounded(run, file):
    number = MAX_FINDINGS + 500
    text = header(*(entry(f"\x1b{i}", begin=i, end=i + 1) for i in range(number)))
    result = run("check", file(raw(text, bytes(number))), "--json")
    (only,) = result.document["results"]
    assert (len(only["findings"]), only["truncated"]) == (MAX_FINDINGS, True)


def test_what_cannot_be_looked_at(run, model, tmp_path):
    missing = str(tmp_path / "missing")
    assert run("check", missing).exit_code == 3
    assert run("check", model, missing, "--json").document["results"][1]["status"] == "unreadable"
    bad = tmp_path / "bad"
    bad.write_bytes(b"bad")
    assert run("check", missing, str(bad)).exit_code == 1  # one bad file settles it
    if os.geteuid():
        bad.chmod(0)
        assert run("check", str(bad)).exit_code == 3


def test_what_is_known_to_be_bad_stays_bad_whatever_cannot_be_read(run, sharded):
    first, second, _ = sorted(Path(sharded).glob("*.safetensors"))
    first.unlink()
    first.mkdir()
    assert run("check", sharded).exit_code == 3
    second.write_bytes(b"bad")
    assert run("check", sharded).exit_code == 1


def test_a_damaged_file_is_not_taken_for_a_pickle(run, file):
    # The length of this header, 40, is the MARK with which old pickles begin.
    result = run("check", file(raw("x" * 40), "x"), "--json")
    assert rules(result) == ["json"]
    assert run("ls", file(raw("x" * 40), "x"), "--json").document["error"]["rule"] == "json"


def test_a_device_or_fifo_is_not_waited_for(run, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert run("check", str(tmp_path / "fifo")).exit_code == 3
    assert run("check", "/dev/null").exit_code == 3


@pytest.mark.parametrize("of", [str, lambda folder: folder.index_path], ids=["folder", "index"])
class TestShards:
    def test_in_order(self, run, sharded, of):
        result = run("check", of(sharded), "--json")
        assert result.document["ok"]
        assert result.document["results"][0]["total"]["tensors"] == 39

    def test_missing_shard(self, run, sharded, of):
        os.unlink(os.path.join(sharded, "model-00002-of-00003.safetensors"))
        result = run("check", of(sharded), "--json")
        assert (result.exit_code, rules(result)) == (1, ["missing-shard"])

    def test_tensors_in_other_places(self, run, sharded, of):
        def change(index):
            index["weight_map"]["step"] = index["weight_map"]["norm.weight"]
            index["weight_map"]["ghost"] = index["weight_map"]["embed.weight"]

        sharded.index(change)
        found = set(rules(run("check", of(sharded), "--json")))
        assert found == {"index-tensor-missing", "index-tensor-unlisted"}

    def test_total_size(self, run, sharded, of):
        sharded.index(lambda index: index["metadata"].update(total_size=5))
        result = run("check", of(sharded), "--json")
        assert (result.exit_code, rules(result, "warning")) == (0, ["index-total-size"])
        assert run("check", "--strict", of(sharded)).exit_code == 1
        sharded.index(lambda index: index["metadata"].update(total_size=5.5))
        assert rules(run("check", of(sharded), "--json"), "warning") == ["index-total-size"]

    @pytest.mark.parametrize("metadata", [None, [], {}, {"total_size": None}, {"x": {"y": [1]}}])
    def test_indexes_without_a_size(self, run, sharded, of, metadata):
        sharded.index(lambda index: index.update(metadata=metadata))
        assert run("check", of(sharded), "--json").exit_code == 0

    def test_no_index_at_all(self, run, sharded, of):
        Path(sharded.index_path).write_text("[1, 2")
        result = run("check", of(sharded), "--json")
        assert (result.exit_code, rules(result)) == (1, ["index"])

    def test_a_broken_shard(self, run, sharded, of):
        path = Path(sharded, "model-00002-of-00003.safetensors")
        path.write_bytes(path.read_bytes()[:-1])
        result = run("check", of(sharded), "--json")
        assert result.exit_code == 1
        assert "coverage" in rules(result)


def test_a_file_of_the_name_of_an_index_that_does_not_list_it_is_an_error(run, sharded, write):
    write(Path(sharded, "model.safetensors"), [("a", "U8", ())])
    assert rules(run("check", sharded, "--json")) == ["index-twin"]
    assert run("ls", sharded, "--json").document["error"]["rule"] == "index-twin"


def test_a_file_that_no_index_lists_is_noted(run, sharded, write):
    write(Path(sharded, "other.safetensors"), [("a", "U8", ())])
    write(Path(sharded, "._hidden.safetensors"), [("a", "U8", ())])
    assert "unlisted-file" in rules(run("check", sharded, "--json"), "note")


def test_a_folder_without_an_index(run, sharded, tmp_path):
    os.unlink(sharded.index_path)
    assert run("check", sharded).exit_code == 0
    os.unlink(os.path.join(sharded, "model-00002-of-00003.safetensors"))
    assert "1 of 3 shards are missing" in run("check", sharded).stdout
    (tmp_path / "nothing").mkdir()
    assert run("check", str(tmp_path / "nothing")).exit_code == 1


def test_messages_and_names_from_files_are_one_field_each(run, hostile):
    for row in run("check", hostile).rows:
        assert len(row) == (2 if row[0] == "ok" else 6)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "x"


VALID = raw(header(entry("a"), entry("b", "F32", (2,), 1, 9)) + "  ", bytes(9))


@given(
    st.one_of(
        st.binary(max_size=100),
        st.builds(
            lambda at, part, cut: VALID[:at] + part + VALID[at + cut :],
            st.integers(0, len(VALID)),
            st.binary(max_size=4),
            st.integers(0, 4),
        ),
        st.builds(raw, st.text(max_size=60), st.binary(max_size=4)),
    )
)
@example(VALID)
def test_ok_means_that_it_opens(scratch, contents):
    scratch.write_bytes(contents)
    result = check_path(str(scratch), strict=False)
    if "safetensors" not in result["formats"] and result["formats"]:
        return  # of another format: not for this opener
    try:
        checkpoint.open(str(scratch), backend="pread")
    except SafetensorError:
        assert result["status"] in {"bad", "unreadable"}
        assert any(finding["level"] == "error" for finding in result["findings"])
    else:
        assert result["status"] == "ok"


def test_on_a_terminal_at_80_columns(terminal, plain, hostile, tmp_path):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"<html>")
    shown, status = terminal("check", hostile, str(bad))
    assert status == 1
    lines = plain(shown).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.isprintable() for line in lines)


# ---- in Python


def test_python_gets_what_json_prints(run, model, sharded, quantised, tmp_path, monkeypatch):
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    for path in (model, sharded, quantised, str(tmp_path / "bad.safetensors"), "missing"):
        for strict in (False, True):
            options = ["--strict"] if strict else []
            printed = run("check", path, *options, "--json").document
            assert safeweights.check(path, strict=strict) == printed
    assert safeweights.check(Path(model))["ok"]
    monkeypatch.chdir(tmp_path)
    Path("-").write_bytes(b"bad")
    found = safeweights.check("-")["results"][0]
    assert (found["path"], found["status"]) == (os.path.join(".", "-"), "bad")


def test_python_needs_neither_click_nor_rich(model):
    code = (
        "import sys; sys.modules['click'] = sys.modules['rich'] = None; import safeweights; "
        f"assert safeweights.check({model!r})['ok']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- what check promises, convert does


def promised(result):
    return "makes it safetensors" in "".join(each["message"] for each in result["findings"])


def test_what_convert_cannot_write_is_not_promised(run, quantised, tmp_path):
    target = str(tmp_path / "new.safetensors")
    (result,) = run("check", quantised, "--json").document["results"]
    notes = {each["message"]: each["tensor"] for each in result["findings"]}
    advice = "dequantize (--dequantize) gives numbers"
    assert notes == {
        "gguf, which builds data only; `safeweights convert` cannot write 3 of 4 tensors": None,
        f"2 tensors cannot be converted: it is quantised as Q8_0; {advice}": "blk.0.weight",
        f"1 tensor cannot be converted: it is quantised as Q4_0; {advice}": "norm",
    }
    assert (result["status"], promised(result)) == ("ok", False)
    assert run("convert", quantised, target).exit_code == 1
    assert run("convert", quantised, target, "--only", "scale").exit_code == 0


@pytest.mark.parametrize("inside", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"w": np.ones(2, "f4")}, True),
        ({"w": np.ones(2, "f4"), "z": np.ones(2, "c16")}, False),
        ({"only": "text"}, False),
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, False),  # two tensors of one name
    ],
    ids=["all", "complex", "none", "collision"],
)
def test_promises_are_kept(run, tmp_path, value, kept, inside):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "m.pkl").write_bytes(pickle.dumps(value))
    path = folder if inside else folder / "m.pkl"
    (result,) = run("check", str(path), "--json").document["results"]
    assert promised(result) is kept
    target = str(tmp_path / "new.safetensors")
    assert (run("convert", str(folder / "m.pkl"), target).exit_code == 0) is kept


def test_a_valid_file_that_another_loader_executes_is_not_ok(run, file):
    """The length 0x56 is UNICODE: a text up to the first newline, then the opcodes in the data."""
    calls = b"\nX\x02\x00\x00\x00osX\x06\x00\x00\x00getpid\x93)R."
    text = header(entry("w", shape=(len(calls),), end=len(calls)))
    pickled = file(raw(text + " " * (ord("V") - len(text)), calls))
    assert checkpoint.open(pickled)["w"].nbytes == len(calls)
    result = run("check", pickled, "--json")
    assert (result.exit_code, rules(result)) == (1, ["dangerous-call", "unread"])


def test_what_was_not_read_to_its_end_cannot_be_looked_at(run, file):
    result = run("check", file(b"\x80\x02" + b"(1" * 2_900_000 + b"N.", "x.pkl"), "--json")
    assert (result.exit_code, rules(result)) == (3, ["unread"])


# ---- shards of other formats


@pytest.fixture
def shards(tmp_path):
    """Two .npz files and their index; `index` says what it says."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in "ab":
        np.savez(folder / f"{name}.npz", **{name: np.ones(2)})

    def index(weight_map):
        (folder / "m.npz.index.json").write_text(json.dumps({"weight_map": weight_map}))

    index({"a": "a.npz", "b": "b.npz"})
    path = type("Shards", (str,), {})(folder)
    path.index = index
    return path


@pytest.mark.parametrize("inside", [True, False], ids=["folder", "index"])
def test_an_index_of_another_format_is_checked_like_any(run, shards, inside):
    path = shards if inside else os.path.join(shards, "m.npz.index.json")

    def found():
        return rules(run("check", path, "--json"))

    assert found() == []
    assert sorted(safeweights.open(path)) == ["a", "b"]
    shards.index({"a": "b.npz", "b": "b.npz"})
    assert found() == ["index-tensor-missing"]
    shards.index({"a": "a.npz", "b": "c.npz"})
    assert "missing-shard" in found()
    shards.index({"a": "../a.npz"})
    assert found() == ["index"]


def test_what_open_says_of_a_folder_of_another_format(run, shards):
    os.unlink(os.path.join(shards, "m.npz.index.json"))
    assert rules(run("check", shards, "--json")) == []
    np.savez(os.path.join(shards, "c.npz"), a=np.ones(1))
    assert rules(run("check", shards, "--json")) == ["duplicate-key"]
    os.unlink(os.path.join(shards, "c.npz"))
    np.savez(os.path.join(shards, "m-00001-of-00002.npz"), c=np.ones(1))
    assert rules(run("check", shards, "--json")) == ["missing-shard"]


# --- as people and services read it


def test_of_several_paths_the_worst_comes_first(terminal, plain, model, tmp_path):
    bad, gone = str(tmp_path / "bad.safetensors"), str(tmp_path / "gone.safetensors")
    Path(bad).write_bytes(bytes(4))
    lines = plain(terminal("check", model, gone, bad)[0]).splitlines()
    assert lines[:2] == ["1 of 3 paths is bad", "1 of 3 paths could not be read"]
    firsts = [line.split()[0] for line in lines if line and line[0] != " "]
    statuses = [word for word in firsts if word in {"bad", "unreadable", "ok"}]
    assert statuses == ["bad", "unreadable", "ok"]
    assert "-> Download or copy the file again" in "\n".join(lines)
    shutil.copy(model, tmp_path / "copy.safetensors")
    shown = plain(terminal("check", model, str(tmp_path / "copy.safetensors"))[0])
    assert shown.startswith("all 2 paths are ok")


def test_notes_of_one_rule_are_one_line(terminal, plain, tmp_path):
    for number in range(5):
        np.savez(tmp_path / f"{number}.npz", **{f"a{number}": np.zeros(1)})
    shown = plain(terminal("check", str(tmp_path))[0])
    words = " ".join(shown.split())
    assert words.count("makes it safetensors") == 1
    assert "(and 4 more)" in words


def test_annotations_of_github_cannot_be_forged(run, tmp_path):
    path = tmp_path / "a,b:c%\n::error::x.safetensors"
    path.write_bytes(bytes(4))
    result = run("check", str(path), "--format", "github")
    (line,) = result.stdout.splitlines()
    assert result.exit_code == 1
    assert line.startswith("::error file=")
    assert "a%2Cb%3Ac%25\\n%3A%3Aerror" in line
    assert ",title=header-too-small::" in line
    assert run("check", str(path), "--format", "github", "--json").exit_code == 2


def test_rules_in_sarif_have_help(run, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(4))
    log = json.loads(run("check", str(path), "--sarif").stdout)
    (rule,) = log["runs"][0]["tool"]["driver"]["rules"]
    assert (
        rule["shortDescription"]["text"]
        == "A file begins with 8 bytes that give the length of its header."
    )
    assert "again" in rule["help"]["text"]
