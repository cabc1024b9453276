"""Every kind of source gives the same bytes, or says why not."""

from __future__ import annotations

import copy
import errno
import fcntl
import gc
import io
import mmap
import os
import random
import signal
import socket
import sys
import tempfile
import threading
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from new_threads import threads_since_now
from safeweights.errors import ClosedError, SafetensorError, UnsupportedError
from safeweights.storage import (
    BACKENDS,
    BytesSource,
    DescriptorSource,
    FileObjectSource,
    Source,
    TruncatedError,
    file_objects,
    files,
    flat,
    open_source,
    syscalls,
    write_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA = random.Random(1).randbytes(300_000)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "data"
    path.write_bytes(DATA)
    return path


class ShortReads(io.RawIOBase):
    """Gives a few bytes at a time, as a network does."""

    def __init__(self, data: bytes = DATA) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, *where: int) -> int:
        return self._file.seek(*where)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), 997))
        buffer[: len(data)] = data
        return len(data)


class OnlyRead:
    """The least that is called a file: no readinto, no seekable, seek and tell."""

    def __init__(self, data: bytes = DATA) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 70_001) if size >= 0 else -1)

    def seek(self, offset: int, whence: int = 0) -> None:
        self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


class Stream:
    """Cannot go back, and returns what it has at the moment."""

    name = 7  # that of os.fdopen

    def __init__(self, pieces: list[Any]) -> None:
        self._pieces = iter(pieces)

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> Any:
        return next(self._pieces, b"")


def spooled() -> Any:
    file = tempfile.SpooledTemporaryFile(max_size=1 << 30)  # noqa: SIM115
    file.write(DATA)
    return file


def mapping() -> mmap.mmap:
    memory = mmap.mmap(-1, len(DATA))
    memory[:] = DATA
    return memory


OPENERS: dict[str, Callable[[Path], Source]] = {
    "mmap": open_source,
    "mmap, str": lambda path: open_source(str(path)),
    "pread": lambda path: open_source(path, backend="pread"),
    "direct": lambda path: open_source(path, backend="direct"),
    "auto": lambda path: open_source(path, backend="auto"),
    "file": lambda path: open_source(open(path, "rb")),  # noqa: SIM115
    "unbuffered file": lambda path: open_source(open(path, "rb", buffering=0)),  # noqa: SIM115
    "BytesIO": lambda _: open_source(io.BytesIO(DATA)),
    "short reads": lambda _: open_source(ShortReads()),
    "only read": lambda _: open_source(OnlyRead()),
    "spooled": lambda _: open_source(spooled()),
    "stream": lambda _: open_source(Stream([DATA[:5], bytearray(DATA[5:9]), DATA[9:]])),
    "bytes": lambda _: open_source(DATA),
    "bytearray": lambda _: open_source(bytearray(DATA)),
    "memoryview": lambda _: open_source(memoryview(DATA)[:]),
    "array": lambda _: open_source(array("I", DATA)),
    "mmap object": lambda _: open_source(mapping()),
    "numpy": lambda _: open_source(np.frombuffer(DATA, "f4").reshape(25, -1)),
}


@pytest.fixture(params=OPENERS)
def source(request: pytest.FixtureRequest, path: Path) -> Iterator[Source]:
    source = OPENERS[request.param](path)
    yield source
    getattr(getattr(source, "_file", None), "close", lambda: None)()


def test_reads_and_views_give_the_bytes(source: Source) -> None:
    assert source.size == len(DATA)
    assert source.name == str(source.name)
    for offset, length in [
        (0, 0),
        (0, 1),
        (1, 8),
        (4097, 100_000),
        (len(DATA) - 3, 3),
        (0, 300_000),
    ]:
        expected = DATA[offset : offset + length]
        buffer = bytearray(length)
        source.read_into(offset, memoryview(buffer))
        assert buffer == expected
        assert source.view(offset, length) == expected
        assert source.read(offset, length) == expected
    assert source.view(len(DATA), 0) == b""
    assert source.for_all().view(7, 70_000) == DATA[7:70_007]


def test_reads_past_the_end_are_errors(source: Source) -> None:
    for offset, length in [(len(DATA), 1), (len(DATA) - 1, 2), (len(DATA) + 5, 1), (0, 1 << 40)]:
        with pytest.raises(TruncatedError):
            source.view(offset, length)
        if length < 10:
            with pytest.raises(TruncatedError, match="truncated"):
                source.read_into(offset, memoryview(bytearray(length)))


