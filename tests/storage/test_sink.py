"""Saving, with and without faults: the old file or the new one, and nothing beside it."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import shutil
import socket
import stat
import tempfile
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from safeweights.errors import UnsupportedError
from safeweights.storage import (
    DescriptorSource,
    PartialOverwriteError,
    appending,
    open_source,
    sink,
    write_file,
    write_stream,
)
from safeweights.storage.runs import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OLD = b"old contents " * 50
PIECES = [bytes([number]) * 700 for number in range(1, 6)]
NEW = b"".join(PIECES)

unnamed_files = pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed", "named"])


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several system calls for little data."""
    monkeypatch.setattr(appending, "BATCH", 1000)


def without_unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)


def only(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# ---- what is written


@unnamed_files
@pytest.mark.parametrize("durable", [False, True])
def test_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool, durable: bool
) -> None:
    if not unnamed:
        without_unnamed(monkeypatch)
    write_file(tmp_path / "a", PIECES, durable=durable)
    assert (tmp_path / "a").read_bytes() == NEW
    assert only(tmp_path) == ["a"]


@pytest.mark.parametrize("path_type", [str, Path, os.fsencode])
def test_kinds_of_path(tmp_path: Path, path_type: Callable[[Any], Any]) -> None:
    write_file(path_type(str(tmp_path / "a")), [b"x"])
    assert (tmp_path / "a").read_bytes() == b"x"


def test_nothing_and_empty_buffers(tmp_path: Path) -> None:
    write_file(tmp_path / "a", [])
    assert (tmp_path / "a").read_bytes() == b""
    write_file(tmp_path / "a", [b"", b"x", bytearray(), memoryview(b"")])
    assert (tmp_path / "a").read_bytes() == b"x"


def test_buffers_of_wider_elements_count_in_bytes(tmp_path: Path, small_batches: None) -> None:
    numbers = array("d", range(300))
    write_file(tmp_path / "a", [b"x", memoryview(numbers), b"y"])
    assert (tmp_path / "a").read_bytes() == b"x" + numbers.tobytes() + b"y"


def test_writes_end_where_the_file_has_a_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").write_bytes(b"r" * 700)
    monkeypatch.setattr(appending, "BATCH", 10_000)
    monkeypatch.setattr(appending, "SMALL", 0)
    real, ends = os.writev, []

    def writev(descriptor: int, batch: list[Any]) -> int:
        count = real(descriptor, batch)
        ends.append(os.lseek(descriptor, 0, os.SEEK_CUR))
        return count

    monkeypatch.setattr(os, "writev", writev)
    sizes = [5000, 5000, 25_000, 4999, 5001, 30_000, 7, 6000]
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    write_file(tmp_path / "a", pieces)
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)
    assert ends == [10_000, 20_000, 30_000, 40_000, 50_000, 60_000, 70_000, 80_000, 81_007]
    ends.clear()
    source = open_source(tmp_path / "other", backend="pread")
    assert isinstance(source, DescriptorSource)
    write_file(tmp_path / "a", [pieces[0], Run(source, 0, 700), *pieces[2:4]])
    assert ends == [5000, 10_000, 20_000, 30_000, 35_699], "the system moved what is between"


def test_more_buffers_than_a_system_call_takes(tmp_path: Path, system_calls: Any) -> None:
    pieces = [bytes([number % 251]) * 5000 for number in range(3000)]
    write_file(tmp_path / "a", pieces)
    assert system_calls.log.count("writev") == 4  # one ends at 8 MiB
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)


def test_small_buffers_are_joined(tmp_path: Path, system_calls: Any) -> None:
    pieces = [bytes([number % 251]) * (number % 7) for number in range(3000)]
    write_file(tmp_path / "a", [*pieces, bytes(5000), b"end"])
    assert system_calls.log.count("writev") == 1
    assert (tmp_path / "a").read_bytes() == b"".join(pieces) + bytes(5000) + b"end"
    many = [b"x" * 4000] * 200  # joined by the quarter megabyte
    write_file(tmp_path / "a", many)
    assert (tmp_path / "a").read_bytes() == b"".join(many)


