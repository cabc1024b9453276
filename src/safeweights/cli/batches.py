"""Batches: one command for many models; what `safeweights.batch` and `safeweights batch` do."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, Literal

import click

from ..batching import ENGINES, BatchReport, Manifest, Shard, find_units, record_of, run_units
from ..conversion.folders import output_name
from ..errors import UnsupportedError, quote
from ..storage.places import is_folder, join
from .performing import BATCHED, arguments_of, work_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from ..batching import Unit, Work
    from ..batching.sources import Each
    from ..reports.documents import BatchUnitRecord

__all__ = ["batch", "records", "units_of"]


def batch(
    command: Literal["convert", "check", "hash", "sign", "verify", "admit", "pull"],
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    to: str | os.PathLike[str] | None = None,
    each: Each = "model",
    engine: str = "process",
    jobs: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    shard: str | None = None,
    notice: Callable[[str], object] | None = None,
    progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> BatchReport:
    """Run a command on many models, in several processes or on a Ray cluster.

    A model that is bad, cannot be read or ends its worker is one unit of the report; the others are done.
    The report is the same for any engine and number of workers.

    Args:
        command: The command.
        sources: Files, folders (of models), patterns, URLs, and lists of them as ``@FILE``.
        to: The folder or URL of what `convert` and `pull` make, or `admit` (warrants).
        each: Whether a unit is a model or a file of weights.
        engine: ``"process"``, or ``"ray"`` (the extra ``ray``).
        jobs: Workers; by default one a processor, or two tasks for each of a cluster.
        resume: A manifest: what it has is not done again unless its source or its result changed. It is
            made if there is none.
        shard: ``"I/N"``: only the I-th of N parts of the units, chosen by a hash of their names.
        notice: Called with a sentence when a worker ended unexpectedly.
        progress: Called with the units done so far, and all of them.
        options: Those of the command, as keyword arguments: ``strict=True``, ``max_shard_size="5GB"``.

    Raises:
        TypeError: An option that the command does not have.
        UnsupportedError: Two units would have one result; the manifest is of another batch.
        MissingDependencyError: The engine is not installed.
        OSError: A list, a pattern or the manifest cannot be read; workers cannot be started.

    >>> import tempfile, numpy, safeweights.numpy
    >>> folder = tempfile.mkdtemp()
    >>> for name in ("a", "b"):
    ...     safeweights.numpy.save_file({"w": numpy.zeros(3, "f4")}, f"{folder}/{name}.safetensors")
    >>> report = batch("check", folder, each="file", jobs=1)
    >>> report.ok, len(report.units)
    (True, 2)
    """
    if command not in BATCHED:
        raise UnsupportedError(f"command must be one of {', '.join(BATCHED)}, not {quote(command)}")
    if engine not in ENGINES:
        raise UnsupportedError(f"engine must be one of {', '.join(ENGINES)}, not {quote(engine)}")
    given = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    try:
        work = work_of(command, arguments_of(command, options))
    except click.UsageError as error:
        raise UnsupportedError(error.format_message()) from None
    target = None if to is None else os.fspath(to)
    paths = [os.fspath(source) for source in given]
    units = units_of(command, paths, to=target, each=each, shard=shard)
    done: list[BatchUnitRecord] = []
    with closing(
        records(units, work, engine=engine, jobs=jobs, resume=resume, notice=notice)
    ) as found:
        for each_record in found:
            done.append(each_record)
            if progress is not None:
                progress(len(done), len(units))
    return BatchReport(command, tuple(done))


def units_of(
    command: str,
    sources: Iterable[str],
    *,
    to: str | None,
    each: Each,
    shard: str | None,
) -> list[Unit]:
    """The units of a batch of a command.

    Raises:
        UnsupportedError: `to` is missing, or the command writes nothing; see `find_units`.
    """
    batched = BATCHED[command]
    if batched.needs_target and to is None:
        raise UnsupportedError(f"a batch of {command} needs a folder or URL for its results (to)")
    if to is not None and not batched.takes_target:
        raise UnsupportedError(
            f"{command} writes no results, for which a place could be given (to)"
        )
    return find_units(
        sources, each=each, to=to, target=_TARGETS.get(command, _like),
        shard=None if shard is None else Shard.parse(shard),
    )  # fmt: skip


def records(
    units: list[Unit],
    work: Work,
    *,
    engine: str,
    jobs: int | None,
    resume: str | os.PathLike[str] | None,
    notice: Callable[[str], object] | None,
) -> Generator[BatchUnitRecord, None, None]:
    """What the report says of each unit, in their order, as soon as it is known; close it, or use it up."""
    with ExitStack() as stack:
        manifest = None if resume is None else stack.enter_context(Manifest(resume, work))
        outcomes = run_units(
            units, work, engine=engine, jobs=jobs, manifest=manifest, notice=notice
        )
        stack.callback(outcomes.close)  # before the manifest
        for unit, outcome in zip(units, outcomes, strict=True):
            yield record_of(unit, outcome)


def _like(to: str, name: str, source: str) -> str:  # noqa: ARG001
    return join(to, name)


def _converted(to: str, name: str, source: str) -> str:
    if is_folder(source):
        return join(to, name, "")
    folder, slash, last = name.rpartition("/")
    return join(to, f"{folder}{slash}{output_name(last)}")


def _warrant(to: str, name: str, source: str) -> str:  # noqa: ARG001
    return join(to, f"{name}.warrant")


_TARGETS = {"convert": _converted, "admit": _warrant}
"""Command -> what its result for a source is called; of the others, like the source."""
