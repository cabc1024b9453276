"""The Hugging Face Hub: huggingface_hub's own client against a stand-in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from bad_server import BadServer
from fake_hub import FakeHub

import safeweights
import safeweights.numpy
from safeweights.errors import ChangedError, UnsupportedError
from safeweights.storage import open_source, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.servers
pytest.importorskip("huggingface_hub", reason="needs the package huggingface_hub")
TOKEN = "hf_averysecrettoken"


@pytest.fixture
def hub(server: BadServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    # The client reads these when it is imported.
    constants = pytest.importorskip("huggingface_hub.constants")
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with BadServer("localhost") as cdn:
        hub = FakeHub(server, cdn)
        hub.token = TOKEN
        yield hub


def shards(number: int) -> dict[str, bytes]:
    names = [f"model-{i + 1:05}-of-{number:05}.safetensors" for i in range(number)]
    files = {
        name: safeweights.numpy.save({f"t{i}": np.full(1000, i, "f4")})
        for i, name in enumerate(names)
    }
    index = {"metadata": {}, "weight_map": {f"t{i}": name for i, name in enumerate(names)}}
    return {
        **files,
        "model.safetensors.index.json": json.dumps(index).encode(),
        "config.json": b"{}",
    }


def requests(hub: FakeHub) -> int:
    """How many there were for files; the client asks other things when it is used first."""
    asked = [path for _, path, _ in hub.hub.requests if "/resolve/" in path or "/models/" in path]
    return len(asked) + len(hub.cdn.requests) + questions(hub)


def questions(hub: FakeHub) -> int:
    """How often the Hub was asked where objects are."""
    return sum(path.endswith("/objects/batch") for _, path, _ in hub.hub.requests)


def test_a_file_is_opened_by_two_requests(hub: FakeHub) -> None:
    data = safeweights.numpy.save({"a": np.arange(100_000, dtype="f4")})
    commit = hub.commit("org/m", {"model.safetensors": data})
    with safeweights.safe_open("hf://org/m/model.safetensors", "np") as file:
        assert file.keys() == ["a"]
        assert requests(hub) == 2
        assert file.get_slice("a")[50_000:50_002].tolist() == [50_000, 50_001]
    assert requests(hub) == 3
    source = open_source(f"hf://org/m@{commit}/model.safetensors")
    assert source.version == commit
    assert bytes(source.view(0, source.size)) == data


def test_a_folder_of_shards(hub: FakeHub) -> None:
    hub.commit("org/m", {f"sub/{name}": data for name, data in shards(5).items()})
    for url in ("hf://org/m/sub/", "hf://org/m/sub", "hf://org/m/sub/model.safetensors.index.json"):
        assert safeweights.open(url)["t3"].numpy()[0] == 3
    hub.commit("org/whole", shards(2))
    assert len(safeweights.open("hf://org/whole")) == 2
    store = place_of("hf://org/m").store
    assert [entry.kind for entry in store.list(recursive=False)] == ["folder"]
    assert store.kind("sub/config.json") == "file"
    assert len([*store.list("sub")]) == 7


@pytest.mark.parametrize(("number", "needed"), [(60, 63), (101, 105)])
def test_a_request_for_each_shard_and_few_more(hub: FakeHub, number: int, needed: int) -> None:
    """The list of files, the index, and the addresses of up to a hundred shards at a time."""
    hub.commit("org/m", shards(number))
    assert len(safeweights.open("hf://org/m")) == number
    assert requests(hub) == needed


@pytest.mark.parametrize("why", ["absent", "fields", "malformed", "refused"])
def test_addresses_that_the_hub_does_not_tell(hub: FakeHub, why: str) -> None:
    hub.commit("org/m", shards(3))
    if why == "absent":
        hub.lfs_api = False
    elif why == "fields":
        hub.lfs_fields = {"Authorization": "another"}
    elif why == "malformed":
        hub.lfs_answer = [{"oid": 3}, {}, 7]
    else:
        hub.lfs_answer = [{"oid": "0" * 64, "error": {"code": 404}}]
    assert len(safeweights.open("hf://org/m")) == 3
    assert len([path for _, path, _ in hub.hub.requests if "/resolve/" in path]) >= 3


@pytest.mark.parametrize("target", ["http://169.254.169.254/x", "file:///etc/passwd", "//u:p@x/y"])
def test_an_address_that_no_redirect_may_lead_to(hub: FakeHub, target: str) -> None:
    hub.commit("org/m", shards(2))
    hub.lfs_target = target
    with pytest.raises(OSError, match="redirects to"):
        safeweights.open("hf://org/m")


def test_the_token_goes_to_the_hub_only(hub: FakeHub) -> None:
    hub.commit("org/m", {"model.safetensors": safeweights.numpy.save({"a": np.zeros(9999)})})
    source = open_source("hf://org/m/model.safetensors")
    source.view(0, source.size)
    asked = [fields for _, path, fields in hub.hub.requests if "/resolve/" in path]
    assert all({"authorization", "Authorization"} & {*fields} for fields in asked)
    assert hub.cdn.requests
    assert not [fields for _, _, fields in hub.cdn.requests if "Authorization" in fields]
    assert TOKEN not in repr(place_of("hf://org/m/model.safetensors"))


def test_a_store_keeps_to_its_commit(hub: FakeHub) -> None:
    first = hub.commit("org/m", {"a.bin": b"old" * 999, "b.bin": b"old"})
    store = place_of("hf://org/m@main/").store
    source = store.open("a.bin")
    second = hub.commit("org/m", {"a.bin": b"new" * 999, "b.bin": b"new"})
    assert source.read(2000, 3) == b"dol"
    assert store.open("b.bin").read(0, 3) == b"old"
    newer = place_of("hf://org/m@main/").store
    assert newer.open("b.bin").version == second
    with pytest.raises(ChangedError):
        place_of("hf://org/m@main/").store.open("b.bin", version=first)
    assert place_of(f"hf://org/m@{first}/").store.open("b.bin").read(0, 3) == b"old"


@pytest.mark.parametrize("listed", [True, False])
def test_a_link_that_expires_is_asked_for_again(hub: FakeHub, listed: bool) -> None:
    data = bytes(range(256)) * 8000
    hub.commit("org/m", {"a.bin": data, "b.bin": data[1:]})
    store = place_of("hf://org/m/").store
    if listed:
        [*store.list()]
    source = store.open("a.bin")
    hub.signature = "sig=2"
    assert store.open("b.bin").read(0, 3) == data[1:4]
    assert source.read(1_000_000, 9) == data[1_000_000:1_000_009]
    assert source.read(1_500_000, 9) == data[1_500_000:1_500_009]


def test_a_revision_with_a_slash(hub: FakeHub) -> None:
    hub.commit("org/m", {"a.bin": b"123"}, branch="refs/pr/1")
    assert open_source("hf://org/m@refs%2Fpr%2F1/a.bin").size == 3


def test_the_digest_of_a_large_file_is_known(hub: FakeHub) -> None:
    import hashlib

    hub.commit("org/m", {"a.bin": bytes(5000)})
    for url in ("hf://org/m/a.bin", "hf://org/m/"):
        place = place_of(url)
        [*place.store.list()] if not place.name else None
        source = place.store.open("a.bin")
        assert source.sha256 == hashlib.sha256(bytes(5000)).hexdigest()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("url", "kind"),
    [("hf://org/none/a.bin", FileNotFoundError), ("hf://org/m@none/a.bin", FileNotFoundError),
     ("hf://org/m/none.safetensors", FileNotFoundError), ("hf://org/none", FileNotFoundError),
     ("hf://org/", UnsupportedError)],
)  # fmt: skip
def test_what_is_missing(hub: FakeHub, url: str, kind: type[Exception]) -> None:
    hub.commit("org/m", {"a.bin": b"123"})
    with pytest.raises(kind) as caught:
        safeweights.open(url)
    assert TOKEN not in repr(caught.value)


def test_a_wrong_token(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("org/m", {"a.bin": b"123"})
    hub.token = "another"
    for call in (lambda: open_source("hf://org/m/a.bin"), lambda: safeweights.open("hf://org/m")):
        with pytest.raises(PermissionError) as caught:
            call()
        assert TOKEN not in repr(caught.value)
        assert caught.value.__cause__ is None


def test_nothing_is_written(hub: FakeHub) -> None:
    with pytest.raises(UnsupportedError, match="only read"):
        place_of("hf://org/m/").store.write("a", [])