def test_progress_counts_bytes(tmp_path: Path, small_batches: None) -> None:
    seen: list[int] = []
    write_file(tmp_path / "a", PIECES, progress=seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == len(NEW)


@unnamed_files
@pytest.mark.parametrize("renames", [True, False])
def test_a_link_that_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool, renames: bool
) -> None:
    if not unnamed:
        without_unnamed(monkeypatch)
    (tmp_path / "old").write_bytes(OLD)
    (tmp_path / "link").symlink_to("old")
    (tmp_path / "folder").symlink_to(".")
    with pytest.raises(OSError, match="regular file"):
        write_file(tmp_path / "link", PIECES, links="refuse")

    def link_late() -> Iterator[bytes]:
        yield NEW
        (tmp_path / "late").symlink_to("old")

    if renames:
        write_file(tmp_path / "late", link_late(), links="refuse")
        assert (tmp_path / "late").read_bytes() == NEW
        assert not (tmp_path / "late").is_symlink()
    else:
        monkeypatch.setattr(os, "replace", lambda *_: refuse(errno.ENOSYS))
        with pytest.raises(OSError):  # ELOOP on Linux, EMLINK on FreeBSD
            write_file(tmp_path / "late", link_late(), links="refuse")
    assert (tmp_path / "old").read_bytes() == OLD
    write_file(tmp_path / "folder" / "new", PIECES, links="refuse")
    assert (tmp_path / "new").read_bytes() == NEW


@unnamed_files
def test_bytes_that_fail_to_be_made_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leak: None, unnamed: bool
) -> None:
    if not unnamed:
        without_unnamed(monkeypatch)

    def pieces() -> Iterator[bytes]:
        yield b"x" * 100
        raise ZeroDivisionError

    (tmp_path / "a").write_bytes(OLD)
    with pytest.raises(ZeroDivisionError):
        write_file(tmp_path / "a", pieces())
    assert (tmp_path / "a").read_bytes() == OLD
    assert only(tmp_path) == ["a"]


# ---- faults at each system call


def calls_of_a_save(path: Path, system_calls: Any, *, durable: bool) -> list[str]:
    system_calls.watch()
    write_file(path, PIECES, durable=durable)
    return list(system_calls.log)


@unnamed_files
@pytest.mark.parametrize("durable", [False, True], ids=["plain", "durable"])
@pytest.mark.parametrize("replacing", [False, True], ids=["create", "replace"])
@pytest.mark.parametrize(
    "fault",
    [errno.ENOSPC, errno.EIO, errno.EINTR, KeyboardInterrupt, MemoryError],
    ids=["ENOSPC", "EIO", "EINTR", "ctrl-c", "memory"],
)
def test_fault_at_every_system_call(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_batches: None,
    system_calls: Any,
    no_leak: None,
    unnamed: bool,
    durable: bool,
    replacing: bool,
    fault: int | type[BaseException],
) -> None:
    if not unnamed:
        without_unnamed(monkeypatch)
    path = tmp_path / "a"

    def reset() -> None:
        system_calls.watch()
        path.unlink(missing_ok=True)
        if replacing:
            path.write_bytes(OLD)
            path.chmod(0o640)

    reset()
    calls = calls_of_a_save(path, system_calls, durable=durable)
    assert calls.count("writev") >= 4
    renamed = calls.index("replace")
    for number, name in enumerate(calls):
        reset()
        error = OSError(fault, "injected") if isinstance(fault, int) else fault()
        system_calls.fail(number, error)
        # The nameless file is an optional comfort: a refusal is answered by a named one.
        optional = (
            isinstance(fault, int)
            and unnamed
            and (name == "link" or "writev" not in calls[:number])
        )
        raised: BaseException | None = None
        try:
            write_file(path, PIECES, durable=durable)
        except (Exception, KeyboardInterrupt) as caught:
            raised = caught
        if raised is None:
            assert optional, name
            assert name in {"link", "open", "stat"}
        else:
            assert raised is error, name
        old = OLD if replacing else None
        expected = NEW if raised is None or number > renamed else old
        system_calls.watch()
        assert (path.read_bytes() if path.exists() else None) == expected, name
        assert only(tmp_path) == (["a"] if expected is not None else []), name


