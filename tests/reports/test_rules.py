"""Every rule has a meaning and a cure."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import safeweights
from safeweights.format.rules import RULES as FORMAT_RULES
from safeweights.reports.rules import FAMILIES, RULES, rule_of

SOURCE = Path(safeweights.__file__).parent
PATTERNS = (
    r'\brule="([a-z0-9-]+)"',
    r'\.add\(\s*"(?:error|warning|note)",\s*"([a-z0-9-]+)"',
    r'Concern\(\s*"(?:acts|unknown|unread)",\s*"([a-z0-9-]+)"',
    r'yield "(name-[a-z]+)", ',
)


def named():
    """The identifiers in the source, and where."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for pattern in PATTERNS:
            for identifier in re.findall(pattern, text):
                found.setdefault(identifier, path.relative_to(SOURCE).as_posix())
    return found


def test_every_rule_in_the_source_is_described():
    found = named()
    assert len(found) > 50
    assert {name: path for name, path in found.items() if rule_of(name) is None} == {}


def test_the_table_describes_only_rules_that_exist():
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    table = (SOURCE / "reports" / "rules.py").read_text(encoding="utf-8")
    text = text.replace(table, "")
    unknown = {
        name
        for name in RULES.keys() - FORMAT_RULES.keys()
        if f'"{name}"' not in text and name.replace("-", "_") not in text
    }
    assert unknown == set()


@pytest.mark.parametrize("rule", [*RULES.values(), *FAMILIES.values()], ids=[*RULES, *FAMILIES])
def test_each_is_a_sentence_and_says_what_to_do(rule):
    for text in rule:
        assert text[0].isupper() or text[0] == "`" or text.startswith("__")
        assert text.endswith((".", ")"))


def test_the_page_is_that_of_the_table():
    root = SOURCE.parent.parent
    script = root / "scripts" / "rules_page.py"
    if not script.exists():
        pytest.skip("the installed package has no scripts")
    namespace = runpy.run_path(str(script))
    page = (root / "docs" / "rules.md").read_text(encoding="utf-8")
    assert page == namespace["page"](), "run: python scripts/rules_page.py --write"
