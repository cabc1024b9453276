"""Ways to read from a server, run in processes of their own by `benchmarks/remote.py`.

    python remote_ways.py WAY URL KEY

Reads once for each line of standard input, and prints a sample: seconds, processor seconds of this process,
and the number of bytes or tensors, as a JSON list. Before the clock runs, everything is imported (a tiny
signed file is loaded).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import socket
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE = 8 << 20
BLOCK = 256 << 10


def ours(url: str, key: str) -> Callable[[], int]:  # noqa: ARG001
    from safeweights.storage import open_source

    _load_tiny()

    def read() -> int:
        source = open_source(url)
        return len(source.view(0, source.size))

    return read


def verified(url: str, key: str) -> Callable[[], int]:
    import safeweights.numpy

    _load_tiny()
    return lambda: _nbytes(safeweights.numpy.load_file(url, trust=key))


def obstore(url: str, key: str) -> Callable[[], int]:  # noqa: ARG001
    import obstore
    from obstore.store import HTTPStore

    targets: dict[int, memoryview] = {}

    def read() -> int:
        base, _, name = url.rpartition("/")
        store = HTTPStore(base, client_options={"allow_http": True})
        size = obstore.head(store, name)["size"]
        target = targets.setdefault(size, memoryview(bytearray(size)))

        def one(begin: int) -> None:
            end = min(begin + PIECE, size)
            target[begin:end] = memoryview(obstore.get_range(store, name, start=begin, end=end))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(0, size, PIECE)))
        return size

    return read


def fsspec(url: str, key: str) -> Callable[[], int]:  # noqa: ARG001
    import aiohttp  # noqa: F401 - which fsspec imports when it opens
    import fsspec

    def read() -> int:
        with fsspec.open(url, block_size=PIECE) as file:
            return len(file.read())

    return read


def sha256(url: str, key: str) -> Callable[[], int]:  # noqa: ARG001
    data = _memory(512 << 20)

    def read() -> int:
        hashlib.sha256(data)
        return len(data)

    return read


def limit(url: str, key: str) -> Callable[[], int]:  # noqa: ARG001
    """What the machine needs to receive and to hash: plain sockets, nothing checked.

    As many threads and bytes a request as the package uses, into memory that was used before; each range
    is received by one recv(2), and hashed in blocks of 256 KiB by the thread that received it.
    """
    found = urlsplit(url)
    assert found.hostname is not None
    address = (found.hostname, found.port or 80)
    with socket.create_connection(address) as connection:
        size = _range_of(connection, found.path, 0, 1)
        connection.recv(1)
    target = _memory(size)

    def read() -> int:
        starts = deque(range(0, size, PIECE))

        def share() -> None:
            with socket.create_connection(address) as connection:
                while starts:
                    try:
                        begin = starts.popleft()
                    except IndexError:
                        return
                    part = target[begin : begin + PIECE]
                    _range_of(connection, found.path, begin, len(part))
                    assert connection.recv_into(part, 0, socket.MSG_WAITALL) == len(part)
                    for low in range(0, len(part), BLOCK):
                        hashlib.sha256(part[low : low + BLOCK]).digest()

        with ThreadPoolExecutor(8) as pool:
            for each in [pool.submit(share) for _ in range(8)]:
                each.result()
        return size

    return read


def _range_of(connection: socket.socket, path: str, begin: int, length: int) -> int:
    """Ask for a range, and read up to its first byte; returns the size of the file."""
    wanted = f"GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes={begin}-{begin + length - 1}\r\n\r\n"
    connection.sendall(wanted.encode())
    while True:
        head = connection.recv(4096, socket.MSG_PEEK).partition(b"\r\n\r\n")
        if head[1]:
            connection.recv(len(head[0]) + 4)
            found = re.search(rb"bytes [0-9]+-[0-9]+/([0-9]+)", head[0])
            assert found is not None
            return int(found[1])


def s3(url: str, key: str) -> Callable[[], int]:  # noqa: ARG001
    _s3_at(url)
    import obstore  # noqa: F401 - imported when a bucket is opened

    import safeweights.storage.remote.buckets
    import safeweights.torch

    _load_tiny()
    return lambda: _nbytes(safeweights.torch.load_file("s3://m/model.safetensors"))


def runai(url: str, key: str) -> Callable[[], int]:  # noqa: ARG001
    """Run:ai's streamer; tensors are views of its buffer, and not kept."""
    _s3_at(url)
    from runai_model_streamer import SafetensorsStreamer

    def read() -> int:
        with SafetensorsStreamer() as streamer:
            streamer.stream_file("s3://m/model.safetensors")
            return sum(tensor.nbytes for _, tensor in streamer.get_tensors())

    return read


