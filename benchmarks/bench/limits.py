"""What the machine itself can do: each row's limit, measured in the same run as its contenders.

Each function prepares and returns what is to be timed. They do the least that any implementation has
to: the system's calls, on buffers that are large, aligned and already touched, with as many threads as
help. Nothing here uses the package that is measured.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import mmap
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .data import CHANGES, MIB, changed, header_of, synced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["LIMITS", "index_of", "touch"]

_CHUNK: Final = 8 * MIB
_PAGE: Final = 4096
_SEALED_CHUNK: Final = 1 << 16

Arguments = "Mapping[str, Any]"
Run = "Callable[[], object]"


def touch(memory: np.ndarray[Any, Any]) -> int:
    """Read one byte of every page of some flat memory."""
    return int(memory[::_PAGE].sum())


def _anonymous(nbytes: int, *, touched: bool) -> np.ndarray[Any, Any]:
    """Private memory in huge pages where the system has them, which is what makes first touch cheap."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    if touched:
        array[::_PAGE] = 1
    return array


def _random_block() -> np.ndarray[Any, Any]:
    """What to write: 64 MiB that no disk can compress or leave out."""
    memory = _anonymous(64 * MIB, touched=False)
    memory[:] = np.random.Generator(np.random.SFC64(1)).integers(0, 256, len(memory), np.uint8)
    return memory


def _threaded(work: Callable[[int, int], object], total: int, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, total, _CHUNK)
        list(pool.map(lambda begin: work(begin, min(begin + _CHUNK, total)), starts))


def _processors() -> int:
    return max(1, min(16, os.cpu_count() or 1))


