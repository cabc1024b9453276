"""Regular files as sources: mapped, read, or read past the page cache."""

from __future__ import annotations

import errno
import io
import mmap
import os
import stat
import sys
import threading
import weakref
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..errors import ChangedError, UnsupportedError
from ..lazy import matcher
from .gathering import (
    gather,
    gather_guarded,
    gather_mapped,
    gather_over,
    lie_apart,
    parts_of,
)
from .leases import LEASED, leased
from .mappings import is_checked, note_mapping
from .memory import PAGE, allocate, blank_bytes, touch
from .parallel import CHUNK, in_parallel, thread_count
from .source import Held, Reading, Source
from .syscalls import is_remote, map_untracked, populate, release, resident_share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..format.indexing import Runs

__all__ = ["BACKENDS", "DescriptorSource", "check_backend", "decoded", "open_file"]

BACKENDS: Final = ("mmap", "pread", "direct", "read", "auto")
"""How files are read; see `safeweights.storage.open_source`."""


_DIRECT_READS: Final = 12
"""Direct reads at a time: some threads touch what arrived while others keep the disk busy. 512 MiB take
225 ms into fresh memory, with 8 threads 233, with 4 threads 244; the disk alone takes 210."""


_LARGE: Final = 1 << 22
"""Size in bytes above which huge pages, threads, and a choice of how to read pay off."""


_WARM: Final = 0.5
"""If at least this share of a file is in the page cache, direct reads are slower."""

_MANY: Final = 256
"""Number of runs from which they are copied together: preparing that costs as much as 256 reads."""

_PART: Final = 1 << 22
"""Bytes of runs that are copied under one lease, where several threads share them: about a millisecond.
One thread alone copies `LEASED` bytes under each: a lease between two parts takes 0.1 ms, since the copy
has filled the caches."""

_PART_SPAN: Final = 1 << 28
"""Bytes of the file in which they are."""

_SPARSE: Final = 16
"""Bytes of the file for each byte of the runs, above which a sample of runs is checked, not all pages."""

_NEAR: Final = 1 << 14
"""Bytes between runs in the page cache up to which they are read, too: that takes less than a call each."""

_SAMPLE: Final = 16
"""Runs of which is asked whether they are in the page cache."""

_SHORT: Final = 1 << 11
"""Length of runs from which a read each is faster than a mapping, whose pages have to be faulted in."""

_FAR: Final = 1 << 16
"""Length of runs for which a read each, by several threads, is as fast."""


# Linux counts a private writable mapping as memory that may all be needed, and so refuses to map a file
# that is larger than the memory (proc_sys_vm(5), overcommit_memory), unless this flag is given. The mmap
# module has its name since Python 3.13; before that, the number is that of these two architectures.
_NORESERVE: Final[int] = getattr(
    mmap,
    "MAP_NORESERVE",
    0x4000 if sys.platform == "linux" and os.uname().machine in {"x86_64", "aarch64"} else 0,
)


_UNTRACKED: Final[dict[str, Any]] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
"""Makes a mapping keep no descriptor (Python 3.13). Tensors keep their mapping alive, so that a program
would otherwise have a descriptor open for every file it ever loaded."""


