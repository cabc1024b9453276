"""System calls that Python has no name for: where the bytes of a file are, and space set aside."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from safeweights.storage import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "a").write_bytes(bytes(100_000))
    with open(tmp_path / "a", "rb") as file:
        file.read()
        yield file.fileno()


@pytest.fixture
def fresh_libc() -> Iterator[None]:
    syscalls._libc.cache_clear()
    yield
    syscalls._libc.cache_clear()


def test_residency(descriptor: int) -> None:
    share = syscalls.resident_share(descriptor, 0, 100_000)
    assert share in {None, 1.0}  # None before Linux 6.5
    assert syscalls.resident_share(descriptor, 0, 0) is None
    assert syscalls.resident_share(-1, 0, 100) is None


def test_remote(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert syscalls.is_remote(descriptor) in {False, True}
    assert syscalls.is_remote(-1) is None

    class Network:
        @staticmethod
        def fstatfs(_: int, status: Any) -> int:
            status._obj[0] = 0x6969  # NFS
            return 0

    monkeypatch.setattr(syscalls, "_libc", Network)
    assert syscalls.is_remote(descriptor) is True


def test_elsewhere_nothing_is_known(
    descriptor: int, monkeypatch: pytest.MonkeyPatch, fresh_libc: None
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert syscalls.resident_share(descriptor, 0, 10) is None
    assert syscalls.is_remote(descriptor) is None
    kept = memoryview(bytearray(b"kept"))
    syscalls.release(kept)
    assert bytes(kept) == b"kept"


def test_kernels_without_cachestat(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        @staticmethod
        def syscall(*_: Any) -> int:
            return -1

    monkeypatch.setattr(syscalls, "_libc", Old)
    assert syscalls.resident_share(descriptor, 0, 10) is None


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("[always] madvise never\n", True),
        ("always [madvise] never\n", True),
        ("always madvise [never]\n", False),
        (None, False),
    ],
)
def test_huge_pages_are_what_the_system_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str | None, expected: bool
) -> None:
    if setting is not None:
        (tmp_path / "enabled").write_text(setting)
    monkeypatch.setattr(syscalls, "_HUGE_PAGES", str(tmp_path / "enabled"))
    assert syscalls.has_huge_pages() is expected


def test_space_is_set_aside_without_changing_the_size(descriptor: int, tmp_path: Path) -> None:
    size = os.fstat(descriptor).st_size
    with open(tmp_path / "new", "wb") as file:
        if syscalls.reserve(file.fileno(), 1 << 20):  # not every filesystem can
            assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20
        assert os.fstat(file.fileno()).st_size == 0
    assert syscalls.reserve(descriptor, 1 << 20) is False  # open for reading only
    assert os.fstat(descriptor).st_size == size


@pytest.mark.parametrize(
    "answer", [None, OSError(errno.EOPNOTSUPP, "no"), OSError(errno.ENOTTY, "no")]
)
def test_whether_files_can_share_blocks(
    descriptor: int, monkeypatch: pytest.MonkeyPatch, answer: OSError | None
) -> None:
    asked: list[bytes] = []

    def ioctl(target: int, request: int, argument: bytes) -> int:
        assert target == descriptor
        assert request == 0x4020940D  # FICLONERANGE of linux/fs.h
        asked.append(argument)
        if answer is not None:
            raise answer
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert syscalls.can_share_blocks(descriptor) is (answer is None)
    assert struct.unpack("qQQQ", asked[0]) == (descriptor, 100_000, 0, 100_000)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not syscalls.can_share_blocks(descriptor)


def test_asking_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 5000)
    with open(tmp_path / "a", "rb+") as file:
        syscalls.can_share_blocks(file.fileno())
    assert (tmp_path / "a").read_bytes() == b"abc" * 5000


def test_where_nothing_can_be_set_aside(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "_libc", lambda: None)
    assert syscalls.reserve(descriptor, 1 << 20) is False


def test_a_hint_about_less_than_a_page_is_none() -> None:
    syscalls.prefer_huge_pages(4097, 100)


class Missing:
    """A system that took some huge pages; those in `gone` have no page."""

    def __init__(self, *gone: int, fails: bool = False) -> None:
        self.gone, self.fails = gone, fails
        self.collapsed: list[tuple[int, int]] = []

    def mincore(self, place: Any, nbytes: Any, found: Any) -> int:
        self.begin = place.value
        per = (1 << 21) // mmap.PAGESIZE
        for number in range(nbytes.value >> 21):
            found[number * per : (number + 1) * per] = bytes([number not in self.gone]) * per
        return -self.fails

    def madvise(self, place: Any, nbytes: Any, advice: int) -> int:
        assert (nbytes.value, advice) == (1 << 21, 25)
        self.collapsed.append((place.value - self.begin) >> 21)
        return 0


@pytest.mark.parametrize(
    ("system", "wanted", "expected"),
    [
        (Missing(0, 2), True, [0, 2]),
        (Missing(), True, []),
        (Missing(0, 1, 2), False, []),  # who runs the machine wants none
        (Missing(0, fails=True), True, []),
        (None, True, None),
    ],
)
def test_only_huge_pages_that_are_gone_are_restored(
    monkeypatch: pytest.MonkeyPatch,
    system: Missing | None,
    wanted: bool,
    expected: list[int] | None,
) -> None:
    monkeypatch.setattr(syscalls, "_libc", lambda: system)
    monkeypatch.setattr(syscalls, "has_huge_pages", lambda: wanted)
    with mmap.mmap(-1, 6 << 21) as pages, memoryview(pages) as memory:
        begin = (1 << 21) + -syscalls.address_of(memory) % (1 << 21)
        with memory[begin - mmap.PAGESIZE : begin + (3 << 21) + mmap.PAGESIZE] as part:
            syscalls.restore_huge_pages(part)
            assert system is None or system.begin == syscalls.address_of(part) + mmap.PAGESIZE
        with memory[begin + 1 : begin + (1 << 21)] as less_than_one:
            syscalls.restore_huge_pages(less_than_one)
    assert (system.collapsed if system else None) == expected


def test_residency_counts_the_pages_of_the_system(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 KiB on some processors."""

    class Large:
        @staticmethod
        def syscall(*arguments: Any) -> int:
            arguments[3]._obj.cached = 2
            return 0

    monkeypatch.setattr(syscalls, "_libc", Large)
    monkeypatch.setattr(syscalls, "_PAGE", 1 << 16)
    assert syscalls.resident_share(descriptor, 0, 100_000) == 1.0
    assert syscalls.resident_share(descriptor, 65_000, 135_000) == 0.5


