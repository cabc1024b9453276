"""`admit` examines every file: what acts and what is not known is denied, whatever it is called."""

from __future__ import annotations

import json
import pickle
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

import safeweights
from safeweights.numpy import save
from safeweights.reports.admission import admit, findings_of
from safeweights.storage import BytesSource
from safeweights.trust import Policy, Rule
from safeweights.trust import admit as admit_of_trust

if TYPE_CHECKING:
    from pathlib import Path


class Runs:
    """Runs a harmless function where it is unpickled."""

    def __reduce__(self) -> object:
        import os

        return os.getpid, ()


EVIL = pickle.dumps(Runs(), 2)
WEIGHTS = save({"a": np.zeros(3, "f4")}, {"format": "pt"})
ORDINARY = {
    "model.safetensors": WEIGHTS,
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"]}).encode(),
    "README.md": b"# A model\n",
    "merges.txt": b"#version: 0.2\n",
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "logo.png": b"\x89PNG\r\n\x1a\n" + bytes(60),
}
DENIED = {
    "weights.model": (EVIL, "pickle"),
    "notes": (b"cos\ngetpid\n(tR.\n", "pickle"),
    "a.swtree": (EVIL, "pickle"),
    "my.model.sig": (EVIL, "pickle"),
    "blob.xyz": (b"\x07\xfe\x01\xff" * 40, "unknown"),
    "weights.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(60), "unknown"),
    "model.lua": (b"print(1)", "code"),
    "conf.yaml": (b"_target_: os.system\n", "code"),
    "adapter_config.json": (b'{"auto_mapping": {"parent_library": "evil"}}', "auto_map"),
    "chat.jinja": (b"{{ ''.__class__ }}", "code"),
    "setup.cfg.py": (b"import os\n", "python"),
}


def policy(**deny: bool) -> Policy:
    standard = Policy((Rule("*", level="none"),))
    kinds = standard.deny - {kind for kind, denied in deny.items() if not denied}
    return Policy((Rule("*", level="none"),), deny=frozenset(kinds), root=standard.root)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in ORDINARY.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_model_as_it_is_published_is_admitted(model: Path) -> None:
    admission = admit(model, policy())
    assert admission.exit_code == 0, admission.decision.reasons


@pytest.mark.parametrize("name", list(DENIED))
def test_what_acts_or_is_not_known_is_denied_with_its_reason(model: Path, name: str) -> None:
    data, kind = DENIED[name]
    (model / name).write_bytes(data)
    decision = admit(model, policy()).decision
    assert decision.verdict == "refuse"
    assert f"deny-{kind}" in {reason.code for reason in decision.reasons}
    assert name in {reason.file for reason in decision.reasons}


def test_the_policy_may_allow_what_is_not_known(model: Path) -> None:
    (model / "blob.xyz").write_bytes(DENIED["blob.xyz"][0])
    assert admit(model, policy(unknown=False)).exit_code == 0


def test_every_way_in_is_the_same(model: Path) -> None:
    assert safeweights.admit is admit
    assert admit_of_trust is admit


def gguf(template: str) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    return (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + text("tokenizer.chat_template")
        + struct.pack("<I", 8)
        + text(template)
    )


def test_the_template_in_a_gguf_file_is_one_that_a_policy_pins_and_reads() -> None:
    good = list(findings_of(BytesSource(gguf("{{ messages }}"), "m.gguf"), "m.gguf"))
    assert [finding.kind for finding in good] == ["template"]
    assert good[0].sha256 is not None
    bad = {
        finding.kind
        for finding in findings_of(BytesSource(gguf("{{ x.__class__ }}"), "m.gguf"), "m.gguf")
    }
    assert bad == {"template", "code"}
