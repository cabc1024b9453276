"""``oci://registry/name:tag/path``: the files of a model in a container registry (OCI distribution API).

A model is a manifest of CNCF's ModelPack, one raw layer a file. ``name@sha256:...`` names a manifest that
cannot change; a tag is followed once, and the store keeps to the manifest that it meant then. The manifest
has the digest of every file, so that a file cannot be replaced unnoticed.

How a commit works: files are uploaded as blobs, which no manifest names yet; then one request puts the new
manifest in the place of the old one. Registries have no conditions: between processes, the last one wins.

Credentials are those that `docker login` or `podman login` keep in a file; helper programs are not run.
Registries on this machine are asked by http, all others by https.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import json
import os
import re
import threading
from typing import TYPE_CHECKING, Final
from urllib.parse import quote as percent_encoded
from urllib.parse import urlencode, urljoin, urlsplit

from ...errors import FormatError, UnsupportedError, quote
from ..runs import expanded
from ..source import flat
from ..store import Commit, Entry, entries_below, kind_among
from .base import RemoteStore
from .connections import ForbiddenAddressError, check_host, is_loopback
from .errors import absent, broken, changed_meanwhile, is_folder
from .exchange import origin_of
from .manifests import (
    DIGEST,
    EMPTY,
    INDEX,
    MANIFEST,
    SIGNATURE,
    Layer,
    digest_of,
    index_text,
    manifest_text,
    parse_manifest,
)
from .ranges import WebFile, repeated
from .source import HEAD_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ..computing import Computed
    from ..runs import Run
    from ..source import Buffer, Source
    from ..store import EntryKind
    from ..urls import Url
    from .responses import Headers

__all__ = ["RegistryStore", "store_of"]

_MANIFEST_MAX: Final = 4 << 20
"""Bytes of a manifest; registries accept no more."""

_ANSWER_MAX: Final = 1 << 20
_CHUNK: Final = 16 << 20
"""Bytes of one request of an upload."""

_NAME: Final = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_PARAMETER: Final = re.compile(r'([a-z]+)="([^"]*)"')
_publishing: Final = threading.Lock()


def store_of(url: Url) -> tuple[RegistryStore, str]:
    """The store of a URL, and the name in it."""
    parts = url.path.split("/") if url.path else []
    last = next((i for i, part in enumerate(parts) if ":" in part or "@" in part), len(parts) - 1)
    full, path = "/".join(parts[: last + 1]), "/".join(parts[last + 1 :])
    base, _, digest = full.partition("@")
    name, separator, tag = base.partition(":")
    tag = tag if separator else "latest"
    valid = _NAME.fullmatch(name) and _TAG.fullmatch(tag)
    if not valid or (digest and not DIGEST.fullmatch(digest)):
        raise UnsupportedError(f"{quote(str(url), 400)} is not oci://registry/name:tag")
    folder, file = (path, "") if url.is_folder else ("", path)
    if not url.is_folder and "/" in path:
        folder, _, file = path.rpartition("/")
    location = f"oci://{url.host}/{full}"
    return RegistryStore(
        location, url.host, name, digest or tag, f"{folder}/" if folder else ""
    ), file


class RegistryStore(RemoteStore):
    """The files of one manifest, below a prefix.

    Args:
        location: URL of the manifest.
        host: Host and port of the registry.
        repository: Name of the repository.
        reference: Tag or digest.
        prefix: What names begin with, with a slash at the end.
    """

    def __init__(
        self, location: str, host: str, repository: str, reference: str, prefix: str = ""
    ) -> None:
        super().__init__(location + f"/{prefix}".rstrip("/"))
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        scheme = "http" if is_loopback(name.strip("[]")) else "https"
        self._api = f"{scheme}://{host}/v2/{repository}"
        self._secrets = _Bearer(location, host)
        self._reference = reference
        self._prefix = prefix
        self._lock = threading.Lock()
        self._files: dict[str, Layer] | None = None
        self.digest: str | None = None
        self._size = 0  # of the manifest

    # ---- reading

    def list(self, folder: str = "", *, recursive: bool = True) -> Iterator[Entry]:
        if folder:
            self.locate(folder)
        return entries_below(sorted(self._below()), folder, recursive=recursive)

    def kind(self, name: str) -> EntryKind | None:
        self.locate(name)
        return kind_among(self._below(), name)

    def open(self, name: str, *, backend: str = "mmap", version: str | None = None) -> Source:  # noqa: ARG002
        where = self.locate(name)
        if (kind := self.kind(name)) != "file":
            raise absent(where) if kind is None else is_folder(where)
        self.check_version(name, version)
        return self.blob(self._below()[name], where)

    def check_version(self, name: str, version: str | None) -> None:
        layer = self._below().get(name)
        if layer is None:
            raise absent(self.locate(name))
        if version not in (None, layer.digest):
            raise changed_meanwhile(self.locate(name), "the manifest has another digest for it")

    def blob(self, layer: Layer, where: str) -> Source:
        """Open the bytes of a layer. Of a short one, the digest is verified at once."""
        address = f"{self._api}/blobs/{layer.digest}"
        source = WebFile(where, address, secrets=self._secrets).open(
            sha256=layer.digest.removeprefix("sha256:")
        )
        small = source.size <= HEAD_SIZE
        if source.size != layer.size or (
            small and digest_of(source.read(0, source.size)) != layer.digest
        ):
            raise FormatError(
                "the registry sends other bytes than those that the manifest names",
                rule="digest", path=where,
            )  # fmt: skip
        source.version = layer.digest
        return source

    def _below(self) -> dict[str, Layer]:
        """The files below the prefix, by name."""
        length = len(self._prefix)
        return {
            name[length:]: layer
            for name, layer in self.files().items()
            if name.startswith(self._prefix)
        }

    def files(self, *, again: bool = False) -> dict[str, Layer]:
        """All files of the manifest; none if the tag does not exist.

        Args:
            again: Ask the registry, whatever is known.
        """
        with self._lock:
            if self._files is None or again:
                self._files, self.digest = self._manifest()
            return self._files

    def _manifest(self) -> tuple[dict[str, Layer], str | None]:
        status, headers, data = repeated(
            self.location, "GET", f"{self._api}/manifests/{self._reference}", {"Accept": MANIFEST},
            secrets=self._secrets, limit=_MANIFEST_MAX, accept=frozenset({200, 404}),
        )  # fmt: skip
        if status == 404:
            return {}, None
        digest = digest_of(data)
        claimed = headers.get("Docker-Content-Digest")
        named = self._reference if DIGEST.fullmatch(self._reference) else digest
        if digest != named or claimed not in (None, digest):
            raise FormatError(
                "the manifest does not have the digest that names it", rule="digest",
                path=self.location,
            )  # fmt: skip
        self._size = len(data)
        return parse_manifest(data, self.location), digest

    # ---- writing

    def delete(self, name: str) -> None:
        if (kind := self.kind(name)) != "file":
            where = self.locate(name)
            raise absent(where) if kind is None else is_folder(where)
        with self.commit() as commit:
            commit.delete(name)

    def check_writable(self) -> None:
        if DIGEST.fullmatch(self._reference):
            raise UnsupportedError(
                "what a digest names cannot change; write to a tag", path=self.location
            )

    def commit(self, *, durable: bool = False) -> Commit:  # noqa: ARG002 - a registry's own business
        self.check_writable()
        return _RegistryCommit(self)

    def upload(
        self, buffers: Iterable[Buffer], where: str, progress: Callable[[int], object] | None = None
    ) -> Layer:
        """Upload bytes as a blob, some MiB at a time.

        Raises:
            OSError: The registry failed, or refuses. It forgets what was not finished.
        """
        address = self._ask(where, "POST", f"{self._api}/blobs/uploads/", {}, b"", {202})
        state, done, pending = hashlib.sha256(), 0, bytearray()
        for buffer in buffers:
            view = flat(buffer)
            state.update(view)
            pending += view
            if len(pending) >= _CHUNK:
                address, done = self._send(where, address, pending, done)
                pending = bytearray()
                if progress is not None:
                    progress(done)
        digest = f"sha256:{state.hexdigest()}"
        if pending:
            address, done = self._send(where, address, pending, done)
        separator = "&" if "?" in address else "?"
        final = f"{address}{separator}{urlencode({'digest': digest})}"
        self._ask(where, "PUT", final, {}, b"", {201})
        if progress is not None:
            progress(done)
        return Layer(digest, done)

    def _send(self, where: str, address: str, data: bytearray, done: int) -> tuple[str, int]:
        fields = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{done}-{done + len(data) - 1}",
        }
        return self._ask(where, "PATCH", address, fields, bytes(data), {202}), done + len(data)

    def _ask(  # noqa: PLR0917
        self,
        where: str,
        method: str,
        address: str,
        fields: Mapping[str, str],
        body: bytes,
        accept: set[int],
    ) -> str:
        """A request of an upload; the address for the next one."""
        _, headers, _ = repeated(
            where, method, address, fields, secrets=self._secrets, limit=_ANSWER_MAX,
            accept=frozenset(accept), body=body,
        )  # fmt: skip
        found = urljoin(address, headers.get("Location") or address)
        if origin_of(where, found) != origin_of(where, self._api):
            raise broken(where, "the registry sends an upload to another server")
        return found

    def put_manifest(self, data: bytes, reference: str, kind: str = MANIFEST) -> Headers:
        """Put a manifest under a tag or its digest; its configuration too, which is empty."""
        self.upload([EMPTY], self.location)
        address = f"{self._api}/manifests/{percent_encoded(reference, safe=':')}"
        _, headers, _ = repeated(
            self.location, "PUT", address, {"Content-Type": kind}, secrets=self._secrets,
            limit=_ANSWER_MAX, accept=frozenset({201}), body=data,
        )  # fmt: skip
        return headers

    def attach(self, signature: bytes) -> str:
        """Attach a signature to the manifest, so that tools find it that know the manifest's digest.

        As a referrer; where the registry has no referrers, in an index under the tag that stands in for
        them, ``sha256-...`` (OCI distribution specification 1.1, "Referrers Tag Schema").

        Returns:
            The digest of the signature's manifest.
        """
        self.files(again=True)
        assert self.digest is not None
        layer = self.upload([signature], self.location)._replace(media_type=SIGNATURE)
        subject = self.digest, self._size
        data = manifest_text({"model.sig": layer}, subject=subject, artifact=SIGNATURE)
        digest = digest_of(data)
        headers = self.put_manifest(data, digest)
        if headers.get("OCI-Subject") is None:
            tag = self.digest.replace(":", "-")
            status, _, earlier = repeated(
                self.location, "GET", f"{self._api}/manifests/{tag}", {"Accept": INDEX},
                secrets=self._secrets, limit=_MANIFEST_MAX, accept=frozenset({200, 404}),
            )  # fmt: skip
            text = index_text(earlier if status == 200 else None, digest, len(data))
            self.put_manifest(text, tag, INDEX)
        return digest

    def put_files(self, files: dict[str, Layer]) -> None:
        """Make these the files of the tag."""
        data = manifest_text(files)
        self.put_manifest(data, self._reference)
        with self._lock:
            self._files, self.digest, self._size = files, digest_of(data), len(data)


class _RegistryCommit(Commit):
    def __init__(self, store: RegistryStore) -> None:
        super().__init__(store)
        self._registry = store
        self._layers: dict[str, Layer] = {}

    def _stage(
        self,
        name: str,
        buffers: Iterable[Buffer | Run | Computed],
        size: int,  # noqa: ARG002
        *,
        create_only: bool,
        progress: Callable[[int], object] | None,
    ) -> None:
        self._check(name, create_only=create_only)
        where = self._registry.locate(name)
        self._layers[name] = self._registry.upload(expanded(buffers), where, progress)

    def _check(self, name: str, *, create_only: bool) -> None:
        kind, where = self._registry.kind(name), self._registry.locate(name)
        if kind is not None and create_only:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), where)
        if kind == "folder":
            raise is_folder(where)

    def _open(self, name: str) -> Source:
        return self._registry.blob(self._layers[name], self._registry.locate(name))

    def _publish(self) -> None:
        prefix = self._registry._prefix  # noqa: SLF001
        with _publishing:
            files = dict(self._registry.files(again=True))
            before = dict(files)
            for name in self._layers:
                self._check(name, create_only=name in self._create_only)
            for name in self._leaving():
                files.pop(prefix + name, None)
            for name in self._arriving():
                files[prefix + name] = self._layers[name]
            if files != before:
                self._registry.put_files(files)

    def _discard(self, error: BaseException) -> None:  # noqa: ARG002
        self._layers.clear()  # blobs that no manifest names are collected by the registry


class _Bearer:
    """Tokens of a registry, got with the user's password if there is one.

    Args:
        where: For messages.
        host: Host and port of the registry.
    """

    def __init__(self, where: str, host: str) -> None:
        self._where = where
        self._host = host
        self._given: dict[str, str] = {}

    def fields(self) -> Mapping[str, str]:
        return self._given

    def renew(self, headers: Headers) -> bool:
        challenge = headers.get("WWW-Authenticate") or ""
        kind, _, rest = challenge.partition(" ")
        password = _password(self._host)
        if kind.lower() == "basic" and password:
            self._given = {"Authorization": f"Basic {password}"}
            return True
        asked = dict(_PARAMETER.findall(rest))
        if kind.lower() != "bearer" or "realm" not in asked:
            return False
        realm = self._checked(asked.pop("realm"))
        address = f"{realm}{'&' if '?' in realm else '?'}{urlencode(asked)}"
        fields = {"Authorization": f"Basic {password}"} if password else {}
        _, _, data = repeated(
            self._where, "GET", address, {}, secrets=_Fixed(fields), limit=_ANSWER_MAX
        )
        try:
            found = json.loads(data)
            token = found.get("token") or found["access_token"]
        except (ValueError, KeyError, AttributeError, RecursionError):
            raise broken(self._where, "the registry's answer has no token") from None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise broken(self._where, "the registry's answer has no token")
        self._given = {"Authorization": f"Bearer {token}"}
        return True

    def _checked(self, realm: str) -> str:
        """The address of the server that gives tokens, if a password may be sent there."""
        try:
            parts = urlsplit(realm)
            host = parts.hostname or ""
            check_host(host)
            local = is_loopback(self._host.rpartition(":")[0] or self._host)
        except (ValueError, ForbiddenAddressError):
            raise broken(self._where, "the registry names no server for tokens") from None
        if parts.scheme != "https" and not (parts.scheme == "http" and local and is_loopback(host)):
            raise broken(self._where, "the registry's server for tokens is not reached by https")
        return realm


class _Fixed:
    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = fields

    def fields(self) -> Mapping[str, str]:
        return self._fields

    def renew(self, headers: Headers) -> bool:  # noqa: ARG002
        return False


def _password(host: str) -> str | None:
    """User and password for a registry, encoded, as `docker login` keeps them."""
    home = os.path.expanduser("~")
    folders = [os.environ.get("DOCKER_CONFIG") or os.path.join(home, ".docker")]
    names = [os.path.join(folder, "config.json") for folder in folders]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        names.append(os.path.join(runtime, "containers", "auth.json"))
    for name in names:
        try:
            with open(name, encoding="utf-8") as file:
                found = json.load(file)["auths"][host]["auth"]
            base64.b64decode(found, validate=True)
        except (OSError, ValueError, KeyError, TypeError, binascii.Error):
            continue
        return str(found)
    return None
