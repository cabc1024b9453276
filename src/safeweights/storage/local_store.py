"""A local folder as a store.

How a commit works: new files are written into a hidden folder beside the old ones
(``.safeweights-*.tmp/new``). When all are complete, the old files are renamed into its ``old``, and the
new ones to their places. If a rename fails, those already made are undone. A folder ``old`` that exists
means that this is going on, or that the process was killed meanwhile; ``recover`` and the next commit then
undo it, or go on with it: ``arriving`` has the names of the new files, all of which are complete. Commits
of the same folder exchange their files one after another (flock(2), where the filesystem has it).

A commit with files that several processes fill cannot use files without a name, so a process that is killed
would leave gigabytes. It locks a file in its hidden folder. Where another commit of the same kind finds one
that is not locked any more, it deletes that folder.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from .files import decoded, open_file
from .shared_file import ReservedFile, SharedFile
from .sink import (
    PartialOverwriteError,
    check_absent,
    copy_over,
    is_staging_name,
    rename,
    stage_file,
    staging_name,
    stat_replaceable,
    sync_directory,
    write_file,
)
from .store import Commit, Entry, Store, changed, check_inside, check_name, invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .computing import Computed
    from .runs import Run
    from .source import Buffer, Source
    from .store import EntryKind

__all__ = ["LocalStore"]

_POSIX: Final = os.sep == "/"
_NOTHING: Final = (FileNotFoundError, NotADirectoryError)


class LocalStore(Store):
    """The files below a folder. The folder need not exist before the first file is written.

    Args:
        folder: Its path; the current folder if it is empty.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.location = decoded(folder)

    def list(self, folder: str = "", *, recursive: bool = True) -> Iterator[Entry]:
        if folder:
            self.locate(folder)
        return self._walk(f"{folder}/" if folder else "", recursive=recursive)

    def _walk(self, prefix: str, *, recursive: bool) -> Iterator[Entry]:
        try:
            pending = [self._scan(prefix)]
        except _NOTHING:
            if prefix:
                return
            raise
        while pending:
            entry = next(pending[-1], None)
            if entry is None:
                pending.pop()
            elif entry.kind == "folder" and recursive:
                pending.append(self._scan(f"{entry.name}/"))
            else:
                yield entry

    def _scan(self, prefix: str) -> Iterator[Entry]:
        """What is directly in one folder, in the order of the full names of what is below it."""
        with os.scandir(self.locate(prefix[:-1]) if prefix else self.location or ".") as found:
            entries = [Entry(prefix + each.name, _kind_of(each)) for each in found]
        return iter(sorted(entries, key=_full_name))

    def kind(self, name: str) -> EntryKind | None:
        try:
            mode = os.lstat(self.locate(name)).st_mode
        except _NOTHING:
            return None
        if stat.S_ISLNK(mode):
            return "link"
        if stat.S_ISDIR(mode):
            return "folder"
        return "file" if stat.S_ISREG(mode) else "special"

    def open(self, name: str, *, backend: str = "mmap", version: str | None = None) -> Source:
        source = open_file(self.locate(name), backend)
        source.version = _version(source.fileno())
        if version not in (None, source.version):
            raise changed(source.name)
        return source

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
        path = self.locate(name)
        made: list[str] = []
        try:
            _make_folder(os.path.dirname(path), made)
            write_file(
                path,
                buffers,
                size=size,
                durable=durable,
                create_only=create_only,
                links="replace",
                progress=progress,
            )
        except BaseException:
            _remove_empty(made)
            raise

    def delete(self, name: str) -> None:
        path = self.locate(name)
        if stat.S_ISDIR(os.lstat(path).st_mode):  # unlink(2) of a folder is EPERM on some systems
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        os.unlink(path)

    def commit(self, *, durable: bool = False) -> Commit:
        return _LocalCommit(self, durable=durable)

    def fill(self, staged: str) -> SharedFile:
        return SharedFile(self.locate(staged))

    def interrupted(self) -> str | None:
        for name, kind in self.list(recursive=False):
            if kind == "folder" and is_staging_name(name) and self.kind(f"{name}/old") == "folder":
                return self.locate(name)
        return None

    def recover(self) -> bool:
        if self.interrupted() is None:
            return False
        with _locked(self.location or ".") as locked:  # a process that publishes holds the lock
            return locked and _recover(self)

    def locate(self, name: str) -> str:
        # Where `/` is the separator, all other letters are just letters; a drive or a backslash is not.
        if problem := check_inside(name) if _POSIX else check_name(name):
            raise invalid(name, problem)
        return os.path.join(self.location, *name.split("/"))