def _round_up(nbytes: int) -> int:
    return -(-nbytes // _PAGE) * _PAGE


def _read(descriptor: int, view: memoryview, begin: int, end: int) -> int:
    """Fill a part of the memory with that of the file; where it ends, at the end of the file or before."""
    while begin < end:
        count = os.preadv(descriptor, [view[begin:end]], begin)
        if count == 0:
            break
        begin += count
    return begin


def _read_all(descriptor: int, memory: np.ndarray[Any, Any], threads: int) -> None:
    _threaded(partial(_read, descriptor, memoryview(memory)), len(memory), threads)


def page_cache_read(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """read(2) of a file in the page cache into memory that was touched before."""
    descriptor = os.open(arguments["path"], os.O_RDONLY)
    memory = _anonymous(os.fstat(descriptor).st_size, touched=True)
    return lambda: _read_all(descriptor, memory, _processors())


def page_cache_read_fresh(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """The same into memory that the system hands out and clears meanwhile."""
    descriptor = os.open(arguments["path"], os.O_RDONLY)
    size = os.fstat(descriptor).st_size
    return lambda: _read_all(descriptor, _anonymous(size, touched=False), _processors())


def direct_read(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """read(2) with O_DIRECT, eight reads of 8 MiB at a time, past the page cache; a byte of every page.

    What it is compared with touches its result, too: what a disk has brought into a virtual machine's
    memory is slow at its first use by a processor.
    """
    descriptor = os.open(arguments["path"], os.O_RDONLY | os.O_DIRECT)
    memory = _anonymous(_round_up(os.fstat(descriptor).st_size), touched=True)
    view = memoryview(memory)

    def work(begin: int, end: int) -> None:
        touch(memory[begin : _read(descriptor, view, begin, end)])

    return lambda: _threaded(work, len(memory), 8)


def map_and_touch(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """mmap(2) of a file in the page cache, and a byte of every page."""

    def run() -> int:
        with open(arguments["path"], "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        return touch(np.frombuffer(mapped, np.uint8))

    return run


def copy(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """memcpy between two pieces of memory that were touched before."""
    source = _anonymous(arguments["nbytes"], touched=True)
    target = _anonymous(arguments["nbytes"], touched=True)

    def work(begin: int, end: int) -> None:
        np.copyto(target[begin:end], source[begin:end])

    return lambda: _threaded(work, len(source), _processors())


def copy_fresh(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """memcpy into memory that the system hands out and clears meanwhile."""
    source = _anonymous(arguments["nbytes"], touched=True)

    def run() -> object:
        target = _anonymous(len(source), touched=False)

        def work(begin: int, end: int) -> None:
            np.copyto(target[begin:end], source[begin:end])

        _threaded(work, len(source), _processors())
        return target

    return run


def page_cache_write(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """write(2) of 64 MiB at a time into a new file's pages in the cache."""
    block = memoryview(_random_block())

    def run() -> None:
        descriptor = os.open(arguments["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            rest = arguments["nbytes"]
            while rest:
                rest -= os.write(descriptor, block[: min(len(block), rest)])
        finally:
            os.close(descriptor)

    return run


def direct_write(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """write(2) with O_DIRECT, eight writes of 8 MiB at a time; fsync(2) of file and directory."""
    block = memoryview(_random_block())
    total = _round_up(arguments["nbytes"])

    def work(descriptor: int, begin: int, end: int) -> None:
        source = begin % len(block)
        while begin < end:
            count = os.pwrite(descriptor, block[source : source + end - begin], begin)
            begin, source = begin + count, source + count

    def run() -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT
        descriptor = os.open(arguments["out"], flags, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, total)
            _threaded(partial(work, descriptor), total, 8)
        finally:
            os.close(descriptor)
        synced(arguments["out"])

    return run


def _without_gc(work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        gc.disable()
        try:
            return work()
        finally:
            gc.enable()

    return run


def parse_json(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """Read the header and hand it to the standard library's json, the collector paused."""
    return _without_gc(lambda: len(header_text(arguments["path"])))


def header_text(path: str) -> dict[str, Any]:
    with open(path, "rb", buffering=0) as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def parse_and_make(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """json.loads of the header, and one torch tensor made of one finished array for each entry."""
    import torch

    array = np.zeros((8, 8), np.float32)
    path = arguments["path"]
    return _without_gc(lambda: {name: torch.from_numpy(array) for name in header_text(path)})


def walk_and_write(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """Ask each tensor for its type, shape and address; write a finished file of that size."""
    from .data import read_tensors

    tensors = read_tensors(arguments["path"])
    content = bytes(os.path.getsize(arguments["path"]))

    def work() -> object:
        met = [(name, t.dtype, t.shape, t.data_ptr()) for name, t in tensors.items()]
        with open(arguments["out"], "wb", buffering=0) as file:
            file.write(content)
        return len(met)

    return _without_gc(work)


def gather(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """Copy the selected elements from a mapping that is already faulted in."""
    ((_, dtype, shape, begin, _),), start = header_of(arguments["path"])
    mapped = np.memmap(
        arguments["path"], f"<u{4 if dtype == 'F32' else 2}", "r", start + begin, shape
    )
    touch(mapped.view(np.uint8).reshape(-1))
    chosen = mapped[index_of(arguments["index"])]
    target = np.ones(chosen.shape, chosen.dtype)
    return lambda: np.copyto(target, chosen)


def cipher(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """ChaCha20-Poly1305 of the package cryptography over chunks of 64 KiB, in touched memory."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    chunks = -(-arguments["nbytes"] // _SEALED_CHUNK)
    plain = memoryview(_anonymous(chunks * _SEALED_CHUNK, touched=True))
    sealed = memoryview(_anonymous(chunks * (_SEALED_CHUNK + 16), touched=True))
    aead = ChaCha20Poly1305(bytes(32))

    def parts(index: int) -> tuple[bytes, memoryview, memoryview]:
        chunk = plain[index * _SEALED_CHUNK :][:_SEALED_CHUNK]
        return (
            index.to_bytes(12, "big"),
            chunk,
            sealed[index * (_SEALED_CHUNK + 16) :][: len(chunk) + 16],
        )

    def decrypt(begin: int, end: int) -> None:
        for index in range(begin // _SEALED_CHUNK, end // _SEALED_CHUNK):
            nonce, chunk, text = parts(index)
            aead.decrypt_into(nonce, text, None, chunk)

    for index in range(chunks):
        nonce, chunk, text = parts(index)
        aead.encrypt_into(nonce, chunk, None, text)
    return lambda: _threaded(decrypt, len(plain), _processors())


def read_and_decrypt(
    arguments: Mapping[str, Any], digest: Callable[[memoryview], object] | None = None
) -> Callable[[], object]:
    """read(2) of a file in the page cache, four chunks at a time, and the cipher over them."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    step, sealed_step = _SEALED_CHUNK, _SEALED_CHUNK + 16
    chunks = -(-arguments["nbytes"] // step)
    plain = memoryview(_anonymous(chunks * step, touched=True))
    aead, path = ChaCha20Poly1305(bytes(32)), f"{arguments['beside']}/sealed"
    with open(path, "wb") as file:
        for index in range(chunks):
            chunk = plain[index * step :][:step]
            file.write(aead.encrypt(index.to_bytes(12, "big"), chunk, None))
    descriptor = os.open(path, os.O_RDONLY)

    def work(begin: int, end: int) -> None:
        memory = memoryview(bytearray(4 * sealed_step))
        for first in range(begin // step, end // step, 4):
            found = memory[: os.preadv(descriptor, [memory], first * sealed_step)]
            if digest is not None:
                digest(found)
            for index in range(first, min(first + 4, end // step)):
                text = found[(index - first) * sealed_step :][:sealed_step]
                into = plain[index * step :][:step]
                aead.decrypt_into(index.to_bytes(12, "big"), text, None, into)

    return lambda: _threaded(work, len(plain), _processors())


def read_hash_and_decrypt(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """The same with SHA-256 of what was read, before it is decrypted."""
    return read_and_decrypt(arguments, lambda found: hashlib.sha256(found).digest())


def hash_memory(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """SHA-256 of touched memory, piece by piece in as many threads as there are processors."""
    memory = _anonymous(arguments["nbytes"], touched=True)

    def digest(begin: int, end: int) -> None:
        hashlib.sha256(memory[begin:end]).digest()

    return lambda: _threaded(digest, len(memory), _processors())


def cipher_and_hash(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """The cipher, then SHA-256 of as many bytes, in as many threads."""
    decrypt, digest = cipher(arguments), hash_memory(arguments)

    def run() -> None:
        decrypt()
        digest()

    return run


def cipher_and_write(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """The cipher, then write(2) of as many bytes into the page cache."""
    decrypt, write = cipher(arguments), page_cache_write(arguments)

    def run() -> None:
        decrypt()
        write()

    return run


def apply_frames(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """What changed is decompressed, combined with the old bytes, hashed and written, tensor by tensor.

    With zstd, pread(2), XOR, SHA-256 and pwrite(2), in as many threads as there are processors. The frames
    are those of a delta; names, headers and the digests to compare with are not read.
    """
    import zstandard

    path = arguments["path"]
    found, start = header_of(path)
    new = changed(path, f"{arguments['beside']}/new.safetensors", every=CHANGES)
    apart = np.memmap(path, np.uint8, "r") ^ np.memmap(new, np.uint8, "r")
    compressor = zstandard.ZstdCompressor(level=1)
    frames = [
        (start + begin, compressor.compress(apart[start + begin : start + end].data), end - begin)
        for *_, begin, end in found
    ]
    size, largest = len(apart), max(nbytes for *_, nbytes in frames)
    del apart
    benches = deque(
        (
            zstandard.ZstdDecompressor(),
            *(memoryview(_anonymous(largest, touched=True)) for _ in range(2)),
        )
        for _ in range(_processors())
    )

    def work(base: int, descriptor: int, frame: tuple[int, bytes, int]) -> None:
        bench = benches.popleft()
        position, data, nbytes = frame
        target, old = (memory[:nbytes] for memory in bench[1:])
        with bench[0].stream_reader(data) as reader:
            reader.readinto(target)
        os.preadv(base, [old], position)
        values = np.frombuffer(target, np.uint8)
        values ^= np.frombuffer(old, np.uint8)
        hashlib.sha256(target).digest()
        os.pwrite(descriptor, target, position)
        benches.append(bench)

    def run() -> None:
        base = os.open(path, os.O_RDONLY)
        descriptor = os.open(arguments["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            with ThreadPoolExecutor(_processors()) as pool:
                list(pool.map(partial(work, base, descriptor), frames))
        finally:
            os.close(descriptor)
            os.close(base)

    return run


def hash_files(arguments: Mapping[str, Any]) -> Callable[[], object]:
    """Open, read and hash each file of a folder, in one thread; the names are known."""
    walked = os.walk(arguments["path"])
    paths = [os.path.join(folder, name) for folder, _, names in walked for name in names]

    def run() -> None:
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            data = os.read(descriptor, 1 << 20)
            os.close(descriptor)
            hashlib.sha256(data).digest()

    return run


def index_of(text: str) -> tuple[slice, ...]:
    """``"4:8,::2"`` -> (slice(4, 8), slice(None, None, 2))."""
    return tuple(
        slice(*(int(part) if part else None for part in axis.split(":")))
        for axis in text.split(",")
    )


def trim_heap() -> None:
    """Give freed memory back, so that a row does not profit from what the one before it left."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if release is not None:
        release(0)


LIMITS: Final[dict[str, Callable[[Mapping[str, Any]], Callable[[], object]]]] = {
    "page cache read": page_cache_read,
    "page cache read, fresh memory": page_cache_read_fresh,
    "direct read": direct_read,
    "buffered read": page_cache_read,
    "mmap and touch": map_and_touch,
    "memcpy": copy,
    "memcpy, fresh memory": copy_fresh,
    "page cache write": page_cache_write,
    "direct write and fsync": direct_write,
    "json.loads": parse_json,
    "json.loads and from_numpy": parse_and_make,
    "tensors' attributes and one write": walk_and_write,
    "gather from mapped pages": gather,
    "open, read and hash": hash_files,
    "ChaCha20-Poly1305": cipher,
    "SHA-256": hash_memory,
    "zstd, XOR, SHA-256 and page cache write": apply_frames,
    "ChaCha20-Poly1305, then SHA-256": cipher_and_hash,
    "read(2) and ChaCha20-Poly1305": read_and_decrypt,
    "read(2), SHA-256 and ChaCha20-Poly1305": read_hash_and_decrypt,
    "ChaCha20-Poly1305, then page cache write": cipher_and_write,
}
