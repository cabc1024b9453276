"""Stores: the rules of all of them, and what only a local folder has."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from store_tests import StoreTests, all_names, contents

from safeweights.storage import Entry, LocalStore, MemoryStore, check_name, local_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from safeweights.storage import Store


class TestLocalStore(StoreTests):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path)


class TestMemoryStore(StoreTests):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()


# ---- names


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a/b.safetensors", None),
        ("a\0", "is empty or contains NUL"),
        ("a\\b", "is not a relative path with `/` between its parts"),
        ("z:x", "is not a relative path with `/` between its parts"),
        ("é:x", None),
        ("\ud800", "is not valid UTF-8"),
    ],
)
def test_names(name: str, problem: str | None) -> None:
    assert check_name(name) == problem


@given(st.text(st.sampled_from("ab./-\0\\:é"), max_size=6))
def test_a_valid_name_stays_inside(name: str) -> None:
    if check_name(name) is None:
        root = os.path.join(os.sep, "root")
        path = os.path.join(root, name)
        assert os.path.normpath(path) == path != root
        assert not {"\0", "\\"} & {*name}


def test_names_that_only_some_systems_have(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for raw in (b"mod\xe8le", b"a\\b", b"C:x"):
        (tmp_path / os.fsdecode(raw)).write_bytes(raw)
        name = os.fsdecode(raw)
        assert store.open(name).read(0, len(raw)) == raw
        store.write(name, [b"new"])
        assert contents(store) == {name: b"new"}
        assert Entry(name, "file") in [*store.list()]
        store.delete(name)
    assert all_names(store) == []


def test_another_separator_is_refused_where_it_separates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a\\b").write_bytes(b"")
    monkeypatch.setattr(local_store, "_POSIX", False)
    with pytest.raises(TypeError, match="the file name"):
        LocalStore(tmp_path).open("a\\b")


# ---- folders, links, special files


def test_missing_folders_are_made(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "x" / "y")
    with pytest.raises(FileNotFoundError):
        [*store.list()]
    assert store.kind("a") is None
    store.write("a/b", [b"1"])
    assert (tmp_path / "x/y/a/b").read_bytes() == b"1"
    with LocalStore(tmp_path / "z" / "y").commit() as commit:
        commit.write("a/b", [b"1"])
    assert (tmp_path / "z/y/a/b").read_bytes() == b"1"


def test_folders_made_for_nothing_are_removed(tmp_path: Path) -> None:
    def fail() -> Any:
        raise ZeroDivisionError
        yield

    store = LocalStore(tmp_path / "x" / "y")
    with pytest.raises(ZeroDivisionError):
        store.write("a/b", fail())
    with pytest.raises(ZeroDivisionError), store.commit() as commit:
        commit.write("a/b", [b"1"])
        commit.write("a/c", fail())
    assert list(tmp_path.iterdir()) == []


def test_deleting_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "x").commit(durable=True) as commit:
        commit.delete("y/a")
        commit.delete_where(lambda name: True)
    assert list(tmp_path.iterdir()) == []


def test_what_a_file_replaces_is_checked_before_anything_is_made(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(OSError, match="not a regular file"),
        LocalStore(tmp_path).commit() as commit,
    ):
        commit.write("pipe", [b"1"])
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    for store, name in ((LocalStore(tmp_path), "file/a"), (LocalStore(tmp_path / "file"), "a")):
        with pytest.raises(NotADirectoryError) as caught:
            store.write(name, [b"2"])
        assert caught.value.filename == str(tmp_path / "file")
        with pytest.raises(NotADirectoryError), store.commit() as commit:
            commit.write(name, [b"2"])
    assert (tmp_path / "file").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["file"]


def test_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = LocalStore("")
    store.write("a", [b"1"])
    with store.commit(durable=True) as commit:
        commit.write("b", [b"2"])
    assert contents(store) == {"a": b"1", "b": b"2"}
    assert store.locate("a") == "a"
    assert os.listdir() == ["a", "b"] or os.listdir() == ["b", "a"]


def test_links_and_special_files_are_listed_by_kind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"1")
    (tmp_path / "to-folder").symlink_to("folder")
    (tmp_path / "to-file").symlink_to("folder/a")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    store = LocalStore(tmp_path)
    assert [*store.list()] == [
        ("dangling", "link"), ("folder/a", "file"), ("pipe", "special"), ("to-file", "link"),
        ("to-folder", "link"),
    ]  # fmt: skip
    for entry in store.list(recursive=False):
        assert store.kind(entry.name) == entry.kind
    assert store.open("to-file").read(0, 1) == b"1"
    for name in ("pipe", "to-folder", "dangling"):
        with pytest.raises(OSError):
            store.open(name)
    with pytest.raises(OSError) as caught:
        store.write("pipe", [b"2"])
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("how", ["write", "commit"])
def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path, how: str) -> None:
    """A model's folder cannot make a save write outside of it."""
    (tmp_path / "outside").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").symlink_to("../outside")
    store = LocalStore(tmp_path / "folder")
    if how == "write":
        store.write("a", [b"new"])
    else:
        with store.commit() as commit:
            commit.write("a", [b"new"])
    assert (tmp_path / "outside").read_bytes() == b"old"
    assert store.kind("a") == "file"
    assert contents(store) == {"a": b"new"}
    (tmp_path / "folder" / "b").symlink_to("../outside")
    store.delete("b")
    assert (tmp_path / "outside").exists()


