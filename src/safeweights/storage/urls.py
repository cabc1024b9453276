"""URLs of stores: parsed once, strictly, so that no credential can be in what is printed later.

Rules:
- A URL has no user name, password or fragment. Credentials come from the environment.
- Only a web address may have a query (a signed link has its signature there). It is sent to the host it
  was given for, and is in no message, report or log.
- The path has no empty, ``.`` or ``..`` part, no backslash and no control character. A web address is
  percent-encoded, other URLs are not.

Pure: nothing here connects to anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import UnsupportedError, quote, shown
from ..lazy import matcher

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = ["Url", "is_url", "shown"]

_URL: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_WEB: Final = frozenset({"http", "https"})
_PORTS: Final = {"http": 80, "https": 443, "oci": 443}
_HOST: Final = matcher(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?\Z")


def is_url(target: object) -> TypeIs[str]:
    r"""Whether `target` is text that begins like a URL; a path object never is one.

    >>> is_url("s3://bucket/model"), is_url("model.safetensors"), is_url("C:\\model")
    (True, False, False)
    """
    return isinstance(target, str) and _URL.match(target) is not None


class Url(NamedTuple):
    """The parts of a URL.

    Attributes:
        scheme: In lower case, such as ``"https"``.
        host: Host and port, bucket, or the first part of a repository's name.
        path: What follows, decoded, without slashes at its ends.
        is_folder: Whether it ended in a slash, or has no path.
        query: Of a web address, without the question mark. May be a credential.
    """

    scheme: str
    host: str
    path: str
    is_folder: bool
    query: str = ""

    @classmethod
    def parse(cls, text: str) -> Url:
        """The parts of `text`.

        Raises:
            UnsupportedError: It is not a URL as described above.

        >>> Url.parse("https://example.org/a%20b/model.safetensors").path
        'a b/model.safetensors'
        """
        match = _URL.match(text)
        if match is None:
            raise _invalid(text, "does not begin with a scheme and `://`")
        if any(c <= " " or c in "\x7f\\" for c in text) or not text.isprintable():
            raise _invalid(text, "has a space, a backslash or a character that is not printable")
        scheme, rest = match[1].lower(), text[match.end() :]
        rest, has_fragment, _ = rest.partition("#")
        rest, has_query, query = rest.partition("?")
        host, _, path = rest.partition("/")
        if "@" in host:
            raise _invalid(text, "has a user name or password; set credentials in the environment")
        if has_fragment or (has_query and scheme not in _WEB):
            raise _invalid(text, "has a `#` or `?`, which only a web address may have")
        if not _HOST(host):
            raise _invalid(text, "names no host")
        return cls(scheme, host, _decoded(text, path, scheme), path[-1:] in {"", "/"}, query)

    def spelling(self) -> str:
        """The one spelling of this URL, without its query, for comparing it with others.

        Hosts and buckets are in lower case, a host has no dot at its end, a default port is left out, and
        of a web address only what must be is percent-encoded (RFC 3986, section 6.2). Of the Hub, the
        host is the name of an account.

        >>> Url.parse("HTTPS://Example.org:443/%61%20b/").spelling()
        'https://example.org/a%20b'
        """
        host = self.host if self.scheme == "hf" else self.host.lower()
        name, _, port = host.rpartition(":")
        if not name or host.endswith("]"):  # without a port; an IPv6 address has colons of its own
            name, port = host, ""
        name = name.rstrip(".")
        host = f"{name}:{int(port)}" if port and int(port) != _PORTS.get(self.scheme) else name
        return str(self._replace(host=host)).rstrip("/")

    def __repr__(self) -> str:
        return f"Url({self!s})"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}/{encoded(self.path, self.scheme)}"


def _decoded(text: str, path: str, scheme: str) -> str:
    name = path.removesuffix("/")
    if scheme in _WEB:
        if re.search("%(2f|5c|00)", name, re.IGNORECASE):
            raise _invalid(text, "has an encoded slash, backslash or NUL")
        try:
            from urllib.parse import unquote  # here: half the programs never have a URL

            name = unquote(name, errors="strict")
        except UnicodeDecodeError:
            raise _invalid(text, "is not valid UTF-8") from None
    if name and any(part in {"", ".", ".."} for part in name.split("/")):
        raise _invalid(text, "has an empty, `.` or `..` part")
    return name


def encoded(name: str, scheme: str = "https") -> str:
    """A name as it stands in a URL of that scheme."""
    from urllib.parse import quote as percent_encoded

    return percent_encoded(name, safe="/~!$&'()*+,;=:@") if scheme in _WEB else name


def _invalid(text: str, problem: str) -> UnsupportedError:
    return UnsupportedError(f"the URL {quote(shown(text), 400)} {problem}")
