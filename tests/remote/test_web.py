"""Files on web servers: right answers, and every wrong one."""

from __future__ import annotations

import errno
import gzip
import json
import random
import socket
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import safeweights
import safeweights.numpy
from safeweights.errors import ChangedError, FormatError, UnsupportedError
from safeweights.storage import open_source, place_of
from safeweights.storage.parallel import CHUNK
from safeweights.storage.remote import connections, exchange, ranges
from safeweights.storage.remote import source as remote_source
from safeweights.storage.remote.exchange import Patience
from safeweights.storage.remote.source import RemoteSource
from safeweights.trust.content.blocktree import TreeBuilder
from safeweights.trust.content.reading import VerifiedSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bad_server import BadServer, Handler

SIZE = 20_000_000
DATA = random.Random(1).randbytes(SIZE)


def model(**more: Any) -> bytes:
    arrays = {f"layer.{i}": np.full((100, 64), i, "f4") for i in range(12)}
    return safeweights.numpy.save({**arrays, **more})


@pytest.fixture
def large(server: BadServer) -> BadServer:
    server.files["a"] = DATA
    return server


def fail_first(count: int, act: Callable[[Handler], object]) -> Callable[[Handler, int], bool]:
    """A fault of the first requests of each range after the first one, which opens the file."""
    seen: dict[str, int] = {}

    def fault(handler: Handler, number: int) -> bool:
        if number == 0:
            return False
        key = handler.headers["Range"]
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > count:
            return False
        act(handler)
        return True

    return fault


# ---- what is asked for, and what comes


def test_opening_takes_one_request_and_reading_fetches_only_what_is_asked_for(
    large: BadServer,
) -> None:
    source = open_source(f"{large.url}/a")
    assert (source.size, source.name) == (SIZE, f"{large.url}/a")
    assert source.read(10, 20) == DATA[10:30]
    assert len(large.requests) == 1
    assert source.read(5_000_000, 2000) == DATA[5_000_000:5_002_000]
    assert source.read(99_990, 20) == DATA[99_990:100_010]
    assert [fields["Range"] for _, _, fields in large.requests[1:]] == [
        "bytes=5000000-5001999", "bytes=100000-100009",
    ]  # fmt: skip
    assert all(fields["Accept-Encoding"] == "identity" for _, _, fields in large.requests)
    assert all(fields["If-Match"] == source.version for _, _, fields in large.requests[1:])


def test_a_large_read_is_divided_among_connections_that_are_kept(large: BadServer) -> None:
    source = open_source(f"{large.url}/a")
    assert bytes(source.view(0, SIZE)) == DATA
    assert bytes(source.view(1, SIZE - 1)) == DATA[1:]
    asked = [fields["Range"] for _, _, fields in large.requests]
    assert len(asked) == 7  # opening, and twice three pieces of 8 MiB


@pytest.mark.parametrize("size", [0, 1, 99_999, 100_000, 100_001])
def test_files_of_any_size(server: BadServer, size: int) -> None:
    server.files["a"] = DATA[:size]
    source = open_source(f"{server.url}/a")
    assert source.size == size
    assert source.read(0, size) == DATA[:size]
    with pytest.raises(EOFError):
        source.read(size, 1)


def test_a_model_is_opened_by_one_request_and_a_row_is_one_more(server: BadServer) -> None:
    server.files["m.safetensors"] = model(big=np.arange(4_000_000, dtype="f4").reshape(1000, 4000))
    with safeweights.safe_open(f"{server.url}/m.safetensors", "np") as file:
        assert len(file.keys()) == 13
        assert len(server.requests) == 1
        row = file.get_slice("big")[700:701]
        assert row.tolist() == [list(range(2_800_000, 2_804_000))]
    [last] = server.requests[1:]
    begin, end = map(int, last[2]["Range"].removeprefix("bytes=").split("-"))
    assert end - begin + 1 == 4000 * 4


def test_a_header_longer_than_the_first_request_takes_a_second_one(server: BadServer) -> None:
    arrays = {f"a.rather.long.name.of.a.tensor.{i:09}": np.zeros(1, "u1") for i in range(3000)}
    server.files["m.safetensors"] = safeweights.numpy.save(arrays)
    assert len(safeweights.open(f"{server.url}/m.safetensors")) == 3000
    assert len(server.requests) == 2


