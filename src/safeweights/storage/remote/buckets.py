"""``s3://``, ``gs://`` and ``az://``: objects in a bucket, through obstore (the extra ``remote``).

Credentials, region and endpoint come from the environment, as the cloud's own tools read them. A name is an
object's key below the prefix that the URL gives.

How a commit works: small files are kept in memory, large ones are uploads of several parts, which no
listing shows until they are completed. When all are there, the file that was named last, an index, is
deleted, and one of the other files, the gate; the new files are completed, each replacing its predecessor
at once; old files leave; then the gate arrives, and the last one. A process that is killed in between
leaves no index and a shard missing, which a reader notices: never a set that looks complete and is made
of two. (Buckets have no locks: commits of one process are done one after another, those of several are
not.)

`create_only` is a condition that the bucket checks for files of up to `_SMALL` bytes. Uploads of several
parts have no such condition in obstore: for those, the bucket is asked immediately before.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ...errors import ChangedError, MissingDependencyError, UnsupportedError
from ..runs import expanded
from ..source import BytesSource, flat
from ..store import Commit, Entry
from .base import RemoteStore
from .errors import absent, broken, changed_meanwhile, denied, is_folder
from .source import HEAD_SIZE, RemoteSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..computing import Computed
    from ..runs import Run
    from ..source import Buffer, Source
    from ..store import EntryKind
    from ..urls import Url

__all__ = ["BucketStore", "store_of"]

_SMALL: Final = 8 << 20
"""Files up to this size are one request; it is also the least size of a part."""

_MOST_PARTS: Final = 9000
"""Parts of one upload; S3 allows 10,000."""

_UNKNOWN_PART: Final = 64 << 20
"""Size of a part if the size of the file is not known: room for 560 GB."""

_KEPT: Final = 64 << 20
"""Size up to which a file that leaves is kept in memory, to put it back if a commit fails."""

_publishing: Final = threading.Lock()
_user: Final[dict[str, int]] = {}
"""The process that has asked a bucket; a forked one inherits what its parent noted."""


def store_of(url: Url) -> tuple[BucketStore, str]:
    """The store of a bucket's URL, and the name in it."""
    bucket = _bucket(url.scheme, url.host)
    if url.is_folder:
        return BucketStore(str(url).rstrip("/"), bucket, url.path), ""
    folder, _, name = url.path.rpartition("/")
    location = str(url._replace(path=folder)).rstrip("/")
    return BucketStore(location, bucket, folder), name


@lru_cache(16)  # a client has connections and credentials that it renews
def _bucket(scheme: str, name: str) -> Any:
    try:
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError as error:
        raise MissingDependencyError(
            f"{scheme}:// needs the package obstore: pip install 'safeweights[remote]'"
        ) from error
    kind: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
    options: dict[str, Any] = {"client_options": {"user_agent": "safeweights"}}
    # An endpoint of http is the user's own choice, in the environment.
    endpoint = next((os.environ[key] for key in _ENDPOINTS[scheme] if os.environ.get(key)), "")
    if endpoint.startswith("http://"):
        options["client_options"]["allow_http"] = True
    with _translated(f"{scheme}://{name}"):  # starts no thread
        return kind(name, **options)


_ENDPOINTS: Final = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL", "GOOGLE_STORAGE_BASE_URL"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}


def _error(error: Exception, where: str, offset: int | None = None) -> Exception:
    """An error of obstore as one of ours. Its text is left out: it may repeat signed headers and keys."""
    from obstore import exceptions

    kinds: dict[type[Exception], Callable[[], Exception]] = {
        exceptions.NotFoundError: lambda: absent(where),
        exceptions.PermissionDeniedError: lambda: denied(where),
        exceptions.UnauthenticatedError: lambda: denied(where),
        exceptions.PreconditionError: lambda: changed_meanwhile(
            where, "its entity tag is another", offset
        ),
        exceptions.AlreadyExistsError: lambda: _exists(where),
        exceptions.NotSupportedError: lambda: UnsupportedError(
            "the bucket cannot do that", path=where
        ),
        FileNotFoundError: lambda: absent(where),
    }
    for kind, make in kinds.items():
        if isinstance(error, kind):
            return make()
    if isinstance(error, exceptions.BaseError | OSError | ValueError):
        return broken(
            where, f"the bucket, or the way to it, failed ({type(error).__name__})", offset
        )
    return error


