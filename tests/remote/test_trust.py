"""Trust in what is elsewhere: signatures, block trees and policies over the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from policies import signed_by_us

import safeweights
import safeweights.numpy
from safeweights import trust
from safeweights.cli.app import cli
from safeweights.errors import SafetensorError

if TYPE_CHECKING:
    from bad_server import BadServer

pytest.importorskip("cryptography", reason="needs the package cryptography")


@pytest.fixture
def signed(server: BadServer, tmp_path: Path) -> Path:
    """A folder with a key; the server has the signed model in ``m/``."""
    model = tmp_path / "m"
    model.mkdir()
    arrays = {"big": np.arange(3_000_000, dtype="f4").reshape(3000, 1000), "b": np.ones(3)}
    safeweights.numpy.save_file(arrays, model / "model.safetensors")
    (model / "config.json").write_text("{}")
    trust.generate_key(str(tmp_path / "key"))
    trust.sign(str(model), trust.load_private_key(str(tmp_path / "key")))
    publish(server, model)
    for pattern in ("*", "http://127.0.0.1*", "hf://org/*"):
        name = "policy.toml" if pattern == "*" else f"{pattern[:2]}.toml"
        (tmp_path / name).write_text(signed_by_us(pattern))
    return tmp_path


def publish(server: BadServer, model: Path) -> None:
    server.files.clear()
    for path in model.rglob("*"):
        if path.is_file():
            server.files[f"{model.name}/{path.relative_to(model)}"] = path.read_bytes()


@pytest.mark.parametrize("what", ["policy.toml", "key.pub", "ht.toml"])
def test_a_verified_row_costs_its_blocks(server: BadServer, signed: Path, what: str) -> None:
    url = f"{server.url}/m/model.safetensors"
    with safeweights.safe_open(url, "np", trust=str(signed / what)) as file:
        assert file.get_slice("big")[2999:].tolist() == [list(range(2_999_000, 3_000_000))]
    ranges = [
        fields["Range"] for _, path, fields in server.requests if path.endswith(".safetensors")
    ]
    bounds = [part.removeprefix("bytes=").split("-") for part in ranges[1:]]
    fetched = sum(int(end) + 1 - int(begin) for begin, end in bounds)
    assert fetched <= 3 << 20
    assert safeweights.numpy.load_file(url, trust=str(signed / what))["b"].tolist() == [1, 1, 1]


def test_changed_bytes_are_refused(server: BadServer, signed: Path) -> None:
    data = bytearray(server.files["m/model.safetensors"])
    data[-100_000] ^= 1
    server.files["m/model.safetensors"] = bytes(data)
    url = f"{server.url}/m/model.safetensors"
    opened = safeweights.open(url, trust=str(signed / "policy.toml"))
    with pytest.raises(SafetensorError, match="not what was signed"):
        opened["big"].view()


@pytest.mark.parametrize("missing", ["m/model.sig", "m/config.json"])
def test_what_the_signature_lists_must_be_there(
    server: BadServer, signed: Path, missing: str
) -> None:
    [signature] = [name for name in server.files if name.endswith(".sig")]
    del server.files[signature if missing.endswith(".sig") else missing]
    with pytest.raises(SafetensorError):
        safeweights.open(f"{server.url}/m/model.safetensors", trust=str(signed / "policy.toml"))


def test_a_rule_for_other_places_does_not_apply(server: BadServer, signed: Path) -> None:
    with pytest.raises(SafetensorError, match="no rule"):
        safeweights.open(f"{server.url}/m/model.safetensors", trust=str(signed / "hf.toml"))


def test_another_spelling_of_a_url_escapes_no_rule(server: BadServer, signed: Path) -> None:
    del server.files["m/model.sig"]
    url = f"{server.url}/m/model.safetensors".replace("127.0.0.1", "localhost")
    policy = signed / "two.toml"
    lax = '\n[[rules]]\npattern = "*"\nlevel = "none"\n'
    policy.write_text(signed_by_us(f"{url.rpartition('/')[0]}/*") + lax)
    for each in (
        url,
        url.replace("localhost", "LocalHost"),
        url.replace("http", "HTTP"),
        url.replace("/m/", "/%6d/"),
    ):
        with pytest.raises(SafetensorError, match="refused by the policy"):
            safeweights.numpy.load_file(each, trust=str(policy))
        assert trust.admit(each, str(policy)).decision.verdict == "refuse"


def test_verify_and_hash_take_urls(server: BadServer, signed: Path) -> None:
    url = f"{server.url}/m/model.safetensors"
    key = str(signed / "key.pub")
    for arguments in (["verify", url, "--key", key], ["hash", url]):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, (arguments, result.stderr)
    server.files["m/model.safetensors"] = server.files["m/model.safetensors"][::-1]
    assert CliRunner().invoke(cli, ["verify", url, "--key", key]).exit_code == 1


def test_whom_to_trust_comes_over_no_network(server: BadServer, signed: Path) -> None:
    model = str(signed / "m" / "model.safetensors")
    for name in ("policy.toml", "key.pub"):
        server.files[name] = (signed / name).read_bytes()
        with pytest.raises(SafetensorError, match="this machine only"):
            safeweights.open(model, trust=f"{server.url}/{name}")
    (signed / "far.toml").write_text(signed_by_us().replace("key.pub", f"{server.url}/key.pub"))
    with pytest.raises((SafetensorError, OSError)):
        safeweights.open(model, trust=str(signed / "far.toml"))
    assert server.requests == []


def test_a_line_of_a_file_of_digests_asks_no_other_machine(
    server: BadServer, signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(signed)
    (signed / "sums").write_text(f"{'0' * 64}  {server.url}/m/model.safetensors\n")
    result = CliRunner().invoke(cli, ["hash", "--check", "sums"])
    assert result.exit_code != 0
    assert "missing" in result.stdout
    assert server.requests == []


def test_a_whole_model_is_admitted_after_it_was_pulled(server: BadServer, signed: Path) -> None:
    policy = str(signed / "policy.toml")
    result = CliRunner().invoke(cli, ["admit", f"{server.url}/m/", "--policy", policy])
    assert result.exit_code != 0
    assert "pull" in result.stderr


def test_a_signed_open_asks_for_each_file_once(server: BadServer, signed: Path) -> None:
    """The answer to the first request for a file says whether there is one, and has its first bytes."""
    url = f"{server.url}/m/model.safetensors"
    safeweights.open(url, trust=str(signed / "key.pub"))
    asked = [path for _, path, fields in server.requests if "If-Match" not in fields]
    assert asked == [
        "/m/model.safetensors", "/m/model.sig", "/m/model.safetensors.swtree", "/m/config.json",
    ]  # fmt: skip


def test_an_unsigned_open_asks_for_each_signature_once(server: BadServer, signed: Path) -> None:
    del server.files["m/model.sig"]
    url = f"{server.url}/m/model.safetensors"
    with pytest.raises(SafetensorError, match="signature"):
        safeweights.open(url, trust=str(signed / "key.pub"))
    asked = [path for _, path, _ in server.requests if "sig" in path]
    assert asked == [
        "/m/model.sig", "/m/model.oms.sig", "/m/model.safetensors.sig", "/m/model.safetensors.oms.sig",
    ]  # fmt: skip


def test_a_signature_that_is_long_is_read(server: BadServer, signed: Path) -> None:
    """One that does not come whole with the answer that says that it is there."""
    for number in range(1000):
        (signed / "m" / f"{number}-{'x' * 100}.txt").write_text("")
    trust.sign(str(signed / "m"), trust.load_private_key(str(signed / "key")), force=True)
    publish(server, signed / "m")
    assert len(server.files["m/model.sig"]) > 1 << 16
    report = trust.verify(
        f"{server.url}/m/model.safetensors", trust.load_public_key(str(signed / "key.pub"))
    )
    assert [*report.files] == ["model.safetensors"]
