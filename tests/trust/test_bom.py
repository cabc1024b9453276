"""Bills of materials against the CycloneDX schema, as its own library ships it."""

from __future__ import annotations

import json
import os
import pickle
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from safeweights.reports.bom import ForeignFile, bill_of_materials, look_into
from safeweights.trust.content.digests import hash_file
from safeweights.trust.errors import VerificationError
from safeweights.trust.signatures.verifying import SignedBy

if TYPE_CHECKING:
    from pathlib import Path

WHEN = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


def validated(document: dict[str, Any]) -> dict[str, Any]:
    problems = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))
    assert problems is None, problems
    return document


def test_a_model(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    (model / "README.md").write_text(
        "---\nlicense: apache-2.0\nbase_model:\n- org/base\n- 'org/other'\ndatasets: [x]\n"
        "pipeline_tag: fill-mask\nnested:\n  a: b\n---\n# Title\n"
    )
    (model / ".git").mkdir()
    (model / ".git" / "x").touch()
    document = validated(
        bill_of_materials(
            str(model), version="1", signed_by=SignedBy("key", key_hint="0" * 64), when=WHEN
        )
    )
    component = document["metadata"]["component"]
    assert component["licenses"] == [{"license": {"name": "apache-2.0"}}]
    assert [a["name"] for a in component["pedigree"]["ancestors"]] == ["org/base", "org/other"]
    assert component["modelCard"]["modelParameters"]["modelArchitecture"] == "BertModel"
    assert component["modelCard"]["modelParameters"]["task"] == "fill-mask"
    values = {p["name"]: p["value"] for p in component["properties"]}
    assert values["safeweights:parameters"] == values["safeweights:parameters:U8"] == "1401000"
    assert values["safeweights:signed-by"].startswith("key:")
    files = {file["name"]: file["hashes"][0]["content"] for file in document["components"]}
    assert set(files) == {
        "README.md", "config.json", "model.safetensors", "vae.txt", "vae/weights.safetensors",
    }  # fmt: skip
    assert files["vae.txt"] == hash_file(str(model / "vae.txt")).sha256
    assert document == bill_of_materials(
        str(model), version="1", signed_by=SignedBy("key", key_hint="0" * 64), when=WHEN
    )
    (model / "vae.txt").write_text("changed")
    assert bill_of_materials(str(model))["serialNumber"] != document["serialNumber"]


def test_one_file(model: Path) -> None:
    document = validated(bill_of_materials(str(model / "model.safetensors")))
    assert [file["name"] for file in document["components"]] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": 5, "architectures": {"a": 1}}'),
        ("config.json", b'{"architectures": []}'),
        ("README.md", b"\xff\xfe"),
        ("README.md", b"---\nlicense:\n---\n"),
        ("README.md", "---\nlicense: \x1b[2J\u202e\n---\n".encode()),
        ("README.md", b"no front matter"),
        ("README.md", b"---\n- a\n---\n"),
        ("broken.safetensors", b"nothing"),
        ("<script>\u202e\n", b""),
    ],
)
def test_whatever_the_files_say_the_document_is_valid(
    model: Path, name: str, content: bytes
) -> None:
    (model / name).write_bytes(content)
    document = validated(bill_of_materials(str(model), when=WHEN))
    assert name in {file["name"] for file in document["components"]}


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {p["name"].removeprefix("safeweights:"): p["value"] for p in component["properties"]}


def listed(path: Path, **options: Any) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """The properties of the model, and the components by name."""
    document = validated(bill_of_materials(str(path), when=WHEN, **options))
    components = {component["name"]: component for component in document["components"]}
    return properties(document["metadata"]["component"]), components