@contextmanager
def _mapped(where: str, offset: int | None = None) -> Iterator[None]:
    """Around a call that asks a bucket: raise its errors as `_error` has them.

    Raises:
        UnsupportedError: A parent of this process has used obstore: a call would never return, since
            its threads are not in a process that was forked.
    """
    if _user.setdefault("process", os.getpid()) != os.getpid():
        raise UnsupportedError(
            "buckets cannot be used after fork(2) in a process whose parent used them: start workers "
            "by 'spawn' or 'forkserver' (multiprocessing_context='spawn' of a DataLoader)",
            path=where, offset=offset,
        )  # fmt: skip
    with _translated(where, offset):
        yield


@contextmanager
def _translated(where: str, offset: int | None = None) -> Iterator[None]:
    """Raise errors of obstore as `_error` has them, without what they were."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - `_error` returns those it does not know
        raise _error(error, where, offset) from None


def _exists(where: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), where)


class BucketStore(RemoteStore):
    """The objects of a bucket whose keys begin with a prefix.

    Args:
        location: Its URL.
        bucket: A store of obstore.
        prefix: What keys begin with, without the slash after it.
    """

    def __init__(self, location: str, bucket: Any, prefix: str) -> None:
        super().__init__(location)
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    # ---- reading

    def list(self, folder: str = "", *, recursive: bool = True) -> Iterator[Entry]:
        import obstore

        where = self.locate(folder) if folder else self.location
        prefix = (self._prefix + (f"{folder}/" if folder else "")) or None
        if recursive:
            return self._walk(obstore.list(self._bucket, prefix, chunk_size=1000), where)
        with _mapped(where):
            found = obstore.list_with_delimiter(self._bucket, prefix)
        entries = [Entry(self._name(each["path"]), "file") for each in found["objects"]]
        entries += [Entry(self._name(each), "folder") for each in found["common_prefixes"]]
        return iter(sorted(entries, key=lambda e: e.name + "/" * (e.kind == "folder")))

    def _walk(self, pages: Iterable[Any], where: str) -> Iterator[Entry]:
        """All objects, a page of a thousand at a time, as S3 and Google list them: in the order of UTF-8.

        Azure does not say in which order it lists, and Azurite's is that of UTF-16: all are sorted here.
        """
        found = self._objects(pages, where)
        return iter(sorted(found)) if self._scheme == "az" else found

    def _objects(self, pages: Iterable[Any], where: str) -> Iterator[Entry]:
        with _mapped(where):
            for page in pages:
                for each in page:
                    yield Entry(self._name(each["path"]), "file")

    def _name(self, key: str) -> str:
        return key.rstrip("/")[len(self._prefix) :]

    def _head(self, name: str) -> Any:
        """What the bucket knows of an object; None if there is none."""
        import obstore

        try:
            with _mapped(self.locate(name)):
                return obstore.head(self._bucket, self._prefix + name)
        except FileNotFoundError:
            return None

    def kind(self, name: str) -> EntryKind | None:
        if self._head(name) is not None:
            return "file"
        return "folder" if next(self.list(name), None) is not None else None

    def open(self, name: str, *, backend: str = "mmap", version: str | None = None) -> Source:  # noqa: ARG002
        where = self.locate(name)
        data, meta = self._first(name, version)
        size, etag = meta["size"], meta["e_tag"]
        if version not in (None, etag):
            raise changed_meanwhile(where, "the bucket has another version")
        if len(data) != min(size, HEAD_SIZE):
            raise broken(where, "the bucket sends another number of bytes than it says", 0)

        def fetch(offset: int, buffer: memoryview) -> None:
            with _mapped(where, offset):
                data, meta = self._get(name, offset, offset + len(buffer), etag)
            if (meta["size"], meta["e_tag"]) != (size, etag):
                raise changed_meanwhile(where, "its entity tag or size is another", offset)
            if len(data) != len(buffer):
                raise broken(where, "the bucket sends another number of bytes than it says", offset)
            buffer[:] = data

        return RemoteSource(where, size, etag, fetch, head=bytes(data))

    def _first(self, name: str, version: str | None) -> tuple[memoryview, Any]:
        """The first bytes of an object, and what the bucket knows of it."""
        where = self.locate(name)
        try:
            with _mapped(where):
                return self._get(name, 0, HEAD_SIZE, version)
        except FileNotFoundError:
            if self.kind(name) == "folder":
                raise is_folder(where) from None
            raise
        except ChangedError:
            # Azure says of an object that is not there, too, that it is not of the version.
            if self._head(name) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where) from None
            raise
        except (PermissionError, FileExistsError):
            raise
        except OSError:
            # An empty object has no first byte, so that asking for it is an error.
            meta = self._head(name)
            if meta is None or meta["size"]:
                raise
            return memoryview(b""), meta

    def _get(self, name: str, begin: int, end: int, etag: str | None) -> tuple[memoryview, Any]:
        """A range, and what the answer says of the whole object."""
        import obstore

        options: Any = {"range": (begin, end)}
        if etag is not None and not etag.startswith("W/"):  # see `responses.Version`
            options["if_match"] = etag
        answer = obstore.get(self._bucket, self._prefix + name, options=options)
        return memoryview(answer.bytes()), answer.meta

    # ---- writing

    def check_writable(self) -> None:
        """A bucket can be written, if its credentials allow that."""

    def delete(self, name: str) -> None:
        kind = self.kind(name)
        where = self.locate(name)
        if kind != "file":
            raise absent(where) if kind is None else is_folder(where)
        self._delete(name)

    def _delete(self, name: str) -> None:
        import obstore

        with _mapped(self.locate(name)):
            obstore.delete(self._bucket, self._prefix + name)

    def replace(self, name: str, data: Buffer, *, version: str) -> None:
        import obstore

        where = self.locate(name)
        mode: Any = {"e_tag": version}
        try:
            with _mapped(where):
                obstore.put(
                    self._bucket, self._prefix + name, bytes(data), mode=mode, use_multipart=False
                )
        except FileNotFoundError:
            raise changed_meanwhile(where, "it is gone") from None

    def _put(self, name: str, data: Buffer, *, create_only: bool = False) -> None:
        import obstore

        mode: Any = "create" if create_only else "overwrite"
        with _mapped(self.locate(name)):
            obstore.put(
                self._bucket, self._prefix + name, bytes(data), mode=mode, use_multipart=False
            )

    def commit(self, *, durable: bool = False) -> Commit:  # noqa: ARG002 - buckets are durable
        return _BucketCommit(self)


class _Upload:
    """An object on its way: bytes in memory, or if there are more an upload of several parts.

    Attributes:
        data: The bytes in memory; None for an upload.
    """

    def __init__(self, store: BucketStore, name: str, size: int) -> None:
        self._store = store
        self._name = name
        self._where = store.locate(name)
        self._part = _UNKNOWN_PART if not size else max(_SMALL, -(-size // _MOST_PARTS))
        self.data: bytearray | None = bytearray()
        self._writer: Any = None

    def write(self, buffer: memoryview) -> None:
        if self.data is not None and len(self.data) + len(buffer) <= _SMALL:
            self.data += buffer
            return
        with _mapped(self._where):
            if self.data is not None:
                self._begin(self.data)
            self._writer.write(buffer)

    def _begin(self, data: bytearray) -> None:
        import obstore

        key = self._store._prefix + self._name  # noqa: SLF001
        self._writer = obstore.open_writer(self._store._bucket, key, buffer_size=self._part)  # noqa: SLF001
        self.data = None
        self._writer.write(data)

    def complete(self, *, create_only: bool) -> None:
        """Make it visible."""
        if self.data is not None:
            self._store._put(self._name, self.data, create_only=create_only)  # noqa: SLF001
            return
        if create_only and self._store.kind(self._name) is not None:
            raise _exists(self._where)
        writer, self._writer = self._writer, None
        with _mapped(self._where):
            writer.close()

    def abort(self) -> None:
        """Make the bucket forget it."""
        writer, self._writer = self._writer, None
        if writer is not None:
            error = InterruptedError()  # an upload is given up if its block raises
            writer.__exit__(type(error), error, None)


class _BucketCommit(Commit):
    def __init__(self, store: BucketStore) -> None:
        super().__init__(store)
        self._bucket = store
        self._uploads: dict[str, _Upload] = {}

    def _stage(
        self,
        name: str,
        buffers: Iterable[Buffer | Run | Computed],
        size: int,
        *,
        create_only: bool,
        progress: Callable[[int], object] | None,
    ) -> None:
        self._check(name, create_only=create_only)
        upload = self._uploads[name] = _Upload(self._bucket, name, size)
        done = 0
        for buffer in expanded(buffers):
            view = flat(buffer)
            upload.write(view)
            done += len(view)
            if progress is not None:
                progress(done)

    def _check(self, name: str, *, create_only: bool) -> None:
        kind = self._bucket.kind(name)
        where = self._bucket.locate(name)
        if kind is not None and create_only:
            raise _exists(where)
        if kind == "folder":
            raise is_folder(where)

    def _open(self, name: str) -> Source:
        data = self._uploads[name].data
        if data is None:
            raise UnsupportedError(
                "an upload cannot be read before it is complete", path=self._bucket.locate(name)
            )
        return BytesSource(data, self._bucket.locate(name))

    def _publish(self) -> None:
        with _publishing:
            self._exchange()

    def _exchange(self) -> None:
        arriving = list(self._arriving())
        for name in arriving:
            if name in self._create_only:
                self._check(name, create_only=True)
        leaving = [name for name in self._leaving() if name not in self._uploads]
        final = self._final(arriving)
        undo = _Undo(self._bucket)
        try:
            for name in reversed(final if len(arriving) + len(leaving) > 1 else []):
                if name not in self._create_only:
                    undo.delete(name)
            for name in arriving:
                if name not in final:
                    self._complete(name, undo)
            for name in leaving:
                undo.delete(name)
            for name in final:
                self._complete(name, undo)
        except BaseException:
            undo.run()
            raise

    def _final(self, arriving: list[str]) -> list[str]:
        """The gate, if there has to be one, and the last file."""
        kind = arriving[0].rpartition(".")[2] if arriving else ""
        alike = [name for name in arriving[:-1] if name.rpartition(".")[2] == kind]
        if len(alike) < 2:
            return arriving[-1:]

        def size(name: str) -> int:
            head = self._bucket._head(name)  # noqa: SLF001
            return 1 << 62 if head is None else int(head["size"])

        # The smallest one can most likely be put back if the commit fails.
        return [min(alike, key=size), arriving[-1]]

    def _complete(self, name: str, undo: _Undo) -> None:
        created = name in self._create_only or self._bucket._head(name) is None  # noqa: SLF001
        self._uploads[name].complete(create_only=name in self._create_only)
        undo.written(name, created=created)

    def _discard(self, error: BaseException) -> None:  # noqa: ARG002
        for upload in self._uploads.values():
            upload.abort()
        self._uploads.clear()


class _Undo:
    """What a commit has done so far, and how to take it back.

    What was replaced or was too large to be kept cannot be put back. Then nothing that a reader begins
    with is put back either: a file that is missing is noticed, a mixture is not.
    """

    def __init__(self, store: BucketStore) -> None:
        self._store = store
        self._deleted: dict[str, bytes] = {}
        self._created: list[str] = []
        self._lost = False

    def delete(self, name: str) -> None:
        """Delete a file, if there is one, and keep its bytes."""
        try:
            source = self._store.open(name)
        except FileNotFoundError:
            return
        if source.size <= _KEPT:
            self._deleted[name] = source.read(0, source.size)
        else:
            self._lost = True
        self._store._delete(name)  # noqa: SLF001

    def written(self, name: str, *, created: bool) -> None:
        """A file arrived."""
        if created:
            self._created.append(name)
        else:
            self._lost = True

    def run(self) -> None:
        """Take it back, as far as that can be done."""
        for name in self._created:
            self._store._delete(name)  # noqa: SLF001
        if not self._lost:
            for name, data in self._deleted.items():
                self._store._put(name, data)  # noqa: SLF001
