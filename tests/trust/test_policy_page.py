"""docs/policy.md: it describes every field, and its five policies do what they say."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import safeweights.numpy
from safeweights.trust import (
    Policy,
    TrustError,
    admit,
    generate_key,
    load_policy,
    load_private_key,
    load_public_key,
    sign,
    verify,
)
from safeweights.trust.policies.explaining import unreachable
from safeweights.trust.policies.policy import DENIABLE, LEVELS
from safeweights.trust.policies.starters import STARTERS

PAGE = Path(__file__).parents[2] / "docs" / "policy.md"
WEIGHTS = "model.safetensors"
LOADS_REFUSE = {
    "signature-missing", "signature-refused", "no-rule", "outside-root", "release-too-low",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(path: str, value: float = 0.0, name: str = WEIGHTS) -> Path:
    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    safeweights.numpy.save_file({"a": np.full(4, value)}, root / name)
    return root


def codes(path: str, policy: Policy) -> set[str]:
    decision = admit(path, policy).decision
    return {reason.code for reason in decision.reasons if reason.against}


# --- the page


def test_the_page_has_the_policies_that_the_command_writes() -> None:
    found = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found == list(STARTERS.values())


def test_the_page_names_every_field_level_and_kind() -> None:
    """What the reader of policies accepts is what the page describes."""
    text = PAGE.read_text()
    source = (Path(load_policy.__code__.co_filename)).read_text()
    lists = re.findall(r"(?:\.only|_FIELDS: Final = )\((.*?)\)", source, re.DOTALL)
    known = {name for each in lists for name in re.findall(r'"(\w+)"', each)}
    assert len(known) > 30
    for name in {*known, *LEVELS, *DENIABLE}:
        assert f"`{name}`" in text, name


def lab() -> dict[str, set[str]]:
    generate_key("team")
    make("scratch/x")
    sign(make("m", 1.0), load_private_key("team"))
    make("unsigned")
    return {"scratch/x": set(), "m": set(), "unsigned": {"signature-missing", "level"}}


def gate() -> dict[str, set[str]]:
    generate_key("releases")
    key = load_private_key("releases")
    for release in (2, 3):
        sign(make(f"prod/r{release}", release), key, release=release)
    (make("prod/more") / "run.cfg").write_text("x")
    sign("prod/more", key, release=3)
    sign(make("other"), key, release=3)
    return {
        "prod/r3": set(), "prod/r2": {"release-too-low"}, "prod/more": {"not-allowed"},
        "other": {"no-rule"},
    }  # fmt: skip


def mirror(pki: Any) -> dict[str, set[str]]:
    Path("vendor-ca.pem").write_bytes(pki.root.pem)
    Path("signatures/vendor").mkdir(parents=True)
    for name in ("m", "changed"):
        sign(
            make(f"mirror/vendor/{name}"), pki.leaf.signer, certificates=pki.chain,
            signature=f"signatures/vendor/{name}.oms.sig",
        )  # fmt: skip
    make("mirror/vendor/changed", 1.0)
    make("elsewhere")
    return {
        "mirror/vendor/m": set(), "mirror/vendor/changed": {"signature-refused", "level"},
        "elsewhere": {"outside-root"},
    }  # fmt: skip


def first_use() -> dict[str, set[str]]:
    make("m")
    (make("code") / "modeling.py").write_text("import os")
    return {"m": set(), "code": {"deny-python"}}


def air_gap(path: Path) -> dict[str, set[str]]:
    generate_key("approvers")
    sign(make("approved/base"), load_private_key("approvers"), model_id="org/base")
    make("approved/adapter", name="adapter.safetensors")
    root = verify("approved/base", load_public_key("approvers.pub")).statement.root
    pin = hashlib.sha256(Path("approved/adapter/adapter.safetensors").read_bytes()).hexdigest()
    text = path.read_text().replace("0" * 64, root, 1).replace("0" * 64, pin, 1)
    path.write_text(text)
    sign(make("approved/other", 2.0), load_private_key("approvers"), model_id="org/other")
    return {"approved/base": set(), "approved/adapter": set(), "approved/other": {"no-rule"}}


@pytest.mark.parametrize("kind", STARTERS)
def test_a_worked_policy(kind: str, pki: Any) -> None:
    path = Path("policy.toml")
    # The test's certificate has the parts of its subject in the other order.
    path.write_text(STARTERS[kind].replace("CN=releases,O=Example", "O=Example,CN=releases"))
    prepare = {
        "lab": lab, "gate": gate, "first-use": first_use, "air-gap": lambda: air_gap(path),
        "mirror": lambda: mirror(pki),
    }[kind]  # fmt: skip
    expected = prepare()
    policy = load_policy("policy.toml")
    assert not unreachable(policy)
    for model, against in expected.items():
        assert codes(model, policy) == against, model
        weights = next(Path(model).glob("*.safetensors"))
        if not against:
            assert safeweights.numpy.load_file(weights, trust=policy)
        elif against & LOADS_REFUSE:
            with pytest.raises(TrustError):
                safeweights.numpy.load_file(weights, trust=policy)
    if kind == "first-use":
        make("m", 5.0)
        assert "changed-since-first-use" in codes("m", policy)
