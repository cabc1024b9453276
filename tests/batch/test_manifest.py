"""Manifests: what a killed batch leaves, and what changes make of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from safeweights.batching import Manifest, Outcome, Unit, Work, run_units
from safeweights.batching.units import Known, fingerprint
from safeweights.errors import UnsupportedError

WORK = Work("batch_functions:record", ("log",))


def run(units: list[Unit], work: Work = WORK) -> list[Outcome]:
    with Manifest("manifest", work) as manifest:
        return list(run_units(units, work, jobs=1, manifest=manifest))


def calls() -> list[str]:
    """What was called since the last time."""
    found = Path("log").read_text().splitlines() if Path("log").exists() else []
    Path("log").unlink(missing_ok=True)
    return found


@pytest.fixture(autouse=True)
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Unit]:
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        Path(name).write_text(name)
    return [Unit(name, f"{name}.out") for name in "abc"]


class TestResuming:
    def test_what_is_done_is_not_done_again(self, units: list[Unit]) -> None:
        first = run(units)
        assert len(calls()) == 3
        assert run(units) == first
        assert calls() == []

    def test_a_source_that_changed_is(self, units: list[Unit]) -> None:
        run(units)
        calls()
        status = os.stat("b")
        Path("b").write_text("B")
        os.utime("b", ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync -t would
        run(units)
        assert calls() == ["b False"]

    def test_a_result_that_is_gone_or_changed_is_made_again(self, units: list[Unit]) -> None:
        run(units)
        calls()
        Path("a.out").unlink()
        Path("c.out").write_text("else")
        run(units)
        assert calls() == ["a False", "c False"]

    def test_only_what_may_have_written_its_target_is_done_again_as_such(
        self, units: list[Unit]
    ) -> None:
        work = Work("batch_functions:record", ("log",), creates=True)
        Path("b.out").write_text("of another program")
        run(units, work)
        assert calls() == ["a False", "b False", "c False"]
        for unit in units:
            Path(str(unit.target)).unlink()
        run(units, work)
        assert calls() == ["a True", "b False", "c True"]

    def test_new_units_are_added(self, units: list[Unit]) -> None:
        run(units[:1])
        run(units)
        assert calls() == ["a False", "b False", "c False"]

    def test_what_could_not_be_read_is_tried_again(self, units: list[Unit]) -> None:
        with Manifest("manifest", WORK) as manifest:
            before = fingerprint(["a"])
            for unit, code in zip(units, (0, 1, 3), strict=True):
                manifest.done([(unit, Known(before, fingerprint([]), Outcome(code)))])
        with Manifest("manifest", WORK) as manifest:
            assert [manifest.known(unit) is not None for unit in units] == [True, True, False]


class TestTheFile:
    def test_a_cut_at_any_byte_leaves_a_manifest(self, units: list[Unit]) -> None:
        run(units)
        data = Path("manifest").read_bytes()
        starts = [i + 1 for i, byte in enumerate(data) if byte == 10]
        for end in [*range(0, len(data), 97), *starts, *(each - 1 for each in starts)]:
            Path("manifest").write_bytes(data[:end])
            with Manifest("manifest", WORK) as manifest:
                done = sum(manifest.known(unit) is not None for unit in units)
            assert done == max(0, data[:end].count(b"\n") - 1)
            left = Path("manifest").read_bytes()
            assert data.startswith(left)
            assert left.endswith(b"\n")

    def test_zeros_at_the_end_as_a_loss_of_power_leaves_them(self, units: list[Unit]) -> None:
        run(units)
        data = Path("manifest").read_bytes()
        Path("manifest").write_bytes(data + bytes(4096))
        run(units)
        assert Path("manifest").read_bytes() == data

    def test_from_a_damaged_line_on_everything_is_done_again(self, units: list[Unit]) -> None:
        run(units)
        calls()
        lines = Path("manifest").read_bytes().splitlines(keepends=True)
        lines[2] = lines[2].replace(b'"exit_code":0', b'"exit_code":1')
        Path("manifest").write_bytes(b"".join(lines))
        assert [outcome.exit_code for outcome in run(units)] == [0, 0, 0]
        assert calls() == ["b False", "c False"]

    def test_another_file_is_not_touched(self) -> None:
        for data in (b"precious", b"\n\n", b'{"a": 1}\n', bytes(10)):
            Path("manifest").write_bytes(data)
            with pytest.raises(UnsupportedError, match="not the manifest"):
                Manifest("manifest", WORK)
            assert Path("manifest").read_bytes() == data

    def test_one_of_another_batch_is_refused(self, units: list[Unit]) -> None:
        run(units)
        with pytest.raises(UnsupportedError, match="another batch"):
            Manifest("manifest", Work(WORK.function, ("other",)))

    def test_two_processes_do_not_share_one(self) -> None:
        with (
            Manifest("manifest", WORK),
            pytest.raises(BlockingIOError, match="another process uses this manifest"),
        ):
            Manifest("manifest", WORK)

    def test_it_is_lines_of_json(self, units: list[Unit]) -> None:
        run(units)
        records = [json.loads(line) for line in Path("manifest").read_text().splitlines()]
        assert [record.get("unit") for record in records[1:]] == [os.path.abspath(x) for x in "abc"]

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
    def test_a_device_is_refused(self) -> None:
        with pytest.raises(OSError, match="not a regular file"):
            Manifest("/dev/full", WORK)

    def test_a_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(IsADirectoryError):
            Manifest(tmp_path, WORK)


class TestFingerprints:
    def test_of_a_folder(self) -> None:
        Path("f").mkdir()
        Path("f/x").write_text("x")
        first = fingerprint(["f"])
        assert fingerprint(["f"]) == first
        Path("f/y.sig").write_text("y")
        assert fingerprint(["f"]) != first
        assert fingerprint(["f"], without=(".sig",)) == first
        Path("f/x").write_text("z")
        assert fingerprint(["f"], without=(".sig",)) != first

    def test_of_what_is_missing(self) -> None:
        missing = fingerprint(["nothing"])
        Path("nothing").write_text("")
        assert fingerprint(["nothing"]) != missing
