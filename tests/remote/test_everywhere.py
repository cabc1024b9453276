"""Whole models pushed to, pulled from and converted between real stores; and processes killed meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import servers
from bad_server import BadServer
from click.testing import CliRunner
from fake_hub import FakeHub
from kills import kill_again_and_again, two_models
from policies import signed_by_us

import safeweights
import safeweights.numpy
from safeweights import trust
from safeweights.checkpoint.sharding import save_sharded
from safeweights.cli.app import cli
from safeweights.errors import ChangedError
from safeweights.storage import LocalStore, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.servers
for package in ("obstore", "moto.server", "huggingface_hub", "cryptography"):
    pytest.importorskip(package, reason=f"needs the package {package}")

KILLS = int(os.environ.get("SAFEWEIGHTS_KILLS", "20"))

AWS = {
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed model of several shards; beside it a policy."""
    root = tmp_path_factory.mktemp("model")
    folder = root / "m"
    arrays = {f"t{i}": np.full((300, 1000), i, "f4") for i in range(12)}
    opened = safeweights.open(safeweights.numpy.save(arrays))
    save_sharded(opened, LocalStore(str(folder)), max_shard_size=4_000_000)
    (folder / "config.json").write_text("{}")
    trust.generate_key(str(root / "key"))
    trust.sign(str(folder), trust.load_private_key(str(root / "key")))
    (root / "policy.toml").write_text(signed_by_us())
    return folder


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    name = f"e{abs(hash(request.node.nodeid)):x}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id="test", aws_secret_access_key="secret",
    )  # fmt: skip
    client.create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[str]:
    if shutil.which("docker-registry") is None:
        pytest.skip("needs Debian's package docker-registry")
    with servers.registry(tmp_path) as host:
        yield f"oci://{host}/team/m:v1"


