"""Every command of the program, given the URL of a model on a web server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click import Context
from click.testing import CliRunner

import safeweights.numpy
from safeweights.cli.app import cli

pytest.importorskip("cryptography", reason="needs the package cryptography")

from safeweights import trust

if TYPE_CHECKING:
    from bad_server import BadServer
    from click.testing import Result

ARRAYS = {f"layer.{i}": np.full((100, 64), i, "f4") for i in range(12)}

TAKE_A_URL = {
    "show": ["URL"], "ls": ["URL"], "check": ["URL"], "get": ["URL", "layer.3"], "stats": ["URL"],
    "view": ["URL", "--export", "view.html"], "convert": ["URL", "out.safetensors"],
    "edit": ["URL", "edited.safetensors", "--drop", "layer.3"], "diff": ["URL", "URL"], "repair": ["URL"],
    "delta": ["make", "URL", "URL", "delta"], "hash": ["URL"], "digest": ["URL"], "bom": ["URL"],
    "encrypt": ["URL", "-R", "me.pub", "-o", "x.age"], "decrypt": ["URL.age", "-i", "me", "-o", "plain"],
    "verify": ["URL", "--key", "key.pub"], "admit": ["URL", "--policy", "policy.toml"],
    "pull": ["URL", "pulled"], "policy": ["explain", "URL", "--policy", "policy.toml"],
    "batch": ["check", "URL"],
}  # fmt: skip
"""A command for each name that the program has, and how to give it a URL."""

WRITE = {
    "sign": ["URL", "--key", "key"], "push": ["m.safetensors", "URL"],
    "rekey": ["URL.key.age", "-i", "me", "--rotate"],
}  # fmt: skip
"""Those that write where the URL is."""


@pytest.fixture
def signed_here(server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a model that is signed, and encrypted beside it; keys are in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.safetensors").write_bytes(safeweights.numpy.save(ARRAYS))
    trust.generate_key("key")
    trust.sign("m.safetensors", trust.load_private_key("key"))
    identity = trust.generate_identity()
    trust.write_identity("me", identity)
    (tmp_path / "me.pub").write_text(f"{identity.recipient.label}\n")
    (tmp_path / "policy.toml").write_text(
        '[signers.us]\npublic_key = "key.pub"\n[[rules]]\npattern = "http://*"\nsigners = ["us"]\n'
    )
    trust.encrypt("m.safetensors", identity.recipient.label)
    for path in tmp_path.glob("m.*"):
        server.files[path.name] = path.read_bytes()
    server.files["m.safetensors.key.age"] = b"not read"
    return f"{server.url}/m.safetensors"


def run(url: str, command: str, arguments: list[str]) -> Result:
    return CliRunner().invoke(cli, [command, *(each.replace("URL", url) for each in arguments)])


@pytest.mark.parametrize("command", TAKE_A_URL)
def test_a_command_takes_a_url(server: BadServer, signed_here: str, command: str) -> None:
    result = run(signed_here, command, TAKE_A_URL[command])
    assert result.exit_code == 0, result.output
    assert server.requests


@pytest.mark.parametrize("command", WRITE)
def test_a_command_that_writes_says_that_web_servers_are_only_read(
    signed_here: str, command: str
) -> None:
    result = run(signed_here, command, WRITE[command])
    assert result.exit_code == 1
    assert "files on web servers are only read; write to a bucket" in result.stderr


def test_these_are_all_commands() -> None:
    assert {*TAKE_A_URL, *WRITE, "keygen"} == {*cli.list_commands(Context(cli))}


def test_what_came_from_a_url_is_the_same(signed_here: str) -> None:
    for command in ("convert", "decrypt"):
        assert run(signed_here, command, TAKE_A_URL[command]).exit_code == 0
    here = Path("m.safetensors").read_bytes()
    assert Path("plain").read_bytes() == here
    assert len(Path("out.safetensors").read_bytes()) == len(here)
