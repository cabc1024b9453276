"""What the page shows, as data."""

from __future__ import annotations

import base64
import json
import os
from itertools import pairwise

import numpy as np
import pytest

import safeweights.numpy
from safeweights import trust
from safeweights.errors import UnsupportedError
from safeweights.view import viewing
from safeweights.view.viewing import ORDERS, Region, Viewed

WHOLE = Region((), (0, 1 << 62), (0, 1 << 62))


@pytest.fixture
def viewed(model):
    return Viewed(model)


def number_of(viewed, name):
    return next(at for at, row in enumerate(viewed.rows) if row.name == name)


def cells(found):
    data = np.frombuffer(base64.b64decode(found["data"]), np.uint8)
    return data.reshape(found["cells"])


def test_lists_come_in_pages_and_orders(viewed):
    whole = viewed.tensors()
    assert whole["total"] == 8
    names = [each["name"] for each in whole["tensors"]]
    for start in range(10):
        page = viewed.tensors(start=start, count=3)["tensors"]
        assert [each["name"] for each in page] == names[start : start + 3]
    assert sorted(names) == sorted(each["name"] for each in viewed.tensors(order="name")["tensors"])
    sizes = [each["bytes"] for each in viewed.tensors(order="size")["tensors"]]
    assert sizes == sorted(sizes, reverse=True)
    for order in (*ORDERS, "no such order"):
        assert viewed.tensors(order=order)["total"] == 8
    assert [each["name"] for each in viewed.tensors("LAYERS.1")["tensors"]] == ["layers.1.w"]
    assert viewed.tensors(start=-5, count=10**9)["start"] == 0
    assert viewed.tensors("nothing")["tensors"] == []


def test_a_page_is_bounded(tmp_path):
    path = str(tmp_path / "m.safetensors")
    safeweights.numpy.save_file({f"t{n}": np.zeros(1, "f4") for n in range(700)}, path)
    assert len(Viewed(path).tensors(count=10**6)["tensors"]) == 500


def test_the_map_covers_every_byte_of_the_data(viewed):
    (file,) = viewed.map()
    pieces = file["pieces"]
    assert pieces[0]["name"] == "header"
    assert pieces[0]["begin"] == 0
    assert pieces[-1]["end"] == file["bytes"]
    for one, other in pairwise(pieces):
        assert one["end"] == other["begin"]


def test_a_map_of_many_tensors_has_few_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(viewing, "_PIECES_MAX", 50)
    path = str(tmp_path / "m.safetensors")
    names = [f"l.{n}.{part}.w" for n in range(20) for part in "abcd"]
    safeweights.numpy.save_file({name: np.zeros(1, "f4") for name in names}, path)
    (file,) = Viewed(path).map()
    assert len(file["pieces"]) <= 50
    assert sum(piece["tensors"] for piece in file["pieces"]) == 80


def test_a_picture_is_the_means_of_blocks(viewed, model):
    number = number_of(viewed, "embed.weight")
    found = viewed.picture(number, WHOLE, (30, 10))
    whole = safeweights.numpy.load_file(os.path.join(model, "model.safetensors"))["embed.weight"]
    means = whole.reshape(30, 10, 10, 4).mean(axis=(1, 3))
    assert found["cells"] == [30, 10]
    assert found["bound"] == pytest.approx(abs(means).max())
    shown = (cells(found).astype(float) / 127 - 1) * found["bound"]
    assert np.abs(shown - means).max() <= found["bound"] / 127
    assert not found["sampled"]


def test_a_part_of_a_picture_is_what_was_asked_for(viewed, model):
    number = number_of(viewed, "cube")
    found = viewed.picture(number, Region((2, 4), (1, 3), (2, 100)), (9, 9))
    assert found["region"] == {"outer": [2, 4], "rows": [1, 3], "columns": [2, 7]}
    whole = safeweights.numpy.load_file(os.path.join(model, "model.safetensors"))["cube"]
    assert found["high"] == pytest.approx(float(whole[2, 4, 1:4, 2:9].max()))
    rows = viewed.values(number, Region((2, 4), (1, 3), (2, 100)))["rows"]
    assert rows == [[f"{value:.4g}" for value in row] for row in whole[2, 4, 1:4, 2:9]]


@pytest.mark.parametrize(("name", "shape"), [("line", [1, 10]), ("point", [1, 1])])
def test_fewer_axes_are_one_row(viewed, name, shape):
    assert viewed.picture(number_of(viewed, name), WHOLE, (99, 99))["cells"] == shape


