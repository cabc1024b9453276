"""Gathering gives the runs in order, reads little else, and takes little memory."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
import tracemalloc
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeweights.format.indexing import Runs
from safeweights.storage import (
    DescriptorSource,
    TruncatedError,
    files,
    gather,
    gather_mapped,
    gathering,
    open_source,
    syscalls,
)
from safeweights.storage.gathering import gather_over, parts_of
from safeweights.storage.leases import Lease, leased
from safeweights.storage.windows import Window

if TYPE_CHECKING:
    from pathlib import Path

DATA = random.Random(2).randbytes(400_000)


class Counted:
    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.reads: list[int] = []

    def read_into(self, buffer: memoryview, offset: int) -> None:
        assert offset + len(buffer) <= len(self.data)
        self.reads.append(len(buffer))
        buffer[:] = self.data[offset : offset + len(buffer)]


@st.composite
def some_runs(draw: st.DrawFn) -> Runs:
    """Loops nested without overlap, as `indexing.runs` makes them."""
    length = draw(st.one_of(st.integers(1, 12), st.integers(200, 700)))
    span, loops = length, []
    for _ in range(draw(st.integers(1, 4))):
        stride = span + draw(st.sampled_from([0, 0, 1, 7, 100, 4096, 4097, 6000]))
        room = max(2, (len(DATA) - 1000 - span) // stride)
        repetitions = draw(st.integers(2, min(6, room)))
        if (repetitions - 1) * stride + span > len(DATA) - 1000:
            break
        loops.insert(0, (repetitions, stride))
        span += (repetitions - 1) * stride
    return Runs(draw(st.integers(0, 1000)), length, tuple(loops))


@settings(max_examples=300)
@given(some_runs(), st.sampled_from([1 << 23, 5000, 300]))
def test_both_ways_give_the_runs(runs: Runs, slab: int) -> None:
    expected = b"".join(DATA[offset : offset + runs.length] for offset in runs.offsets())
    counted = Counted()
    read, copied = bytearray(runs.nbytes), bytearray(runs.nbytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "_SLAB", slab)
        gather(runs, counted.read_into, memoryview(read))
    gather_mapped(runs, memoryview(DATA), memoryview(copied))
    assert read == copied == expected
    assert list(map(runs.offset_of, range(runs.run_count))) == list(runs.offsets())
    assert sum(counted.reads) <= runs.nbytes + 4096 * runs.run_count
    assert len(counted.reads) <= runs.run_count


@settings(max_examples=300)
@given(some_runs(), st.integers(1, 5000), st.integers(1, 100_000))
def test_parts_are_the_runs_in_order(runs: Runs, nbytes: int, span: int) -> None:
    parts = list(parts_of(runs, nbytes=nbytes, span=span))
    assert [at for part in parts for at in part.offsets()] == list(runs.offsets())
    assert {part.length for part in parts} == {runs.length}
    for part in parts:
        assert part.run_count == 1 or (part.nbytes <= nbytes and part.span <= span)


def test_one_run_is_one_part() -> None:
    assert list(parts_of(Runs(5, 100, ()), nbytes=10, span=10)) == [Runs(5, 100, ())]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "data"
    path.write_bytes(DATA)
    return path


@settings(max_examples=300)
@given(some_runs(), st.sampled_from([1024, 6]), st.sampled_from([0, 150, 5000]))
def test_the_system_reads_the_runs_over_their_gaps(
    stored: Path, runs: Runs, vector: int, gap: int
) -> None:
    if not hasattr(os, "memfd_create"):
        pytest.skip("only Linux has vectors")
    if gathering.lie_apart(runs, gap):
        gap = 6000
    out = memoryview(bytearray(runs.nbytes))
    descriptor = os.open(stored, os.O_RDONLY)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gathering, "VECTOR", vector)
            assert gather_over(runs, descriptor, out, gap=gap)
    finally:
        os.close(descriptor)
    assert out == b"".join(DATA[offset : offset + runs.length] for offset in runs.offsets())


def test_close_runs_are_read_together() -> None:
    counted, runs = Counted(), Runs(100, 4, ((1000, 400),))
    gather(runs, counted.read_into, memoryview(bytearray(runs.nbytes)))
    assert counted.reads == [999 * 400 + 4]


def test_far_runs_are_read_one_by_one() -> None:
    counted, runs = Counted(), Runs(0, 8, ((10, 8 + 4097),))
    gather(runs, counted.read_into, memoryview(bytearray(runs.nbytes)))
    assert counted.reads == [8] * 10


def test_nested_loops_share_a_read() -> None:
    """Without that, a million pairs would be a million reads."""
    counted, runs = Counted(), Runs(0, 10, ((1000, 400), (2, 100)))
    gather(runs, counted.read_into, memoryview(bytearray(runs.nbytes)))
    assert counted.reads == [999 * 400 + 110]


def test_loops_that_continue_each_other_become_one() -> None:
    """Sixty-three dimensions of size 1 or 2 are more than an array may have."""
    loops = tuple((2, 3 << shift) for shift in reversed(range(12))) + ((1, 3),) * 30
    runs = Runs(0, 2, loops)
    out = memoryview(bytearray(runs.nbytes))
    gather_mapped(runs, memoryview(DATA), out)
    assert out == b"".join(DATA[3 * row : 3 * row + 2] for row in range(4096))


@pytest.mark.parametrize("length", [(1 << 24) - 1, 1000])
def test_memory_is_bounded(length: int) -> None:
    """Runs larger than the slab are not read through it."""
    count, stride = (3, 1 << 24) if length > 10_000 else (20_000, 2000)

    def read_into(buffer: memoryview, offset: int) -> None:
        buffer[:1] = b"x"

    out = memoryview(bytearray(length * count))
    import numpy as np  # its import is not what is measured

    assert np
    tracemalloc.start()
    try:
        gather(Runs(0, length, ((count, stride),)), read_into, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (1 << 23) + (1 << 20)


# ---- shared among threads


def test_far_runs_are_shared_among_threads() -> None:
    runs = Runs(3, 1000, ((2, 200_000), (30, 6000)))
    both = threading.Barrier(2, timeout=60)  # no thread goes on before two of them read
    readers: set[int] = set()

    def read_into(buffer: memoryview, offset: int) -> None:
        if threading.get_ident() not in readers:
            readers.add(threading.get_ident())
            both.wait()
        buffer[:] = DATA[offset : offset + len(buffer)]

    out = memoryview(bytearray(runs.nbytes))
    gather(runs, read_into, out, threads=2)
    assert out == b"".join(DATA[offset : offset + 1000] for offset in runs.offsets())
    assert len(readers) == 2


# ---- copied by the system

LINUX = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has memfd_create")
COLUMNS = Runs(100, 50, ((750, 32768),))
"""Columns of a matrix of 750 rows of 32 KiB."""
NARROW = Runs(100, 50, ((3000, 8192),))
"""Columns of the same bytes as 3,000 rows of 8 KiB: little enough lies between two to be read, too."""


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    path = tmp_path / "matrix"
    path.write_bytes((DATA * 83)[: 3000 * 8192])
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the system was asked to read, and to copy; it gives no leases."""
    counts = {"reads": 0, "copies": 0, "vectors": 0}
    read, copy, vectors = os.preadv, syscalls.write_vectors, syscalls.read_vectors

    def counted_read(*arguments: Any) -> int:
        counts["reads"] += 1
        return read(*arguments)

    def counted_copy(*arguments: Any) -> int:
        counts["copies"] += 1
        return copy(*arguments)

    def counted_vectors(*arguments: Any) -> int:
        counts["vectors"] += 1
        return vectors(*arguments)

    monkeypatch.setattr(os, "preadv", counted_read)
    monkeypatch.setattr(gathering, "read_vectors", counted_vectors)
    monkeypatch.setattr(gathering, "write_vectors", counted_copy)
    monkeypatch.setattr(files, "resident_share", lambda *_: 1.0)
    monkeypatch.setattr(files, "leased", lambda _: nullcontext())
    return counts


