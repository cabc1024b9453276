"""One request and its answer, redirects included.

Rules for redirects: at most `_REDIRECTS` of them; to http and https only, and never from https to http;
never to a link-local address, a metadata service, or from elsewhere to this machine. Secrets are sent to
the origin they are for, and to no other that it redirects to.
"""

from __future__ import annotations

import io
import socket
import ssl
import struct
import sys
import time
from contextlib import nullcontext, suppress
from functools import partial
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from ..background import Stoppable
from .connections import (
    ForbiddenAddressError,
    Origin,
    connect,
    connections,
    is_usable,
    proxy_authorization,
    proxy_of,
)
from .errors import broken
from .responses import content_length

if TYPE_CHECKING:
    from collections.abc import Mapping
    from http.client import HTTPConnection

    from typing_extensions import Self

    from ..source import Buffer
    from .responses import Headers

__all__ = ["Answer", "Patience", "TransientError", "origin_of", "redirected", "send"]

_REDIRECTS: Final = 5
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_PIECE: Final = 1 << 20
_SMALL: Final = 1 << 16
_LINE: Final = 1 << 16
"""Bytes of one field of a response, at most, as `http.client` has it."""

_FIELDS: Final = 101
"""Lines of the fields of a response, at most, with the empty one."""

_INTERIM: Final = 8
"""Answers of status 1xx before the response, and the response itself, at most."""

_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})
_BLANKS: Final = " \t\r\n"
_AGENT: Final = {"User-Agent": "safeweights", "Accept-Encoding": "identity"}


class Patience(NamedTuple):
    """How long a server may take, and how often a request is repeated.

    Attributes:
        timeout: Seconds to wait for a connection, and for the next byte.
        slowest: Bytes a second: an answer that is slower for `timeout` seconds is given up.
        attempts: Requests for the same bytes, until none of them brought more.
        backoff: Seconds to wait before the second attempt; then twice as long each time, and a random
            part of it less.
        longest: Seconds that one wait may take, also if the server asks for more.
    """

    timeout: float = 30.0
    slowest: int = 1000
    attempts: int = 6
    backoff: float = 0.5
    longest: float = 60.0


class TransientError(Exception):
    """Something that may go better the next time.

    Attributes:
        why: What happened, as a sentence without a subject elsewhere.
        wait: Seconds that the server asks to wait; None if it does not say.
    """

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.wait = wait