def test_values_that_are_not_finite_have_a_colour_of_their_own(viewed):
    found = viewed.picture(number_of(viewed, "broken"), WHOLE, (9, 9))
    assert cells(found).tolist() == [[190, 255], [255, 0]]
    assert json.dumps(found, allow_nan=False)
    statistics = viewed.statistics(number_of(viewed, "broken"))["statistics"]
    assert (statistics["nan"], statistics["inf"]) == (1, 1)


def test_large_pictures_are_made_of_evenly_chosen_values(viewed, monkeypatch):
    monkeypatch.setattr(viewing, "_EXACT_MAX", 1000)
    found = viewed.picture(number_of(viewed, "embed.weight"), WHOLE, (1000, 1000))
    assert found["sampled"]
    assert found["cells"][0] * found["cells"][1] <= 2000


@pytest.mark.parametrize(
    ("name", "region"),
    [
        ("cube", Region((3, 0), (0, 1), (0, 1))),
        ("cube", Region((0, 5), (0, 1), (0, 1))),
        ("none", WHOLE),
    ],
)
def test_what_there_is_not_is_refused(viewed, name, region):
    with pytest.raises(UnsupportedError):
        viewed.picture(number_of(viewed, name), region, (9, 9))


def test_numbers_that_are_no_tensor_are_refused(viewed):
    for number in (-1, 8, 1 << 62):
        with pytest.raises(UnsupportedError, match="no tensor number"):
            viewed.statistics(number)


def test_texts_of_a_hostile_model_are_escaped(hostile):
    viewed = Viewed(hostile)
    names = [each["name"] for each in viewed.tensors()["tensors"]]
    names += [piece["name"] for file in viewed.map() for piece in file["pieces"]]
    assert all(name.isprintable() for name in names)
    assert any("\\u202egnp" in name for name in names)
    assert json.dumps(viewed.findings)


def test_a_replaced_file_is_noticed_and_the_old_one_still_shown(viewed, model):
    assert not viewed.changed()
    path = os.path.join(model, "model.safetensors")
    safeweights.numpy.save_file({"other": np.zeros(1, "f4")}, path)
    assert viewed.changed()
    assert viewed.statistics(number_of(viewed, "embed.weight"))["statistics"]["zeros"] == 0
    os.remove(path)
    assert viewed.changed()


def test_a_signature_is_verified_with_a_key(model, tmp_path):
    pytest.importorskip("cryptography", reason="signatures need the extra [trust]")
    for name in ("me", "other"):
        trust.generate_key(tmp_path / name)
    assert Viewed(model).signature["file"] is None
    assert Viewed(model, key=f"{tmp_path}/me.pub").signature["problem"]
    trust.sign(model, trust.load_private_key(tmp_path / "me"))
    plain = Viewed(model).signature
    assert (os.path.basename(plain["file"]), plain["verified"]) == ("model.sig", None)
    good = Viewed(model, key=f"{tmp_path}/me.pub").signature
    assert (good["verified"], good["files"]) == (True, 3)
    wrong = Viewed(model, key=f"{tmp_path}/other.pub").signature
    assert (wrong["verified"], wrong["by"]) == (False, None)
    with open(os.path.join(model, "config.json"), "a") as file:
        file.write(" ")
    changed = Viewed(model, key=f"{tmp_path}/me.pub").signature
    assert changed["verified"] is False
    assert "config.json" in changed["problem"]


def test_another_model_is_compared(model, hostile, monkeypatch):
    assert Viewed(model).difference is None
    assert Viewed(model, other=model).difference["same"]
    monkeypatch.setattr(viewing, "_PAGE_MAX", 2)
    found = Viewed(model, other=hostile).difference
    assert (found["counts"]["removed"], found["counts"]["added"]) == (8, 11)
    assert (len(found["removed"]), len(found["added"])) == (2, 2)
    json.dumps(found, allow_nan=False)


def test_a_policy_is_asked_and_nothing_is_remembered(model, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'lock = "lock.json"\n[[rules]]\npattern = "*"\nlevel = "none"\nfirst_use = true\n'
    )
    before = sorted(os.listdir(tmp_path))
    viewed = Viewed(model, policy=str(policy))
    assert viewed.verdict["verdict"] in {"allow", "warn", "refuse"}
    assert viewed.verdict["reasons"]
    assert sorted(os.listdir(tmp_path)) == before
    assert Viewed(model).verdict is None
