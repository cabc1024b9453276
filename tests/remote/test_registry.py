"""Container registries: Debian's docker-registry, and one of our own that lies."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "storage"))

import servers
from store_tests import StoreTests

import safeweights
import safeweights.numpy
from safeweights.checkpoint.sharding import save_sharded
from safeweights.errors import FormatError, UnsupportedError
from safeweights.storage import open_source, place_of
from safeweights.storage.remote.manifests import (
    Layer,
    digest_of,
    manifest_text,
    parse_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bad_server import BadServer, Handler

    from safeweights.storage import Store

pytestmark = pytest.mark.servers
needs_registry = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="needs Debian's package docker-registry"
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def repository(registry: str, request: pytest.FixtureRequest) -> str:
    return f"oci://{registry}/team/m{abs(hash(request.node.nodeid)):x}:v1"


@needs_registry
class TestRegistryStore(StoreTests):
    @pytest.fixture
    def store(self, repository: str) -> Store:
        return place_of(f"{repository}/").store


@needs_registry
def test_a_model_in_a_registry(repository: str) -> None:
    arrays = {f"t{i}": np.full((300, 100), i, "f4") for i in range(9)}
    opened = safeweights.open(safeweights.numpy.save(arrays))
    store = place_of(repository).store
    save_sharded(opened, store, max_shard_size=400_000)
    assert (safeweights.open(repository)["t4"].numpy() == 4).all()
    digest = store.digest  # type: ignore[attr-defined]
    pinned = f"{repository.rpartition(':')[0]}@{digest}"
    shard = f"{pinned}/model-00001-of-00003.safetensors"
    with safeweights.safe_open(shard, "np") as file:
        assert file.get_slice("t1")[2:4].shape == (2, 100)
    with pytest.raises(UnsupportedError, match="cannot change"):
        place_of(f"{pinned}/").store.write("a", [])
    store.write("sub/dir/a.bin", [b"123"])
    assert open_source(f"{repository}/sub/dir/a.bin").read(0, 3) == b"123"
    below = place_of(f"{repository}/sub/").store
    below.write("b.bin", [b"45"])
    assert [entry.name for entry in below.list()] == ["b.bin", "dir/a.bin"]
    assert place_of(f"{pinned}/").store.kind("sub") is None


@needs_registry
def test_a_large_blob_is_uploaded_in_pieces(repository: str) -> None:
    data = bytes(range(256)) * (140 << 10)  # 35 MiB
    store = place_of(f"{repository}/").store
    seen: list[int] = []
    pieces = (data[begin : begin + 5_000_000] for begin in range(0, len(data), 5_000_000))
    store.write("a", pieces, size=len(data), progress=seen.append)
    source = store.open("a")
    assert bytes(source.view(0, source.size)) == data
    assert seen == sorted(seen)
    assert seen[-1] == len(data)


def manifest(**layers: bytes) -> bytes:
    return manifest_text({name: Layer(digest_of(data), len(data)) for name, data in layers.items()})


def serve(server: BadServer, text: bytes, *blobs: bytes) -> str:
    server.files["v2/m/manifests/v1"] = text
    for blob in blobs:
        server.files[f"v2/m/blobs/{digest_of(blob)}"] = blob
    return f"oci://{server.url.removeprefix('http://')}/m:v1"


def test_bytes_that_are_not_those_of_the_manifest(server: BadServer) -> None:
    url = serve(server, manifest(a=b"right", b=b"right"), b"right")
    assert open_source(f"{url}/a").read(0, 5) == b"right"
    for wrong in (b"wrong", b"longer"):
        server.files[f"v2/m/blobs/{digest_of(b'right')}"] = wrong
        with pytest.raises(FormatError, match="other bytes"):
            open_source(f"{url}/a")


def test_a_manifest_that_is_not_the_one_a_digest_names(server: BadServer) -> None:
    text = manifest(a=b"1")
    url = serve(server, text, b"1").removesuffix(":v1")
    server.files[f"v2/m/manifests/{digest_of(text)}"] = text
    assert open_source(f"{url}@{digest_of(text)}/a").size == 1
    server.files[f"v2/m/manifests/{digest_of(text)}"] = manifest(b=b"1")
    with pytest.raises(FormatError, match="digest that names it"):
        open_source(f"{url}@{digest_of(text)}/a")


DIGEST = "sha256:" + "0" * 64


def layer(**changes: Any) -> dict[str, Any]:
    given = {"mediaType": "application/octet-stream", "digest": DIGEST, "size": 1}
    return {**given, "annotations": {"org.cncf.model.filepath": "a"}, **changes}


@pytest.mark.parametrize(
    ("document", "problem"),
    [(b"\xff", "not JSON"), (b"[" * 100_000, "not JSON"), (b"[]", "no layers"), (b"{}", "no layers"),
     ({"layers": {}}, "no layers"), ({"manifests": []}, "no layers"), ({"layers": [1]}, "not an object"),
     ({"layers": [layer(digest="sha512:00")]}, "not SHA-256"),
     ({"layers": [layer(digest=1)]}, "not SHA-256"),
     ({"layers": [layer(size=-1)]}, "without a size"), ({"layers": [layer(size=True)]}, "without a size"),
     ({"layers": [layer(size="1")]}, "without a size"), ({"layers": [layer(mediaType=1)]}, "media type"),
     ({"layers": [layer(annotations=None)]}, "without a file name"),
     ({"layers": [layer(annotations={"org.cncf.model.filepath": "../a"})]}, "part"),
     ({"layers": [layer(annotations={"org.cncf.model.filepath": "/a"})]}, "relative"),
     ({"layers": [layer(annotations={"org.cncf.model.filepath": 1})]}, "without a file name"),
     ({"layers": [layer(), layer()]}, "two layers"),
     ({"layers": [layer(), layer(annotations={"org.cncf.model.filepath": "a/b"})]}, "as a folder"),
     ({"layers": [layer(mediaType="application/vnd.cncf.model.weight.v1.tar+gzip")]}, "archive"),
     ({"layers": [layer(mediaType="application/vnd.oci.image.layer.v1.tar")]}, "archive")],
)  # fmt: skip
def test_manifests_that_are_refused(document: Any, problem: str) -> None:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(FormatError, match=problem) as caught:
        parse_manifest(data, "oci://x/m")
    assert caught.value.rule == "manifest"


def test_a_manifest_is_read_as_it_was_written() -> None:
    files = {"a": Layer(DIGEST, 5), "b/c": Layer(DIGEST, 0)}
    assert parse_manifest(manifest_text(files), "") == files
    assert parse_manifest(manifest_text({}), "") == {}
    assert json.loads(manifest_text({}, subject=(DIGEST, 3)))["subject"]["digest"] == DIGEST


@pytest.mark.parametrize(
    "url",
    ["oci://h/UPPER:v1", "oci://h/m:", "oci://h/:v1", "oci://h/m@sha256:00", "oci://h/m:a b", "oci://h",
     "oci://h/m:v1:v2", "oci://me@h/m:v1", "oci://h/m:v1?x=1"],
)  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(UnsupportedError):
        place_of(url)


def test_a_tag_may_be_left_out() -> None:
    place = place_of("oci://h/team/m")
    assert (place.name, place.kind()) == ("", "folder")
    assert place.store._reference == "latest"  # type: ignore[attr-defined]


# ---- logging in


class Login:
    """A registry that wants a token, which another server gives for a password."""

    def __init__(self, server: BadServer, realm: str | None = None) -> None:
        self.server = server
        self.realm = realm or f"{server.url}/token"
        self.passwords: list[str | None] = []
        server.fault = self.answer

    def answer(self, handler: Handler, number: int) -> bool:
        if handler.path.startswith("/token"):
            self.passwords.append(handler.headers["Authorization"])
            asked = parse_qs(urlsplit(handler.path).query)
            assert asked == {"service": ["r"], "scope": ["repository:m:pull"]}
            handler.reply(200, b'{"token": "t0ken"}')
            return True
        if handler.headers["Authorization"] != "Bearer t0ken":
            challenge = f'Bearer realm="{self.realm}",service="r",scope="repository:m:pull"'
            handler.reply(401, WWW_Authenticate=challenge)
            return True
        return False


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: BadServer) -> Path:
    host = server.url.removeprefix("http://")
    auth = base64.b64encode(b"me:secret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path


def test_a_token_is_got_with_the_password(server: BadServer, docker: Path) -> None:
    url = serve(server, manifest(a=b"1" * 200_000), b"1" * 200_000)
    login = Login(server)
    source = open_source(f"{url}/a")
    assert source.read(150_000, 1) == b"1"
    assert login.passwords == ["Basic " + base64.b64encode(b"me:secret").decode()]
    assert "secret" not in repr(place_of(f"{url}/a"))


def test_without_a_password_a_token_is_asked_for_too(server: BadServer, docker: Path) -> None:
    (docker / "config.json").write_text("{")
    url = serve(server, manifest(a=b"1"), b"1")
    login = Login(server)
    assert open_source(f"{url}/a").size == 1
    assert login.passwords == [None]


@pytest.mark.parametrize(
    "realm",
    ["http://example.org/token", "http://169.254.169.254/", "https://[fe80::1]/", "file:///x", "x"],
)
def test_no_password_goes_to_a_server_that_is_not_safe(
    server: BadServer, docker: Path, realm: str
) -> None:
    url = serve(server, manifest(a=b"1"), b"1")
    Login(server, realm)
    with pytest.raises(OSError, match="token"):
        open_source(f"{url}/a")


def test_a_wrong_password(server: BadServer, docker: Path) -> None:
    url = serve(server, manifest(a=b"1"), b"1")
    server.fault = lambda handler, _: handler.reply(401, WWW_Authenticate="Basic realm=x") or True
    with pytest.raises(PermissionError) as caught:
        open_source(f"{url}/a")
    assert "secret" not in repr(caught.value)


def test_an_upload_is_sent_to_no_other_server(server: BadServer) -> None:
    url = serve(server, manifest())
    server.fault = lambda handler, _: (
        handler.command == "POST" and (handler.reply(202, Location="http://localhost:1/x") or True)
    )
    with pytest.raises(OSError, match="another server"):
        place_of(f"{url}/").store.write("a", [b"1"])