def headers(url: str, key: str) -> Callable[[], int]:  # noqa: ARG001
    import safeweights

    _load_tiny()
    return lambda: len(safeweights.open(url))


def headers_fsspec(url: str, key: str) -> Callable[[], int]:  # noqa: ARG001
    import aiohttp  # noqa: F401
    import fsspec

    return lambda: _header_entries(lambda name: fsspec.open(url + name))


def hub(url: str, key: str) -> Callable[[], int]:
    os.environ |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
    import huggingface_hub

    huggingface_hub.HfApi  # noqa: B018 - imported on first use
    return headers("hf://org/model", key)


def hub_fsspec(url: str, key: str) -> Callable[[], int]:  # noqa: ARG001
    os.environ |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
    from huggingface_hub import HfFileSystem

    def read() -> int:
        files = HfFileSystem()
        return _header_entries(lambda name: files.open(f"org/model/{name}"))

    return read


def row(url: str, key: str) -> Callable[[], int]:  # noqa: ARG001
    """One row of a tensor in the middle of a file; bytes of it."""
    import safeweights.numpy

    _load_tiny()

    def read() -> int:
        with safeweights.safe_open(url, "np") as file:
            return int(file.get_slice("t32")[101].nbytes)

    return read


def _header_entries(opened: Callable[[str], Any]) -> int:
    """Entries in all headers of a model, read as the reference does it: length, then header."""
    with opened("model.safetensors.index.json") as file:
        names = sorted(set(json.load(file)["weight_map"].values()))
    found = 0
    for name in names:
        with opened(name) as file:
            found += len(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
    return found


def _nbytes(tensors: dict[str, Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _s3_at(url: str) -> None:
    """A server that serves files path-style, and looks at no signature."""
    os.environ |= {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "RUNAI_STREAMER_S3_ENDPOINT": url, "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        "RUNAI_STREAMER_CONCURRENCY": "8",
    }  # fmt: skip


def _load_tiny() -> None:
    """Load a tiny signed file, so that all modules are there."""
    import numpy as np

    import safeweights.conversion.opening
    import safeweights.numpy
    import safeweights.storage.remote.web
    from safeweights import trust

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "m")
        model.mkdir()
        safeweights.numpy.save_file({"a": np.zeros(3)}, model / "model.safetensors")
        trust.generate_key(f"{folder}/key")
        trust.sign(str(model), trust.load_private_key(f"{folder}/key"))
        safeweights.numpy.load_file(model / "model.safetensors", trust=f"{folder}/key.pub")


def _memory(nbytes: int) -> memoryview:
    """Memory in huge pages, touched, of random content."""
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    some = os.urandom(1 << 20)
    for begin in range(0, nbytes, len(some)):
        pages[begin : begin + len(some)] = some[: nbytes - begin]
    return memoryview(pages)


WAYS = {
    each.__name__.replace("_", "-"): each
    for each in (
        ours, verified, obstore, fsspec, sha256, limit, s3, runai, headers, headers_fsspec, hub, hub_fsspec,
        row,
    )
}  # fmt: skip


def main() -> None:
    name, url, key = sys.argv[1:]
    read = WAYS[name](url, key)
    for _ in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        size = read()
        sample = time.perf_counter() - began, time.process_time() - used, size
        print(json.dumps(sample), flush=True)


if __name__ == "__main__":
    main()
