"""Stores: places where named files live, such as a folder, a bucket or a repository.

Rules:
- A name is relative to its store: text with ``/`` between its parts, none of them empty, ``.`` or
  ``..``. Nothing outside the store can be named.
- A listing has every file, hidden ones too, sorted by name in code point order. Links and special
  files are listed by kind and never followed.
- A file is written whole or not at all. A commit replaces a set of files: until every new file is
  complete, the old set stays whole, and if anything fails, it is there again.
- What is opened has a known size, and a version where the store can tell one: opening it by that
  version gives the same bytes or an error.

Knows nothing of tensors. Verifying what is read is the caller's business.
"""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from itertools import chain, count
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from ..errors import ChangedError, UnsupportedError, quote
from .runs import expanded
from .source import BytesSource, flat

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from .computing import Computed
    from .runs import Run
    from .shared_file import SharedFile
    from .source import Buffer, Source

__all__ = [
    "Commit", "Entry", "EntryKind", "MemoryStore", "Store", "check_name", "entries_below", "kind_among",
]  # fmt: skip

EntryKind: TypeAlias = Literal["file", "link", "special", "folder"]
"""What a name stands for: a regular file, a symbolic link, another special file, or a folder."""


class Entry(NamedTuple):
    """A name in a store, and what it stands for."""

    name: str
    kind: EntryKind


def check_name(name: str) -> str | None:
    r"""Why `name` cannot be a file's name in every store; None if it can.

    The rules of OMS section 6.1.2, and no backslash, which is a separator on one system and a
    letter on another.

    >>> check_name("../weights")
    'has an empty, `.` or `..` part'
    """
    if problem := check_inside(name):
        return problem
    if "\\" in name or (name[1:2] == ":" and name[0].isascii() and name[0].isalpha()):
        return "is not a relative path with `/` between its parts"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    return None


def check_inside(name: str) -> str | None:
    """Why `name` does not name something inside a store; None if it does: the rules of all stores."""
    if not name or "\0" in name:
        return "is empty or contains NUL"
    if name.startswith("/"):
        return "is not a relative path with `/` between its parts"
    if any(part in {"", ".", ".."} for part in name.split("/")):
        return "has an empty, `.` or `..` part"
    return None


