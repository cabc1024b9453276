"""Files written tensor by tensor: declared or spooled, to a path, a stream, a store; and appended to."""

from __future__ import annotations

import errno
import gc
import io
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import safeweights
from new_threads import threads_since_now
from safeweights.checkpoint import MemoryTensor, open, to_bytes, writer
from safeweights.checkpoint.writer import Writer
from safeweights.errors import ChangedError, ClosedError, FormatError, UnsupportedError
from safeweights.storage import LocalStore, MemoryStore
from safeweights.storage.background import Background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTENTS = {"b": b"bb", "a": b"aaaa", "empty": b"", "c": b"c" * 100}
LAYOUT = {name: ("U8", (len(data),)) for name, data in CONTENTS.items()}


def fill(out: Writer, contents: dict[str, bytes] = CONTENTS) -> None:
    for name, data in contents.items():
        out.add(name, "U8", (len(data),), [data[:1], data[1:]])


def expected(metadata: dict[str, str] | None = None) -> bytes:
    tensors = {name: MemoryTensor(name, "U8", (len(d),), d) for name, d in CONTENTS.items()}
    return to_bytes(tensors, metadata)


def found(target: Any) -> dict[str, bytes]:
    return {name: bytes(tensor.view()) for name, tensor in open(target, backend="pread").items()}