def expected(path: Path, runs: Runs) -> bytes:
    data = path.read_bytes()
    return b"".join(data[offset : offset + runs.length] for offset in runs.offsets())


def read_runs(path: Path, runs: Runs, backend: str = "pread") -> bytes:
    out = memoryview(bytearray(runs.nbytes))
    open_source(path, backend=backend).read_runs(runs, out)
    return bytes(out)


@LINUX
@pytest.mark.parametrize("backend", ["pread", "direct", "read"])
@pytest.mark.parametrize(
    ("runs", "copies"),
    [
        (COLUMNS, 1),
        (Runs(0, 1, ((5, 4_000_000), (200, 17_000))), 1),
        (Runs(7, 2000, ((300, 80_000),)), 1),
    ],
)
def test_a_thousand_small_runs_take_one_call(
    matrix: Path, calls: dict[str, int], backend: str, runs: Runs, copies: int
) -> None:
    assert read_runs(matrix, runs, backend) == expected(matrix, runs)
    assert calls == {"reads": 0, "copies": copies, "vectors": 0}


@LINUX
def test_nothing_is_read_beyond_memory_that_is_too_small(
    matrix: Path, calls: dict[str, int]
) -> None:
    whole = bytearray(NARROW.nbytes)
    with pytest.raises(ValueError, match=r"150000 bytes are read, .* has 149999"):
        open_source(matrix, backend="pread").read_runs(NARROW, memoryview(whole)[:-1])
    assert not any(whole)
    assert calls == {"reads": 0, "copies": 0, "vectors": 0}


