"""Servers on free ports of the loopback interface, which stop with the test, and short waits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bad_server import BadServer

from safeweights.storage.remote import ranges
from safeweights.storage.remote.connections import connections
from safeweights.storage.remote.exchange import Patience

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attempts follow each other quickly, no proxy is used, no connection is left open."""
    monkeypatch.setattr(ranges, "PATIENCE", Patience(timeout=30, backoff=0.01, attempts=4))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    yield
    connections.close()


@pytest.fixture
def server() -> Iterator[BadServer]:
    with BadServer() as server:
        yield server
