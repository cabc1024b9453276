"""Commits of a local folder, with faults and kills: the old set or the new one, never a mixture."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import safeweights
from safeweights.storage import LocalStore, MemoryStore, PartialOverwriteError, local_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OLD = {"a": b"old a", "b": b"old b", "sub/c": b"old c", "index": b"old index"}
NEW = {"a": b"new a", "sub/d": b"new d", "e": b"new e", "index": b"new index"}
CALLS = (
    "open", "stat", "lstat", "fstat", "fchown", "fchmod", "writev", "fsync", "link", "close", "mkdir",
    "replace", "unlink", "rmdir", "scandir",
)  # fmt: skip


def fill(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "sub").mkdir(parents=True)
    for name, data in OLD.items():
        (folder / name).write_bytes(data)


def save(folder: Path, *, durable: bool) -> None:
    with LocalStore(folder).commit(durable=durable) as commit:
        commit.delete("sub/c")
        commit.delete_where(lambda name: name in {"b", "e"})
        commit.write("a", [NEW["a"]], size=5)
        commit.write("sub/d", [NEW["sub/d"]], create_only=True)
        commit.write("e", [NEW["e"]])
        commit.write("index", [NEW["index"]])


def visible(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name[0] != "."}


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name[0] == "."]


@pytest.mark.parametrize(
    ("durable", "make_fault"),
    [(True, lambda: OSError(errno.EIO, "injected")), (False, lambda: PermissionError(errno.EACCES, "")),
     (True, KeyboardInterrupt)],
    ids=["EIO-durable", "EACCES", "ctrl-c-durable"],
)  # fmt: skip
def test_a_fault_at_every_system_call(
    tmp_path: Path,
    system_calls_class: Any,
    no_leak: None,
    durable: bool,
    make_fault: Callable[[], BaseException],
) -> None:
    folder = tmp_path / "model"

    def attempt(number: int) -> tuple[list[str], BaseException | None]:
        fill(folder)
        with pytest.MonkeyPatch.context() as patch:
            calls = system_calls_class(patch, CALLS)
            calls.fail(number, make_fault())
            try:
                save(folder, durable=durable)
            except (OSError, KeyboardInterrupt) as error:
                return list(calls.log), error
            return list(calls.log), None

    attempt(-1)  # what is imported when it is first needed makes calls too
    calls, _ = attempt(-1)
    assert visible(folder) == NEW
    renames = [number for number, name in enumerate(calls) if name in {"replace", "link"}]
    assert calls.count("replace") == 4 + 3  # of those that arrive, one is linked
    if durable:
        assert calls.count("fsync") >= 4 + 2
    failed: set[str] = set()
    for number, name in enumerate(calls):
        _, error = attempt(number)
        what = (number, name)
        failed.add(name if error is not None else "")
        if number > renames[-1]:
            assert visible(folder) == NEW, what
        else:
            assert visible(folder) == (NEW if error is None else OLD), what
            assert hidden(folder) == [], what
    assert failed >= {"mkdir", "writev", "replace", "stat"}


# ---- kills

# Forks are made by a process of its own: the one that runs the tests has threads.
KILL = """
import os, pathlib, random, signal, sys, time
sys.path.insert(0, sys.argv[2])
from test_commit import NEW, OLD, LocalStore, fill, hidden, save, visible

folder, how = pathlib.Path(sys.argv[1]), sys.argv[3]
NAMES = ("open", "writev", "fsync", "link", "mkdir", "replace", "unlink", "rmdir")

def deadly(name, real, left):
    def call(*args, **kwargs):
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left.pop()
        return real(*args, **kwargs)
    return call

def child(number):
    fill(folder)
    left = [None] * number
    if number is not None:
        for name in NAMES:
            setattr(os, name, deadly(name, getattr(os, name), left))
    save(folder, durable=True)
    os._exit(0)

def kill_at_call(number):
    pid = os.fork()
    if not pid:
        child(number)
    return os.waitpid(pid, 0)[1]

def kill_at_random():
    fill(folder)
    begin, end = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(end, b"x")
        save(folder, durable=True)
        os._exit(0)
    os.read(begin, 1)
    os.close(begin), os.close(end)
    time.sleep(random.random() * duration)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

