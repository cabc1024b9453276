"""``http://`` and ``https://``: files on a web server, read by ranges.

A web server lists no folders: a folder's address leads to its index or its one file of weights, by their
usual names. Credentials of a host are those of the user's netrc file, and sent over https only (or to
this machine); a signed address has its own in its query, which is sent with every name of the store.
"""

from __future__ import annotations

import base64
import netrc
import os
from typing import TYPE_CHECKING

from ...errors import UnsupportedError
from ..urls import Url, encoded
from .base import RemoteStore
from .connections import is_loopback
from .ranges import NO_SECRETS, WebFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..source import Source
    from ..store import Entry, EntryKind
    from .ranges import Secrets
    from .responses import Headers

__all__ = ["WebStore", "store_of"]


def store_of(url: Url) -> tuple[WebStore, str]:
    """The store of a web address, and the name in it."""
    if url.is_folder:
        return WebStore(url), ""
    folder, _, name = url.path.rpartition("/")
    return WebStore(url._replace(path=folder)), name


class WebStore(RemoteStore):
    """The files below an address of a web server.

    Args:
        url: The address of a folder.
    """

    can_list = False
    _why_read_only = "files on web servers are only read; write to a bucket, or to a folder"

    def __init__(self, url: Url) -> None:
        super().__init__(str(url).rstrip("/"))
        self._query = f"?{url.query}" if url.query else ""
        self._secrets = _secrets_for(url)

    def list(self, folder: str = "", *, recursive: bool = True) -> Iterator[Entry]:  # noqa: ARG002
        raise UnsupportedError(
            "web servers do not list folders: name a file or an index in this one",
            path=f"{self.location}/",
        )

    def kind(self, name: str) -> EntryKind | None:
        return "file" if self._file(name).exists() else None

    def open(self, name: str, *, backend: str = "mmap", version: str | None = None) -> Source:  # noqa: ARG002
        return self._file(name).open(version)

    def _file(self, name: str) -> WebFile:
        where = self.locate(name)
        address = f"{self.location}/{encoded(name)}{self._query}"
        return WebFile(where, address, secrets=self._secrets)


class _Password:
    """A user name and password (RFC 7617)."""

    def __init__(self, user: str, password: str) -> None:
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._fields = {"Authorization": f"Basic {pair}"}

    def fields(self) -> Mapping[str, str]:
        return self._fields

    def renew(self, headers: Headers) -> bool:  # noqa: ARG002
        return False


def _secrets_for(url: Url) -> Secrets:
    host = url.host.rpartition(":")[0] if url.host.rpartition(":")[2].isdigit() else url.host
    if url.scheme != "https" and not is_loopback(host.strip("[]")):
        return NO_SECRETS
    try:
        found = netrc.netrc(os.environ.get("NETRC")).hosts.get(host)
    except (OSError, netrc.NetrcParseError):
        return NO_SECRETS
    return _Password(found[0] or found[1] or "", found[2] or "") if found else NO_SECRETS
