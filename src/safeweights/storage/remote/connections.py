"""Connections to web servers, kept for the next request.

The address that a redirect leads to is checked before a request is sent to it: no server can make this
process talk to a link-local address, where clouds hand out credentials, or to this machine itself.
Proxies are those of the environment (``https_proxy``, ``no_proxy`` ...). Certificates are verified;
``SSL_CERT_FILE`` names other authorities.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
import threading
import urllib.request
from functools import lru_cache
from http.client import HTTPConnection, HTTPSConnection
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

__all__ = ["Connections", "ForbiddenAddressError", "Origin", "connections"]

_IDLE: Final = 16
"""Connections to one origin that are kept while they are not used, at most."""

_METADATA: Final = tuple(
    map(
        ip_network,
        ("fd00:ec2::/32", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    )
)
"""Addresses of clouds' metadata services that are not link-local: AWS and Google (IPv6), Alibaba, Azure,
Oracle."""

_EMBEDDING: Final = tuple(
    map(
        ip_network,
        ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"),
    )
)
"""IPv6 addresses that end with an IPv4 address: compatible, mapped, translated (RFC 2765), of NAT64 (RFC
6052, RFC 8215)."""


class ForbiddenAddressError(OSError):
    """A redirect leads to an address that no redirect may lead to."""


class Origin(NamedTuple):
    """Scheme, host and port: what one connection leads to, and what credentials are for."""

    scheme: str
    host: str
    port: int

    @classmethod
    @lru_cache(256)  # a tenth of the time of a small request
    def of(cls, url: str) -> Origin:
        """The origin of a web address.

        Raises:
            ValueError: It is none.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("not a web address")
        return cls(parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme])

    @property
    def authority(self) -> str:
        """As in a ``Host`` field."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_PORTS: Final = {"http": 80, "https": 443}


class Connections:
    """Connections that are open and idle, by origin; of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[HTTPConnection]] = {}
        self._process = os.getpid()

    def take(self, origin: Origin, timeout: float) -> tuple[HTTPConnection, bool]:
        """A connection, and whether it was used before: the server may have closed such a one."""
        with self._lock:
            if self._process != os.getpid():  # after fork(2) both processes would use the same ones
                self._idle, self._process = {}, os.getpid()
            idle = self._idle.get(origin)
            connection = idle.pop() if idle else None
        if connection is None:
            return _connection(origin, timeout), False
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        return connection, True

    def give(self, origin: Origin, connection: HTTPConnection) -> None:
        """Keep a connection whose last response was read to its end."""
        with self._lock:
            idle = self._idle.setdefault(origin, [])
            if self._process == os.getpid() and len(idle) < _IDLE:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close those that are idle."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connection in (each for kept in idle.values() for each in kept):
            connection.close()


connections: Final = Connections()
"""Of this process."""


@lru_cache(1)
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


_PROXY_NAMES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def proxy_of(origin: Origin) -> str | None:
    """The proxy that the environment names for an origin."""
    # urllib looks through the whole environment, which would be a third of the cost of a request.
    names = [*_PROXY_NAMES, *map(str.upper, _PROXY_NAMES)]
    return _proxy_of(origin, tuple(map(os.environ.get, names)))


@lru_cache(256)
def _proxy_of(origin: Origin, environment: tuple[str | None, ...]) -> str | None:  # noqa: ARG001
    proxy = urllib.request.getproxies().get(origin.scheme)
    if not proxy or urllib.request.proxy_bypass(origin.host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def is_usable(proxy: str) -> bool:
    """Whether a proxy is reached by plain HTTP, the only way that there is here.

    One that asks for https would otherwise get its password in clear text.

    >>> is_usable("http://proxy:3128"), is_usable("https://proxy"), is_usable("socks5://proxy")
    (True, False, False)
    """
    try:
        parts = urlsplit(proxy)
        return parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _connection(origin: Origin, timeout: float) -> HTTPConnection:
    proxy = proxy_of(origin)
    host, port = origin.host, origin.port
    if proxy is not None:
        parts = urlsplit(proxy)
        host, port = parts.hostname or "", parts.port or 3128
    made: HTTPConnection
    if origin.scheme == "https":
        made = HTTPSConnection(host, port, timeout=timeout, context=_context())
    else:
        made = HTTPConnection(host, port, timeout=timeout)
    if proxy is not None and origin.scheme == "https":
        made.set_tunnel(origin.host, origin.port, proxy_authorization(proxy))
    return made


def proxy_authorization(proxy: str) -> dict[str, str]:
    """The field that identifies us to a proxy whose address has a user name."""
    parts = urlsplit(proxy)
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def connect(connection: HTTPConnection, origin: Origin, *, redirected_from: Origin | None) -> None:
    """Connect, and if a redirect led here check the address before a request is sent.

    Raises:
        ForbiddenAddressError: No redirect may lead there.
        OSError: There is no connection.
    """
    local = redirected_from is None or is_loopback(redirected_from.host)
    if redirected_from is not None:
        check_host(origin.host)
        if not local and is_loopback(origin.host):
            raise ForbiddenAddressError
    if connection.sock is None:
        connection.connect()
    if redirected_from is None or proxy_of(origin) is not None:
        return
    address = ip_address(connection.sock.getpeername()[0].partition("%")[0])
    if is_forbidden(address) or (_unmapped(address).is_loopback and not local):
        connection.close()
        raise ForbiddenAddressError


def check_host(host: str) -> None:
    """Refuse a host that is forbidden whatever its address is: a proxy may be the one that connects.

    Raises:
        ForbiddenAddressError: It is.
    """
    if host.rstrip(".").lower() in {"metadata.google.internal", "metadata", "instance-data"}:
        raise ForbiddenAddressError
    address = _written(host)
    if address is not None and is_forbidden(address):
        raise ForbiddenAddressError


def is_loopback(host: str) -> bool:
    """Whether a host's name says that it is this machine."""
    address = _written(host)
    if address is not None:
        return _unmapped(address).is_loopback
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")


def _written(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a host is; None if it is a name.

    Numbers count as the system reads them, also a single one, octal and hexadecimal ones (inet_aton(3)).
    """
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host.rstrip(".")))
    except (OSError, ValueError):
        return None


def is_forbidden(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is link-local, a cloud's metadata service, or no host's."""
    address = _unmapped(address)
    special = address.is_link_local or address.is_multicast or address.is_unspecified
    return special or any(address in each for each in _METADATA)


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An IPv4 address that is written as an IPv6 one (``::ffff:169.254.169.254``), as what it is."""
    if not isinstance(address, IPv6Address) or int(address) <= 1:  # "::" and "::1" are IPv6's own
        return address
    if address.sixtofour is not None:
        return address.sixtofour
    if any(address in each for each in _EMBEDDING):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
