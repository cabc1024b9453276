"""Carrying rows out: prepare all contenders, warm up and compare contents, then sample A B C, A B C ...

Rules:
- Contenders take turns sample by sample, so that a change of the machine's state meets all of them;
  each round begins with another one.
- The limits take part like contenders.
- A contender that fails is left out of the row, with the reason; the others go on.
- What a sample wrote is deleted after it, before the system has written it to disk.
- All take part in the fewest rounds. Then only those do on which the verdict depends, so that slow peers
  cost it no samples: ours, the limits, the contender that ours is compared with, and where that is the
  best one, all whose fastest sample is below its median.
- These rounds go on until there are the most, or the time of the row is over.
- A row that misses its mark, or whose verdict depends on noise, may have a second sitting when everything
  else was measured, twice as long as the first: the samples of both count.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from . import machine
from .data import MIB, ensure, entries
from .operations import fingerprint_of_file
from .processes import Crew, Failed, Missing, WorkerProcess
from .results import LONGER, RowResult, Sampled, deciding, judge
from .rows import Entry, Reach, Row, Scale, index_text, selection_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Session"]

_HOLDING: Final = {"load bytes", "save bytes", "save file", "rename", "merge", "compare"}
"""Verbs for which every process holds the row's data, not only the one whose turn it is."""

_READING: Final = {
    "load", "load verified", "load encrypted", "encrypt file", "open header", "first tensor", "slice",
    "rename", "merge", "compare", "apply delta",
}  # fmt: skip
"""Verbs that read the row's file while the clock runs."""

_PAGE: Final = 4096
_MUCH: Final = 64 * MIB
"""Bytes of a row from which on the time to touch memory says something about the machine."""

_IMPORT_ROUNDS: Final = (9, 31)


@dataclass
class _Turn:
    """A contender or limit in one row."""

    key: str
    entry: Entry
    verb: str
    arguments: dict[str, Any]
    sampled: Sampled = field(default_factory=Sampled)
    fingerprint: int | None = None

    @property
    def active(self) -> bool:
        return self.sampled.missing is None


@dataclass
class _Sitting:
    """A row while it is measured.

    Attributes:
        row: On the data of this run.
        turns: Of the contenders, then of the limits.
        notes: For the result.
        playing: The columns that take part; all if it is empty.
        memory_rates: See `RowResult`.
        number: 1, or 2 if it is the second.
    """

    row: Row
    turns: list[_Turn]
    notes: list[str]
    playing: set[str] = field(default_factory=set)
    memory_rates: list[float] = field(default_factory=list)
    number: int = 1

    @property
    def active(self) -> list[_Turn]:
        """The turns of those that take part and have not dropped out."""
        return [
            turn
            for turn in self.turns
            if turn.active and (not self.playing or turn.entry.column in self.playing)
        ]

    @property
    def length(self) -> int:
        """How many times as long as a first one it is."""
        return 1 if self.number == 1 else LONGER - 1

    def resume(self, earlier: RowResult) -> None:
        """Make it the second one, after that which found `earlier`."""
        found = {**earlier.contenders, **earlier.limits}
        for turn in self.turns:
            turn.sampled = found.get(turn.entry.column, turn.sampled)
        self.playing = deciding(earlier)
        self.notes = [*dict.fromkeys([*earlier.notes, *self.notes])]
        self.memory_rates = [*earlier.memory_rates]
        self.number = earlier.sittings + 1

    def result(self) -> RowResult:
        """What was found until now."""
        row, contenders = self.row, len(self.row.entries)
        found = entries(row.data) if row.data else []
        return RowResult(
            name=row.name,
            title=row.title.format(size=_size_text(row), count=f"{len(found):,}"),
            unit=row.unit,
            nbytes=found[-1][4] if found else 0,
            tensors=len(found),
            reach=_reach_text(row),
            versus=row.versus,
            contenders={turn.entry.column: turn.sampled for turn in self.turns[:contenders]},
            limits={turn.entry.column: turn.sampled for turn in self.turns[contenders:]},
            notes=self.notes,
            bound=row.bound,
            memory_rates=self.memory_rates,
            sittings=self.number,
        )