def check():
    parts = visible(folder)
    if "index" in parts:
        state = {OLD["index"]: OLD, NEW["index"]: NEW}[parts["index"]]
        assert parts == state, parts
    else:
        sets = {data.split()[0] for data in parts.values()}
        assert len(sets) <= 1, parts
    for path in hidden(folder):
        assert path.name.startswith(".safeweights-") and path.name.endswith(".tmp"), path
    store = LocalStore(folder)
    interrupted = store.interrupted() is not None
    assert store.recover() == interrupted
    assert visible(folder) in (OLD, NEW), visible(folder)
    assert store.interrupted() is None
    return (parts == OLD, parts == NEW, "index" not in parts)

seen = []
if how == "call":
    number = 0
    while kill_at_call(number):
        seen.append(check())
        number += 1
    assert visible(folder) == NEW and hidden(folder) == []
    assert number > 40, number
else:
    fill(folder)
    begin = time.perf_counter()
    save(folder, durable=True)
    duration = time.perf_counter() - begin
    for _ in range(40):
        kill_at_random()
        seen.append(check())
counts = [sum(column) for column in zip(*seen)]
print(len(seen), "kills: old, new, incomplete:", counts)
if how == "call":
    assert min(counts) > 0, counts
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has neither fork nor SIGKILL")
@pytest.mark.parametrize("how", ["call", "random"])
def test_a_process_that_is_killed(tmp_path: Path, how: str) -> None:
    """What is left is the old set, the new one, or one of them with files and its index missing."""
    source = Path(safeweights.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path / "model"), str(Path(__file__).parent), how],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


KILL_AT_REPLACE = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[2])
from test_commit import save
real, left = os.replace, [None] * int(sys.argv[3])
def replace(source, target):
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left.pop()
    real(source, target)
os.replace = replace
save(pathlib.Path(sys.argv[1]), durable=False)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize(("number", "found"), [(3, OLD), (5, NEW)])
def test_a_killed_commit_is_undone_or_completed(
    tmp_path: Path, number: int, found: dict[str, bytes]
) -> None:
    """Killed while old files left: they come back. Killed while new ones arrived: the rest follows."""
    folder = tmp_path / "model"
    fill(folder)
    source = Path(safeweights.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", KILL_AT_REPLACE, folder, Path(__file__).parent, str(number)],
        env={**os.environ, "PYTHONPATH": str(source)}, check=False,
    )  # fmt: skip
    assert done.returncode == -9
    assert visible(folder) not in (OLD, NEW)
    assert LocalStore(folder).recover()
    assert visible(folder) == found
    assert hidden(folder) == []


# ---- what cannot be undone


def failing_replace(number: int, make_fault: Callable[[], BaseException]) -> Callable[..., None]:
    """`os.replace` that fails from its call of this number on."""
    real, calls = os.replace, iter(range(1000))

    def replace(source: str, target: str) -> None:
        if next(calls) >= number:
            raise make_fault()
        real(source, target)

    return replace


@pytest.mark.parametrize("number", range(1, 7))
def test_old_files_that_cannot_be_brought_back_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fill(tmp_path / "model")
    with monkeypatch.context() as patch:
        fault = OSError(errno.EIO, "injected")
        patch.setattr(os, "replace", failing_replace(number, lambda: fault))
        with pytest.raises(PartialOverwriteError) as caught:
            save(tmp_path / "model", durable=False)
    kept = Path(caught.value.kept)
    assert caught.value.filename == str(tmp_path / "model")
    old = {str(path.relative_to(kept / "old")): path for path in (kept / "old").rglob("*")}
    found = {name: path.read_bytes() for name, path in old.items() if path.is_file()}
    left = {name: data for name, data in visible(tmp_path / "model").items() if name in OLD}
    assert {**{name: data for name, data in left.items() if b"old" in data}, **found} == OLD


