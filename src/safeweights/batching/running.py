"""Having units done: groups for an engine, what to do when a worker ends, and outcomes in order.

Rules:
- Units that read little go to a worker together; the groups get smaller towards the end, so that no
  worker has much left when the others are done.
- Outcomes are those of the command, whatever engine runs it and with however many workers.
- A worker that ends without an answer (killed, out of memory, on a node that was removed) costs nothing
  but time: the units that it had are given out again, each alone. One that was alone when its worker
  ended `_ATTEMPTS` times is reported as not done.
- An exception, Ctrl-C for example, ends all workers. Each undoes what it had begun.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from ..errors import SafetensorError
from ..storage.places import exists, folder_of, is_url
from .engines import Answer
from .units import LOST, Assignment, Known, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from .engines import Engine, Lost
    from .manifest import Manifest
    from .units import Unit, Work

__all__ = ["ENGINES", "run_units"]

_ATTEMPTS: Final = 3
_GROUP: Final = 256
"""Units of a group, at most: starting a task costs up to 1 ms (Ray), a small unit takes about 0.4 ms."""

_GROUP_BYTES: Final = 8 << 20
"""Bytes that the units of a group read, at most; about 10 ms."""

_ROUNDS: Final = 4
"""A group has this part of what would be each worker's share of the units that are left."""


def _processes(work: Work, jobs: int | None) -> Engine:
    from .processes import Processes

    return Processes(work, jobs)


def _ray(work: Work, jobs: int | None) -> Engine:
    from .clusters import RayTasks

    return RayTasks(work, jobs)


ENGINES: Final[dict[str, Callable[[Work, int | None], Engine]]] = {
    "process": _processes,
    "ray": _ray,
}
"""Name of an engine -> what makes one, from the work and the number of workers."""


def run_units(
    units: Sequence[Unit],
    work: Work,
    *,
    engine: str = "process",
    jobs: int | None = None,
    manifest: Manifest | None = None,
    notice: Callable[[str], object] | None = None,
) -> Generator[Outcome, None, None]:
    """The outcome of each unit, in the order of the units, as soon as it and all before it are known.

    Close the iterator, or use it up: then no worker is left.

    Args:
        units: What to do; each source once.
        work: What is done with each.
        engine: One of `ENGINES`.
        jobs: Workers; by default one a processor.
        manifest: What is done already, and where to record it.
        notice: Called with a sentence when a worker ended and its units are given out again.

    Raises:
        MissingDependencyError: The engine needs a package that is not installed.
        OSError: Workers cannot be started, or the manifest cannot be written.
    """
    if not units:
        return
    workers = ENGINES[engine](work, jobs)
    try:
        yield from _Run(units, work, workers, manifest, notice).outcomes()
    except BaseException:
        workers.abort()
        raise
    workers.close()


class _Run:
    """One call of `run_units`."""

    def __init__(
        self,
        units: Sequence[Unit],
        work: Work,
        engine: Engine,
        manifest: Manifest | None,
        notice: Callable[[str], object] | None,
    ) -> None:
        self._units = units
        self._creates = work.creates
        self._engine = engine
        self._manifest = manifest
        self._notice = notice
        self._waiting = deque(range(len(units)))
        self._alone: deque[int] = deque()  # those whose worker ended
        self._failures: dict[int, int] = {}
        self._begun: set[int] = set()
        self._groups: dict[int, dict[int, int]] = {}  # ticket -> place in the group -> unit
        self._known: dict[int, Known] = {}
        self._tickets = 0

    def outcomes(self) -> Iterator[Outcome]:
        """See `run_units`."""
        ready: dict[int, Outcome] = {}
        following = 0
        while following < len(self._units):
            while len(self._groups) < self._engine.slots and (group := self._next_group()):
                self._submit(group)
            event = self._engine.next()
            found = self._answered(event) if isinstance(event, Answer) else self._lost(event)
            ready.update(found)
            while following in ready:
                yield ready.pop(following)
                following += 1

    def _next_group(self) -> list[int]:
        if self._alone:
            return [self._alone.popleft()]
        most = max(1, min(_GROUP, len(self._waiting) // (self._engine.slots * _ROUNDS)))
        group: list[int] = []
        cost = 0
        while self._waiting and len(group) < most and (not group or cost < _GROUP_BYTES):
            cost += self._units[self._waiting[0]].cost
            if group and cost > _GROUP_BYTES:
                break
            group.append(self._waiting.popleft())
        return group

    def _submit(self, group: list[int]) -> None:
        assignments = [self._assignment(index) for index in group]
        if self._manifest is not None and self._creates:
            new = [self._units[index] for index in group if index in self._begun]
            self._manifest.begin(unit for unit in new if not self._manifest.was_begun(unit))
        self._tickets += 1
        self._groups[self._tickets] = dict(enumerate(group))
        self._engine.submit(self._tickets, assignments)

    def _assignment(self, index: int) -> Assignment:
        unit, manifest = self._units[index], self._manifest
        again = index in self._begun or (manifest is not None and manifest.was_begun(unit))
        if self._creates and not again and unit.target is not None and _is_free(unit.target):
            # From now on what is there was written by this batch: a second attempt may replace it.
            self._begun.add(index)
        known = None if manifest is None else manifest.known(unit)
        if known is None:
            return Assignment(unit, again, manifest is not None)
        self._known[index] = known
        written = known.outcome.outputs
        return Assignment(unit, again, True, known.source, known.outputs, written)

    def _answered(self, event: Answer) -> dict[int, Outcome]:
        group = self._groups[event.ticket]
        found: dict[int, Outcome] = {}
        new: list[tuple[Unit, Known]] = []
        for place, record in enumerate(event.records, event.place):
            index = group.pop(place)
            if not record:
                found[index] = self._known.pop(index).outcome
                continue
            found[index] = Outcome.of(record["outcome"])
            new.append(
                (self._units[index], Known(record["source"], record["outputs"], found[index]))
            )
        if not group:
            del self._groups[event.ticket]
        if self._manifest is not None and new:
            self._manifest.done(new)
        return found

    def _lost(self, event: Lost) -> dict[int, Outcome]:
        left = list(self._groups.pop(event.ticket).values())
        found = {}
        for index in left:
            if len(left) == 1:
                self._failures[index] = self._failures.get(index, 0) + 1
            if self._failures.get(index, 0) >= _ATTEMPTS:
                found[index] = _not_done(self._units[index], event.why)
            else:
                self._alone.append(index)
        if self._notice is not None and left:
            self._notice(f"{event.why}; {len(left)} of its units are given to another worker")
        return found


def _is_free(target: str) -> bool:
    """Whether there is nothing at a target; False if its store does not tell."""
    try:
        if not is_url(target) or not target.endswith("/"):
            return not exists(target)
        return next(folder_of(target).list(), None) is None
    except (SafetensorError, OSError):  # the command says what is wrong
        return False


def _not_done(unit: Unit, why: str) -> Outcome:
    from ..reports.problems import error_record
    from ..storage.places import shown

    message = f"{why}, {_ATTEMPTS} times, while it worked on {shown(unit.source)}"
    record = {**error_record("worker", message), "path": shown(unit.source)}
    document = {"schema": "safeweights.error/1", "exit_code": LOST, "error": record}
    return Outcome(LOST, document, (f"error: {message}",))
