"""`safeweights policy`: write a policy, check one, and see which rule applies to a model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import safeweights.numpy
from safeweights.trust import generate_key
from safeweights.trust.policies.starters import STARTERS

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(path, value=0.0, name=WEIGHTS):
    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    safeweights.numpy.save_file({"a": np.full(4, value)}, root / name)
    return root


# --- the command


def test_new_replaces_nothing(run):
    assert run("policy", "new").rows == [["wrote", "policy.toml", "lab"]]
    before = Path("policy.toml").read_bytes()
    assert run("policy", "new").exit_code == 3
    assert Path("policy.toml").read_bytes() == before
    assert run("policy", "new", "-").exit_code == 2
    assert run("policy", "new", "x.toml", "--kind", "other").exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[rules]]\npattern = "*"\nlevle = "none"\n', ["rules[0].levle", "did you mean `level`"]),
        ('[[rules]]\npattern = "./x"\nlevel = "none"\n', ["rules[0].pattern", "can never match"]),
        ('[[rules]]\npattern = "*"\nsigners = ["tema"]\n[signers.team]\npublic_key = "k.pub"\n',
         ["rules[0].signers", "did you mean `team`"]),
        ("mod = 'off'\n", ["mod", "did you mean `mode`"]),
        ('[[rules]]\npattern = "*"\nlevel = "none"\nminimum_release = 3\n',
         ["rules[0].minimum_release", "needs `signers`"]),
        ('[[rules]]\npattern = "*"\nlevel = "none"\nallow = ["/x"]\n',
         ["rules[0].allow[0]", "can never match"]),
        ('[[rules]]\npattern = "*"\nlevel = "none"\ndigests = {"../x" = "00"}\n',
         ["rules[0].digests", "no file of a model has it"]),
    ],
)  # fmt: skip
def test_errors_name_file_field_and_what_was_meant(run, text, said):
    generate_key("k")
    Path("p.toml").write_text(text)
    result = run("policy", "check", "p.toml")
    assert result.exit_code == 1
    for each in [*said, "p.toml"]:
        assert each in result.stderr
    assert run("policy", "check", "p.toml", "--json").document["error"]["message"]


def test_a_key_that_is_missing_cannot_be_read(run):
    Path("p.toml").write_text(STARTERS["lab"])
    result = run("policy", "check", "p.toml")
    assert result.exit_code == 3
    assert "team.pub" in result.stderr


def test_check(run):
    Path("p.toml").write_text(
        '[[rules]]\npattern = "a/*"\nlevel = "none"\n[[rules]]\npattern = "a/b"\nlevel = "none"\n'
        '[[rules]]\npattern = "*"\nlevel = "none"\n[[rules]]\npattern = "c"\nlevel = "none"\n'
    )
    rows = run("policy", "check", "p.toml").rows
    assert rows[0] == ["ok", "p.toml", "enforce", os.getcwd()]
    assert [row[:3] for row in rows[1:]] == [
        ["rule", "1", "a/*"], ["rule", "2", "a/b"], ["rule", "3", "*"], ["rule", "4", "c"],
        ["unreachable", "2"], ["unreachable", "4"],
    ]  # fmt: skip


def test_explain(run):
    Path("p.toml").write_text(
        'lock = "lock.json"\n[[rules]]\npattern = "vendor/*"\nlevel = "none"\n'
        '[[rules]]\npattern = "*"\nlevel = "known"\nfirst_use = true\n'
    )
    make("vendor/m")
    make("m")
    for spelling in ("vendor/m", "./vendor/../vendor/m", f"vendor/m/{WEIGHTS}"):
        found = run("policy", "explain", spelling, "--policy", "p.toml", "--json")
        assert (found.exit_code, found.document["subject"]) == (0, "vendor/m")
        assert found.document["applies"] == 1
        assert found.document["matches"][1] == found.document["path"]
    found = run("policy", "explain", "vendor", "--policy", "p.toml", "--json").document
    assert (found["applies"], found["other_rules"]) == (2, [f"m/{WEIGHTS}"])
    assert run("admit", "m", "--policy", "p.toml").exit_code == 0
    rows = run("policy", "explain", "m", "--policy", "p.toml").rows
    assert ["rule", "1", "vendor/*", "", ""] in rows
    assert ["rule", "2", "*", "m", "applies"] in rows
    assert ["remembered", "known", "", ""] in rows
    Path("p.toml").write_text('[[rules]]\npattern = "vendor/*"\nlevel = "none"\n')
    assert run("policy", "explain", "m", "--policy", "p.toml").exit_code == 1
    named = run("policy", "explain", "m", "--name", "vendor/m", "--policy", "p.toml")
    assert named.exit_code == 0
    assert run("policy", "explain", "..", "--policy", "p.toml").exit_code == 1
    assert run("policy", "explain", "missing", "--policy", "p.toml").exit_code == 3


def test_on_a_terminal(terminal):
    make("evil\x1b[2J")
    Path("p.toml").write_text('[[rules]]\npattern = "*"\nlevel = "none"\n')
    for arguments in (
        ["new", "q.toml"], ["check", "p.toml"], ["explain", "evil\x1b[2J", "--policy", "p.toml"],
    ):  # fmt: skip
        shown, status = terminal("policy", *arguments)
        assert status == 0, shown
        assert "\x1b[2J" not in shown
