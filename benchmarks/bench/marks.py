"""Marks of the programs beside `benchmarks/run.py`: figures with what they are to reach, and their sum.

Each program makes one `Marks`, adds a figure a line, and ends with `close`, which prints the table, keeps
it for `benchmarks/everything.py`, and gives the exit status. So `make bench` ends with one verdict for
every row, whichever program measured it. Samples that a program takes in `Marks.rounds` and puts into
`Marks.samples` are kept, too: where they leave a doubt, those of a second sitting join them, when
everything else was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from .results import DOUBTFUL, LONGER, NEAR, NOISY, Sampled, slowest, undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["FOLDER", "Mark", "Marks", "compared", "parser", "timed"]

FOLDER: Final = Path(__file__).resolve().parents[2] / ".cache" / "bench" / "marks"


@dataclass(frozen=True)
class Mark:
    """One figure.

    Attributes:
        title: What it is, and by what it is divided.
        value: The figure.
        most: It must not exceed this.
        least: It must not be below this. With neither, it is for information.
        unit: Of the value; empty for a ratio.
        bound: What the machine itself reaches, measured in the same run, at most.
        slowest: The same and its spread (`results.slowest`): if this reaches the mark, the bound certainly
            does. `bound` if it is not known.
        best: That of the undisturbed samples (`results.undisturbed`); of all if it is not known.
        noise: The spread of the samples, as a share of their median.
    """

    title: str
    value: float
    most: float | None = None
    least: float | None = None
    unit: str = ""
    bound: float | None = None
    slowest: float | None = None
    best: float | None = None
    noise: float = 0.0

    @property
    def verdict(self) -> str:
        """``"pass"``, ``"FAIL"``, ``"limit"``, ``"noisy"``, or empty where nothing was asked.

        They mean the same as in the rows of `run.py`: the limit is that the machine misses the mark too, or
        meets it by less than it spreads, and that the undisturbed samples are within a fifth of what it
        reaches, or beyond. Two decimals count.
        """
        if self.most is None and self.least is None:
            return ""
        best = self.value if self.best is None else self.best
        reached = self._reached(self.value)
        if self.noise > NOISY and self._reached(best) != reached:
            return "noisy"
        if reached:
            return "pass"
        if self.bound is None or self._reached(self.slowest or self.bound):
            return "FAIL"
        worse, better = (self.bound, best) if self.most is None else (best, self.bound)
        return "limit" if worse <= NEAR * better else "FAIL"

    def _reached(self, figure: float) -> bool:
        value = round(figure, 2)
        return (self.most is None or value <= self.most) and (
            self.least is None or value >= self.least
        )

    def line(self) -> str:
        """For the table: at most a hundred columns."""
        asked = "" if self.most is None else f"<= {self.most:g}"
        asked += "" if self.least is None else f">= {self.least:g}"
        shown = f"{self.value:.2f} {self.unit}".strip()
        return f"{self.title[:62]:62} {shown:>14}  {asked:10} {self.verdict}".rstrip()


def compared(
    title: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    most: float | None = None,
    bound: Sequence[float] = (),
) -> Mark:
    """The ratio of two times.

    Args:
        title: See `Mark`.
        ours: Samples of our time.
        theirs: Samples of the time by which it is divided.
        most: See `Mark`.
        bound: Samples of the time that the machine itself needs for what any implementation has to do.
    """
    mine, other, limit = Sampled([*ours]), Sampled([*theirs]), Sampled([*bound])
    best, below, least = (value or 0.0 for value in undisturbed(mine, other, limit))
    return Mark(
        title,
        median(ours) / median(theirs),
        most,
        bound=least / below if bound else None,
        slowest=slowest(limit, least) / below if bound else None,
        best=best / below,
        noise=max(mine.noise, other.noise),
    )


def timed(title: str, samples: Sequence[float], *, most: float) -> Mark:
    """A time in seconds.

    Args:
        title: See `Mark`.
        samples: Of the time.
        most: See `Mark`.
    """
    found = Sampled([*samples])
    (best,) = undisturbed(found)
    return Mark(title, median(samples), most, unit="s", best=best, noise=found.noise)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Of the command line of a program with this docstring that keeps samples."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument(
        "--again", action="store_true",
        help="a second sitting: more samples of what the first left in doubt; both count",
    )  # fmt: skip
    return made


class Marks:
    """The figures of one program.

    Args:
        program: Its name.
        options: Of its command line. With `again`, the samples of the last run are there to begin with.
        folder: Where they are kept.

    Raises:
        SystemExit: There is no last run to go on from, or one with other options.
    """

    def __init__(
        self, program: str, options: argparse.Namespace | None = None, folder: Path = FOLDER
    ) -> None:
        self.program = program
        self.found: list[Mark] = []
        self._options = {**vars(options)} if options else {}
        self._again = self._options.pop("again", False)
        self._path = folder / f"{program}.json"
        self._samples: dict[str, dict[str, list[Any]]] = {}
        if self._again:
            kept = _kept(self._path)
            if kept is None or kept["options"] != self._options:
                sys.exit(f"{program}: no run with these options is there to go on from")
            self._samples = kept["samples"]
        # A program that fails must not leave the figures of before.
        self._path.unlink(missing_ok=True)

    def samples(self, of: str, ways: Iterable[str]) -> dict[str, list[Any]]:
        """Lists to append samples to, plain JSON, one a way: of what is measured by that name."""
        return self._samples.setdefault(of, {way: [] for way in ways})

    def rounds(self, fewest: int, judged: Callable[[], Iterable[Mark]]) -> range:
        """Number the rounds in which samples are to be taken.

        Args:
            fewest: Rounds of a first sitting; a second one has twice as many, if there is a doubt.
            judged: Gives the figures of the samples so far.
        """
        if not self._again:
            return range(fewest)
        doubt = any(mark.verdict in DOUBTFUL for mark in judged())
        return range(fewest, LONGER * fewest if doubt else fewest)

    def add(
        self,
        title: str,
        value: float,
        *,
        most: float | None = None,
        least: float | None = None,
        unit: str = "",
        bound: float | None = None,
    ) -> None:
        """Add a figure; the arguments are those of `Mark`."""
        self.found.append(Mark(title, value, most, least, unit, bound))

    def close(self) -> int:
        """Print and keep them; 1 if one misses its mark, else 0."""
        print()
        for mark in self.found:
            print(mark.line())
        kept = {
            "options": self._options,
            "marks": [asdict(mark) for mark in self.found],
            "samples": self._samples,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(kept, indent=1) + "\n")
        sys.stdout.flush()
        return 1 if any(mark.verdict == "FAIL" for mark in self.found) else 0

    @classmethod
    def kept(cls, program: str, folder: Path = FOLDER) -> list[Mark] | None:
        """What the program's last run found; None if it did not end, or was not run."""
        found = _kept(folder / f"{program}.json")
        return None if found is None else [Mark(**fields) for fields in found["marks"]]

    @classmethod
    def doubtful(cls, program: str, folder: Path = FOLDER) -> bool:
        """Whether a second sitting of the program may tell more."""
        found = _kept(folder / f"{program}.json") or {"samples": {}}
        figures = cls.kept(program, folder=folder) or ()
        return bool(found["samples"]) and any(mark.verdict in DOUBTFUL for mark in figures)


def _kept(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return found
