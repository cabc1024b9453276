"""Nothing in a hostile file is executed or imported, and no scan calls one clean."""

from __future__ import annotations

import contextlib
import pkgutil
from importlib import import_module

import pytest
from hostile import Case, corpus

from safeweights.checkpoint import to_bytes
from safeweights.conversion import ForeignCheckpoint, convert, open, readers, scan
from safeweights.conversion.rebuilding import rebuild
from safeweights.errors import SafetensorError

CASES = corpus()


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import lazily what honest files need, so that the guard sees only what hostile ones cause."""
    import numpy as np
    import pyfive  # noqa: F401

    for package in ("checkpoint", "conversion", "derived", "format", "storage"):
        found = pkgutil.iter_modules(import_module(f"safeweights.{package}").__path__)
        for module in found:
            import_module(f"safeweights.{package}.{module.name}")
    for module in pkgutil.iter_modules(readers.__path__):
        import_module(f"{readers.__name__}.{module.name}")
    path = tmp_path_factory.mktemp("warm") / "a.npz"
    np.savez(path, a=np.zeros(3))
    convert(path, path.with_suffix(".safetensors"))
    to_bytes(open(path))
    scan(str(path))


def test_the_corpus_is_large_and_has_no_case_twice() -> None:
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_file_executes_nothing(case: Case, guard, tmp_path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(case.data)
    refusal = None
    with guard.armed() as seen:
        report = scan(str(path))
        with contextlib.suppress(SafetensorError):
            convert(str(path), tmp_path / "out.safetensors", dry_run=True)
        with contextlib.suppress(SafetensorError):  # all that `convert` would write
            to_bytes(open(str(path)))
        with contextlib.suppress(SafetensorError):  # what a guarded process gives for it
            opened = open(str(path))
            if isinstance(opened, ForeignCheckpoint):
                rebuild(opened, lambda tensor, _: tensor.view())
    assert seen == []
    try:  # removes files of its own, those of the commit
        convert(str(path), tmp_path / "out.safetensors", digests=False)
    except SafetensorError as error:
        refusal = error
    assert report.verdict == case.verdict, [report.findings[:3], report.unread]
    if case.verdict == "clean":
        assert case.refused is not False
    if case.refused:
        with pytest.raises(SafetensorError):
            open(str(path))
        assert refusal is not None
    if refusal is not None:
        assert str(refusal)
        assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.verdict == "dangerous"], ids=lambda case: case.name
)
def test_a_dangerous_call_is_named_with_its_offset(case: Case) -> None:
    worst = [finding for finding in scan(case.data).findings if finding.grade == 2]
    assert worst
    for finding in worst:
        assert finding.offset >= 0
        assert finding.reason


def test_the_guard_sees_what_it_should_see(guard) -> None:
    import pickle

    with guard.armed() as seen:
        pickle.loads(b"cstring\nTemplate\n.")
    assert any("pickle.find_class" in event for event in seen)