class DescriptorSource(Source):
    """A regular file that is open, mapped where that was asked for and is possible.

    Args:
        descriptor: Open for reading. The source closes it when it is freed.
        name: For messages.
        mapped: Serve `view` from a private mapping. Where the system cannot map the file, `view`
            reads instead.
        direct: Large reads bypass the page cache (open(2), O_DIRECT), where the filesystem allows it.
        choose: `for_all` gives a source with direct reads if little of a large file is in the page cache.
        status: What fstat(2) says of the file, where it was asked already.
    """

    _descriptor = -1

    def __init__(
        self,
        descriptor: int,
        name: str,
        *,
        mapped: bool = True,
        direct: bool = False,
        choose: bool = False,
        status: os.stat_result | None = None,
    ) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self.name = name
        status = status or os.fstat(descriptor)
        self.size = status.st_size
        self._map = _map(descriptor, status) if mapped and self.size else None
        self.in_memory = self._map is not None
        if self._map is not None:
            self.size = len(self._map)
        self._status = status
        self._mapped = mapped
        self._direct = _reopen_direct(descriptor) if direct else None
        if self._direct is not None:
            weakref.finalize(self, os.close, self._direct)
            self.threads = _DIRECT_READS
        self._choose = choose
        self._window: memoryview | None = None

    # Not by weakref.finalize, which takes 5 us: adapters are opened by the thousand.
    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._descriptor >= 0:
            close(self._descriptor)

    def fileno(self) -> int:
        """The descriptor, which the source still owns."""
        return self._descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by path: it is opened again, and has to be the same file.

        Raises:
            UnsupportedError: There is no such file at its path.
        """
        path = os.path.abspath(self.name)
        try:
            same = os.path.samestat(os.stat(path), self._status)
        except OSError:
            same = False
        if not same:
            raise UnsupportedError(
                "the file cannot be pickled: it is not at its path", path=self.name
            )
        options = {
            "mapped": self._mapped,
            "direct": self._direct is not None,
            "choose": self._choose,
        }
        return _opened_again, (path, _identity(self._status), options, self.version)

    def for_all(self) -> Source:
        if (
            not self._choose
            or self.size < _LARGE
            or (resident_share(self._descriptor, 0, self.size) or 0) >= _WARM
        ):
            return self
        return DescriptorSource(os.dup(self._descriptor), self.name, mapped=False, direct=True)

    def read(self, offset: int, length: int) -> bytes:
        blank = blank_bytes(length) if _LARGE <= length <= self.size - offset else None
        if blank is not None:  # several threads fill huge pages: five times as fast
            data, memory = blank
            self.read_into(offset, memory)
            return data
        # One pread(2) makes the bytes without a copy. If it fails or gives fewer, the general way reads
        # on, or raises the right error.
        try:
            data = os.pread(self._descriptor, length, offset) if hasattr(os, "pread") else b""
        except OSError:
            data = b""
        return data if len(data) == length else super().read(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if len(buffer) <= 2 * CHUNK:  # one thread's share; this way it takes 5 us less
            self._read(offset, buffer)
            return
        in_parallel(lambda begin, end: self._read(offset + begin, buffer[begin:end]), len(buffer))

    def _read(self, offset: int, buffer: memoryview) -> None:
        position, rest = offset, buffer
        while rest:
            try:
                count = self._read_some(position, rest)
            except OSError as error:
                error.filename = self.name  # the system knows only the descriptor
                raise
            if count == 0:
                # The file may end before the offset at which this read began.
                size = os.fstat(self._descriptor).st_size
                raise self._truncated(offset, len(buffer), min(position, size))
            position += count
            rest = rest[count:]

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [buffer], offset)
        # Windows has no preadv: the file position is shared, so one thread at a time may use it.
        with self._lock, io.FileIO(self._descriptor, closefd=False) as file:
            file.seek(offset)
            return file.readinto(buffer)

    def is_hole(self, offset: int, length: int) -> bool:
        """Whether nothing was ever written there, so that it reads as zeros; False where unknown.

        Cost: one system call, and nothing is read into the page cache (lseek(2), SEEK_DATA).
        """
        if not hasattr(os, "SEEK_DATA"):
            return False
        try:
            return os.lseek(self._descriptor, offset, os.SEEK_DATA) >= offset + length
        except OSError as error:
            return error.errno == errno.ENXIO  # there is no data up to the end

    def read_runs(self, runs: Runs, out: memoryview, *, gap: int | None = None) -> None:
        gap = self.gap if gap is None else gap
        if runs.run_count < _MANY or runs.length > _PART:
            self._gather(runs, out, gap, threads=0 if runs.length >= _FAR else 1)
            return
        for part, memory in self._copy_leased(runs, out):
            share = self._resident_share_of(part)
            if share < _WARM or not self._read_together(part, memory):
                # A disk serves several small reads at a time; those of memory would wait for each other.
                threads = 0 if share < _WARM or runs.length >= _FAR else 1
                self._gather(part, memory, gap, threads=threads)

    def _gather(self, runs: Runs, out: memoryview, gap: int, *, threads: int) -> None:
        read = self._read
        gather(runs, lambda buffer, at: read(at, buffer), out, gap=gap, threads=threads)

    def _copy_leased(self, runs: Runs, out: memoryview) -> list[tuple[Runs, memoryview]]:
        """Copy runs from a mapping in several threads; what could not be copied, and where it belongs.

        8,192 runs of 512 bytes take 0.4 ms, copied by the system 2.9 ms, with a pread(2) each 13 ms; 65,536
        runs of 2 KiB take 15 ms, 48 ms and 137 ms. A lease keeps the pages from being truncated while they
        are touched. A page that is not in the page cache, although the check found the part in it (it is
        evicted in that millisecond, or was not in the sample of sparse runs), is read from the disk; if
        that fails, the process gets SIGBUS.
        """
        if runs.offset + runs.span > self.size or runs.nbytes != len(out):
            return [(runs, out)]
        size = LEASED if runs.nbytes > _PART and thread_count() == 1 else _PART
        if runs.nbytes <= size and runs.span <= _PART_SPAN:
            return [] if self._copy_part(runs, out) else [(runs, out)]
        parts: list[tuple[Runs, memoryview]] = []
        left: list[tuple[Runs, memoryview]] = []
        position = 0
        for part in parts_of(runs, nbytes=size, span=_PART_SPAN):
            parts.append((part, out[position : position + part.nbytes]))
            position += part.nbytes

        def share(begin: int, end: int) -> None:
            left.extend(each for each in parts[begin:end] if not self._copy_part(*each))

        in_parallel(share, len(parts), chunk=max(1, size * len(parts) // runs.nbytes))
        # Nothing is in the page cache: all of it together can be read by several threads.
        return [(runs, out)] if len(left) == len(parts) else left

    def _copy_part(self, runs: Runs, out: memoryview) -> bool:
        """Copy runs that are in the page cache under a lease; False if not, or if the file has changed."""
        descriptor, end = self._descriptor, runs.offset + runs.span
        with leased(descriptor) as lease:
            if lease is None or lease.size < end:
                return False
            if not self._is_resident(runs):
                return False
            if (window := self._whole()) is None:
                return False
            gather_mapped(runs, window, out)
            return lease.is_held()

    def _is_resident(self, runs: Runs) -> bool:
        """Whether runs are in the page cache, as far as that is known."""
        # To check all pages between sparse runs takes as long as copying the runs.
        if runs.span > _SPARSE * runs.nbytes:
            return self._resident_share_of(runs) == 1.0
        return resident_share(self._descriptor, runs.offset, runs.span) == 1.0

    def _read_together(self, runs: Runs, out: memoryview) -> bool:
        """Have the system copy runs that are in the page cache, many with one call."""
        if runs.length >= _FAR or runs.offset + runs.span > self.size:
            return False
        if not lie_apart(runs, _NEAR):
            return gather_over(runs, self._descriptor, out, gap=_NEAR)
        if runs.length >= _SHORT:
            return False
        window = self._whole()
        if window is None or not gather_guarded(runs, window, out):
            return False
        # A mapping has zeros between the end of a file and the end of its last page.
        return os.fstat(self._descriptor).st_size >= runs.offset + runs.span

    def _resident_share_of(self, runs: Runs) -> float:
        """Of some of many runs, the share that is in the page cache; 0 where unknown."""
        count = runs.run_count
        places = map(runs.offset_of, range(0, count, max(1, count // _SAMPLE)))
        found = [resident_share(self._descriptor, place, runs.length) or 0 for place in places]
        return sum(found) / len(found)

    def _whole(self) -> memoryview | None:
        """A mapping that is never handed out, and touched only under a lease; None if there is none."""
        if self._window is None:  # two threads may both map it, which does no harm
            window = _map(self._descriptor, self._status, guarded=True)
            # Shorter: the file was truncated, and may have its old size by the time that it is used.
            self._window = window if window is None or len(window) >= self.size else None
        return self._window

    @contextmanager
    def held(self, offset: int, length: int) -> Iterator[Held | None]:
        # Only what is in the page cache: read(2) reads a disk ahead better than page faults do, and where a
        # disk fails, it raises an error.
        if resident_share(self._descriptor, offset, length) != 1:
            yield None
            return
        with leased(self._descriptor) as lease:
            window = None if lease is None else self._fetched(offset, length)
            if lease is None or window is None:
                yield None
                return
            try:
                yield Held(window, offset, lease.is_held)
            finally:
                release(window)

    def _fetched(self, offset: int, length: int) -> memoryview | None:
        """A part of the leased file, in a mapping; None if there is none, or the file ends before."""
        window, end = self._whole(), offset + length
        if window is None or end > min(len(window), os.fstat(self._descriptor).st_size):
            return None
        part = window[offset:end]
        return part if populate(part) else None

    def view(self, offset: int, length: int) -> memoryview:
        if self._map is None:
            return super().view(offset, length)
        if offset + length > self.size:
            raise self._truncated(offset, length, self.size)
        return self._map[offset : offset + length]

    def reading(self, offset: int, length: int, *, aligned: bool = False) -> Reading:
        if self._map is not None:
            return Reading(self.view(offset, length), length, partial(self._populate, offset))
        if self._direct is None or length < CHUNK:
            return super().reading(offset, length, aligned=aligned)
        if offset + length > self.size:
            raise self._truncated(offset, length, self.size)
        # Direct reads need file offset, length and address to be multiples of a block. So the memory
        # gets the same position within a page as the bytes have in the file, and no copy is needed. The
        # last block may reach beyond the last byte.
        shift = offset % PAGE
        memory = allocate(shift + length + PAGE)
        fill = partial(self._read_touched, offset - shift, memory)
        return Reading(memory[shift : shift + length], shift + length, fill)

    def _populate(self, offset: int, begin: int, end: int) -> None:
        assert self._map is not None
        if populate(self._map[offset + begin : offset + end]):
            return
        size = os.fstat(self._descriptor).st_size
        if size >= offset + end:  # the file is as long as it was: the disk failed, or the network
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)
        raise self._truncated(offset + begin, end - begin, size)

    def fill(self, offset: int, length: int, memory: memoryview) -> int:
        if self._direct is None:
            return super().fill(offset, length, memory)
        shift = offset % PAGE
        self._read_blocks(offset - shift, memory, 0, shift + length)
        return shift

    def _read_touched(self, base: int, memory: memoryview, begin: int, end: int) -> None:
        """The same as `_read_blocks`, for memory that processors use next."""
        self._read_blocks(base, memory, begin, end)
        touch(memory[begin:end])

    def _read_blocks(self, base: int, memory: memoryview, begin: int, end: int) -> None:
        """Fill `memory` from `begin` (a multiple of a block) to `end`; it begins at `base` of the file."""
        assert self._direct is not None
        blocks = memory[begin : end + -end % PAGE]
        try:
            done = os.preadv(self._direct, [blocks], base + begin)
        except OSError as error:
            # EINVAL: the disk has larger blocks, or the filesystem does not support direct reads.
            if error.errno != errno.EINVAL:
                error.filename = self.name
                raise
            done = 0
        # At the end of the file, or after an interrupted read, the rest comes through the page cache.
        if begin + done < end:
            self._read(base + begin + done, memory[begin + done : end])


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Tells a file from one that replaced it, and from itself after it was written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _opened_again(
    path: str, identity: tuple[int, ...], options: dict[str, bool], version: str | None
) -> DescriptorSource:
    """A source that was pickled, in the process that reads the pickle.

    Raises:
        ChangedError: There is another file at the path by now, or it was written to.
        OSError: It cannot be opened.
    """
    descriptor, status = _open_regular(path, path)
    if _identity(status) != identity:
        os.close(descriptor)
        raise ChangedError(
            "the file was replaced since it was first opened; open it again", path=path
        )
    source = DescriptorSource(descriptor, path, status=status, **options)
    source.version = version
    return source


def _reopen_direct(descriptor: int) -> int | None:
    """A second descriptor of the same file, for direct I/O; None where the system has none."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None


