"""Checkpoints and tensors as notebooks show them."""

from __future__ import annotations

import json
import os
import pickle
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import safeweights
import safeweights.numpy
from safeweights import trust
from safeweights.display import html_table
from safeweights.reports import notebook
from safeweights.reports.difference import compare


def parsed(shown):
    """The HTML as elements: well-formed, and without scripts."""
    root = ET.fromstring(f"<div>{shown}</div>")
    assert not {element.tag for element in root.iter()} & {"script", "style", "img", "iframe"}
    assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)
    return root


@pytest.fixture
def opened(tmp_path):
    def opened(**tensors):
        path = str(tmp_path / "<b>&m.safetensors")
        safeweights.numpy.save_file(tensors, path)
        return safeweights.open(path)

    return opened


def test_a_checkpoint_is_a_table(opened):
    checkpoint = opened(**{f"t{n}": np.zeros((2, 3), "f4") for n in range(30)})
    root = parsed(checkpoint._repr_html_())
    assert len(root.findall(".//tbody/tr")) == 20
    text = "".join(root.itertext())
    assert "30 tensors, 180 parameters, 720 B" in text
    assert "and 10 more" in text
    assert "<b>&m.safetensors" in text


def test_hostile_names_stay_text(opened):
    names = ["<script>alert(1)</script>", "\u202ex", '"&<>', "x" * 5000]
    checkpoint = opened(**{name: np.ones(2, "f4") for name in names})
    text = "".join(parsed(checkpoint._repr_html_()).itertext())
    assert "<script>alert(1)</script>" in text
    assert "\u202e" not in text
    for name in names:
        assert parsed(checkpoint[name]._repr_html_()) is not None


def test_a_tensor_has_statistics_and_a_histogram(opened):
    checkpoint = opened(
        a=np.arange(24, dtype="f4"), c=np.array([1 + 2j], "c8"), e=np.zeros(0, "f4")
    )
    root = parsed(checkpoint["a"]._repr_html_())
    assert [cell.text for cell in root.findall(".//tbody/tr/td")][:3] == ["0", "23", "11.5"]
    assert len(root.findall(".//svg/rect")) == 24
    assert "1+2j" in "".join(parsed(checkpoint["c"]._repr_html_()).itertext())
    assert "svg" not in checkpoint["e"]._repr_html_()


def test_large_tensors_are_not_read(opened, monkeypatch):
    monkeypatch.setattr(notebook, "_VALUES_MAX", 10)
    assert "reads a part" in opened(a=np.zeros(11, "f4"))["a"]._repr_html_()


def test_what_cannot_be_read_says_why(tmp_path):
    np.savez(tmp_path / "a.npz", z=np.ones(3, "c16"))
    tensor = safeweights.open(tmp_path / "a.npz")["z"]
    assert "C128" in tensor._repr_html_()
    path = tmp_path / "b.safetensors"
    safeweights.numpy.save_file({"a": np.zeros(1 << 12, "f4")}, str(path))
    tensor = safeweights.open(path, backend="pread")["a"]
    with open(path, "r+b") as file:
        file.truncate(100)
    assert "svg" not in tensor._repr_html_()
    parsed(tensor._repr_html_())


# ---- reports and verdicts

EVIL = "<img src=x onerror=alert(1)>\x1b[2J\u202e"


class Runs:
    """What no file of weights should have."""

    def __reduce__(self):
        return os.system, ("echo this ran",)


@pytest.fixture
def results(tmp_path):
    """Each kind of result, about a model whose names are hostile."""
    pytest.importorskip("cryptography", reason="signatures need the extra [trust]")
    folder = tmp_path / f"model {EVIL.replace('/', '')}"
    folder.mkdir()
    path = str(folder / "model.safetensors")
    safeweights.numpy.save_file({EVIL: np.ones(3, "f4")}, path)
    (folder / "config.json").write_text(json.dumps({"architectures": [EVIL]}))
    pickled = tmp_path / "evil.pkl"
    pickled.write_bytes(pickle.dumps(Runs()))
    other = str(tmp_path / "other.safetensors")
    safeweights.numpy.save_file({EVIL: np.zeros(3, "f4"), "b": np.ones(1)}, other)
    trust.generate_key(tmp_path / "me")
    signed = trust.sign(folder, trust.load_private_key(tmp_path / "me"))
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rules]]\npattern = "*"\nlevel = "pinned"\n')
    admission = safeweights.admit(folder, policy)
    return {
        "describe": safeweights.describe(folder),
        "check": safeweights.check(pickled),
        "compare": compare(safeweights.open(path), safeweights.open(other), values=True),
        "scan": safeweights.scan(pickled),
        "signed": signed,
        "digest": trust.digest(folder),
        "verify": trust.verify(folder, trust.load_public_key(tmp_path / "me.pub")),
        "decision": admission.decision,
        "admission": admission,
        "convert": safeweights.convert(path, tmp_path / "b.npz"),
    }


def test_results_are_a_line_at_the_prompt_and_a_table_in_a_notebook(results):
    shown = {name: repr(each) for name, each in results.items()}
    for text in shown.values():
        assert text.isprintable()
        assert len(text) < 700
    tables = {
        name: "".join(parsed(each._repr_html_()).itertext()) for name, each in results.items()
    }
    assert shown["describe"].startswith("<safeweights.show/1: <img src=x")
    assert "3 parameters" in tables["describe"]
    assert "1 of 1 path not ok" in shown["check"]
    assert "system" in tables["check"]
    assert "different: 1 added, 1 changed, 0 unchanged" in shown["compare"]
    assert "largest difference" in tables["compare"]
    assert shown["scan"].startswith("<ScanReport: dangerous")
    assert "can act" in tables["scan"]
    assert "written to" in shown["signed"]
    assert results["digest"].root in shown["digest"]
    assert "as signed by key:" in shown["verify"]
    assert "config.json" in tables["verify"]
    for name in ("decision", "admission"):
        assert "refuse" in shown[name]
        assert "against" in tables[name]
    assert "1 file written from 1 file, 1 tensor, 12 B" in shown["convert"]


def test_documents_are_still_what_json_prints(results):
    for name in ("describe", "check", "compare"):
        document = results[name]
        assert isinstance(document, dict)
        assert json.loads(json.dumps(document)) == document


def test_long_tables_say_how_much_they_leave_out():
    shown = html_table(("a",), ([str(number)] for number in range(25)))
    assert shown.count("<tr>") == 21
    assert "and 5 more" in shown
