"""`safeweights sign --check`, for a pre-commit hook."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="signatures need the extra [trust]")

import safeweights.numpy
from safeweights import trust


@pytest.fixture
def signed(run, tmp_path, monkeypatch):
    """A folder of two models, of which `a` is signed, and a key."""
    monkeypatch.chdir(tmp_path)
    trust.generate_key("me")
    for name in "ab":
        os.makedirs(f"models/{name}/sub")
        safeweights.numpy.save_file({"w": np.ones(4, "f4")}, f"models/{name}/model.safetensors")
        Path(f"models/{name}/sub/config.json").write_text("{}")
    assert run("sign", "models/a", "--key", "me").exit_code == 0
    return ["--check", "--public-key", "me.pub"]


def test_a_hook_says_which_models_are_not_signed_as_they_are(run, signed):
    result = run("sign", *signed, "models/a", "models/b")
    assert result.exit_code == 1
    assert [row[:2] for row in result.rows] == [["ok", "models/a"], ["missing", "models/b"]]
    assert "sign it again: safeweights sign models/b --key KEY" in result.stderr
    assert "models/a" not in result.stderr
    assert not os.path.exists("models/b/model.sig")
    assert run("sign", *signed, "models/a").exit_code == 0


def test_a_file_stands_for_the_signed_folder_that_it_is_in(run, signed):
    files = ["models/a/model.safetensors", "models/a/sub/config.json", "models/a/model.sig"]
    result = run("sign", *signed, *files)
    assert (result.exit_code, [row[:2] for row in result.rows]) == (0, [["ok", "models/a"]])
    Path("models/a/sub/config.json").write_text("{ }")
    result = run("sign", *signed, files[0], "--json")
    assert result.exit_code == 1
    (found,) = result.document["results"]
    assert (found["path"], found["status"]) == ("models/a", "invalid")
    assert "config.json" in found["message"]
    run("sign", "models/a", "--key", "me")
    assert run("sign", *signed, files[0]).exit_code == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda: os.remove("models/a/sub/config.json"),
        lambda: Path("models/a/new.json").write_text("{}"),
        lambda: Path("models/a/model.sig").write_text("{}"),
        lambda: (trust.generate_key("other"), os.replace("other.pub", "me.pub")),
    ],
    ids=["file gone", "file added", "no signature", "another key"],
)
def test_what_makes_a_signature_invalid(run, terminal, plain, signed, change):
    change()
    result = run("sign", *signed, "models/a")
    assert result.exit_code == 1
    assert result.rows[0][0] == "invalid"
    shown, status = terminal("sign", *signed, "models/a")
    assert status == 1
    assert plain(shown).startswith("invalid  models/a\n")


def test_a_single_file_has_its_own_signature(run, signed):
    path = "models/b/model.safetensors"
    assert run("sign", path, "--key", "me").exit_code == 0
    assert run("sign", *signed, path).rows == [["ok", path, ""]]
    safeweights.numpy.save_file({"w": np.zeros(4, "f4")}, path)
    assert run("sign", *signed, path).exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--check", "models/a"],
        ["--check", "models/a", "--public-key", "me.pub", "--key", "me"],
        ["--check", "models/a", "--public-key", "me.pub", "--ignore", "x"],
        ["models/a", "models/b", "--key", "me"],
        [],
    ],
)
def test_what_does_not_go_together(run, signed, arguments):
    assert run("sign", *arguments).exit_code == 2
    assert run("sign", *signed, "models/none").exit_code == 3
