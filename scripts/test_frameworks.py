"""Test each framework in its own environment and print the matrix: what `make test-frameworks` runs.

    scripts/test_frameworks.py [FRAMEWORK ...] [--write]

With ``--write`` the matrix in docs/frameworks.md is brought up to date; without, it has to be.
"""

from __future__ import annotations

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from environments import ROOT, WORKERS, environment, output_of_pytest

ENVIRONMENTS = {
    "torch": ("clients", "clients.txt"),  # with NumPy; the clients need both too
    **{name: (name, f"framework-{name}.txt") for name in ("jax", "tensorflow", "mlx", "paddle")},
}
TARGET = ROOT / "docs" / "frameworks.md"
BEGIN, END = "<!-- matrix: written by scripts/test_frameworks.py -->\n", "<!-- end of matrix -->\n"
SIGNS = {
    ("yes", "yes"): "✓", ("yes", "no"): "✓ (reference: error)", ("yes", "wrong"): "✓ (reference: wrong)",
    ("yes", "mutates"): "✓ (reference: changes the caller's dict)",
    ("no", "no"): "·", ("no", "wrong"): "error (reference: wrong)", ("no", "yes"): "MISSING",
}  # fmt: skip

Matrix = dict[str, dict[str, dict[str, list[str]]]]


def heading(operations: list[str]) -> str:
    """Names of operations; one that is there with both backends is named without them."""
    names = [operation.partition(" ")[0] for operation in operations]
    return ", ".join(
        dict.fromkeys(
            name if names.count(name) == 2 else operation
            for name, operation in zip(names, operations, strict=True)
        )
    )


def render(matrix: Matrix) -> str:
    """One table a framework: element types down, operations across; equal columns are one."""
    lines = []
    for framework, rows in matrix.items():
        lines += [f"### {framework}", ""]
        operations = list(next(iter(rows.values())))
        columns = {
            op: tuple(SIGNS[tuple(cells[op])] for cells in rows.values()) for op in operations
        }
        merged: dict[tuple[str, ...], list[str]] = {}
        for operation, column in columns.items():
            merged.setdefault(column, []).append(operation)
        lines.append(f"| type | {' | '.join(map(heading, merged.values()))} |")
        lines.append("|---" * (len(merged) + 1) + "|")
        for at, code in enumerate(rows):
            lines.append(f"| {code} | {' | '.join(column[at] for column in merged)} |")
        lines.append("")
    return "\n".join(lines)


def collect(names: list[str]) -> tuple[Matrix, list[str]]:
    """Run the tests of each framework; the matrix they found and the frameworks that failed.

    Each takes one core, so that two run at a time.
    """
    matrix: Matrix = {}
    failed = []
    pythons = {name: environment(*ENVIRONMENTS[name]) for name in names}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(int(WORKERS)) as pool:
        runs = {
            name: pool.submit(
                output_of_pytest, python, "tests/frameworks", SAFEWEIGHTS_MATRIX=f"{folder}/{name}"
            )
            for name, python in pythons.items()
        }
        for name, run in runs.items():
            code, output = run.result()
            print(f"== {name}\n{output}", flush=True)
            if code:
                failed.append(name)
            found = Path(folder) / name
            if found.exists():
                for kit, rows in json.loads(found.read_text()).items():
                    matrix.setdefault(kit, rows)
    return matrix, failed


def main() -> int:
    names = [word for word in sys.argv[1:] if not word.startswith("-")] or list(ENVIRONMENTS)
    matrix, failed = collect(names)
    table = render(matrix)
    print(table)
    if failed:
        print(f"failed: {', '.join(failed)}")
        return 1
    before, _, rest = TARGET.read_text().partition(BEGIN)
    current, _, after = rest.partition(END)
    if "--write" in sys.argv:
        TARGET.write_text(f"{before}{BEGIN}{table}{END}{after}")
    elif list(ENVIRONMENTS) == names and current != table:
        print(f"{TARGET.name} has another matrix: run scripts/test_frameworks.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
