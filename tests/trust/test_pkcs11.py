"""Keys in a hardware module, played by SoftHSM: the command and the Python code of docs/signing.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization

from safeweights.trust import load_public_key, verify

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).parents[2] / "docs" / "signing.md"
LIBRARIES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)
PIN = "4321"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """SoftHSM with a token ``models``, in a folder of its own."""
    found = next((path for path in LIBRARIES if os.path.exists(path)), None)
    if found is None or not shutil.which("pkcs11-tool"):
        pytest.skip("needs the packages softhsm2 and opensc")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path}/tokens\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv("PIN", PIN)
    start = ["softhsm2-util", "--init-token", "--free", "--label", "models"]
    subprocess.run([*start, "--so-pin", PIN, "--pin", PIN], check=True, capture_output=True)
    return found


def tool(library: str, *arguments: str) -> bytes:
    command = ["pkcs11-tool", "--module", library, "--login", "--pin", "env:PIN", *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture
def make_key(library: str, model: Path) -> Callable[[str], None]:
    """Makes the key 01 in the token, and its public half in the file ``hsm.pub`` beside the model."""

    def make(curve: str) -> None:
        tool(library, "--keypairgen", "--key-type", f"EC:{curve}", "--id", "01", "--label", "01")
        der = tool(library, "--read-object", "--type", "pubkey", "--id", "01")
        pem = serialization.load_der_public_key(der).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (model.parent / "hsm.pub").write_bytes(pem)

    return make


def documented(pattern: str) -> str:
    """What the page has between two pieces of text."""
    match = re.search(pattern, PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    return match[1]


# Not secp384r1, whose public keys pkcs11-tool 0.23 cannot read.
@pytest.mark.parametrize("curve", ["prime256v1", "secp521r1"])
def test_the_documented_command(
    library: str, make_key: Callable[[str], None], model: Path, run: Any, curve: str
) -> None:
    make_key(curve)
    command = documented(r'--key-command "(pkcs11-tool [^"]*)"')
    command = command.replace("pkcs11-tool", f"pkcs11-tool --module {library}")
    options = ["--public-key", str(model.parent / "hsm.pub"), "--key-command", command]
    done = run("sign", str(model), *options)
    assert done.exit_code == 0, done.output
    verify(model, load_public_key(model.parent / "hsm.pub"))


def test_the_documented_code(
    library: str, make_key: Callable[[str], None], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pkcs11", reason="needs the package python-pkcs11")
    make_key("prime256v1")
    monkeypatch.chdir(model.parent)
    code = documented(r"```python\n(import pkcs11\n.*?)```")
    exec(compile(code, str(PAGE), "exec"), {"library": library, "pin": PIN})
    verify(model, load_public_key("hsm.pub"))


def test_a_wrong_pin_writes_nothing(
    library: str,
    make_key: Callable[[str], None],
    model: Path,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_key("prime256v1")
    monkeypatch.setenv("PIN", "0000")
    command = f"pkcs11-tool --module {library} --login --pin env:PIN --sign -m ECDSA --id 01"
    public = str(model.parent / "hsm.pub")
    before = sorted(model.rglob("*"))
    done = run("sign", str(model), "--public-key", public, "--key-command", command)
    assert done.exit_code == 3
    assert sorted(model.rglob("*")) == before


@pytest.fixture
def run() -> Callable[..., Any]:
    from click.testing import CliRunner

    from safeweights.cli.app import cli

    return lambda *arguments: CliRunner().invoke(cli, list(arguments))