def test_errors_name_the_file_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_calls: Any
) -> None:
    path = str(tmp_path / "a")
    write_file(path, [OLD])
    for number, name in enumerate(calls_of_a_save(Path(path), system_calls, durable=True)):
        system_calls.fail(number, OSError(errno.EDQUOT, "injected"))
        if name in {"writev", "fsync", "close"}:
            with pytest.raises(OSError, match="injected") as caught:
                write_file(path, PIECES, durable=True)
            assert caught.value.filename in {path, str(tmp_path)}
    system_calls.watch()
    with pytest.raises(FileNotFoundError) as missing:
        write_file(tmp_path / "no" / "a", PIECES)
    assert missing.value.filename == str(tmp_path / "no" / "a")


def test_the_first_error_is_reported_when_closing_fails_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.close

    def close(descriptor: int) -> None:
        real(descriptor)
        raise OSError(errno.EIO, "from close")

    monkeypatch.setattr(os, "close", close)
    monkeypatch.setattr(os, "writev", lambda *_: no_space())
    with pytest.raises(OSError, match="full"):
        write_file(tmp_path / "a", PIECES)
    assert only(tmp_path) == []


def no_space() -> int:
    raise OSError(errno.ENOSPC, "full")


def test_a_temporary_file_that_cannot_be_removed_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "writev", lambda *_: no_space())
    monkeypatch.setattr(os, "unlink", lambda *_: refuse(errno.EPERM))
    with pytest.raises(OSError, match="full"):
        write_file(tmp_path / "a", PIECES)


def refuse(code: int) -> None:
    raise OSError(code, os.strerror(code))


@unnamed_files
def test_short_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None, unnamed: bool
) -> None:
    if not unnamed:
        without_unnamed(monkeypatch)
    real = os.write
    monkeypatch.setattr(os, "writev", lambda fd, batch: real(fd, batch[0][:1]))
    write_file(tmp_path / "a", PIECES)
    assert (tmp_path / "a").read_bytes() == NEW


def test_writes_that_end_within_any_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, step = os.write, iter(range(1, 10_000))
    monkeypatch.setattr(
        os, "writev", lambda fd, batch: real(fd, b"".join(batch)[: next(step) * 37 % 1501 + 1])
    )
    write_file(tmp_path / "a", PIECES * 9)
    assert (tmp_path / "a").read_bytes() == NEW * 9


@pytest.mark.parametrize("most", [4999, 5000, 5001, 12_000])
def test_writes_that_end_after_several_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    real = os.write
    monkeypatch.setattr(os, "writev", lambda fd, batch: real(fd, b"".join(batch)[:most]))
    pieces = [bytes([number]) * 5000 for number in range(9)]  # too long to be joined
    write_file(tmp_path / "a", pieces)
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)


def test_a_filesystem_that_writes_nothing_ends_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "writev", lambda *_: 0)
    with pytest.raises(OSError) as caught:
        write_file(tmp_path / "a", PIECES)
    assert caught.value.errno == errno.EIO
    assert only(tmp_path) == []


