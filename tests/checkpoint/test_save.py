"""Saving a mapping: the reference's bytes, atomically, from views, memory and the file itself."""

from __future__ import annotations

import errno
import io
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from safeweights.checkpoint import Checkpoint, MemoryTensor, Tensor, open, save, saving, to_bytes
from safeweights.errors import FormatError, SafetensorError, UnsupportedError
from safeweights.format.dtypes import BITS
from safeweights.storage import TruncatedError, computing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTENTS = {"b": b"bbbb", "a": b"aa", "empty": b""}


@pytest.fixture
def path(tmp_path: Path, file_of: Callable[..., bytes]) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"format": "pt"}, **CONTENTS))
    return path


@given(
    st.dictionaries(
        st.text(max_size=20).filter(lambda name: name != "__metadata__" and encodable(name)),
        st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 3), max_size=3)),
        max_size=6,
    ),
    st.one_of(st.none(), st.just({"format": "pt"})),
)
def test_the_reference_reads_what_is_saved(
    described: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None
) -> None:
    tensors, reference = {}, {}
    for name, (dtype, dims) in described.items():
        shape = [8, *dims]
        size = BITS[dtype]
        for dim in dims:
            size *= dim
        data = bytes(index % 251 for index in range(size))
        tensors[name] = MemoryTensor(name, dtype, shape, data)
        reference[name] = data
    ours = to_bytes(tensors, metadata)
    assert {name: bytes(tensor.view()) for name, tensor in open(ours).items()} == {
        name: bytes(tensor.view()) for name, tensor in tensors.items()
    }
    file = io.BytesIO()
    save(tensors, file, metadata)
    assert file.getvalue() == ours
    assert {name: bytes(info["data"]) for name, info in safetensors.deserialize(ours)} == reference


def encodable(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def test_a_checkpoint_is_saved_as_it_is(path: Path, tmp_path: Path) -> None:
    opened = open(path)
    save(opened, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == path.read_bytes() == to_bytes(opened)
    save(opened, tmp_path / "copy", {"other": "metadata"})
    assert open(tmp_path / "copy").metadata == {"other": "metadata"}
    save(dict(opened), tmp_path / "copy")
    assert open(tmp_path / "copy").metadata is None


def test_views_are_saved(path: Path, tmp_path: Path) -> None:
    view = open(path).filter(skip="empty").rename(lambda name: f"x.{name}")
    save(view, tmp_path / "view")
    saved = open(tmp_path / "view")
    assert {name: bytes(tensor.view()) for name, tensor in saved.items()} == {
        "x.a": b"aa", "x.b": b"bbbb",
    }  # fmt: skip
    assert saved.metadata == {"format": "pt"}


@pytest.mark.parametrize("backend", ["mmap", "pread", "direct", "auto"])
@pytest.mark.parametrize("by_link", [False, True])
def test_a_file_is_saved_onto_itself(
    tmp_path: Path, path: Path, backend: str, by_link: bool
) -> None:
    target = path
    if by_link:
        target = tmp_path / "link"
        target.symlink_to(path.name)
    opened = open(target, backend=backend)
    views = {name: tensor.view() for name, tensor in opened.items()}
    save(opened.rename(lambda name: name * 2), target)
    assert {name: bytes(tensor.view()) for name, tensor in open(path).items()} == {
        name * 2: data for name, data in CONTENTS.items()
    }
    # What was open goes on with the old file.
    assert {name: bytes(view) for name, view in views.items()} == CONTENTS
    assert {name: bytes(tensor.view()) for name, tensor in opened.items()} == CONTENTS


def test_many_files_become_one(sharded: Path, tmp_path: Path) -> None:
    save(open(sharded), tmp_path / "one.safetensors")
    merged = open(tmp_path / "one.safetensors")
    assert b"".join(bytes(tensor.view()) for tensor in merged.values()) == b"aaabbcccc"
    assert merged.metadata == {"format": "pt"}


def test_progress(path: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    save(open(path), tmp_path / "copy", progress=seen.append)
    assert seen[-1] == path.stat().st_size
    seen.clear()
    save(open(path), io.BytesIO(), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == path.stat().st_size


def test_durable(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd) or real(fd))
    save(open(path), tmp_path / "copy")
    assert synced == []
    save(open(path), tmp_path / "copy", durable=True)
    assert len(synced) >= 2  # the file and its directory


# ---- what goes wrong


class Wrong(Tensor):
    """Says it has other bytes than it gives."""

    def __init__(self, said: int, gives: int) -> None:
        super().__init__("w", "U8", (said,), said)
        self.gives = gives

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        raise AssertionError

    def chunks(self, size: int = 1 << 24) -> Iterator[memoryview]:
        yield memoryview(bytes(self.gives))


@pytest.mark.parametrize(("said", "gives"), [(3, 2), (3, 4), (0, 1), (5000, 4999), (5000, 5001)])
def test_tensors_that_give_other_than_they_say(path: Path, said: int, gives: int) -> None:
    before = path.read_bytes()
    with pytest.raises(FormatError, match=f"takes {said} bytes, but has {gives}") as caught:
        save({"w": Wrong(said, gives)}, path)
    assert caught.value.tensor == "w"
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "rule"),
    [
        ("F32", (2,), 7, "size"),
        ("F32", (2,), 9, "size"),
        ("F31", (2,), 8, "dtype"),
        ("F4", (3,), 2, "byte-boundary"),
        ("U8", (-1,), 1, "integer"),
        ("U8", (1,) * 65, 1, "rank"),
    ],
)
def test_sizes_and_types_that_do_not_fit(
    path: Path, dtype: str, shape: tuple[int, ...], size: int, rule: str
) -> None:
    before = path.read_bytes()
    tensors = {"t": MemoryTensor("t", dtype, shape, bytes(size))}
    for target in (path, io.BytesIO()):
        with pytest.raises(FormatError) as caught:
            save(tensors, target)
        assert (caught.value.rule, caught.value.tensor) == (rule, "t")
        if isinstance(target, io.BytesIO):
            assert target.getvalue() == b""
    assert path.read_bytes() == before


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"\ud800": "a"}])
def test_metadata_that_cannot_be_written(path: Path, metadata: Any) -> None:
    before = path.read_bytes()
    with pytest.raises(SafetensorError):
        save({}, path, metadata)
    assert path.read_bytes() == before