def test_an_old_file_whose_place_was_taken_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process, which knows nothing of the commit, writes a file while old ones are away."""
    folder = tmp_path / "model"
    fill(folder)
    real = os.replace

    def replace(source: str, target: str) -> None:
        if source == str(folder / "b"):
            real(source, target)
            (folder / "a").write_bytes(b"theirs")
            raise OSError(errno.EIO, "injected")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PartialOverwriteError) as caught:
        save(folder, durable=False)
    assert visible(folder) == {**OLD, "a": b"theirs"}
    assert (Path(caught.value.kept) / "old" / "a").read_bytes() == OLD["a"]


def test_an_interrupt_between_link_and_unlink_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "model")
    real = os.link

    def link(source: str, target: str, **how: Any) -> None:
        real(source, target, **how)
        if target == str(tmp_path / "model" / "sub" / "d"):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "model", durable=False)
    assert visible(tmp_path / "model") == OLD
    assert hidden(tmp_path / "model") == []


# ---- filesystems that cannot rename


@pytest.fixture
def no_rename(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSYS, "no such call")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        patch.setattr(os, "link", refuse)
        yield


def test_without_rename_files_are_copied(tmp_path: Path, no_rename: None) -> None:
    fill(tmp_path / "model")
    save(tmp_path / "model", durable=True)
    assert visible(tmp_path / "model") == NEW
    assert hidden(tmp_path / "model") == []


@pytest.mark.parametrize("call", ["open", "writev", "unlink"])
def test_copying_that_fails_keeps_the_new_files(
    tmp_path: Path, no_rename: None, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder = tmp_path / "model"
    fill(folder)
    real = getattr(os, call)
    copying: list[bool] = []
    overwrite = local_store.copy_over

    def copy_over(*args: Any, **kwargs: Any) -> None:
        copying.append(True)
        overwrite(*args, **kwargs)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if len(copying) == 2:
            raise OSError(errno.EIO, "injected")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(local_store, "copy_over", copy_over)
        patch.setattr(os, call, fail)
        if call == "unlink":  # of the copied file's source: only tidying up
            save(folder, durable=False)
            assert visible(folder) == NEW
            return
        with pytest.raises(PartialOverwriteError) as caught:
            save(folder, durable=False)
    [staging] = hidden(folder)
    assert caught.value.kept.startswith(str(staging))
    new = staging / "new"
    found = {str(path.relative_to(new)): path for path in new.rglob("*") if path.is_file()}
    kept = {name: path.read_bytes() for name, path in found.items()}
    assert {**visible(folder), **kept} == NEW
    assert "index" not in visible(folder)


def test_a_folder_that_cannot_be_written_is_named_and_not_the_hidden_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(path: str, *_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(OSError, match="Read-only file system") as caught:
        save(tmp_path, durable=False)
    assert caught.value.filename == str(tmp_path)


def test_there_may_be_nothing_to_recover(tmp_path: Path) -> None:
    fill(tmp_path)
    assert not LocalStore(tmp_path).recover()
    assert visible(tmp_path) == OLD
    assert not MemoryStore().recover()


def test_the_next_commit_ends_one_that_was_killed(tmp_path: Path) -> None:
    """Killed while old files left: they are back before they are replaced, and none is forgotten."""
    folder = tmp_path / "model"
    fill(folder)
    staging = folder / ".safeweights-0123456789abcdef.tmp"
    (staging / "new").mkdir(parents=True)
    (staging / "old").mkdir()
    (staging / "arriving").write_text('["a"]')
    (staging / "new" / "a").write_bytes(b"newer")
    (folder / "index").rename(staging / "old" / "index")
    with LocalStore(folder).commit() as commit:
        commit.write("b", [b"new b"])
        commit.write("e", [b"new e"])
    assert hidden(folder) == []
    assert visible(folder) == {**OLD, "b": b"new b", "e": b"new e"}


def test_a_file_that_was_written_since_is_not_replaced_by_an_old_one(tmp_path: Path) -> None:
    fill(tmp_path)
    staging = tmp_path / ".safeweights-0123456789abcdef.tmp"
    (staging / "old").mkdir(parents=True)
    (staging / "arriving").write_text("[]")
    (staging / "old" / "a").write_bytes(b"older")
    assert LocalStore(tmp_path).recover()
    assert visible(tmp_path) == OLD


@pytest.mark.parametrize("arriving", [None, "no JSON"])
def test_a_hidden_folder_that_cannot_be_understood_stays(
    tmp_path: Path, arriving: str | None
) -> None:
    fill(tmp_path)
    staging = tmp_path / ".safeweights-0123456789abcdef.tmp"
    (staging / "old").mkdir(parents=True)
    if arriving is not None:
        (staging / "arriving").write_text(arriving)
    store = LocalStore(tmp_path)
    assert not store.recover()
    assert store.interrupted() == str(staging)


def test_without_locks_nothing_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may be publishing."""

    def refused(descriptor: int, what: int) -> None:
        raise OSError(errno.ENOTSUP, "no locks")

    fill(tmp_path)
    staging = tmp_path / ".safeweights-0123456789abcdef.tmp"
    (staging / "old").mkdir(parents=True)
    (staging / "arriving").write_text("[]")
    monkeypatch.setattr("fcntl.flock", refused)
    store = LocalStore(tmp_path)
    assert not store.recover()
    assert staging.exists()
    with store.commit() as commit:
        commit.write("a", [b"1"])
        commit.write("b", [b"2"])
    assert staging.exists()
