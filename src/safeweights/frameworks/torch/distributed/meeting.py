"""How the ranks of one save or load tell each other what they need, and who is missing.

Messages go through the key-value store of torch.distributed that every job has (`torch.distributed.Store`):
that needs no process group, works beside collectives that run on other threads, and, unlike a collective,
a rank that does not come can be named.

Rules:
- No rank waits longer than the timeout; the error says what it waited for.
- The failure of one rank ends the waiting of the coordinator at once.
- Keys are deleted when they were read.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import torch.distributed as dist

from ....errors import RankError, SafetensorError
from ....text import plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Meeting", "MissingRankError", "Task", "job_store", "next_load"]

_PART: Final = 4 << 20
"""Bytes of a message in one value: the store takes 8 MiB."""

_SHORTEST: Final = 0.0001
_LONGEST: Final = 0.005
_LONGER: Final = 1.2
"""Seconds between two requests, of 0.1 ms each, and the factor by which they grow. The store's own way to
wait cannot be interrupted, and blocks the requests of other threads."""

_LEFT: Final = 1 << 20
_FAILED: Final = 1 << 40
"""What ranks add to the number that they share when they agree. It counts those that are ready (20 bits),
those that have left (20 bits), and those that failed or gave up. One request changes it and tells what it
is then, so that one rank alone is the last, and one alone the first that failed."""

_MANY: Final = 50
"""Ranks above which each looks less often, so that all together ask the store 10,000 times a second."""


class MissingRankError(RankError):
    """A rank did not come in time.

    When a rank fails, torch gathers the errors of all ranks, and waits for a missing one as long as the
    process group allows, half an hour by default. So this error refuses to be sent: pickling it raises it,
    on each rank before torch sends anything, and all ranks but the missing one end together.
    """

    def __reduce__(self) -> NoReturn:
        raise self


class Task(NamedTuple):
    """One save or load, and a rank's place in it; travels in the rank's plan.

    Attributes:
        name: Names this save or load in the store.
        rank: This rank. Rank 0 is the coordinator.
        ranks: How many there are.
    """

    name: str
    rank: int
    ranks: int

    @classmethod
    def for_each(cls, ranks: int) -> list[Task]:
        """The tasks of all ranks, of a save or load that has no name yet."""
        name = os.urandom(16).hex()
        return [cls(name, rank, ranks) for rank in range(ranks)]


class Meeting:
    """One save or load, as one rank takes part in it.

    Args:
        task: Which, and which rank.
        timeout: Seconds that a rank may be late.
        path: The checkpoint, for messages.
    """

    def __init__(self, task: Task, *, timeout: float, path: str) -> None:
        alone = task.ranks == 1
        self._store: Any = dist.HashStore() if alone else job_store()  # type: ignore[attr-defined]
        self._name = f"safeweights/{task.name}"
        self.rank = task.rank
        self.ranks = task.ranks
        self._timeout = timeout
        self._path = path

    # ---- all ranks, without a coordinator

    @contextmanager
    def agreeing(self, step: str) -> Iterator[None]:
        """Do `step` in this block, which ends when all ranks have done it. Then `leave`.

        The last rank asks the store once, the others until they see that the last one came. The first rank
        that fails, or waits for too long, writes a verdict: why all of them give up.

        Args:
            step: What is done, such as ``"prepare"``: it completes a sentence.

        Raises:
            RankError: Another rank failed.
            MissingRankError: A rank is missing after the timeout.
        """
        try:
            yield
        except BaseException as error:
            self._report_failure(step, error)
            raise
        state = self._store.add(self._key(step), 1)
        if state < _FAILED:  # else it came too late, and is one of those that are missing
            self._store.set(self._key(f"{step}/{self.rank}"), b"ready")
        try:
            self._await_all(step, state)
        except RankError as error:
            try:
                self.leave(step)
            except RuntimeError as lost:  # the store was in a process that has ended
                raise error from lost
            raise

    def leave(self, step: str) -> None:
        """Note that this rank does not need the keys of `agreeing` any more; the last one deletes them."""
        self._delete(f"{step}/{self.rank}")
        state = self._store.add(self._key(step), _LEFT)
        if state % _FAILED // _LEFT == self.ranks:
            self._delete(step)
            if state >= _FAILED:
                self._delete(f"{step}/verdict")

    def _await_all(self, step: str, state: int) -> None:
        deadline = time.monotonic() + self._timeout
        pause = _SHORTEST
        while state < _FAILED:
            if state % _LEFT == self.ranks:
                return
            if time.monotonic() > deadline:
                state = self._give_up(step)
                break
            pause = self._pause(pause)
            state = self._store.add(self._key(step), 0)
        self._heard(self._verdict(step))

    def _give_up(self, step: str) -> int:
        """Say which ranks are missing, or that the last one came just now; unless another rank says it."""
        state: int = self._store.add(self._key(step), _FAILED)
        if state // _FAILED > 1:
            return state
        if state % _LEFT == self.ranks:
            # Some may have seen that, and go on. So all do.
            self._put(f"{step}/verdict", [True, None])
            return state
        present = self._present(step)
        absent = tuple(rank for rank in range(self.ranks) if rank not in present)
        error = self._missing(absent, step, self._timeout)
        self._put(f"{step}/verdict", [False, error.message, [*error.ranks]])
        return state

    def _report_failure(self, step: str, error: BaseException) -> None:
        """Tell all ranks that this one failed; unless another one did, or was missing.

        Raises:
            MissingRankError: One was missing. The others end with this error, so this one does, too.
        """
        try:
            if self._store.add(self._key(step), _FAILED) // _FAILED == 1:
                message = f"rank {self.rank} failed: {self._said(error)}"
                self._put(f"{step}/verdict", [False, message, []])
            else:
                _, message, missing = self._verdict(step)
                if missing:
                    self._heard([False, message, missing])
        finally:
            self.leave(step)

    def _said(self, error: BaseException) -> str:
        """What the error of one rank says to all; of the path, which their own errors name, nothing."""
        text = str(error)
        if isinstance(error, SafetensorError) and error.path == self._path:
            text = error.message
        return f"{type(error).__name__}: {text}"

    def _verdict(self, step: str) -> Any:
        """What the first rank that found a failure says of it; an error if it ended before it could."""
        unknown = MissingRankError(
            f"a rank failed to {step}, and ended before it could say why", path=self._path
        )
        self._wait_for(f"{step}/verdict", self._timeout, unknown)
        return self._get(f"{step}/verdict")[0]

    # ---- from every rank to the coordinator

    def post(self, step: str, value: Any) -> None:
        """Tell the coordinator that this rank has done `step`.

        Args:
            step: What was to be done, such as ``"write its data"``: it completes a sentence.
            value: Anything that JSON holds.
        """
        self._put(f"{step}/{self.rank}", [True, value])
        self._store.add(self._key(f"{step}/count"), 1)

    @contextmanager
    def reporting(self, step: str, verdict: str) -> Iterator[None]:
        """Do `step` in this block: if it fails, the coordinator learns of it at once.

        Args:
            step: What is done.
            verdict: What the coordinator tells all ranks afterwards. If it has given up already, that is
                why the step failed, and its error is raised.
        """
        try:
            yield
        except BaseException as error:
            key = f"{verdict}/{self.rank}"
            if self._store.check([self._key(key)]):
                self._heard(self._take(key))
            self._put(f"{step}/{self.rank}", [False, self._said(error)])
            self._store.add(self._key(f"{step}/failed"), 1)
            raise

    def collect(self, step: str) -> list[Any]:
        """What all ranks posted, on the coordinator.

        Raises:
            RankError: A rank failed.
            MissingRankError: A rank is missing after the timeout.
        """
        deadline = time.monotonic() + self._timeout
        pause = _SHORTEST
        while incomplete := self._count(f"{step}/count") < self.ranks:
            if self._count(f"{step}/failed") or time.monotonic() > deadline:
                break
            pause = self._pause(pause)
        present = self._present(step) if incomplete else range(self.ranks)
        posted = {rank: self._take(f"{step}/{rank}") for rank in present}
        failed = {rank: text for rank, (fine, text) in posted.items() if not fine}
        if failed:
            rank, text = next(iter(failed.items()))
            more = f" ({len(failed)} ranks failed)" if len(failed) > 1 else ""
            raise RankError(
                f"rank {rank} failed: {text}{more}", path=self._path, ranks=tuple(failed)
            )
        absent = tuple(rank for rank in range(self.ranks) if rank not in posted)
        if absent:
            raise self._missing(absent, step, self._timeout)
        self._delete(f"{step}/count", f"{step}/failed")
        return [posted[rank][1] for rank in range(self.ranks)]

    def _missing(self, ranks: tuple[int, ...], step: str, seconds: float) -> MissingRankError:
        return MissingRankError(
            f"{plural(len(ranks), 'rank')} of {self.ranks} did not {step} within {seconds:g} s: "
            f"{_listed(ranks)}",
            path=self._path, ranks=ranks,
        )  # fmt: skip

    @contextmanager
    def deciding(self, step: str) -> Iterator[None]:
        """Do in this block, on the coordinator, what all ranks wait for: if it fails, they learn of it."""
        try:
            yield
        except BaseException as error:
            missing = list(error.ranks) if isinstance(error, MissingRankError) else []
            message = error.message if isinstance(error, RankError) else f"rank 0 failed: {error}"
            for rank in range(self.ranks):
                self._put(f"{step}/{rank}", [False, message, missing])
            raise

    def _present(self, step: str) -> list[int]:
        return [r for r in range(self.ranks) if self._store.check([self._key(f"{step}/{r}")])]

    # ---- from the coordinator to the ranks

    def tell(self, step: str, values: Iterable[Any]) -> None:
        """Tell each rank its value, in the order of the ranks."""
        for rank, value in enumerate(values):
            self._put(f"{step}/{rank}", [True, value])

    def tell_all(self, step: str, value: Any) -> None:
        """Tell all other ranks the same; they hear it with `hear_all`."""
        if self.ranks > 1:
            self._put(step, [True, value])

    def tell_all_failure(self, step: str, error: BaseException) -> None:
        """Tell all other ranks that it is over."""
        if self.ranks > 1:
            self._put(step, [False, str(error), []])

    def hear(self, step: str) -> Any:
        """What the coordinator told this rank.

        Raises:
            RankError: It gave up.
            MissingRankError: It gave up because a rank is missing; or it says nothing for twice the
                timeout, since it waits for the others itself.
        """
        self._wait_for_coordinator(f"{step}/{self.rank}", step)
        return self._heard(self._take(f"{step}/{self.rank}"))

    def hear_all(self, step: str) -> Any:
        """What the coordinator told all ranks.

        Raises:
            RankError, MissingRankError: As for `hear`.
        """
        self._wait_for_coordinator(step, step)
        message, keys = self._get(step)
        if self._store.add(self._key(f"{step}/heard"), 1) == self.ranks - 1:
            self._delete(*keys, f"{step}/heard")
        return self._heard(message)

    def _heard(self, message: Any) -> Any:
        fine, value, *missing = message
        if fine:
            return value
        if missing[0]:
            raise MissingRankError(value, path=self._path, ranks=tuple(missing[0]))
        raise RankError(value, path=self._path)

    def _wait_for_coordinator(self, key: str, step: str) -> None:
        seconds = 2 * self._timeout
        self._wait_for(key, seconds, self._missing((0,), step, seconds))

    def _wait_for(self, key: str, seconds: float, error: MissingRankError) -> None:
        deadline = time.monotonic() + seconds
        pause = _SHORTEST
        while not self._store.check([self._key(key)]):
            if time.monotonic() > deadline:
                raise error
            pause = self._pause(pause)

    def _pause(self, seconds: float) -> float:
        """Wait; returns how long to wait the next time."""
        time.sleep(seconds)
        return min(_LONGER * seconds, _LONGEST * max(1, self.ranks / _MANY))

    # ---- messages as values of the store

    def _key(self, key: str) -> str:
        return f"{self._name}/{key}"

    def _count(self, key: str) -> int:
        return int(self._store.add(self._key(key), 0))

    def _put(self, key: str, value: Any) -> None:
        data = zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)
        parts = range(_PART, len(data), _PART)
        for number, begin in enumerate(parts):
            self._store.set(self._key(f"{key}/part{number}"), data[begin : begin + _PART])
        # Last: a rank that sees this key finds the others.
        self._store.set(self._key(key), bytes([len(parts)]) + data[:_PART])

    def _get(self, key: str) -> tuple[Any, list[str]]:
        """A message, and the keys that it takes."""
        first = self._store.get(self._key(key))
        parts = [f"{key}/part{number}" for number in range(first[0])]
        data = first[1:] + b"".join(self._store.get(self._key(part)) for part in parts)
        return json.loads(zlib.decompress(data)), [*parts, key]

    def _take(self, key: str) -> Any:
        message, keys = self._get(key)
        self._delete(*keys)
        return message

    def _delete(self, *keys: str) -> None:
        for key in keys:
            self._store.delete_key(self._key(key))


def next_load(group: Any, path: str) -> Task:
    """The next load of a checkpoint.

    All ranks of a group load together, so that all of them count alike.

    Args:
        group: The process group; None for the default one.
        path: The checkpoint.
    """
    if group is None:
        group = dist.distributed_c10d._get_default_group()  # noqa: SLF001 - the only way to it
    key = group.group_name, path
    _LOADS[key] = count = _LOADS.get(key, 0) + 1
    name = f"load/{zlib.crc32(path.encode())}/{group.group_name}/{count}"
    return Task(name, dist.get_rank(group), dist.get_world_size(group))


_LOADS: dict[tuple[str, str], int] = {}
"""(Group, checkpoint) -> how often it was loaded."""


def job_store() -> Any:
    """The store of this job; None where torch.distributed is not initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.distributed_c10d._get_default_store()  # noqa: SLF001 - the only way to it


def _listed(ranks: Iterable[int]) -> str:
    shown = [*ranks]
    return ", ".join(map(str, shown[:20])) + (" ..." if len(shown) > 20 else "")
