"""A store whose files are decrypted as they are read, over any other store.

An encrypted model has ``NAME.age`` for each file, and key files (``model.key.age``) with the identity that
opens them. (Or, from KServe's tools, ``NAME.jwe`` and no key file.) The store lists and opens ``NAME``, so
that nothing above it knows of encryption. Files that are not encrypted do not exist in it: no plaintext can
take the place of a file that was encrypted.
"""

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from ...errors import UnsupportedError
from ...storage import Commit, Entry, LocalStore, Source, Store
from ..errors import AccessError
from ..files import ENCRYPTED, KEY_FILE
from .jwe import SUFFIX as JWE
from .keyring import Keyring, as_keyring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ...storage import Buffer, Verifier
    from ...storage.store import EntryKind

    Check = Callable[["EncryptedStore", str, Source], Source]

__all__ = ["EncryptedStore", "full_name", "key_files", "plain_name"]

_ABOVE: Final = 4
"""Folders above a file in which its key file is looked for, as for signatures."""

_KEY_FILES_MAX: Final = 1000

_DEFAULT_KEY_FILE: Final = "model" + KEY_FILE


class EncryptedStore(Store):
    """The plaintext of the encrypted files of a store; read-only.

    Args:
        store: Where the encrypted files are.
        identity: A `Keyring`, or what `keyring.as_keyring` takes.
        folder: The folder in `store` beside and above whose files key files are looked for.
        named: The name of a file in `store` as the caller gave it. If it has a suffix of encrypted files,
            no other file takes its place: neither ``NAME`` nor ``NAME.jwe`` that of ``NAME.age``.
        verify: Called with the ciphertext of every file, key files too, and its path, before anything of it
            is decrypted; what it returns is read instead.
        check: Called with this store, a name, and the plaintext of that file; what it returns is read
            instead. Without effect on how key files are read.
    """

    def __init__(
        self,
        store: Store,
        identity: Any,
        *,
        folder: str = "",
        named: str = "",
        verify: Verifier | None = None,
        check: Check | None = None,
    ) -> None:
        self.location = store.location
        self.is_remote = store.is_remote
        self.can_list = store.can_list
        self._store = store
        self._folder = folder
        plain = plain_name(named)
        self._exact = {} if plain is None else {plain: named}
        self._own = as_keyring(identity)
        self._verify = verify
        self._check = check
        self._keys: Keyring | None = None
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"EncryptedStore({self.location!r})"

    def list(self, folder: str = "", *, recursive: bool = True) -> Iterator[Entry]:
        entries = [*self._store.list(folder, recursive=recursive)]
        found = {
            Entry(plain, kind)
            for name, kind in entries
            if (plain := name if kind == "folder" else plain_name(name)) is not None
        }
        if not any(entry.kind != "folder" for entry in found):
            # KServe's tools also encrypt files in their place; opening them tells.
            found.update(entries)
        return iter(sorted(found, key=full_name))

    def kind(self, name: str) -> EntryKind | None:
        return next((kind for each in self._names(name) if (kind := self._store.kind(each))), None)

    def open(self, name: str, *, backend: str = "mmap", version: str | None = None) -> Source:
        if name.endswith(KEY_FILE):
            raise AccessError(
                "this is a file of keys, which opens the files beside it; name one of those, or the folder",
                reason="key-file", path=self._store.locate(name),
            )  # fmt: skip
        source = self._open(self._store, self._encrypted_name(name), backend, version)
        found = self._keyring().open(source)
        found.version = source.version
        return found if self._check is None else self._check(self, name, found)

    def check_version(self, name: str, version: str | None) -> None:
        self._store.check_version(self._encrypted_name(name), version)

    def _encrypted_name(self, name: str) -> str:
        """The name on the disk of the file called `name`."""
        if name in self._exact:
            return self._exact[name]
        found = (each for each in self._names(name) if self._store.kind(each) in {"file", "link"})
        return next(found, name + ENCRYPTED)

    def _names(self, name: str) -> tuple[str, ...]:
        """The names that a file called `name` may have on the disk, as it is encrypted.

        KServe's tools also encrypt files in their place.
        """
        if name in self._exact:
            return (self._exact[name],)
        return name + ENCRYPTED, name + JWE, name

    def has(self, name: str) -> bool:
        """Whether a file called `name` is encrypted here; plaintext of that name does not count."""
        return any(self._store.kind(each) is not None for each in self._names(name) if each != name)

    def root(self) -> tuple[EncryptedStore, str]:
        """The store of the whole model, where its key file is, and what names here begin with there.

        It is another one where a folder inside a local model was opened.
        """
        found = key_files(self._store, self._folder)
        top = found[0][0] if found else self._store
        if top is self._store:
            return self, ""
        inside = os.path.relpath(os.path.abspath(self.location), os.path.abspath(top.location))
        store = EncryptedStore(top, self._own, verify=self._verify)
        return store, f"{inside.replace(os.sep, '/')}/"

    def decrypted(self, source: Source) -> Source:
        """The plaintext of a file that is open, by the keys of this store."""
        return self._keyring().open(source)

    def write(self, name: str, buffers: Iterable[Buffer], **_: Any) -> None:  # noqa: ARG002
        raise self._read_only()

    def delete(self, name: str) -> None:  # noqa: ARG002
        raise self._read_only()

    def commit(self, *, durable: bool = False) -> Commit:  # noqa: ARG002
        raise self._read_only()

    def interrupted(self) -> str | None:
        return self._store.interrupted()

    def recover(self) -> bool:
        return self._store.recover()

    def locate(self, name: str) -> str:
        return self._store.locate(self._encrypted_name(name))

    def _read_only(self) -> UnsupportedError:
        return UnsupportedError(
            f"{self!r} is read-only: `safeweights.encrypt` writes encrypted files"
        )

    def _open(
        self, store: Store, name: str, backend: str = "pread", version: str | None = None
    ) -> Source:
        # Ciphertext is used from a mapping only while a lease keeps the file as it is (`Source.held`): a
        # file that is cut off meanwhile would end the process.
        backend = {"mmap": "pread", "auto": "read"}.get(backend, backend)
        source = store.open(name, backend=backend, version=version)
        if self._verify is None:
            return source
        found = self._verify(source, source.name)
        found.version = source.version
        return found

    def _keyring(self) -> Keyring:
        """The caller's identities, and those in the key files that they open."""
        with self._lock:
            if self._keys is None:
                found = key_files(self._store, self._folder)
                self._keys = self._own.adding(self._open(store, name) for store, name in found)
            return self._keys


