"""Leases: programs that would change a file wait, and are noticed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from safeweights.storage import leases, syscalls
from safeweights.storage.leases import leased

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="leases are of Linux")

SIZE = 100_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"x" * SIZE)
    return tmp_path / "a"


@pytest.fixture
def descriptor(path: Path) -> Iterator[int]:
    found = os.open(path, os.O_RDONLY)
    with leased(found) as lease:
        if lease is None:
            pytest.skip("the filesystem of the temporary folder gives no leases")
    yield found
    os.close(found)


def started(code: str, path: Path) -> subprocess.Popen[str]:
    """Another process that is about to run `code`."""
    code = f"import os, sys\npath = sys.argv[1]\nprint('ready', flush=True)\n{code}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def wait_until_broken(lease: leases.Lease) -> None:
    while lease.is_held():
        pass


@pytest.mark.parametrize(
    "change",
    [
        "os.truncate(path, 10)",
        "open(path, 'wb').write(b'y')",
        "open(path, 'r+b').write(b'y')",
        "open(path, 'ab').write(b'y')",
    ],
)
def test_a_program_that_changes_the_file_waits(path: Path, descriptor: int, change: str) -> None:
    with leased(descriptor) as lease:
        assert lease is not None
        assert lease.is_held()
        process = started(change, path)
        wait_until_broken(lease)
        assert os.pread(descriptor, SIZE + 1, 0) == b"x" * SIZE
        assert process.poll() is None
    process.communicate()
    assert process.returncode == 0
    assert os.pread(descriptor, SIZE + 1, 0) != b"x" * SIZE


def test_it_is_returned_at_the_end_and_after_an_error(path: Path, descriptor: int) -> None:
    with pytest.raises(KeyboardInterrupt), leased(descriptor):
        raise KeyboardInterrupt
    with leased(descriptor):
        pass
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def test_a_forked_process_does_not_keep_it(path: Path, descriptor: int) -> None:
    read, write = os.pipe()
    with leased(descriptor) as lease:
        assert lease is not None
        child = os.fork()
        if not child:  # pragma: no cover
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    finally:
        os.close(write)
        os.waitpid(child, 0)
        os.close(read)


def test_a_truncation_that_does_not_wait_is_noticed(path: Path, descriptor: int) -> None:
    with leased(descriptor) as lease:
        assert lease is not None
        os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))
        assert not lease.is_held()


def test_none_of_a_file_that_is_open_for_writing(path: Path, descriptor: int) -> None:
    with path.open("r+b"), leased(descriptor) as lease:
        assert lease is None


def test_none_where_files_change_elsewhere(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "is_local", lambda _: False)
    with leased(descriptor) as lease:
        assert lease is None


def test_none_without_a_description_of_its_own(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(os, "open", full)
    with leased(descriptor) as lease:
        assert lease is None


def test_threads_have_their_own(path: Path, descriptor: int) -> None:
    with leased(descriptor) as first:
        with leased(descriptor) as second:
            assert second is not None
        assert first is not None
        assert first.is_held()


def test_no_descriptor_is_left_open(descriptor: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with leased(descriptor):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("number", [signal.SIGURG, signal.SIGIO])
def test_no_signal_is_sent(path: Path, descriptor: int, number: int) -> None:
    """The program may use it, as runtimes do with SIGURG."""
    seen = []
    before = signal.signal(number, lambda *_: seen.append(1))
    try:
        with leased(descriptor) as lease, pytest.raises(BlockingIOError):
            os.open(path, os.O_RDWR | os.O_NONBLOCK)
        assert lease is not None
    finally:
        signal.signal(number, before)
    assert seen == []


def test_a_signal_that_is_sent_all_the_same_does_nothing(path: Path) -> None:
    """Between the lease and the end of the ownership, in a process without handlers."""
    code = """
import fcntl, os, sys
from safeweights.storage import leases
real = fcntl.fcntl
def call(descriptor, command, argument):
    if command == fcntl.F_SETOWN:
        try:
            os.open(sys.argv[1], os.O_RDWR | os.O_NONBLOCK)
        except BlockingIOError:
            print("waits")
    return real(descriptor, command, argument)
fcntl.fcntl = call
with leases.leased(os.open(sys.argv[1], os.O_RDONLY)) as lease:
    print(lease is not None)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stdout) in {(0, "waits\nTrue\n"), (0, "False\n")}


def test_local_filesystems(descriptor: int) -> None:
    assert syscalls.is_local(descriptor)
    assert not syscalls.is_local(-1)
    assert not syscalls.keeps_reserved(-1)
