"""Saving as shards: Hugging Face's names and index, and never half of two checkpoints."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeweights.checkpoint import Checkpoint, MemoryTensor, Tensor, open, to_bytes
from safeweights.checkpoint.sharding import EarlierSave, parse_size, save_sharded, split
from safeweights.errors import ChangedError, FormatError, SafetensorError, UnsupportedError
from safeweights.storage import LocalStore, MemoryStore, PartialOverwriteError, local_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INDEX = "model.safetensors.index.json"


def model(value: int, *sizes: int, prefix: str = "t") -> dict[str, Tensor]:
    return {
        f"{prefix}{number}": MemoryTensor(f"{prefix}{number}", "U8", (size,), bytes([value]) * size)
        for number, size in enumerate(sizes)
    }


def shard_names(count: int, stem: str = "model") -> list[str]:
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def found(folder: Path) -> dict[str, bytes]:
    return {name: bytes(tensor.view()) for name, tensor in open(folder).items()}


def contents(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: bytes(tensor.view()) for name, tensor in tensors.items()}


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# ---- what is written


@pytest.mark.parametrize("durable", [False, True])
def test_shards_and_index(tmp_path: Path, durable: bool) -> None:
    tensors = model(1, 40, 50, 60, 5)
    names = save_sharded(
        tensors, tmp_path / "new", max_shard_size=100, metadata={"format": "pt"}, durable=durable
    )
    folder = tmp_path / "new"
    assert names == shard_names(2)
    assert listing(folder) == [*names, INDEX]
    assert found(folder) == contents(tensors)
    assert open(folder).metadata == {"format": "pt"}
    assert json.loads((folder / INDEX).read_text()) == {
        "metadata": {"total_size": 155},
        "weight_map": {"t0": names[0], "t1": names[0], "t2": names[1], "t3": names[1]},
    }


def test_one_shard_has_no_index(tmp_path: Path) -> None:
    assert save_sharded(model(1, 40, 50), str(tmp_path)) == ["model.safetensors"]
    assert listing(tmp_path) == ["model.safetensors"]
    assert save_sharded({}, tmp_path, stem="empty") == ["empty.safetensors"]
    assert dict(open(tmp_path / "empty.safetensors")) == {}


def test_metadata_of_a_checkpoint_goes_into_every_shard(tmp_path: Path) -> None:
    source = Checkpoint(model(1, 10, 10, 10), {"format": "pt"})
    for name in save_sharded(source, tmp_path, max_shard_size=10):
        assert open(tmp_path / name).metadata == {"format": "pt"}
    save_sharded(source, tmp_path, max_shard_size=10, metadata={"a": "b"})
    assert open(tmp_path).metadata == {"a": "b"}


def test_progress_counts_all_shards(tmp_path: Path) -> None:
    seen: list[int] = []
    names = save_sharded(model(1, *[1000] * 9), tmp_path, max_shard_size=3000, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == sum((tmp_path / name).stat().st_size for name in names)


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 40))
def test_split_fills_as_huggingface_does(sizes: list[int], limit: int) -> None:
    tensors = model(1, *sizes)
    groups = split(tensors, limit)
    assert sorted(name for group in groups for name in group) == sorted(tensors)
    assert all(groups) or groups == [[]]
    for group in groups:
        assert len(group) <= 1 or sum(tensors[name].nbytes for name in group) <= limit
    small = [name for name, tensor in tensors.items() if tensor.nbytes <= limit]
    assert [name for group in groups for name in group if name in small] == small
    assert groups == as_documented(tensors, limit)


def as_documented(tensors: dict[str, Tensor], limit: int) -> list[list[str]]:
    """The rules of huggingface_hub's `split_state_dict_into_shards_factory`, one after another."""
    shards: list[list[str]] = []
    current: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if tensor.nbytes > limit:
            shards.append([name])
        else:
            if size + tensor.nbytes > limit:
                shards.append(current)
                current, size = [], 0
            current.append(name)
            size += tensor.nbytes
    return [*shards, current] if current or not shards else shards


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1), ("7", 7), ("5GB", 5 * 10**9), ("5gb", 5 * 10**9), ("2 GiB", 2 << 30), ("1.5KB", 1500),
        ("10M", 10**7), ("3TiB", 3 << 40), (" 1B ", 1), ("9007199254740993", 9007199254740993),
    ],
)  # fmt: skip
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", 0, -5, "GB", "5XB", "5 G B", "1e9", "0.1B", "5GB\x1b", "٥GB", None, "1" * 19]
)
def test_no_sizes(tmp_path: Path, text: Any) -> None:
    with pytest.raises(UnsupportedError, match="is no size") as caught:
        save_sharded({}, tmp_path / "x", max_shard_size=text)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("stem", ["a/b", "../m", "..", ".m", "", "C:m", "a\\b", "a\n"])