def key_files(store: Store, folder: str = "") -> list[tuple[Store, str]]:
    """The key files that may concern what is in a folder of a store: the nearest folder with any.

    Args:
        store: The store.
        folder: A folder in it; its parents are looked at too, and those above a local store.

    Returns:
        Stores and names there; nothing if there is no key file.

    Raises:
        AccessError: ``key-file``: there are more than a thousand.
    """
    places: list[tuple[Store, str]] = [(store, folder)]
    while folder:
        folder = folder.rpartition("/")[0]
        places.append((store, folder))
    if isinstance(store, LocalStore):
        path = os.path.abspath(store.location)
        for _ in range(_ABOVE):
            path = os.path.dirname(path)
            places.append((LocalStore(path), ""))
    for place, inside in places[: _ABOVE + 1]:
        names = _key_names(place, inside)
        if len(names) > _KEY_FILES_MAX:
            raise AccessError(
                f"there are more than {_KEY_FILES_MAX} key files in the folder",
                reason="key-file", path=place.location,
            )  # fmt: skip
        if names:
            return [(place, name) for name in names]
    return []


def _key_names(store: Store, folder: str) -> list[str]:
    if not store.can_list:
        name = f"{folder}/{_DEFAULT_KEY_FILE}" if folder else _DEFAULT_KEY_FILE
        return [name] if store.kind(name) is not None else []
    try:
        entries = [*store.list(folder, recursive=False)]
    except PermissionError:  # a folder above, which is none of the model's
        return []
    return [name for name, kind in entries if kind != "folder" and name.endswith(KEY_FILE)]


def plain_name(name: str) -> str | None:
    """The name of the file that is encrypted under this name; None if none is.

    >>> plain_name("a/model.safetensors.age"), plain_name("model.key.age"), plain_name("README.md")
    ('a/model.safetensors', None, None)
    """
    if name.endswith(KEY_FILE):
        return None
    for suffix in (ENCRYPTED, JWE):
        if name.endswith(suffix) and name.rpartition("/")[2] != suffix:
            return name.removesuffix(suffix)
    return None


def full_name(entry: Entry) -> str:
    """Sorts a folder as the names of what is in it would be."""
    return f"{entry.name}/" if entry.kind == "folder" else entry.name
