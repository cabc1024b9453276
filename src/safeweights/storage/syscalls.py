"""Where the bytes of a file are, and will be: page cache, local disk, network; space set aside.

Used to choose how to read and write, never to decide what; where the system gives no answer, the answer
is None. These are the system calls for which Python's standard library has no name.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from functools import cache
from typing import Any, Final

__all__ = [
    "is_remote",
    "map_untracked",
    "populate",
    "prefer_huge_pages",
    "reserve",
    "resident_share",
]

_CACHESTAT: Final = 451  # the same number on every architecture since it is newer than their tables
_KEEP_SIZE: Final = 1
_HUGEPAGE: Final = 14  # MADV_HUGEPAGE
_POPULATE_READ: Final = 22  # MADV_POPULATE_READ
_FAILED: Final = ctypes.c_void_p(-1).value  # MAP_FAILED
_IN_PLACE: Final = 0x10  # MAP_FIXED
_HUGE: Final = 1 << 21
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
"""f_type of filesystems across a network or in user space (statfs(2), linux/magic.h)."""


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Cachestat(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def resident_share(descriptor: int, offset: int, length: int) -> float | None:
    """The share, 0 to 1, of a file's bytes that are in the page cache; None where unknown.

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
    libc = _libc()
    if libc is None:
        return None
    status = (ctypes.c_long * 64)()  # struct statfs; f_type comes first on every Linux but s390
    if libc.fstatfs(descriptor, ctypes.byref(status)):
        return None
    return (status[0] & 0xFFFFFFFF) in _REMOTE


def reserve(descriptor: int, nbytes: int) -> bool:
    """Have disk space set aside for a file that is about to be written; whether that was done.

    Writing into blocks that are there already is faster, they lie together, and a full disk shows before
    anything was written. The size of the file does not change (fallocate(2), FALLOC_FL_KEEP_SIZE).

    Raises:
        OSError: There is not enough space, or a quota or limit forbids it.
    """
    libc = _libc()
    if libc is None or sys.maxsize < 1 << 32:
        return False
    if libc.fallocate(descriptor, _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(nbytes)) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        raise OSError(code, os.strerror(code))
    return False


def prefer_huge_pages(address: int, nbytes: int) -> None:
    """Ask for huge pages under memory that was not touched yet (madvise(2), MADV_HUGEPAGE); a hint."""
    libc = _libc()
    if libc is None:
        return
    begin, end = address + -address % _PAGE, address + nbytes - (address + nbytes) % _PAGE
    if begin < end:
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _HUGEPAGE)


def map_untracked(
    descriptor: int, status: os.stat_result, *, protection: int, flags: int
) -> memoryview | None:
    """A mapping of a file that holds no descriptor of its own; None where that cannot be had.

    What ``trackfd=False`` gives from Python 3.13 on: a mapping of memory does without, so the file is
    mapped in its place. It begins where a huge page may, as it would if the system chose: what lies in
    the page cache in large pieces is then mapped by the piece, ten times as fast.

    Raises:
        OSError, ValueError: There is no room for it.
    """
    libc = _libc()
    if libc is None or sys.maxsize < 1 << 32:
        return None
    libc.mmap.restype = ctypes.c_void_p
    size = status.st_size
    offset, length = ctypes.c_int64(0), ctypes.c_size_t(size)
    if status.st_dev not in _mappable:
        tried = libc.mmap(None, length, protection, flags, descriptor, offset)
        if tried is None or tried == _FAILED:  # a filesystem that cannot
            return None
        libc.munmap(ctypes.c_void_p(tried), length)
        _mappable.add(status.st_dev)
    spare = _HUGE if size >= _HUGE else 0
    pages = mmap.mmap(-1, size + spare, flags=flags | mmap.MAP_ANONYMOUS, prot=protection)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    begin = -address % _HUGE if spare else 0
    place = address + begin
    found = libc.mmap(
        ctypes.c_void_p(place), length, protection, flags | _IN_PLACE, descriptor, offset
    )
    if found == place:
        return memoryview(pages)[begin : begin + size]
    _abandoned.append(pages)
    return None


_mappable: Final[set[int]] = set()
"""Devices whose files can be mapped, so that putting one in place will not fail half-way."""

_abandoned: Final[list[mmap.mmap]] = []
"""Pages of which a failed call may have unmapped some: they are never given back, others may be there."""


def populate(memory: memoryview) -> bool:
    """Have the pages of a mapped file read now, all of them; whether they are all there.

    Without it every page is read when it is first touched. Where the system cannot be asked the answer
    is True, and that is how they will be read (madvise(2), MADV_POPULATE_READ, Linux 5.14).

    Args:
        memory: A part of a writable mapping.
    """
    libc = _libc()
    if libc is None or not len(memory):
        return True
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    begin = address - address % _PAGE
    pages = ctypes.c_size_t(address + len(memory) - begin)
    failed = libc.madvise(ctypes.c_void_p(begin), pages, _POPULATE_READ)
    return not failed or ctypes.get_errno() != errno.EFAULT
