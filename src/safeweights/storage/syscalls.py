"""System calls that Python's standard library does not have, by ctypes.

They say where the bytes of a file are (page cache, local disk, network), reserve space, and map files.
Their answers decide how files are read and written, never what; where the system gives no answer, it is
None or False. ``ctypes.CDLL`` releases the interpreter's lock during a call; the standard library's
``mmap.madvise`` does not.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import sys
from functools import cache
from typing import Any, Final

__all__ = [
    "VECTOR",
    "address_of",
    "can_share_blocks",
    "copy_memory",
    "is_local",
    "is_remote",
    "keep_secret",
    "keeps_reserved",
    "map_untracked",
    "populate",
    "prefer_huge_pages",
    "read_vectors",
    "release",
    "reserve",
    "resident_share",
    "restore_huge_pages",
    "unlock",
    "write_vectors",
]

_CACHESTAT: Final = 451  # new system calls have the same number on every architecture
_KEEP_SIZE: Final = 1
_CLONE: Final = 0x4020940D  # FICLONERANGE
VECTOR: Final = 1024  # IOV_MAX of Linux, macOS and the BSDs: buffers that one call takes
_DONTNEED: Final = 4  # MADV_DONTNEED
_HUGEPAGE: Final = 14  # MADV_HUGEPAGE
_POPULATE_READ: Final = 22  # MADV_POPULATE_READ
_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE
_DONTDUMP: Final = 16  # MADV_DONTDUMP
_COLLAPSE: Final = 25  # MADV_COLLAPSE
_ON_FAULT: Final = 1  # MLOCK_ONFAULT
_FAILED: Final = ctypes.c_void_p(-1).value  # MAP_FAILED
_IN_PLACE: Final = 0x10  # MAP_FIXED
_HUGE: Final = 1 << 21
_HUGE_PAGES: Final = "/sys/kernel/mm/transparent_hugepage/enabled"
_PAGE: Final = mmap.PAGESIZE
_REMOTE: Final = frozenset(
    {
        0x6969,  # NFS
        0x65735546,  # FUSE: sshfs, s3fs, gcsfuse ...
        0x517B,  # SMB
        0xFF534D42,  # CIFS
        0xFE534D42,  # SMB2
        0x0BD00BD0,  # Lustre
        0x00C36400,  # Ceph
        0x01021997,  # 9p: WSL, virtual machines
        0x47504653,  # GPFS
        0x19830326,  # BeeGFS
        0x5346414F,  # AFS
    }
)
"""f_type of filesystems on a network or in user space (statfs(2), linux/magic.h)."""

_LOCAL: Final = frozenset(
    {
        0xEF53,  # ext4
        0x58465342,  # XFS
        0x01021994,  # tmpfs
        0x794C7630,  # overlay: containers
        0x9123683E,  # btrfs
        0xF2F52010,  # F2FS
        0x2FC12FC1,  # ZFS
    }
)
"""Those whose files change only through this kernel."""

_KEEPING: Final = frozenset({0xEF53, 0x58465342, 0x01021994})
"""Those that write over reserved blocks in place, and neither compress nor copy them elsewhere."""

_DIRECT: Final = frozenset({0xEF53, 0x58465342, 0x794C7630})
"""Those that send direct writes to a disk from where they are; an overlay is mostly on one of them."""


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Cachestat(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


@cache
def _libc() -> Any:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    # Declared for the one call that every file takes: with numbers as they are it takes half of the time.
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64
    )  # fmt: skip
    return libc


def resident_share(descriptor: int, offset: int, length: int) -> float | None:
    """The share, 0 to 1, of a range of a file that is in the page cache; None where unknown.

    Cost: one system call (cachestat(2), Linux 6.5), some 50 us for 256 MiB.
    """
    libc = _libc()
    if libc is None or length <= 0:
        return None
    wanted, found = _Range(offset, length), _Cachestat()
    if libc.syscall(_CACHESTAT, descriptor, ctypes.byref(wanted), ctypes.byref(found), 0):
        return None
    pages = -(-(offset + length) // _PAGE) - offset // _PAGE
    return min(1.0, float(found.cached) / pages)


def is_remote(descriptor: int) -> bool | None:
    """Whether a file is on a network filesystem or one in user space; None where unknown."""
    kind = _filesystem(descriptor)
    return None if kind is None else kind in _REMOTE


def is_local(descriptor: int) -> bool:
    """Whether a file is on a filesystem that is known to change only through this machine's kernel."""
    return _filesystem(descriptor) in _LOCAL


