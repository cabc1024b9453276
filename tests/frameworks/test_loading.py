"""Plans: whatever is wanted, of however many files, by whatever backend, arrives once and right."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import safeweights
import safeweights.numpy
from safeweights import SafetensorError
from safeweights.frameworks import loading, prefetch
from safeweights.frameworks.loading import HostLanding
from safeweights.frameworks.numpy import ADAPTER
from safeweights.storage import (
    BACKENDS,
    DescriptorSource,
    Source,
    TruncatedError,
    background,
    files,
)
from safeweights.storage import source as sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Arrays = dict[str, "np.ndarray[Any, Any]"]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(offset, length) of every read of a file's data."""
    reads: list[tuple[int, int]] = []
    original = DescriptorSource.read_into

    def noting(source: DescriptorSource, offset: int, buffer: memoryview) -> None:
        reads.append((offset, len(buffer)))
        original(source, offset, buffer)

    monkeypatch.setattr(DescriptorSource, "read_into", noting)
    return reads


def until(fact: Callable[[], bool]) -> None:
    """Wait for other threads, for ten seconds at most."""
    end = time.monotonic() + 300
    while not fact():
        assert time.monotonic() < end, "nothing happened for five minutes"
        time.sleep(0.001)


def readers() -> int:
    return sum(thread.name == "safeweights-reader" for thread in threading.enumerate())


def sharded(folder: Path, *shards: Arrays) -> Path:
    for number, arrays in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        safeweights.numpy.save_file(arrays, folder / name)
    return folder


shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
types = st.sampled_from(["u1", "<i2", "<f4", "<f8", "?"])


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[list[Arrays], dict[str, Any] | None]:
    """Shards, and a plan for them."""
    shards: list[Arrays] = []
    for number in range(draw(st.integers(1, 3))):
        kinds = draw(st.lists(st.tuples(shapes, types), min_size=1, max_size=6))
        random = np.random.default_rng(number)
        shards.append(
            {
                f"{number}.{index}": random.integers(0, 2, shape).astype(dtype)
                for index, (shape, dtype) in enumerate(kinds)
            }
        )
    if draw(st.booleans()):
        return shards, None
    plan: dict[str, Any] = {}
    for shard in shards:
        for name, array in shard.items():
            parts: list[Any] = [None]
            if array.ndim:
                rows = array.shape[0]
                first = draw(st.integers(0, rows))
                parts += [slice(first, draw(st.integers(first, rows))), slice(None, None, -2)]
                parts += [(..., 0)] if array.shape[-1] else [...]
            if draw(st.booleans()):
                plan[name] = draw(st.sampled_from(parts))
    return shards, plan


@pytest.mark.parametrize("arena", [1, 64, 1 << 26])
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=checkpoints())
def test_every_plan_by_every_engine(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    arena: int,
    case: tuple[list[Arrays], dict[str, Any] | None],
) -> None:
    shards, plan = case
    monkeypatch.setattr(HostLanding, "arena", arena)
    expected = {name: array for shard in shards for name, array in shard.items()}
    if plan is not None:
        expected = {
            name: expected[name] if part is None else expected[name][part]
            for name, part in plan.items()
        }
    folder = sharded(tmp_path_factory.mktemp("model"), *shards)
    with safeweights.stream(folder, "np", plan=plan, backend=backend) as loader:
        assert sorted(loader.names()) == sorted(expected)
        found = dict(loader)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, strict=True)
        assert found[name].flags.writeable


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk", [4096, 1 << 23])
def test_pieces_of_large_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, chunk: int
) -> None:
    """Many pieces, whose ends lie anywhere in tensors; direct reads come in blocks."""
    for module in (sources, loading):
        monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(sources.Reading.__new__, "__defaults__", (chunk, 0))
    random = np.random.default_rng(5)
    count = 9 * chunk // 8 + 3
    arrays = {name: random.integers(0, 256, count, "u1") for name in "abc"}
    path = tmp_path / "x.safetensors"
    safeweights.numpy.save_file(arrays, path)
    loaded = safeweights.numpy.load_file(path, backend=backend)
    streamed = dict(safeweights.stream(path, "np", backend=backend))
    part = dict(safeweights.stream(path, "np", backend=backend, plan={"b": slice(7, count - 5)}))
    for name, array in arrays.items():
        assert np.array_equal(loaded[name], array)
        assert np.array_equal(streamed[name], array)
    assert np.array_equal(part["b"], arrays["b"][7:-5])