class Store(ABC):
    """Named files; safe to use from several threads.

    Attributes:
        location: Where it is, for messages: a path or a URL, without credentials.
        is_remote: Whether every question takes a request over a network: ask few, and several at once.
        can_list: Whether `list` works; of a store that cannot, files have to be known by name.
    """

    location: str
    is_remote: bool = False
    can_list: bool = True

    @abstractmethod
    def list(self, folder: str = "", *, recursive: bool = True) -> Iterator[Entry]:
        """Every file below `folder`, sorted by name in code point order.

        Names are relative to the store, not to `folder`. Cost: entries are made as they are asked
        for; a local store reads and sorts one folder at a time.

        Args:
            folder: The name of a folder; the whole store by default. If there is none, nothing is
                listed.
            recursive: List files in subfolders too; otherwise subfolders are entries themselves.

        Raises:
            UnsupportedError: `folder` is not a valid name, or the store cannot list.
            OSError: The store, or a folder in it, cannot be read.
        """

    @abstractmethod
    def kind(self, name: str) -> EntryKind | None:
        """What `name` stands for, without following a link; None if there is no such thing.

        Raises:
            UnsupportedError: `name` is not a valid name.
            OSError: The store cannot tell.
        """

    @abstractmethod
    def open(self, name: str, *, backend: str = "mmap", version: str | None = None) -> Source:
        """Open a file; a symbolic link to a regular file too.

        Args:
            name: Its name.
            backend: How a local file is read, see `safeweights.storage.open_source`; other stores
                ignore it.
            version: The `Source.version` that an earlier call gave: only the same bytes will do.

        Raises:
            ChangedError: The file is not that version any more.
            UnsupportedError: `name` is not a valid name.
            OSError: There is no such file (FileNotFoundError), it is no regular file, or it cannot
                be opened.
        """

    def write(
        self,
        name: str,
        buffers: Iterable[Buffer],
        *,
        size: int = 0,
        durable: bool = False,
        create_only: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Write a file, whole or not at all; missing folders are made.

        Args:
            name: Its name. A symbolic link of that name is replaced, not followed.
            buffers: The contents. An iterator is read as bytes are written, so it may make them.
            size: Number of bytes there will be, where it is known.
            durable: Return only when the file would survive a loss of power.
            create_only: Replace nothing.
            progress: Called with the number of bytes written so far.

        Raises:
            FileExistsError: `create_only`, and `name` exists, or another writer made it meanwhile.
            UnsupportedError: `name` is not a valid name.
            OSError: Writing failed; what was there is unchanged.
        """
        with self.commit(durable=durable) as commit:
            commit.write(name, buffers, size=size, create_only=create_only, progress=progress)

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file, or a link itself.

        Raises:
            UnsupportedError: `name` is not a valid name.
            OSError: There is no such file (FileNotFoundError), or it cannot be deleted.
        """

    def check_writable(self) -> None:  # noqa: B027 - most kinds can be
        """Check, before any work, that this kind of store can be written. Writing can still fail later.

        Raises:
            UnsupportedError: It is only read.
        """

    def replace(self, name: str, data: Buffer, *, version: str) -> None:
        """Replace a file only if it is still the version that was read: no other writer's work is lost.

        Args:
            name: Its name.
            data: The new contents.
            version: The `Source.version` of what is replaced.

        Raises:
            ChangedError: The file is another version, or gone.
            UnsupportedError: The store cannot compare and replace in one step, or `name` is not valid.
            OSError: Writing failed.
        """
        raise UnsupportedError(
            "this kind of store cannot replace a file on condition of its version",
            path=self.locate(name),
        )

    def check_version(self, name: str, version: str | None) -> None:
        """Check that a file is the version that was read.

        Cost: what opening it costs; nothing where a store keeps to one version of all its files.

        Args:
            name: Its name.
            version: The `Source.version` that it must have; None if it had none.

        Raises:
            ChangedError: It is another version.
            OSError: There is no such file (FileNotFoundError), or it cannot be opened.
        """
        self.open(name, backend="pread", version=version)

    @abstractmethod
    def commit(self, *, durable: bool = False) -> Commit:
        """Begin to replace a set of files at once; see `Commit`.

        Args:
            durable: Return from the commit only when all of it would survive a loss of power.
        """

    def fill(self, staged: str) -> SharedFile:
        """Open a file that `Commit.reserve` staged, in this process or in another one.

        Args:
            staged: What `Commit.reserve` gave.

        Raises:
            UnsupportedError: The store takes each file from one process only.
            OSError: The file is not there, as where two machines have different filesystems at one path.
        """
        raise _one_writer(self)

    def interrupted(self) -> str | None:
        """Where the old files of a commit are that is being published, or was killed then; else None.

        Until they are back, or were deleted, the store may have only a part of a set. Stores whose
        commits are atomic have no such state.
        """
        return None

    def recover(self) -> bool:
        """Bring a set of files to an end that a process was publishing when it was killed.

        They are the old set again if no new file was in its place yet, else the new one.

        Returns:
            Whether there was anything to do. False also while a process that lives is publishing, and where
            the store cannot know: `interrupted` then says where the files are.

        Raises:
            OSError: Files cannot be moved.
        """
        return False

    @abstractmethod
    def locate(self, name: str) -> str:
        """Where the file called `name` is, for messages: a path or a URL.

        Raises:
            UnsupportedError: `name` is not a valid name here: it breaks the rules of `check_inside`,
                or the store has stricter ones.
        """


class Commit(ABC):
    """A set of files that changes at once: a context manager, published when its block ends.

    New files are staged first, where no listing of the store shows them under their names. Then old
    files leave and new files arrive. What is named last is the most important: it leaves first and
    arrives last. So a caller names shards first and their index last, and a reader finds the old set,
    the new set, or files missing, never files of both. If the block or publishing fails, everything is
    undone.

    >>> store = MemoryStore()
    >>> store.write("old-shard", [b"1"])
    >>> with store.commit() as commit:
    ...     commit.delete("old-shard")
    ...     commit.write("shard", [b"2"])
    ...     commit.write("index", [b"{}"])
    >>> [entry.name for entry in store.list()]
    ['index', 'shard']
    """

    _moves_runs = False
    """Whether `_stage` takes runs; otherwise it is given their bytes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: dict[str, bool] = {}  # name -> whether it is written; else it is deleted
        self._create_only: set[str] = set()
        self._matches: list[Callable[[str], bool]] = []

    def write(
        self,
        name: str,
        buffers: Iterable[Buffer | Run | Computed],
        *,
        size: int = 0,
        create_only: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Stage a file; the arguments are those of `Store.write`, and `buffers` may have runs.

        Raises:
            FileExistsError: `create_only`, and `name` exists. A file that appears before the commit
                is published makes publishing fail in the same way.
            UnsupportedError: `name` is not a valid name, or was already used in this commit.
            OSError: Writing failed.
        """
        self._require_new(name)
        buffers = buffers if self._moves_runs else expanded(buffers)
        self._stage(name, buffers, size, create_only=create_only, progress=progress)
        self._written[name] = True
        if create_only:
            self._create_only.add(name)

    def reserve(self, name: str, size: int) -> str:
        """Stage a file of `size` bytes that several processes fill, each with its own ranges of it.

        All of them must have closed it (`SharedFile.close`) before this commit is published.

        Args:
            name: Its name.
            size: Number of bytes; the space for them is reserved where the filesystem can do that.

        Returns:
            What `Store.fill` takes: a name that is the same for every process that uses the store.

        Raises:
            UnsupportedError: The store takes each file from one process only, or as `write`.
            OSError: There is no space, or no file can be made.
        """
        self._require_new(name)
        staged = self._reserve(name, size)
        self._written[name] = True
        return staged

    def delete(self, name: str) -> None:
        """Let the file called `name` leave, if there is one.

        Raises:
            UnsupportedError: `name` is not a valid name, or was already used in this commit.
        """
        self._require_new(name)
        self._written[name] = False

    def delete_where(self, matches: Callable[[str], bool]) -> None:
        """Let all files directly in the store leave for whose names `matches` is true.

        The store is asked when the commit is published, so that files count which another process
        wrote meanwhile. Files that this commit writes stay. Those that match leave last.
        """
        self._matches.append(matches)

    def open(self, name: str) -> Source:
        """Read a staged file back.

        Raises:
            OSError: No file of that name was staged, or it cannot be read.
        """
        if not self._written.get(name):
            where = self._store.locate(name)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where)
        return self._open(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._discard(error)
            return
        try:
            self._publish()
        except BaseException as failed:
            self._discard(failed)
            raise

    def _require_new(self, name: str) -> None:
        self._store.locate(name)  # raises if it is not valid
        if name in self._written:
            raise UnsupportedError(f"{quote(name)} is already part of this commit")

    def _matching(self, present: Iterable[Entry]) -> Iterator[str]:
        """The names that `delete_where` chose."""
        for name, kind in present:
            chosen = kind != "folder" and name not in self._written
            if chosen and any(matches(name) for matches in self._matches):
                yield name

    def _leaving(self) -> Iterator[str]:
        """The names whose old files leave, in that order; they need not exist."""
        matching = self._matching(self._store.list(recursive=False)) if self._matches else ()
        return chain(
            (name for name in reversed(self._written) if name not in self._create_only), matching
        )

    def _arriving(self) -> Iterator[str]:
        """The names of the new files, in the order in which they arrive."""
        return (name for name, written in self._written.items() if written)

    @abstractmethod
    def _stage(
        self,
        name: str,
        buffers: Iterable[Buffer | Run | Computed],
        size: int,
        *,
        create_only: bool,
        progress: Callable[[int], object] | None,
    ) -> None:
        """Write a file where no listing shows it under its name."""

    def _reserve(self, name: str, size: int) -> str:
        raise _one_writer(self._store)

    @abstractmethod
    def _open(self, name: str) -> Source:
        """Open a staged file."""

    @abstractmethod
    def _publish(self) -> None:
        """Exchange the old files for the new ones."""

    @abstractmethod
    def _discard(self, error: BaseException) -> None:
        """Remove what was staged, after `error`."""


class MemoryStore(Store):
    """Files in memory: for tests, and for checkpoints that never reach a disk.

    Args:
        location: For messages.
    """

    def __init__(self, location: str = "memory:") -> None:
        self.location = location
        self._files: dict[str, tuple[bytes, str]] = {}  # replaced as a whole, never changed
        self._lock = threading.Lock()
        self._versions = count(1)

    def list(self, folder: str = "", *, recursive: bool = True) -> Iterator[Entry]:
        if folder:
            self.locate(folder)
        return entries_below(sorted(self._files), folder, recursive=recursive)

    def kind(self, name: str) -> EntryKind | None:
        self.locate(name)
        return kind_among(self._files, name)

    def open(self, name: str, *, backend: str = "mmap", version: str | None = None) -> Source:
        data, found = self._get(name)
        if version not in (None, found):
            raise changed(self.locate(name))
        source = BytesSource(data, self.locate(name))
        source.version = found
        return source

    def replace(self, name: str, data: Buffer, *, version: str) -> None:
        where = self.locate(name)
        with self._lock:
            if self._files.get(name, (b"", None))[1] != version:
                raise changed(where)
            self._files = {**self._files, name: (bytes(data), str(next(self._versions)))}

    def delete(self, name: str) -> None:
        with self._lock:
            self._get(name)
            self._files = {key: file for key, file in self._files.items() if key != name}

    def commit(self, *, durable: bool = False) -> Commit:
        return _MemoryCommit(self, self._check_replaceable, self._exchange)

    def locate(self, name: str) -> str:
        if problem := check_inside(name):
            raise invalid(name, problem)
        return f"{self.location}{name}"

    def _get(self, name: str) -> tuple[bytes, str]:
        kind = self.kind(name)
        if kind == "folder":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.locate(name))
        if kind is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.locate(name))
        return self._files[name]

    def _check_replaceable(self, name: str, *, create_only: bool) -> None:
        kind = self.kind(name)
        if kind is not None and create_only:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.locate(name))
        if kind == "folder":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.locate(name))

    def _exchange(
        self, leaving: Callable[[], Iterator[str]], new: dict[str, bytes], create_only: set[str]
    ) -> None:
        with self._lock:
            for name in new:
                self._check_replaceable(name, create_only=name in create_only)
            files = dict(self._files)
            for name in leaving():
                files.pop(name, None)
            files.update((name, (data, str(next(self._versions)))) for name, data in new.items())
            self._files = files