def test_a_real_limit_on_the_size_of_files(tmp_path: Path) -> None:
    import resource
    import signal

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, old[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_file(tmp_path / "a", PIECES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert only(tmp_path) == []


# ---- platforms and filesystems that lack something


def test_windows_lacks_these_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("writev", "fchown", "fchmod", "pread", "O_DIRECTORY", "O_NOFOLLOW", "O_TMPFILE"):
        monkeypatch.delattr(os, name)
    (tmp_path / "a").write_bytes(OLD)
    write_file(tmp_path / "a", PIECES, durable=True)
    assert (tmp_path / "a").read_bytes() == NEW
    assert only(tmp_path) == ["a"]


def test_empty_pieces_are_never_handed_to_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "writev")  # write(2) of an empty piece writes nothing
    pieces = [b"", bytearray(), NEW * (appending._SMALL // len(NEW) + 1), b""]
    write_file(tmp_path / "a", pieces)
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)


@pytest.mark.parametrize("works", [True, False])
def test_macos_flushes_the_drive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    import fcntl
    import sys

    asked: list[int] = []

    def control(descriptor: int, command: int) -> int:
        asked.append(command)
        return 0 if works else refuse(errno.ENOTSUP) or 0

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write_file(tmp_path / "a", PIECES, durable=True)
    assert set(asked) == {51}
    assert len(synced) == (1 if works else 1 + len(asked))  # the directory, and each that failed


@pytest.mark.parametrize("without", ["proc", "tmpfile", "link"])
def test_without_nameless_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None, without: str
) -> None:
    (tmp_path / "a").write_bytes(OLD)
    (tmp_path / "a").chmod(0o600)
    if without == "proc":
        monkeypatch.setattr(os.path, "isdir", lambda _: False)
    elif without == "tmpfile":
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY | os.O_TMPFILE | os.O_CREAT)  # EINVAL
    else:
        monkeypatch.setattr(os, "link", lambda *_, **__: refuse(errno.EPERM))
    write_file(tmp_path / "a", PIECES, durable=True)
    assert (tmp_path / "a").read_bytes() == NEW
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert only(tmp_path) == ["a"]


CANNOT_RENAME = [errno.EPERM, errno.ENOSYS, errno.EXDEV, errno.ENOTSUP, errno.EINVAL, errno.EBUSY]


@pytest.mark.parametrize("code", CANNOT_RENAME, ids=errno.errorcode.__getitem__)
@pytest.mark.parametrize("durable", [False, True])
def test_without_rename_the_contents_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, durable: bool
) -> None:
    (tmp_path / "a").write_bytes(OLD * 100)
    monkeypatch.setattr(os, "replace", lambda *_: refuse(code))
    write_file(tmp_path / "a", PIECES, durable=durable)
    write_file(tmp_path / "b", PIECES, durable=durable)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == NEW
    assert only(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EIO])
def test_a_rename_that_fails_for_another_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "a").write_bytes(OLD)
    monkeypatch.setattr(os, "replace", lambda *_: refuse(code))
    with pytest.raises(OSError) as caught:
        write_file(tmp_path / "a", PIECES)
    assert caught.value.errno == code
    assert (tmp_path / "a").read_bytes() == OLD
    assert only(tmp_path) == ["a"]


def test_neither_rename_nor_overwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(OLD)
    real = os.open

    def opens(path: Any, flags: int, *mode: int) -> int:
        return real(path, flags, *mode) if not flags & os.O_TRUNC else refuse(errno.EACCES) or 0

    monkeypatch.setattr(os, "open", opens)
    monkeypatch.setattr(os, "replace", lambda *_: refuse(errno.EPERM))
    with pytest.raises(PermissionError):
        write_file(tmp_path / "a", PIECES)
    assert (tmp_path / "a").read_bytes() == OLD
    assert only(tmp_path) == ["a"]


