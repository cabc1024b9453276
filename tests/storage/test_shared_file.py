"""Files that several processes fill: `Commit.reserve`, `Store.fill`."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from safeweights.errors import UnsupportedError
from safeweights.format.indexing import Runs
from safeweights.storage import LocalStore, MemoryStore, shared_file
from safeweights.storage.shared_file import ReservedFile, SharedFile, staggered

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(not hasattr(os, "pwrite"), reason="the system has no pwrite")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_each_process_begins_in_another_part(count: int, processes: int) -> None:
    items = [*range(count)]
    for process in range(processes):
        order = staggered(items, process, processes)
        first = items.index(order[0]) if count else 0
        assert first == count * process // processes
        assert order == [(first + number) % count for number in range(count)]


@pytest.mark.parametrize("durable", [False, True])
def test_parts_from_several_openings_are_published_as_one_file(
    tmp_path: Path, durable: bool
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"old")
    store = LocalStore(tmp_path)
    with store.commit(durable=durable) as commit:
        staged = commit.reserve("sub/a", 10)
        empty = commit.reserve("empty", 0)
        for offset, data in ((6, b"6789"), (0, b"012"), (3, b"345")):
            with LocalStore(tmp_path).fill(staged) as file:
                file.write(offset, data)
                file.close(durable=durable)
        store.fill(empty).close()
        assert (tmp_path / "sub" / "a").read_bytes() == b"old"
        assert bytes(commit.open("sub/a").read(0, 10)) == b"0123456789"
    assert (tmp_path / "sub" / "a").read_bytes() == b"0123456789"
    assert (tmp_path / "empty").read_bytes() == b""
    assert [each for each in os.listdir(tmp_path) if each.startswith(".")] == []


def test_the_new_file_has_the_mode_of_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o440)
    store = LocalStore(tmp_path)
    with store.commit() as commit:
        staged = commit.reserve("a", 1)
        mode = stat.S_IMODE(os.stat(store.locate(staged)).st_mode)
        assert mode == 0o600  # only its owner may read it so far
        with store.fill(staged) as file:
            file.write(0, b"1")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o440


def test_a_commit_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), LocalStore(tmp_path).commit() as commit:
        commit.reserve("a", 5)
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_name_is_used_once(tmp_path: Path) -> None:
    with (
        pytest.raises(UnsupportedError, match="already part"),
        LocalStore(tmp_path).commit() as commit,
    ):
        commit.reserve("a", 5)
        commit.reserve("a", 5)


def test_a_file_whose_size_was_changed_is_not_published(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with (
        pytest.raises(OSError, match="size of the file changed") as caught,
        store.commit() as commit,
    ):
        os.truncate(store.locate(commit.reserve("a", 5)), 4)
    assert caught.value.filename == str(tmp_path / "a")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("offset", [-1, 3, 1 << 62])
def test_nothing_is_written_beyond_the_end(tmp_path: Path, offset: int) -> None:
    store = LocalStore(tmp_path)
    with (
        pytest.raises(OSError, match=r".+") as caught,
        store.commit() as commit,
        store.fill(commit.reserve("a", 5)) as file,
    ):
        file.write(offset, b"123")
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize("begin", [-1, 1])
def test_no_run_is_written_beyond_the_end(tmp_path: Path, begin: int) -> None:
    store = LocalStore(tmp_path)
    runs = Runs(0, 1, ((3, 2),))  # bytes 0, 2 and 4
    with (
        pytest.raises(OSError, match=r".+") as caught,
        store.commit() as commit,
        store.fill(commit.reserve("a", 5)) as file,
    ):
        file.write_runs(begin, runs, memoryview(b"123"))
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize(
    ("runs", "wanted"),
    [
        (Runs(1, 6, ()), b"..abcdef...."),
        (Runs(0, 2, ((3, 4),)), b".ab..cd..ef."),
        (Runs(1, 1, ((2, 6), (3, 1))), b"..abc...def."),
    ],
)
def test_runs_go_to_their_places(tmp_path: Path, runs: Runs, wanted: bytes) -> None:
    store = LocalStore(tmp_path)
    with store.commit() as commit, store.fill(commit.reserve("a", 12)) as file:
        file.write(0, b"." * 12)
        file.write_runs(1, runs, memoryview(b"abcdef"))
    assert (tmp_path / "a").read_bytes() == wanted


def test_writes_that_end_early_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:1], offset))
    store = LocalStore(tmp_path)
    with store.commit() as commit, store.fill(commit.reserve("a", 7)) as file:
        file.write(0, b"...")
        file.write_runs(3, Runs(0, 2, ((2, 2),)), memoryview(b"abcd"))
    assert (tmp_path / "a").read_bytes() == b"...abcd"


def fails(fd: int, data: bytes, offset: int) -> int:
    raise OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize(("pwrite", "code"), [(fails, errno.ENOSPC), (lambda *_: 0, errno.EIO)])
@pytest.mark.parametrize("runs", [Runs(0, 4, ()), Runs(0, 2, ((2, 2),))])
def test_a_write_that_fails_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Runs, pwrite: Any, code: int
) -> None:
    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match=r".+") as caught, store.commit() as commit:
        staged = commit.reserve("a", 7)
        with store.fill(staged) as file:
            file.write_runs(0, runs, memoryview(b"abcd"))
    assert caught.value.errno == code
    assert caught.value.filename == store.locate(staged)


def test_a_full_disk_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, nbytes: int) -> bool:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(shared_file, "reserve", full)
    with pytest.raises(OSError, match="full") as caught, LocalStore(tmp_path).commit() as commit:
        commit.reserve("a", 5)
    assert caught.value.filename == str(tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_replaced_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError), LocalStore(tmp_path).commit() as commit:
        commit.reserve("a", 5)


@pytest.mark.parametrize("make", [MemoryStore])
def test_other_stores_take_each_file_from_one_process(make: Callable[[], MemoryStore]) -> None:
    store = make()
    with pytest.raises(UnsupportedError, match="from one process"), store.commit() as commit:
        commit.reserve("a", 5)
    with pytest.raises(UnsupportedError, match="from one process"):
        store.fill("a")


def test_systems_without_pwrite_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pwrite")
    with pytest.raises(UnsupportedError, match="on this system"):
        ReservedFile(str(tmp_path / "new"), str(tmp_path / "a"), 5)


def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    file = SharedFile(str(tmp_path / "a"))
    file.close()
    file.close(durable=True)
    reserved = ReservedFile(str(tmp_path / "new"), str(tmp_path / "b"), 5)
    reserved.close()
    reserved.close()


def test_the_files_of_a_process_that_was_killed_are_deleted_by_the_next_save(
    tmp_path: Path,
) -> None:
    child = """