class _LocalCommit(Commit):
    _moves_runs = True

    def __init__(self, store: LocalStore, *, durable: bool) -> None:
        super().__init__(store)
        self._durable = durable
        self._staging = store.locate(staging_name())
        self._made: list[str] = []
        self._reserved: dict[str, ReservedFile] = {}
        self._lock: int | None = None
        self._state: Literal["staging", "stuck", "exchanged"] = "staging"

    def _open(self, name: str) -> Source:
        source = open_file(self._new(name), "pread")
        source.name = self._store.locate(name)
        return source

    def _new(self, name: str) -> str:
        return os.path.join(self._staging, "new", *name.split("/"))

    def _old(self, name: str) -> str:
        return os.path.join(self._staging, "old", *name.split("/"))

    def _stage(
        self,
        name: str,
        buffers: Iterable[Buffer | Run | Computed],
        size: int,
        *,
        create_only: bool,
        progress: Callable[[int], object] | None,
    ) -> None:
        target = self._store.locate(name)
        if create_only:
            check_absent(target)
        path = self._make_place(name, target)
        stage_file(path, target, buffers, size=size, durable=self._durable, progress=progress)

    def _reserve(self, name: str, size: int) -> str:
        target = self._store.locate(name)
        path = self._make_place(name, target)
        if not self._reserved:
            self._lock = _lock_staging(self._staging)
            _delete_abandoned(self._store)
        self._reserved[name] = ReservedFile(path, target, size)
        return f"{os.path.basename(self._staging)}/new/{name}"

    def _make_place(self, name: str, target: str) -> str:
        """The path of a file to be staged, in a folder that exists."""
        path = self._new(name)
        stat_replaceable(target)  # before anything is made: a device's folder is none of ours
        _make_folder(self._store.location, self._made)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        except OSError as error:
            error.filename = self._store.location or "."  # not a hidden folder that never was
            raise
        return path

    def _publish(self) -> None:
        for reserved in self._reserved.values():
            reserved.complete(durable=self._durable)
        arriving = [
            _Move(self._new(name), self._store.locate(name), create_only=name in self._create_only)
            for name in self._arriving()
        ]
        for move in arriving:
            _make_folder(os.path.dirname(move.target), self._made)
        root = self._store.location or "."
        if not arriving and not _is_folder(root):  # there is nothing that could leave
            return
        with ExitStack() as stack:
            for folder in self._folders():
                stack.enter_context(sync_directory(folder, durable=self._durable))
            if stack.enter_context(_locked(root)):
                _recover(self._store)
            leaving = self._found()
            if len(arriving) == 1 and all(move.source == arriving[0].target for move in leaving):
                # One file takes the place of another by one rename: at no moment is there none.
                exchanged = rename(*arriving[0][:2], create_only=arriving[0].create_only)
            else:
                exchanged = self._exchange(leaving, arriving)
            if not exchanged:
                self._overwrite(leaving, arriving)
            self._state = "exchanged"
            # Within the lock: who holds it takes a folder `old` for that of a process that was killed.
            with suppress(OSError):
                os.rename(os.path.join(self._staging, "old"), os.path.join(self._staging, "done"))
        _remove_tree(self._staging)
        self._unlock()

    def _folders(self) -> list[str]:
        """The folders in which names change."""
        named = {os.path.dirname(self._store.locate(name)) or "." for name in self._written}
        return sorted(filter(_is_folder, {*named, self._store.location or "."}))

    def _found(self) -> list[_Move]:
        """The moves of the old files that leave."""
        leaving = []
        for name in self._leaving():
            path, kind = self._store.locate(name), self._store.kind(name)
            if kind is None:
                continue
            if kind != "link":
                stat_replaceable(path)  # raises if it is a folder or a device
            leaving.append(_Move(path, self._old(name), leaves=True))
        return leaving

    def _exchange(self, leaving: list[_Move], arriving: list[_Move]) -> bool:
        """Make all the moves, or none: False if the filesystem cannot rename."""
        text = json.dumps([*self._arriving()]).encode()
        arriving_list = os.path.join(self._staging, _ARRIVING)
        os.makedirs(self._staging, exist_ok=True)
        stage_file(arriving_list, arriving_list, [text], durable=self._durable)
        os.makedirs(os.path.join(self._staging, "old"))  # seen by `interrupted`
        for move in leaving:
            os.makedirs(os.path.dirname(move.target), exist_ok=True)
        begun: list[_Move] = []
        self._state = "stuck"  # unless all is undone, or done
        try:
            for move in leaving + arriving:
                begun.append(move)  # first: an interrupt may come once it is made
                if not rename(move.source, move.target, create_only=move.create_only):
                    begun.pop()
                    break
            else:
                return True
        except BaseException:
            self._undo(begun)
            raise
        self._undo(begun)
        return False

    def _undo(self, begun: list[_Move]) -> None:
        whole = True
        for source, target, leaves, _ in reversed(begun):
            if _is_missing(source):
                with suppress(FileNotFoundError):  # the last one may not have been made
                    os.replace(target, source)
            elif leaves:  # not made, or another process wrote a file of that name meanwhile
                whole = whole and _is_missing(target)
            elif not _is_missing(target) and os.path.samefile(source, target):
                os.unlink(target)  # linked, and interrupted before the old name was removed
        if whole:
            self._state = "staging"

    def _overwrite(self, leaving: list[_Move], arriving: list[_Move]) -> None:
        """The same by copying. Until it has succeeded, the staged files are the only whole ones."""
        self._state = "stuck"
        with suppress(OSError):  # no one may take this for moves that can be undone
            os.unlink(os.path.join(self._staging, _ARRIVING))
        for move in leaving:
            os.unlink(move.source)
        for move in arriving:
            copy_over(move.source, move.target, durable=self._durable, follow=False, keep=True)

    def _discard(self, error: BaseException) -> None:
        """Remove what was staged, unless some files exist nowhere else."""
        for reserved in self._reserved.values():
            reserved.close()
        self._unlock()
        if self._state != "stuck":
            _remove_tree(self._staging)
            _remove_empty(self._made)
        elif isinstance(error, OSError) and not isinstance(error, PartialOverwriteError):
            where = self._store.location
            raise PartialOverwriteError(where, self._staging, error) from error

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