@pytest.mark.parametrize("fault", [errno.ENOSPC, KeyboardInterrupt])
def test_overwriting_that_fails_keeps_the_new_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None, fault: Any
) -> None:
    (tmp_path / "a").write_bytes(OLD)
    monkeypatch.setattr(os, "replace", lambda *_: refuse(errno.ENOSYS))
    real, writes = os.writev, iter(range(100))

    def writev(descriptor: int, batch: list[memoryview]) -> int:
        if next(writes) < 7:  # five to the new file, two over the old one
            return real(descriptor, batch)
        raise OSError(fault, "injected") if isinstance(fault, int) else fault()

    monkeypatch.setattr(os, "writev", writev)
    expected = PartialOverwriteError if isinstance(fault, int) else fault
    with pytest.raises(expected) as caught:
        write_file(tmp_path / "a", PIECES)
    (kept,) = (path for path in tmp_path.iterdir() if path.name != "a")
    assert kept.read_bytes() == NEW
    if isinstance(caught.value, PartialOverwriteError):
        assert caught.value.kept == str(kept)
        assert caught.value.errno == fault
        assert str(kept) in str(caught.value)
        again = pickle.loads(pickle.dumps(caught.value))  # out of a pool of processes
        assert (str(again), again.kept, again.errno) == (str(caught.value), str(kept), fault)


@pytest.mark.parametrize("call", ["fchmod", "fchown", "fsync-directory"])
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL])
def test_modes_owners_and_directories_may_be_unsupported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    (tmp_path / "a").write_bytes(OLD)
    (tmp_path / "a").chmod(0o666)  # no umask allows that at once
    if call == "fsync-directory":
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                refuse(code)
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
    else:
        monkeypatch.setattr(os, call, lambda *_: refuse(code))
    write_file(tmp_path / "a", PIECES, durable=True)
    assert (tmp_path / "a").read_bytes() == NEW


def test_contents_that_cannot_be_synced_are_not_called_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: refuse(errno.EINVAL))
    with pytest.raises(OSError) as caught:
        write_file(tmp_path / "a", PIECES, durable=True)
    assert caught.value.errno == errno.EINVAL
    assert only(tmp_path) == []


# ---- modes, owners


@unnamed_files
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_new_files_honour_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool, umask: int
) -> None:
    if not unnamed:
        without_unnamed(monkeypatch)
    before = os.umask(umask)
    try:
        write_file(tmp_path / "a", PIECES)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


@unnamed_files
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o444, 0o666, 0o2750, 0o4711])
def test_replaced_files_keep_their_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool, mode: int
) -> None:
    if not unnamed:
        without_unnamed(monkeypatch)
    (tmp_path / "a").write_bytes(OLD)
    (tmp_path / "a").chmod(mode)
    write_file(tmp_path / "a", PIECES)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert (tmp_path / "a").read_bytes() == NEW


def test_never_readable_by_more_than_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    real = os.writev

    def writev(descriptor: int, batch: list[memoryview]) -> int:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return real(descriptor, batch)

    for mode in (0o600, 0o640, 0o644, 0o444):
        (tmp_path / "a").unlink(missing_ok=True)
        (tmp_path / "a").write_bytes(OLD)
        (tmp_path / "a").chmod(mode)
        monkeypatch.setattr(os, "writev", writev)
        write_file(tmp_path / "a", PIECES)
        # The group may be another than the old file's until the end.
        assert modes.pop() == mode & 0o700


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may act for other users")
NOBODY = 65534


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that other users reach too."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@needs_root
def test_root_keeps_the_owner(shared_folder: Path) -> None:
    path = shared_folder / "a"
    path.write_bytes(OLD)
    os.chown(path, 1234, 4321)
    path.chmod(0o6755)
    write_file(path, PIECES)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o6755)


@needs_root
def test_others_files_keep_mode_but_not_the_rights_of_their_owner(shared_folder: Path) -> None:
    path = shared_folder / "a"
    path.write_bytes(OLD)
    path.chmod(0o6755)
    with nobody():
        write_file(path, PIECES)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (NOBODY, NOBODY, 0o755)


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o2750, 0o4711])
def test_users_keep_the_mode_of_their_files(shared_folder: Path, mode: int) -> None:
    """Writing takes the set-ID bits away from files of all but root."""
    path = shared_folder / "a"
    path.write_bytes(OLD)
    os.chown(path, NOBODY, NOBODY)
    path.chmod(mode)
    with nobody():
        write_file(path, PIECES)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@needs_root