def test_links_are_what_they_lead_to_and_count_once(model: Path) -> None:
    before, _ = listed(model)
    (model / "again.safetensors").symlink_to("model.safetensors")
    (model.parent / "blob").write_text("out of the folder")
    (model / "out.txt").symlink_to(model.parent / "blob")
    after, files = listed(model)
    assert after == before
    assert properties(files["again.safetensors"])["link"] == "model.safetensors"
    assert files["again.safetensors"]["hashes"] == files["model.safetensors"]["hashes"]
    assert properties(files["out.txt"])["link"] == str(model.parent / "blob")
    assert files["out.txt"]["hashes"][0]["content"] == hash_file(str(model.parent / "blob")).sha256


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_what_is_no_file_is_listed_without_a_digest(model: Path) -> None:
    (model / "dangling").symlink_to("nowhere")
    (model / "around").symlink_to(".")
    os.mkfifo(model / "pipe")
    _, files = listed(model)
    assert properties(files["dangling"]) == {
        "link": "nowhere", "special": "a link to something that is not a file",
    }  # fmt: skip
    assert "special" in properties(files["around"])
    assert properties(files["pipe"]) == {"special": "not a regular file"}
    assert not any("hashes" in files[name] for name in ("dangling", "around", "pipe"))
    with pytest.raises(OSError, match="regular file"):
        bill_of_materials(str(model / "pipe"))


def test_an_index_is_the_model_in_its_files(model: Path) -> None:
    index = model / "model.safetensors.index.json"
    places = {"a": "model.safetensors", "b": "model.safetensors", "c": "vae/weights.safetensors"}
    index.write_text(json.dumps({"weight_map": places}))
    found, files = listed(index)
    assert list(files) == [index.name, "model.safetensors", "vae/weights.safetensors"]
    assert found["parameters"] == "1401000"


def test_what_runs_code_is_marked(model: Path) -> None:
    (model / "run.py").write_text("import os")
    (model / "weights.pt").write_bytes(pickle.dumps(print))
    (model / "config.json").write_text('{"auto_map": {"AutoModel": "run.Model"}}')
    _, files = listed(model)
    assert "finding:python" in properties(files["run.py"])
    assert "finding:pickle" in properties(files["weights.pt"])
    assert "finding:auto_map" in properties(files["config.json"])


def test_other_formats_are_counted_where_there_are_no_safetensors(
    tmp_path: Path, make_safetensors: Any
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"a")
    (tmp_path / "b.gguf").write_bytes(b"b")
    (tmp_path / "c.h5").write_bytes(b"c")
    (tmp_path / "notes.txt").write_bytes(b"d")

    def look(path: str) -> ForeignFile | None:
        if path.endswith("txt"):
            return ForeignFile("pickle")  # text that begins like one
        return ForeignFile("gguf" if path.endswith("gguf") else "hdf5", 1, {"F32": 5}, ["x"], ["y"])

    found, files = listed(tmp_path, look=look)
    assert (found["parameters"], found["parameters:F32"]) == ("10", "10")
    assert properties(files["a.gguf"]) == {
        "size": "1", "format": "gguf", "tensors": "1", "loading-calls": "x", "unread": "y",
    }  # fmt: skip
    assert properties(files["notes.txt"]) == {"size": "1"}
    (tmp_path / "model.safetensors").write_bytes(make_safetensors({"a": b"123"}))
    assert listed(tmp_path, look=look)[0]["parameters"] == "3"


def test_nothing_has_no_bill(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        bill_of_materials(str(tmp_path / "absent"))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x").touch()
    with pytest.raises(VerificationError, match="no file to list"):
        bill_of_materials(str(tmp_path))


def test_tensors_that_cannot_be_given_are_counted_with_the_reason(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.zeros(3, "f4"), b=np.zeros((2, 2), "c16"))
    found, files = listed(tmp_path, look=look_into)
    facts = properties(files["m.npz"])
    assert (facts["format"], facts["tensors"]) == ("npz", "2")
    assert facts["unreadable-tensors"].startswith("1 tensor: its type is complex128")
    assert (found["parameters"], found["parameters:C128"]) == ("7", "4")


def test_an_index_of_another_format_lists_its_shards(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(3, "f4"))
    (tmp_path / "other.txt").write_text("not part of it")
    index = tmp_path / "m.npz.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.npz"}}))
    assert sorted(listed(index, look=look_into)[1]) == ["a.npz", "m.npz.index.json"]
