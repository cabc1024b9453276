"""Headers of up to 100 MB: time and memory of opening a file, beside the reference's `safe_open`.

    python benchmarks/header_limits.py            the table of the README
    python benchmarks/header_limits.py --all      every header of tests/core/hostile_headers.py

Every measurement is a process of its own: the processor time of the best of three openings, and by how
much the first of them raised the process's peak memory. Processor time, because it is repeatable on a
machine that does other things too. The files are made, used and removed one after another; their data
are holes that take no room on the disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "core"))

import hostile_headers as hostile  # noqa: E402 - the generators are the tests'

SIZE = 100_000_000
RUNS = 3
SHOWN = (
    "legitimate", "fields in an unusual order", "spaces that differ", "names with escapes",
    "a new shape each", "one name", "one name of escapes", "one metadata value of escapes",
    "white space", "49 million dimensions", "33 million empty arrays", "millions of metadata keys",
    "unknown fields everywhere", "one unknown string", "the same name",
)  # fmt: skip

WORKER = """
import json, pathlib, resource, sys, time
implementation, path, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
import numpy
if implementation == "reference":
    from safetensors import safe_open
    read = lambda: safe_open(path, "numpy")
else:
    import safeweights
    from safeweights import checkpoint
    read = lambda: checkpoint.open(path)
def peak():
    # ru_maxrss would begin with the size of the parent process on Linux.
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
before, times, verdict = peak(), [], "reads"
for number in range(runs):
    begin = time.process_time()
    try:
        found = read()
    except Exception as error:
        found, verdict = None, "refuses"
    times.append(time.process_time() - begin)
    if number == 0:
        memory = peak() - before
    del found
print(json.dumps([verdict, min(times), memory]))
"""


def cases(names: tuple[str, ...] | None) -> list[str]:
    every = [*hostile.READ, *hostile.REFUSED]
    return [name for name in (names or every) if name in every]


def write(path: Path, name: str, size: int) -> None:
    make = hostile.READ[name] if name in hostile.READ else hostile.REFUSED[name][1]
    text, data = make(size)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + data)


def measure(implementation: str, path: Path) -> tuple[str, float, int]:
    command = [sys.executable, "-c", WORKER, implementation, str(path), str(RUNS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    verdict, seconds, memory = json.loads(done.stdout)
    return verdict, seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Opening files with large headers, beside the reference."
    )
    parser.add_argument(
        "--all", action="store_true", help="every header, not only those of the README"
    )
    parser.add_argument(
        "--size", type=int, default=SIZE, help="bytes of header (default: the largest)"
    )
    options = parser.parse_args()
    print(f"| header of {options.size / 1e6:.0f} MB | safeweights | reference |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.safetensors"
        for name in cases(None if options.all else SHOWN):
            write(path, name, options.size)
            cells = [name]
            for implementation in ("safeweights", "reference"):
                verdict, seconds, memory = measure(implementation, path)
                cells.append(f"{verdict}, {seconds:.2f} s, {memory / 1e6:.0f} MB")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
