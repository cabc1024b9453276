"""Units of work, what came of them, and what tells whether a source is still what it was.

All of it is plain data that survives JSON, so that it can be sent to another process or machine and kept
in a manifest.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from ..errors import SafetensorError
from ..storage import LocalStore, open_source
from ..storage.parallel import in_threads
from ..storage.places import absolute, folder_of, is_folder, is_url, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["LOST", "Assignment", "Known", "Outcome", "Unit", "Work", "fingerprint", "perform"]

LOST: Final = 3
"""Exit status of a unit whose worker ended without an answer: it could not be read."""

_REQUESTS: Final = 16
"""Files of a folder in a remote store that are asked for their version at a time."""


@dataclass(frozen=True)
class Unit:
    """One file or folder, and where its result goes.

    Attributes:
        source: The path or URL, as it is given to the command.
        target: The path or URL to write; None if nothing is written.
        cost: Bytes to read, as far as they are known without a request; units of few bytes share a task.
    """

    source: str
    target: str | None = None
    cost: int = 0

    @property
    def key(self) -> str:
        """What manifests and shards call the unit: its absolute path or URL, without credentials."""
        name = shown(self.source)
        if name == self.source:
            return absolute(name)
        # The query of a web address may say which file it is, and may be a signature.
        return f"{name}#{hashlib.sha256(self.source.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Outcome:
    """What came of a unit.

    Attributes:
        exit_code: The exit status of the command: 0 yes, 1 no, 2 wrong usage, 3 could not be read.
        document: What the command prints with ``--json``.
        messages: What it says on standard error.
        outputs: Paths or URLs of the files and folders that it wrote.
    """

    exit_code: int
    document: dict[str, Any] | None = None
    messages: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: dict[str, Any]) -> Outcome:
        """An outcome from its JSON."""
        lists = {name: tuple(record[name]) for name in ("messages", "outputs")}
        return cls(record["exit_code"], record["document"], **lists)

    def record(self) -> dict[str, Any]:
        """The same as JSON has it; the document is shared, not copied."""
        return {
            "exit_code": self.exit_code,
            "document": self.document,
            "messages": self.messages,
            "outputs": self.outputs,
        }


@dataclass(frozen=True)
class Work:
    """What to do with each unit.

    Attributes:
        function: ``"module:name"`` of a function that takes `arguments`, a `Unit`, and whether an
            earlier attempt may have written its target; it returns an `Outcome`. It must be idempotent.
        arguments: Text that is the same for all units.
        written: How the names of files end that the function writes beside its source.
        creates: Whether the function refuses a target that exists, but for a second attempt.
    """

    function: str
    arguments: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    creates: bool = False

    @classmethod
    def of(cls, record: dict[str, Any]) -> Work:
        """Work from its JSON."""
        lists = {name: tuple(record[name]) for name in ("arguments", "written")}
        return cls(record["function"], creates=record["creates"], **lists)

    def resolve(self) -> Callable[[tuple[str, ...], Unit, bool], Outcome]:
        """The function."""
        module, _, name = self.function.partition(":")
        found: Callable[[tuple[str, ...], Unit, bool], Outcome] = getattr(
            import_module(module), name
        )
        return found


@dataclass(frozen=True)
class Known:
    """What a manifest knows of a unit that was done.

    Attributes:
        source: `fingerprint` of the source, before it was read.
        outputs: That of what was written.
        outcome: What came of it.
    """

    source: str
    outputs: str
    outcome: Outcome


@dataclass(frozen=True)
class Assignment:
    """A unit as a worker gets it.

    Attributes:
        unit: The unit.
        again: An earlier attempt may have written the target.
        tracked: Whether fingerprints are wanted, for a manifest.
        source: The fingerprint of the source when the unit was done before; None if it was not.
        outputs: That of its outputs.
        written: The paths of the outputs.
    """

    unit: Unit
    again: bool = False
    tracked: bool = False
    source: str | None = None
    outputs: str | None = None
    written: tuple[str, ...] = field(default=())

    @classmethod
    def of(cls, record: dict[str, Any]) -> Assignment:
        """An assignment from its JSON."""
        changed = {"unit": Unit(**record["unit"]), "written": tuple(record.get("written", ()))}
        return cls(**{**record, **changed})

    def record(self) -> dict[str, Any]:
        """The same as JSON has it, without what is not known."""
        known = {name: value for name, value in vars(self).items() if value}
        return {**known, "unit": vars(self.unit)}


def perform(work: Work, assignment: Assignment) -> dict[str, Any]:
    """Do a unit, unless it is done and nothing has changed since; in a worker.

    Returns:
        The JSON of a `Known`; ``{}`` if what is known stands.
    """
    unit = assignment.unit
    before = ""
    if assignment.tracked:
        before = fingerprint([unit.source], without=work.written)
        stands = assignment.source == before
        if stands and assignment.outputs == fingerprint(assignment.written):
            return {}
    # A source that changes while it is read differs from `before`, and is read again by the next run.
    outcome = work.resolve()(work.arguments, unit, assignment.again)
    outputs = fingerprint(outcome.outputs) if assignment.tracked else ""
    return {"source": before, "outputs": outputs, "outcome": outcome.record()}


def fingerprint(paths: Iterable[str], *, without: tuple[str, ...] = ()) -> str:
    """What changes whenever files do: a digest over sizes, times and versions.

    Cost: a stat(2) for each local file; for each remote one a request.

    Args:
        paths: Files and folders, paths or URLs. One that is missing counts as such.
        without: How the names of files in folders end that do not count.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            facts = _remote(path, without) if is_url(path) else _local(path, without)
        except (SafetensorError, OSError, ValueError) as error:  # the command says what is wrong
            facts = [("", type(error).__name__)]
        digest.update(repr((path, facts)).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _local(path: str, without: tuple[str, ...]) -> list[tuple[Any, ...]]:
    if not os.path.isdir(path):
        return [_facts("", path)]
    store = LocalStore(path)
    names = [entry.name for entry in store.list() if not entry.name.endswith(without)]
    return [_facts(name, os.path.join(path, name)) for name in names]


def _facts(name: str, path: str) -> tuple[Any, ...]:
    try:
        status = os.stat(path)
    except OSError as error:
        return name, type(error).__name__
    # The time of the last change of the inode cannot be set: it shows what rsync -t or touch -d hides.
    return name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _remote(path: str, without: tuple[str, ...]) -> list[tuple[Any, ...]]:
    def facts(name: str, _: object = None) -> tuple[Any, ...]:
        source = store.open(name) if name else open_source(path)
        return name, source.size, source.version or _unlike_any()

    if not is_folder(path):
        return [facts("")]
    store = folder_of(path)
    if not store.can_list:
        return [("", _unlike_any())]
    names = [entry.name for entry in store.list() if not entry.name.endswith(without)]
    return in_threads(facts, names, workers=_REQUESTS)


def _unlike_any() -> str:
    """The version of what has none: it never counts as unchanged."""
    return os.urandom(16).hex()