def test_in_memory_says_whether_views_share(source: Source) -> None:
    first, second = source.view(10, 4), source.view(10, 4)
    if first.readonly:
        assert source.in_memory
        return
    first[0] ^= 255
    assert (first == second) is source.in_memory


@given(st.lists(st.tuples(st.integers(0, 299_999), st.integers(0, 5000)), max_size=8))
def test_engines_agree(path: Path, places: list[tuple[int, int]]) -> None:
    sources = [*(open_source(path, backend=backend) for backend in BACKENDS), BytesSource(DATA)]
    for offset, length in places:
        length = min(length, len(DATA) - offset)
        views = [bytes(source.view(offset, length)) for source in sources]
        assert views == [DATA[offset : offset + length]] * len(sources)


def test_threads_read_at_once(source: Source) -> None:
    failures: list[object] = []

    def read(seed: int) -> None:
        places = random.Random(seed)
        for _ in range(60):
            offset = places.randrange(len(DATA) - 2000)
            if source.view(offset, 2000) != DATA[offset : offset + 2000]:
                failures.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# ---- what a mapping is


def test_mapped_pages_are_private(path: Path) -> None:
    source = open_source(path)
    view = source.view(0, 10)
    view[:] = bytes(10)
    assert path.read_bytes() == DATA
    assert open_source(path).view(0, 10) == DATA[:10]
    buffer = bytearray(10)
    source.read_into(0, memoryview(buffer))
    assert buffer == DATA[:10]


def test_a_file_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 42)
    source = open_source(tmp_path / "sparse")
    assert source.in_memory
    assert source.view((1 << 42) - 4, 4) == bytes(4)


