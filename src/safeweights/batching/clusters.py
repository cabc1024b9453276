"""The engine of a cluster: a Ray task for each group, with a window of tasks under way.

Ray (the extra ``ray``) is given a few tasks at a time, and the next when one is done, so that its queue
stays short. Tasks that fail with their worker or their node are not retried by Ray: `running` gives their
units out again, by the same rules as for processes. Files must be where the workers can read them: on a
file system that all nodes have, or at URLs.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from ..errors import MissingDependencyError
from .engines import Answer, Lost
from .units import Assignment, Work, perform

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RayTasks"]

_WINDOW: Final = 2
"""Tasks under way for each processor: one works, one is on its way."""

_TICK: Final = 1.0


class RayTasks:
    """Ray tasks; see `engines.Engine`.

    Connects to the cluster that the process is connected to, that ``RAY_ADDRESS`` names or that runs on
    this machine; without any it starts one here, for the time of the batch.

    Args:
        work: What the tasks do.
        jobs: How many are under way; by default two for each processor of the cluster.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConnectionError: There is no cluster at the address.
    """

    def __init__(self, work: Work, jobs: int | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingDependencyError(
                "the engine ray needs the package ray: pip install 'safeweights[ray]'"
            ) from error
        self._ray: Any = ray
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        resources: dict[str, float] = self._ray.cluster_resources()
        self.slots = jobs or max(1, int(resources.get("CPU", 1))) * _WINDOW
        self._task = ray.remote(max_retries=0, num_cpus=1)(_do)
        self._given = ray.put((asdict(work), os.getcwd()))
        self._tickets: dict[Any, int] = {}
        self._events: list[Answer | Lost] = []

    def submit(self, ticket: int, group: Sequence[Assignment]) -> None:
        reference = self._task.remote(self._given, [each.record() for each in group])
        self._tickets[reference] = ticket

    def next(self) -> Answer | Lost:
        while not self._events:
            done, _ = self._ray.wait(list(self._tickets), timeout=_TICK)
            for reference in done:
                self._events += self._ended(reference)
        return self._events.pop(0)

    def _ended(self, reference: Any) -> list[Answer | Lost]:
        ticket = self._tickets.pop(reference)
        try:
            records = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError:
            raise  # an error of the work, which is a mistake in the program
        except self._ray.exceptions.RayError as error:
            return [Lost(ticket, f"a worker of the cluster ended ({type(error).__name__})")]
        return [Answer(ticket, 0, records)]

    def close(self) -> None:
        if self._started:
            self._ray.shutdown()

    def abort(self) -> None:
        for reference in self._tickets:
            with suppress(Exception):  # the cluster may be gone
                self._ray.cancel(reference, force=False)
        with suppress(Exception):
            self._ray.wait(list(self._tickets), num_returns=len(self._tickets), timeout=20)
        self.close()


def _do(given: tuple[dict[str, Any], str], group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The task: a group of units, in the folder of the caller, where its relative paths are right."""
    work, folder = given
    with suppress(OSError):  # on a node that lacks it, paths that are relative are not found
        os.chdir(folder)
    wanted = Work.of(work)
    return [perform(wanted, Assignment.of(each)) for each in group]
