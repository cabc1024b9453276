"""No command prints, logs or writes what may be a credential in a URL, whether it works or fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

import safeweights.numpy
from safeweights import trust
from safeweights.cli.app import cli

if TYPE_CHECKING:
    from bad_server import BadServer

SECRET = "SeCrEt"
COMMANDS = [
    ["show"], ["ls"], ["check"], ["check", "--format", "github"], ["check", "--sarif"],
    ["get", "URL", "a"], ["get", "URL", "a", "--stats"], ["stats"], ["stats", "--finite"],
    ["convert", "URL", "out.safetensors"], ["convert", "URL", "npz.npz"], ["hash"], ["hash", "--tensors"],
    ["hash", "--data-only"], ["digest"], ["diff", "URL", "URL"], ["diff", "URL", "local.safetensors"],
    ["verify", "--key", "key.pub"], ["verify", "--policy", "policy.toml"], ["sign", "--key", "key"],
    ["admit", "--policy", "policy.toml", "--log", "log.jsonl"],
    ["policy", "explain", "URL", "--policy", "policy.toml"],
    ["pull", "URL", "pulled"], ["pull", "URL", "admitted", "--policy", "policy.toml", "--name", "m"],
    ["push", "local.safetensors", "URL", "--unsigned"],
    ["edit", "URL", "edited.safetensors", "--drop", "a"],
    ["repair", "URL"], ["bom"], ["view", "URL", "--export", "view.html"],
    ["encrypt", "URL", "-R", "me.pub", "-o", "x.age"], ["encrypt", "URL", "-R", "me.pub"],
    ["decrypt", "URL", "-i", "me", "-o", "plain"], ["rekey", "URL", "-i", "me", "--rotate"],
    ["batch", "check", "--resume", "manifest"], ["batch", "hash", "--resume", "manifest2"],
    ["batch", "pull", "--to", "batch", "--junit", "junit.xml", "--report", "report.json"],
]  # fmt: skip
"""Commands; the URL comes last where it is not said where it stands."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("cryptography")
    monkeypatch.chdir(tmp_path)
    safeweights.numpy.save_file(
        {"a": np.arange(6, dtype="f4"), "b": np.ones(3)}, "local.safetensors"
    )
    trust.generate_key("key")
    identity = trust.generate_identity()
    trust.write_identity("me", identity)
    (tmp_path / "me.pub").write_text(f"{identity.recipient.label}\n")
    (tmp_path / "policy.toml").write_text(
        '[signers.us]\npublic_key = "key.pub"\n[[rules]]\npattern = "*"\nsigners = ["us"]\n'
        '[[rules]]\npattern = "http://*"\nsigners = ["us"]\n'
    )
    return tmp_path


@pytest.mark.parametrize("kind", ["works", "missing", "user"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_keeps_them(server: BadServer, here: Path, command: list[str], kind: str) -> None:
    server.files = {"m/model.safetensors": (here / "local.safetensors").read_bytes()}
    url = f"{server.url}/m/model.safetensors?sig={SECRET}"
    if kind == "missing":
        url = f"{server.url}/none.safetensors?sig={SECRET}"
    elif kind == "user":
        url = server.url.replace("://", f"://me:{SECRET}@") + "/m/model.safetensors"
    arguments = [url if each == "URL" else each for each in command]
    arguments += [] if "URL" in command else [url]
    for more in ([], ["--json"]):
        result = CliRunner().invoke(cli, [*arguments, *more], input="")
        assert SECRET not in result.output, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
    for path in here.rglob("*"):
        assert SECRET not in str(path)
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    shutil.rmtree(here)