class Answer:
    """A response whose body has not been read yet. Close it, or read it to its end and `finish` it.

    Attributes:
        status: Its status code.
        headers: Its fields.
        url: Where it came from, after redirects.
    """

    def __init__(  # noqa: PLR0917
        self,
        origin: Origin,
        url: str,
        connection: HTTPConnection,
        response: HTTPResponse,
        sock: socket.socket | None,
        patience: Patience,
    ) -> None:
        self.url = url
        self._sock = sock  # the connection forgets it if it ends with this response
        self._patience = patience
        self.status = response.status
        self.headers: Headers = response.headers
        self._origin = origin
        self._connection = connection
        self._response = response
        self._left = response.length  # of the body, where its length was announced

    def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer` with the next bytes; returns how many there were.

        Raises:
            TransientError: The connection broke, or the server is too slow; after ``error.done`` bytes.
        """
        if self._response.isclosed():  # it has no body
            return 0
        if self._left is not None:  # more would be waited for in vain
            buffer = buffer[: self._left]
        done = 0
        # `readinto1` returns what one recv(2) gave, so that what came before an error is known.
        read = self._response.readinto if self._response.chunked else self._response.fp.readinto1
        direct = None if self._response.chunked else _Direct.of(self._connection, self._patience)
        try:
            while done < len(buffer) and (count := read(buffer[done : done + _PIECE])):
                done += count
                if direct is not None and len(buffer) - done >= _SMALL:
                    # What the response had read ahead was the first of what `read` returned.
                    with direct:
                        done += direct.receive(buffer[done:])
        except (OSError, HTTPException, ValueError) as error:
            done += 0 if direct is None else direct.received
            raise _Stopped(_what(error), done) from None
        if self._left is not None:
            self._left -= done
        return done

    def read(self, limit: int) -> bytes:
        """All of a short body.

        Raises:
            TransientError: See `read_into`.
            ValueError: It is longer than `limit`.
        """
        data = bytearray(limit + 1)
        done = self.read_into(memoryview(data))
        if done > limit:
            raise ValueError
        return bytes(data[:done])

    def finish(self) -> None:
        """The body was read to its end: keep the connection."""
        reusable = not self._response.will_close and not self._response.chunked
        self._response.close()
        if reusable:
            connections.give(self._origin, self._connection)
        else:
            self._connection.close()

    def dismiss(self) -> None:
        """The body is not wanted: keep the connection if little of it is left, else drop both."""
        if self._left is not None and self._left <= _SMALL:
            try:
                self.read_into(memoryview(bytearray(self._left)))
            except TransientError:
                self.close()
                return
            if not self._left:
                self.finish()
                return
        self.close()

    def shut(self) -> None:
        """Have a `read_into` of another thread end: the connection is broken."""
        _shut(self._sock)

    def close(self) -> None:
        """Drop the rest of the body, and the connection."""
        self._response.close()
        self._connection.close()


class _Response(HTTPResponse):
    """A response whose server must not be too slow: neither with the fields nor with the body."""

    def __init__(self, patience: Patience, sock: socket.socket, **given: Any) -> None:
        super().__init__(_Socket(sock, patience), **given)  # type: ignore[arg-type]
        self._asked = given.get("method")

    def begin(self) -> None:
        """Read the status and the fields (RFC 9112, sections 4 to 6).

        `http.client` has the fields read by the parser of e-mails, which takes 0.1 ms a request. That one
        also takes fields that end in the middle, because the connection broke, for all of them.
        """
        for _ in range(_INTERIM):
            version, self.status, self.reason = self._read_status()  # type: ignore[attr-defined]
            fields = _Fields.read(self.fp)
            if self.status >= 200:
                break
        else:
            raise HTTPException("too many interim responses")
        self.code, self.headers = self.status, fields  # type: ignore[assignment]
        self.version = 10 if version.startswith("HTTP/1.0") else 11
        coding = fields.get("Transfer-Encoding")
        if coding is not None and coding.lower() != "chunked":
            raise HTTPException("unknown transfer coding")
        self.chunked = coding is not None
        self.chunk_left = None
        self.length = None if self.chunked else content_length(fields)
        if self.status in {204, 304} or self._asked == "HEAD":
            self.length = 0
        connection = (fields.get("Connection") or "").lower()
        kept = "close" not in connection if self.version == 11 else "keep-alive" in connection
        self.will_close = not kept or (self.length is None and not self.chunked)


class _Fields:
    """The fields of a response. Of those that occur more than once, the first counts."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    @classmethod
    def read(cls, file: io.BufferedIOBase) -> _Fields:
        """The fields up to the empty line that ends them.

        Raises:
            RemoteDisconnected: The connection ended before that.
            HTTPException: They are malformed, too many or too long, or two lengths contradict each other.
        """
        values: dict[str, str] = {}
        name = ""
        for _ in range(_FIELDS):
            line = file.readline(_LINE + 1)
            if line in {b"\r\n", b"\n"}:
                return cls(values)
            if line[-1:] != b"\n":
                if len(line) > _LINE:
                    raise HTTPException("a field is too long")
                raise RemoteDisconnected("the connection ended in the fields of a response")
            text = line.decode("latin-1")
            if name and text[0] in " \t":  # the value goes on: obsolete, but clients must accept it
                values[name] = f"{values[name]} {text.strip(_BLANKS)}"
                continue
            name, colon, value = text.partition(":")
            name, value = name.strip(_BLANKS).lower(), value.strip(_BLANKS)
            known = values.setdefault(name, value)
            if not (name and colon) or (known != value and name in _FRAMING):
                raise HTTPException("a field is malformed, or contradicts another")
        raise HTTPException("too many fields")

    def get(self, name: str, default: str | None = None) -> str | None:
        return self._values.get(name.lower(), default)


class _Socket:
    """What `HTTPResponse` asks of a socket."""

    def __init__(self, sock: socket.socket, patience: Patience) -> None:
        self._sock = sock
        self._patience = patience

    def makefile(self, mode: str) -> io.BufferedReader:
        raw = self._sock.makefile(mode, buffering=0)  # type: ignore[call-overload]
        return io.BufferedReader(_Timed(raw, self._patience))


class _TooSlowError(OSError):
    """The server sends, but less than it must."""


class _Pace:
    """How much has come since when: an error if it is too little for too long.

    The timeout of a socket is that of one recv(2): a byte now and then would keep it waiting for ever.
    """

    def __init__(self, patience: Patience, since: float | None = None) -> None:
        self._patience = patience
        self._since = since  # by default, when the first bytes are there
        self._count = 0

    def note(self, count: int) -> None:
        """So many bytes came."""
        now, patience = time.monotonic(), self._patience
        self._since = now if self._since is None else self._since
        self._count += count
        if now - self._since > patience.timeout:
            if count and self._count < patience.slowest * patience.timeout:
                raise _TooSlowError(f"sends less than {patience.slowest} bytes a second")
            self._since, self._count = now, 0


class _Timed(io.RawIOBase):
    """The bytes of a socket, at an acceptable pace."""

    def __init__(self, raw: io.RawIOBase, patience: Patience) -> None:
        self._raw = raw
        self._pace = _Pace(patience)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count: int | None = self._raw.readinto(buffer)
        self._pace.note(count or 0)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Direct:
    """A body received by few system calls: each returns when its buffer is full (recv(2), MSG_WAITALL).

    Otherwise a call returns what happens to be there, some 100 kB: for 1 GB that is 10,000 calls, after
    each of which eight threads wait for the interpreter's lock. Only for plain sockets. A context manager,
    in which the socket blocks, with the system's own timeout in place of Python's.

    Attributes:
        received: Bytes of a call of `receive` that an error ended.
    """

    def __init__(self, sock: socket.socket, patience: Patience) -> None:
        self.received = 0
        self._sock = sock
        self._timeout = patience.timeout
        self._pace = _Pace(patience, time.monotonic())

    @classmethod
    def of(cls, connection: HTTPConnection, patience: Patience) -> _Direct | None:
        """For a connection; None if it is encrypted, closes after this body, or the system is another."""
        sock = connection.sock
        if type(sock) is not socket.socket or not sys.platform.startswith("linux"):
            return None
        return cls(sock, patience)

    def receive(self, buffer: memoryview) -> int:
        """Fill the buffer; returns how many bytes there were before the end."""
        while self.received < len(buffer):
            try:
                count = self._sock.recv_into(buffer[self.received :], 0, socket.MSG_WAITALL)
            except BlockingIOError:
                raise TimeoutError from None
            if not count:
                break
            self.received += count
            self._pace.note(count)
        done, self.received = self.received, 0
        return done

    def __enter__(self) -> Self:
        seconds, rest = divmod(self._timeout, 1)
        limit = struct.pack("ll", int(seconds), int(rest * 1e6))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._sock.settimeout(None)
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.settimeout(self._timeout)


class _Stopped(TransientError):
    """A body ended too early, after `done` bytes."""

    def __init__(self, why: str, done: int) -> None:
        super().__init__(why)
        self.done = done


def send(
    where: str,
    method: str,
    url: str,
    fields: Mapping[str, str],
    secrets: Mapping[str, str],
    *,
    patience: Patience,
    body: Buffer | None = None,
    secrets_for: Origin | None = None,
    stoppable: bool = False,
) -> Answer:
    """Send a request, follow redirects, and return the answer, whatever its status.

    Args:
        where: What to call the file in messages.
        method: ``"GET"`` ...
        url: Where to.
        fields: Sent to every server.
        secrets: Fields that only one origin gets.
        patience: For its timeout.
        body: Sent along.
        secrets_for: That origin; by default that of `url`.
        stoppable: Whether the wait for an answer ends early in a thread whose call is not wanted any more.

    Raises:
        TransientError: There is no connection, or it broke.
        OSError: The certificate, the protocol or a redirect is not acceptable.
    """
    first = secrets_for or origin_of(where, url)
    for _ in range(_REDIRECTS + 1):
        origin = origin_of(where, url)
        sent = {**_AGENT, **fields, **(secrets if origin == first else {})}
        elsewhere = None if origin == first else first
        answer = _send_once(where, method, origin, url, sent, body, patience, elsewhere, stoppable)
        if answer.status not in _MOVED:
            return answer
        target = answer.headers.get("Location")
        answer.dismiss()
        if not target or body is not None:
            raise broken(where, f"the server answered with status {answer.status}")
        url = redirected(where, url, target)
    raise broken(where, f"more than {_REDIRECTS} redirects")


def origin_of(where: str, url: str) -> Origin:
    """The origin of an address that a user or a server gave.

    Raises:
        OSError: It is no web address.
    """
    try:
        return Origin.of(url)
    except ValueError:
        raise broken(where, "this is not a valid web address") from None


def redirected(where: str, url: str, target: str) -> str:
    """The address that a redirect from `url` leads to; it may be relative.

    Raises:
        OSError: It is malformed, no web address, has user info, or leaves https for http.
    """
    if not target.isascii() or not target.isprintable() or " " in target:
        raise broken(where, "the server redirects to an address that is malformed")
    try:
        found = urljoin(url, target)
        parts = urlsplit(found)
    except ValueError:
        raise broken(where, "the server redirects to an address that is malformed") from None
    if parts.scheme not in {"http", "https"} or "@" in parts.netloc:
        raise broken(where, "the server redirects to something other than a web address")
    if parts.scheme == "http" and urlsplit(url).scheme == "https":
        raise broken(where, "the server redirects from https to http")
    return found


def _send_once(  # noqa: PLR0917
    where: str,
    method: str,
    origin: Origin,
    url: str,
    fields: Mapping[str, str],
    body: Buffer | None,
    patience: Patience,
    redirected_from: Origin | None,
    stoppable: bool,
) -> Answer:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    proxy = proxy_of(origin)
    if proxy is not None and not is_usable(proxy):
        raise broken(where, f"the proxy in {origin.scheme}_proxy is not given as http://HOST:PORT")
    if proxy is not None and origin.scheme == "http":
        target, fields = (
            f"http://{origin.authority}{target}",
            {**fields, **proxy_authorization(proxy)},
        )
    while True:
        connection, used = connections.take(origin, patience.timeout)
        response: HTTPResponse | None = None
        try:
            connection.response_class = partial(_Response, patience)  # type: ignore[assignment]
            connect(connection, origin, redirected_from=redirected_from)
            sock = connection.sock
            with Stoppable(partial(_shut, sock)) if stoppable else nullcontext():
                connection.request(method, target, body, {**fields, "Host": origin.authority})
                response = connection.getresponse()
            return Answer(origin, url, connection, response, sock, patience)
        except (OSError, HTTPException, ValueError) as error:
            connection.close()
            if not used:  # else the server had closed an idle connection, which says nothing
                raise _failure(where, error) from None
        except BaseException:
            connection.close()
            if response is not None:  # which a connection that ends with it has forgotten
                response.close()
            raise


def _shut(sock: socket.socket | None) -> None:
    """Break a connection; in any thread."""
    if sock is not None:
        with suppress(OSError):
            # Not that of an `SSLSocket`, whose next read would return what was encrypted.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _failure(where: str, error: Exception) -> Exception:
    if isinstance(error, ForbiddenAddressError):
        return broken(where, "the server redirects to an address of this machine or network")
    if isinstance(error, ssl.SSLCertVerificationError):
        return broken(where, f"the server's certificate is not valid: {error.verify_message}")
    if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
        return broken(where, f"the host is not known ({error.strerror})")
    transient = (ConnectionError, TimeoutError, ssl.SSLError, socket.gaierror, _TooSlowError)
    if isinstance(error, transient):
        return TransientError(_what(error))
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, where)
    return broken(where, f"the server does not speak HTTP ({type(error).__name__})")


def _what(error: Exception) -> str:
    """What happened to a connection, in a word; texts of errors may repeat what was sent."""
    if isinstance(error, TimeoutError):
        return "the server did not answer in time"
    if isinstance(error, RemoteDisconnected):
        return "the server closed the connection without an answer"
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(error, _TooSlowError):
        return str(error)
    if isinstance(error, OSError):
        return f"the connection broke ({error.strerror or type(error).__name__})"
    return f"the answer is broken ({type(error).__name__})"