def test_create_only_respects_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    store = LocalStore(tmp_path)
    with pytest.raises(FileExistsError):
        store.write("a", [b"1"], create_only=True)
    with pytest.raises(FileExistsError), store.commit() as commit:
        commit.write("a", [b"1"], create_only=True)
    assert os.listdir(tmp_path) == ["a"]


def test_a_commit_keeps_modes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o640)
    store = LocalStore(tmp_path)
    with store.commit() as commit:
        commit.write("a", [b"new"])
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_folder_that_takes_the_place_of_an_old_file_meanwhile(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(IsADirectoryError), store.commit() as commit:
        commit.write("a", [b"new"])
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "precious").write_bytes(b"1")
    assert contents(store) == {"a/precious": b"1"}
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_written_in_place_is_another_version(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("a", [b"old"])
    version = store.open("a").version
    (tmp_path / "a").write_bytes(b"longer")
    assert store.open("a").version != version


def test_a_listing_reads_one_folder_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    for number in range(5):
        store.write(f"{number}/a", [])
    scanned: list[str] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (scanned.append(path), real(path))[1])
    listing = store.list()
    next(listing)
    assert len(scanned) == 2  # the store itself and its first folder


def test_a_staged_file_that_cannot_be_made_is_named_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    real = os.open

    def opens(path: Any, flags: int, *mode: int, **how: Any) -> int:
        if flags & os.O_EXCL:
            raise OSError(errno.EDQUOT, "injected", path)
        return real(path, flags, *mode, **how)

    monkeypatch.setattr(os, "open", opens)
    with (
        pytest.raises(OSError, match="injected") as caught,
        LocalStore(tmp_path).commit() as commit,
    ):
        commit.write("a/b", [b"1"])
    assert caught.value.filename == str(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []


# ---- filesystems and systems that lack something


def refuse(code: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMLINK, errno.ENOTSUP])
def test_create_only_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "link", refuse(code))
    store = LocalStore(tmp_path)
    store.write("a", [b"1"], create_only=True)
    with store.commit() as commit:
        commit.write("b", [b"2"], create_only=True)
    with pytest.raises(FileExistsError), store.commit() as commit:
        commit.write("c", [b"mine"], create_only=True)
        store.write("c", [b"theirs"])
    assert contents(store) == {"a": b"1", "b": b"2", "c": b"theirs"}
    monkeypatch.setattr(os, "replace", refuse(errno.ENOSYS))
    store.write("d", [b"4"], create_only=True)
    assert contents(store)["d"] == b"4"
    monkeypatch.setattr(os, "replace", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        store.write("e", [b"5"], create_only=True)
    assert all_names(store) == ["a", "b", "c", "d"]


def test_a_link_that_fails_for_another_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "link", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        store.write("a", [b"1"], create_only=True)
    assert all_names(store) == []


@pytest.mark.parametrize("lack", ["windows", "folder", "flock"])
def test_commits_where_folders_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    if lack == "windows":
        monkeypatch.delattr(os, "O_DIRECTORY")
    elif lack == "folder":
        real = os.open

        def opens(path: Any, flags: int, *mode: int, **how: Any) -> int:
            if flags == os.O_RDONLY | os.O_DIRECTORY:
                raise PermissionError(errno.EACCES, "not readable", path)
            return real(path, flags, *mode, **how)

        monkeypatch.setattr(os, "open", opens)
    else:
        monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    store = LocalStore(tmp_path)
    with store.commit() as commit:
        commit.write("a", [b"1"])
    assert contents(store) == {"a": b"1"}
