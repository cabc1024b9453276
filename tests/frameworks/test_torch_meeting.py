"""How the ranks of a load agree: threads as ranks, and a store in memory. Real ranks are in tests/ranks."""

from __future__ import annotations

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist

from safeweights.errors import RankError, StateDictError
from safeweights.frameworks.torch.distributed import meeting
from safeweights.frameworks.torch.distributed.meeting import Meeting, MissingRankError, Task

if TYPE_CHECKING:
    from collections.abc import Callable

STEP = "prepare"


class Killed(BaseException):
    """What a rank that is killed raises in its place: nothing catches it, and the store is gone for it."""


class Dying:
    """A store for a rank that is killed before its request number `at`."""

    def __init__(self, store: Any, at: int) -> None:
        self._store, self._at = store, at
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)

        def request(*arguments: Any) -> Any:
            self.count += 1
            if self.count >= self._at:
                raise Killed
            return real(*arguments)

        return request


@pytest.fixture
def store() -> Any:
    return dist.HashStore()


def meet(
    store: Any,
    bodies: list[Callable[[], object]],
    *,
    timeout: float = 20,
    stores: dict[int, Any] | None = None,
) -> list[Any]:
    """Have each rank do its part, and go on; "fine", or the error, of each."""
    stores = stores or {}

    def rank(number: int) -> Any:
        task = Task("a", number, len(bodies))
        here = Meeting(task, timeout=timeout, path="model")
        here._store = stores.get(number, store)
        try:
            with here.agreeing(STEP):
                bodies[number]()
            here.leave(STEP)
        except (Exception, Killed) as error:
            return error
        return "fine"

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(rank, range(len(bodies))))


def nothing() -> None:
    """Succeeds."""


def fails() -> None:
    raise ValueError("no memory for it")


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_all_go_on_when_all_are_ready(store: Any, ranks: int) -> None:
    assert meet(store, [nothing] * ranks) == ["fine"] * ranks
    assert store.num_keys() == 0


def test_none_goes_on_before_the_last_is_ready(store: Any) -> None:
    order = []

    def late() -> None:
        time.sleep(0.2)
        order.append("ready")

    def rank(number: int) -> None:
        here = Meeting(Task("a", number, 3), timeout=20, path="model")
        here._store = store
        with here.agreeing(STEP):
            (late if number == 1 else nothing)()
        order.append("goes on")
        here.leave(STEP)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(rank, range(3)))
    assert order == ["ready"] + 3 * ["goes on"]


def test_the_path_is_named_once(store: Any) -> None:
    def fails() -> None:
        raise StateDictError("it has ended", path="model")

    _, error = meet(store, [fails, nothing])
    assert str(error) == "rank 0 failed: StateDictError: it has ended (in `model`)"


@pytest.mark.parametrize("failing", [0, 2])
def test_a_rank_that_fails_is_named_on_all_others(store: Any, failing: int) -> None:
    bodies = [nothing] * 3
    bodies[failing] = fails
    found = meet(store, bodies)
    assert type(found.pop(failing)) is ValueError
    for error in found:
        assert type(error) is RankError
        assert error.message == f"rank {failing} failed: ValueError: no memory for it"
        assert error.path == "model"
    assert store.num_keys() == 0


def test_all_ranks_fail(store: Any) -> None:
    assert [type(error) for error in meet(store, [fails] * 3)] == [ValueError] * 3
    assert store.num_keys() == 0


class Late:
    """Two ranks that come together, and one that comes when they have given up."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._together = threading.Barrier(2)

    def early(self) -> None:
        self._together.wait()

    def late(self) -> None:
        while not self._store.check([f"safeweights/a/{STEP}/verdict"]):
            time.sleep(0.01)

    def late_and_fails(self) -> None:
        self.late()
        fails()


@pytest.mark.parametrize("body", [Late.late, Late.late_and_fails])
@pytest.mark.parametrize("pause", [0, 0.0001])
def test_a_rank_that_is_missing_is_named_and_finds_out_when_it_comes(
    store: Any, monkeypatch: pytest.MonkeyPatch, body: Callable[[Late], None], pause: float
) -> None:
    """If it fails, too: else it would wait for the others in torch's collective call."""
    monkeypatch.setattr(meeting, "_SHORTEST", pause)  # 0: two ranks give up almost at once
    late = Late(store)
    for error in meet(store, [late.early, partial(body, late), late.early], timeout=1):
        assert type(error) is MissingRankError
        assert error.message == "1 rank of 3 did not prepare within 1 s: 1"
        assert error.ranks == (1,)
        with pytest.raises(MissingRankError):
            pickle.dumps(error)
    assert store.num_keys() == 0


def test_a_rank_that_comes_while_another_gives_up(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request that gives up tells whether the last one has come: if so, all go on."""
    first = Meeting(Task("a", 0, 2), timeout=0, path="model")
    last = Meeting(Task("a", 1, 2), timeout=20, path="model")
    first._store = last._store = store
    real = Meeting._give_up

    def give_up(self: Meeting, step: str) -> int:
        with last.agreeing(STEP):  # goes on
            pass
        return real(self, step)

    monkeypatch.setattr(Meeting, "_give_up", give_up)
    with first.agreeing(STEP):
        pass
    last.leave(STEP)
    first.leave(STEP)
    assert store.num_keys() == 0


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("body", [nothing, fails])
def test_a_rank_that_is_killed_at_any_request(
    store: Any, at: int, body: Callable[[], object]
) -> None:
    """The others all have one error, or all were ready; none waits for ever."""
    dying = Dying(store, at)
    early = Late(store).early
    killed, *found = meet(store, [body, early, early], timeout=1, stores={0: dying})
    assert {type(error) for error in found} <= {str, RankError, MissingRankError}
    assert len({str(error) for error in found}) == 1, "they do not agree"
    if body is fails:
        assert "fine" not in found
    elif at == 1:
        assert isinstance(killed, Killed)
        assert found[0].message == "1 rank of 3 did not prepare within 1 s: 0"
    else:  # it was counted
        assert found == ["fine", "fine"]


def test_a_store_that_ends_does_not_hide_why(store: Any) -> None:
    """It is in the process of a rank, which ends with the first error."""

    class Ending:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def delete_key(self, key: str) -> bool:
            raise RuntimeError("connection reset")

    error, _ = meet(store, [nothing, fails], stores={0: Ending()})
    assert type(error) is RankError
    assert "no memory for it" in error.message
    assert "connection reset" in str(error.__cause__)
