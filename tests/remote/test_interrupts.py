"""Ctrl-C while a server keeps a read waiting: the read ends at once, and leaves nothing behind."""

from __future__ import annotations

import os
import threading
from http.client import HTTPConnection, HTTPResponse
from typing import TYPE_CHECKING, Any

import pytest
from waiting_server import PIECES, Waiting

import safeweights.numpy
from interrupts import posix
from new_threads import threads_since_now
from safeweights.errors import ChangedError
from safeweights.storage import open_source
from safeweights.storage.background import AbandonedError, Background
from safeweights.storage.hashing import sha256
from safeweights.storage.parallel import CHUNK, in_parallel, in_threads
from safeweights.storage.remote import connections as module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bad_server import BadServer, Handler

pytestmark = posix


@pytest.fixture(params=["before the answer", "in the body", "in the last body", "between attempts"])
def waiting(
    server: BadServer, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Waiting]:
    found = Waiting(server, request.param, monkeypatch)
    yield found
    found.over.set()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[HTTPConnection]:
    """Every connection that is made."""
    found: list[HTTPConnection] = []
    original = module._connection

    def noting(*given: Any) -> HTTPConnection:
        found.append(original(*given))
        return found[-1]

    monkeypatch.setattr(module, "_connection", noting)
    return found


def view(url: str) -> object:
    source = open_source(url)
    return source.view(0, source.size)


def shared_pieces_of_a_thread(url: str) -> object:
    """A read whose own threads read again in several threads."""
    source = open_source(url)
    with Background() as beside:
        return beside.submit(source.read, 0, source.size).result()


def digest(url: str) -> object:
    """A read by a thread for a thread."""
    return in_threads(lambda url, _: sha256(open_source(url)), [url])


@pytest.mark.parametrize(
    "read", [safeweights.numpy.load_file, view, shared_pieces_of_a_thread, digest]
)
def test_an_interrupt_ends_a_read(
    waiting: Waiting,
    read: Callable[[str], object],
    made: list[HTTPConnection],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    started = threads_since_now()
    if read is digest:
        waiting.expected = 1
    with waiting.interrupted():
        read(waiting.url)
    assert not [each for each in started() if each.name.startswith("safeweights-")]
    assert made
    kept = [each for idle in module.connections._idle.values() for each in idle]
    assert all(each.sock is None or each in kept for each in made)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("waiting", ["in the body"], indirect=True)
def test_the_failure_of_one_piece_ends_the_others(waiting: Waiting, server: BadServer) -> None:
    """Also where they would have to wait for a server."""
    wait = server.fault
    failed, caller, last = threading.Event(), threading.current_thread(), PIECES * CHUNK

    def fault(handler: Handler, number: int) -> bool:
        if number > 0 and handler.wanted()[0] == last:
            failed.set()
            handler.reply(412)
            return True
        assert wait is not None
        return wait(handler, number)

    server.fault = fault
    source = open_source(waiting.url)
    target = memoryview(bytearray(source.size))

    def piece(begin: int, end: int) -> None:
        if begin < last and threading.current_thread() is caller:
            failed.wait()  # nothing would stop this thread
        else:
            source.read_into(begin, target[begin:end])

    with pytest.raises(ChangedError):
        in_parallel(piece, source.size, threads=8)
    assert not waiting.over.is_set()


def test_a_stop_between_an_answer_and_its_body_closes_both(
    server: BadServer, made: list[HTTPConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["m"] = bytes(10)
    server.fault = lambda handler, _: handler.reply_range(Connection="close") or True
    answers = []

    def answered(connection: HTTPConnection) -> HTTPResponse:
        answers.append(original(connection))
        beside.stop()
        return answers[-1]

    original = HTTPConnection.getresponse
    monkeypatch.setattr(HTTPConnection, "getresponse", answered)
    with Background() as beside:
        job = beside.submit(open_source, f"{server.url}/m")
        with pytest.raises(AbandonedError):
            job.result()
    assert [answer.isclosed() for answer in answers] == [True]
    assert [each.sock for each in made] == [None]
