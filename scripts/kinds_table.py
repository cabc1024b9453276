"""The table of kinds in docs/kinds.md: check it, or with --write bring it up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from safeweights.conversion.kinds import KINDS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "kinds.md"
BEGIN, END = "<!-- kinds: written by scripts/kinds_table.py -->\n", "<!-- end of kinds -->\n"
POWERS = {
    "data": "builds data", "reads": "is read", "acts": "runs code", "unknown": "is not read here",
}  # fmt: skip


def table() -> str:
    """One row a kind."""
    lines = ["| kind | what it is | | it can | what to do |", "|---|---|---|---|---|"]
    for kind in KINDS.values():
        advice = kind.advice[:1].upper() + kind.advice[1:]
        lines.append(
            f"| `{kind.id}` | {kind.name} | {POWERS[kind.power]} | {kind.can} | {advice} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    current, _, after = rest.partition(END)
    if "--write" in sys.argv:
        PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}")
    elif current != table():
        print(f"{PAGE.name} has another table: run {sys.argv[0]} --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