class _MemoryCommit(Commit):
    def __init__(
        self,
        store: MemoryStore,
        check: Callable[..., None],
        exchange: Callable[[Callable[[], Iterator[str]], dict[str, bytes], set[str]], None],
    ) -> None:
        super().__init__(store)
        self._check = check
        self._exchange = exchange
        self._staged: dict[str, bytes] = {}

    def _open(self, name: str) -> Source:
        return BytesSource(self._staged[name], self._store.locate(name))

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
        data = bytearray()
        for buffer in expanded(buffers):
            data += flat(buffer)
            if progress is not None:
                progress(len(data))
        self._staged[name] = bytes(data)

    def _publish(self) -> None:
        self._exchange(self._leaving, self._staged, self._create_only)

    def _discard(self, error: BaseException) -> None:
        self._staged.clear()


def entries_below(names: Iterable[str], folder: str, *, recursive: bool) -> Iterator[Entry]:
    """What `Store.list` gives of a store that knows all its names.

    Args:
        names: Of all files, sorted.
        folder: See `Store.list`.
        recursive: See `Store.list`.
    """
    prefix = f"{folder}/" if folder else ""
    below = [name for name in names if name.startswith(prefix)]
    if recursive:
        return (Entry(name, "file") for name in below)
    found: dict[Entry, None] = {}
    for name in below:
        first, separator, _ = name[len(prefix) :].partition("/")
        found[Entry(prefix + first, "folder" if separator else "file")] = None
    return iter(found)


def kind_among(names: Collection[str], name: str) -> EntryKind | None:
    """What `Store.kind` gives of a store that has files of these `names`."""
    if name in names:
        return "file"
    return "folder" if any(each.startswith(f"{name}/") for each in names) else None


def changed(where: str) -> ChangedError:
    """The error of a file that is another version than the one asked for."""
    return ChangedError(
        "the file was replaced since it was first opened; open it again", path=where
    )


def _one_writer(store: Store) -> UnsupportedError:
    return UnsupportedError(
        "this kind of store takes each file from one process: save to a shared filesystem, and copy the "
        "model from there (`safeweights push`)",
        path=store.location,
    )


def invalid(name: str, problem: str) -> UnsupportedError:
    """The error of a name that is not valid in a store."""
    return UnsupportedError(f"the file name {quote(name)} {problem}")