def test_stems_are_file_names(tmp_path: Path, stem: str) -> None:
    with pytest.raises(UnsupportedError, match="cannot begin the name of a file"):
        save_sharded({}, tmp_path, stem=stem)
    assert listing(tmp_path) == []


# ---- over an earlier checkpoint


@pytest.mark.parametrize("before", [1, 2, 5])
@pytest.mark.parametrize("after", [1, 2, 5])
def test_an_earlier_save_is_replaced(tmp_path: Path, before: int, after: int) -> None:
    others = {"config.json": "{}", "other.safetensors.index.json.bak": "", "model-1.bin": "x"}
    for name, text in others.items():
        (tmp_path / name).write_text(text)
    save_sharded(model(1, *[10] * before, prefix="old"), tmp_path, max_shard_size=10)
    new = model(2, *[10] * after)
    save_sharded(new, tmp_path, max_shard_size=10)
    assert found(tmp_path) == contents(new)
    written = ["model.safetensors"] if after == 1 else [*shard_names(after), INDEX]
    assert listing(tmp_path) == sorted([*others, *written])


def test_other_stems_are_left_alone(tmp_path: Path) -> None:
    save_sharded(model(1, 10, 10), tmp_path, max_shard_size=10, stem="model.fp16")
    save_sharded(model(1, 10, 10), tmp_path, max_shard_size=10, stem="mode")
    before = listing(tmp_path)
    save_sharded(model(2, 10), tmp_path)
    assert listing(tmp_path) == sorted([*before, "model.safetensors"])


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_a_folder_is_saved_onto_itself(tmp_path: Path, backend: str) -> None:
    tensors = model(1, 10, 20, 30, 40)
    save_sharded(tensors, tmp_path, max_shard_size=40)
    opened = open(tmp_path, backend=backend)
    save_sharded(opened.rename(lambda name: f"x.{name}"), tmp_path, max_shard_size=50)
    assert found(tmp_path) == {f"x.{name}": data for name, data in contents(tensors).items()}
    assert {name: bytes(tensor.view()) for name, tensor in opened.items()} == contents(tensors)


# ---- what goes wrong


OLD, NEW = model(1, 10, 10, prefix="old"), model(2, 10, 10, 10)


