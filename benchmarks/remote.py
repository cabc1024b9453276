"""Reading from a web server (nginx on the loopback interface): rates beside obstore and fsspec.

    python benchmarks/remote.py [--mib 1024]

Each way is a process of its own, and they take turns; the clock runs from opening the file to the last
byte in memory, without imports. All use 8 MiB pieces: ours and obstore eight at a time, fsspec one, as
it reads. "hash" is the SHA-256 of the same bytes in memory, in one thread, as a verified load of
one file hashes them in blocks beside reading. The model of 60 shards is opened through its index, and its
headers are read as the reference does it over fsspec.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench.marks import Marks

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/remote"))

import servers

import safeweights.numpy
from safeweights import trust

RUNS = 3
WORKER = """
import hashlib, json, sys, time
from concurrent.futures import ThreadPoolExecutor
way, url, key = sys.argv[1:]
PIECE = 8 << 20
if way in {"ours", "verified", "headers"}:
    import safeweights, safeweights.numpy, safeweights.trust
    import safeweights.conversion.opening, safeweights.storage.remote.web
    from safeweights.storage import open_source
elif way == "obstore":
    import obstore
    from obstore.store import HTTPStore
elif way != "hash":
    import fsspec, aiohttp
def read():
    if way == "ours":
        source = open_source(url)
        return len(source.view(0, source.size))
    if way == "verified":
        return sum(each.nbytes for each in safeweights.numpy.load_file(url, trust=key).values())
    if way == "obstore":
        base, _, name = url.rpartition("/")
        store = HTTPStore(base, client_options={"allow_http": True})
        size = obstore.head(store, name)["size"]
        target = memoryview(bytearray(size))
        def one(begin):
            end = min(begin + PIECE, size)
            target[begin:end] = memoryview(obstore.get_range(store, name, start=begin, end=end))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(0, size, PIECE)))
        return size
    if way == "fsspec":
        with fsspec.open(url, block_size=PIECE) as file:
            return len(file.read())
    if way == "headers":
        return len(safeweights.open(url))
    if way == "headers-fsspec":
        with fsspec.open(url + "model.safetensors.index.json") as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
        found = 0
        for name in names:
            with fsspec.open(url + name) as file:
                found += len(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
        return found
    return hashlib.sha256(DATA) and len(DATA)
DATA = bytes(512 << 20) if way == "hash" else b""
began = time.perf_counter()
size = read()
print(json.dumps([time.perf_counter() - began, size]))
"""


def measured(way: str, url: str, key: str) -> tuple[float, int]:
    command = [sys.executable, "-W", "ignore", "-c", WORKER, way, url, key]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, size = json.loads(done.stdout)
    return seconds, size


def make(www: Path, size: int) -> None:
    """A signed file of `size` MiB in ``m``, and a model of 60 shards in ``shards``."""
    (www / "m").mkdir(parents=True)
    arrays = {
        f"t{i}": np.random.default_rng(i).random((size << 20) // 64 // 4, "f4") for i in range(64)
    }
    safeweights.numpy.save_file(arrays, www / "m/model.safetensors")
    trust.generate_key(str(www / "key"))
    trust.sign(str(www / "m"), trust.load_private_key(str(www / "key")))
    (www / "shards").mkdir()
    weight_map = {}
    for number in range(60):
        name = f"model-{number + 1:05}-of-00060.safetensors"
        part = {f"layer.{number}.{i}.weight": np.zeros(4000, "f4") for i in range(12)}
        safeweights.numpy.save_file(part, www / "shards" / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (www / "shards/model.safetensors.index.json").write_text(json.dumps(index))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    size = parser.parse_args().mib
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder).resolve()
        make(root / "www", size)
        key = str(root / "www/key.pub")
        with servers.nginx(root) as url:
            file, shards = f"{url}/m/model.safetensors", f"{url}/shards/"
            ways = [
                ("ours", file), ("obstore", file), ("fsspec", file), ("verified", file), ("hash", file),
                ("headers", shards), ("headers-fsspec", shards),
            ]  # fmt: skip
            found: dict[str, list[tuple[float, int]]] = {way: [] for way, _ in ways}
            for turn in range(RUNS):
                for way, where in ways[turn:] + ways[:turn]:
                    found[way].append(measured(way, where, key))
    marks = Marks("remote")
    rates: dict[str, float] = {}
    print(f"| {size} MiB over http | rate |\n|---|---|")
    for way in ("ours", "obstore", "fsspec", "verified", "hash"):
        rate = statistics.median(nbytes / seconds / 1e6 for seconds, nbytes in found[way])
        rates[way] = rate
        print(f"| {way} | {rate:.0f} MB/s |")
    print("\n| headers of 60 shards | time |\n|---|---|")
    for way in ("headers", "headers-fsspec"):
        print(f"| {way} | {statistics.median(each[0] for each in found[way]) * 1e3:.0f} ms |")
    marks.add("http: rate / obstore", rates["ours"] / rates["obstore"], least=0.9)
    marks.add("http: rate / fsspec", rates["ours"] / rates["fsspec"], least=2.0)
    marks.add("http, verified: rate / not verified", rates["verified"] / rates["ours"], least=0.8)
    ours, theirs = (
        statistics.median(each[0] for each in found[way]) for way in ("headers", "headers-fsspec")
    )
    marks.add("headers of 60 shards over http / fsspec", ours / theirs, most=0.5)
    return marks.close()


if __name__ == "__main__":
    sys.exit(main())