import os, signal, sys
from safeweights.storage import LocalStore
commit = LocalStore(sys.argv[1]).commit()
commit.reserve("a", 1 << 20)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", child, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (abandoned,) = os.listdir(tmp_path)
    (tmp_path / ".safeweights-0000000000000000.tmp").mkdir()  # of a save that fills no shared files
    store = LocalStore(tmp_path)
    with store.commit() as other:
        other.reserve("b", 5)
        assert abandoned not in os.listdir(tmp_path)
        with store.commit() as commit:
            commit.reserve("a", 5)
        assert bytes(other.open("b").read(0, 5)) == bytes(5)  # one that is in use stays
    kept = ".safeweights-0000000000000000.tmp"
    assert sorted(os.listdir(tmp_path)) == [kept, "a", "b"]


def test_a_folder_with_the_only_copies_of_old_files_stays(tmp_path: Path) -> None:
    folder = tmp_path / ".safeweights-0000000000000000.tmp"
    (folder / "old").mkdir(parents=True)
    (folder / "lock").write_bytes(b"")
    with LocalStore(tmp_path).commit() as commit:
        commit.reserve("a", 5)
    assert sorted(os.listdir(tmp_path)) == [folder.name, "a"]


def test_filesystems_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, what: int) -> None:
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr("fcntl.flock", refused)
    with LocalStore(tmp_path).commit() as commit:
        commit.reserve("a", 5)
        commit.reserve("b", 5)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
