"""The vectors, and the runner that tests implementations with them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from safeweights import checkpoint, conformance
from safeweights.errors import FormatError
from safeweights.format import header

if TYPE_CHECKING:
    from safeweights.conformance import Vector

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "conformance"
ROWS = json.loads((FOLDER / "manifest.json").read_bytes())["vectors"]
VECTORS = conformance.read_vectors(FOLDER)


def test_the_folder_is_what_the_generator_writes() -> None:
    script = ROOT / "scripts" / "make_conformance.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_there_are_enough_and_each_rule_has_one() -> None:
    assert len(VECTORS) >= 260
    shown = {row["rule"] for row in ROWS} | {rule for row in ROWS for rule in row.get("strict", ())}
    assert shown == set(header.RULES)
    refused = {row["rule"] for row in ROWS if row["verdict"] == "invalid"}
    assert refused == {rule for rule in header.RULES if not rule.startswith("strict-")}


@pytest.mark.parametrize("row", ROWS, ids=[row["file"] for row in ROWS])
def test_vector(row: dict[str, Any]) -> None:
    data = (FOLDER / row["file"]).read_bytes()
    if row["verdict"] == "invalid":
        with pytest.raises(FormatError) as caught:
            checkpoint.open(data)
        assert caught.value.rule == row["rule"]
        return
    assert set(checkpoint.open(data)) == set(row["tensors"])
    length = int.from_bytes(data[:8], "little")
    text, size = data[8 : 8 + length], len(data) - 8 - length
    assert header.problems(text, size) == []
    strict = header.problems(text, size, strict=True)
    assert [error.rule for error in strict] == row.get("strict", [])


def test_we_agree_with_every_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(["--vectors", str(FOLDER)]) == 0
    assert f"{len(VECTORS)} of {len(VECTORS)}" in capsys.readouterr().out


def test_the_reference_differs_where_the_manifest_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(["--impl", "safetensors", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    differs = {
        row["file"] for row in ROWS if (row["reference"] == "reads") != (row["verdict"] == "valid")
    }
    assert {row["file"] for row in report["differences"]} == differs
    assert report["agree"] == len(VECTORS) - len(differs)


def refusing(data: bytes) -> list[str]:
    """A wrong implementation: it rejects every file."""
    raise NotImplementedError("not\x1b[2J yet")


def test_the_table_shows_differences_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "someones", sys.modules[__name__])
    assert conformance.main(["--impl", "someones:refusing", "--vectors", str(FOLDER)]) == 1
    shown = capsys.readouterr().out
    assert "NotImplementedError: not\\x1b[2J yet" in shown
    assert "\x1b" not in shown
    refused = sum(vector.verdict == "invalid" for vector in VECTORS)
    assert f"someones:refusing: {refused} of {len(VECTORS)} verdicts agree" in shown


VALID = next(vector for vector in VECTORS if vector.file == "valid/dtype-U8.safetensors")
INVALID = next(vector for vector in VECTORS if vector.verdict == "invalid")


def panic(data: bytes) -> None:
    raise BaseException("panicked")  # as native code does


def interrupt(data: bytes) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("vector", "read", "found"),
    [
        (VALID, lambda data: ["a"], None),
        (VALID, lambda data: ["a", "b"], "content"),
        (VALID, lambda data: [], "content"),
        (VALID, lambda data: None, "content"),
        (VALID, lambda data: {"a": ("U8", [8], bytes((7 * i + 1) % 251 for i in range(8)))}, None),
        (VALID, lambda data: {"a": ("U8", [8], bytes(8))}, "content"),
        (
            VALID,
            lambda data: {"a": ("I8", [8], bytes((7 * i + 1) % 251 for i in range(8)))},
            "content",
        ),
        (VALID, lambda data: {"a": 5}, "content"),
        (VALID, panic, "crash"),
        (INVALID, panic, "crash"),
        (INVALID, lambda data: None, "valid"),
        (VALID, refusing, "invalid"),
        (INVALID, refusing, None),
    ],
)
def test_judgement(vector: Vector, read: Any, found: str | None) -> None:
    differences = conformance.compare(read, [vector])
    assert [difference.found for difference in differences] == ([] if found is None else [found])


def test_an_interrupt_is_no_verdict() -> None:
    with pytest.raises(KeyboardInterrupt):
        conformance.compare(interrupt, [VALID])


@pytest.mark.parametrize("name", ["no_such_module:read", "json:no_such", "json", "", ":x"])
def test_a_missing_implementation(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(["--impl", name]) == 3
    assert capsys.readouterr().err.startswith("implementation")


def test_without_the_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert conformance.main(["--impl", "safetensors"]) == 3
    assert "pip install safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    "manifest", [None, "{", "[]", '{"schema":"other/1"}', '{"schema":"safeweights.conformance/1"}']
)
def test_missing_vectors(
    tmp_path: Path, manifest: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    assert conformance.main(["--vectors", str(tmp_path)]) == 3
    assert capsys.readouterr().err


def test_wrong_usage() -> None:
    with pytest.raises(SystemExit) as caught:
        conformance.main(["--nonsense"])
    assert caught.value.code == 2


def test_vectors_in_the_wheel_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src" / "safeweights"
    (package / "_conformance" / "valid").mkdir(parents=True)
    manifest = {"schema": conformance.SCHEMA, "vectors": [ROWS[0]]}
    (package / "_conformance" / "manifest.json").write_text(json.dumps(manifest))
    shutil.copy(FOLDER / ROWS[0]["file"], package / "_conformance" / "valid")
    monkeypatch.setattr(conformance, "__file__", str(package / "conformance.py"))
    assert [vector.file for vector in conformance.read_vectors()] == [ROWS[0]["file"]]