def _map(descriptor: int, status: os.stat_result, *, guarded: bool = False) -> memoryview | None:
    """A private mapping of the whole file: writable, never written back; None if it cannot be mapped.

    Args:
        descriptor: The file.
        status: Its status.
        guarded: Whether the process touches pages only under a lease, so that truncation does no harm.
    """
    try:
        if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
            return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY))
        flags, prot = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        untracked = (
            None if _UNTRACKED else map_untracked(descriptor, status, protection=prot, flags=flags)
        )
        memory = untracked or memoryview(
            mmap.mmap(descriptor, 0, flags=flags, prot=prot, **_UNTRACKED)
        )
        if is_checked() and not guarded:
            assert isinstance(memory.obj, mmap.mmap)
            note_mapping(memory.obj, status)
        return memory
    except (OSError, ValueError, OverflowError):
        return None  # a filesystem without mappings (FUSE), or no address space left


def decoded(path: str | os.PathLike[str]) -> str:
    """A path as text.

    Raises:
        FileNotFoundError: It has a null character, which no file name can have.
    """
    name = os.fsdecode(path)
    if "\0" in name:
        raise FileNotFoundError(errno.ENOENT, "No file has a null character in its name", name)
    return name


def check_backend(backend: str) -> None:
    """Raise an UnsupportedError unless `backend` is one of `BACKENDS`."""
    if backend not in BACKENDS:
        raise UnsupportedError(f"no such backend: {backend!r}; there are {', '.join(BACKENDS)}")


