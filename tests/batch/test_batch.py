"""Batches of commands: from the command line and from Python, with any engine, continued after kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner

import safeweights
import safeweights.numpy
from safeweights import trust
from safeweights.cli.app import cli
from safeweights.cli.performing import BATCHED, arguments_of, options_of
from safeweights.errors import SafetensorError, UnsupportedError
from safeweights.reports.documents import BatchDocument
from safeweights.reports.schema import schema_of

KILLS = int(os.environ.get("SAFEWEIGHTS_KILLS", "8"))
SCHEMA = schema_of(BatchDocument, closed=True)


def run(*arguments: str, expect: int = 0) -> Any:
    result = CliRunner().invoke(cli, ["batch", *arguments], prog_name="safeweights")
    assert result.exit_code == expect, result.output
    return result


def rows(*arguments: str, expect: int = 0) -> list[list[str]]:
    return [line.split("\t") for line in run(*arguments, expect=expect).stdout.splitlines()]


class TestCommands:
    def test_check(self, models: Path) -> None:
        found = rows("check", "models", expect=1)
        assert [row[:2] for row in found] == [
            ["ok", "models/a"], ["ok", "models/b/c"], ["bad", "models/bad"], ["ok", "models/d"],
            ["ok", "models/npz"],
        ]  # fmt: skip
        assert found[2][3].startswith("header-too-large: ")

    def test_convert(self, models: Path) -> None:
        found = rows(
            "convert", "models", "--to", "out", "--dtype", "BF16", "--shard", "1/1", expect=1
        )
        assert [row[2] for row in found if row[0] == "ok"] == [
            "out/a/", "out/b/c/", "out/d/", "out/npz/"
        ]  # fmt: skip
        assert safeweights.open("out/npz/weights.safetensors").info("w").dtype == "BF16"
        assert not os.path.exists("out/bad")

    def test_convert_refuses_what_exists(self, models: Path) -> None:
        Path("out/a").mkdir(parents=True)
        shutil.copy("models/d/model.safetensors", "out/a")
        before = Path("out/a/model.safetensors").read_bytes()
        found = rows("convert", "models/a", "models/d", "--to", "out", expect=3)
        assert [row[0] for row in found] == ["unreadable", "ok"]
        assert "exists" in found[0][3]
        assert Path("out/a/model.safetensors").read_bytes() == before
        assert [row[0] for row in rows("convert", "models/a", "--to", "out", "--force")] == ["ok"]

    def test_hash(self, models: Path) -> None:
        document = json.loads(run("hash", "models/a", "models/d", "--tensors", "--json").stdout)
        alone = CliRunner().invoke(cli, ["hash", "--tensors", "models/a", "--json"])
        assert document["units"][0]["document"] == json.loads(alone.stdout)

    def test_sign_verify_and_admit(self, models: Path) -> None:
        trust.generate_key("key")
        shutil.rmtree("models/bad")
        assert len(rows("sign", "models", "--key", "key", "--id", "org/x")) == 4
        assert {row[0] for row in rows("verify", "models", "--key", "key.pub")} == {"ok"}
        Path("models/d/config.json").write_text("{ }")
        found = rows("verify", "models", "--key", "key.pub", expect=1)
        assert [row[0] for row in found] == ["ok", "ok", "bad", "ok"]
        Path("policy.toml").write_text(
            '[signers.us]\npublic_key = "key.pub"\n[[rules]]\npattern = "models/**"\nsigners = ["us"]\n'
            '[[rules]]\npattern = "models/*"\nsigners = ["us"]\n'
        )
        found = rows("admit", "models", "--policy", "policy.toml", "--to", "warrants", expect=1)
        assert [row[0] for row in found] == ["ok", "ok", "bad", "ok"]
        warrants = sorted(str(path) for path in Path("warrants").rglob("*.warrant"))
        assert warrants == ["warrants/a.warrant", "warrants/b/c.warrant", "warrants/npz.warrant"]
        safeweights.open("models/a", trust="warrants/a.warrant")

    def test_signing_again_after_a_manifest_does_nothing(self, models: Path) -> None:
        trust.generate_key("key")
        arguments = ["sign", "models/a", "models/d", "--key", "key", "--resume", "done"]
        run(*arguments)
        before = os.stat("models/a/model.sig").st_mtime_ns
        run(*arguments)
        assert os.stat("models/a/model.sig").st_mtime_ns == before
        Path("models/d/model.sig").unlink()
        Path("models/a/config.json").write_text("{ }")
        run(*arguments)
        assert os.stat("models/a/model.sig").st_mtime_ns != before
        assert {row[0] for row in rows("verify", "models/a", "models/d", "--key", "key.pub")} == {
            "ok"
        }

    def test_a_manifest_of_another_batch_is_a_wrong_option(self, models: Path) -> None:
        run("check", "models/a", "--resume", "done")
        Path("other").write_text("garbage")
        for given in (["hash", "--resume", "done"], ["check", "--strict", "--resume", "done"],
                      ["check", "--resume", "other"]):  # fmt: skip
            result = CliRunner().invoke(cli, ["batch", *given, "models/a"])
            assert (result.exit_code, result.stdout) == (2, "")
            assert "manifest" in result.stderr
        assert Path("other").read_text() == "garbage"

    def test_pull(self, models: Path) -> None:
        Path("list").write_text("models/a\tteam/first\nmodels/d/model.safetensors\n")
        assert [row[2] for row in rows("pull", "@list", "--to", "pulled")] == [
            "pulled/team/first", "pulled/model.safetensors"
        ]  # fmt: skip
        assert Path("pulled/team/first/config.json").read_text() == "{}"

    def test_a_source_that_is_missing_does_not_stop_the_others(self, models: Path) -> None:
        found = rows("check", "models/a", "nothing", "models/d", expect=3)
        assert [row[0] for row in found] == ["ok", "unreadable", "ok"]

    def test_bad_counts_more_than_unreadable(self, models: Path) -> None:
        run("check", "models/bad", "nothing", expect=1)

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["check", "models", "--to", "out"], "writes no results"),
            (["convert", "models"], "needs a folder"),
            (["check", "models", "--shard", "3/2"], "I/N"),
            (["check", "models", "--sarif"], "No such option"),
            (["verify", "models", "--log"], "No such option"),
            (["check", "models", "--report", "-"], "cannot be standard output"),
            (["check", "--engine", "no", "models"], "process"),
            (["frobnicate", "models"], "No such command"),
        ],
    )
    def test_wrong_usage(self, models: Path, arguments: list[str], problem: str) -> None:
        assert problem in run(*arguments, expect=2).output

    def test_an_option_whose_value_is_wrong_is_said_of_each_unit(self, models: Path) -> None:
        found = rows("convert", "models/a", "--to", "out", "--dtype", "BF15", expect=2)
        assert found[0][0] == "usage"
        assert "BF15" in found[0][3]


class TestReports:
    def test_json_and_junit(self, models: Path) -> None:
        (models / "bad").rename(models / "b\x01d")
        run("check", "models", "nothing", "--report", "r.json", "--junit", "r.xml", expect=1)
        document = json.loads(Path("r.json").read_text())
        jsonschema.validate(document, SCHEMA)
        assert document["counts"] == {"ok": 4, "bad": 1, "usage": 0, "unreadable": 1}
        suite = ET.parse("r.xml").getroot()[0]
        assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("6", "1", "1")
        assert [case.get("name") for case in suite.iter("testcase")][1] == "models/b\\x01d"
        assert [case[0].tag for case in suite if len(case)] == ["failure", "error"]

    def test_it_is_the_same_for_any_number_of_workers_and_after_resuming(
        self, models: Path
    ) -> None:
        texts = []
        for number, arguments in enumerate(
            (["--jobs", "1"], ["--jobs", "3"], ["--resume", "m"], ["--resume", "m", "--jobs", "2"])
        ):
            run("hash", "models", "nothing", *arguments, "--report", f"{number}", expect=3)
            texts.append(Path(f"{number}").read_text())
        assert len(set(texts)) == 1

    def test_shards_make_up_the_whole(self, models: Path) -> None:
        (models / "bad/model.safetensors").unlink()
        Path("list").write_text("".join(f"models/{name}\n" for name in ("a", "b", "d", "npz")))
        parts = [rows("check", "@list", "--shard", f"{i}/3") for i in (1, 2, 3)]
        assert sorted(row for part in parts for row in part) == sorted(rows("check", "@list"))

    def test_no_credential_is_in_it(self, tmp_path: Path) -> None:
        url = "http://127.0.0.1:9/m.safetensors?sig=SECRET"
        bad = "https://user:SECRET@127.0.0.1:9/m.safetensors"
        result = run("check", url, bad, "--resume", str(tmp_path / "m"), "--json", expect=1)
        assert "SECRET" not in result.output
        assert "SECRET" not in (tmp_path / "m").read_text()


class TestPython:
    def test_options_are_those_of_the_command(self, models: Path) -> None:
        told: list[tuple[int, int]] = []
        report = safeweights.batch(
            "convert", ["models/a", "models/d"], to="out", only=["t1", "t2"], max_shard_size="60B",
            jobs=1, progress=lambda done, total: told.append((done, total)),
        )  # fmt: skip
        assert report.ok
        assert report.exit_code == 0
        assert told == [(1, 2), (2, 2)]
        assert sorted(safeweights.open("out/a")) == ["t1", "t2"]
        assert len(list(Path("out/a").glob("*.safetensors"))) == 2

    def test_options_that_there_are_not(self, models: Path) -> None:
        with pytest.raises(TypeError, match="no option 'sarif'"):
            safeweights.batch("check", "models", sarif=True)
        with pytest.raises(UnsupportedError, match="command must be one of"):
            safeweights.batch("push", "models")  # type: ignore[arg-type]
        with pytest.raises(UnsupportedError, match="engine must be one of"):
            safeweights.batch("check", "models", engine="threads")

    def test_a_program_without_a_main_guard(self, models: Path) -> None:
        Path("program.py").write_text(
            "import safeweights\nprint(safeweights.batch('check', 'models/[ad]', jobs=2).ok)\n"
        )
        done = subprocess.run(
            [sys.executable, "program.py"], capture_output=True, text=True, timeout=60
        )
        assert (done.stdout, done.stderr) == ("True\n", "")

    @pytest.mark.parametrize("name", sorted(BATCHED))
    def test_every_option_can_be_written_as_an_argument(self, name: str) -> None:
        for key, option in options_of(name).items():
            value: Any = True if option.is_flag else ["-x"] if option.multiple else "-x"
            [argument] = arguments_of(name, {key: value})
            assert argument.startswith("--")
        assert "passphrase" not in options_of(name)


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    count = 24
    for number in range(count):
        arrays = {f"t{i}": np.full((50, 40), number * 100 + i, "f4") for i in range(8)}
        np.savez(f"in/m{number:02}.npz", **arrays)
    return count


def check_results(count: int) -> int:
    """Every result that is there is whole; how many there are."""
    found = 0
    for number in range(count):
        try:
            opened = safeweights.open(f"out/m{number:02}/")
            values = [float(opened[f"t{i}"].numpy()[7, 7]) for i in range(8)]
        except (SafetensorError, FileNotFoundError):
            continue
        assert values == [number * 100 + i for i in range(8)]
        found += 1
    return found


def test_a_batch_that_is_killed_at_any_time_goes_on_and_ends_as_if_it_was_not(many: int) -> None:
    """Killed are the batch, or one of its workers; results are of two files and an index."""
    draw = random.Random(5)
    for number in range(many):
        Path(f"in/m{number:02}").mkdir()
        Path(f"in/m{number:02}.npz").rename(f"in/m{number:02}/w.npz")
    command = [
        sys.executable, "-m", "safeweights", "batch", "convert", "in", "--to", "out", "--jobs", "2",
        "--max-shard-size", "40kB", "--resume", "manifest", "--report", "report.json",
    ]  # fmt: skip
    seen = []
    for turn in range(KILLS):
        if turn % 8 == 7:  # begin anew: the others have little left to do
            shutil.rmtree("out", ignore_errors=True)
            Path("manifest").unlink(missing_ok=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.2, 1.6))
        if turn % 3 == 2:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for child in children[:1]:
                os.kill(int(child), signal.SIGKILL)
            assert process.wait(60) in {0, -signal.SIGKILL}
        else:
            process.kill()
            process.wait(30)
        seen.append(check_results(many))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert check_results(many) == many
    report = Path("report.json").read_text()
    shutil.rmtree("out")
    Path("manifest").unlink()
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    assert Path("report.json").read_text() == report


def test_ctrl_c_leaves_whole_results_and_no_process(many: int) -> None:
    command = [
        sys.executable,
        "-m",
        "safeweights",
        "batch",
        "convert",
        "in",
        "--to",
        "out",
        "--each",
        "file",
    ]
    process = subprocess.Popen(
        [*command, "--resume", "manifest"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    while not os.path.exists("out"):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: the workers get it too
    output = process.communicate(timeout=60)
    assert process.returncode in {130, 0}
    assert "Traceback" not in output[1]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not [path for path in Path("out").iterdir() if path.name.startswith(".")]
