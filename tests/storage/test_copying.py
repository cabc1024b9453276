"""Pieces of memory are copied; what cannot be had ends the copy, and not the process."""

from __future__ import annotations

import mmap
import os
import random
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from safeweights.storage import copying
from safeweights.storage.copying import Copier, copy_pieces
from safeweights.storage.syscalls import VECTOR

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has process_vm_readv(2)")

PAGE = mmap.PAGESIZE


def place_of(nbytes: int) -> memoryview:
    return memoryview(bytearray(nbytes))


@pytest.fixture
def by_the_system(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of bytes that the system copied, call by call."""
    found: list[int] = []
    real = copying.copy_memory

    def copy(target: int, nbytes: int, vectors: int, count: int) -> int:
        found.append(done := real(target, nbytes, vectors, count))
        return done

    monkeypatch.setattr(copying, "copy_memory", copy)
    return found


@pytest.mark.parametrize("copy", [copy_pieces, lambda *each: Copier().copy(*each)])
@pytest.mark.parametrize("count", [0, 1, 1024, 1025, 3000])
def test_any_number_of_pieces(
    copy: Callable[[list[memoryview], memoryview], int], count: int
) -> None:
    data = random.Random(count).randbytes(7 * count)
    pieces = [memoryview(data)[7 * number : 7 * number + 7] for number in range(count)]
    place = place_of(len(data) + 5)
    assert copy(pieces, place) == len(data)
    assert bytes(place) == data + bytes(5)


@pytest.mark.parametrize("copy", [copy_pieces, lambda *each: Copier().copy(*each)])
@pytest.mark.parametrize("room", [0, 2005, 10 * VECTOR])
def test_no_byte_goes_beyond_the_place(
    copy: Callable[[list[memoryview], memoryview], int], room: int
) -> None:
    whole = place_of(30 * VECTOR)
    pieces = [memoryview(b"x" * 10)] * 2 * VECTOR
    assert copy(pieces, whole[:room]) == room
    assert bytes(whole) == b"x" * room + bytes(len(whole) - room)


def test_the_process_copies_its_own_memory(by_the_system: list[int]) -> None:
    data = np.arange(1 << 16, dtype=np.uint8)
    place = place_of(len(data))
    assert Copier().copy([data.data], place) == len(data)
    assert bytes(place) == data.tobytes()
    assert by_the_system == []


def test_memory_that_came_later_is_copied_by_the_system(by_the_system: list[int]) -> None:
    """It may be of a file that was mapped since."""
    copier = Copier()
    later = mmap.mmap(-1, 1 << 25, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    later.write(b"x" * (1 << 25))
    place = place_of(1 << 25)
    assert copier.copy([memoryview(later)], place) == 1 << 25
    assert bytes(place) == b"x" * (1 << 25)
    assert by_the_system == [1 << 25]


@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
def test_a_mapped_file_that_is_truncated_ends_a_copy(
    tmp_path: Path, by_the_system: list[int], flags: int
) -> None:
    (tmp_path / "a").write_bytes(b"x" * 4 * PAGE)
    with (tmp_path / "a").open("rb+") as file:
        mapped = mmap.mmap(file.fileno(), 4 * PAGE, flags=flags)
    copier = Copier()
    pieces = [memoryview(b"y" * 100), memoryview(mapped), memoryview(b"z" * 100)]
    place = place_of(4 * PAGE + 200)
    assert copier.copy(pieces, place) == 4 * PAGE + 200
    os.truncate(tmp_path / "a", 2 * PAGE)
    assert copier.copy(pieces, place) == 2 * PAGE + 100
    assert len(by_the_system) == 2


def test_nothing_is_copied_behind_what_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * PAGE)
    with (tmp_path / "a").open("rb+") as file:
        mapped = mmap.mmap(file.fileno(), PAGE)
    os.truncate(tmp_path / "a", 0)
    place = place_of(PAGE + 3000)
    assert (
        copy_pieces(
            [*[memoryview(b"y")] * 1000, memoryview(mapped), *[memoryview(b"z")] * 2000], place
        )
        == 1000
    )
    assert bytes(place) == b"y" * 1000 + bytes(PAGE + 2000)


def test_a_sandbox_that_forbids_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "copy_memory", lambda *_: -1)
    assert copy_pieces([memoryview(b"abc")], place_of(3)) == 0


def test_a_system_that_lists_no_mappings(
    monkeypatch: pytest.MonkeyPatch, by_the_system: list[int]
) -> None:
    monkeypatch.setattr(copying, "_MAPS", "/nonexistent")
    place = place_of(3)
    assert Copier().copy([memoryview(b"abc")], place) == 3
    assert bytes(place) == b"abc"
    assert by_the_system == [3]


def test_which_memory_is_of_no_file() -> None:
    lines = [
        b"1000-2000 rw-p 00000000 00:00 0 \n",
        b"2000-5000 r--p 00000000 00:00 0                          [heap]\n",  # a neighbour
        b"5000-6000 rw-p 00000000 08:01 77                         /a file\n",
        b"6000-7000 rw-s 00000000 00:00 0 \n",  # shared: what it is, is not known
        b"7000-8000 ---p 00000000 00:00 0 \n",
        b"8000-9000 rw-p 00000000 00:00 0                          [anon:name]\n",
        b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n",
    ]
    found = [*copying._anonymous(lines)]
    assert found == [(0x1000, 0x5000), (0x8000, 0x9000), (0x7F0000000000, 0x7F0000001000)]


@pytest.mark.parametrize(
    ("begin", "length", "own"),
    [
        (0x1000, 0x4000, True),
        (0xFFF, 2, False),
        (0x4FFF, 2, False),
        (0x5000, 1, False),
        (5, 5, False),
    ],
)
def test_memory_is_of_no_file_from_end_to_end(
    monkeypatch: pytest.MonkeyPatch, begin: int, length: int, own: bool
) -> None:
    monkeypatch.setattr(copying, "_mappings", lambda: [b"1000-5000 rw-p 00000000 00:00 0 \n"])
    assert Copier().is_anonymous(begin, length) is own