_ARRIVING: Final = "arriving"
"""The file in a hidden folder with the names of the new files."""


def _recover(store: Store) -> bool:
    """See `Store.recover`; the folder is locked."""
    found = False
    for name, kind in [*store.list(recursive=False)]:
        if kind == "folder" and is_staging_name(name) and store.kind(f"{name}/old") == "folder":
            found = _recover_from(store, name) or found
    return found


def _recover_from(store: Store, staging: str) -> bool:
    """End the exchange of which a hidden folder was left; False if that is not known how."""
    folder = store.locate(staging)
    try:
        with open(os.path.join(folder, _ARRIVING), "rb") as file:
            arriving: list[str] = json.load(file)
    except (OSError, ValueError):  # an older version made the folder
        return False
    waiting = [name for name in arriving if store.kind(f"{staging}/new/{name}") is not None]
    if len(waiting) == len(arriving):  # old files were still leaving
        prefix = f"{staging}/old/"
        back = [entry.name.removeprefix(prefix) for entry in store.list(prefix[:-1])]
        moves = [(prefix + name, name) for name in back if store.kind(name) is None]
    else:
        moves = [(f"{staging}/new/{name}", name) for name in waiting]
    for source, target in moves:
        os.replace(store.locate(source), store.locate(target))
    os.rename(os.path.join(folder, "old"), os.path.join(folder, "done"))
    _remove_tree(folder)
    return True