def test_others_files_keep_a_group_that_one_belongs_to(shared_folder: Path) -> None:
    path = shared_folder / "a"
    path.write_bytes(OLD)
    os.chown(path, 0, NOBODY)
    with nobody():
        write_file(path, PIECES)
    assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)


@needs_root
@pytest.mark.parametrize("durable", [False, True])
def test_unwritable_directory(shared_folder: Path, durable: bool) -> None:
    path = shared_folder / "a"
    path.write_bytes(OLD)
    path.chmod(0o666)
    shared_folder.chmod(0o755)
    with nobody(), pytest.raises(PermissionError) as caught:
        write_file(path, PIECES, durable=durable)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == OLD
    assert only(shared_folder) == ["a"]


# ---- links and names


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "real").write_bytes(OLD)
    (tmp_path / "relative").symlink_to("deep/real")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")  # a chain
    write_file(tmp_path / "absolute", PIECES)
    assert (tmp_path / "deep" / "real").read_bytes() == NEW
    assert (tmp_path / "absolute").is_symlink()
    assert (tmp_path / "relative").is_symlink()
    assert only(tmp_path / "deep") == ["real"]


def test_a_dangling_link_gets_its_target(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    write_file(tmp_path / "link", PIECES)
    assert (tmp_path / "target").read_bytes() == NEW
    assert (tmp_path / "link").is_symlink()


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError) as caught:
        write_file(tmp_path / "a", PIECES)
    assert caught.value.errno == errno.ELOOP
    assert only(tmp_path) == ["a", "b"]


def test_other_hard_links_keep_the_old_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(OLD)
    os.link(tmp_path / "a", tmp_path / "b")
    write_file(tmp_path / "a", PIECES)
    assert (tmp_path / "a").read_bytes() == NEW
    assert (tmp_path / "b").read_bytes() == OLD


def test_who_has_the_old_file_open_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(OLD)
    with open(tmp_path / "a", "rb") as file:
        write_file(tmp_path / "a", PIECES)
        assert file.read() == OLD


def test_relative_paths_and_long_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "n" * 255
    write_file(name, PIECES)
    assert (tmp_path / name).read_bytes() == NEW
    with pytest.raises(OSError) as caught:
        write_file(name + "n", PIECES)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert only(tmp_path) == [name]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_file(os.fsencode(tmp_path) + b"/\xff", PIECES)
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff"]


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(IsADirectoryError):
            write_file(tmp_path / "folder", PIECES)
        for path in (tmp_path / "fifo", tmp_path / "socket", Path("/dev/null")):
            with pytest.raises(OSError) as caught:
                write_file(path, PIECES)
            assert caught.value.errno == errno.ENODEV
            assert caught.value.filename == str(path)
    assert only(tmp_path) == ["fifo", "folder", "socket"]
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_savers_of_the_same_file_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pieces() -> Iterator[bytes]:
        write_file(tmp_path / "a", [b"inner"])
        yield b"outer"

    write_file(tmp_path / "a", pieces())
    assert (tmp_path / "a").read_bytes() == b"outer"
    assert only(tmp_path) == ["a"]
    monkeypatch.setattr(sink, "staging_name", lambda: ".safeweights-taken.tmp")
    without_unnamed(monkeypatch)
    (tmp_path / ".safeweights-taken.tmp").write_bytes(b"of another process")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a", [b"x"])


# ---- streams


def test_streams() -> None:
    file, seen = io.BytesIO(b"before "), []
    file.seek(0, os.SEEK_END)
    write_stream(file, [b"a", array("H", [1, 2]), b""], progress=seen.append)
    assert file.getvalue() == b"before a\1\0\2\0"
    assert seen == [1, 5, 5]
    assert not file.closed