def test_memory_stays_as_it_is_where_the_system_cannot_keep_it_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Older:
        advised: Any = None

        def madvise(self, *arguments: Any) -> int:
            Older.advised = arguments
            return -1

    class Newer(Older):
        calls: ClassVar[list[str]] = []

        def mlock2(self, *arguments: Any) -> int:
            self.calls.append("lock")
            return 0

        def munlock(self, *arguments: Any) -> int:
            self.calls.append("unlock")
            return 0

    monkeypatch.setattr(syscalls, "_libc", lambda: None)
    assert not syscalls.keep_secret(4096, 4096)
    syscalls.unlock(4096, 4096)
    monkeypatch.setattr(syscalls, "_libc", Older)
    assert not syscalls.keep_secret(4096, 4096)
    assert Older.advised[2] == 16
    monkeypatch.setattr(syscalls, "_libc", Newer)
    assert syscalls.keep_secret(4096, 4096)
    syscalls.unlock(4096, 4096)
    assert Newer.calls == ["lock", "unlock"]


def test_pages_are_made_ready_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(100))
    with open(tmp_path / "a", "rb+") as file:
        pages = mmap.mmap(file.fileno(), 0)
        assert syscalls.populate(memoryview(pages), writing=True)
        assert syscalls.populate(memoryview(pages)[:0], writing=True)
        file.truncate(0)
        assert not syscalls.populate(memoryview(pages), writing=True)
