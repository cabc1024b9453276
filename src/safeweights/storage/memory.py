"""Memory for what is read, copied and joined; several threads fill it.

What makes loads into new memory slow is its first touch, page by page. So large buffers are in huge pages,
and are reused when no array refers to them any more (`buffer_pool`). System calls and large copies release
the interpreter's lock, so that a few threads fill one buffer together (`parallel`): twice as fast on two
cores, more on cold disks and networks.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from . import buffer_pool
from .parallel import CHUNK, in_parallel
from .syscalls import keep_secret, prefer_huge_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "PAGE",
    "allocate",
    "allocate_like",
    "allocate_secret",
    "blank_bytes",
    "copied",
    "joined",
    "touch",
]


_LARGE: Final = 1 << 20
_PARALLEL: Final = 1 << 24
PAGE: Final = 4096
"""Block of direct I/O, in bytes; the pages of the system may be larger."""
_LINE: Final = 64
"""Cache line, in bytes."""
_WORD: Final = 8
"""Widest element for which libraries need alignment, in bytes; data sections of files begin at one."""


def allocate(nbytes: int) -> memoryview:
    """Writable memory of `nbytes`; if that is 1 MiB or more, it begins at a page.

    Its contents are undefined, and may be those of another file: the caller must fill all that it hands on.
    """
    if nbytes < _LARGE:
        return memoryview(bytearray(nbytes))
    recycled = buffer_pool.borrow(nbytes)
    if recycled is not None:
        return recycled
    import numpy as np  # here, so that `import safeweights` does not load it

    memory = np.empty(nbytes + PAGE, np.uint8)
    begin = -memory.ctypes.data % PAGE
    return memory[begin : begin + nbytes].data


def allocate_like(offset: int, nbytes: int) -> memoryview:
    """The same, but it begins within a cache line where byte `offset` of a file does.

    Copies out of the page cache take up to a fifth less time then: 256 MiB on an AMD EPYC of two cores
    16.7 ms instead of 20.5. Where `offset` is no multiple of 8, it begins at a page, so that elements are
    aligned.
    """
    shift = offset % _LINE
    if nbytes < _LARGE or shift % _WORD:
        return allocate(nbytes)
    return allocate(shift + nbytes)[shift:]


def allocate_secret(nbytes: int) -> memoryview:
    """Writable memory for what must not reach a disk: not swapped, and not part of a core dump.

    Where the system does not allow that (Linux: RLIMIT_MEMLOCK, 8 MiB for most users) it is memory like any
    other. The caller must fill all that it hands on.
    """
    if nbytes < _LARGE:
        return memoryview(bytearray(nbytes))
    recycled = buffer_pool.borrow(nbytes, secret=True)
    if recycled is not None:
        return recycled
    # By default an anonymous mapping is shared with processes that are forked later.
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    pages = mmap.mmap(-1, nbytes, **({"flags": private} if private else {}))
    memory = memoryview(pages)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    prefer_huge_pages(address, nbytes)
    keep_secret(address, nbytes)
    return memory


def copied(data: memoryview) -> memoryview:
    """A copy of `data`, a flat view of bytes, in memory of its own."""
    target = allocate(len(data))
    if len(data) < _LARGE:
        target[:] = data
        return target
    import numpy as np

    into, source = np.frombuffer(target, np.uint8), np.frombuffer(data, np.uint8)
    in_parallel(lambda begin, end: np.copyto(into[begin:end], source[begin:end]), len(data))
    return target


def touch(memory: memoryview) -> None:
    """Read a byte of each page of `memory`, which is flat and begins at one; other threads may run.

    For what a disk has written, and no processor has used yet. In a virtual machine its first use may be a
    fault that the host handles, page by page: after a load of 2 GiB these took 85 to 200 ms. A thread that
    waits for a disk most of the time has them meanwhile.

    Cost: 14 ms for 2 GiB without such faults.
    """
    import numpy as np

    np.frombuffer(memory, np.uint8)[::PAGE].max(initial=0)


def joined(buffers: Iterable[bytes | bytearray | memoryview], nbytes: int) -> bytes:
    """The buffers (flat, of bytes, `nbytes` in all) concatenated; one copy.

    Large results are in huge pages, which several threads fill before the object is handed out: five times
    as fast as ``b"".join``, which spends most of its time on the first touch of small pages.

    Raises:
        ValueError: The buffers have more or fewer bytes than `nbytes`.
    """
    pieces = [buffer for buffer in buffers if len(buffer)]
    if sum(map(len, pieces)) != nbytes:
        raise ValueError(f"the buffers have {sum(map(len, pieces))} bytes together, not {nbytes}")
    blank = blank_bytes(nbytes) if nbytes >= _PARALLEL else None
    if blank is None:
        return b"".join(pieces)
    import numpy as np

    result, memory = blank
    target = np.frombuffer(memory, np.uint8)
    batches: list[list[tuple[int, memoryview]]] = [[]]
    position, size = 0, 0
    for piece in pieces:
        if size >= CHUNK:
            batches.append([])
            size = 0
        batches[-1].append((position, memoryview(piece)))
        position += len(piece)
        size += len(piece)

    def fill(first: int, end: int) -> None:
        for begin, piece in (item for batch in batches[first:end] for item in batch):
            np.copyto(target[begin : begin + len(piece)], np.frombuffer(piece, np.uint8))

    in_parallel(fill, len(batches), chunk=1)
    return result


def blank_bytes(nbytes: int) -> tuple[bytes, memoryview] | None:
    """A `bytes` object whose contents are undefined, and its writable memory; None outside CPython.

    This is how C extensions make bytes (PyBytes_FromStringAndSize with no string, then write), here in huge
    pages. It saves the copy from a buffer, and the first touch of small pages. The caller must fill the
    memory before it hands out the object, and must not write to it afterwards.
    """
    if sys.implementation.name != "cpython":
        return None
    make, address_of = _bytes_of_the_c_api()
    result: bytes = make(None, nbytes)
    address = address_of(result)
    prefer_huge_pages(address, nbytes)
    memory: Any = (ctypes.c_ubyte * nbytes).from_address(address)
    memory.owner = result  # the memory keeps the object alive
    return result, memoryview(memory).cast("B")


@cache
def _bytes_of_the_c_api() -> tuple[Callable[..., bytes], Callable[[bytes], int]]:
    api = ctypes.pythonapi
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)
    address_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)
    return make(("PyBytes_FromStringAndSize", api)), address_of(("PyBytes_AsString", api))
