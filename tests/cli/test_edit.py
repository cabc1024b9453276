"""`safeweights edit`."""

from __future__ import annotations

import os

import pytest

import safeweights


@pytest.fixture
def weights(tmp_path, write):
    path = tmp_path / "m.safetensors"
    write(path, [("module.a", "F32", (4,)), ("module.b", "F16", (2, 3))], {"c": "module.a"})
    return str(path)


def test_piped(run, weights, tmp_path):
    out = str(tmp_path / "o.safetensors")
    result = run(
        "edit", weights, out, "--strip-prefix", "module.", "--dtype", "F16=F32",
        "--metadata", "k=v=w", "--drop", "c",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.rows == [
        ["source", weights, "safetensors", "2", str(os.path.getsize(weights))],
        ["output", out, "safetensors", "2", str(os.path.getsize(out)), "written"],
        ["renamed", "module.a", "a"],
        ["renamed", "module.b", "b"],
        ["metadata", "k", "v=w"],
        ["cast", "b", "F16", "F32"],
        ["dropped", "c"],
    ]
    assert safeweights.open(out).metadata == {"k": "v=w"}


def test_plan_and_json(run, weights, tmp_path):
    result = run("edit", weights, f"{tmp_path}/new/", "--plan", "--split", "20", "--json")
    assert result.exit_code == 0
    assert result.document["dry_run"]
    assert [each["format"] for each in result.document["outputs"]] == [
        "safetensors", "safetensors", "index",
    ]  # fmt: skip
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_in_place(run, weights):
    result = run("edit", weights, "--in-place", "--rename", "module.a=module.z")
    assert result.rows[1][-1] == "patched"
    assert "module.z" in safeweights.open(weights)
    result = run("edit", weights, "--in-place", "--rename-re", r"^module\.(.)=x\1", "--untie", "c")
    assert ["untied", "c"] in result.rows
    assert ["note", "`m.safetensors` is written anew: its data changes"] in result.rows


def test_usage(run, weights, tmp_path):
    out = str(tmp_path / "o.safetensors")
    for wrong in (
        (),
        (out, "--in-place"),
        (out, "--rename", "a"),
        (out, "--rename", "a=b", "--rename", "a=c"),
        (out, "--rename-re", "a(=b"),
        (out, "--merge", "--split", "5GB"),
        (out, "--align", "7"),
    ):
        assert run("edit", weights, *wrong).exit_code == 2, wrong
    for refused in (("--drop", "zz*"), ("--rename", "a=b"), ("--dtype", "I8")):
        result = run("edit", weights, out, *refused, "--json")
        assert result.exit_code in (1, 2), refused
        assert not os.path.exists(out)
    assert run("edit", weights, out).exit_code == 0
    assert run("edit", weights, out).exit_code == 3  # it exists
    assert run("edit", weights, out, "--force").exit_code == 0


def test_key_maps_are_listed(run):
    result = run("edit", "--list-maps")
    assert result.exit_code == 0
    assert {"torch-compile", "lora-sdxl:kohya-to-diffusers"} <= {row[0] for row in result.rows}


def test_on_a_terminal(terminal, plain, weights, tmp_path):
    shown, status = terminal(
        "edit", weights, str(tmp_path / "o.safetensors"), "--plan", "--strip-prefix", "module.",
        "--dtype", "F16=F32", "--untie", "c", width=100,
    )  # fmt: skip
    assert status == 0
    text = " ".join(plain(shown).split())
    assert "would be written" in text
    assert "module.a -> a" in text
    assert "b: F16 -> F32" in text
    assert "nothing was written (--plan)" in text


def test_what_is_set_removed_or_added_is_told_on_a_terminal(terminal, plain, write, tmp_path):
    paths = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    write(paths[0], [("w", "F32", (4,))], {"format": "pt"})
    write(paths[1], [("x", "F32", (4,))])
    options = ["--metadata", "author=me", "--unset", "format", "--add", paths[1]]
    text = plain(terminal("edit", paths[0], paths[2], *options, width=300)[0])
    words = " ".join(text.split())
    assert f"added (1) x from {paths[1]} metadata (1) author = me" in words
    assert "unset (1) format: as asked" in words


def test_digest_over_the_data_only(run, weights, tmp_path):
    import hashlib

    with open(weights, "rb") as file:
        data = file.read()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert run("hash", "--data-only", weights).rows == [[digest, "data-only", weights]]
    run("edit", weights, "--in-place", "--add-prefix", "x.", "--metadata", f"k={'v' * 500}")
    document = run("hash", "--data-only", weights, "--json").document
    assert document["data_only"]
    assert document["files"][0]["sha256"] == digest, "names do not count"
    assert run("hash", "--data-only", str(tmp_path)).rows == [[digest, "data-only", weights]]
    assert run("hash", "--data-only", weights, "--tensors").exit_code == 2
    (tmp_path / "bad.safetensors").write_bytes(b"junk")
    assert run("hash", "--data-only", str(tmp_path)).exit_code == 1
