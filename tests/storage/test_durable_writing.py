"""What goes to the disk at once is written by several threads, each batch at its place."""

from __future__ import annotations

import errno
import itertools
import os
import random
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from kept_files import kept
from safeweights.storage import Run, appending, open_source, sink, write_file
from safeweights.storage.readahead import InMemory
from small_disks import small_disk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has pwritev2(2)")

BATCH = 1 << 16
SIZES = [100, BATCH, 3, 70_000, 1, 5000, 5000, 200_000, *[40] * 3000, 4 * BATCH, 1 << 21]
SIZE = sum(SIZES)


def pieces() -> list[bytes]:
    made = random.Random(1)
    return [made.randbytes(size) for size in SIZES]


NEW = b"".join(pieces())


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads share files that are not large, on a filesystem that is a local one."""
    monkeypatch.setattr(appending, "BATCH", BATCH)
    monkeypatch.setattr(appending, "thread_count", lambda: 4)
    monkeypatch.setattr(appending, "is_local", lambda _: True)


def save(path: Path, **options: Any) -> None:
    write_file(path, InMemory(pieces(), SIZE), size=SIZE, durable=True, **options)


def replace_pwritev(monkeypatch: pytest.MonkeyPatch, before: Callable[[int, int], object]) -> None:
    """Have every write call ``before(position, nbytes)`` first; it goes through the page cache then."""
    real = os.pwritev

    def pwritev(file: int, batch: list[memoryview], position: int, flags: int) -> int:
        assert flags == 0x80  # RWF_DONTCACHE
        before(position, sum(map(len, batch)))
        return real(file, batch, position)

    monkeypatch.setattr(os, "pwritev", pwritev)


def test_batches_are_written_at_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, int]] = []
    replace_pwritev(monkeypatch, lambda *each: written.append(each))
    told: list[int] = []
    save(tmp_path / "a", progress=told.append)
    assert (tmp_path / "a").read_bytes() == NEW
    positions = [position for position, _ in sorted(written)]
    assert positions == [0, *itertools.accumulate(nbytes for _, nbytes in sorted(written))][:-1]
    assert len(positions) > 30
    assert told == sorted(told)
    assert told[-1] == SIZE
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_several_threads_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together, calls = threading.Barrier(4), itertools.count()

    def wait(_: int, __: int) -> None:
        if next(calls) < 4:
            together.wait(60)  # until three others are here, too

    replace_pwritev(monkeypatch, wait)
    save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def pwritev(file: int, batch: list[memoryview], position: int, flags: int) -> int:
        del flags
        first = batch[0]
        return real(file, [first[: max(1, len(first) // 2)]], position)

    monkeypatch.setattr(os, "pwritev", pwritev)
    save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW


def test_a_kernel_that_lacks_it_gets_writes_at_the_same_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwritev(*_: Any) -> int:
        raise OSError(errno.EOPNOTSUPP, "injected")

    monkeypatch.setattr(os, "pwritev", pwritev)
    save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW


def test_other_filesystems_get_the_bytes_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mounts of object stores take no others."""
    monkeypatch.setattr(appending, "is_local", lambda _: False)
    positions: list[int] = []
    replace_pwritev(monkeypatch, lambda position, _: positions.append(position))
    save(tmp_path / "a")
    assert set(positions) == {-1}
    assert (tmp_path / "a").read_bytes() == NEW


def test_bytes_of_files_may_stand_between(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(NEW)
    source = open_source(tmp_path / "b")
    some: list[Any] = [*pieces(), Run(source, 5, SIZE - 10), *pieces()]  # type: ignore[arg-type]
    size = 3 * SIZE - 10
    write_file(tmp_path / "a", InMemory(some, size), size=size, durable=True)
    assert (tmp_path / "a").read_bytes() == NEW + NEW[5:-5] + NEW


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_what_fails_is_an_error_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(position: int, _: int) -> None:
        if position >= 10 * BATCH:
            raise OSError(code, os.strerror(code))

    replace_pwritev(monkeypatch, fail)
    with kept(tmp_path / "a"), pytest.raises(OSError, match=os.strerror(code)) as caught:
        save(tmp_path / "a")
    assert caught.value.errno == code
    assert caught.value.filename == str(tmp_path / "a")


def test_ctrl_c_leaves_the_old_file(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done > 5 * BATCH:
            raise KeyboardInterrupt

    with kept(tmp_path / "a"), pytest.raises(KeyboardInterrupt):
        save(tmp_path / "a", progress=interrupt)


@pytest.mark.parametrize("reserved", [True, False])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserved: bool) -> None:
    if not reserved:
        monkeypatch.setattr(sink, "reserve", lambda *_: False)
    full = pytest.raises(OSError, match="No space left")
    with small_disk(tmp_path, "1500k"), kept(tmp_path / "a"), full:
        save(tmp_path / "a")
