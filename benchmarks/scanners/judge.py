"""What one scanner says of each file: `python judge.py SCANNER LIST`, in the scanner's own environment.

LIST has one path a line. Prints a JSON object: path -> [verdict, CPU seconds, peak MiB]. The verdict is
that of the scanner's own exit status: ``clean``, ``flagged``, or ``unread`` where it says that it failed or
that it read nothing. Each file is judged in a process of its own, which ends after a minute of CPU time, so
that other programs do not change the result.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 60
"""CPU time that a scanner may take for one file; of real time, ten times as much."""
WORDS = {0: "clean", 1: "flagged"}


def safeweights(path: str) -> str:
    from safeweights.reports.checking import check_path

    status = check_path(path, strict=False)["status"]
    return {"ok": "clean", "bad": "flagged", "unreadable": "unread"}[status]


def picklescan(path: str) -> str:
    from picklescan.scanner import scan_file_path

    found = scan_file_path(path)
    if found.issues_count:
        return "flagged"
    return "unread" if found.scan_err or not found.scanned_files else "clean"


def fickling(path: str) -> str:
    from fickling.cli import main

    return WORDS.get(main(["fickling", "--check-safety", path]), "unread")


def modelscan(path: str) -> str:
    from modelscan.modelscan import ModelScan

    scan = ModelScan()
    scan.scan(path)
    if scan.issues.all_issues:
        return "flagged"
    return "unread" if scan.errors or not scan.scanned else "clean"


def modelaudit(path: str) -> str:
    from modelaudit.core import determine_exit_code, scan_model_directory_or_file

    return WORDS.get(determine_exit_code(scan_model_directory_or_file(path)), "unread")


SCANNERS: dict[str, Callable[[str], str]] = {
    each.__name__: each for each in (safeweights, picklescan, fickling, modelscan, modelaudit)
}
MODULES = {"safeweights": ["safeweights.reports.checking", "safeweights.conversion.kinds"]}


def judged(scanner: Callable[[str], str], path: str) -> tuple[str, float, float]:
    """Verdict, CPU seconds and peak MiB; a scanner that raises has not read the file."""
    end, begin = os.pipe()
    child = os.fork()
    if not child:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(10 * SECONDS)
        verdict = "unread"
        with contextlib.suppress(BaseException), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
            verdict = scanner(path)
        os.write(begin, verdict.encode())
        os._exit(0)
    os.close(begin)
    _, status, usage = os.wait4(child, 0)
    seconds = usage.ru_utime + usage.ru_stime
    verdict = os.read(end, 20).decode() if not status else "unread"
    os.close(end)
    return verdict, round(seconds, 3), round(usage.ru_maxrss / 1024)


def main() -> int:
    """Judge every file of the list."""
    scanner = SCANNERS[sys.argv[1]]
    paths = Path(sys.argv[2]).read_text().splitlines()
    for module in MODULES.get(sys.argv[1], [sys.argv[1]]):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
            scanner(sys.executable)  # what it imports when it is first used is not the first file's
        found = {path: judged(scanner, path) for path in paths}
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
