"""A server whose file is opened, and that makes those who read it wait."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

import safeweights.numpy
from interrupts import Alarm
from safeweights.storage.parallel import CHUNK
from safeweights.storage.remote import ranges
from safeweights.storage.remote.exchange import Patience

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bad_server import BadServer, Handler

__all__ = ["PIECES", "Waiting"]

PIECES = 5
LONG = 60
"""Seconds that a server waits before it gives up, so that a test that fails ends."""


class Waiting:
    """What a server does from the second request on.

    Args:
        server: The server.
        how: When it makes the reader wait: ``"before the answer"``, ``"in the body"``, ``"in the last
            body"`` of a connection, or ``"between attempts"``.
    """

    def __init__(self, server: BadServer, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ranges, "PATIENCE", Patience(timeout=2 * LONG, longest=2 * LONG))
        self.url = f"{server.url}/m.safetensors"
        self._server, self._how = server, how
        self.over = threading.Event()  # the test, or its time
        self.expected = PIECES
        arrays = {f"{i}": np.zeros(CHUNK, "u1") for i in range(PIECES)}
        server.files["m.safetensors"] = safeweights.numpy.save(arrays)
        server.fault = self._answer

    def _answer(self, handler: Handler, number: int) -> bool:
        if number == 0:
            return False
        if self._how == "between attempts":
            handler.reply(503, Retry_After=str(LONG))
            return True
        if self._how.startswith("in the"):
            begin, end = handler.wanted()
            handler.send_response_only(206)
            handler.send_header("Content-Length", str(end - begin))
            handler.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(handler.data)}")
            handler.send_header("ETag", handler.etag)
            if self._how == "in the last body":
                handler.send_header("Connection", "close")
            handler.end_headers()
            handler.wfile.write(handler.data[begin : begin + 200_000])
        if not self.over.wait(LONG):
            self.over.set()
        handler.close_connection = True
        return True

    def is_reached(self) -> bool:
        """Whether as many requests are under way as the test expects."""
        return len(self._server.requests) > self.expected

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """One Ctrl-C as soon as all pieces are waited for; the block must end before the wait does."""
        once = iter([KeyboardInterrupt])

        def interrupt() -> None:
            if self.is_reached() and (error := next(once, None)) is not None:
                raise error

        with Alarm(interrupt), pytest.raises(KeyboardInterrupt):
            yield
        assert not self.over.is_set()
