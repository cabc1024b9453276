"""Checkpoints and tensors as notebooks show them."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

import safeweights
import safeweights.numpy
from safeweights.reports import notebook


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
