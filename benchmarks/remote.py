"""Reading from servers on the loopback interface, beside obstore, fsspec, Run:ai and HfFileSystem.

    python benchmarks/remote.py [--mib 1024] [--only http s3 headers row]

The clock runs from opening the file to the last byte in memory, without imports. Each way is a process of
its own (`bench/remote_ways.py`). Those that read a whole file take turns, after one unmeasured run each, so
that each reuses its memory: on a virtual machine the first touch of memory that the host has taken away
costs more than the transfer (0.2 to 1.9 s for 512 MiB). A ratio is the median of the ratios of the turns,
since other programs slow down neighbouring runs alike.

nginx serves one signed file and a model of 60 shards, over http and,
path-style, as a bucket. All use 8 MiB pieces: ours, obstore and Run:ai's streamer eight at a time, fsspec
one, as it reads. "sha256" hashes in memory, in one thread; "limit" receives by plain sockets and hashes, in
eight threads. The Hub is a stand-in whose answers take 50 ms, which also counts requests; it has the shards
on a second server.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from bench.marks import Marks

if TYPE_CHECKING:
    from collections.abc import Callable

    from bad_server import Handler
    from typing_extensions import Self

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/remote"))

import servers
from bad_server import BadServer
from fake_hub import FakeHub

import safeweights.numpy
from safeweights import trust
from safeweights.storage.remote.source import HEAD_SIZE as HEAD

LATENCY = 0.05
WORKER = str(Path(__file__).resolve().parent / "bench" / "remote_ways.py")
FILE = "/m/model.safetensors"


class Way(NamedTuple):
    """One way to read.

    Attributes:
        name: See `bench/remote_ways.py`.
        server: ``"web"`` or ``"hub"``.
        path: After the server's address.
        large: Whether it reads the whole file.
    """

    name: str
    server: str = "web"
    path: str = FILE
    large: bool = True


GROUPS = {
    "http": [*map(Way, ("ours", "obstore", "fsspec", "verified", "sha256", "limit"))],
    "s3": [Way("s3", path=""), Way("runai", path="")],
    "headers": [
        Way("headers", path="/shards/", large=False),
        Way("headers-fsspec", path="/shards/", large=False),
        Way("hub", "hub", "", large=False),
        Way("hub-fsspec", "hub", "", large=False),
    ],
    "row": [Way("row", "counting", FILE, large=False)],
}


class Found(NamedTuple):
    """What one run took.

    Attributes:
        seconds: From opening to the last byte.
        used: Seconds of processors meanwhile, in the process that reads.
        size: Bytes, or tensors.
        requests: That the servers which count them saw, but for what huggingface_hub asks about itself.
        sent: Bytes of the bodies of their answers.
    """

    seconds: float
    used: float
    size: int
    requests: int
    sent: int


class Stage:
    """The servers, and what is measured on them.

    Args:
        root: A folder to be served.
        size: MiB of the signed file.
    """

    def __init__(self, root: Path, size: int) -> None:
        self.size = size << 20
        self._key = str(root / "www/key.pub")
        self._counting = [BadServer(), BadServer(), BadServer()]
        self._open = ExitStack()
        make(root / "www", size)
        self.urls = {"web": self._open.enter_context(servers.nginx(root))}
        counting, hub, cdn = map(self._open.enter_context, self._counting)
        counting.files[FILE.strip("/")] = (root / f"www{FILE}").read_bytes()
        fake = FakeHub(hub, cdn)
        fake.commit("org/model", shards())
        for server in (hub, cdn):
            server.fault = partial(slowly, server.fault)
        self.urls |= {"hub": hub.url, "counting": counting.url}

    def measure(self, ways: list[Way], samples: int) -> dict[str, list[Found]]:
        """The samples of ways, which take turns; with 0, one of each, of its first run."""
        for server in self._counting:
            server.requests.clear()
            server.sent = 0
        found: dict[str, list[Found]] = {way.name: [] for way in ways}
        with ExitStack() as workers:
            reads = [(way.name, self._worker(way, workers)) for way in ways]
            for turn in range(samples + 1):
                for name, read in reads:
                    sample = read()
                    if turn or not samples:
                        found[name].append(sample)
                reads = [*reads[1:], reads[0]]
        return found

    def _worker(self, way: Way, workers: ExitStack) -> Callable[[], Found]:
        """Start the process of a way; what is returned reads once."""
        url = self.urls[way.server] + way.path
        command = [sys.executable, "-W", "ignore", WORKER, way.name, url, self._key]
        process = workers.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )

        def read() -> Found:
            assert process.stdin is not None
            assert process.stdout is not None
            print(file=process.stdin, flush=True)
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{way.name} failed")
            asked = [path for each in self._counting for _, path, _ in each.requests]
            requests = sum(not path.startswith("/api/agent") for path in asked)
            sent = sum(each.sent for each in self._counting)
            return Found(*json.loads(line), requests, sent)

        return read

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def slowly(answer: Callable[[Handler, int], bool], handler: Handler, number: int) -> bool:
    time.sleep(LATENCY)
    return answer(handler, number)


def shards() -> dict[str, bytes]:
    """A model of 60 shards and 720 tensors."""
    weight_map: dict[str, str] = {}
    files = {}
    for number in range(60):
        name = f"model-{number + 1:05}-of-00060.safetensors"
        part = {f"layer.{number}.{i}.weight": np.zeros(4000, "f4") for i in range(12)}
        files[name] = safeweights.numpy.save(part)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    return {**files, "model.safetensors.index.json": json.dumps(index).encode()}


def make(www: Path, size: int) -> None:
    """A signed file of `size` MiB in ``m``, and a model of 60 shards in ``shards``."""
    (www / "m").mkdir(parents=True)
    rows = (size << 20) // 64 // 4 // 256
    arrays = {f"t{i}": np.random.default_rng(i).random((rows, 256), "f4") for i in range(64)}
    safeweights.numpy.save_file(arrays, www / FILE.strip("/"))
    trust.generate_key(str(www / "key"))
    trust.sign(str(www / "m"), trust.load_private_key(str(www / "key")))
    (www / "shards").mkdir()
    for name, data in shards().items():
        (www / "shards" / name).write_bytes(data)


def missing() -> set[str]:
    """Peers that are not installed."""
    packages = {
        "runai": "runai_model_streamer_s3",
        "obstore": "obstore",
        "hub-fsspec": "huggingface_hub",
    }
    return {way for way, package in packages.items() if find_spec(package) is None}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--runs", type=int, default=3, help="runs of each way")
    parser.add_argument("--only", nargs="+", choices=[*GROUPS], default=[*GROUPS])
    given = parser.parse_args()
    left_out = missing()
    groups = [[way for way in GROUPS[group] if way.name not in left_out] for group in given.only]
    ways = [way for group in groups for way in group]
    found: dict[str, list[Found]] = {way.name: [] for way in ways}
    with (
        tempfile.TemporaryDirectory(dir=".") as folder,
        Stage(Path(folder).resolve(), given.mib) as stage,
    ):
        for group in groups:
            if group[0].large:
                found |= stage.measure(group, given.runs)
                continue
            for _ in range(given.runs):
                for way in group:
                    found[way.name] += stage.measure([way], 0)[way.name]
    for name in sorted(left_out):
        print(f"{name}: not installed, left out")
    print(
        f"| {given.mib} MiB, median of {given.runs} | rate or time | processors | requests counted "
        "| bytes sent |"
    )
    print("|---|---|---|---|---|")
    for way in ways:
        runs = found[way.name]
        seconds = statistics.median(each.seconds for each in runs)
        shown = (
            f"{runs[0].size / seconds / 1e6:.0f} MB/s" if way.large else f"{seconds * 1e3:.0f} ms"
        )
        counted = [f"{runs[0].requests}", f"{runs[0].sent:,}"] if runs[0].requests else ["", ""]
        used = statistics.median(each.used for each in runs)
        print(f"| {way.name} | {shown} | {used * 1e3:.0f} ms | {' | '.join(counted)} |")
    return judged(found).close()


def judged(found: dict[str, list[Found]]) -> Marks:
    """The figures, with what they are to reach."""
    marks = Marks("remote")

    def time_to(way: str, *others: str) -> float:
        """The time of a way, relative to the slowest of others, in the same turn."""
        turns = zip(*(found[each] for each in (way, *others)), strict=True)
        return statistics.median(
            one.seconds / one.size / max(each.seconds / each.size for each in rest)
            for one, *rest in turns
        )

    if {"ours", "obstore"} <= {*found}:
        marks.add("http: rate / obstore", 1 / time_to("ours", "obstore"), least=0.9)
    if "ours" in found:
        marks.add("http: rate / fsspec", 1 / time_to("ours", "fsspec"), least=2.0)
        bound = 1 / time_to("limit", "ours", "sha256")
        marks.add(
            "http, verified: rate / min(network, hash)",
            1 / time_to("verified", "ours", "sha256"), least=0.8, bound=bound,
        )  # fmt: skip
        marks.add("the same of plain sockets that receive and hash", bound)
        marks.add(
            "http, verified: rate / plain sockets that hash", 1 / time_to("verified", "limit")
        )
    if {"s3", "runai"} <= {*found}:
        marks.add("s3: time / Run:ai's streamer", time_to("s3", "runai"), most=0.8)
    if "headers" in found:
        marks.add("headers of 60 shards, http: time / fsspec", time_to("headers", "headers-fsspec"))
    if {"hub", "hub-fsspec"} <= {*found}:
        marks.add(
            "headers of 60 shards, Hub: time / HfFileSystem", time_to("hub", "hub-fsspec"), most=0.3
        )
        marks.add("headers of 60 shards, Hub: requests", found["hub"][0].requests, most=120)
    if "row" in found:
        row = found["row"][0]
        marks.add("a row of a file: requests after the one that opens it", row.requests - 1, most=1)
        marks.add(
            "a row of a file: bytes after those / bytes of the row",
            (row.sent - HEAD) / row.size,
            most=1,
        )
    return marks


if __name__ == "__main__":
    sys.exit(main())
