"""The page as one file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re

import numpy as np
import pytest
from click.testing import CliRunner

import safeweights.numpy
from safeweights.cli.app import cli
from safeweights.view import export
from safeweights.view.viewing import Viewed


def parts(html):
    """Scripts, styles and the data of a report."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    (data,) = re.findall(
        r'<script type="application/json" id="exported-data">(.*?)</script>', html, re.DOTALL
    )
    return scripts, styles, json.loads(data)


def test_nothing_else_may_run_or_be_loaded(hostile):
    html = export.report(Viewed(hostile), statistics=True)
    scripts, styles, data = parts(html)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert (len(scripts), len(styles)) == (2, 2)
    for kind, texts in (("script", scripts), ("style", styles)):
        hashes = {
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in texts
        }
        (allowed,) = re.findall(rf"{kind}-src ([^;]+)", policy)
        assert set(allowed.split()) == hashes
    assert html.count("<script") == 3
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert "onerror" not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert any("</script>" in each["name"] for each in data["tensors"])


def test_a_report_has_what_the_page_shows(model):
    viewed = Viewed(model)
    data = parts(export.report(viewed, statistics=True))[2]
    assert data["model"]["document"] == json.loads(json.dumps(viewed.document))
    assert len(data["tensors"]) == len(viewed.rows)
    assert set(data["statistics"]) == {str(at) for at in range(len(viewed.rows))}
    assert parts(export.report(viewed, statistics=False))[2]["statistics"] == {}


def test_a_report_of_many_tensors_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TENSORS_MAX", 600)
    path = str(tmp_path / "m.safetensors")
    safeweights.numpy.save_file({f"t{n}": np.zeros(1, "f4") for n in range(700)}, path)
    data = parts(export.report(Viewed(path), statistics=False))[2]
    assert len(data["tensors"]) == data["model"]["tensors"] == 600


def run(*arguments):
    return CliRunner().invoke(cli, ["view", *arguments], prog_name="safeweights")


def test_the_command_replaces_only_reports(model, tmp_path):
    target = str(tmp_path / "report.html")
    assert run(model, "--export", target).exit_code == 0
    assert run(model, "--export", target, "--stats").exit_code == 0
    with open(target, "w") as file:
        file.write("mine")
    refused = run(model, "--export", target)
    assert refused.exit_code == 3
    assert "is not a report" in refused.stderr
    with open(target) as file:
        assert file.read() == "mine"
    assert run(model, "--export", target, "--force").exit_code == 0
    assert os.path.getsize(target) > 10_000


@pytest.mark.parametrize("options", [["--stats"], ["--force"], ["--export", "-"]])
def test_wrong_usage(model, options):
    assert run(model, *options).exit_code == 2
