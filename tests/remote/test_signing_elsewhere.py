"""`digest`, `sign`, `verify` and `admit` of models in stores, without fetching them first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import servers
from click.testing import CliRunner
from policies import signed_by_us

import safeweights
import safeweights.numpy
from safeweights import trust
from safeweights.cli.app import cli
from safeweights.errors import UnsupportedError
from safeweights.storage import place_of
from safeweights.transfer import push

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bad_server import BadServer

pytestmark = pytest.mark.servers
for package in ("obstore", "moto.server", "cryptography"):
    pytest.importorskip(package, reason=f"needs the package {package}")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with an unsigned model in ``m``; the same model in the folder ``m``, beside a key."""
    import boto3

    monkeypatch.chdir(tmp_path)
    for name, value in (
        ("AWS_ENDPOINT_URL", endpoint), ("AWS_ACCESS_KEY_ID", "test"), ("AWS_REGION", "us-east-1"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    name = f"b{abs(hash(str(tmp_path))):x}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id="test", aws_secret_access_key="secret",
    )  # fmt: skip
    client.create_bucket(Bucket=name)
    Path("m").mkdir()
    safeweights.numpy.save_file(
        {f"t{i}": np.full((700, 1000), i, "f4") for i in range(2)}, "m/model.safetensors"
    )
    Path("m/config.json").write_text("{}")
    push("m", f"s3://{name}/m/")
    trust.generate_key("key")
    Path("policy.toml").write_text(signed_by_us("s3://*/m"))
    return f"s3://{name}"


def run(*arguments: str, expect: int = 0) -> dict:
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == expect, result.output
    return json.loads(result.stdout)


def test_the_digest_is_that_of_the_same_files_here(bucket: str) -> None:
    assert run("digest", f"{bucket}/m/")["root"] == run("digest", "m")["root"]
    url = f"{bucket}/m/model.safetensors"
    assert run("digest", url)["root"] == run("digest", "m/model.safetensors")["root"]


def test_a_folder_is_signed_in_its_place_and_admitted_there(bucket: str) -> None:
    assert run("admit", f"{bucket}/m/", "--policy", "policy.toml", expect=1)["warrant"] is None
    here = run("digest", "m")["root"]
    done = run("sign", f"{bucket}/m/", "--key", "key")
    assert done["root"] == here
    assert done["signature"] == f"{bucket}/m/model.sig"
    assert run("verify", f"{bucket}/m/", "--key", "key.pub")["ok"]
    found = run("admit", f"{bucket}/m/", "--policy", "policy.toml", "--warrant", "w.json")
    assert found["decision"]["verdict"] == "allow"
    with safeweights.safe_open(f"{bucket}/m/model.safetensors", "np", trust="w.json") as file:
        assert (file.get_slice("t1")[3, :5] == 1).all()
    assert run("pull", f"{bucket}/m/", "pulled")["files"]
    assert run("verify", "pulled", "--key", "key.pub")["ok"]
    run("sign", f"{bucket}/m/", "--key", "key")  # the same key's is replaced


def test_a_changed_file_is_refused(bucket: str) -> None:
    run("sign", f"{bucket}/m/", "--key", "key")
    place_of(f"{bucket}/m/").folder().write("config.json", [b'{"a": 1}'])
    assert run("admit", f"{bucket}/m/", "--policy", "policy.toml", expect=1)["warrant"] is None
    run("verify", f"{bucket}/m/", "--key", "key.pub", expect=1)


def test_one_file_is_signed_beside_it(bucket: str) -> None:
    url = f"{bucket}/m/model.safetensors"
    assert run("sign", url, "--key", "key")["signature"] == f"{url}.sig"
    assert run("verify", url, "--key", "key.pub")["ok"]
    assert (safeweights.numpy.load_file(url, trust="key.pub")["t1"] == 1).all()


def test_the_file_of_another_program_is_not_replaced(bucket: str) -> None:
    place_of(f"{bucket}/m/").folder().write("model.sig", [b"precious"])
    result = CliRunner().invoke(cli, ["sign", f"{bucket}/m/", "--key", "key"])
    assert result.exit_code == 3
    assert "is not a signature" in result.output
    run("sign", f"{bucket}/m/", "--key", "key", "--force")


def test_a_store_that_is_only_read_says_so_before_anything_is_read(
    server: BadServer, bucket: str
) -> None:
    server.files = {"m.safetensors": Path("m/model.safetensors").read_bytes()}
    url = f"{server.url}/m.safetensors?sig=1"
    with pytest.raises(UnsupportedError, match="only read"):
        trust.sign(url, trust.load_private_key("key"))
    assert len(server.requests) < 6
    done = trust.sign(url, trust.load_private_key("key"), signature="s.sig", trees=False)
    assert done.root == run("digest", "m/model.safetensors", "--no-trees")["root"]
    assert run("verify", url, "--key", "key.pub", "--signature", "s.sig")["ok"]
    assert run("admit", url, "--policy", "policy.toml", expect=1)["decision"]["verdict"] == "refuse"
