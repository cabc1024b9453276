"""The server of the page: for one person on this machine, read only.

It listens on 127.0.0.1 alone. A page of another site in the same browser can send requests there too, so:
the data needs a token, which only the address printed at the start has, in the part after ``#`` that
browsers send nowhere; ``Host`` must be this server (no DNS rebinding), ``Origin`` too if there is one; no
other site may embed an answer. Nothing but what was opened can be asked for: there are no paths in
requests.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..errors import SafetensorError
from .viewing import Region

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from starlette.requests import Request

    from .viewing import Viewed

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

__all__ = ["HOST", "Guarded", "address", "application", "listen", "new_token", "run"]

HOST: Final = "127.0.0.1"

_PAGE: Final = {
    "/": ("index.html", "text/html"),
    "/view.js": ("view.js", "text/javascript"),
    "/view.css": ("view.css", "text/css"),
    "/uPlot.js": ("uPlot.iife.min.js", "text/javascript"),
    "/uPlot.css": ("uPlot.min.css", "text/css"),
}
"""Path -> file of the page, and its type."""

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_NUMBER_MAX: Final = 1 << 62


def application(viewed: Viewed, token: str, port: int) -> App:
    """The ASGI application.

    Args:
        viewed: What is shown.
        token: What a request for data has to send.
        port: Where it is reached, for the check of ``Host``.
    """

    def answer(make: Callable[[Request], Any]) -> Callable[[Request], Response]:
        def endpoint(request: Request) -> Response:  # not async: it runs in a thread
            try:
                return JSONResponse(make(request))
            except (SafetensorError, OSError, ValueError) as error:
                return JSONResponse({"error": str(error)}, status_code=400)

        return endpoint

    data = {
        "model": lambda _: {"document": viewed.document, "tensors": len(viewed.rows)},
        "tensors": lambda request: viewed.tensors(
            request.query_params.get("query", ""),
            request.query_params.get("order", "file"),
            _number(request, "start", 0),
            _number(request, "count", 100),
        ),
        "map": lambda _: viewed.map(),
        "statistics": lambda request: viewed.statistics(_number(request, "number")),
        "picture": lambda request: viewed.picture(
            _number(request, "number"),
            _region(request),
            (_number(request, "height", 256), _number(request, "width", 256)),
        ),
        "values": lambda request: viewed.values(_number(request, "number"), _region(request)),
        "findings": lambda _: viewed.findings,
        "signature": lambda _: viewed.signature,
        "verdict": lambda _: viewed.verdict,
        "difference": lambda _: viewed.difference,
        "state": lambda _: {"changed": viewed.changed()},
    }
    routes = [Route(path, _file(*named)) for path, named in _PAGE.items()]
    routes += [Route(f"/data/{name}", answer(make)) for name, make in data.items()]
    return Guarded(Starlette(routes=routes), token, port)


def _file(name: str, kind: str) -> Callable[[Request], Response]:
    contents = files(__package__).joinpath("page", name).read_bytes()

    def endpoint(_: Request) -> Response:
        return Response(contents, media_type=kind)

    return endpoint


def _number(request: Request, name: str, default: int | None = None) -> int:
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"{name} must be a number")
    return min(int(text), _NUMBER_MAX)


def _region(request: Request) -> Region:
    index = request.query_params.get("outer", "")
    parts = index.split(",") if index else []
    if len(parts) > 64 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError("outer must be numbers")
    return Region(
        tuple(min(int(part[:19]), _NUMBER_MAX) for part in parts),
        (_number(request, "top", 0), _number(request, "rows", _NUMBER_MAX)),
        (_number(request, "left", 0), _number(request, "columns", _NUMBER_MAX)),
    )


class Guarded:
    """An application that answers only requests of its own page.

    Args:
        app: The application.
        token: What requests below ``/data/`` must have as ``Authorization: Bearer``.
        port: The port it is reached at.
    """

    def __init__(self, app: App, token: str, port: int) -> None:
        self._app = app
        self._token = f"Bearer {token}".encode()
        self._hosts = {f"{name}:{port}".encode() for name in (HOST, "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        refusal = self._refusal(scope)
        app = PlainTextResponse(refusal[1], refusal[0]) if refusal else self._app
        await app(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason of a request that is not answered."""
        found: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            found.setdefault(name, []).append(value)
        hosts = found.get(b"host", [])
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return 421, "this server is not that host"
        origins = found.get(b"origin", [])
        if any(origin not in {b"http://" + host for host in self._hosts} for origin in origins):
            return 403, "a page of another site may not ask"
        if scope["method"] not in {"GET", "HEAD"}:
            return 405, "this server only reads"
        if scope["path"].startswith("/data/"):
            given = found.get(b"authorization", [b""])
            if len(given) != 1 or not hmac.compare_digest(given[0], self._token):
                return 401, "the address that was printed has a token, which is missing or wrong"
        return None


def listen(port: int = 0) -> socket.socket:
    """A socket on this machine alone.

    Args:
        port: 0 for any that is free.

    Raises:
        OSError: The port is in use.
    """
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.bind((HOST, port))
        made.listen(64)
    except BaseException:
        made.close()
        raise
    return made


def address(bound: socket.socket, token: str) -> str:
    """The address to open, with the token."""
    return f"http://{HOST}:{bound.getsockname()[1]}/#{token}"


def run(viewed: Viewed, bound: socket.socket, token: str) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    app = application(viewed, token, bound.getsockname()[1])
    config = uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[bound])


def new_token() -> str:
    """A token that cannot be guessed."""
    return secrets.token_urlsafe(32)