def only(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# ---- what is written


@pytest.mark.parametrize("kind", [str, Path])
def test_spooled_gives_the_reference_writers_bytes(tmp_path: Path, kind: Any) -> None:
    with Writer(kind(tmp_path / "a"), {"k": "v"}) as out:
        fill(out)
        assert only(tmp_path) == []
    assert (tmp_path / "a").read_bytes() == expected({"k": "v"})
    assert only(tmp_path) == ["a"]


def test_declared_keeps_the_declared_order(tmp_path: Path) -> None:
    with Writer(tmp_path / "new" / "a", {"k": "v"}, layout=LAYOUT) as out:
        fill(out)
    file = open(tmp_path / "new" / "a")
    assert list(file) == ["b", "a", "empty", "c"]
    assert found(tmp_path / "new" / "a") == CONTENTS
    assert file.metadata == {"k": "v"}
    assert only(tmp_path / "new") == ["a"]


@pytest.mark.parametrize("layout", [None, LAYOUT])
def test_streams_and_stores(layout: Any, tmp_path: Path) -> None:
    stream, store = io.BytesIO(), MemoryStore()
    for target in (stream, (store, "folder/a"), (LocalStore(tmp_path), "x/a")):
        with Writer(target, layout=layout) as out:
            fill(out)
    assert found(stream.getvalue()) == CONTENTS
    assert found(bytes(store.open("folder/a").view(0, store.open("folder/a").size))) == CONTENTS
    assert found(tmp_path / "x" / "a") == CONTENTS


def test_a_pipe_gets_the_bytes_as_they_come() -> None:
    reader, sink = os.pipe()
    with os.fdopen(reader, "rb") as file:
        with os.fdopen(sink, "wb", buffering=0) as pipe, Writer(pipe, layout=LAYOUT) as out:
            length = int.from_bytes(file.read(8), "little")
            head = length.to_bytes(8, "little") + file.read(length)
            out.add("b", "U8", (2,), b"bb")
            assert file.read(2) == b"bb"
            fill(out, {name: data for name, data in CONTENTS.items() if name != "b"})
        assert found(head + b"bb" + file.read()) == CONTENTS


def test_memory_that_is_used_again(tmp_path: Path) -> None:
    memory = bytearray(3)

    def chunks() -> Iterator[bytearray]:
        for value in range(200):
            memory[:] = bytes([value]) * 3
            yield memory

    for name, layout in (("a", None), ("b", {"t": ("U8", (600,))})):
        with Writer(tmp_path / name, layout=layout) as out:
            out.add("t", "U8", (600,), chunks())
        assert found(tmp_path / name)["t"] == b"".join(bytes([value]) * 3 for value in range(200))


def test_large_chunks_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_PIECE", 7)
    for name, layout in (("a", None), ("b", {"t": ("U8", (600,))})):
        with Writer(tmp_path / name, layout=layout) as out:
            out.add("t", "U8", (600,), bytes(range(200)) * 3)
        assert found(tmp_path / name)["t"] == bytes(range(200)) * 3


def test_more_than_memory(tmp_path: Path) -> None:
    size, piece = 60_000_000, bytes(100_000)
    tracemalloc.start()
    for name, layout in (("a", None), ("b", {"t": ("U8", (size,))})):
        with Writer(tmp_path / name, layout=layout) as out:
            out.add("t", "U8", (size,), (piece for _ in range(size // len(piece))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 15_000_000
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Background, "start", lambda self: 0)
    with Writer(tmp_path / "a", layout=LAYOUT) as out:
        fill(out)
    assert found(tmp_path / "a") == CONTENTS
    with pytest.raises(KeyError), Writer(tmp_path / "a", layout=LAYOUT) as out:
        raise KeyError
    assert only(tmp_path) == ["a"]


# ---- what is refused


@pytest.mark.parametrize("layout", [None, LAYOUT])
@pytest.mark.parametrize("old", [None, b"old"])
def test_an_error_in_the_block_leaves_what_was_there(
    tmp_path: Path, layout: Any, old: bytes | None, no_leak: None
) -> None:
    path = tmp_path / "a"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(ZeroDivisionError), Writer(path, layout=layout) as out:
        out.add("b", "U8", (2,), b"bb")
        1 / 0
    assert only(tmp_path) == ([] if old is None else ["a"])
    assert old is None or path.read_bytes() == old
    with pytest.raises(ClosedError):
        out.add("a", "U8", (4,), b"aaaa")
    out.close()
    out.discard()


def test_a_writer_that_is_forgotten_writes_nothing(tmp_path: Path) -> None:
    started = threads_since_now()
    out = Writer(tmp_path / "a", layout=LAYOUT)
    out.add("b", "U8", (2,), b"bb")
    del out
    gc.collect()
    assert only(tmp_path) == []
    assert not started()


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "data", "message"),
    [
        ("a", "U8", (4,), b"aaaa", "the layout has `b`"),
        ("b", "U8", (3,), b"bbb", "the layout has `b`, U8 of shape [2], next"),
        ("b", "I8", (2,), b"bb", "the layout has `b`"),
        ("b", "U8", (2,), b"bbb", "takes 2 bytes"),
        ("b", "U8", (2,), [b"b"], "takes 2 bytes"),
        ("b", "U7", (2,), b"", "unknown dtype"),
        ("b", "F4", (1,), b"", "byte boundary"),
    ],
)
@pytest.mark.parametrize("declared", [True, False])
def test_wrong_tensors(
    tmp_path: Path, declared: bool, name: str, dtype: str, shape: Any, data: Any, message: str
) -> None:
    if not declared and "layout" in message:
        return
    with Writer(tmp_path / "a", layout=LAYOUT if declared else None) as out:
        with pytest.raises(FormatError) as caught:
            out.add(name, dtype, shape, data)
        assert message in str(caught.value)
        if declared and "takes" in message:
            with pytest.raises(FormatError, match="not written to its end"):
                out.add("a", "U8", (4,), b"aaaa")
            with pytest.raises(FormatError, match="not written to its end"):
                out.close()
            return
        fill(out)
    assert found(tmp_path / "a") == CONTENTS


def test_wrong_arguments(tmp_path: Path) -> None:
    for target in (5, ("a", "b")):
        with pytest.raises(UnsupportedError, match="expected a path"):
            Writer(target)
    with pytest.raises(UnsupportedError):
        Writer((MemoryStore(), "../a"))
    with pytest.raises(UnsupportedError, match="metadata"):
        Writer(tmp_path / "a", {"a": 5})  # type: ignore[dict-item]
    with pytest.raises(UnsupportedError, match="append"):
        Writer(tmp_path / "a", layout=LAYOUT, append=True)
    with pytest.raises(UnsupportedError, match="append"):
        Writer(io.BytesIO(), append=True)
    with pytest.raises(FormatError, match="dtype"):
        Writer(tmp_path / "a", layout={"a": ("X", ())})
    with Writer(tmp_path / "a") as out:
        with pytest.raises(UnsupportedError, match="buffer"):
            out.add("a", "U8", (1,), 5)  # type: ignore[arg-type]
        with pytest.raises(UnsupportedError, match="buffer"):
            out.add("a", "U8", (1,), ["x"])  # type: ignore[list-item]
        name: Any
        dtype: Any
        shape: Any
        for (name, dtype, shape), said in (
            ((5, "U8", (1,)), "the name of a tensor is a string, not int"),
            (("a", None, (1,)), "the element type of a tensor is a string, not NoneType"),
            (("a", "U8", 1), "sequence of whole numbers, not `1`"),
            (("a", "U8", (1.0,)), "sequence of whole numbers, not"),
        ):
            with pytest.raises(UnsupportedError, match=said):
                out.add(name, dtype, shape, b"x")
        with pytest.raises(UnsupportedError, match="whole numbers"):
            Writer(tmp_path / "b", layout={"a": ("U8", None)})  # type: ignore[dict-item]
        shape = (np.int64(1),)
        out.add("a", "U8", shape, b"x")
        with pytest.raises(FormatError, match="`a` already"):
            out.add("a", "U8", (1,), b"x")
    assert found(tmp_path / "a") == {"a": b"x"}


def test_tensors_that_are_missing(tmp_path: Path) -> None:
    with (
        pytest.raises(FormatError, match="2 tensors of the layout were not added, the first is `e"),
        Writer(tmp_path / "a", layout=LAYOUT) as out,
    ):
        fill(out, {"b": b"bb", "a": b"aaaa"})
    assert only(tmp_path) == []
    with Writer(tmp_path / "a", layout={"a": ("U8", (0,))}) as out:
        out.add("a", "U8", (0,), b"")
        with pytest.raises(FormatError, match="no other tensor next"):
            out.add("b", "U8", (0,), b"")


def test_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leak: None
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    size = 30_000_000
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)
        layout = {"t": ("U8", (size,))}
        with pytest.raises(OSError, match="No space"), Writer(tmp_path / "a", layout=layout) as out:
            out.add("t", "U8", (size,), (bytes(1_000_000) for _ in range(30)))
        with pytest.raises(OSError, match="No space"), Writer(tmp_path / "a") as out:
            out.add("t", "U8", (5,), bytes(5))
    assert only(tmp_path) == []


