"""Serve a folder over http on the loopback interface, with ranges and entity tags: for `demo.py`.

Python's own `http.server` ignores ranges.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class FolderServer(ThreadingHTTPServer):
    """The server.

    Attributes:
        sent: Bytes of files that were sent so far.
        requests: How many requests there were.
    """

    daemon_threads = True

    def __init__(self, folder: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = Path(folder).resolve()
        self.sent = self.requests = 0
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a client may close a connection at any time."""

    @property
    def url(self) -> str:
        """The address of the folder."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    """Answers GET: a file, or one range of it."""

    protocol_version = "HTTP/1.1"
    server: FolderServer

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Send a file of the folder, or a range of it."""
        server = self.server
        path = (server.folder / self.path.partition("?")[0].lstrip("/")).resolve()
        with server.lock:
            server.requests += 1
        if not path.is_relative_to(server.folder) or not path.is_file():
            self._answer(404, b"")
            return
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
            if self.headers["If-Match"] not in {None, etag}:
                self._answer(412, b"")
                return
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
            begin, end = (int(match[1]), int(match[2]) + 1) if match else (0, status.st_size)
            end = min(end, status.st_size)
            file.seek(begin)
            body = file.read(max(0, end - begin))
        fields = {"ETag": etag, "Accept-Ranges": "bytes"}
        if match:
            fields["Content-Range"] = f"bytes {begin}-{end - 1}/{status.st_size}"
        with server.lock:
            server.sent += len(body)
        self._answer(206 if match else 200, body, fields)

    def _answer(self, status: int, body: bytes, fields: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **(fields or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve(folder: str) -> Iterator[FolderServer]:
    """Serve a folder until the block ends."""
    server = FolderServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