class FailingCalls:
    """Lets the k-th of all system calls that change something fail."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, fault: BaseException) -> None:
        self.log: list[str] = []
        for name in ("open", "writev", "fsync", "mkdir", "replace", "link"):
            patch.setattr(os, name, self._wrapped(name, getattr(os, name), number, fault))

    def _wrapped(
        self, name: str, real: Callable[..., Any], number: int, fault: BaseException
    ) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.log.append(name)
            if len(self.log) - 1 == number:
                raise fault
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize(
    "make_fault",
    [lambda: OSError(errno.ENOSPC, "injected"), lambda: OSError(errno.EIO, "injected"), KeyboardInterrupt],
    ids=["ENOSPC", "EIO", "ctrl-c"],
)  # fmt: skip
def test_a_fault_at_every_system_call(
    tmp_path: Path, make_fault: Callable[[], BaseException]
) -> None:
    def attempt(number: int) -> FailingCalls:
        shutil.rmtree(tmp_path)
        save_sharded(OLD, tmp_path, max_shard_size=10)
        with pytest.MonkeyPatch.context() as patch:
            calls = FailingCalls(patch, number, fault := make_fault())
            raised = None
            try:
                save_sharded(NEW, tmp_path, max_shard_size=10, durable=True)
            except (OSError, KeyboardInterrupt) as caught:
                raised = caught
                failed.append(calls.log[number])
            assert raised in {None, fault}
        return calls

    failed: list[str] = []
    calls = attempt(-1).log
    assert calls.count("replace") == 3 + 4  # three leave, four arrive
    last_rename = len(calls) - 1 - calls[::-1].index("replace")
    for number, name in enumerate(calls):
        attempts = len(failed)
        attempt(number)
        old_or_new = OLD if len(failed) > attempts and number <= last_rename else NEW
        assert found(tmp_path) == contents(old_or_new), (number, name)
        expected = shard_names(2 if old_or_new is OLD else 3)
        if number > last_rename:  # cleaning up may be interrupted; what is hidden does not count
            expected = [*(name for name in listing(tmp_path) if name[0] == "."), *expected]
        assert listing(tmp_path) == [*expected, INDEX], (number, name)
    assert {"mkdir", "writev", "fsync", "replace"} <= set(failed)


@pytest.mark.parametrize("number", range(3 + 4))
def test_an_interrupt_while_a_rename_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It is raised when the call has returned, and done what it should."""
    save_sharded(OLD, tmp_path, max_shard_size=10)
    real, calls = os.replace, iter(range(100))

    def replace(source: str, target: str) -> None:
        real(source, target)
        if next(calls) == number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            save_sharded(NEW, tmp_path, max_shard_size=10)
    assert found(tmp_path) == contents(OLD)
    assert listing(tmp_path) == [*shard_names(2), INDEX]


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_what_cannot_be_brought_back_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    save_sharded(OLD, tmp_path, max_shard_size=10)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real, calls = os.replace, iter(range(100))

    def replace(source: str, target: str) -> None:
        if next(calls) >= 3 + 1:  # the old ones gone, one new one in its place
            raise fault
        real(source, target)

    expected = PartialOverwriteError if isinstance(fault, OSError) else KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(expected) as caught:
            save_sharded(NEW, tmp_path, max_shard_size=10)
    [staging] = [path for path in tmp_path.iterdir() if path.name[0] == "."]
    if isinstance(caught.value, PartialOverwriteError):
        assert caught.value.kept == str(staging)
        assert "what is not in place is in" in str(caught.value)
    for name, data in before.items():
        assert (staging / "old" / name).read_bytes() == data


def test_what_the_format_cannot_hold_changes_nothing(tmp_path: Path) -> None:
    save_sharded(OLD, tmp_path, max_shard_size=10)
    wrong: dict[str, Tensor] = {**NEW, "t9": MemoryTensor("t9", "F32", (1,), b"abc")}
    with pytest.raises(FormatError):
        save_sharded(wrong, tmp_path, max_shard_size=10)
    assert found(tmp_path) == contents(OLD)
    assert listing(tmp_path) == [*shard_names(2), INDEX]