# ---- appending


def test_append(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for number, (name, data) in enumerate(CONTENTS.items()):
        with Writer(path, {f"k{number}": "v"}, append=True) as out:
            out.add(name, "U8", (len(data),), data)
    assert found(path) == CONTENTS
    assert list(open(path)) == list(CONTENTS)
    assert open(path).metadata == {f"k{number}": "v" for number in range(len(CONTENTS))}
    (file,) = open(path).files
    assert file.header.data_start % 4096 == 0
    with Writer(path, append=True) as out, pytest.raises(FormatError, match="`a` already"):
        out.add("a", "U8", (0,), b"")
    assert found(path) == CONTENTS
    assert only(tmp_path) == ["a"]


def test_append_without_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(expected())
    with Writer(path, append=True) as out:
        out.add("new", "U8", (1,), b"n")
    assert open(path).metadata is None
    assert found(path) == {**CONTENTS, "new": b"n"}


def test_append_moves_the_old_data(tmp_path: Path, system_calls: Any) -> None:
    path = tmp_path / "a"
    big = bytes(range(256)) * 4000
    path.write_bytes(to_bytes({"t": MemoryTensor("t", "U8", (len(big),), big)}))
    system_calls.watch()
    with Writer(path, append=True) as out:
        out.add("new", "U8", (1,), b"n")
    assert "copy_file_range" in system_calls.log
    assert found(path) == {"t": big, "new": b"n"}


def test_append_to_what_was_replaced_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(expected())
    with pytest.raises(ChangedError), Writer(path, append=True) as out:
        out.add("new", "U8", (1,), b"n")
        path.unlink()
        path.write_bytes(expected())
    assert path.read_bytes() == expected()
    assert only(tmp_path) == ["a"]
    with pytest.raises(FormatError), Writer(Path(__file__), append=True):
        pass


def test_append_with_a_fault_at_any_system_call(
    tmp_path: Path, system_calls_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    old = expected()
    calls = system_calls_class(monkeypatch, ("open", "stat", "lstat", "fstat", "fchmod", "writev",
        "write", "fsync", "link", "replace", "pread", "copy_file_range"))  # fmt: skip

    def append() -> None:
        with Writer(path, append=True, durable=True) as out:
            out.add("new", "U8", (5,), b"n" * 5)

    path.write_bytes(old)
    calls.watch()
    append()
    count, new = len(calls.log), path.read_bytes()
    failed = done = 0
    for number in range(count):
        path.write_bytes(old)
        calls.fail(number, OSError(errno.EIO, "injected"))
        try:
            append()
        except OSError:
            failed += 1
        calls.watch()
        assert path.read_bytes() in (old, new)
        done += path.read_bytes() == new
    assert failed > count // 2
    assert 0 < done < count


KILLS = """
import glob, os, shutil, signal, sys
from safeweights.checkpoint.writer import Writer
from safeweights.storage import appending, runs

path, old = sys.argv[1:3]
appending.BATCH, runs._STEP = 1000, 1000
NAMES = ("open", "stat", "lstat", "fstat", "fchmod", "writev", "fsync", "link", "close", "replace", "pread",
         "copy_file_range", "mkdir", "rename", "unlink", "rmdir", "scandir", "dup")

def in_child(number):
    # What a killed writer left is removed by the next one: calls that are not those to be counted here.
    for left in glob.glob(os.path.join(os.path.dirname(path), ".safeweights-*")):
        shutil.rmtree(left) if os.path.isdir(left) else os.unlink(left)
    with open(old, "rb") as source, open(path, "wb") as target:
        target.write(source.read())
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        calls, write = 0, os.write
        def deadly(real):
            def call(*args, **kwargs):
                nonlocal calls
                if calls == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1
                return real(*args, **kwargs)
            return call
        for name in NAMES:
            setattr(os, name, deadly(getattr(os, name)))
        with Writer(path, append=True, durable=True) as out:
            out.add("new", "U8", (5000,), bytes(5000))
        write(writer, b"%d" % calls)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read()
    os.waitpid(child, 0)
    return int(said) if said else None

total = in_child(-1)
new, before = open(path, "rb").read(), open(old, "rb").read()
states = [0, 0]
for number in range(total):
    assert in_child(number) is None
    found = open(path, "rb").read()
    assert found in (before, new), number
    states[found == new] += 1
assert min(states) > 0, states
print(total)
"""


@pytest.mark.slow
def test_append_killed_before_every_system_call(tmp_path: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("Windows has neither fork nor SIGKILL")
    (tmp_path / "old").write_bytes(expected())
    done = subprocess.run(
        [sys.executable, "-c", KILLS, tmp_path / "a", tmp_path / "old"],
        env={**os.environ, "PYTHONPATH": str(Path(safeweights.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 40


@pytest.fixture
def no_leak(descriptors: Callable[[], int]) -> Iterator[None]:
    """Fails if the test leaves a descriptor open."""
    before = descriptors()
    yield
    assert descriptors() == before