def test_only_what_is_planned_is_read(tmp_path: Path, read: list[tuple[int, int]]) -> None:
    arrays = {f"{index:02}": np.full((100, 100), index, "<f4") for index in range(20)}
    folder = sharded(tmp_path, arrays, {"other": np.zeros(1000)})
    plan = {"03": slice(10, 20), "17": None}
    with safeweights.stream(folder, "np", plan=plan, backend="pread") as loader:
        assert loader.nbytes == 10 * 400 + 40_000
        found = dict(loader)
    assert sorted(length for _, length in read) == [10 * 400, 40_000]
    assert (found["03"] == 3).all()


def test_neighbours_are_read_together_and_small_gaps_too(
    tmp_path: Path, read: list[tuple[int, int]]
) -> None:
    path = tmp_path / "x.safetensors"
    size = Source.gap
    arrays = {name: np.full(size + (name == "d"), ord(name), "u1") for name in "abcde"}
    safeweights.numpy.save_file(arrays, path)
    with safeweights.safe_open(path, "np", backend="pread") as file:
        del read[:]
        found = dict(file.prefetch(["a", "c", "e"]))
    # Between a and c lie 4096 bytes, between c and e one more.
    assert [length for _, length in sorted(read)] == [3 * size, size]
    assert {name: int(array[0]) for name, array in found.items()} == {"a": 97, "c": 99, "e": 101}


@pytest.fixture
def twenty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of twenty tensors of 1000 bytes; every one is a batch, and two may be ahead."""
    path = tmp_path / "x.safetensors"
    safeweights.numpy.save_file({f"{i:02}": np.full(1000, i, "u1") for i in range(20)}, path)
    monkeypatch.setattr(HostLanding, "arena", 1)
    monkeypatch.setattr(prefetch, "_AHEAD", 2000)
    yield path
    gc.collect()
    until(lambda: not readers())


def test_no_more_is_read_ahead_than_is_allowed(twenty: Path, read: list[tuple[int, int]]) -> None:
    with safeweights.safe_open(twenty, "np", backend="pread") as file:
        del read[:]
        with file.prefetch() as loader:
            until(lambda: len(read) == 2)
            assert loader.names() == file.keys()
            assert [name in loader for name in (file.keys()[0], "zz", 0)] == [True, False, False]
            for expected, (name, tensor) in enumerate(loader):
                assert (tensor == int(name)).all()
                assert len(read) <= expected + 4  # two more, and those that are being begun
        assert len(read) == 20


def test_who_asks_out_of_turn_is_served_at_once(twenty: Path) -> None:
    with safeweights.stream(twenty, "np", backend="pread") as loader:
        for name in reversed(loader.names()):
            assert (loader.take(name) == int(name)).all()
        assert list(loader) == []
        with pytest.raises(SafetensorError, match="`07` was already delivered"):
            loader.take("07")
        with pytest.raises(SafetensorError, match="`zz` is not in the prefetch plan"):
            loader.take("zz")
        with pytest.raises(SafetensorError, match="not in the prefetch plan"):
            loader.take(7)  # type: ignore[arg-type]
        assert len(loader) == 20


def test_many_threads_share_a_loader(twenty: Path) -> None:
    with safeweights.stream(twenty, "np", backend="pread") as loader, ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda name: (name, loader.take(name)), loader.names()[::3]))
        shares = list(pool.map(lambda _: list(loader), range(8)))
    everything = taken + [item for share in shares for item in share]
    assert sorted(name for name, _ in everything) == loader.names()
    assert all((tensor == int(name)).all() for name, tensor in everything)


def test_what_others_take_does_not_end_an_iteration(twenty: Path) -> None:
    """All that is complete may be gone between the moment it was seen and the next step."""
    taken: list[str] = []

    def meanwhile(nbytes: int) -> None:
        if nbytes and not taken:
            taken.append("")  # as `take` waits too
            for name in list(loader._pipeline._complete):
                taken.extend(dict(name.batch.tensors))
            for name in taken[1:]:
                loader.take(name)

    with safeweights.stream(twenty, "np", backend="pread", progress=meanwhile) as loader:
        found = [name for name, _ in loader]
    assert len(taken) > 1
    assert sorted(taken[1:] + found) == loader.names()


def test_a_progress_that_knows_its_loader_keeps_it_not(twenty: Path) -> None:
    def watched() -> None:
        shares: list[float] = []
        loader = safeweights.stream(
            twenty, "np", backend="pread", progress=lambda n: shares.append(n / loader.nbytes)
        )
        next(iter(loader))
        assert shares

    watched()
    gc.collect()
    until(lambda: not readers())


def test_a_forked_process_does_not_wait_for_threads_it_has_not(twenty: Path) -> None:
    """Nor for a lock that somebody held at that moment, when it closes or drops what it inherited."""
    loader = safeweights.stream(twenty, "np", backend="pread")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with loader._pipeline._lock:
            held.set()
            done.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons say that this is a bad idea
        child = os.fork()
    if not child:
        signal.alarm(10)
        failed = 1
        try:
            with pytest.raises(SafetensorError, match="forked process"):
                loader.take("19")
            with pytest.raises(SafetensorError, match="forked process"):
                next(iter(loader))
            loader.close()
            del loader
            gc.collect()
            failed = 0
        finally:
            os._exit(failed)
    _, status = os.waitpid(child, 0)
    done.set()
    holder.join()
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(list(loader)) == 20


@pytest.mark.parametrize("allowed", [0, 1])
def test_threads_that_cannot_be_had(
    twenty: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    started: list[threading.Thread] = []

    class Scarce(threading.Thread):
        def start(self) -> None:
            if len(started) >= allowed:
                raise RuntimeError("can't start new thread")
            started.append(self)
            super().start()

    monkeypatch.setattr(background, "Thread", Scarce)
    assert len(safeweights.numpy.load_file(twenty, backend="pread")) == 20
    started.clear()
    if allowed:
        assert len(dict(safeweights.stream(twenty, "np"))) == 20
    else:  # nobody would read ahead
        with pytest.raises(RuntimeError, match="can't start"):
            safeweights.stream(twenty, "np")


def test_a_reader_may_close_its_loader(twenty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer that the collector happens to run there: with the lock that the others wait for."""
    begin, first = HostLanding.begin, threading.Event()

    def finalizing(landing: HostLanding, batch: Any) -> Any:
        first.wait(10)
        loader.close()
        return begin(landing, batch)

    monkeypatch.setattr(HostLanding, "begin", finalizing)
    loader = safeweights.stream(twenty, "np", backend="pread")
    assert readers() > 1
    first.set()
    until(lambda: not readers())
    with pytest.raises(SafetensorError, match="closed"):
        loader.take("00")


