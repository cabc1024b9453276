"""A web server that does, in each way it is told to, what no server should do.

It binds a free port of the loopback interface, answers in threads, and records every request. A test
puts files into `files` and behaviours into `faults`: functions that get the handler before a normal
answer is made, and return True if they have answered.
"""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

Fault = "Callable[[Handler], bool]"


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD with ranges, If-Match and strong entity tags."""

    protocol_version = "HTTP/1.1"
    server: BadServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def name(self) -> str:
        return self.path.partition("?")[0].lstrip("/")

    @property
    def data(self) -> bytes:
        return self.server.files[self.name]

    @property
    def etag(self) -> str:
        return '"' + hashlib.sha256(self.data).hexdigest()[:16] + '"'

    def wanted(self) -> tuple[int, int]:
        """The range that was asked for, as begin and end."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "bytes=0-9999999999")
        assert match
        return int(match[1]), min(int(match[2]) + 1, len(self.data))

    def reply(self, status: int, body: bytes = b"", **fields: str | None) -> None:
        """Send an answer; a field that is None is left out."""
        self.send_response_only(status)
        given: dict[str, str | None] = {"Content-Length": str(len(body))}
        given |= {name.replace("_", "-"): value for name, value in fields.items()}
        for name, value in given.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            with self.server.lock:
                self.server.sent += len(body)

    def reply_range(self, body: bytes | None = None, **fields: str | None) -> None:
        """The right answer, with other fields or another body."""
        begin, end = self.wanted()
        given: dict[str, str | None] = {
            "Content-Range": f"bytes {begin}-{end - 1}/{len(self.data)}", "ETag": self.etag
        }  # fmt: skip
        self.reply(206, self.data[begin:end] if body is None else body, **(given | fields))

    def reset(self) -> None:
        """Break the connection with a TCP reset."""
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            number = len(server.requests)
            server.requests.append((self.command, self.path, dict(self.headers.items())))
        try:
            if server.fault is not None and server.fault(self, number):
                return
            if self.name not in server.files:
                self.reply(404)
            elif self.headers["If-Match"] not in (None, self.etag):
                self.reply(412)
            elif self.headers["Range"] is None:
                self.reply(200, self.data, ETag=self.etag)
            elif self.wanted()[0] >= len(self.data):
                self.reply(416, Content_Range=f"bytes */{len(self.data)}")
            else:
                self.reply_range()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except OSError:
            self.close_connection = True

    do_HEAD = do_POST = do_GET

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()


class BadServer(ThreadingHTTPServer):
    """The server; a context manager.

    Attributes:
        files: Path -> contents.
        fault: Given the handler and the number of the request; True if it has answered.
        requests: Method, path and fields of each request so far.
        sent: Bytes of the bodies of all answers.
    """

    daemon_threads = True
    block_on_close = False

    request_queue_size = 128  # with the default of 5 clients wait for seconds

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), Handler)
        self.files: dict[str, bytes] = {}
        self.fault: Callable[[Handler, int], bool] | None = None
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.sent = 0
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
