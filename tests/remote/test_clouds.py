"""Azure's blobs (Azurite): the rules of all stores."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import sys
import urllib.request
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "storage"))

import servers
from store_tests import StoreTests

from safeweights.storage import place_of
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