@pytest.mark.parametrize("error", [OSError(errno.ENODEV, "FUSE"), ValueError(), OverflowError()])
def test_mapping_is_never_required(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(mmap, "mmap", refuse)
    source = open_source(path)
    assert not source.in_memory
    assert source.view(5, 100) == DATA[5:105]


def test_empty_files(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    for backend in ("mmap", "pread"):
        source = open_source(tmp_path / "empty", backend=backend)
        assert (source.size, bytes(source.view(0, 0))) == (0, b"")
        assert not source.in_memory


# ---- files that change


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [len(DATA), 40 << 20], ids=["small", "large"])
def test_truncated_while_open(tmp_path: Path, backend: str, size: int) -> None:
    """A mapping is only touched by `view`; what is large is read by several threads."""
    with open(tmp_path / "a", "wb") as file:
        file.truncate(size)
    source = open_source(tmp_path / "a", backend=backend)
    end = size // 2 + 5
    os.truncate(tmp_path / "a", end)
    started = threads_since_now()
    with pytest.raises(TruncatedError, match=f"ends at byte {end}") as caught:
        source.read_into(100, memoryview(bytearray(size - 100)))
    assert caught.value.path == str(tmp_path / "a")
    assert isinstance(caught.value, EOFError)
    assert isinstance(caught.value, SafetensorError)
    if not source.in_memory:
        with pytest.raises(TruncatedError, match=f"ends at byte {end}"):
            source.view(100, size - 100)
        with pytest.raises(TruncatedError, match=f"ends at byte {end}"):
            source.fill(4100, size - 4100, memory_like(size))
    assert not started()


def memory_like(size: int) -> memoryview:
    """Memory as `fill` wants it: at a page, with two pages to spare."""
    array = np.empty(size + 3 * 4096, np.uint8)
    return array[-array.ctypes.data % 4096 :].data


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 5000])
def test_large_files_by_every_engine(tmp_path: Path, backend: str, offset: int) -> None:
    """Large enough for several threads and for direct reads, which come in blocks."""
    data = random.Random(3).randbytes((17 << 20) + 77)
    (tmp_path / "a").write_bytes(data)
    with open(tmp_path / "a", "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that auto may go direct
    source = open_source(tmp_path / "a", backend=backend).for_all()
    assert source.view(offset, len(data) - offset) == data[offset:]
    assert source.view(offset, 9 << 20) == data[offset : offset + (9 << 20)]
    memory = memory_like(1 << 20)
    begin = source.fill(offset, 1 << 20, memory)
    assert memory[begin : begin + (1 << 20)] == data[offset : offset + (1 << 20)]
    with pytest.raises(TruncatedError):
        source.view(offset + 1, len(data))


@pytest.mark.parametrize("refused", ["open", "block"])
def test_direct_reads_are_never_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    data = random.Random(4).randbytes(9 << 20)
    (tmp_path / "a").write_bytes(data)
    real_open, real_read = os.open, os.preadv

    def opens(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no such thing on tmpfs")
        return real_open(path, flags, *mode)

    def reads(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "blocks of 64 KiB")
        return real_read(descriptor, buffers, offset)

    if refused == "open":
        monkeypatch.setattr(os, "open", opens)
    else:
        monkeypatch.setattr(os, "preadv", reads)
    source = open_source(tmp_path / "a", backend="direct")
    assert source.view(5, len(data) - 5) == data[5:]


def read_directly(path: Path) -> Source:
    """A source with direct reads."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this filesystem has no direct reads")
    return open_source(path, backend="direct")


def test_what_a_disk_wrote_is_touched_by_the_thread_that_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(6).randbytes((25 << 20) + 5)
    (tmp_path / "a").write_bytes(data)
    memory: list[memoryview] = []
    seen: list[tuple[int, int]] = []
    real = files.touch

    def touched(part: memoryview) -> None:
        address = np.frombuffer(part, np.uint8).ctypes.data
        begin = address - np.frombuffer(memory[0], np.uint8).ctypes.data
        assert bytes(part[-5:]) == data[4096 + begin :][: len(part)][-5:]  # it has been read
        seen.append((begin, begin + len(part)))
        real(part)

    monkeypatch.setattr(files, "touch", touched)
    source = read_directly(tmp_path / "a")
    reading = source.reading(4096, len(data) - 4096)
    memory.append(reading.data)
    reading.fill(8 << 20, 16 << 20)
    reading.fill(0, 8 << 20)
    reading.fill(16 << 20, reading.extent)
    assert seen == [(8 << 20, 16 << 20), (0, 8 << 20), (16 << 20, len(data) - 4096)]
    assert reading.data == data[4096:]


def test_memory_that_a_device_reads_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(7).randbytes(9 << 20)
    (tmp_path / "a").write_bytes(data)
    memory, touched = memory_like(8 << 20), []
    monkeypatch.setattr(files, "touch", touched.append)
    begin = read_directly(tmp_path / "a").fill(1, 8 << 20, memory)
    assert memory[begin : begin + (8 << 20)] == data[1 : 1 + (8 << 20)]
    assert touched == []


def test_errors_of_direct_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(bytes(9 << 20))
    source = open_source(tmp_path / "a", backend="direct")

    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="bad sector") as caught:
        source.view(0, 9 << 20)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path / "a"))


def test_replaced_while_open(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    sources = [open_source(tmp_path / "a", backend=backend) for backend in ("mmap", "pread")]
    (tmp_path / "b").write_bytes(bytes(len(DATA)))
    os.replace(tmp_path / "b", tmp_path / "a")
    for source in sources:
        assert source.view(0, len(DATA)) == DATA


def test_a_file_object_that_shrinks_or_closes(tmp_path: Path) -> None:
    file = io.BytesIO(DATA)
    source = open_source(file)
    file.truncate(10)
    with pytest.raises(TruncatedError, match="ends at byte 10"):
        source.view(0, 100)
    file.close()
    with pytest.raises(ClosedError):
        source.view(0, 1)


class ClosedMeanwhile(io.BytesIO):
    def readinto(self, buffer: Any) -> int:
        self.close()
        return super().readinto(buffer)


def test_a_file_object_that_is_closed_while_it_is_read() -> None:
    with pytest.raises(ClosedError):
        open_source(ClosedMeanwhile(DATA)).view(0, 1)


class Stubborn(io.BytesIO):
    def readinto(self, buffer: Any) -> int:
        raise ValueError("not today")


def test_other_errors_of_a_file_object_are_its_own() -> None:
    with pytest.raises(ValueError, match="not today"):
        open_source(Stubborn(DATA)).view(0, 1)


def test_what_a_child_does_with_locks() -> None:
    source = open_source(io.BytesIO(DATA))
    with source._lock:
        file_objects._unlock_all()
        assert source.view(5, 3) == DATA[5:8]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_fork_while_a_file_object_is_read() -> None:
    """The thread that reads, and holds the lock, is not in the child."""
    reading, go_on = threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            if threading.current_thread() is not threading.main_thread():
                reading.set()
                go_on.wait(10)
            return super().readinto(buffer)

    source = open_source(Slow(DATA))
    thread = threading.Thread(target=source.view, args=(0, 10))
    thread.start()
    reading.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # instead of for ever
        os._exit(source.view(5, 3) != DATA[5:8])
    assert os.waitpid(child, 0)[1] == 0
    go_on.set()
    thread.join()


def test_errors_of_reading_name_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "bad sector")

    source = open_source(path, backend="pread")
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="bad sector") as caught:
        source.view(0, 10)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))


def test_short_reads_of_the_system(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:777]], offset)
    )
    assert open_source(path, backend="pread").view(0, len(DATA)) == DATA


# ---- what is refused


def test_only_regular_files(tmp_path: Path, no_leak: None) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for refused in ("fifo", "socket", "/dev/zero", "/dev/tty"):
            with pytest.raises(OSError) as caught:
                open_source(tmp_path / refused)
            assert caught.value.errno in {errno.ENODEV, errno.ENXIO}
            assert caught.value.filename == str(tmp_path / refused)
        server.close()
    with pytest.raises(IsADirectoryError) as folder:
        open_source(tmp_path)
    assert folder.value.filename == str(tmp_path)


def test_errors_of_opening_keep_their_class(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "missing")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError) as caught:
        open_source(tmp_path / "loop")
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("target", [None, 3, object(), ["a"]])
def test_neither_path_nor_file_nor_memory(target: Any) -> None:
    with pytest.raises(UnsupportedError, match=type(target).__name__):
        open_source(target)


def test_text_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    with open(tmp_path / "text") as file, pytest.raises(UnsupportedError, match="'rb'"):
        open_source(file)
    with pytest.raises(UnsupportedError, match="bytes"):
        open_source(Stream(["te", "xt"]))

    class Text(OnlyRead):
        def read(self, size: int = -1) -> Any:
            return "x" * size

    with pytest.raises(UnsupportedError, match="str"):
        open_source(Text()).view(0, 1)


def test_no_such_engine(path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"'mmaps'.*mmap, pread, direct, read, auto"):
        open_source(path, backend="mmaps")


def test_memory_that_is_not_contiguous() -> None:
    with pytest.raises(UnsupportedError, match="contiguous"):
        BytesSource(memoryview(DATA)[::2])
    with pytest.raises(UnsupportedError, match="contiguous"):
        flat(np.zeros((3, 4), order="F"))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), ()])
def test_flat_takes_any_shape(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, "f8")
    view = flat(array)
    assert (view.nbytes, view.ndim, view.format) == (array.nbytes, 1, "B")
    assert not view.readonly


# ---- descriptors


def test_a_file_is_opened_once(path: Path, system_calls: Any) -> None:
    for backend in ("mmap", "pread"):
        system_calls.watch()
        source = open_source(path, backend=backend)
        source.view(0, 100)
        source.read(100, 100)
        source.view(200, 100_000)
        assert system_calls.log.count("open") == 1


def test_descriptors_close_with_the_last_user(path: Path, descriptors: Callable[[], int]) -> None:
    before = descriptors()
    mapped, read = open_source(path), open_source(path, backend="pread")
    views = [mapped.view(0, 10), read.view(0, 10)]
    assert descriptors() > before
    del mapped, read
    assert [bytes(view) for view in views] == [DATA[:10]] * 2
    views.clear()
    assert descriptors() == before


def test_the_descriptor_of_a_source(path: Path) -> None:
    source = open_source(path)
    assert isinstance(source, DescriptorSource)
    assert os.fstat(source.fileno()).st_size == len(DATA)


def test_an_interrupt_while_opening_closes(
    path: Path, monkeypatch: pytest.MonkeyPatch, no_leak: None
) -> None:
    def interrupt(_: int) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_source(path)


def test_file_objects_stay_open(path: Path) -> None:
    with open(path, "rb") as file:
        source = open_source(file)
        assert isinstance(source, FileObjectSource)
        assert source.name == str(path)
        source.view(0, 1)
        del source
        assert not file.closed


# ---- platforms


def test_windows_lacks_these_calls(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("preadv", "pread", "O_NONBLOCK", "O_NOCTTY", "O_DIRECT"):
        monkeypatch.delattr(os, name)
    for name in ("MAP_PRIVATE", "PROT_READ", "PROT_WRITE"):
        monkeypatch.delattr(mmap, name)
    mapped, read = open_source(path), open_source(path, backend="direct")
    view = mapped.view(0, 100)
    view[:50] = bytes(50)
    assert view[50:] == DATA[50:100]
    assert path.read_bytes() == DATA
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # the position is shared: threads must not meet between two calls
    try:
        for _ in range(5):
            test_threads_read_at_once(read)
    finally:
        sys.setswitchinterval(interval)
    with pytest.raises(TruncatedError):
        read.read_into(len(DATA) - 5, memoryview(bytearray(10)))


# ---- checked by somebody else


def test_what_is_opened_can_be_checked(path: Path) -> None:
    seen: list[tuple[int, str]] = []

    def verify(source: Source, name: str) -> Source:
        seen.append((source.size, name))
        return BytesSource(b"checked")

    assert open_source(str(path), verify=verify).view(0, 7) == b"checked"
    assert seen == [(len(DATA), str(path))]


@pytest.mark.parametrize("target", [DATA, io.BytesIO(DATA)], ids=["bytes", "file object"])
def test_only_paths_are_checked(target: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"opened by its path.*Bytes|.*bytes"):
        open_source(target, verify=lambda source, _: source)


def test_reading_bytes_goes_on_after_a_short_read_and_explains_a_failed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(DATA)
    source = open_source(tmp_path / "a")
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: real(fd, min(length, 3), at))
    assert source.read(1, 50) == DATA[1:51]

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(os, "pread", fail)
    assert source.read(1, 50) == DATA[1:51]  # the second attempt may work
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="injected") as caught:
        source.read(1, 50)
    assert caught.value.filename == str(tmp_path / "a")
    monkeypatch.undo()
    os.truncate(tmp_path / "a", 10)
    with pytest.raises(TruncatedError):
        source.read(1, 50)


def test_reading_what_is_in_memory_is_no_work() -> None:
    data = bytearray(b"0123456789")
    reading = BytesSource(data).reading(3, 4)
    assert reading.extent == 0
    reading.fill(0, 0)
    assert reading.data == b"3456"
    data[3] = 0x61
    assert reading.data == b"a456"


@pytest.mark.parametrize(
    ("offset", "aligned", "begin"),
    [(0, False, 0), (24, False, 24), (4096 + 40, False, 40), (20, False, 0), (24, True, 0)],
)
def test_large_reads_begin_within_a_cache_line_where_they_do_in_the_file(
    tmp_path: Path, offset: int, aligned: bool, begin: int
) -> None:
    data = random.Random(3).randbytes(1 << 20) * 2
    (tmp_path / "a").write_bytes(data)
    source = open_source(tmp_path / "a", backend="pread")
    reading = source.reading(offset, 1 << 20, aligned=aligned)
    reading.fill(0, reading.extent)
    assert reading.data == data[offset:][: 1 << 20]
    assert np.frombuffer(reading.data, np.uint8).ctypes.data % 64 == begin


def test_where_pages_cannot_be_fetched_they_come_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(bytes(range(200)))
    reading = open_source(tmp_path / "a").reading(7, 100)
    for libc in (syscalls._libc(), None):
        monkeypatch.setattr(syscalls, "_libc", lambda libc=libc: libc)
        reading.fill(0, reading.extent)
        reading.fill(0, 0)
        assert reading.data == bytes(range(7, 107))


@pytest.mark.parametrize("size", [5000, 4096])
def test_pages_that_cannot_be_fetched_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """To a mapping a disk that fails looks like a file that was truncated."""
    (tmp_path / "a").write_bytes(bytes(5000))
    reading = open_source(tmp_path / "a").reading(0, 5000)
    os.truncate(tmp_path / "a", size)
    monkeypatch.setattr(files, "populate", lambda _: False)
    expected: Any = OSError if size == 5000 else TruncatedError
    with pytest.raises(expected, match=r"Input/output error|it ends at byte 4096") as caught:
        reading.fill(0, reading.extent)
    assert str(tmp_path / "a") in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_large_copy_of_bytes(tmp_path: Path, backend: str) -> None:
    data = random.Random(2).randbytes((5 << 20) + 3)
    (tmp_path / "a").write_bytes(data)
    source = open_source(tmp_path / "a", backend=backend)
    for offset in (0, 7):
        copy = source.read(offset, len(data) - offset)
        assert type(copy) is bytes
        assert copy == data[offset:]
    with pytest.raises(TruncatedError, match="it ends at byte"):
        source.read(8, len(data) - 7)


def test_a_mapping_holds_no_descriptor(tmp_path: Path, descriptors: Callable[[], int]) -> None:
    """A process may have few of them, and tensors hold their mapping."""
    (tmp_path / "a").write_bytes(DATA)
    before = descriptors()
    views = [open_source(tmp_path / "a", backend="mmap").view(0, len(DATA)) for _ in range(20)]
    assert descriptors() == before
    views[0][0] ^= 1
    assert views[1] == DATA == (tmp_path / "a").read_bytes()
    assert views[0] != DATA
    maps = Path("/proc/self/maps")
    assert maps.read_text().count(str(tmp_path / "a")) == 20
    views.clear()
    gc.collect()
    assert str(tmp_path / "a") not in maps.read_text()


def test_a_mapping_by_python_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(DATA)
    monkeypatch.setattr(syscalls, "_libc", lambda: None)
    assert open_source(tmp_path / "a", backend="mmap").view(0, len(DATA)) == DATA


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python itself can since 3.13")
@pytest.mark.parametrize("size", [5 << 20, (2 << 20) + 1, 4096])
def test_a_large_mapping_begins_where_a_huge_page_may(tmp_path: Path, size: int) -> None:
    """What is not, is mapped page by page: ten times as slow where the page cache has large pieces."""
    with open(tmp_path / "a", "wb") as file:
        file.truncate(size)
        file.seek(size - 1)
        file.write(b"z")
    view = open_source(tmp_path / "a", backend="mmap").view(0, size)
    assert (len(view), view[0], view[-1]) == (size, 0, ord("z"))
    address = np.frombuffer(view, np.uint8).ctypes.data
    assert address % (1 << 21 if size >= 1 << 21 else 4096) == 0


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python itself can since 3.13")
@pytest.mark.parametrize("failing", [1, 2])
def test_a_mapping_that_cannot_be_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Python's own serves. What the second call did to the pages is not known."""
    (tmp_path / "a").write_bytes(DATA)
    calls = []

    class Libc:
        def __getattr__(self, name: str) -> Any:
            return map_some if name == "mmap" else getattr(libc, name)

    def map_some(*arguments: Any) -> object:
        calls.append(arguments)
        return syscalls._FAILED if len(calls) == failing else libc.mmap(*arguments)

    libc = syscalls._libc()
    monkeypatch.setattr(syscalls, "_libc", Libc)
    monkeypatch.setattr(syscalls, "_mappable", set())
    abandoned = len(syscalls._abandoned)
    source = open_source(tmp_path / "a", backend="mmap")
    assert source.in_memory
    assert source.view(0, len(DATA)) == DATA
    assert len(calls) == failing
    assert len(syscalls._abandoned) - abandoned == failing - 1


@pytest.mark.parametrize("path", ["a\0b", Path("/tmp/a\0b")])
def test_no_file_has_a_null_in_its_name(path: Any) -> None:
    for act in (open_source, lambda path: write_file(path, [b"x"])):
        with pytest.raises(FileNotFoundError, match="null character"):
            act(path)


@pytest.mark.parametrize("target", [None, 3, 2.5, object(), ["a"]])
def test_what_is_neither_path_nor_file_nor_bytes(target: Any) -> None:
    with pytest.raises(
        UnsupportedError, match="expected a path, a readable file object or bytes, found"
    ):
        open_source(target)


@pytest.mark.parametrize(
    ("link", "opened", "words"),
    [
        ("model", "model", ["it is a link to 'gone', which does not exist"]),
        ("folder", "folder/model", ["folder' is a link to 'gone'"]),
        (
            "models--gpt2/snapshots/1/m",
            "",
            ["the Hub's cache is incomplete; run `hf download gpt2` "],
        ),
        ("datasets--a--b/snapshots/1/m", "", ["`hf download a/b --repo-type dataset`"]),
    ],
)
def test_a_link_to_nothing_says_so(
    tmp_path: Path, link: str, opened: str, words: list[str]
) -> None:
    (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / link).symlink_to("gone")
    path = tmp_path / (opened or link)
    with pytest.raises(FileNotFoundError) as caught:
        open_source(path)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(path))
    assert caught.value.strerror is not None
    assert caught.value.strerror.startswith(os.strerror(errno.ENOENT))
    assert all(word in caught.value.strerror for word in words)


@pytest.mark.parametrize("name", ["gone", "link/gone", ""])
def test_what_does_not_exist_and_is_no_link(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(FileNotFoundError) as caught:
        open_source(name)
    assert caught.value.strerror == os.strerror(errno.ENOENT)


def test_holes_of_a_file_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.write(b"x" * 8192)
        file.seek(4 << 20)
        file.write(b"y")
        file.truncate(8 << 20)
    source = open_source(path, backend="pread")
    assert isinstance(source, DescriptorSource)
    assert not source.is_hole(0, 8192)
    assert not source.is_hole(3 << 20, 2 << 20)
    if path.stat().st_blocks * 512 < 1 << 20:  # the filesystem has holes, and says where
        assert source.is_hole(1 << 20, 1 << 20)
        assert source.is_hole(5 << 20, 3 << 20)

    def refuse(*_: int) -> int:
        raise OSError(errno.EINVAL, "unknown")

    monkeypatch.setattr(os, "lseek", refuse)
    assert not source.is_hole(5 << 20, 3 << 20)
    monkeypatch.delattr(os, "SEEK_DATA", raising=False)
    assert not source.is_hole(5 << 20, 3 << 20)


@pytest.fixture
def held_source(path: Path) -> DescriptorSource:
    source = open_source(path, backend="pread")
    assert isinstance(source, DescriptorSource)
    with source.held(0, len(DATA)) as held:
        if held is None:
            pytest.skip("the system gives no leases here, or cannot say what is in the page cache")
    return source


def test_bytes_in_the_page_cache_are_held(held_source: DescriptorSource, path: Path) -> None:
    with held_source.held(5000, 100_000) as held:
        assert held is not None
        assert held.view(5000, 100_000) == DATA[5000:105_000]
        assert held.view(70_000, 5) == DATA[70_000:70_005]
        assert held.is_held()
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        assert not held.is_held()
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def test_pages_are_released_when_they_are_held_no_longer(held_source: DescriptorSource) -> None:
    with held_source.held(0, len(DATA)) as held:
        assert held is not None
        assert _pages_of(held_source) >= len(DATA)
    assert _pages_of(held_source) == 0


def _pages_of(source: DescriptorSource) -> int:
    """Bytes of the file that are mapped and count as memory of this process."""
    parts = Path("/proc/self/smaps").read_text().split(str(Path(source.name).resolve()))[1:]
    return sum(int(part.partition("\nRss:")[2].split()[0]) * 1024 for part in parts)


def test_nothing_is_held_where_it_is_not_possible_or_not_faster(
    held_source: DescriptorSource, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_held(offset: int = 0, length: int = len(DATA)) -> bool:
        with held_source.held(offset, length) as held:
            return held is not None

    assert is_held()
    with path.open("r+b"):
        assert not is_held()
    with monkeypatch.context() as patch:
        patch.setattr(files, "populate", lambda _: False)
        assert not is_held()
    with monkeypatch.context() as patch:
        patch.setattr(held_source, "_whole", lambda: None)
        assert not is_held()
    for share in (0.99, None):
        with monkeypatch.context() as patch:
            patch.setattr(files, "resident_share", lambda *_, share=share: share)
            assert not is_held()
    assert is_held()
    with monkeypatch.context() as patch:
        patch.setattr(files, "resident_share", lambda *_: 1.0)
        assert not is_held(1, len(DATA)), "it ends before"
    with BytesSource(DATA).held(0, 1) as held:
        assert held is None


def test_nothing_is_held_of_a_file_that_was_cut_off(
    tmp_path: Path, held_source: DescriptorSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    del held_source
    (tmp_path / "cut").write_bytes(DATA)
    source = open_source(tmp_path / "cut", backend="pread")
    os.truncate(tmp_path / "cut", 100_000)
    monkeypatch.setattr(files, "resident_share", lambda *_: 1.0)
    with source.held(0, len(DATA)) as held:
        assert held is None


def test_a_descriptor_is_closed_with_its_source_and_only_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    source = open_source(tmp_path / "a", backend="pread")
    assert isinstance(source, DescriptorSource)
    descriptor = source.fileno()
    again = copy.copy(source)
    assert isinstance(again, DescriptorSource)
    assert again.fileno() != descriptor
    del source
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert again.read(0, len(DATA)) == DATA


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_source_that_was_not_made_closes_nothing() -> None:
    with pytest.raises(TypeError):
        DescriptorSource()  # type: ignore[call-arg]
    gc.collect()