def keeps_reserved(descriptor: int) -> bool:
    """Whether a file is on a local filesystem where a write to reserved space cannot lack space."""
    return _filesystem(descriptor) in _KEEPING


def writes_past_cache(descriptor: int) -> bool:
    """Whether a file is on a local filesystem that sends direct writes (O_DIRECT) to a disk as they are.

    Others copy them into the page cache, as btrfs does for files with checksums, or have no disk.
    """
    return _filesystem(descriptor) in _DIRECT


def _filesystem(descriptor: int) -> int | None:
    """The number of a filesystem's kind (f_type); None where unknown."""
    libc = _libc()
    if libc is None:
        return None
    status = (ctypes.c_long * 64)()  # struct statfs; f_type comes first on every Linux but s390
    if libc.fstatfs(descriptor, ctypes.byref(status)):
        return None
    return status[0] & 0xFFFFFFFF


def reserve(descriptor: int, nbytes: int, offset: int = 0) -> bool:
    """Reserve disk space for a file that is about to be written; returns whether that was possible.

    Writing to reserved blocks is faster, they lie together, and a full disk is an error before anything was
    written. The size of the file does not change (fallocate(2), FALLOC_FL_KEEP_SIZE).

    Args:
        descriptor: The file.
        nbytes: How much will be written.
        offset: Where that begins.

    Raises:
        OSError: There is not enough space, or a quota or limit forbids it.
    """
    libc = _libc()
    if libc is None or sys.maxsize < 1 << 32:
        return False
    begin, length = ctypes.c_int64(offset), ctypes.c_int64(nbytes)
    if libc.fallocate(descriptor, _KEEP_SIZE, begin, length) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        raise OSError(code, os.strerror(code))
    return False


def can_share_blocks(descriptor: int) -> bool:
    """Whether the filesystem can let files share blocks, so that copying between them copies nothing.

    Asks for what follows the file's end, which is nothing, to be shared with itself: filesystems that
    cannot share refuse even that (ioctl_ficlonerange(2), Linux).

    Args:
        descriptor: A regular file, open for reading and writing.
    """
    if sys.platform != "linux":
        return False
    import fcntl

    end = os.fstat(descriptor).st_size
    try:
        fcntl.ioctl(descriptor, _CLONE, struct.pack("qQQQ", descriptor, end, 0, end))
    except OSError:
        return False
    return True


def prefer_huge_pages(address: int, nbytes: int) -> None:
    """Ask for huge pages in memory that was not touched yet: a hint (madvise(2), MADV_HUGEPAGE)."""
    libc = _libc()
    if libc is None:
        return
    begin, end = address + -address % _PAGE, address + nbytes - (address + nbytes) % _PAGE
    if begin < end:
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _HUGEPAGE)


