"""Ways to read from a server, each run in a process of its own by `benchmarks/remote.py`.

    python remote_ways.py WAY URL KEY MEMORY

Prints seconds and the number of bytes or tensors. Before the clock runs, everything is imported (a tiny
signed file is loaded), and the process has used, and given back, as much memory as the way will: on a
virtual machine the first touch of memory that the host has taken away costs more than the transfer.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE = 8 << 20


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

    def read() -> int:
        base, _, name = url.rpartition("/")
        store = HTTPStore(base, client_options={"allow_http": True})
        size = obstore.head(store, name)["size"]
        target = memoryview(bytearray(size))

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
    data = bytes(512 << 20)

    def read() -> int:
        hashlib.sha256(data)
        return len(data)

    return read


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


def _touch(nbytes: int) -> None:
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        pages.madvise(mmap.MADV_HUGEPAGE)
        for begin in range(0, nbytes, mmap.PAGESIZE):
            pages[begin] = 1


WAYS = {
    each.__name__.replace("_", "-"): each
    for each in (
        ours, verified, obstore, fsspec, sha256, s3, runai, headers, headers_fsspec, hub, hub_fsspec,
        row,
    )
}  # fmt: skip


def main() -> None:
    way, url, key, nbytes = sys.argv[1:]
    read = WAYS[way](url, key)
    _touch(max(int(nbytes), 1 << 20))
    began = time.perf_counter()
    size = read()
    print(json.dumps([time.perf_counter() - began, size]))


if __name__ == "__main__":
    main()
