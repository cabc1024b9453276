"""Paths and URLs -> a store, and a name in it: the one place that knows which kinds of URL there are.

A path leads to a local folder. A URL's scheme chooses a module of `remote`, which is imported then:
``http`` and ``https`` (web servers), ``s3``, ``gs`` and ``az`` (buckets), ``hf`` (the Hugging Face Hub),
``oci`` (container registries).
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from ..errors import UnsupportedError, quote
from .local_store import LocalStore
from .urls import Url, is_url, shown

if TYPE_CHECKING:
    from .source import Source
    from .store import Store

__all__ = [
    "SCHEMES", "Place", "PlaceKind", "absolute", "absolute_place", "basename", "continued", "exists",
    "folder_of", "is_folder", "is_local_file", "is_url", "join", "open_url", "parent", "place_of", "shown",
]  # fmt: skip

SCHEMES: Final = {
    "http": "web",
    "https": "web",
    "s3": "buckets",
    "gs": "buckets",
    "az": "buckets",
    "hf": "hub",
    "oci": "registry",
}
"""Scheme of a URL -> the module of `remote` whose ``store_of`` opens it."""

PlaceKind: TypeAlias = Literal["file", "index", "folder"]


class Place(NamedTuple):
    """A file or a folder, wherever it is.

    Attributes:
        path: The path or URL, without credentials.
        store: The store it is in.
        name: Its name there; ``""`` for the store as a whole.
        url: The URL, if it is one; may have a credential in its query.
    """

    path: str
    store: Store
    name: str
    url: Url | None = None

    def kind(self) -> PlaceKind:
        """What this is taken for: a folder if there is one, an index by its name, or else a file.

        Cost: of a URL that ends neither in a slash, ``.json`` nor ``.safetensors``, one request.
        """
        if self._is_folder():
            return "folder"
        return "index" if self.name.endswith(".json") else "file"

    def _is_folder(self) -> bool:
        if self.url is None:
            return os.path.isdir(self.path)
        if self.url.is_folder or not self.name:
            return True
        unclear = not self.name.endswith((".json", ".safetensors"))
        return unclear and self.store.kind(self.name) == "folder"

    def folder(self) -> Store:
        """The store of this folder."""
        if self.url is None:
            return LocalStore(self.path)
        return _opened(self.url._replace(is_folder=True))[0]


def place_of(path: str | os.PathLike[str]) -> Place:
    """Where a path or URL leads. Nothing is opened, and no connection made.

    Raises:
        UnsupportedError: A URL that is malformed, has credentials, or is of an unknown scheme.
        MissingDependencyError: The scheme needs a package that is not installed.

    >>> place_of("model/a.safetensors").name
    'a.safetensors'
    """
    path = os.fsdecode(path)
    if not is_url(path):
        folder, name = os.path.split(path)
        return Place(path, LocalStore(folder), name)
    url = Url.parse(path)
    store, name = _opened(url)
    return Place(shown(path), store, name, url)


def absolute_place(path: str | os.PathLike[str]) -> Place:
    """`place_of` of the absolute path: its name is known for ``.`` and ``model/``, too."""
    path = os.fspath(path)
    return place_of(path if is_url(path) else os.path.abspath(path))


def _opened(url: Url) -> tuple[Store, str]:
    """The store of a URL, and what the URL names in it: nothing if it ends in a slash."""
    module = SCHEMES.get(url.scheme)
    if module is None:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise UnsupportedError(f"no store for {quote(str(url), 400)}; there are {known}")
    found: tuple[Store, str] = import_module(f".remote.{module}", __package__).store_of(url)
    return found


def open_url(url: str, *, version: str | None = None) -> Source:
    """Open the file at a URL.

    Raises:
        UnsupportedError, MissingDependencyError: See `place_of`.
        ChangedError: It is not that `version`.
        OSError: It cannot be opened.
    """
    place = place_of(url)
    return place.store.open(place.name, version=version)


def join(folder: str, *names: str) -> str:
    """The path or URL of what has these names in a folder; like `os.path.join`.

    >>> join("s3://bucket/model", "a.safetensors")
    's3://bucket/model/a.safetensors'
    """
    if not is_url(folder):
        return os.path.join(folder, *names)
    front, query = _split(folder)
    return "/".join((front.rstrip("/"), *names)) + query


def _split(url: str) -> tuple[str, str]:
    """A URL, and the query at its end: what is beside the URL, or below it, has the same one."""
    front, mark, query = url.partition("?")
    return front, mark + query


def continued(path: str, suffix: str) -> str:
    """A path or URL whose name goes on with `suffix`.

    >>> continued("https://example.org/m.safetensors?sig=1", ".sig")
    'https://example.org/m.safetensors.sig?sig=1'
    """
    front, query = _split(path) if is_url(path) else (path, "")
    return f"{front}{suffix}{query}"


def basename(path: str) -> str:
    """The last part of a path or URL; like `os.path.basename`."""
    return os.path.basename(_split(path)[0] if is_url(path) else path)


def parent(path: str) -> str:
    """The folder of a path or URL; like `os.path.dirname`. Of a whole store, that store."""
    if not is_url(path):
        return os.path.dirname(path)
    front, query = _split(path)
    scheme, _, rest = front.partition("://")
    above = rest.rstrip("/").rpartition("/")[0]
    return f"{scheme}://{above or rest}{query}"


def absolute(path: str) -> str:
    """The absolute path; a URL is one, without the slash at its end. Like `os.path.abspath`.

    The address of a folder of a web server keeps its slash: nothing else tells that it is one.
    """
    if not is_url(path):
        return os.path.abspath(path)
    front, query = _split(path)
    of_web = SCHEMES.get(front.partition("://")[0].lower()) == "web"
    slash = "/" if of_web and front.endswith("/") else ""
    return f"{front.rstrip('/')}{slash}{query}"


def exists(path: str) -> bool:
    """Whether there is anything at a path or URL; a link counts. Cost of a URL: a request or two.

    Raises:
        OSError: A store does not tell.
    """
    if not is_url(path):
        return os.path.lexists(path)
    place = place_of(path)
    return not place.name or place.store.kind(place.name) is not None


def is_local_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path is taken for a file, as `Place.kind` has it; to make a `Place` takes 10 us more."""
    path = os.fsdecode(path)
    return not (path.endswith(".json") or is_url(path) or os.path.isdir(path))


def is_folder(path: str) -> bool:
    """Whether there is a folder at a path or URL."""
    return place_of(path).kind() == "folder" if is_url(path) else os.path.isdir(path)


def folder_of(path: str) -> Store:
    """The store of the folder at a path or URL, whether it exists or not."""
    return place_of(path).folder()
