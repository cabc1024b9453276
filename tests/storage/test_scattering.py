"""Runs are written through mappings as pwrite(2) writes them, and no fault kills the process."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeweights.format.indexing import Runs
from safeweights.storage import LocalStore, gathering, scattering, shared_file, syscalls
from safeweights.storage.scattering import is_worth_mapping, scatter_mapped
from safeweights.storage.shared_file import SharedFile
from small_disks import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files are mapped on Linux only")

SIZE = 300_000


@st.composite
def some_runs(draw: st.DrawFn) -> Runs:
    """Loops nested without overlap, as `indexing.runs` makes them."""
    length = draw(st.one_of(st.integers(1, 12), st.integers(200, 700)))
    span, loops = length, []
    for _ in range(draw(st.integers(1, 4))):
        stride = span + draw(st.sampled_from([0, 1, 7, 100, 4096, 6000]))
        repetitions = draw(st.integers(2, 6))
        if (repetitions - 1) * stride + span > SIZE - 1000:
            break
        loops.insert(0, (repetitions, stride))
        span += (repetitions - 1) * stride
    return Runs(draw(st.integers(0, 1000)), length, tuple(loops))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    descriptor = os.open(tmp_path_factory.mktemp("scattering") / "a", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


@settings(max_examples=150)
@given(some_runs(), st.sampled_from([1 << 23, 20_000, 300]))
def test_runs_go_to_their_places_and_nothing_else_changes(
    file: int, runs: Runs, window: int
) -> None:
    expected = bytearray(random.Random(1).randbytes(SIZE))
    os.pwrite(file, expected, 0)
    data = random.Random(2).randbytes(runs.nbytes)
    for index, place in enumerate(runs.offsets()):
        expected[place : place + runs.length] = data[
            index * runs.length : (index + 1) * runs.length
        ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scattering, "_WINDOW", window)
        patch.setattr(scattering, "_HUGE", mmap.ALLOCATIONGRANULARITY)
        assert scatter_mapped(runs, memoryview(data), file) == runs.run_count
    assert os.pread(file, SIZE, 0) == expected


@pytest.mark.parametrize(
    ("runs", "worth"),
    [
        (Runs(0, 2048, ((4096, 4096),)), True),
        (Runs(0, 8192, ((512, 16384),)), True),
        (Runs(0, 8192, ((511, 16384),)), False),  # few
        (Runs(0, 2048, ((1 << 20, 1 << 16),)), False),  # far apart
        (Runs(0, 64, ((100, 1 << 30), (512, 128))), True),
        (Runs(0, 64, ((100, 1 << 30), (511, 128))), False),
        (Runs(0, 1 << 24, ((1000, 1 << 25),)), False),  # long
    ],
)
def test_only_short_runs_close_to_each_other_are_mapped(runs: Runs, worth: bool) -> None:
    assert is_worth_mapping(runs) is worth


COLUMNS = Runs(0, 1024, ((2000, 2048),))
RANK = """
import sys
from safeweights.format.indexing import Runs
from safeweights.storage import LocalStore
folder, staged, rank, durable = sys.argv[1:]
def refused(*_):
    raise AssertionError("pwrite is used")
with LocalStore(folder).fill(staged) as file:
    import os
    os.pwrite = refused
    data = bytes([int(rank) + 1]) * (1024 * 2000)
    file.write_runs(100, Runs(int(rank) * 1024, 1024, ((2000, 2048),)), memoryview(data))
    file.close(durable=durable == "True")
"""


@pytest.mark.parametrize("durable", [False, True])
def test_two_processes_write_the_columns_of_one_file_into_the_same_pages(
    tmp_path: Path, durable: bool
) -> None:
    store = LocalStore(tmp_path)
    with store.commit(durable=durable) as commit:
        staged = commit.reserve("a", 100 + 2 * COLUMNS.nbytes)
        with store.fill(staged) as file:
            file.write(0, b"h" * 100)
        if not is_mappable(tmp_path / staged):
            pytest.skip("the filesystem reserves no space")
        ranks = [
            subprocess.Popen([sys.executable, "-c", RANK, tmp_path, staged, rank, str(durable)])
            for rank in "01"
        ]
        assert [rank.wait(60) for rank in ranks] == [0, 0]
    row = b"\1" * 1024 + b"\2" * 1024
    assert (tmp_path / "a").read_bytes() == b"h" * 100 + row * 2000


def is_mappable(path: Path) -> bool:
    with path.open("rb") as file:
        reserved = os.fstat(file.fileno()).st_blocks > 0
        return reserved and syscalls.keeps_reserved(file.fileno())


def written(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many runs are written by pwrite(2)."""
    real, calls = os.pwrite, []

    def counted(descriptor: int, data: Any, offset: int) -> int:
        calls.append(offset)
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", counted)
    data = random.Random(3).randbytes(COLUMNS.nbytes)
    with SharedFile(str(path)) as file:
        file.write_runs(0, COLUMNS, memoryview(data))
    found = path.read_bytes()
    assert b"".join(found[place : place + 1024] for place in COLUMNS.offsets()) == data
    return len(calls)