def open_file(path: str | os.PathLike[str], backend: str) -> DescriptorSource:
    """Open a regular file by its path; see `safeweights.storage.open_source`."""
    check_backend(backend)
    name = decoded(path)
    descriptor, status = _open_regular(path, name)
    chooses = backend in {"read", "auto"} and not is_remote(descriptor)
    mapped = backend == "mmap" or (backend == "auto" and chooses)
    return DescriptorSource(
        descriptor,
        name,
        mapped=mapped,
        direct=backend == "direct",
        choose=chooses,
        status=status,
    )


# O_NONBLOCK: opening a FIFO must not wait for a writer. O_NOCTTY: opening a terminal must not make it the
# controlling terminal of this process.
_TO_READ: Final[int] = (
    os.O_RDONLY
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
)


def _open_regular(path: str | os.PathLike[str], name: str) -> tuple[int, os.stat_result]:
    try:
        descriptor = os.open(path, _TO_READ)
    except FileNotFoundError as error:
        if (reason := _dangling(name)) is not None:
            raise FileNotFoundError(errno.ENOENT, reason, name) from error
        raise
    try:
        status = os.fstat(descriptor)
        _require_regular(status.st_mode, name)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def _dangling(name: str) -> str | None:
    """Why there is no file called `name`, if that is because a symbolic link leads nowhere."""
    link = name
    while not os.path.islink(link):
        if link in {"", above := os.path.dirname(link)}:
            return None
        link = above
    if os.path.exists(link):
        return None
    target = os.readlink(link)
    found = f"{os.strerror(errno.ENOENT)}; {_what(link, name)} a link to {target!r}, which does not exist"
    if (cached := _IN_HUB_CACHE(os.path.abspath(link))) is None:
        return found
    repository = cached[2].replace("--", "/")
    kind = "" if cached[1] == "model" else f" --repo-type {cached[1]}"
    return f"{found}: the Hub's cache is incomplete; run `hf download {repository}{kind}` again"


def _what(link: str, name: str) -> str:
    return "it is" if link == name else f"{link!r} is"


# huggingface_hub links models--OWNER--NAME/snapshots/REVISION/FILE to ../../blobs/DIGEST.
_IN_HUB_CACHE: Final = matcher(r".*/(model|dataset|space)s--([\w.-]+)/snapshots/")


def _require_regular(mode: int, name: str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENODEV, "Not a regular file (No such device)", name)
