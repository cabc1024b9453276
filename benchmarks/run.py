"""Measure this package and its peers side by side: what `make bench` runs.

    benchmarks/run.py                  everything, twenty minutes; writes benchmarks/results/
    benchmarks/run.py --quick          smaller files, ten to fifteen minutes; writes .cache/bench/results/
    benchmarks/run.py --row load-cold  one row; more than one may be named
    benchmarks/run.py --again          a second sitting for rows of the last run that missed their marks

Only a complete run that is not too noisy replaces the published figures. Exit status 1 means that a row
misses its mark. The samples of a second sitting join those of the first. Input files are made once and kept
under ``.cache/bench/data``; everything else that is written is gone when the program ends, by Ctrl-C too.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.chart import draw
from bench.data import MIB
from bench.exchange import write_pyperf
from bench.processes import Crew
from bench.report import machine_line, markdown, noise_warning, print_tables, results_of
from bench.results import DOUBTFUL
from bench.rows import ROWS, Row, Scale
from bench.session import Session

from bench import machine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.results import RowResult

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
PUBLISHED = ROOT / "benchmarks" / "results"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller files, fewer samples")
    parser.add_argument(
        "--row", action="append", default=[], choices=[row.name for row in ROWS], metavar="NAME",
        help=f"only this row: {', '.join(row.name for row in ROWS)}",
    )  # fmt: skip
    parser.add_argument(
        "--few", action="store_true", help="only what a row is compared with, to try it out quickly"
    )
    parser.add_argument(
        "--again", action="store_true",
        help="measure rows of the last run that missed their marks, or were noisy, for twice as long again",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder for the results")
    parser.add_argument("--mib", type=int, help="at most this much data a file, to try a row out")
    parser.add_argument("--count", type=int, help="at most so many tensors a file, likewise")
    parser.add_argument(
        "--render",
        type=Path,
        metavar="JSON",
        help="only make tables and chart of these results anew",
    )
    return parser.parse_args(arguments)


def chosen_rows(names: list[str]) -> list[Row]:
    return [row for row in ROWS if not names or row.name in names]


def check_space(rows: list[Row], scale: Scale, folder: Path) -> None:
    """Refuse to begin what would fill the disk."""
    specs = {scaled.data for row in rows if (scaled := scale.apply(row)).data is not None}
    kept = sum(2 * spec.nbytes for spec in specs if not (folder / "data" / spec.filename).exists())
    largest = max((spec.nbytes for spec in specs), default=0)
    needed = kept + 2 * largest + 256 * MIB
    free = machine.free_space(folder)
    if free < needed:
        sys.exit(
            f"not enough space below {folder}: {needed >> 20} MiB are needed for test files and output, "
            f"{free >> 20} MiB are free. Use --quick, or make room."
        )


def report(head: str, text: str) -> None:
    """Progress, on a terminal in one line that changes."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{head} {text}", end="", file=sys.stderr, flush=True)


def latest(since: float = 0.0, folder: Path | None = None) -> dict[str, Any] | None:
    """The newest result in the folder, or in those where results are by default; None if none is."""
    folders = [folder] if folder else [PUBLISHED, CACHE / "results"]
    paths = [path / f"{stem}.json" for path in folders for stem in ("latest", "trial")]
    written = {path: path.stat().st_mtime for path in paths if path.exists()}
    newest = max(written, key=written.__getitem__, default=None)
    if newest is None or written[newest] < since:
        return None
    document: dict[str, Any] = json.loads(newest.read_text())
    return document


def doubtful(document: dict[str, Any]) -> dict[str, RowResult]:
    """The rows that a second sitting may tell more about."""
    return {found.name: found for found in results_of(document) if found.verdict in DOUBTFUL}