def reserved(path: Path) -> Path:
    path.write_bytes(bytes(2 * COLUMNS.nbytes))
    return path


def mappable(path: Path) -> Path:
    """The same; the test is skipped where such a file is not mapped."""
    if not is_mappable(reserved(path)):
        pytest.skip("the filesystem reserves no space")
    return path


def test_a_file_without_blocks_is_not_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2 * COLUMNS.nbytes)
    assert written(tmp_path / "a", monkeypatch) == COLUMNS.run_count


def test_other_filesystems_are_not_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_file, "keeps_reserved", lambda descriptor: descriptor < 0)
    assert written(reserved(tmp_path / "a"), monkeypatch) == COLUMNS.run_count


def test_runs_that_were_mapped_are_not_counted_through_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mappable(tmp_path / "a")
    real, seen = Runs.offsets, []

    def noted(runs: Runs) -> Iterator[int]:
        for offset in real(runs):
            seen.append(offset)
            yield offset

    monkeypatch.setattr(Runs, "offsets", noted)
    with SharedFile(str(path)) as file:
        file.write_runs(0, COLUMNS, memoryview(b"\1" * COLUMNS.nbytes))
    assert path.read_bytes().count(1) == COLUMNS.nbytes
    assert len(seen) <= 4  # of the windows, not of the runs


def test_where_mapping_fails_halfway_pwrite_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mappable(tmp_path / "a")
    real, maps = mmap.mmap, []

    def maps_once(*arguments: Any, **options: Any) -> mmap.mmap:
        maps.append(options)
        if len(maps) > 1:
            raise OSError(errno.ENOMEM, "no address space")
        return real(*arguments, **options)

    monkeypatch.setattr(scattering, "_WINDOW", 1 << 21)
    monkeypatch.setattr(mmap, "mmap", maps_once)
    assert written(path, monkeypatch) == COLUMNS.run_count - 1024


def test_pages_that_cannot_be_written_are_left_to_pwrite(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(file, SIZE)
    before = os.pread(file, SIZE, 0)
    monkeypatch.setattr(scattering, "populate", lambda memory, *, writing: not writing)
    assert scatter_mapped(Runs(0, 10, ((600, 20),)), memoryview(bytes(6000)), file) == 0
    assert os.pread(file, SIZE, 0) == before


@pytest.mark.parametrize("size", [0, 5, 1 << 21, (1 << 21) + 5])
def test_a_file_that_was_cut_is_not_touched(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(b"1" * size)
    runs = Runs((1 << 21) + 1, 10, ((600, 20),))
    with (tmp_path / "a").open("rb+") as opened:
        assert scatter_mapped(runs, memoryview(bytes(6000)), opened.fileno()) == 0
    assert (tmp_path / "a").read_bytes() == b"1" * size


def test_little_of_a_large_file_is_mapped_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lengths = mmap.mmap, []

    def noted(descriptor: int, length: int, **options: Any) -> mmap.mmap:
        lengths.append(length)
        return real(descriptor, length, **options)

    monkeypatch.setattr(mmap, "mmap", noted)
    runs = Runs((1 << 21) - 1, 4, ((600, 100_000),))
    with (tmp_path / "a").open("wb+") as opened:
        opened.truncate(1 << 26)
        assert scatter_mapped(runs, memoryview(bytes(range(24)) * 100), opened.fileno()) == 600
        opened.seek(runs.offset_of(599))
        assert opened.read(4) == bytes(range(20, 24))
    assert 1 << 23 <= max(lengths) <= 12 << 20


FULL = """
import os, sys
from safeweights.format.indexing import Runs
from safeweights.storage import scattering
from safeweights.storage.shared_file import SharedFile
runs = Runs(0, 1024, ((2000, 2048),))
data = memoryview(bytes(runs.nbytes))
with open(sys.argv[1], "wb+") as file:
    os.truncate(file.fileno(), 2 * runs.nbytes)
    print(scattering.scatter_mapped(runs, data, file.fileno()))
    with SharedFile(sys.argv[1]) as shared:
        shared._has_blocks = True
        try:
            shared.write_runs(0, runs, data)
        except OSError as error:
            print(error)
"""


def test_a_full_disk_is_an_error_even_where_nothing_was_reserved(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    with small_disk(tmp_path, "300k"):
        done = subprocess.run(
            [sys.executable, "-c", FULL, path], capture_output=True, text=True, check=False
        )
    assert done.returncode != -signal.SIGBUS
    assert done.stdout == f"0\n[Errno 28] No space left on device: {path!r}\n", done.stderr


def test_gathering_reads_what_scattering_wrote(file: int) -> None:
    runs = Runs(17, 300, ((5, 50_000), (20, 700)))
    data = random.Random(4).randbytes(runs.nbytes)
    os.pwrite(file, bytes(SIZE), 0)
    assert scatter_mapped(runs, memoryview(data), file) == runs.run_count
    back = bytearray(runs.nbytes)
    gathering.gather_mapped(runs, memoryview(os.pread(file, SIZE, 0)), memoryview(back))
    assert back == data