def restore_huge_pages(memory: memoryview) -> None:
    """Have huge pages again where the system took them: a hint (mincore(2); MADV_COLLAPSE, Linux 6.1).

    Linux splits a huge page before it takes it (madvise(2), MADV_FREE), and then gives small ones for it,
    for as long as the memory is mapped.

    Cost: a byte for each page of 4 KiB; where huge pages are missing, 0.12 ms for each. Those that were
    never touched stay away.

    Args:
        memory: Writable, all of it private and not of a file.
    """
    libc = _libc()
    if libc is None:
        return
    address = address_of(memory)
    begin, end = address + -address % _HUGE, address + len(memory) - (address + len(memory)) % _HUGE
    if begin >= end:
        return
    resident = ctypes.create_string_buffer((end - begin) // _PAGE)
    if libc.mincore(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), resident):
        return
    each = _HUGE // _PAGE
    firsts = resident.raw[::each]
    if all(firsts) or not has_huge_pages():
        return
    for number, first in enumerate(firsts):
        if not first:
            place = ctypes.c_void_p(begin + number * _HUGE)
            libc.madvise(place, ctypes.c_size_t(_HUGE), _COLLAPSE)


def has_huge_pages() -> bool:
    """Whether the system has huge pages for memory that asks for them, as far as it says (sysfs)."""
    try:
        with open(_HUGE_PAGES, encoding="ascii") as file:
            return "[never]" not in file.read()
    except OSError:
        return False


def keep_secret(address: int, nbytes: int) -> bool:
    """Ask that whole pages are not swapped to a disk and are left out of core dumps: a hint.

    Pages are locked when they are first touched, so that this costs nothing for those that never are
    (mlock2(2), MLOCK_ONFAULT, Linux 4.4; madvise(2), MADV_DONTDUMP). Unmapping them ends both.

    Args:
        address: Of a mapping of its own, which begins at a page.
        nbytes: Its size.

    Returns:
        Whether the pages are locked, until `unlock` or until they are unmapped.
    """
    libc = _libc()
    if libc is None:
        return False
    start, length = ctypes.c_void_p(address), ctypes.c_size_t(nbytes)
    libc.madvise(start, length, _DONTDUMP)
    return hasattr(libc, "mlock2") and libc.mlock2(start, length, _ON_FAULT) == 0


def unlock(address: int, nbytes: int) -> None:
    """Let the system take memory again that `keep_secret` locked (munlock(2))."""
    libc = _libc()
    if libc is not None:
        libc.munlock(ctypes.c_void_p(address), ctypes.c_size_t(nbytes))


def map_untracked(
    descriptor: int, status: os.stat_result, *, protection: int, flags: int
) -> memoryview | None:
    """A mapping of a file that keeps no descriptor open; None where that is not possible.

    Before Python 3.13, which has ``trackfd=False``, ``mmap.mmap`` duplicates the descriptor of a file and
    keeps it. An anonymous mapping has none. So this makes an anonymous mapping, which Python owns and
    unmaps, and maps the file over its pages (MAP_FIXED). The file begins at a multiple of 2 MiB, as where
    the system chooses the address: the page cache often holds it in pieces that large, and faulting them
    in whole is ten times as fast as page by page.

    Raises:
        OSError, ValueError: There is not enough address space.
    """
    libc = _libc()
    if libc is None or sys.maxsize < 1 << 32:
        return None
    size = status.st_size
    if status.st_dev not in _mappable:
        tried = libc.mmap(None, size, protection, flags, descriptor, 0)
        if tried is None or tried == _FAILED:  # a filesystem without mappings
            return None
        libc.munmap(ctypes.c_void_p(tried), ctypes.c_size_t(size))
        _mappable.add(status.st_dev)
    spare = _HUGE if size >= _HUGE else 0
    pages = mmap.mmap(-1, size + spare, flags=flags | mmap.MAP_ANONYMOUS, prot=protection)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    begin = -address % _HUGE if spare else 0
    place = address + begin
    found = libc.mmap(place, size, protection, flags | _IN_PLACE, descriptor, 0)
    if found == place:
        return memoryview(pages)[begin : begin + size]
    _abandoned.append(pages)
    return None


_mappable: Final[set[int]] = set()
"""Devices whose files can be mapped. Mapping over other pages first unmaps them, so it must not fail."""

