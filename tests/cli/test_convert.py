"""`safeweights convert`, and the other commands on files of other formats."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import safeweights
import safeweights.numpy
from safeweights.cli import watching
from safeweights.cli.app import COMMANDS
from safeweights.reports import sarif
from safeweights.trust import generate_key, load_private_key, sign

ARRAYS = {
    "layers.0.weight": np.arange(12, dtype="f4").reshape(3, 4),
    "layers.0.bias": np.ones(3, "f4"),
    "step": np.array(7),
}


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "old.npz"
    np.savez(path, **ARRAYS)
    return str(path)


@pytest.fixture
def target(tmp_path):
    return str(tmp_path / "new.safetensors")


@pytest.fixture
def checkpoint(tmp_path):
    """A PyTorch checkpoint with tied weights and values other than tensors."""
    path = tmp_path / "model.pt"
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": weight, "b": weight.view(2, 3), "epoch": 3, "note": "x\x1b[2J"}, path)
    return str(path)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def evil(tmp_path):
    """A pickle that would create a file, which must never exist."""
    marker = tmp_path / "executed"
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"w": np.zeros(3), "x": Evil(str(marker))}))
    yield str(path)
    assert not marker.exists()


def loaded(path):
    return safeweights.numpy.load_file(path)


# --- converting


def test_one_file(run, npz, target):
    result = run("convert", npz, target)
    assert result.exit_code == 0
    found = loaded(target)
    assert all(np.array_equal(found[name], value) for name, value in ARRAYS.items())
    source, output = result.rows
    assert source[:4] == ["source", npz, "npz", "3"]
    assert output[:4] == ["output", target, "safetensors", "3"]
    assert int(output[4]) == os.path.getsize(target)
    assert json.loads(Path(f"{target}.provenance.json").read_text())["tensors"] == 3


def test_the_document(run, checkpoint, target):
    document = run("convert", checkpoint, target, "--json").document
    assert (document["tensors"], document["bytes"], document["dry_run"]) == (1, 24, False)
    assert document["ties"] == {"b": "a"}
    assert {each["name"] for each in document["dropped"]} == {"epoch", "note"}
    assert document["dropped_count"] == 2
    assert document["calls"]["torch._utils._rebuild_tensor_v2"] == 2
    assert document["outputs"][0]["sha256"]


def test_options(run, npz, target):
    run("convert", npz, target, "--only", "layers.*", "--skip", "*.bias", "--dtype", "BF16",
        "--rename", r"^layers\.(\d)\.=block\1/", "--metadata", "made=by us", "--no-record")  # fmt: skip
    opened = safeweights.open(target)
    assert {name: tensor.dtype for name, tensor in opened.items()} == {"block0/weight": "BF16"}
    assert opened.metadata["made"] == "by us"
    assert not os.path.exists(f"{target}.provenance.json")


def test_digests_cost_time_and_can_be_left_out(run, npz, target, monkeypatch):
    monkeypatch.setattr("hashlib.sha256", None)
    document = run("convert", npz, target, "--no-digests", "--json").document
    assert [each["sha256"] for each in document["sources"] + document["outputs"]] == [None, None]
    with open(f"{target}.provenance.json", encoding="utf-8") as file:
        assert json.load(file)["outputs"][0]["sha256"] is None
    plain = run("convert", npz, target, "--no-digests", "--force").stdout
    assert all(line.endswith("\t") for line in plain.splitlines())


def test_what_is_no_tensor_is_kept_on_request(run, checkpoint, target):
    result = run("convert", checkpoint, target, "--keep-others", "--json")
    assert result.document["dropped_count"] == 0
    kept = json.loads(safeweights.open(target).metadata["safeweights.others"])
    assert kept == {"epoch": 3, "note": "x\x1b[2J"}


def test_ties_are_written_twice_on_request(run, checkpoint, target):
    assert run("convert", checkpoint, target, "--keep-ties", "--json").document["ties"] == {}
    assert set(loaded(target)) == {"a", "b"}


def test_sparse_tensors_need_leave(run, tmp_path, target):
    path = str(tmp_path / "sparse.pt")
    torch.save({"s": torch.eye(3).to_sparse()}, path)
    refused = run("convert", path, target, "--json")
    assert (refused.exit_code, refused.document["error"]["tensor"]) == (1, "s")
    assert not os.path.exists(target)
    assert run("convert", path, target, "--densify").exit_code == 0
    assert np.array_equal(loaded(target)["s"], np.eye(3, dtype="f4"))


def test_shards(run, npz, tmp_path):
    result = run("convert", npz, str(tmp_path / "model.safetensors"), "--shard", "48", "--json")
    formats = [output["format"] for output in result.document["outputs"]]
    assert formats == ["safetensors", "safetensors", "index"]
    index = tmp_path / "model.safetensors.index.json"
    assert set(safeweights.open(index)) == set(ARRAYS)


def test_a_folder_is_a_folder_whatever_it_holds(run, npz, tmp_path):
    """One file or several; a folder as DST works as with `cp`."""
    source = tmp_path / "old"
    source.mkdir()
    os.rename(npz, source / "old.npz")
    for path, target in ((source, "a"), (source / "old.npz", "b/"), (source / "old.npz", "a")):
        result = run("convert", str(path), f"{tmp_path}/{target}", "--force")
        assert result.exit_code == 0, result.stderr
        assert loaded(tmp_path / target / "old.safetensors").keys() == ARRAYS.keys()
        assert result.rows[1][1] == str(tmp_path / target.strip("/") / "old.safetensors")
    (tmp_path / "c").write_bytes(b"old")
    refused = run("convert", str(source), str(tmp_path / "c"), "--force")
    assert (refused.exit_code, "where a folder is needed" in refused.stderr) == (3, True)


def test_a_lost_value_is_an_error(run, tmp_path, target):
    np.savez(tmp_path / "w.npz", w=np.array([[0, 70000]], "f4"))
    result = run("convert", str(tmp_path / "w.npz"), target, "--dtype", "F16", "--json")
    assert (result.exit_code, result.document["error"]["tensor"]) == (1, "w")
    assert "the first at [0, 1]: 70000.0 would become inf" in result.stderr
    assert not os.path.exists(target)


def test_a_folder_with_its_index(run, tmp_path):
    source, target = tmp_path / "old", tmp_path / "new"
    source.mkdir()
    places = {}
    for number, name in enumerate(("a", "b"), 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: torch.ones(number)}, source / file)
        places[name] = file
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    (source / "config.json").write_text("{}")
    assert run("convert", str(source), str(target)).exit_code == 0
    assert set(safeweights.open(target)) == {"a", "b"}
    assert not (target / "config.json").exists()


def test_several_files_go_into_a_folder(run, npz, checkpoint, tmp_path):
    target = tmp_path / "new"
    assert run("convert", npz, checkpoint, str(target)).exit_code == 0
    assert {path.name for path in target.glob("*.safetensors")} == {
        "old.safetensors",
        "model.safetensors",
    }


def test_a_dry_run_writes_nothing(run, npz, target, tmp_path):
    before = sorted(os.listdir(tmp_path))
    document = run("convert", npz, target, "--dry-run", "--json").document
    assert document["dry_run"]
    assert document["outputs"][0]["sha256"] is None
    assert sorted(os.listdir(tmp_path)) == before


def test_files_are_replaced_only_by_force(run, npz, target):
    assert run("convert", npz, target).exit_code == 0
    before = Path(target).read_bytes()
    again = run("convert", npz, target, "--only", "step", "--json")
    assert (again.exit_code, again.document["error"]["path"]) == (3, target)
    assert "--force" in again.stderr
    assert Path(target).read_bytes() == before
    assert run("convert", npz, target, "--only", "step", "--force").exit_code == 0
    assert set(loaded(target)) == {"step"}


@pytest.mark.parametrize(
    "options",
    [
        ["--dtype", "FLOAT12"], ["--dtype", "C64=F32"], ["--max-shard-size", "big"],
        ["--max-shard-size", "0"],
        ["--rename", "(=x"], ["--rename", "abc"], ["--metadata", "key"], ["--format", "docx"],
        ["--limit", "depth"], ["--limit", "depth=0"], ["--limit", "depth=x"], ["--limit", "x=1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(run, npz, target, options):
    result = run("convert", npz, target, *options, "--json")
    assert (result.exit_code, result.document["error"]["kind"]) == (2, "usage")
    assert options[0] in result.stderr
    assert not os.path.exists(target)


def test_limits(run, npz, target):
    refused = run("convert", npz, target, "--limit", "members=2", "--json")
    assert (refused.exit_code, refused.document["error"]["rule"]) == (1, "limit-members")


def test_what_cannot_be_read(run, tmp_path, target):
    assert run("convert", str(tmp_path / "missing"), target).exit_code == 3
    (tmp_path / "text").write_text("hello, world")
    assert run("convert", str(tmp_path / "text"), target).exit_code == 1
    assert run("convert", str(tmp_path), target).exit_code == 1
    assert not os.path.exists(target)


def test_nothing_is_executed(run, evil, target):
    result = run("convert", evil, target, "--json")
    assert result.exit_code == 0
    assert set(loaded(target)) == {"w"}
    assert any("system" in call for call in result.document["calls"])


def test_hostile_names(run, terminal, plain, tmp_path):
    path = str(tmp_path / "x\x1b[2J\u202e.pt")
    names = {f"a{i}\x1b[2J\n\u202e\t": torch.ones(1) for i in range(30)}
    torch.save({**names, "other\x1b]0;x\x07": "v\x1b[2J"}, path)
    result = run("convert", path, str(tmp_path / "y\x1b[2J"), "--rename", "a1=b", "--skip", "a2*")
    assert result.exit_code == 0
    assert all(c.isprintable() or c in "\t\n" for c in result.stdout + result.stderr)
    assert {len(row) for row in result.rows if row[0] == "dropped"} == {4}
    shown, status = terminal("convert", path, str(tmp_path / "z\x1b[2J"), "--rename", "a=b")
    assert status == 0
    assert all(c.isprintable() or c == "\n" for c in plain(shown))
    assert max(map(len, plain(shown).splitlines())) <= 80
    assert "and 10 more" in plain(shown)


def test_only_what_is_trusted_is_converted(run, npz, target, tmp_path):
    (tmp_path / "policy.toml").write_text(
        '[signers.us]\npublic_key = "key.pub"\n[[rules]]\npattern = "*"\nsigners = ["us"]\n'
    )
    generate_key(str(tmp_path / "key"))
    options = [npz, target, "--trust", str(tmp_path / "policy.toml"), "--json"]
    refused = run("convert", *options)
    assert (refused.exit_code, refused.document["error"]["rule"]) == (1, "signature-missing")
    sign(npz, load_private_key(str(tmp_path / "key")))
    assert run("convert", *options).exit_code == 0
    with open(npz, "r+b") as file:
        file.write(b"PK\x03\x05")
    refused = run("convert", *options, "--force")
    assert (refused.exit_code, refused.document["error"]["rule"]) == (1, "digest-mismatch")


# --- progress


class Screen:
    def __init__(self, *, tty):
        self.tty = tty

    def isatty(self):
        return self.tty


@pytest.mark.parametrize(("tty", "size"), [(True, 10), (False, 1 << 40)])
def test_little_work_and_pipes_are_not_watched(monkeypatch, tty, size):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(sys, "stderr", Screen(tty=tty))
    monkeypatch.setattr("safeweights.cli.terminal.progress", never)
    with watching.watched("reading", size) as advance:
        advance(size)


def test_the_progress_of_a_conversion_reaches_its_end(monkeypatch, npz, target):
    seen = []

    @contextmanager
    def watched(what, size):
        seen.append(size)
        yield seen.append

    monkeypatch.setattr(watching, "watched", watched)
    with watching.watched_writing("converting") as progress:
        safeweights.convert(npz, target, progress=progress)
    written = sum(array.nbytes for array in ARRAYS.values())
    assert seen[0] == written == seen[-1]


def test_files_are_weighed_before_they_are_read(monkeypatch, tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(bytes(10))
    (tmp_path / "inner" / "b").write_bytes(bytes(5))
    (tmp_path / "gone").symlink_to("nowhere")
    seen = []

    @contextmanager
    def watched(what, size):
        seen.append(size)
        yield seen.append

    monkeypatch.setattr(watching, "watched", watched)
    with watching.watched_files("x", [str(tmp_path), str(tmp_path / "a"), "missing"]):
        pass
    assert seen == [25]


# --- other commands on other formats


def test_show_ls_and_get(run, npz):
    shown = run("show", npz, "--json").document
    assert (shown["format"], shown["total"]["tensors"], shown["files"]) == ("npz", 3, [])
    assert run("ls", npz, "step").rows == [["step", "I64", "[]", "8"]]
    assert run("get", npz, "layers.0.weight[1, 1:3]").rows == [["5.0", "6.0"]]


def test_check_reports_every_call(run, checkpoint, evil):
    result = run("check", checkpoint, evil, "--json")
    good, bad = result.document["results"]
    assert (result.exit_code, good["status"], bad["status"]) == (1, "ok", "bad")
    calls = [each for each in good["findings"] if each["rule"] == "tensor-call"]
    rebuilt = next(each for each in calls if "_rebuild_tensor_v2` 2 times" in each["message"])
    assert rebuilt["offset"]
    dangerous = [each for each in bad["findings"] if each["rule"] == "dangerous-call"]
    assert len(dangerous) == 1
    assert "system` ('touch " in dangerous[0]["message"]


COMPRESSORS = {
    "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zlib": zlib.compress,
}  # fmt: skip


def torch_file(value, *, legacy=False):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@pytest.mark.parametrize("codec", COMPRESSORS)
@pytest.mark.parametrize(
    "content",
    [
        safeweights.numpy.save(ARRAYS),
        torch_file({"w": torch.ones(3)}),
        torch_file({"w": torch.ones(3)}, legacy=True),
        b"(the text) of some file",
        b"",
    ],
    ids=["safetensors", "torch", "torch-legacy", "text", "empty"],
)
def test_what_is_compressed_and_no_pickle_is_to_be_decompressed_first(
    run, tmp_path, target, codec, content
):
    path = tmp_path / "file"
    path.write_bytes(COMPRESSORS[codec](content))
    words = f"{codec}-compressed: decompress it first"
    if codec == "zlib":  # its two bytes at the beginning are too few to be sure
        words = "a zlib stream, which can hold anything: decompress it"
    checked = run("check", str(path), "--json")
    (result,) = checked.document["results"]
    assert (checked.exit_code, result["status"], result["formats"]) == (
        3,
        "unreadable",
        ["compressed"],
    )
    assert any(words in each["message"] for each in result["findings"])
    assert "foreign-format" not in {each["rule"] for each in result["findings"]}
    converted = run("convert", str(path), target)
    results = [converted]
    if path.stat().st_size > 8:  # 8 bytes may be a safetensors file that was cut
        results.append(run("show", str(path)))
    for result in results:
        assert result.exit_code == 1
        assert f" {codec} stream" in result.stderr
        assert "decompress it, then check it" in result.stderr


@pytest.mark.parametrize("codec", COMPRESSORS)
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_compressed_pickle_is_what_joblib_writes(run, tmp_path, target, codec, protocol):
    array = np.random.default_rng(0).random(
        200_000
    )  # bzip2 tells nothing before the end of a block
    path = tmp_path / "file"
    path.write_bytes(COMPRESSORS[codec](pickle.dumps({"w": array}, protocol)))
    assert run("check", str(path)).exit_code == 0
    assert run("convert", str(path), target).exit_code == 0
    assert np.array_equal(loaded(target)["w"], array)


@pytest.mark.parametrize("codec", COMPRESSORS)
@pytest.mark.parametrize("kind", [0, 2, 5, "torch"])
def test_a_hostile_pickle_is_found_in_what_is_compressed(run, tmp_path, codec, kind):
    hostile = Evil(str(tmp_path / "executed"))
    content = torch_file(hostile) if kind == "torch" else pickle.dumps(hostile, kind)
    path = tmp_path / "file"
    path.write_bytes(COMPRESSORS[codec](content))
    checked = run("check", str(path), "--json")
    rules = {each["rule"] for each in checked.document["results"][0]["findings"]}
    assert (checked.exit_code, "dangerous-call" in rules) == (1, True)


def test_an_archive_that_is_no_checkpoint_is_named(run, tmp_path, model, target):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.write(model, "model.safetensors")
    with tarfile.open(tmp_path / "b", "w") as archive:
        archive.add(model, "model.safetensors")
    for name, kind in (("a", "zip"), ("b", "tar")):
        result = run("convert", str(tmp_path / name), target)
        assert result.exit_code == 1
        assert f"a {kind} archive" in result.stderr
        assert "extract it" in result.stderr
        assert "safeweights convert" not in result.stderr


def test_a_note_on_mapping_is_for_files_that_are_mapped(run, checkpoint, model):
    assert run("check", checkpoint, "--json").document["notes"] == []
    assert "truncate" in run("check", checkpoint, model, "--json").document["notes"][0]


# --- SARIF


def test_sarif(run, checkpoint, evil, model, tmp_path):
    missing = str(tmp_path / "missing")
    result = run("check", checkpoint, evil, model, missing, "--sarif")
    assert result.exit_code == 1
    assert result.stdout.isascii()
    log = json.loads(result.stdout)
    assert log["version"] == "2.1.0"
    (found,) = log["runs"]
    rules = [rule["id"] for rule in found["tool"]["driver"]["rules"]]
    assert found["invocations"] == [{"executionSuccessful": False}]
    for each in found["results"]:
        assert rules[each["ruleIndex"]] == each["ruleId"]
        assert each["level"] in {"error", "warning", "note"}
        assert each["message"]["text"].isprintable()
    (call,) = [each for each in found["results"] if each["ruleId"] == "dangerous-call"]
    (place,) = call["locations"]
    physical = place["physicalLocation"]
    assert physical["artifactLocation"]["uri"] == f"file://{evil}"
    assert physical["region"]["byteOffset"] == call["properties"]["offset"] > 0


def test_sarif_names_members_and_escapes_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b!\x1b.pt").write_bytes(b"")
    finding = {
        "level": "error", "rule": "r", "message": "m\x1b", "file": "a b!\x1b.pt!x/data.pkl",
        "tensor": None, "offset": 3,
    }  # fmt: skip
    log = sarif.log([{"status": "bad", "findings": [finding]}])
    (result,) = log["runs"][0]["results"]
    (place,) = result["locations"]
    assert place["physicalLocation"] == {"artifactLocation": {"uri": "a%20b%21%1B.pt"}}
    assert place["logicalLocations"] == [{"fullyQualifiedName": "a b!\\x1b.pt!x/data.pkl"}]
    assert result["message"]["text"] == "m\\x1b"


def test_sarif_and_json_exclude_each_other(run, model):
    assert run("check", model, "--sarif", "--json").exit_code == 2


# --- what is imported


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    heavy = {
        "rich", "numpy", "torch", "cryptography", "safeweights.conversion.converting",
        "safeweights.trust.policies",
    }  # fmt: skip
    code = (
        "import sys; sys.argv = ['safeweights', sys.argv[1], '--help']\n"
        "from safeweights.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command], capture_output=True, text=True, check=True
    )
    assert not heavy & set(done.stderr.split())


def test_names_of_a_module_around_the_model(run, tmp_path, target):
    state = {"module._orig_mod.a": torch.ones(2), "module._orig_mod.b": torch.ones(3)}
    torch.save(state, tmp_path / "x.pt")
    words = "all names begin with `module._orig_mod.`, which DataParallel and torch.compile add"
    done = run("convert", str(tmp_path / "x.pt"), target, "--json")
    assert f"safeweights: {words}" in done.stderr
    assert "(--strip-prefix module._orig_mod.) removes it" in done.document["hints"][0]
    for path in (str(tmp_path / "x.pt"), target):
        (finding,) = (
            f
            for f in run("check", path, "--json").document["results"][0]["findings"]
            if f["rule"] == "wrapped"
        )
        assert words in finding["message"]
        assert words in run("show", path, "--json").document["model"]["problems"][0]
        assert f"problem\t{words}" in run("show", path).stdout
    again = run(
        "convert", target, target, "--force", "--strip-prefix", "module._orig_mod.", "--json"
    )
    assert again.document["hints"] == []
    assert list(safeweights.open(target)) == ["a", "b"]


def test_the_files_of_a_training_run_that_are_left_out_are_listed(run, tmp_path):
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    for name in (
        "pytorch_model.bin",
        "optimizer.pt",
        "rng_state.pth",
        "training_args.bin",
        ".hidden.bin",
    ):
        torch.save({"w": torch.ones(1)}, folder / name)
    (folder / "config.json").write_text("{}")
    left_out = [
        str(folder / name) for name in ("optimizer.pt", "rng_state.pth", "training_args.bin")
    ]
    out = str(tmp_path / "out") + "/"
    assert run("convert", str(folder), out, "--json").document["left_out"] == left_out
    record = json.loads(Path(out, "conversion.provenance.json").read_text())
    assert record["left_out"] == [os.path.basename(path) for path in left_out]
    lines = run("convert", str(folder), out, "--force").stdout.splitlines()
    assert lines[-3:] == [f"left-out\t{path}" for path in left_out]
    one = run("convert", str(folder / "optimizer.pt"), str(tmp_path / "o.safetensors"), "--json")
    assert one.document["left_out"] == []


def test_patterns_that_leave_nothing_are_named(run, npz, target):
    result = run("convert", npz, target, "--only", "zz*")
    assert result.exit_code == 1
    assert "there is no tensor to write: see only and skip (`zz*`)" in result.stderr