def resumed(options: argparse.Namespace, scale: Scale, rows: list[Row]) -> dict[str, Any]:
    """The last run, with a second sitting of the rows that it left in doubt."""
    document = latest(folder=options.output)
    if document is None or document.get("scale") != asdict(scale):
        sys.exit("no run with these options is there to go on from")
    before = doubtful(document)
    rows = [row for row in rows if row.name in before]
    if not rows:
        return document
    measured = measure(rows, scale, scratch_folder(), before)
    again = {row["name"]: row for row in measured["rows"]}
    return {**document, "rows": [again.get(row["name"], row) for row in document["rows"]]}


def measure(
    rows: list[Row], scale: Scale, scratch: Path, before: Mapping[str, RowResult] | None = None
) -> dict[str, Any]:
    """Carry the rows out, in a second sitting if there are results before; the document to write."""
    absent = {}
    prerelease = CACHE / "safetensors-0.9"
    reason = machine.install_prerelease(prerelease)
    if reason is not None:
        absent["safetensors-0.9"] = reason
    paths = {"safetensors-0.9": [str(prerelease)]}
    description = machine.describe(CACHE)
    specs = [scaled.data for row in rows if (scaled := scale.apply(row)).data is not None]
    machine.touch_memory(5 * max((spec.nbytes for spec in specs), default=MIB))
    started, processors = datetime.now(timezone.utc), machine.ProcessorTime()
    begin = time.perf_counter()
    results: list[RowResult] = []
    out = scratch / "out"
    out.mkdir()
    with (scratch / "log").open("wb") as log, Crew(paths, absent, log) as crew:
        session = Session(crew, scale, CACHE / "data", out)
        for number, row in enumerate(rows, 1):
            head = f"[{number}/{len(rows)}] {row.name}"
            found = session.measure(row, partial(report, head), (before or {}).get(row.name))
            results.append(found)
            if not sys.stderr.isatty():
                seconds = time.perf_counter() - begin
                print(f"{head} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        versions = {name: text for name, text in sorted(crew.versions.items()) if text}
    report("", "")
    return {
        "schema": 1,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - begin, 1),
        "scale": asdict(scale),
        "complete": scale.complete and len(rows) == len(ROWS),
        "machine": {**description, **processors.shares()},
        "versions": {**versions, "numpy": version("numpy"), "torch": version("torch")},
        "rows": [result.as_json() for result in results],
    }


def write(document: dict[str, Any], folder: Path, stem: str) -> None:
    """The JSON, the tables, the chart, and the file for pyperf."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"description": machine_line(document), **document}
    (folder / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / f"{stem}.md").write_text(markdown(document))
    chart = draw(results_of(document), machine_line(document))
    (folder / f"{stem}.svg").write_text(chart)
    write_pyperf(document, folder / f"{stem}.pyperf.json")


def scratch_folder() -> Path:
    """For output files; what a killed run left is removed first."""
    sweep()
    return Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))


def sweep() -> None:
    """Remove what is not meant to stay: output folders, and input files that are not complete."""
    for folder in CACHE.glob("run-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for path in (CACHE / "data").glob("*.partial"):
        path.unlink(missing_ok=True)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    options = parse()
    if options.render:
        document = json.loads(options.render.read_text())
        write(document, options.output or options.render.parent, options.render.stem)
        print_tables(document)
        return 0
    signal.signal(signal.SIGTERM, interrupted)
    scale = Scale(options.quick, options.mib, options.count, options.few)
    rows = chosen_rows(options.row)
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("another benchmark is running here: two of them would measure each other")
        check_space(rows, scale, CACHE)
        try:
            if options.again:
                document = resumed(options, scale, rows)
            else:
                document = measure(rows, scale, scratch_folder())
        except KeyboardInterrupt:
            print("\ninterrupted: nothing is kept", file=sys.stderr)
            return 130
        finally:
            sweep()
    # A noisy run would publish the state of the machine, not the figures.
    published = document["complete"] and not noise_warning(results_of(document))
    folder = options.output or (PUBLISHED if published else CACHE / "results")
    write(document, folder, "latest" if published else "trial")
    print_tables(document)
    print(f"written: {folder}")
    return 1 if any(found.verdict == "FAIL" for found in results_of(document)) else 0


if __name__ == "__main__":
    sys.exit(main())