_abandoned: Final[list[mmap.mmap]] = []
"""Mappings of which a failed call may have removed pages. They are kept for ever: to unmap them could
remove what was mapped at the same addresses since."""


def populate(memory: memoryview, *, writing: bool = False) -> bool:
    """Fetch all pages of a part of a mapped file; returns False if some of them cannot be read.

    Without this every page is read when it is first touched, where a failure is a SIGBUS. If the system
    does not have the call, they are read that way, and the result is True (madvise(2),
    MADV_POPULATE_READ and MADV_POPULATE_WRITE, Linux 5.14).

    Args:
        memory: A part of a writable mapping.
        writing: Make the pages ready to be written; False is returned if they cannot be, as where the disk
            is full.
    """
    libc = _libc()
    if libc is None or not len(memory):
        return True
    address = address_of(memory)
    begin = address - address % _PAGE
    pages = ctypes.c_size_t(address + len(memory) - begin)
    advice = _POPULATE_WRITE if writing else _POPULATE_READ
    failed = libc.madvise(ctypes.c_void_p(begin), pages, advice)
    return not failed or ctypes.get_errno() != errno.EFAULT


def release(memory: memoryview) -> None:
    """Have pages of a mapped file count as memory of this process no longer (madvise(2), MADV_DONTNEED).

    They are fetched again when they are touched. What was written to them stays in the file, if the mapping
    is shared; otherwise it is lost.

    Args:
        memory: A part of a writable mapping.
    """
    libc = _libc()
    if libc is None or not len(memory):
        return
    address = address_of(memory)
    begin = address - address % _PAGE
    libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(address + len(memory) - begin), _DONTNEED)


def address_of(memory: memoryview) -> int:
    """Where writable memory begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def copy_memory(target: int, nbytes: int, vectors: int, count: int) -> int:
    """Copy pieces of this process's memory to one place in it; how many bytes were copied, -1 for none.

    Memory that cannot be read or written, such as pages of a mapped file that was truncated, ends it early;
    to touch them would end this process (process_vm_readv(2), Linux).

    Args:
        target: The address of the place.
        nbytes: Its size; as much as the pieces have.
        vectors: The address of an array of ``struct iovec``.
        count: Its length; at most 1,024.
    """
    libc = _libc()
    if libc is None or not hasattr(libc, "process_vm_readv"):
        return -1
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    place = (ctypes.c_size_t * 2)(target, nbytes)
    one, number, flags = ctypes.c_ulong(1), ctypes.c_ulong(count), ctypes.c_ulong(0)
    copied: int = libc.process_vm_readv(
        os.getpid(), place, one, ctypes.c_void_p(vectors), number, flags
    )
    return copied


def read_vectors(descriptor: int, vectors: int, count: int, offset: int) -> int:
    """Read from `offset` of a file on into pieces of memory; how many bytes were read, -1 for none.

    Args:
        descriptor: The file.
        vectors: The address of an array of ``struct iovec``.
        count: Its length.
        offset: Where in the file to begin (preadv(2)).
    """
    libc = _libc()
    if libc is None or sys.maxsize < 1 << 32:
        return -1
    libc.preadv.restype = ctypes.c_ssize_t
    place = ctypes.c_int64(offset)
    count_read: int = libc.preadv(descriptor, ctypes.c_void_p(vectors), count, place)
    return count_read


def write_vectors(descriptor: int, vectors: int, count: int) -> int:
    """Write pieces of memory at the beginning of a file; how many bytes were written, -1 for none.

    Memory that cannot be read, such as pages that a mapped file lost, ends it early (pwritev(2)).

    Args:
        descriptor: The file.
        vectors: The address of an array of ``struct iovec``.
        count: Its length.
    """
    libc = _libc()
    if libc is None:
        return -1
    libc.pwritev.restype = ctypes.c_ssize_t
    written: int = libc.pwritev(descriptor, ctypes.c_void_p(vectors), count, ctypes.c_long(0))
    return written