def test_columns_are_fetched_together_with_what_lies_between_them(server: BadServer) -> None:
    array = np.arange(1_000_000, dtype="f4").reshape(1000, 1000)
    server.files["m.safetensors"] = model(big=array)
    with safeweights.safe_open(f"{server.url}/m.safetensors", "np") as file:
        assert (file.get_slice("big")[:, 3:5] == array[:, 3:5]).all()
    assert len(server.requests) <= 4


def test_every_loader_takes_a_url(server: BadServer) -> None:
    server.files["m.safetensors"] = model()
    url = f"{server.url}/m.safetensors"
    assert safeweights.numpy.load_file(url)["layer.3"][0, 0] == 3
    assert len(safeweights.open(url)) == 12
    assert safeweights.check(url)["ok"]


# ---- long requests


class Fetched:
    """A file of a server that takes so many seconds for a request."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.requests: list[tuple[int, int]] = []
        self._clock = 0.0
        monkeypatch.setattr(remote_source.time, "monotonic", lambda: self._clock)
        self.source = RemoteSource("x", size, None, self._fetch, longest=4 * CHUNK)

    def _fetch(self, offset: int, buffer: memoryview) -> None:
        self.requests.append((offset, len(buffer)))
        buffer[:] = bytes(len(buffer))
        self._clock += self.seconds


def test_requests_are_long_while_the_server_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = Fetched(8 * CHUNK, monkeypatch)
    source, memory = fetched.source, memoryview(bytearray(CHUNK))
    assert source.piece == CHUNK
    for seconds, piece in ((0.1, 4), (0.7, 1), (0.4, 4), (9, 1)):
        fetched.seconds = seconds
        source.read_piece(0, memory)
        assert source.piece == piece * CHUNK
    fetched.seconds = 0.01
    source.read_piece(0, memory[:-1])  # too little to tell
    assert source.piece == CHUNK


def test_a_piece_is_one_request_of_the_thread_that_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetched = Fetched(9 * CHUNK, monkeypatch)
    source = fetched.source
    source.read_piece(5, memoryview(bytearray(4 * CHUNK)))
    assert fetched.requests == [(5, 4 * CHUNK)]
    del fetched.requests[:]
    source.threads = 1
    assert len(source.view(0, 9 * CHUNK)) == 9 * CHUNK
    assert fetched.requests == [(0, 4 * CHUNK), (4 * CHUNK, 4 * CHUNK), (8 * CHUNK, CHUNK)]
    del fetched.requests[:]
    source.read_into(0, memoryview(bytearray(4 * CHUNK)))  # by several threads
    assert [length for _, length in fetched.requests] == [CHUNK] * 4


def test_verified_blocks_come_in_long_requests_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = Fetched(12 * CHUNK, monkeypatch)
    builder = TreeBuilder()
    builder.update(bytes(12 * CHUNK))
    source = VerifiedSource(fetched.source, builder.finish())
    assert source.piece == CHUNK
    fetched.source.threads = source.threads = 1
    fetched.source.piece = 4 * CHUNK
    assert not any(source.view(0, 12 * CHUNK))
    assert fetched.requests == [(begin * CHUNK, 4 * CHUNK) for begin in (0, 4, 8)]


# ---- folders


def sharded(server: BadServer, shards: int = 3) -> None:
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        server.files[f"m/{name}"] = safeweights.numpy.save({f"t{number}": np.full(4, number, "f4")})
        weight_map[f"t{number}"] = name
    index = {"metadata": {}, "weight_map": weight_map}
    server.files["m/model.safetensors.index.json"] = json.dumps(index).encode()


@pytest.mark.parametrize("path", ["/m/", "/m/model.safetensors.index.json"])
def test_a_sharded_folder_is_opened_through_its_index(server: BadServer, path: str) -> None:
    sharded(server, 60)
    opened = safeweights.open(server.url + path)
    assert opened["t7"].numpy().tolist() == [7] * 4
    assert len(server.requests) <= 120
    assert len([p for _, p, _ in server.requests if p.endswith(".safetensors")]) == 60


def test_a_shard_that_is_missing(server: BadServer) -> None:
    sharded(server)
    del server.files["m/model-00002-of-00003.safetensors"]
    with pytest.raises(FormatError, match="1 of 3 shards") as caught:
        safeweights.open(f"{server.url}/m/")
    assert caught.value.rule == "missing-shard"


def test_an_index_that_is_replaced_while_its_shards_are_opened(server: BadServer) -> None:
    sharded(server)

    def fault(handler: Handler, number: int) -> bool:
        if handler.name.endswith(".safetensors"):
            server.files["m/model.safetensors.index.json"] += b" "
        return False

    server.fault = fault
    with pytest.raises(ChangedError, match="while it was being opened"):
        safeweights.open(f"{server.url}/m/")


def test_a_folder_without_a_usual_name(server: BadServer) -> None:
    server.files["m/model.safetensors"] = model()
    assert len(safeweights.open(f"{server.url}/m/")) == 12
    with pytest.raises(FormatError, match="does not list folders"):
        safeweights.open(f"{server.url}/x/")
    with pytest.raises(UnsupportedError, match="do not list"):
        place_of(f"{server.url}/m/").store.list()


@pytest.mark.parametrize("page", [True, False])
@pytest.mark.parametrize("command", ["bom", "digest", "hash"])
def test_a_folder_is_never_taken_for_its_page(server: BadServer, command: str, page: bool) -> None:
    from click.testing import CliRunner

    from safeweights.cli.app import cli

    server.files["m/model.safetensors"] = model()
    if page:
        server.files["m"] = server.files["m/"] = b"<html>a listing</html>"
    done = CliRunner().invoke(cli, [command, f"{server.url}/m/"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "web servers do not list folders: name a file or an index" in done.stderr


# ---- what is missing or refused


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, FileNotFoundError), (410, FileNotFoundError), (401, PermissionError),
     (403, PermissionError), (400, OSError), (501, OSError)],
)  # fmt: skip
def test_a_status_becomes_one_error_that_names_the_url(
    server: BadServer, status: int, kind: type[OSError]
) -> None:
    server.fault = lambda handler, _: handler.reply(status, b"secret") or True
    with pytest.raises(kind) as caught:
        open_source(f"{server.url}/a?X-Amz-Signature=secret")
    assert caught.value.filename == f"{server.url}/a"
    assert "secret" not in repr(caught.value)
    assert len(server.requests) == 1


def test_a_store_that_is_only_read_says_so(server: BadServer) -> None:
    store = place_of(f"{server.url}/a").store
    for call in (lambda: store.write("a", [b"1"]), lambda: store.delete("a"), store.commit):
        with pytest.raises(UnsupportedError, match="only read"):
            call()


def test_nobody_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(OSError, match="refused"):
            open_source(f"http://127.0.0.1:{port}/a")


# ---- versions


def replace_after(server: BadServer, new: bytes, **fields: str | None) -> None:
    """The file is another one from the second request on, and the server ignores If-Match."""

    def fault(handler: Handler, number: int) -> bool:
        if number:
            server.files["a"] = new
            handler.reply_range(**fields)
            return True
        return False

    server.fault = fault


def test_a_file_that_is_replaced_is_never_mixed(large: BadServer) -> None:
    source = open_source(f"{large.url}/a")
    large.files["a"] = DATA[::-1]
    with pytest.raises(ChangedError, match="was replaced") as caught:
        source.read(1_000_000, 10)
    assert (caught.value.path, caught.value.offset) == (f"{large.url}/a", 1_000_000)


@pytest.mark.parametrize("etag", ['"another"', 'W/"another"', None, "not quoted"])
def test_a_server_that_ignores_if_match_is_compared(large: BadServer, etag: str | None) -> None:
    source = open_source(f"{large.url}/a")
    replace_after(large, DATA[::-1], ETag=etag)
    with pytest.raises(ChangedError, match="was replaced"):
        source.read(1_000_000, 10)


def test_weak_tags_are_compared_and_never_sent(large: BadServer) -> None:
    tag = ['W/"1"']
    large.fault = lambda handler, _: handler.reply_range(ETag=tag[0]) or True
    source = open_source(f"{large.url}/a")
    assert source.version == 'W/"1"'
    assert source.read(1_000_000, 3) == DATA[1_000_000:1_000_003]
    assert all("If-Match" not in fields for _, _, fields in large.requests)
    tag[0] = 'W/"2"'
    with pytest.raises(ChangedError):
        source.read(1_000_000, 3)


def test_without_tags_the_date_and_the_size_are_compared(large: BadServer) -> None:
    date = [formatdate(1e9, usegmt=True)]
    large.fault = lambda h, _: h.reply_range(ETag=None, Last_Modified=date[0]) or True
    source = open_source(f"{large.url}/a")
    assert source.version == date[0]
    assert source.read(1_000_000, 3) == DATA[1_000_000:1_000_003]
    large.files["a"] = DATA[:-1]
    with pytest.raises(ChangedError, match="size"):
        source.read(1_000_000, 3)
    large.files["a"] = DATA
    date[0] = formatdate(2e9, usegmt=True)
    with pytest.raises(ChangedError):
        source.read(1_000_000, 3)


def test_opening_a_version_again(large: BadServer) -> None:
    store = place_of(f"{large.url}/a").store
    version = store.open("a").version
    assert store.open("a", version=version).size == SIZE
    large.files["a"] = DATA[1:]
    with pytest.raises(ChangedError):
        store.open("a", version=version)


# ---- servers that lie


def lying(**fields: str | None) -> Callable[[Handler, int], bool]:
    def fault(handler: Handler, number: int) -> bool:
        if number:
            handler.reply_range(**fields)
        return bool(number)

    return fault


@pytest.mark.parametrize(
    "content_range",
    [None, "", "bytes 0-9/20000000", "bytes 1000000-1000009/*", "bytes 1000009-1000000/20000000",
     "bytes 1000000-1000010/20000000", "bytes 1000000-1000004/20000000", "items 1-2/3",
     "bytes 1000000-1000009/20000000, bytes 1-2/3", f"bytes 1000000-{'9' * 400}/20000000"],
)  # fmt: skip
def test_a_content_range_that_is_wrong(large: BadServer, content_range: str | None) -> None:
    source = open_source(f"{large.url}/a")
    large.fault = lying(Content_Range=content_range)
    with pytest.raises(OSError, match="byte 1000000") as caught:
        source.read(1_000_000, 10)
    assert caught.value.errno == errno.EIO


def test_a_range_that_the_server_shortens_and_says_so_is_continued(large: BadServer) -> None:
    source = open_source(f"{large.url}/a")

    def fault(handler: Handler, number: int) -> bool:
        begin, end = handler.wanted()
        end = min(end, begin + 4)
        if number == 0:
            return False
        handler.reply_range(DATA[begin:end], Content_Range=f"bytes {begin}-{end - 1}/{SIZE}")
        return True

    large.fault = fault
    assert source.read(1_000_000, 10) == DATA[1_000_000:1_000_010]
    assert len(large.requests) == 4


@pytest.mark.parametrize("length", ["9", "11", "2000"])
def test_a_length_that_is_not_that_of_the_range(large: BadServer, length: str) -> None:
    source = open_source(f"{large.url}/a")
    large.fault = lying(Content_Length=length, Connection="close")
    with pytest.raises(OSError, match="another length"):
        source.read(1_000_000, 10)


def test_a_server_that_ignores_ranges_is_refused_at_once(large: BadServer) -> None:
    large.fault = lambda handler, _: handler.reply(200, handler.data, ETag=handler.etag) or True
    source = open_source(f"{large.url}/a")
    assert source.read(0, 100_000) == DATA[:100_000]
    with pytest.raises(UnsupportedError, match="ignores ranges"):
        source.read(1_000_000, 10)


def test_a_small_file_needs_no_ranges(server: BadServer) -> None:
    server.files["m.safetensors"] = model()[:]
    server.fault = lambda handler, _: handler.reply(200, handler.data) or True
    source = open_source(f"{server.url}/m.safetensors")
    assert source.read(0, 50_000) == server.files["m.safetensors"][:50_000]


@pytest.mark.parametrize("status", [200, 206])
def test_a_file_of_unknown_length(large: BadServer, status: int) -> None:
    def fault(handler: Handler, number: int) -> bool:
        handler.reply(status, b"x" * 10, Content_Length=None, Connection="close")
        handler.close_connection = True
        return True

    large.fault = fault
    with pytest.raises(OSError, match="server"):
        open_source(f"{large.url}/a")


def test_compressed_bytes_are_refused(large: BadServer) -> None:
    def fault(handler: Handler, number: int) -> bool:
        begin, end = handler.wanted()
        handler.reply_range(gzip.compress(DATA[begin:end]), Content_Encoding="gzip")
        return True

    large.fault = fault
    with pytest.raises(OSError, match="compressed"):
        open_source(f"{large.url}/a")


# ---- what may go better the next time


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_statuses_that_are_retried(large: BadServer, status: int) -> None:
    source = open_source(f"{large.url}/a")
    large.fault = fail_first(2, lambda handler: handler.reply(status, Retry_After="0"))
    assert bytes(source.view(0, SIZE)) == DATA
    large.fault = lambda handler, _: handler.reply(status) or True
    with pytest.raises(OSError, match=f"status {status}; gave up after 4 attempts.*byte 1000000"):
        source.read(1_000_000, 10)


def test_opening_is_retried_too(large: BadServer) -> None:
    large.fault = lambda h, number: number < 2 and (h.reply(503) or True)
    assert open_source(f"{large.url}/a").read(0, 9) == DATA[:9]


@pytest.mark.parametrize("value", ["1", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_the_server_says_how_long_to_wait(
    large: BadServer, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(ranges, "pause", waits.append)
    text = value if isinstance(value, str) else value()
    source = open_source(f"{large.url}/a")
    large.fault = fail_first(1, lambda handler: handler.reply(429, Retry_After=text))
    source.read(1_000_000, 10)
    [wait] = waits
    assert 0 < wait <= 2


def test_a_server_that_asks_for_too_long_a_wait(large: BadServer) -> None:
    source = open_source(f"{large.url}/a")
    large.fault = lambda handler, _: handler.reply(503, Retry_After="86400") or True
    with pytest.raises(OSError, match="asks to wait 86400 s"):
        source.read(1_000_000, 10)


def test_waits_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(ranges, "pause", waits.append)
    attempts = ranges.Attempts("x", Patience(attempts=6, backoff=1))
    for _ in range(5):
        attempts.failed(exchange.TransientError("x"), 0)
    assert all(2**n / 2 <= wait <= 2**n for n, wait in enumerate(waits))
    assert len({wait / 2**n for n, wait in enumerate(waits)}) > 1


def cut(handler: Handler, count: int, *, reset: bool) -> None:
    begin, end = handler.wanted()
    handler.send_response_only(206)
    handler.send_header("Content-Length", str(end - begin))
    handler.send_header("Content-Range", f"bytes {begin}-{end - 1}/{SIZE}")
    handler.send_header("ETag", handler.etag)
    handler.end_headers()
    handler.wfile.write(DATA[begin : begin + count])
    handler.wfile.flush()
    if reset:
        handler.reset()
    handler.close_connection = True


@pytest.mark.parametrize("reset", [False, True])
def test_a_body_that_is_cut_is_resumed_where_it_stopped(large: BadServer, reset: bool) -> None:
    source = open_source(f"{large.url}/a")
    cuts = [1_000_000, 70_000, 2_000_000]

    def fault(handler: Handler, number: int) -> bool:
        if number and cuts and handler.wanted()[1] == 8_000_000:
            cut(handler, cuts.pop(), reset=False)
            return True
        return False

    def fault_with_reset(handler: Handler, number: int) -> bool:
        if number and cuts and handler.wanted()[1] == 8_000_000:
            cut(handler, cuts.pop(), reset=True)
            return True
        return False

    large.fault = fault_with_reset if reset else fault
    assert source.read(1_000_000, 7_000_000) == DATA[1_000_000:8_000_000]
    begins = [int(f["Range"].split("=")[1].split("-")[0]) for _, _, f in large.requests[1:]]
    assert begins == sorted(begins)
    if not reset:  # a reset may drop bytes that were on their way
        assert begins == [1_000_000, 3_000_000, 3_070_000, 4_070_000]


def test_a_server_that_always_cuts_is_given_up(large: BadServer) -> None:
    source = open_source(f"{large.url}/a")
    large.fault = lambda handler, _: cut(handler, 3, reset=False) or True
    with pytest.raises(OSError, match=r"gave up after 4 attempts \(at byte 10000"):
        source.read(1_000_000, 7_000_000)


def test_a_file_that_is_replaced_between_two_parts_of_a_resumed_read(large: BadServer) -> None:
    source = open_source(f"{large.url}/a")

    def fault(handler: Handler, number: int) -> bool:
        if number == 1:
            cut(handler, 100_000, reset=False)
            large.files["a"] = DATA[::-1]
        return number == 1

    large.fault = fault
    with pytest.raises(ChangedError) as caught:
        source.read(1_000_000, 7_000_000)
    assert caught.value.offset == 1_100_000


def test_a_server_that_trickles_is_given_up(
    large: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "PATIENCE", Patience(timeout=0.3, attempts=2, backoff=0))
    source = open_source(f"{large.url}/a")

    def fault(handler: Handler, number: int) -> bool:
        begin, end = handler.wanted()
        handler.send_response_only(206)
        handler.send_header("Content-Length", str(end - begin))
        handler.send_header("Content-Range", f"bytes {begin}-{end - 1}/{SIZE}")
        handler.send_header("ETag", handler.etag)
        handler.end_headers()
        for offset in range(begin, begin + 100):
            handler.wfile.write(DATA[offset : offset + 1])
            handler.wfile.flush()
            time.sleep(0.05)
        return True

    large.fault = fault
    with pytest.raises(OSError, match="less than 1000 bytes a second; gave up after 2"):
        source.read(1_000_000, 7_000_000)


def test_a_server_that_trickles_its_fields_is_given_up(
    large: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "PATIENCE", Patience(timeout=0.3, attempts=2, backoff=0))

    def fault(handler: Handler, number: int) -> bool:
        for _ in range(100):
            handler.wfile.write(b"H")
            handler.wfile.flush()
            time.sleep(0.05)
        return True

    large.fault = fault
    with pytest.raises(OSError, match="less than 1000 bytes a second; gave up after 2"):
        open_source(f"{large.url}/a")


def test_a_server_that_says_nothing_is_given_up(
    large: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "PATIENCE", Patience(timeout=1, attempts=2, backoff=0))
    source = open_source(f"{large.url}/a")
    large.fault = lambda handler, _: time.sleep(2) or True
    with pytest.raises(OSError, match="did not answer in time"):
        source.read(1_000_000, 10)


def test_an_idle_connection_that_the_server_closed_costs_no_attempt(large: BadServer) -> None:
    source = open_source(f"{large.url}/a")

    def close_after(handler: Handler, number: int) -> bool:
        handler.reply_range()
        handler.close_connection = True  # without saying so
        return True

    large.fault = close_after
    for begin in range(1_000_000, 1_000_050, 10):
        assert source.read(begin, 10) == DATA[begin : begin + 10]
    assert len(large.requests) == 6


def test_an_answer_that_is_not_http(large: BadServer) -> None:
    source = open_source(f"{large.url}/a")
    large.fault = lambda handler, _: handler.wfile.write(b"SSH-2.0-x\r\n\r\n") or True
    with pytest.raises(OSError, match="does not speak HTTP"):
        source.read(1_000_000, 10)


def raw(head: bytes, body: bytes = b"", *, close: bool = False) -> Callable[[Handler], bool]:
    """Answers with these bytes."""

    def act(handler: Handler) -> bool:
        handler.wfile.write(head.replace(b"\n", b"\r\n") + body)
        handler.close_connection = close
        return True

    return act


def right(handler: Handler) -> bytes:
    """The fields of the right answer."""
    begin, end = handler.wanted()
    return (
        f"Content-Length: {end - begin}\nContent-Range: bytes {begin}-{end - 1}/{SIZE}\n"
        f"ETag: {handler.etag}\n"
    ).encode()


def test_fields_that_are_cut_are_asked_for_again(large: BadServer) -> None:
    """They are not taken for all of the fields: without a length the rest would count as the body."""
    source = open_source(f"{large.url}/a")
    large.fault = fail_first(
        2, lambda h: raw(b"HTTP/1.1 206 Partial Content\n" + right(h)[:-9], close=True)(h)
    )
    assert source.read(1_000_000, 500) == DATA[1_000_000:1_000_500]
    assert len(large.requests) == 4


def test_interim_answers_come_before_the_answer(large: BadServer) -> None:
    source = open_source(f"{large.url}/a")
    early = b"HTTP/1.1 103 Early Hints\nLink: </x>\n\nHTTP/1.1 100 Continue\n\n"
    large.fault = lambda handler, _: raw(
        early + b"HTTP/1.1 206 OK\n" + right(handler) + b"\n", DATA[1_000_000:1_000_500]
    )(handler)
    assert source.read(1_000_000, 500) == DATA[1_000_000:1_000_500]


def test_a_field_may_go_on_in_the_next_line(large: BadServer) -> None:
    source = open_source(f"{large.url}/a")
    large.fault = lambda handler, _: raw(
        b"HTTP/1.1 206 OK\n" + right(handler).replace(b": bytes ", b": bytes\n\t") + b"\n",
        DATA[1_000_000:1_000_500],
    )(handler)
    assert source.read(1_000_000, 500) == DATA[1_000_000:1_000_500]


@pytest.mark.parametrize(
    "fields",
    [b"Content-Length: 499\n", b"Transfer-Encoding: gzip\n", b"Transfer-Encoding: gzip, chunked\n",
     b"no colon\n", b": no name\n", b"A: " + b"a" * 70_000 + b"\n", b"A: a\n" * 200],
)  # fmt: skip
def test_fields_that_are_refused(large: BadServer, fields: bytes) -> None:
    source = open_source(f"{large.url}/a")
    large.fault = lambda handler, _: raw(
        b"HTTP/1.1 206 OK\n" + right(handler) + fields + b"\n", DATA[1_000_000:1_000_500]
    )(handler)
    with pytest.raises(OSError, match="does not speak HTTP"):
        source.read(1_000_000, 500)
    assert len(large.requests) == 3  # the second on a connection that was used before


def test_interim_answers_without_end(large: BadServer) -> None:
    large.fault = lambda handler, _: raw(b"HTTP/1.1 103 Early Hints\n\n" * 1000)(handler)
    with pytest.raises(OSError, match="does not speak HTTP"):
        open_source(f"{large.url}/a")


# ---- redirects


@pytest.fixture
def other(server: BadServer) -> Iterator[BadServer]:
    with type(server)("localhost") as other:
        yield other


def redirect(target: str, status: int = 302) -> Callable[[Handler, int], bool]:
    return lambda handler, _: handler.reply(status, Location=target) or True


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_once_and_remembered(
    large: BadServer, other: BadServer, status: int
) -> None:
    other.files["b"] = DATA
    large.fault = redirect(f"{other.url}/b?sig=secret", status)
    source = open_source(f"{large.url}/a")
    assert source.name == f"{large.url}/a"
    assert bytes(source.view(0, SIZE)) == DATA
    assert (len(large.requests), len(other.requests)) == (1, 4)


def test_credentials_go_to_no_other_host(
    large: BadServer, other: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login me password secret\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    other.files["b"] = DATA
    large.fault = redirect(f"{other.url}/b")
    source = open_source(f"{large.url}/a?sig=secret")
    source.read(1_000_000, 10)
    assert "Authorization" in large.requests[0][2]
    assert large.requests[0][1] == "/a?sig=secret"
    assert all("Authorization" not in fields for _, _, fields in other.requests)
    assert all("secret" not in path for _, path, _ in other.requests)
    assert "secret" not in repr(place_of(f"{large.url}/a?sig=secret"))


def test_a_signed_link_that_expires_is_asked_for_again(large: BadServer, other: BadServer) -> None:
    other.files["b"] = DATA
    large.fault = redirect(f"{other.url}/b?sig=1")
    source = open_source(f"{large.url}/a")
    large.fault = redirect(f"{other.url}/b?sig=2")
    other.fault = lambda handler, _: "sig=1" in handler.path and (handler.reply(403) or True)
    assert bytes(source.view(0, SIZE)) == DATA


@pytest.mark.parametrize(
    ("target", "problem"),
    [("file:///etc/passwd", "other than a web address"),
     ("ftp://127.0.0.1/x", "other than a web address"),
     ("http://169.254.169.254/latest/meta-data/", "address of this machine or network"),
     ("http://[::ffff:169.254.169.254]/", "address of this machine or network"),
     ("http://[fe80::1]/", "address of this machine or network"),
     ("http://[fd00:ec2::254]/", "address of this machine or network"),
     ("http://2852039166/", "address of this machine or network"),
     ("http://0xa9fea9fe/", "address of this machine or network"),
     ("http://0251.0376.0251.0376/", "address of this machine or network"),
     ("http://169.254.43518/", "address of this machine or network"),
     ("http://[::169.254.169.254]/", "address of this machine or network"),
     ("http://[64:ff9b::a9fe:a9fe]/", "address of this machine or network"),
     ("http://[2002:a9fe:a9fe::1]/", "address of this machine or network"),
     ("http://[::ffff:0:a9fe:a9fe]/", "address of this machine or network"),
     ("http://METADATA.google.internal./", "address of this machine or network"),
     ("http://metadata.google.internal/", "address of this machine or network"),
     ("http://0.0.0.0/", "address of this machine or network"),
     ("http://me:secret@127.0.0.1/", "other than a web address"),
     ("http://[", "malformed"), ("http://a b/", "malformed"), ("http://\u00e9/", "malformed"),
     ("http://127.0.0.1:99999/", "not a valid web address")],
)  # fmt: skip
def test_redirects_that_are_not_followed(large: BadServer, target: str, problem: str) -> None:
    large.fault = redirect(target)
    with pytest.raises(OSError, match=problem) as caught:
        open_source(f"{large.url}/a")
    assert "secret" not in str(caught.value)
    assert len(large.requests) == 1


@pytest.mark.parametrize(
    "target", ["http://2852039166/", "http://[64:ff9b::a9fe:a9fe]/", "http://[fd20:ce::254]/"]
)
def test_a_proxy_is_not_asked_for_what_a_redirect_may_not_lead_to(
    large: BadServer, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setenv("http_proxy", large.url)
    large.fault = redirect(target)
    with pytest.raises(OSError, match="address of this machine or network"):
        open_source("http://models.invalid/a")
    assert len(large.requests) == 1


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "LocalHost.", "0x7f000001", "127.1", "[::ffff:127.0.0.1]", "[::127.0.0.1]"],
)
def test_a_proxy_is_not_asked_for_this_machine_by_a_redirect(
    large: BadServer, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("http_proxy", large.url)
    monkeypatch.setenv("no_proxy", "")
    large.fault = redirect(f"http://{host}/")
    with pytest.raises(OSError, match="address of this machine or network"):
        open_source("http://models.invalid/a")
    assert len(large.requests) == 1


def test_redirects_in_a_circle(large: BadServer) -> None:
    large.fault = redirect(f"{large.url}/a")
    with pytest.raises(OSError, match="more than 5 redirects"):
        open_source(f"{large.url}/a")
    assert len(large.requests) == 6


def test_never_from_https_to_http() -> None:
    with pytest.raises(OSError, match="from https to http"):
        exchange.redirected("x", "https://example.org/a", "http://example.org/a")
    assert exchange.redirected("x", "https://e.org/a/b", "../c") == "https://e.org/c"


def test_no_redirect_from_elsewhere_leads_to_this_machine(server: BadServer) -> None:
    made, _ = connections.connections.take(connections.Origin.of(server.url), 5)
    elsewhere = connections.Origin("https", "example.org", 443)
    with pytest.raises(connections.ForbiddenAddressError):
        connections.connect(made, connections.Origin.of(server.url), redirected_from=elsewhere)
    assert server.requests == []


# ---- URLs


@pytest.mark.parametrize(
    ("url", "problem"),
    [("https://me:secret@example.org/a", "user name"), ("https://secret@example.org/a", "user name"),
     ("https://example.org/a/../b", "part"), ("https://example.org/a/%2e%2e/b", "part"),
     ("https://example.org/a%2Fb", "encoded slash"), ("https://example.org/a%00", "encoded"),
     ("https://example.org//a", "part"), ("https://example.org/a#secret", "#"),
     ("s3://bucket/a?sig=secret", r"\?"), ("https:///a", "names no host"),
     ("https://ex ample/a", "space"), ("https://example.org/\u202ea", "printable"),
     ("https://example.org/%ff", "UTF-8"), ("gopher://example.org/a", "no store for"),
     ("https://example.org/a\\b", "backslash")],
)  # fmt: skip
def test_urls_that_are_refused(url: str, problem: str) -> None:
    with pytest.raises(UnsupportedError, match=problem) as caught:
        place_of(url)
    assert "secret" not in repr(caught.value)


@pytest.mark.parametrize(
    "proxy",
    ["https://me:secret@127.0.0.1:PORT", "socks5://127.0.0.1:PORT", "http://me:secret@127.0.0.1:x",
     "http://[", "http://", "http://127.0.0.1:99999"],
)  # fmt: skip
def test_a_proxy_of_another_kind_is_sent_nothing(
    server: BadServer, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy.replace("PORT", str(server.server_address[1])))
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(OSError, match="proxy in http_proxy is not given as http://HOST:PORT") as e:
        open_source("http://models.invalid/a")
    assert "secret" not in str(e.value)
    assert server.requests == []


def test_names_are_percent_encoded(server: BadServer) -> None:
    server.files["a%20b/%C3%A8.bin"] = b"12345"
    assert open_source(f"{server.url}/a%20b/%C3%A8.bin").size == 5
    store = place_of(f"{server.url}/a%20b/").store
    assert store.open("\u00e8.bin").name == f"{server.url}/a%20b/%C3%A8.bin"


def test_a_proxy_is_used_and_told_nothing_by_other_hosts(
    server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url.replace("//", "//me:secret@"))
    monkeypatch.setenv("no_proxy", "localhost")
    server.files["http://models.invalid/a"] = b"123"
    assert open_source("http://models.invalid/a").read(0, 3) == b"123"
    assert server.requests[0][2]["Proxy-Authorization"].startswith("Basic ")
    assert server.requests[0][2]["Host"] == "models.invalid"