class Session:
    """Measures rows.

    Args:
        crew: The workers.
        scale: How large.
        data: Where input files are kept.
        out: An empty folder for what is written.
    """

    def __init__(self, crew: Crew, scale: Scale, data: Path, out: Path) -> None:
        self._crew, self._scale, self._data, self._out = crew, scale, data, out
        self._beside = out.with_name("beside")
        self._cached: set[str] = set()
        self._say: Callable[[str], None] = _silent

    def measure(
        self,
        row: Row,
        say: Callable[[str], None] | None = None,
        earlier: RowResult | None = None,
    ) -> RowResult:
        """Carry out one row.

        Args:
            row: Which.
            say: Is told what is being done, for people who wait.
            earlier: What the first sitting found, if this is the second: those take part on which its
                verdict depends, and the samples of both count. If there is less memory now, so that they
                would not be about the same data, it is left as it is.
        """
        self._say = say or _silent
        notes: list[str] = []
        row = self._fitting(self._scale.apply(row), notes)
        sitting = _Sitting(row, self._turns(row), notes)
        if earlier is not None:
            if sitting.result().nbytes != earlier.nbytes:
                earlier.notes += ["not measured again", *notes]
                return judge(earlier, row.reach)
            sitting.resume(earlier)
        if row.kind == "import":
            self._measure_import(sitting)
        else:
            self._measure_work(sitting)
        return judge(sitting.result(), row.reach)

    def _fitting(self, row: Row, notes: list[str]) -> Row:
        """The row on half the data, and so on, until all that hold it at once fit into memory."""
        if row.data is None:
            return row
        processes = len({entry.process for entry in row.entries}) if row.verb in _HOLDING else 0
        copies = processes + len(row.limits) + 3  # the files in the cache, a result, a reserve
        spec = row.data
        while spec.nbytes * copies > machine.available_memory() and spec.nbytes > 1 << 24:
            spec = replace(spec, nbytes=spec.nbytes // 2)
        if spec != row.data:
            notes.append(f"{spec.nbytes >> 20} MiB instead of {row.data.nbytes >> 20}: memory")
        return replace(row, data=spec)

    def _turns(self, row: Row) -> list[_Turn]:
        made = []
        for number, entry in enumerate(row.entries):
            turn = _Turn(f"{row.name}/{number}", entry, row.verb, dict(entry.arguments))
            if entry.slow and self._scale.quick and entry.column != row.versus:
                turn.sampled.missing = "left out of quick runs: slow"
            made.append(turn)
        made += [
            _Turn(f"{row.name}/{name}", Entry(name, "machine"), name, {}) for name in row.limits
        ]
        return made

    # Rows whose operations run in workers

    def _measure_work(self, sitting: _Sitting) -> None:
        row = sitting.row
        assert row.data is not None
        source = ensure(row.data, self._data)
        self._beside.mkdir()
        self._say("preparing")
        for turn in sitting.active:
            with _excusing(turn):
                self._fill_in(row, turn, source)
                if row.verb in _READING and not row.cold:
                    self._cache(turn.arguments["path"])
        try:
            if row.kind == "memory":
                self._measure_memory(sitting)
            else:
                self._prepare_and_warm_up(sitting)
                _compare(sitting, _expected(row, source))
                self._rounds(sitting)
        finally:
            self._crew.release()
            shutil.rmtree(self._beside)

    def _fill_in(self, row: Row, turn: _Turn, source: Path) -> None:
        """The arguments of an operation, some of which depend on the data."""
        assert row.data is not None
        theirs = turn.entry.process == "torch"
        reads = row.verb in {"load", "first tensor", "slice", "load bytes"}
        reads = reads and not row.arguments.get("numpy")
        path = self._zipped(source) if theirs and reads else source
        found = entries(row.data)
        defaults: dict[str, Any] = {
            "path": str(path),
            "out": str(self._out / "out.safetensors"),
            "beside": str(self._beside),
            "nbytes": found[-1][4],
            "name": found[0][0],
            "format": not theirs,
        }
        if "selection" in row.arguments:
            defaults["index"] = index_text(row.arguments["selection"], row.data)
        turn.arguments = {**defaults, **row.arguments, **turn.arguments}

    def _cache(self, path: str) -> None:
        if path not in self._cached:
            machine.read_into_cache(path)
            self._cached.add(path)

    def _zipped(self, source: Path) -> Path:
        path = source.with_suffix(".pt")
        if not path.exists():
            self._crew.worker("torch").ask("convert", path=str(source), to=str(path))
        return path

    def _prepare_and_warm_up(self, sitting: _Sitting) -> None:
        for turn in sitting.active:
            with _excusing(turn):
                self._say(f"warming up {turn.entry.column}")
                worker = self._crew.worker(turn.entry.process)
                _prepare(worker, turn, sitting.row.repeat)
                turn.fingerprint = self._sample(sitting, turn, check=True)["fingerprint"]

    def _rounds(self, sitting: _Sitting) -> None:
        # Bytes are counted, not timed: they are the same each time.
        fewest, most = (2, 2) if sitting.row.kind == "bytes" else self._scale.rounds
        prepared = {turn.entry.column for turn in sitting.active}
        for number in range(sitting.length * most):
            if number == sitting.length * fewest:
                ends = time.perf_counter() + sitting.length * self._scale.seconds
            if number >= sitting.length * fewest:
                if time.perf_counter() >= ends:
                    return
                judged = judge(sitting.result(), sitting.row.reach)
                sitting.playing = deciding(judged) & prepared
            active = sitting.active
            self._say(f"round {number + 1}")
            shift = number % len(active) if active else 0
            for turn in active[shift:] + active[:shift]:
                with _excusing(turn):
                    self._keep(sitting.row, turn, self._sample(sitting, turn))

    def _sample(self, sitting: _Sitting, turn: _Turn, *, check: bool = False) -> dict[str, Any]:
        row = sitting.row
        if row.cold:
            machine.drop_from_cache(turn.arguments["path"])
        if row.data is not None:  # for the cache that is written to, and for the result
            rate = machine.touch_memory(2 * row.data.nbytes)
            if row.data.nbytes >= _MUCH:
                sitting.memory_rates.append(rate)
        worker = self._crew.worker(turn.entry.process)
        try:
            return worker.ask("sample", key=turn.key, check=check)
        finally:
            if row.writes:
                self._clear()

    def _keep(self, row: Row, turn: _Turn, answer: dict[str, Any]) -> None:
        if row.kind != "bytes":
            turn.sampled.values.append(answer["seconds"])
            turn.sampled.processor_seconds.append(answer["processor_seconds"])
            return
        if answer["bytes"] < 0:
            raise Missing("this system does not count the bytes that a process reads")
        assert row.data is not None
        nbytes, runs = selection_size(row.data, turn.arguments["index"])
        turn.sampled.values.append(answer["bytes"] / (nbytes + runs * _PAGE))

    def _clear(self) -> None:
        for path in self._out.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _measure_memory(self, sitting: _Sitting) -> None:
        """The peak of a process's first such operation: nothing is left from one before."""
        row = sitting.row
        assert row.data is not None
        nbytes = entries(row.data)[-1][4]
        for _ in range(3 * sitting.length):
            for turn in sitting.active:
                self._say(f"peak memory of {turn.entry.column}")
                with _excusing(turn):
                    extra = self._peak(turn)
                    turn.sampled.values.append(extra / nbytes if row.unit == "x" else extra)

    def _peak(self, turn: _Turn) -> float:
        worker = self._crew.fresh(turn.entry.process)
        try:
            _prepare(worker, turn, 1)
            return float(worker.ask("sample", key=turn.key, memory=True)["extra"])
        finally:
            worker.end()
            self._clear()

    # Rows that start interpreters

    def _measure_import(self, sitting: _Sitting) -> None:
        """Each import in new processes, in turns; the first writes the bytecode."""
        before = sitting.row.arguments["before"]
        for turn in sitting.active:
            with _excusing(turn):
                self._crew.worker(turn.entry.process)
                self._interpreter(turn, before)
        rounds = _IMPORT_ROUNDS[not self._scale.quick]
        for _ in range(sitting.length * rounds):
            for turn in sitting.active:
                turn.sampled.values.append(self._interpreter(turn, before))

    def _interpreter(self, turn: _Turn, before: str) -> float:
        """The processor time of an import, which a busy machine changes little; of `before` without one."""
        module = turn.arguments.get("module")
        text = f"{before}; import time; begin = time.process_time()"
        text += (
            f"; import {module}; print(time.process_time() - begin)" if module else "; print(begin)"
        )
        environment = self._crew.environment(turn.entry.process)
        done = subprocess.run(
            [sys.executable, "-c", text],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Failed(f"{text!r} ended with exit code {done.returncode}")
        return float(done.stdout)


def _silent(_: str) -> None:
    """The default `say`: nothing is shown."""


def _size_text(row: Row) -> str:
    mib = row.data.nbytes / MIB if row.data else 0
    return f"{mib / 1024:g} GiB" if mib >= 1024 else f"{mib:g} MiB"


def _reach_text(row: Row) -> str:
    reach, parts = row.reach or Reach(), []
    if reach.ratio is not None:
        parts.append(f"{reach.ratio:g}")
    if reach.limit_share is not None:
        parts.append(f"{reach.limit_share:.0%}")
    if reach.most is not None:
        shown = {"s": f"{reach.most * 1e3:g} ms", "B": f"{reach.most / MIB:g} MiB"}
        parts.append(shown.get(row.unit, f"{reach.most:g}x"))
    return ", ".join(parts)


def _prepare(worker: WorkerProcess, turn: _Turn, repeat: int) -> None:
    answer = worker.ask(
        "prepare", key=turn.key, verb=turn.verb, arguments=turn.arguments, repeat=repeat
    )
    turn.sampled.way = answer["way"]


class _excusing:  # noqa: N801 - reads as a statement
    """Note why a contender drops out of its row, instead of ending the run."""

    def __init__(self, turn: _Turn) -> None:
        self._turn = turn

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Missing | Failed | machine.NotCold | OSError):
            self._turn.sampled.values.clear()
            self._turn.sampled.missing = str(error)
            return True
        return False


def _expected(row: Row, source: Path) -> int | None:
    """What results come to, told from the file alone; None where only a part of it is used."""
    whole = row.verb in {"load", "load bytes", "load verified", "load encrypted", "save file"}
    return fingerprint_of_file(str(source)) if whole else None


def _compare(sitting: _Sitting, expected: int | None) -> None:
    """Leave out contenders with other bytes than expected, or than most: their time says nothing."""
    seen = Counter(turn.fingerprint for turn in sitting.active if turn.fingerprint is not None)
    if not seen:
        return
    agreed = seen.most_common(1)[0][0] if expected is None else expected
    for turn in sitting.active:
        if turn.fingerprint not in {None, agreed}:
            turn.sampled.missing = "its result differs from the others'"
            sitting.notes.append(f"{turn.entry.column}: {turn.sampled.missing}")