def test_a_closed_loader_says_so(twenty: Path) -> None:
    loader = safeweights.stream(twenty, "np", backend="pread")
    name, first = next(iter(loader))  # whichever arrived first
    other = next(each for each in loader.names() if each != name)
    loader.close()
    loader.close()
    assert not readers()
    assert (first == int(name)).all()
    for call in (lambda: loader.take(other), lambda: list(loader)):
        with pytest.raises(SafetensorError, match="prefetch loader closed"):
            call()


def test_who_waits_learns_of_the_close(twenty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    monkeypatch.setattr(DescriptorSource, "read_into", lambda *_: held.wait(10))
    file = safeweights.safe_open(twenty, "np", backend="mmap")
    file._opened().files[0].source.in_memory = False  # so that it is read, and the reading hangs
    file._opened().files[0].source._map = None
    loader = file.prefetch()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(loader.take, "00")
        until(lambda: waiting.running())
        loader._pipeline.stop()
        with pytest.raises(SafetensorError, match="prefetch loader closed"):
            waiting.result(10)
        held.set()
    loader.close()


def test_a_loader_that_is_dropped_stops_reading(twenty: Path) -> None:
    loader = safeweights.stream(twenty, "np", backend="pread")
    next(iter(loader))
    until(lambda: readers() > 0)
    del loader
    gc.collect()
    until(lambda: not readers())


@pytest.mark.parametrize("backend", ["mmap", "pread", "direct"])
def test_a_truncated_file_is_an_error_for_who_asks(tmp_path: Path, backend: str) -> None:
    """Of a mapping too: pages are fetched, and those that are gone found, before anybody touches them."""
    path = tmp_path / "x.safetensors"
    arrays = {name: np.ones(1 << 20, "u1") for name in "ab"}
    safeweights.numpy.save_file(arrays, path)
    with safeweights.safe_open(path, "np", backend=backend) as file:
        os.truncate(path, 4096)
        loader = file.prefetch(["b"])
        for _ in range(2):
            with pytest.raises(TruncatedError, match="it ends at byte 4096") as caught:
                loader.take("b")
            assert caught.value.path == str(path)
        loader.close()
    assert not readers()


def test_pages_that_cannot_be_read_are_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a mapping a disk that fails looks like a file that was truncated."""
    path = tmp_path / "x.safetensors"
    safeweights.numpy.save_file({"a": np.ones(5000, "u1")}, path)
    monkeypatch.setattr(files, "populate", lambda _: False)
    with (
        safeweights.stream(path, "np", backend="mmap") as loader,
        pytest.raises(OSError, match="Input/output error") as caught,
    ):
        loader.take("a")
    assert caught.value.filename == str(path)


def test_what_cannot_be_had_is_refused_before_anything_is_read(
    tmp_path: Path, read: list[tuple[int, int]]
) -> None:
    path = tmp_path / "x.safetensors"
    entries = {
        "a": {"dtype": "F6_E2M3", "shape": [4], "data": bytes(3)},
        "b": {"dtype": "F32", "shape": [], "data": bytes(4)},
        "c": {"dtype": "F32", "shape": [2, 2], "data": bytes(16)},
        "d": {"dtype": "F4", "shape": [2, 2], "data": bytes(2)},
    }
    safeweights.serialize_file(entries, path)
    with safeweights.safe_open(path, "np", backend="pread") as file:
        del read[:]
        for plan, message in [
            (None, "F6_E2M3"),
            ({"b": slice(0, 1)}, "too many indices|out of bounds|Error during slicing"),
            ({"c": slice(0, 3)}, "Error during slicing"),
            ({"c": "x"}, "."),
            ({"d": (0, 0)}, "byte boundary"),
            (
                {"d": (..., slice(None, None, -1))},
                "a negative step along the last axis is not supported for F4",
            ),
            ({"z": None}, "does not contain tensor z"),
            ([3], "does not contain tensor 3"),
            (5, "neither names nor a mapping"),
            ("bc", "neither names nor a mapping"),
        ]:
            with pytest.raises(SafetensorError, match=message):
                file.prefetch(plan)  # type: ignore[arg-type]
        for threads in (0, -1, True, 1.5):
            with pytest.raises(SafetensorError, match="threads is"):
                file.prefetch(threads=threads)  # type: ignore[arg-type]
        assert dict(file.prefetch({})) == {}
    assert read == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_progress_is_told_to_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(HostLanding, "arena", 1 << 20)
    arrays = {f"{index}": np.ones(1 << 20, "u1") for index in range(8)}
    folder = sharded(tmp_path, arrays, {"more": np.ones(333, "u1")})
    heard: list[tuple[int, int]] = []

    def progress(nbytes: int) -> None:
        heard.append((nbytes, threading.get_ident()))

    with safeweights.stream(folder, "np", backend=backend, progress=progress) as loader:
        list(loader)
    assert loader.nbytes == (8 << 20) + 333
    assert [nbytes for nbytes, _ in heard] == sorted(nbytes for nbytes, _ in heard)
    assert heard[-1] == (loader.nbytes, threading.get_ident())
    del heard[:]
    safeweights.numpy.load_file(
        folder / "model-00001-of-00002.safetensors", backend=backend, progress=progress
    )
    assert heard[-1] == (8 << 20, threading.get_ident())


def test_progress_is_told_of_each_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only of each batch, and not only when a wait ends by itself."""
    monkeypatch.setattr("safeweights.storage.background.PATIENCE", 60)
    monkeypatch.setattr(sources.Source, "piece", 1 << 20)
    monkeypatch.setattr(sources, "CHUNK", 1 << 20)
    monkeypatch.setattr(loading, "CHUNK", 1 << 20)
    safeweights.numpy.save_file({"a": np.ones(8 << 20, "u1")}, tmp_path / "a.safetensors")
    told = threading.Event()
    real = sources.Source.reading

    def reading(
        source: sources.Source, offset: int, length: int, **options: bool
    ) -> sources.Reading:
        found = real(source, offset, length, **options)

        def fill(begin: int, end: int) -> None:
            if end == length:  # the last piece
                assert told.wait(30)
            found.fill(begin, end)

        return found._replace(fill=fill)

    monkeypatch.setattr(sources.Source, "reading", reading)
    safeweights.numpy.load_file(
        tmp_path / "a.safetensors", backend="pread", progress=lambda done: done and told.set()
    )


@pytest.mark.parametrize("aligned", [False, True])
def test_memory_is_aligned_for_frameworks_that_copy_any_other(
    tmp_path: Path, aligned: bool
) -> None:
    path = tmp_path / "a.safetensors"
    safeweights.numpy.save_file({"a": np.ones(2 << 20, "u1")}, path)
    begin = path.stat().st_size - (2 << 20)
    assert begin % 64
    adapter = type("Adapter", (type(ADAPTER),), {"aligned": aligned})()
    with safeweights.open(path, backend="pread") as checkpoint:
        found = loading.load_all(checkpoint, adapter, None, None)["a"]
    assert found.sum() == 2 << 20
    assert found.ctypes.data % 64 == (0 if aligned else begin % 64)


def test_progress_without_another_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that may use one thread, such as a rank."""
    monkeypatch.setattr(sources, "CHUNK", 1 << 20)
    monkeypatch.setattr(sources.Source, "piece", 1 << 20)
    monkeypatch.setattr(loading, "CHUNK", 1 << 20)
    monkeypatch.setattr(loading, "thread_count", lambda: 1)
    path = tmp_path / "a.safetensors"
    safeweights.numpy.save_file(
        {"a": np.ones(8 << 20, "u1"), "b": np.ones((3 << 20) + 5, "u1")}, path
    )
    heard: list[int] = []
    loading.load_all(
        safeweights.open(path, backend="pread"), ADAPTER, None, heard.append, copies=True
    )
    assert heard == sorted(set(heard))
    assert len(heard) >= 12
    assert heard[-1] == (11 << 20) + 5


@pytest.mark.parametrize("backend", ["pread", "direct"])
def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(HostLanding, "arena", 1 << 20)
    path = tmp_path / "x.safetensors"
    safeweights.numpy.save_file({f"{i}": np.ones(9 << 20, "u1") for i in range(4)}, path)
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        safeweights.numpy.load_file(path, backend=backend, progress=interrupt)
    assert not readers()
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before


def test_mapped_files_are_fetched_without_a_copy(
    tmp_path: Path, read: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    safeweights.numpy.save_file({"a": np.ones(1 << 20, "u1")}, path)
    fetched: list[int] = []
    original = files.populate

    def noting(memory: memoryview) -> bool:
        fetched.append(len(memory))
        return original(memory)

    monkeypatch.setattr(files, "populate", noting)
    with safeweights.safe_open(path, "np", backend="mmap") as file:
        del read[:]
        tensor = file.prefetch().take("a")
    assert (read, fetched) == ([], [1 << 20])
    tensor[:] = 7  # private: the file stays what it is
    assert (safeweights.numpy.load_file(path)["a"] == 1).all()


def test_sixteen_threads_load_save_and_slice_at_once(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {f"{index}": random.random((64, 1 << index)) for index in range(8)}
    path = tmp_path / "x.safetensors"
    safeweights.numpy.save_file(arrays, path)

    def work(number: int) -> None:
        backend = BACKENDS[number % len(BACKENDS)]
        for turn in range(5):
            loaded = safeweights.numpy.load_file(path, backend=backend)
            own = tmp_path / f"{number % 8}.safetensors"  # two threads write each
            safeweights.numpy.save_file(loaded, own)
            with safeweights.safe_open(own, "np", backend=backend) as file:
                for name, array in arrays.items():
                    part = file.get_slice(name)[turn:50:3, -1:]
                    np.testing.assert_array_equal(part, array[turn:50:3, -1:], strict=True)
            for name, array in safeweights.stream(own, "np", backend=backend):
                np.testing.assert_array_equal(array, arrays[name], strict=True)

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(work, number) for number in range(16)]:
            done.result()
    until(lambda: not readers())


def test_empty_tensors_among_few_of_many(tmp_path: Path) -> None:
    """An empty tensor begins where the next one does: whoever sorts by that alone may swap them."""
    path = tmp_path / "x.safetensors"
    random = np.random.default_rng(0)
    entries = {
        f"{index}.{kind}": {"dtype": "U8", "shape": [size], "data": random.bytes(size)}
        for index in range(50)
        for kind, size in (("empty", 0), ("full", 10))
    }
    header, at = {}, 0
    for name, entry in entries.items():
        size = entry["shape"][0]  # type: ignore[index]
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    data = b"".join(entry["data"] for entry in entries.values())  # type: ignore[misc]
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    for index in range(50):
        plan = [f"{index}.full", f"{index}.empty"]
        found = dict(safeweights.stream(path, "np", plan=plan))
        assert found[f"{index}.empty"].shape == (0,)
        assert found[f"{index}.full"].tobytes() == entries[f"{index}.full"]["data"]


def test_names_are_in_the_order_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safeweights.numpy.save_file({name: np.eye(4) for name in "abcd"}, path)
    plan = {"d": None, "c": (..., 1), "b": None, "a": slice(1, 2)}
    with safeweights.stream(path, "np", plan=plan) as loader:
        assert loader.names() == ["a", "b", "c", "d"]


def test_a_load_does_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the interpreter's end, and in a full container, none can be started."""
    array = np.arange(5 << 20, dtype=np.float64)
    safeweights.numpy.save_file({"a": array}, tmp_path / "a")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for backend in BACKENDS:
        loaded = safeweights.numpy.load_file(tmp_path / "a", backend=backend)
        assert np.array_equal(loaded["a"], array)
    safeweights.save(safeweights.open(tmp_path / "a", backend="pread"), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
