"""Bills of materials against the CycloneDX schema, as its own library ships it."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from safeweights.trust.bom import bill_of_materials
from safeweights.trust.digests import hash_file
from safeweights.trust.verifying import SignedBy

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


def test_nothing_has_no_bill(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        bill_of_materials(str(tmp_path / "absent"))