@LINUX
@pytest.mark.parametrize(
    ("runs", "vectors"),
    [
        (NARROW, 6),
        (Runs(0, 1, ((500, 40_000), (4, 5000))), 500),
        (Runs(3, 7, ((2, 9_000_000), (2, 1_000_000), (600, 1000))), 8),
        (Runs(3, 4096, ((300, 4096 + 16384),)), 1),
        (Runs(0, 60_000, ((300, 68_000),)), 3),
        (Runs(0, 10, ((400, 40_000), (3, 5000), (1, 7), (2, 100))), 400),
    ],
)
def test_runs_and_what_lies_between_are_read_with_one_call(
    matrix: Path, calls: dict[str, int], runs: Runs, vectors: int
) -> None:
    assert read_runs(matrix, runs) == expected(matrix, runs)
    assert calls == {"reads": 0, "copies": 0, "vectors": vectors}


@LINUX
def test_a_window_has_its_file_copied(matrix: Path, calls: dict[str, int]) -> None:
    window = Window(open_source(matrix, backend="pread"), 8192, 2000 * 8192)
    runs = COLUMNS._replace(loops=((450, 32768),))
    out = memoryview(bytearray(runs.nbytes))
    window.read_runs(runs, out)
    assert out == expected(matrix, runs._replace(offset=8192 + 100))
    assert calls["reads"] == 0


@pytest.mark.parametrize(
    "runs",
    [
        COLUMNS._replace(loops=((255, 32768),)),  # few
        NARROW._replace(loops=((255, 8192),)),
        Runs(0, 2048, ((300, 80_000),)),  # long
        Runs(0, 1 << 16, ((300, 80_000),)),
    ],
)
def test_other_runs_are_read(matrix: Path, calls: dict[str, int], runs: Runs) -> None:
    assert read_runs(matrix, runs) == expected(matrix, runs)
    assert calls == {"reads": runs.run_count, "copies": 0, "vectors": 0}


@pytest.mark.parametrize("share", [None, 0.1])
def test_what_may_not_be_in_memory_is_read(
    matrix: Path, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch, share: float | None
) -> None:
    monkeypatch.setattr(files, "resident_share", lambda *_: share)
    assert read_runs(matrix, COLUMNS) == expected(matrix, COLUMNS)
    assert calls == {"reads": 750, "copies": 0, "vectors": 0}


def test_what_has_to_be_fetched_is_only_what_the_caller_wants(
    matrix: Path, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(0, 1000, ((3000, 2000),))
    monkeypatch.setattr(files, "resident_share", lambda *_: 0.0)
    for gap, reads in ((None, 1), (999, 3000), (1000, 1)):
        calls["reads"], out = 0, memoryview(bytearray(runs.nbytes))
        Window(open_source(matrix, backend="pread"), 0, 1 << 23).read_runs(runs, out, gap=gap)
        assert out == expected(matrix, runs)
        assert calls["reads"] == reads


def _no_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)


def _memfd_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> int:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)


def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no")

    monkeypatch.setattr(os, "ftruncate", refuse)


def _no_libc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "_libc", lambda: None)


def _no_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_map", lambda *_, **__: None)


@pytest.mark.parametrize("lack", [_no_memfd, _memfd_forbidden, _no_memory, _no_libc, _no_mapping])
def test_where_the_system_cannot_copy_runs_are_read(
    matrix: Path, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch, lack: Any
) -> None:
    wanted = expected(matrix, COLUMNS)
    lack(monkeypatch)
    assert read_runs(matrix, COLUMNS) == wanted
    assert calls["reads"] == 750


