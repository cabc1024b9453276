"""Write docs/rules.md from the table of rules: ``python scripts/rules_page.py --write``.

Without ``--write``, fail if the page differs from the table.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safeweights.format.rules import RULES as FORMAT_RULES
from safeweights.reports.rules import FAMILIES, RULES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "rules.md"

HEAD = """\
# Rules

Every finding of `safeweights check` and every error of a file has a rule. Identifiers are stable;
`check --json` and `--sarif` contain them. `scripts/rules_page.py` writes this page.
"""


def page() -> str:
    """The text of the page."""
    parts = [HEAD]
    groups = {
        "Rules of the format": [name for name in RULES if name in FORMAT_RULES],
        "Findings": [name for name in RULES if name not in FORMAT_RULES],
    }
    for title, names in groups.items():
        parts.append(f"\n## {title}\n\n| rule | meaning | what to do |\n|---|---|---|\n")
        parts += [_row(f'<a id="{name}"></a>`{name}`', *RULES[name]) for name in names]
    parts.append(
        "\n## Families\n\nEach row is about all rules whose identifiers begin like this.\n\n"
    )
    parts.append("| rules | meaning | what to do |\n|---|---|---|\n")
    parts += [_row(f"`{name}*`", *rule) for name, rule in FAMILIES.items()]
    return "".join(parts)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE.name} differs from the table: python scripts/rules_page.py --write")
