"""docs/scanners.md says of our own verdicts on hostile files what they are."""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from families import hostile_families, suffix_of

from safeweights.reports.checking import check_path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "scanners.json").read_text())
WORDS = {"bad": "flagged", "unreadable": "unread", "ok": "clean"}
FAMILIES = hostile_families()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_our_column_of_hostile_files(family: str, tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    for case in FAMILIES[family]:
        path = tmp_path / f"file{suffix_of(case.data)}"
        path.write_bytes(case.data)
        found[WORDS[check_path(str(path), strict=False)["status"]]] += 1
        path.unlink()
    expected = RESULTS["counts"]["hostile"][family]["safeweights"]
    assert [found[word] for word in ("flagged", "unread", "clean")] == expected
    assert not found["clean"]


def test_the_page_shows_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = spec_from_file_location("scanners", ROOT / "benchmarks" / "scanners" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    run = module_from_spec(spec)
    spec.loader.exec_module(run)
    shown = run.PAGE.read_text().partition(run.BEGIN)[2].partition(run.END)[0]
    assert shown == run.table(RESULTS)
