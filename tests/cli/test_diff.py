"""`safeweights diff`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import safeweights.numpy


@pytest.fixture
def pair(tmp_path):
    weights = {
        "same": np.ones(3, "f4"), "old": np.arange(5.0), "moved": np.arange(3),
        "changed": np.float32([1, 2]), "type": np.ones(2, "f4"), "gone": np.zeros((2, 2), "f2"),
    }  # fmt: skip
    before, after = str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")
    safeweights.numpy.save_file(weights, before, {"k": "1", "x": "y"})
    weights["new`|name"] = weights.pop("old")
    weights["changed"] = np.float32([1, 2.5])
    weights["type"] = np.ones(2, "f2")
    weights["more"] = weights.pop("gone")[:1]
    safeweights.numpy.save_file(weights, after, {"k": "2", "z": ""})
    return before, after


def test_same(run, pair):
    result = run("diff", pair[0], pair[0])
    assert result.exit_code == 0
    assert result.rows == []
    assert run("diff", *pair, "--only", "same", "--no-metadata").exit_code == 0
    assert run("diff", *pair, "--only", "same").exit_code == 1


def test_piped(run, pair):
    result = run("diff", *pair, "--values")
    assert result.exit_code == 1
    assert result.rows == [
        ["added", "more", "F16", "[1, 2]"],
        ["removed", "gone", "F16", "[2, 2]"],
        ["renamed", "old", "new`|name"],
        ["retyped", "type", "F32", "[2]", "F16", "[2]", "0", "0", "0", "0"],
        ["changed", "changed", "F32", "[2]", "F32", "[2]", "1", "0.5", "0.25", "0.224"],
        ["metadata", "x", "y", ""],
        ["metadata", "z", "", ""],
        ["metadata", "k", "1", "2"],
    ]
    assert ["changed", "changed", "F32", "[2]", "F32", "[2]"] in run("diff", *pair).rows
    result = run("diff", *pair, "--atol", "0.5", "--only", "changed", "--no-metadata")
    assert result.exit_code == 0
    assert result.rows[0][0] == "close"


def test_json(run, pair):
    document = run("diff", *pair, "--values", "--json").document
    assert not document["same"]
    assert document["changed"][0]["values"]["max"] == 0.5


def test_markdown(run, pair):
    text = run("diff", *pair, "--values", "--markdown").stdout
    assert text.startswith("**Weights differ**: 1 added, 1 removed, 1 renamed, ")
    assert "| changed | `changed` | F32 [2] | 1 | 0.5 | 0.25 | 0.224 |" in text
    assert "`old -> new\u2018\u2223name`" in text
    assert "| `k` | `1` | `2` |" in text
    text = run("diff", pair[0], pair[0], "--markdown").stdout
    assert text == "**No difference**: 6 tensors unchanged.\n"


def test_long_tables_end(run, tmp_path):
    many = {f"t{n}": np.ones(1, "u1") for n in range(300)}
    safeweights.numpy.save_file(many, tmp_path / "a")
    safeweights.numpy.save_file({}, tmp_path / "b")
    text = run("diff", str(tmp_path / "a"), str(tmp_path / "b"), "--markdown").stdout
    assert "and 100 more." in text
    assert text.count("| removed |") == 200


def test_usage(run, pair, quantised):
    assert run("diff", pair[0]).exit_code == 2
    assert run("diff", *pair, "--json", "--markdown").exit_code == 2
    assert run("diff", *pair, "--rtol", "-1").exit_code in (1, 2)
    assert run("diff", pair[0], f"{pair[1]}x").exit_code == 3
    result = run("diff", quantised, quantised)
    assert result.exit_code == 3, "what cannot be read is not known to be the same"
    assert result.rows[0][0] == "unreadable"


def test_on_a_terminal(terminal, plain, pair):
    shown, status = terminal("diff", *pair, "--values", width=100)
    assert status == 1
    text = plain(shown)
    assert "old -> new`|name" in text
    assert "difference of values" in text
    assert "metadata k: 1 -> 2" in text
    assert "1 added, 1 removed, 1 renamed" in text
    assert "3 metadata entries, 2 tensors unchanged" in " ".join(text.split())


def test_metadata_that_is_only_in_one_file(terminal, plain, run, tmp_path):
    for name, metadata in (("a", {"k": "1"}), ("b", None)):
        safeweights.numpy.save_file({"w": np.ones(1)}, tmp_path / name, metadata)
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    text = plain(terminal("diff", *paths)[0])
    assert "metadata k: 1 -> (none)" in text
    assert "1 metadata entry, 1 tensor unchanged" in text
    assert "metadata k: (none) -> 1" in plain(terminal("diff", *reversed(paths))[0])
    assert run("diff", *paths).rows == [["metadata", "k", "1", ""]]


def test_as_a_driver_of_git(pair, tmp_path):
    """What docs/editing.md says to put into git's configuration."""
    page = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "editing.md")
    with open(page, encoding="utf-8") as file:
        text = file.read()
    block = text.split("```ini\n")[1].split("```")[0]
    home, repository = tmp_path / "home", tmp_path / "repository"
    (home / "bin").mkdir(parents=True)
    program = home / "bin" / "safeweights"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m safeweights "$@"\n')
    program.chmod(0o755)
    (home / ".gitconfig").write_text(block + "[user]\n  name = a\n  email = a@b\n")
    source = os.path.dirname(os.path.dirname(safeweights.__file__))
    environment = {
        **os.environ, "HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": source,
    }  # fmt: skip
    repository.mkdir()

    def git(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=repository, env=environment, capture_output=True, text=True,
            check=True,
        ).stdout  # fmt: skip

    git("init", "-q")
    (repository / ".gitattributes").write_text("*.safetensors diff=safetensors\n")
    target = repository / "model.safetensors"
    for path in pair:
        shutil.copy(path, target)
        git("add", ".")
        git("commit", "-q", "-m", "x")
    shown = git("diff", "--ext-diff", "HEAD~1")
    assert "**Weights differ**" in shown
    assert "`changed`" in shown
