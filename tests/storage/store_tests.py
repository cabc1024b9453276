"""What every store must do, as one test class.

A test module subclasses `StoreTests` and overrides its fixture `store`.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Any

import pytest

from safeweights.errors import ChangedError, UnsupportedError
from safeweights.storage import Entry, Store, check_name

if TYPE_CHECKING:
    from collections.abc import Iterator

BAD_NAMES = [
    "", "/", "/a", "a/", "a//b", "..", "../a", "a/../b", "a/..", ".", "./a", "a/.", "a\0b",
]  # fmt: skip


def contents(store: Store) -> dict[str, bytes]:
    """All files, without what is hidden."""
    names = [entry.name for entry in store.list() if not entry.name.startswith(".")]
    return {name: store.open(name).read(0, store.open(name).size) for name in names}


def all_names(store: Store) -> list[str]:
    return [entry.name for entry in store.list()]


def failing(*pieces: bytes) -> Iterator[bytes]:
    yield from pieces
    raise ZeroDivisionError


class StoreTests:
    """Rules of `safeweights.storage.Store`."""

    @pytest.fixture
    def store(self) -> Store:
        """An empty store."""
        raise NotImplementedError

    # ---- reading and writing

    @pytest.mark.parametrize("durable", [False, True])
    @pytest.mark.parametrize("name", ["a", "a.b", ".hidden", "x/y/z", "mod\u00e8le", "a b"])
    def test_what_is_written_can_be_read(self, store: Store, name: str, durable: bool) -> None:
        seen: list[int] = []
        store.write(name, [b"12", b"", bytearray(b"345")], durable=durable, progress=seen.append)
        source = store.open(name)
        assert source.size == 5
        assert source.read(1, 3) == b"234"
        assert source.name == store.locate(name)
        assert store.kind(name) == "file"
        assert seen[-1] == 5
        assert all_names(store) == [name]

    def test_an_empty_file(self, store: Store) -> None:
        store.write("a", [])
        assert store.open("a").size == 0
        assert contents(store) == {"a": b""}

    def test_a_file_is_replaced_and_open_sources_stay(self, store: Store) -> None:
        store.write("a", [b"old"])
        before = store.open("a")
        store.write("a", [b"newer"])
        assert before.read(0, 3) == b"old"
        assert contents(store) == {"a": b"newer"}

    def test_a_write_that_fails_changes_nothing(self, store: Store) -> None:
        for name in ("a", "b/c/d"):
            with pytest.raises(ZeroDivisionError):
                store.write(name, failing(b"x" * 100))
        assert all_names(store) == []
        assert store.kind("b") is None
        store.write("a", [b"old"])
        with pytest.raises(ZeroDivisionError):
            store.write("a", failing(b"x" * 100))
        assert contents(store) == {"a": b"old"}
        assert all_names(store) == ["a"]

    def test_create_only_replaces_nothing(self, store: Store) -> None:
        store.write("a/b", [b"old"], create_only=True)
        with pytest.raises(FileExistsError) as caught:
            store.write("a/b", failing(), create_only=True)  # before the contents are made
        assert caught.value.filename == store.locate("a/b")
        assert contents(store) == {"a/b": b"old"}

    def test_create_only_loses_to_a_file_made_meanwhile(self, store: Store) -> None:
        def pieces() -> Iterator[bytes]:
            yield b"mine"
            store.write("a", [b"theirs"])

        with pytest.raises(FileExistsError):
            store.write("a", pieces(), create_only=True)
        assert contents(store) == {"a": b"theirs"}
        assert all_names(store) == ["a"]

    def test_one_of_many_creators_wins(self, store: Store) -> None:
        results: list[str] = []
        barrier = threading.Barrier(8)

        def create(number: int) -> None:
            barrier.wait()
            try:
                store.write("a", [bytes([number]) * 10], create_only=True)
                results.append("made")
            except FileExistsError:
                results.append("exists")

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == ["exists"] * 7 + ["made"]
        assert len(set(contents(store)["a"])) == 1

    def test_versions_pin_the_bytes(self, store: Store) -> None:
        store.write("a", [b"old"])
        first = store.open("a")
        assert first.version == store.open("a").version
        if first.version is None:
            pytest.skip("this store knows no versions")
        assert store.open("a", version=first.version).read(0, 3) == b"old"
        store.check_version("a", first.version)
        store.write("a", [b"new"])
        for call in (lambda v: store.open("a", version=v), lambda v: store.check_version("a", v)):
            with pytest.raises(ChangedError, match="was replaced") as caught:
                call(first.version)
            assert caught.value.path == store.locate("a")
        with pytest.raises(FileNotFoundError):
            store.check_version("missing", first.version)
        assert store.open("a").version != first.version

    def test_a_version_is_replaced_or_nothing(self, store: Store) -> None:
        store.write("a", [b"old"])
        first = store.open("a").version
        assert first is not None
        if type(store).replace is Store.replace:
            with pytest.raises(UnsupportedError, match="condition") as caught:
                store.replace("a", b"new", version=first)
            assert caught.value.path == store.locate("a")
            assert contents(store) == {"a": b"old"}
            return
        store.replace("a", b"new", version=first)
        assert contents(store) == {"a": b"new"}
        for name in ("a", "missing"):
            with pytest.raises(ChangedError):
                store.replace(name, b"newer", version=first)
        assert contents(store) == {"a": b"new"}

    def test_deleting(self, store: Store) -> None:
        store.write("a", [b"1"])
        store.write("b", [b"2"])
        before = store.open("a")
        store.delete("a")
        assert contents(store) == {"b": b"2"}
        assert before.read(0, 1) == b"1"
        with pytest.raises(FileNotFoundError):
            store.delete("a")

    # ---- what is not there, and names that cannot be

    def test_what_is_missing(self, store: Store) -> None:
        store.write("a/b", [b"1"])
        for name in ("x", "a/x", "x/y", "a/b/c"):
            assert store.kind(name) is None
            for call in (store.open, store.delete):
                with pytest.raises(OSError) as caught:
                    call(name)
                assert caught.value.errno in {errno.ENOENT, errno.ENOTDIR}
                assert caught.value.filename == store.locate(name)
        with pytest.raises(FileNotFoundError):
            store.open("x")

    def test_folders_are_no_files(self, store: Store) -> None:
        store.write("a/b", [b"1"])
        assert store.kind("a") == "folder"
        for call in (store.open, store.delete, lambda name: store.write(name, [b"2"])):
            with pytest.raises(IsADirectoryError):
                call("a")
        with pytest.raises(IsADirectoryError), store.commit() as commit:
            commit.write("a", [b"2"])
        assert contents(store) == {"a/b": b"1"}

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_names_stay_inside(self, store: Store, name: str) -> None:
        store.write("a", [b"1"])
        assert check_name(name)
        calls: list[Any] = [store.open, store.kind, store.delete, lambda n: store.write(n, [])]
        calls += [lambda n: list(store.list(n))] if name else []
        calls.append(store.locate)
        calls += [lambda n: store.commit().write(n, []), lambda n: store.commit().delete(n)]
        for call in calls:
            with pytest.raises(UnsupportedError, match="the file name"):
                call(name)
        assert contents(store) == {"a": b"1"}

    # ---- listing

    def test_listings_are_sorted_by_full_name(self, store: Store) -> None:
        names = [
            "a-b",
            "a.b",
            "a/b",
            "a/b-c/d",
            "a/b.c",
            "a/bc",
            "a0",
            "B",
            ".a",
            "é",
            "𝄞",
            "\uffee",
        ]
        for name in names:
            store.write(name, [b"1"])
        assert [*store.list()] == [Entry(name, "file") for name in sorted(names)]
        inside = [Entry(name, "file") for name in sorted(names) if name.startswith("a/")]
        assert [*store.list("a")] == inside
        assert [*store.list("a", recursive=False)] == [
            Entry("a/b", "file"), Entry("a/b-c", "folder"), Entry("a/b.c", "file"),
            Entry("a/bc", "file"),
        ]  # fmt: skip
        kinds = {entry.name: entry.kind for entry in store.list(recursive=False)}
        assert kinds == {name.partition("/")[0]: "file" for name in names} | {"a": "folder"}

    def test_nothing_to_list(self, store: Store) -> None:
        assert [*store.list()] == [*store.list(recursive=False)] == [*store.list("x/y")] == []

    def test_a_listing_can_be_left_early(self, store: Store) -> None:
        for number in range(50):
            store.write(f"{number % 7}/{number}", [b"1"])
        listing = store.list()
        assert next(listing) == Entry("0/0", "file")
        del listing
        assert len([*store.list()]) == 50

    # ---- commits

    def test_a_commit_replaces_a_set(self, store: Store) -> None:
        for name in ("index", "shard-1", "shard-2", "other", "sub/shard"):
            store.write(name, [b"old " + name.encode()])
        before = contents(store)
        with store.commit(durable=True) as commit:
            commit.delete("sub/shard")
            commit.delete("missing")
            commit.delete_where(lambda name: name.startswith("shard-"))
            commit.write("shard-1", [b"new ", b"shard-1"], size=11)
            commit.write("new/shard-3", [b"new shard-3"])
            assert commit.open("shard-1").read(0, 11) == b"new shard-1"
            assert commit.open("shard-1").name == store.locate("shard-1")
            commit.write("index", [b"new index"])
            assert contents(store) == before
        assert contents(store) == {
            "index": b"new index", "other": b"old other", "shard-1": b"new shard-1",
            "new/shard-3": b"new shard-3",
        }  # fmt: skip
        assert not [name for name in all_names(store) if name.startswith(".")]

    def test_an_empty_commit(self, store: Store) -> None:
        with store.commit():
            pass
        with store.commit() as commit:
            commit.delete("a")
            commit.delete_where(lambda name: True)
        assert all_names(store) == []

    def test_a_commit_that_fails_changes_nothing(self, store: Store) -> None:
        store.write("a", [b"old"])
        with pytest.raises(ZeroDivisionError), store.commit() as commit:
            commit.delete("a")
            commit.write("b", [b"new"])
            commit.write("c/d", failing(b"x"))
        with pytest.raises(KeyboardInterrupt), store.commit() as commit:
            commit.write("a", [b"new"])
            raise KeyboardInterrupt
        assert contents(store) == {"a": b"old"}
        assert all_names(store) == ["a"]

    def test_names_are_used_once_in_a_commit(self, store: Store) -> None:
        with store.commit() as commit:
            commit.write("a", [b"1"])
            commit.delete("b")
            for call in (commit.delete, lambda name: commit.write(name, [])):
                for name in ("a", "b"):
                    with pytest.raises(UnsupportedError, match="already part"):
                        call(name)
        assert contents(store) == {"a": b"1"}

    def test_what_was_not_staged_cannot_be_read_back(self, store: Store) -> None:
        store.write("a", [b"1"])
        with store.commit() as commit:
            commit.delete("a")
            for name in ("a", "b"):
                with pytest.raises(FileNotFoundError):
                    commit.open(name)
            with pytest.raises(UnsupportedError):
                commit.open("../a")

    def test_a_commit_creates_or_fails(self, store: Store) -> None:
        store.write("b", [b"old"])
        with pytest.raises(FileExistsError), store.commit() as commit:
            commit.write("b", [b"new"], create_only=True)
        with pytest.raises(FileExistsError) as caught, store.commit() as commit:
            commit.delete("b")
            commit.write("a", [b"mine"], create_only=True)
            commit.write("c", [b"mine"], create_only=True)
            store.write("c", [b"theirs"])
        assert caught.value.filename == store.locate("c")
        assert contents(store) == {"b": b"old", "c": b"theirs"}
        assert all_names(store) == ["b", "c"]
        with store.commit() as commit:
            commit.write("d", [b"1"], create_only=True)
        assert contents(store)["d"] == b"1"

    def test_files_written_meanwhile_leave_too(self, store: Store) -> None:
        with store.commit() as commit:
            commit.delete_where(lambda name: name.startswith("shard"))
            commit.write("shard-1", [b"1"])
            store.write("shard-2", [b"theirs"])
            store.write("x/shard", [b"theirs"])
        assert contents(store) == {"shard-1": b"1", "x/shard": b"theirs"}

    def test_commits_at_the_same_time_leave_one_set(self, store: Store) -> None:
        failures: list[BaseException] = []

        def save(value: int) -> None:
            try:
                for _ in range(10):
                    with store.commit() as commit:
                        commit.delete_where(lambda name: name.startswith("shard"))
                        for number in range(value):
                            commit.write(f"shard-{number}-of-{value}", [bytes([value])])
                        commit.write("index", [bytes([value])])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=save, args=(value,)) for value in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for failure in failures:
            raise failure
        [value] = contents(store)["index"]
        shards = {f"shard-{number}-of-{value}": bytes([value]) for number in range(value)}
        assert contents(store) == {"index": bytes([value]), **shards}

    # ---- for people

    def test_places_for_messages(self, store: Store) -> None:
        assert store.location
        assert store.location in store.locate("a/b")
        assert store.locate("a/b") != store.locate("a/c")
