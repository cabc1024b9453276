"""Memory for what is read, and large results that several threads fill."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import resource
import sys
import weakref
from contextlib import suppress

import numpy as np
import pytest

from safeweights.storage import allocate, syscalls
from safeweights.storage.memory import allocate_secret, blank_bytes, copied, joined, touch


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) - 1, 1 << 20, (9 << 20) + 1])
def test_allocate(size: int) -> None:
    memory = allocate(size)
    assert (memory.nbytes, memory.format, memory.readonly) == (size, "B", False)
    if size >= 1 << 20:  # direct reads go to whole pages
        assert np.frombuffer(memory, np.uint8).ctypes.data % 4096 == 0


@pytest.mark.parametrize("size", [0, 1000, (17 << 20) + 3])
def test_copies_are_independent(size: int) -> None:
    data = bytearray(os.urandom(size))
    copy = copied(memoryview(data))
    assert copy == data
    data[:1] = bytes(byte ^ 1 for byte in data[:1])
    assert size == 0 or copy != data


def test_what_sees_blank_bytes_keeps_them() -> None:
    data, memory = blank_bytes(1 << 20) or pytest.skip("only of CPython")
    gone = weakref.ref(memory.obj)
    references = sys.getrefcount(data)
    del memory
    assert gone() is None
    assert sys.getrefcount(data) == references - 1


@pytest.mark.parametrize("sizes", [[], [0], [3, 0, 5], [1 << 20] * 17 + [5], [(1 << 24) + 3]])
def test_joining(sizes: list[int]) -> None:
    pieces = [bytes([number % 251]) * size for number, size in enumerate(sizes, 1)]
    pieces = [memoryview(piece) if len(piece) % 2 else piece for piece in pieces]
    assert joined(iter(pieces), sum(sizes)) == b"".join(pieces)


@pytest.mark.parametrize("wrong", [-1, 1, 1 << 24])
def test_joining_never_shows_memory_that_was_not_filled(wrong: int) -> None:
    with pytest.raises(ValueError, match="17825792 bytes together"):
        joined([bytes(1 << 20)] * 17, 17 * (1 << 20) + wrong)


def test_joining_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [bytes([number]) * (1 << 20) for number in range(17)]
    monkeypatch.setattr(syscalls, "_libc", lambda: None)  # no huge pages to be had
    assert joined(pieces, 17 << 20) == b"".join(pieces)
    monkeypatch.setattr(sys, "implementation", type(sys.implementation)(name="pypy"))
    assert joined(pieces, 17 << 20) == b"".join(pieces)


@pytest.mark.parametrize("nbytes", [0, 100, (1 << 20) + 5, 17 << 20])
def test_secret_memory_is_memory(nbytes: int) -> None:
    one, other = allocate_secret(nbytes), allocate_secret(nbytes)
    assert len(one) == len(other) == nbytes
    one[:] = b"a" * nbytes
    other[:] = b"b" * nbytes
    assert one == b"a" * nbytes, "the memory is shared"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
def test_secret_memory_is_no_part_of_a_core_dump_and_not_shared_with_forks() -> None:
    secret = allocate_secret(1 << 22)
    secret[:] = bytes(len(secret))
    address = ctypes.addressof(ctypes.c_char.from_buffer(secret))
    inside = False
    with open("/proc/self/smaps") as file:
        for line in file:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                begin, end = (int(part, 16) for part in line.split()[0].split("-"))
                inside = begin <= address < end
                assert not inside or line.split()[1] == "rw-p"  # private: copied when a fork writes
            elif inside and line.startswith("VmFlags"):
                assert " dd" in line
                return
    raise AssertionError("the memory is not mapped")


@pytest.mark.parametrize("extra", [0, 1])
def test_touch_reads_each_page(extra: int) -> None:
    pages = mmap.mmap(-1, 4096 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with memoryview(pages)[: 4095 * 4096 + extra] as memory:
        touch(memory)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults >= 4095 + extra
    touch(memoryview(b""))