def test_where_vectors_cannot_be_read_runs_are(
    matrix: Path, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = expected(matrix, NARROW)
    _no_libc(monkeypatch)
    assert read_runs(matrix, NARROW) == wanted
    assert calls["reads"] == 3000


truncations = pytest.mark.parametrize(
    ("runs", "left"),
    [
        (runs, left)
        for runs in (COLUMNS, NARROW)
        for left in (0, 4096, 1500 * 8192, 100 + 749 * 32768 + 20)
    ],
)
"""Ways to truncate the matrix after it was opened and read."""


def read_truncated(matrix: Path, runs: Runs, left: int) -> None:
    source = open_source(matrix, backend="pread")
    out = memoryview(bytearray(runs.nbytes))
    source.read_runs(runs, out)
    os.truncate(matrix, left)
    with pytest.raises(TruncatedError):
        source.read_runs(runs, out)


@truncations
def test_a_file_truncated_meanwhile_is_an_error(
    matrix: Path, calls: dict[str, int], left: int, runs: Runs
) -> None:
    """The process would be killed if it touched the mapping itself."""
    read_truncated(matrix, runs, left)
    assert calls["reads"]


def test_runs_beyond_the_end_are_an_error(matrix: Path, calls: dict[str, int]) -> None:
    with pytest.raises(TruncatedError):
        read_runs(matrix, Runs(0, 50, ((751, 32768),)))
    assert calls["copies"] == 0


@LINUX
def test_the_mapping_is_made_once_and_holds_no_descriptor(
    matrix: Path, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[mmap.mmap] = []
    monkeypatch.setattr(files, "is_checked", lambda: True)
    monkeypatch.setattr(files, "note_mapping", lambda mapping, _: noted.append(mapping))
    source = open_source(matrix, backend="pread")
    assert isinstance(source, DescriptorSource)
    before = len(os.listdir("/proc/self/fd"))
    out = memoryview(bytearray(COLUMNS.nbytes))
    source.read_runs(COLUMNS, out)
    window = source._window
    source.read_runs(COLUMNS, out)
    assert source._window is window
    assert len(os.listdir("/proc/self/fd")) == before
    assert calls == {"reads": 0, "copies": 2, "vectors": 0}
    assert noted == []  # truncating the file does no harm


@LINUX
@pytest.mark.parametrize("leases", [True, False])
def test_a_mapping_of_a_file_that_was_shorter_is_not_used(
    matrix: Path, monkeypatch: pytest.MonkeyPatch, leases: bool
) -> None:
    """What follows it in memory would be read, or the arrays over it could not be made."""
    monkeypatch.setattr(files, "map_untracked", lambda *_, **__: None)
    monkeypatch.setattr(files, "_UNTRACKED", {})
    if not leases:
        monkeypatch.setattr(files, "leased", lambda _: nullcontext())
    data = matrix.read_bytes()
    upper = COLUMNS._replace(loops=((300, COLUMNS.loops[0][1]), *COLUMNS.loops[1:]))
    assert upper.span < len(data) // 2
    source = open_source(matrix, backend="pread")
    os.truncate(matrix, len(data) // 2)
    for runs in (upper, COLUMNS):
        out = memoryview(bytearray(runs.nbytes))
        source.read_runs(runs, out)
        assert out == b"".join(data[at : at + runs.length] for at in runs.offsets())
        assert isinstance(source, DescriptorSource)
        assert source._window is None or len(source._window) == len(data)
        with matrix.open("r+b") as file:
            file.write(data)


# ---- copied from a mapping under a lease


class Shares:
    """Counts calls of the system; all pages are in the page cache, except from `missing` on."""

    def __init__(self, counts: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = counts
        self.missing: int | None = None
        monkeypatch.setattr(files, "resident_share", self.share)
        monkeypatch.setattr(files, "leased", leased)
        monkeypatch.setattr(files, "_PART", 10_000)

    def share(self, _: int, offset: int, length: int) -> float:
        return 1.0 if self.missing is None or offset + length <= self.missing else 0.0


@pytest.fixture
def shares(matrix: Path, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> Shares:
    with matrix.open("rb") as file, leased(file.fileno()) as lease:
        if lease is None:
            pytest.skip("the filesystem of the temporary folder gives no leases")
    return Shares(calls, monkeypatch)


NOTHING = {"reads": 0, "copies": 0, "vectors": 0}


@pytest.mark.parametrize("backend", ["pread", "direct", "read"])
@pytest.mark.parametrize(
    "runs",
    [
        COLUMNS,
        NARROW,
        Runs(3, 7, ((2, 9_000_000), (2, 1_000_000), (600, 1000))),
        Runs(7, 10_000, ((300, 80_000),)),
    ],
)
def test_runs_in_the_page_cache_take_no_call_of_the_system(
    matrix: Path, shares: Shares, runs: Runs, backend: str
) -> None:
    assert read_runs(matrix, runs, backend) == expected(matrix, runs)
    assert shares.calls == NOTHING


def test_what_is_not_in_the_page_cache_is_read(matrix: Path, shares: Shares) -> None:
    shares.missing = 600 * 32768  # parts of 200 runs: three are there
    assert read_runs(matrix, COLUMNS) == expected(matrix, COLUMNS)
    assert shares.calls == NOTHING | {"reads": 150}


def test_long_runs_that_are_not_in_the_page_cache_are_read(matrix: Path, shares: Shares) -> None:
    runs = Runs(7, 10_000, ((300, 80_000),))  # each is a part
    shares.missing = 298 * 80_000
    assert read_runs(matrix, runs) == expected(matrix, runs)
    assert shares.calls == NOTHING | {"reads": 2}


def test_where_nothing_can_be_mapped_runs_are_read(
    matrix: Path, shares: Shares, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_mapping(monkeypatch)
    assert read_runs(matrix, COLUMNS) == expected(matrix, COLUMNS)
    assert shares.calls == NOTHING | {"reads": 750}


def test_a_part_without_a_lease_is_read(
    matrix: Path, shares: Shares, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that opened the file for writing has the next part."""
    granted = iter([True, True, False, True])

    def some(descriptor: int) -> Any:
        return leased(descriptor) if next(granted) else nullcontext()

    monkeypatch.setattr(files, "leased", some)
    monkeypatch.setattr(files, "in_parallel", lambda work, total, chunk: work(0, total))
    assert read_runs(matrix, COLUMNS) == expected(matrix, COLUMNS)
    assert shares.calls == NOTHING | {"copies": 1}


def test_a_lease_that_did_not_last_is_no_copy(
    matrix: Path, shares: Shares, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was copied while another program changed the file is read again, and an error if it is gone."""
    source = open_source(matrix, backend="pread")
    monkeypatch.setattr(Lease, "is_held", lambda _: False)
    out = memoryview(bytearray(COLUMNS.nbytes))
    source.read_runs(COLUMNS, out)
    assert out == expected(matrix, COLUMNS)
    assert shares.calls == NOTHING | {"copies": 1}


@truncations
def test_a_file_truncated_before_its_pages_are_touched_is_an_error(
    matrix: Path, shares: Shares, left: int, runs: Runs
) -> None:
    """The process would be killed if it touched them."""
    read_truncated(matrix, runs, left)
    assert shares.calls["reads"]


@pytest.mark.parametrize(("threads", "each"), [(1, 40_000), (2, 10_000)])
def test_one_thread_copies_more_under_one_lease(
    matrix: Path, shares: Shares, monkeypatch: pytest.MonkeyPatch, threads: int, each: int
) -> None:
    taken: list[int] = []

    def counted(descriptor: int) -> Any:
        taken.append(descriptor)
        return leased(descriptor)

    monkeypatch.setattr(files, "leased", counted)
    monkeypatch.setattr(files, "LEASED", 40_000)
    monkeypatch.setattr(files, "thread_count", lambda: threads)
    assert read_runs(matrix, NARROW) == expected(matrix, NARROW)
    assert len(taken) == -(-NARROW.nbytes // each)
    assert shares.calls == NOTHING


def test_memory_that_is_too_small_is_not_written(matrix: Path, shares: Shares) -> None:
    whole = bytearray(NARROW.nbytes)
    with pytest.raises(ValueError, match=r"150000 bytes are read, .* has 149999"):
        open_source(matrix, backend="pread").read_runs(NARROW, memoryview(whole)[:-1])
    assert not any(whole)


def test_all_pages_of_dense_runs_and_some_of_sparse_ones_are_checked(
    matrix: Path, shares: Shares, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def note(_: int, offset: int, length: int) -> float:
        asked.append((offset, length))
        return 1.0

    monkeypatch.setattr(files, "resident_share", note)
    dense, sparse = Runs(7, 500, ((300, 1000),)), Runs(7, 10, ((300, 1000),))
    monkeypatch.setattr(files, "_PART", 1 << 20)
    assert read_runs(matrix, dense) == expected(matrix, dense)
    assert asked == [(7, dense.span)]
    asked.clear()
    assert read_runs(matrix, sparse) == expected(matrix, sparse)
    assert {length for _, length in asked} == {10}
    assert len(asked) >= 16
