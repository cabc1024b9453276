"""One call made again and again, each time in a process that is killed at a random time.

The calls are made in children of one process, forked when all is imported, so that a hundred kills take
seconds. (That process itself calls nothing: neither threads nor obstore survive a fork.) Two models take
turns in one place: what is found there after a kill is one of them, or none.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from policies import signed_by_us

if TYPE_CHECKING:
    from collections.abc import Callable


def two_models(folder: Path) -> dict[str, Path]:
    """Two signed models of three shards with the same names; beside them a policy."""
    import numpy as np

    import safeweights.numpy
    from safeweights import trust
    from safeweights.checkpoint.sharding import save_sharded
    from safeweights.storage import LocalStore

    trust.generate_key(str(folder / "key"))
    (folder / "policy.toml").write_text(signed_by_us())
    found = {}
    for number in range(2):
        model = found[str(number)] = folder / f"model-{number}"
        arrays = {f"t{i}": np.full((100, 500), i + 100 * number, "f4") for i in range(6)}
        opened = safeweights.open(safeweights.numpy.save(arrays))
        save_sharded(opened, LocalStore(str(model)), max_shard_size=400_000)
        (model / "config.json").write_text(json.dumps({"number": number}))
        trust.sign(str(model), trust.load_private_key(str(folder / "key")))
    return found


def kill_again_and_again(kind: str, **given: Any) -> list[dict[str, Any]]:
    """What was found after each kill: ``"0"`` or ``"1"`` (a model), ``"none"``, or what else.

    Args:
        kind: ``"pull"`` or ``"push"``.
        given: Of `Pulling` or `Pushing`; and `count`.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, kind], input=json.dumps(given),
        capture_output=True, text=True, timeout=60 + 8 * given["count"], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes: list[dict[str, Any]] = json.loads(done.stdout)
    return outcomes


class Pulling:
    """Two models, each at a URL, are pulled into one folder."""

    def __init__(self, models: list[str], urls: list[str], target: str, policy: str) -> None:
        from safeweights.storage.parallel import CHUNK
        from safeweights.transfer import partial as fetching

        fetching.CHUNK = 256 << 10  # two blocks a file; a block of the tree each
        assert CHUNK % fetching.CHUNK == 0
        self._models = [contents(model) for model in models]
        self._urls, self._target, self._policy = urls, target, policy

    def call(self, number: int) -> None:
        from safeweights.transfer import pull

        assert pull(self._urls[number], self._target, policy=self._policy, name="m").admitted

    def look(self, *, certain: bool = False) -> str:
        if not certain and not os.path.exists(self._target):
            return "none"
        found = contents(self._target)
        return str(self._models.index(found)) if found in self._models else repr(sorted(found))

    def clear(self) -> None:
        shutil.rmtree(self._target, ignore_errors=True)


class Pushing:
    """Two models are pushed to one URL, where each replaces the other."""

    def __init__(self, models: list[str], url: str, policy: str) -> None:
        from safeweights.storage.remote import buckets

        # Files of this size are uploads of several parts, of which the last one may be short.
        buckets._SMALL, buckets._MOST_PARTS = 64 << 10, 1
        self._models, self._url, self._policy = models, url, policy

    def call(self, number: int) -> None:
        from safeweights.transfer import push

        push(self._models[number], self._url, force=True)

    def look(self, *, certain: bool = False) -> str:
        import safeweights
        from safeweights.errors import FormatError
        from safeweights.trust import load_policy
        from safeweights.trust.errors import TrustError

        try:
            opened = safeweights.open(self._url, trust=load_policy(self._policy))
            values = {int(opened[f"t{i}"].numpy()[0, 0]) - i for i in range(6)}
        except (FormatError, TrustError, OSError):
            if certain:
                raise
            return "none"
        return {(0,): "0", (100,): "1"}.get(tuple(values), repr(values))

    def clear(self) -> None:
        """What is there stays."""


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


class Ended(NamedTuple):
    """How a call in a child ended: killed, or with a result, or with an error."""

    killed: bool
    result: str
    error: str


def in_child(call: Callable[[], object], notes: Path, seconds: float | None = None) -> Ended:
    """Make a call in a child, which is killed after so many seconds."""
    notes.write_text("")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            notes.write_text(str(call()))
            status = 0
        except BaseException as error:
            notes.write_text(repr(error))
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return Ended(True, "", "")
    text = notes.read_text()
    return Ended(False, "", text) if os.WEXITSTATUS(status) else Ended(False, text, "")


def main() -> None:
    given = json.load(sys.stdin)
    count = given.pop("count")
    job = {"pull": Pulling, "push": Pushing}[sys.argv[1]](**given)
    notes = Path(given["policy"]).with_name("notes")

    def whole(number: int) -> str:
        job.call(number)
        return " ".join(sys.modules)

    took = []
    for number in (0, 1, 0):
        began = time.perf_counter()
        ended = in_child(partial(whole, number), notes)
        assert not ended.error, ended.error
        took.append(time.perf_counter() - began)
        for name in ended.result.split():  # so that the next child need not
            with suppress(ImportError):
                importlib.import_module(name)
    draw, found = random.Random(7), []
    for turn in range(count):
        if turn % 10 == 9:
            job.clear()
        call = partial(job.call, draw.randrange(2))
        ended = in_child(call, notes, draw.uniform(0, took[-1]))
        looked = in_child(job.look, notes)
        outcome = looked.result or looked.error
        found.append({"killed": ended.killed, "error": ended.error, "found": outcome})
    ended = in_child(partial(job.call, 0), notes)
    assert not ended.error, ended.error
    looked = in_child(partial(job.look, certain=True), notes)
    assert looked.result == "0", looked
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