_LOCK: Final = "lock"
"""The file in a hidden folder that the process which uses the folder has locked."""


def _lock_staging(staging: str) -> int | None:
    """Lock a hidden folder as long as this process lives; None where the filesystem has no locks."""
    import fcntl

    path = os.path.join(staging, _LOCK)
    descriptor = os.open(f"{path}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.rename(f"{path}.new", path)  # so that no process sees one that is not locked yet
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _delete_abandoned(store: Store) -> None:
    """Delete the hidden folders of processes that were killed while they made files for several processes.

    If such a process was exchanging files already, its folder has the only copies of some: it stays.
    """
    import fcntl

    for name, kind in store.list(recursive=False):
        if kind != "folder" or not is_staging_name(name) or store.kind(f"{name}/old") is not None:
            continue
        folder = store.locate(name)
        try:
            descriptor = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # of another kind, or gone by now
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # in use
            continue
        else:
            _remove_tree(folder)
        finally:
            os.close(descriptor)


class _Move(NamedTuple):
    """A file to be renamed: an old one that leaves, or a new one that arrives."""

    source: str
    target: str
    leaves: bool = False
    create_only: bool = False


@contextmanager
def _locked(folder: str) -> Iterator[bool]:
    """Hold the folder's lock, so that two commits exchange their files one after another.

    Yields:
        Whether the filesystem has locks.
    """
    descriptor, locked = None, False
    if hasattr(os, "O_DIRECTORY"):  # on Windows, folders have no locks
        import fcntl

        # Network filesystems may refuse to lock a folder: commits work there, but are not ordered.
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            locked = True
    try:
        yield locked
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _make_folder(folder: str, made: list[str]) -> None:
    """Make a folder and its missing parents; those made are put in front of `made`, deepest first."""
    missing = []
    path = folder
    while path and _is_missing(path):
        missing.append(path)
        path = os.path.dirname(path)
    made[:0] = missing
    if path and not _is_folder(path):
        message = "a folder is needed here, but there is a file"
        raise NotADirectoryError(errno.ENOTDIR, message, path)
    if missing:
        os.makedirs(folder, exist_ok=True)


def _remove_tree(folder: str) -> None:
    import shutil  # here, since it imports two compression libraries

    shutil.rmtree(folder, ignore_errors=True)


def _is_missing(path: str) -> bool:
    """Whether there is nothing at `path`; unlike `os.path.lexists`, errors are not an answer."""
    try:
        os.lstat(path)
    except _NOTHING:
        return True
    return False


def _is_folder(path: str) -> bool:
    """Whether `path` leads to a folder; unlike `os.path.isdir`, errors are not an answer."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except _NOTHING:
        return False


def _remove_empty(folders: Iterable[str]) -> None:
    for folder in folders:
        with suppress(OSError):  # another process uses it, or removed it
            os.rmdir(folder)


def _kind_of(entry: os.DirEntry[str]) -> EntryKind:
    if entry.is_file(follow_symlinks=False):  # most are
        return "file"
    if entry.is_symlink():
        return "link"
    return "folder" if entry.is_dir(follow_symlinks=False) else "special"


def _full_name(entry: Entry) -> str:
    """Sorts a folder as the names below it would be: `a-b` comes before `a/b`, and `a.b` too."""
    return f"{entry.name}/" if entry.kind == "folder" else entry.name


def _version(descriptor: int) -> str:
    # Inode, time and size, as in object_store and web servers: a file replaced by renaming has a new
    # inode, one that was written in place a new time.
    status = os.fstat(descriptor)
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