def test_a_source_that_is_truncated_meanwhile(path: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    opened = open(path, backend="pread")
    os.truncate(path, path.stat().st_size - 2)
    with pytest.raises(TruncatedError):
        save(opened, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == [path.name, "target"]


def test_file_objects_that_fail(path: Path) -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        save(open(path), Full())


def test_closed_checkpoints(path: Path) -> None:
    opened = open(path)
    opened.close()
    with pytest.raises(ValueError, match="closed"):
        to_bytes(opened)
    assert isinstance(opened, Checkpoint)


def test_names_and_targets_of_another_kind(tmp_path: Path) -> None:
    tensor = MemoryTensor("a", "U8", (1,), b"x")
    with pytest.raises(UnsupportedError, match="a string, not int"):
        save({"b": tensor, 1: tensor}, tmp_path / "a")  # type: ignore[dict-item]
    with pytest.raises(UnsupportedError, match="'wb'"):
        save({"a": tensor}, io.StringIO())  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="the metadata has a lone surrogate"):
        save({"a": tensor}, tmp_path / "a", {"k": "\ud800"})
    with pytest.raises(FormatError, match=r"the name .* has a lone surrogate"):
        save({"\ud800": tensor}, tmp_path / "a")
    assert not [*tmp_path.iterdir()]


def test_numpy_makes_no_array_of_one_object() -> None:
    assert np.asarray(MemoryTensor("a", "U8", (1,), b"x")).tolist() == [120]


@pytest.mark.parametrize("value", [np.zeros(2), [1], b"abc", None])
def test_values_are_not_unread_tensors(tmp_path: Path, value: object) -> None:
    for write in (lambda tensors: save(tensors, tmp_path / "x"), to_bytes):
        with pytest.raises(UnsupportedError, match=r"`a` is a .*`safeweights\.numpy`") as caught:
            write({"b": MemoryTensor("b", "U8", (0,), b""), "a": value})
        assert caught.value.tensor == "a"
        with pytest.raises(UnsupportedError, match="expected a mapping"):
            write([("a", value)])
    assert list(tmp_path.iterdir()) == []


class Computed(Tensor):
    """A tensor whose bytes a function makes."""

    computed = True

    def __init__(self, name: str, make: Callable[[], bytes], nbytes: int) -> None:
        super().__init__(name, "U8", (nbytes,), nbytes)
        self._make = make

    def read_into(self, buffer: Any, offset: int = 0) -> None:
        view = self._within(buffer, offset)
        view[:] = self._make()[offset : offset + len(view)]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "_TOGETHER", 100)
    monkeypatch.setattr(computing, "_UNIT", 100)
    monkeypatch.setattr(saving, "_WHOLE", 100)


def test_computed_tensors_among_others(tmp_path: Path, small_batches: None) -> None:
    contents = {f"{index:03}": bytes([index]) * (index % 130) for index in range(200)}
    tensors: dict[str, Tensor] = {
        name: MemoryTensor(name, "U8", (len(data),), data)
        if index % 7 == 0
        else Computed(name, lambda data=data: data, len(data))  # type: ignore[misc]
        for index, (name, data) in enumerate(contents.items())
    }
    save(tensors, tmp_path / "a.safetensors")
    found = safetensors.deserialize((tmp_path / "a.safetensors").read_bytes())
    assert {name: bytes(each["data"]) for name, each in found} == contents
    assert to_bytes(tensors) == (tmp_path / "a.safetensors").read_bytes()


def test_several_are_computed_at_a_time(tmp_path: Path, small_batches: None) -> None:
    meeting = threading.Barrier(2, timeout=20)

    def make() -> bytes:
        meeting.wait()  # raises BrokenBarrierError if no other one comes
        return bytes(80)

    save({name: Computed(name, make, 80) for name in "abcd"}, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes()[-320:] == bytes(320)


def test_an_error_while_computing_keeps_the_old_file(path: Path, small_batches: None) -> None:
    before = path.read_bytes()

    def fail() -> bytes:
        raise FormatError("damaged", rule="delta")

    tensors = {name: Computed(name, lambda: bytes(80), 80) for name in "abc"}
    with pytest.raises(FormatError, match="damaged"):
        save({**tensors, "d": Computed("d", fail, 80)}, path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]