def test_a_reader_never_finds_half_of_two_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two renames, opening the folder gives the old, the new, or an error."""
    old, new = model(1, 10, 10, 10), model(2, 10, 10, 10)  # the same names in the same shards
    save_sharded(old, tmp_path, max_shard_size=10)
    seen: list[str] = []
    real = os.replace

    def look() -> None:
        try:
            data = found(tmp_path)
        except SafetensorError:
            seen.append("error")
        else:
            seen.append({b"\1": "old", b"\2": "new"}[b"".join(data.values())[:1]])
            assert data in (contents(old), contents(new))

    def replace(source: str, target: str) -> None:
        look()
        real(source, target)
        look()

    monkeypatch.setattr(os, "replace", replace)
    save_sharded(new, tmp_path, max_shard_size=10)
    assert sorted(set(seen)) == ["error", "new", "old"]
    assert seen[0] == "old"
    assert seen[-1] == "new"


# ---- filesystems without rename


@pytest.fixture
def no_rename(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "no rename here")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        yield


@pytest.mark.parametrize("old", [{}, model(1, 10), model(1, 10, 10)])
def test_without_rename_the_contents_arrive(
    tmp_path: Path, no_rename: None, old: dict[str, Tensor]
) -> None:
    if old:
        save_sharded(old, tmp_path, max_shard_size=10)
    save_sharded(NEW, tmp_path, max_shard_size=10, durable=True)
    assert found(tmp_path) == contents(NEW)
    assert listing(tmp_path) == [*shard_names(3), INDEX]


def test_renames_that_end_half_way_are_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one is refused as if it were to another filesystem: all is copied then."""
    save_sharded(OLD, tmp_path, max_shard_size=10)
    real = os.replace
    targets: list[str] = []

    def replace(source: str, target: str) -> None:
        if target == str(tmp_path / INDEX) and target not in targets:
            targets.append(target)
            raise OSError(errno.EXDEV, "another filesystem")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    save_sharded(NEW, tmp_path, max_shard_size=10)
    assert targets
    assert found(tmp_path) == contents(NEW)
    assert listing(tmp_path) == [*shard_names(3), INDEX]


def test_copying_that_fails_keeps_the_new_files(
    tmp_path: Path, no_rename: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sharded(OLD, tmp_path, max_shard_size=10)
    real, writes = os.writev, iter(range(100))

    def writev(descriptor: int, batch: list[memoryview]) -> int:
        if next(writes) < 4 + 1 + 2:  # four files staged, and their list; two shards arrive
            return real(descriptor, batch)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "writev", writev)
    with pytest.raises(PartialOverwriteError) as caught:
        save_sharded(NEW, tmp_path, max_shard_size=10)
    kept = Path(caught.value.kept)
    assert kept.parent.parent.parent == tmp_path
    assert not LocalStore(tmp_path).recover()  # which would delete it
    assert kept.name == shard_names(3)[2]
    assert bytes(open(kept)["t2"].view()) == b"\2" * 10
    with pytest.raises(SafetensorError):
        open(tmp_path)


# ---- what an earlier save consists of


def test_files_that_the_old_index_names_leave(tmp_path: Path) -> None:
    save_sharded(OLD, tmp_path, max_shard_size=10)
    (tmp_path / "part").mkdir()
    os.rename(tmp_path / shard_names(2)[0], tmp_path / "part" / "first.safetensors")
    os.rename(tmp_path / shard_names(2)[1], tmp_path / "second.safetensors")
    weight_map = {"old0": "part/first.safetensors", "old1": "second.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert found(tmp_path) == contents(OLD)
    save_sharded(model(2, 10), tmp_path)
    assert found(tmp_path) == contents(model(2, 10))
    assert listing(tmp_path) == ["model.safetensors", "part"]
    assert listing(tmp_path / "part") == []


@pytest.mark.parametrize("text", ["{", '{"weight_map": {"a": "../outside.safetensors"}}'])
def test_an_index_that_cannot_be_understood_leaves(tmp_path: Path, text: str) -> None:
    (tmp_path / "outside.safetensors").write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / INDEX).write_text(text)
    save_sharded(model(2, 10), folder)
    assert listing(folder) == ["model.safetensors"]
    assert (tmp_path / "outside.safetensors").read_text() == "precious"


def test_a_folder_in_place_of_the_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX).mkdir()
    with pytest.raises(IsADirectoryError):
        save_sharded(model(2, 10), tmp_path)
    assert listing(tmp_path) == [INDEX]


def test_the_files_of_an_earlier_save(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "new")
    assert EarlierSave(store, ["model"], []).files() == []
    save_sharded(OLD, store, max_shard_size=10)
    store.write("model.safetensors", [b""])
    store.write("model-00001-of-00009.safetensors/a", [b""])
    store.write("models.safetensors", [b""])
    new = shard_names(2)
    assert EarlierSave(store, ["model"], new).files() == ["model.safetensors", INDEX]
    assert EarlierSave(store, ["model"], ["model.safetensors"]).files() == [*new, INDEX]
    assert EarlierSave(store, ["mod"], ["mod.safetensors"]).files() == []


