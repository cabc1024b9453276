"""Buckets: moto's S3 server, through obstore."""

from __future__ import annotations

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "storage"))

import servers
from store_tests import StoreTests, contents

import safeweights
import safeweights.numpy
from safeweights.checkpoint.sharding import save_sharded
from safeweights.errors import ChangedError, UnsupportedError
from safeweights.storage import place_of
from safeweights.storage.remote import buckets
from safeweights.storage.remote.buckets import BucketStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safeweights.storage import Store

pytestmark = pytest.mark.servers
pytest.importorskip("obstore", reason="needs the package obstore")
pytest.importorskip("moto.server", reason="needs the package moto[server,s3]")
SECRET = "a-very-secret-key"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URL of an empty bucket."""
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    name = f"b{abs(hash(request.node.nodeid)):x}"
    client(endpoint).create_bucket(Bucket=name)
    assert boto3
    return f"s3://{name}"


def client(endpoint: str):
    import boto3

    return boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id="test", aws_secret_access_key=SECRET,
    )  # fmt: skip


def uploads(endpoint: str, url: str) -> list[str]:
    """The uploads of several parts that are neither complete nor aborted."""
    found = client(endpoint).list_multipart_uploads(Bucket=url.split("/")[2])
    return [each["Key"] for each in found.get("Uploads", ())]


class TestBucketStore(StoreTests):
    @pytest.fixture
    def store(self, s3: str) -> Store:
        return place_of(f"{s3}/some/prefix/").store


def test_an_encrypted_model_in_a_bucket_is_read_in_part(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography", reason="needs the package cryptography")
    from safeweights import trust

    size, chunk = 3 << 20, 65552
    (tmp_path / "m").mkdir()
    tensors = {f"w{n}": np.full(size, n, np.uint8) for n in range(4)}
    safeweights.numpy.save_file(tensors, tmp_path / "m" / "model.safetensors")
    identity = trust.generate_identity()
    path = Path(safeweights.encrypt(tmp_path / "m", identity.recipient.label).path)
    store = place_of(f"{s3}/m/").store
    for each in path.iterdir():
        store.write(each.name, [each.read_bytes()])
    got = 0
    real = BucketStore._get

    def counting(self: BucketStore, name: str, begin: int, end: int, etag: str | None) -> Any:
        nonlocal got
        got += end - begin
        return real(self, name, begin, end, etag)

    monkeypatch.setattr(BucketStore, "_get", counting)
    with safeweights.safe_open(f"{s3}/m/model.safetensors", "np", identity=identity) as file:
        assert (file.get_tensor("w1") == 1).all()
    # Of each file the first 100,000 bytes come with what the bucket knows of it.
    assert got <= size / 65536 * chunk + 3 * chunk + 2 * 100_000


def test_a_model_in_a_bucket(s3: str) -> None:
    arrays = {f"t{i}": np.full((300, 100), i, "f4") for i in range(9)}
    opened = safeweights.open(safeweights.numpy.save(arrays))
    save_sharded(opened, place_of(f"{s3}/m/").store, max_shard_size=400_000)
    for url in (f"{s3}/m/", f"{s3}/m", f"{s3}/m/model.safetensors.index.json"):
        assert (safeweights.open(url)["t4"].numpy() == 4).all()
    first = f"{s3}/m/model-00001-of-00003.safetensors"
    assert (safeweights.numpy.load_file(first)["t2"] == 2).all()
    with safeweights.safe_open(first, "np") as file:
        assert file.get_slice("t1")[2:4].shape == (2, 100)


def test_a_large_file_is_an_upload_of_several_parts(
    s3: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = place_of(f"{s3}/m/").store
    data = bytes(range(256)) * (80 << 10)  # 20 MiB
    seen: list[str] = []

    def pieces() -> Iterator[bytes]:
        for begin in range(0, len(data), 1 << 20):
            yield data[begin : begin + (1 << 20)]
        seen.extend(uploads(endpoint, s3))
        assert [*store.list()] == []

    store.write("a", pieces(), size=len(data))
    assert seen == ["m/a"]
    assert uploads(endpoint, s3) == []
    source = store.open("a")
    assert "-" in (source.version or "")  # S3's tag of an upload in parts
    assert bytes(source.view(0, source.size)) == data
    store.write("a", [b"new"])
    with pytest.raises(ChangedError):
        source.view(1 << 20, 1000)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_no_upload_is_left_behind(s3: str, endpoint: str, error: type[BaseException]) -> None:
    store = place_of(f"{s3}/m/").store

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(1 << 20)
        raise error

    with pytest.raises(error), store.commit() as commit:
        commit.write("whole", [bytes(1 << 20)] * 20)
        commit.write("cut", pieces())
    assert uploads(endpoint, s3) == []
    assert [*store.list()] == []


def test_parts_grow_with_the_file() -> None:
    for size, part in ((1, 8 << 20), (70 << 30, 8 << 20), (5 << 40, -(-(5 << 40) // 9000))):
        upload = buckets._Upload(buckets.BucketStore("s3://b", None, ""), "a", size)
        assert upload._part == part
        assert part * 10_000 >= size


def test_a_commit_that_fails_while_it_is_published_leaves_no_mixture(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = place_of(f"{s3}/m/").store
    for name in ("shard-1.bin", "shard-2.bin", "shard-3.bin", "index"):
        store.write(name, [b"old"])
    put = buckets.BucketStore._put
    calls: list[str] = []

    def failing(self: buckets.BucketStore, name: str, *arguments, **options) -> None:
        calls.append(name)
        if len(calls) == fail_at:
            raise OSError("no network")
        put(self, name, *arguments, **options)

    monkeypatch.setattr(buckets.BucketStore, "_put", failing)
    shards = ("shard-1.bin", "shard-2.bin", "shard-3.bin")
    for fail_at in (1, 2, 3, 4):
        calls.clear()
        with pytest.raises(OSError, match="no network"), store.commit() as commit:
            for name in (*shards, "index"):
                commit.write(name, [b"new"])
        found = contents(store)
        if fail_at == 1:  # nothing was replaced: all is as it was
            assert [*found.values()] == [b"old"] * 4
        else:
            assert "index" not in found
            assert not {*shards} <= {*found} or {found[name] for name in shards} == {b"new"}
            monkeypatch.undo()
            for name in (*shards, "index"):
                store.write(name, [b"old"])
            monkeypatch.setattr(buckets.BucketStore, "_put", failing)


class _Pages(BaseHTTPRequestHandler):
    """A bucket of ten pages of a thousand objects each; ``server.asked`` has the pages asked for."""

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        page = int(query.get("continuation-token", ["0"])[0])
        self.server.asked.add(page)  # type: ignore[attr-defined]
        more = f"<NextContinuationToken>{page + 1}</NextContinuationToken>" if page < 9 else ""
        objects = "".join(
            f"<Contents><Key>m/{number:05}</Key><LastModified>2026-01-01T00:00:00Z</LastModified>"
            "<Size>1</Size></Contents>"
            for number in range(1000 * page, 1000 * (page + 1))
        )
        answer = f"<ListBucketResult>{objects}{more}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_listing_asks_for_a_page_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "test")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    asked: set[int] = set()  # a request that is lost is repeated
    server.asked = asked  # type: ignore[attr-defined]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        listing = place_of("s3://pages/m/").store.list()
        assert next(listing).name == "00000"
        assert asked == {0}
        assert sum(1 for _ in islice(listing, 1500)) == 1500
        assert asked == {0, 1}
        assert sum(1 for _ in listing) == 8499
        assert asked == {*range(10)}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_no_error_has_a_credential(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place_of(f"{s3}/m/").store
    for call in (
        lambda: store.open("missing"),
        lambda: place_of("s3://no-such-bucket/a").store.open("a"),
    ):
        with pytest.raises(OSError) as caught:
            call()
        text = repr(caught.value) + repr(caught.value.__cause__) + str(caught.value)
        assert not [word for word in (SECRET, "AWS", "Signature") if word in text]
    assert SECRET not in repr(store)


def test_reading_back_a_large_upload_is_refused(s3: str) -> None:
    store = place_of(f"{s3}/m/").store
    with store.commit() as commit:
        commit.write("a", [bytes(1 << 20)] * 10)
        with pytest.raises(UnsupportedError, match="before it is complete"):
            commit.open("a")


def test_a_forked_process_is_told_instead_of_waiting_for_ever(s3: str) -> None:
    code = f"""
import os, signal
from safeweights.errors import UnsupportedError
from safeweights.storage import place_of
place = place_of("{s3}/m/a")
child = os.fork()
if child == 0:  # nothing was asked yet
    signal.alarm(20)
    os._exit(place.store.kind("a") is not None)
assert os.waitpid(child, 0)[1] == 0
place.store.write("a", [b"1"])
child = os.fork()
if child == 0:
    signal.alarm(20)
    for call in (lambda: place.store.open("a"), lambda: place_of("{s3}/m/b").store.kind("b")):
        try:
            call()
        except UnsupportedError as error:
            assert "fork" in str(error)
        else:
            os._exit(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