@pytest.fixture
def hub(server: BadServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    constants = pytest.importorskip("huggingface_hub.constants")
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with BadServer("localhost") as cdn:
        fake = FakeHub(server, cdn)
        fake.commit("org/m", {path.name: path.read_bytes() for path in model.iterdir()})
        yield "hf://org/m@main"


@pytest.fixture
def web(tmp_path: Path, model: Path) -> Iterator[str]:
    if shutil.which("nginx") is None and not os.path.exists("/usr/sbin/nginx"):
        pytest.skip("needs Debian's package nginx")
    shutil.copytree(model, tmp_path / "www" / "m")
    with servers.nginx(tmp_path) as url:
        yield f"{url}/m/"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(*arguments: str) -> dict:
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def check_pull(url: str, model: Path, tmp_path: Path) -> None:
    policy = str(model.parent / "policy.toml")
    done = run("pull", url, str(tmp_path / "pulled"), "--policy", policy, "--name", "m")
    assert done["admitted"] is True
    assert contents(tmp_path / "pulled") == contents(model)
    opened = safeweights.open(url, trust=policy)
    assert (opened["t7"].numpy() == 7).all()
    assert run("show", url)["total"]["tensors"] == 12
    assert run("ls", url)["tensors"]
    assert run("verify", url, "--key", str(model.parent / "key.pub"))


def test_a_bucket(s3: str, model: Path, tmp_path: Path) -> None:
    run("push", str(model), f"{s3}/models/m/")
    check_pull(f"{s3}/models/m/", model, tmp_path)
    assert run("check", f"{s3}/models/m/")["ok"]


def test_a_distributed_checkpoint_in_a_bucket(s3: str, tmp_path: Path) -> None:
    """What two ranks saved is one model there, too; only what is asked for is fetched."""
    folder = Path(__file__).parents[2] / "scripts" / "two-ranks"
    store = place_of(f"{s3}/ckpt/").folder()
    for file in folder.iterdir():
        store.write(file.name, [file.read_bytes()])
    opened = safeweights.open(f"{s3}/ckpt/")
    assert opened.format == "torch-dcp"
    assert opened["model.embed.weight"][4:6].ravel().tolist() == list(range(16, 24))
    run("convert", f"{s3}/ckpt/", str(tmp_path / "one.safetensors"), "--only", "model.*")
    whole = safeweights.numpy.load_file(tmp_path / "one.safetensors")
    assert whole["model.proj.weight"].ravel().tolist() == list(range(24))


def test_a_registry(oci: str, model: Path, tmp_path: Path) -> None:
    done = run("push", str(model), oci)
    check_pull(oci, model, tmp_path)
    # The signature is found by the digest of the manifest, under the tag that stands in for referrers.
    host, _, rest = oci.removeprefix("oci://").partition("/")
    name = rest.rpartition(":")[0]
    tag = done["manifest"].replace(":", "-")
    request = urllib.request.Request(
        f"http://{host}/v2/{name}/manifests/{tag}",
        headers={"Accept": "application/vnd.oci.image.index.v1+json"},
    )
    with urllib.request.urlopen(request) as answer:
        [entry] = json.load(answer)["manifests"]
    assert entry["digest"] == done["signature"]
    store = place_of(f"oci://{host}/{name}@{done['signature']}/").store
    source = store.open("model.sig")
    assert source.read(0, source.size) == (model / "model.sig").read_bytes()


def test_the_hub(hub: str, model: Path, tmp_path: Path) -> None:
    check_pull(hub, model, tmp_path)


def test_a_web_server(web: str, model: Path, tmp_path: Path) -> None:
    policy = str(model.parent / "policy.toml")
    run("pull", web, str(tmp_path / "pulled"), "--policy", policy, "--name", "m")
    assert contents(tmp_path / "pulled") == contents(model)
    assert (safeweights.open(web, trust=policy)["t7"].numpy() == 7).all()


def test_conversion_from_any_store_to_any_store(
    s3: str, oci: str, model: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", w=np.arange(3_000_000, dtype="f4"))
    for source, target in (
        (str(tmp_path / "a.npz"), f"{s3}/a.safetensors"),
        (f"{s3}/a.safetensors", f"{oci}/b.safetensors"),
        (f"{oci}/b.safetensors", f"{tmp_path}/c.safetensors"),
        (f"{oci}/b.safetensors", f"{s3}/folder/"),
    ):
        done = run("convert", source, target)
        digests = {each["sha256"] for each in done["outputs"]}
        assert len(digests) == 1
    url = f"{s3}/folder/b.safetensors"
    assert run("hash", url)["files"][0]["sha256"] in digests
    assert (safeweights.numpy.load_file(url)["w"] == np.arange(3_000_000)).all()


def test_a_model_is_encrypted_from_a_bucket_to_a_bucket(
    s3: str, oci: str, model: Path, tmp_path: Path
) -> None:
    """And to a registry, and back; its key file is changed there. No plaintext is on this machine."""
    paths = {who: str(tmp_path / who) for who in ("me", "you")}
    labels = {}
    for who, path in paths.items():
        identity = trust.generate_identity()
        trust.write_identity(path, identity)
        labels[who] = identity.recipient.label
    run("push", str(model), f"{s3}/m/")
    done = run("encrypt", f"{s3}/m/", "-r", labels["me"], "-o", f"{s3}/secret/")
    assert done["output"] == f"{s3}/secret"
    assert len(done["files"]) == len(contents(model))
    for url in (f"{s3}/secret/", oci):
        if url == oci:
            run("decrypt", f"{s3}/secret/", "-i", paths["me"], "-o", str(tmp_path / "plain"))
            assert contents(tmp_path / "plain") == contents(model)
            run("encrypt", str(model), "-r", labels["me"], "-o", oci)
        done = run("rekey", url, "-i", paths["me"], "--add", labels["you"])
        assert done["added"] == [labels["you"]]
        assert run("ls", url, "-i", paths["you"])["tensors"]
        assert run("bom", url, "-i", paths["you"])["components"]
        with pytest.raises(FileExistsError):
            safeweights.encrypt(f"{s3}/m/", labels["me"], url)
    store = place_of(f"{s3}/secret/").folder()
    assert run("encrypt", f"{s3}/m/", "-r", labels["me"])["output"] == f"{s3}/m.age"
    safeweights.encrypt(f"{s3}/m/", labels["me"], replace=True)
    left = {entry.name for entry in place_of(f"{s3}/m/").folder().list()}
    assert left == {entry.name for entry in store.list()}
    assert run("decrypt", f"{s3}/m.age/", "-i", paths["me"])["output"] == f"{s3}/m"


def test_a_key_file_that_another_writer_replaced_stays(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = trust.generate_identity()
    store = place_of(f"{s3}/m/").folder()
    store.write("model.safetensors", [safeweights.numpy.save({"a": np.ones(3)})])
    safeweights.encrypt(f"{s3}/m/", identity.recipient.label, f"{s3}/secret/")
    secret = place_of(f"{s3}/secret/").folder()
    wrap = type(identity.recipient).wrap

    def meanwhile(*arguments: object) -> object:
        secret.write("model.key.age", [b"another"])
        return wrap(*arguments)

    monkeypatch.setattr(type(identity.recipient), "wrap", meanwhile)
    with pytest.raises(ChangedError):
        trust.rekey(f"{s3}/secret/", identity)
    source = secret.open("model.key.age")
    assert source.read(0, source.size) == b"another"


@pytest.mark.parametrize("kind", ["s3", "oci"])
def test_a_push_that_is_killed_at_any_time_leaves_a_whole_model_or_none(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Two models take turns in one place; what is found there is never made of both."""
    url = request.getfixturevalue(kind) + ("/m/" if kind == "s3" else "")
    models = two_models(tmp_path)
    policy = str(tmp_path / "policy.toml")
    found = kill_again_and_again(
        "push",
        count=KILLS,
        models=[str(model) for model in models.values()],
        url=url,
        policy=policy,
    )
    assert not [each for each in found if each["error"]]
    assert {each["found"] for each in found} <= {"0", "1", "none"}
    assert sum(each["killed"] for each in found) >= KILLS // 10
    run("pull", url, str(tmp_path / "pulled"), "--policy", policy, "--name", "m")
    assert contents(tmp_path / "pulled") == contents(models["0"])