def test_shards_in_another_store() -> None:
    store = MemoryStore()
    save_sharded(OLD, store, max_shard_size=10)
    assert save_sharded(NEW, store, max_shard_size=10) == shard_names(3)
    assert [entry.name for entry in store.list()] == [*shard_names(3), INDEX]
    source = store.open(shard_names(3)[2])
    assert contents(dict(open(source.read(0, source.size)))) == {"t2": b"\2" * 10}


# ---- killed between two renames


@pytest.mark.parametrize("count", range(5))
def test_files_without_an_index_after_a_commit_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Neither an index nor numbers tell that some of these files are missing."""
    store = LocalStore(tmp_path)
    saves = [{name: model(value, 10, prefix=name) for name in "ab"} for value in (1, 2)]

    def save(files: dict[str, dict[str, Tensor]]) -> None:
        with store.commit() as commit:
            for name, tensors in files.items():
                commit.write(f"{name}.safeweights.safetensors", [to_bytes(tensors)])

    save(saves[0])
    real, calls = os.replace, iter(range(100))

    def replace(source: str, target: str) -> None:
        if next(calls) == count:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:  # what the process would do after its death
        for name in ("_undo", "_discard"):
            patch.setattr(local_store._LocalCommit, name, lambda *_: None)
        patch.setattr(os, "replace", replace)
        with contextlib.suppress(KeyboardInterrupt):
            save(saves[1])
    if count == 4:  # all was done
        assert store.interrupted() is None
        assert found(tmp_path) == contents({**saves[1]["a"], **saves[1]["b"]})
        return
    with pytest.raises(FormatError, match="interrupted, or is going on") as caught:
        open(tmp_path)
    assert caught.value.rule == "interrupted-save"
    [hidden] = [name for name in listing(tmp_path) if name[0] == "."]
    assert store.interrupted() == str(tmp_path / hidden)
    assert str(tmp_path / hidden) in str(caught.value)
    shutil.rmtree(tmp_path / hidden)
    assert store.interrupted() is None


# ---- replaced while a reader opens it


@pytest.mark.parametrize("place", ["folder", "memory"])
@pytest.mark.parametrize(
    ("index", "before", "result"),
    [
        (True, 0, "error"), (True, 1, "error"), (True, 2, "error"), (True, 3, "old"),
        (False, 0, "new"), (False, 1, "error"), (False, 2, "error"), (False, 3, "error"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_replaced_while_it_is_opened(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    index: bool,
    before: int,
    result: str,
) -> None:
    """Before the reader opens a shard; both saves have the same tensors in files of the same names."""
    saves = {"old": model(1, 10, 10, 10), "new": model(2, 10, 10, 10)}
    store = LocalStore(tmp_path) if place == "folder" else MemoryStore()

    def save(tensors: dict[str, Tensor]) -> None:
        save_sharded(tensors, store, max_shard_size=10)
        if not index:
            store.delete(INDEX)

    save(saves["old"])
    real, opened = type(store).open, iter(range(100))

    def opens(self: Any, name: str, **how: Any) -> Any:
        if name in shard_names(3) and next(opened) == before:
            with monkeypatch.context() as patch:
                patch.setattr(type(store), "open", real)
                save(saves["new"])
        return real(self, name, **how)

    monkeypatch.setattr(type(store), "open", opens)
    if result == "error":
        with pytest.raises(ChangedError, match="replaced while it was being opened"):
            open(store)
    else:
        data = {name: bytes(tensor.view()) for name, tensor in open(store).items()}
        assert data == contents(saves[result])


def test_values_of_an_earlier_distributed_save_leave(tmp_path: Path) -> None:
    """They would be taken for those of the new weights."""
    for name in ("model.values.json", "other.values.json"):
        (tmp_path / name).write_text("{}")
    save_sharded({"a": MemoryTensor("a", "U8", (1,), b"1")}, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors", "other.values.json"]