def test_pipes_take_what_they_can() -> None:
    import threading

    reading, writing = os.pipe()
    received: list[bytes] = []

    def read() -> None:
        with open(reading, "rb") as pipe:
            received.append(pipe.read())

    thread = threading.Thread(target=read)
    thread.start()
    with open(writing, "wb", buffering=0) as pipe:
        write_stream(pipe, [NEW * 100])
    thread.join()
    assert received == [NEW * 100]


class Stubborn(io.RawIOBase):
    def __init__(self, answer: int | None) -> None:
        self.answer = answer

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int | None:
        return self.answer


@pytest.mark.parametrize(("answer", "expected"), [(None, errno.EAGAIN), (0, errno.EIO)])
def test_streams_that_take_nothing_end_in_an_error(answer: int | None, expected: int) -> None:
    with pytest.raises(OSError) as caught:
        write_stream(Stubborn(answer), [b"x"])
    assert caught.value.errno == expected


def test_what_is_no_buffer_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="contiguous"):
        write_stream(io.BytesIO(), [memoryview(b"abcd")[::2]])
    with pytest.raises(UnsupportedError, match="str"):
        write_stream(io.BytesIO(), ["text"])  # type: ignore[list-item]
    with pytest.raises(UnsupportedError, match="takes text: open it in mode 'wb'"):
        write_stream(io.StringIO(), [b"bytes"])  # type: ignore[arg-type]


LARGE = [bytes([number]) * (1 << 18) for number in range(5)]


def test_the_space_for_a_large_file_is_set_aside(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[int] = []
    monkeypatch.setattr(sink, "reserve", lambda descriptor, size: asked.append(size))
    write_file(tmp_path / "a", PIECES, size=len(NEW))
    assert asked == []
    write_file(tmp_path / "a", LARGE, size=5 << 18)
    assert asked == [5 << 18]
    assert (tmp_path / "a").read_bytes() == b"".join(LARGE)


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, system_calls: Any
) -> None:
    (tmp_path / "a").write_bytes(OLD)
    with pytest.raises(OSError, match=r"File too large|No space left") as caught:
        write_file(tmp_path / "a", LARGE, size=1 << 61)
    assert caught.value.filename == str(tmp_path / "a")
    assert "writev" not in system_calls.log
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == OLD


def test_large_durable_files_do_not_fill_the_page_cache(tmp_path: Path, monkeypatch: Any) -> None:
    flags: list[int] = []
    real = os.pwritev
    monkeypatch.setattr(
        os, "pwritev", lambda fd, batch, at, flag: flags.append(flag) or real(fd, batch, at, flag)
    )
    write_file(tmp_path / "a", LARGE, size=5 << 18, durable=True)
    assert set(flags) == {appending._DONTCACHE}
    assert (tmp_path / "a").read_bytes() == b"".join(LARGE)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_system_that_knows_no_such_flag_gets_plain_writes(
    tmp_path: Path, monkeypatch: Any, small_batches: None, code: int
) -> None:
    calls = iter(range(1000))
    real = os.pwritev

    def pwritev(descriptor: int, batch: list[memoryview], at: int, flag: int) -> int:
        if next(calls):  # the first one works, which leaves the position behind it
            raise OSError(code, "injected")
        return real(descriptor, batch, at, flag)

    monkeypatch.setattr(os, "pwritev", pwritev)
    write_file(tmp_path / "a", LARGE, size=5 << 18, durable=True)
    assert next(calls) == 2
    assert (tmp_path / "a").read_bytes() == b"".join(LARGE)


def test_a_disk_that_fails_while_a_large_durable_file_is_written(
    tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "a").write_bytes(OLD)
    monkeypatch.setattr(os, "pwritev", lambda *_: refuse(errno.EIO))
    with pytest.raises(OSError, match="a'") as caught:
        write_file(tmp_path / "a", LARGE, size=5 << 18, durable=True)
    assert caught.value.errno == errno.EIO
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == OLD
