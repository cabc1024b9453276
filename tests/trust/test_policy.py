"""Policies: what they say, what they refuse, and that the decision is a pure function."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeweights.trust import LockFile, Warrant, verify_log
from safeweights.trust.errors import DocumentError, PolicyViolationError, TrustError
from safeweights.trust.policies import policy as policies
from safeweights.trust.policies import policy_file
from safeweights.trust.policies.deciding import decide
from safeweights.trust.policies.policy import Evidence, FileFact, Finding, LockEntry, Policy, Rule
from safeweights.trust.signatures.certificates import CertificateTrust
from safeweights.trust.signatures.keyless import KeylessTrust
from safeweights.trust.signatures.verifying import SignedBy

if TYPE_CHECKING:
    from pathlib import Path

    from safeweights.trust.signatures.keys import FileSigner

A, B = "a" * 64, "b" * 64
KEY = SignedBy("key", key_hint=A)
OTHER = SignedBy("key", key_hint=B)
KEYLESS = SignedBy("keyless", identity="ci", oidc_issuer="https://issuer")
SIGNED = Evidence("org/m", {"w": FileFact(A, 1, signed=True)}, "us", KEY, "valid", 2)
PLAIN = Evidence("org/m", {"w": FileFact(A, 1)})
STRICT = Policy((Rule("org/*", ("us",)),))
FIRST = Policy((Rule("*", level="known", first_use=True),))
LOCK = LockEntry("signed", KEY.fingerprint(), 2, {"w": A})


def change(evidence: Evidence, **fields: Any) -> Evidence:
    return dataclasses.replace(evidence, **fields)


def codes(decision: policies.Decision) -> list[str]:
    return [reason.code for reason in decision.reasons if reason.against]


@pytest.mark.parametrize(
    ("policy", "evidence", "lock", "level", "against"),
    [
        (STRICT, SIGNED, None, "signed", []),
        (STRICT, change(SIGNED, signed_by=KEYLESS), None, "logged", []),
        (STRICT, PLAIN, None, "none", ["signature-missing", "level"]),
        (STRICT, change(PLAIN, signature="bad"), None, "none", ["signature-refused", "level"]),
        (STRICT, change(SIGNED, subject="else/m"), None, "none", ["no-rule"]),
        (STRICT, change(SIGNED, files={"w": FileFact(A, 1)}), None, "signed", ["unsigned-file"]),
        # pins
        (Policy((Rule("*", level="pinned", digests={"w": A}),)), PLAIN, None, "pinned", []),
        (Policy((Rule("*", level="pinned", digests={"w": B}),)), PLAIN, None, "none",
         ["pinned-digest", "level"]),
        (Policy((Rule("*", level="pinned", digests={"w": A}),)),
         change(PLAIN, files={"w": FileFact(A, 1), "x": FileFact(B, 1)}), None, "none",
         ["not-pinned", "level"]),
        (Policy((Rule("*", ("us",), digests={"w": B}),)), SIGNED, None, "signed",
         ["pinned-digest"]),
        # a higher level than was reached
        (Policy((Rule("*", ("us",), level="logged"),)), SIGNED, None, "signed", ["level"]),
        # first use
        (FIRST, PLAIN, None, "known", []),
        (FIRST, PLAIN, LockEntry("known", None, None, {"w": A}), "known", []),
        (FIRST, PLAIN, LockEntry("known", None, None, {"w": B}), "none",
         ["changed-since-first-use", "level"]),
        (FIRST, change(PLAIN, files={"w": FileFact(A, 1), "evil.py": FileFact(B, 1)}),
         LockEntry("known", None, None, {"w": A}, "whole"), "none",
         ["changed-since-first-use", "level"]),
        (FIRST, change(PLAIN, files={"shard-2": FileFact(B, 1)}),
         LockEntry("known", None, None, {"w": A}), "known", []),
        (FIRST, change(PLAIN, missing=("w",)), None, "known", ["missing-file"]),
        (Policy((Rule("*", level="known"),)), PLAIN, None, "none", ["level"]),
        # no way back
        (FIRST, PLAIN, LOCK, "known", ["downgrade"]),
        (STRICT, PLAIN, LOCK, "none", ["signature-missing", "downgrade", "level"]),
        (STRICT, SIGNED, LOCK, "signed", []),
        (STRICT, change(SIGNED, signed_by=OTHER), LOCK, "signed", ["signer-changed"]),
        (STRICT, change(SIGNED, release=1), LOCK, "signed", ["rollback"]),
        (STRICT, change(SIGNED, release=None), LOCK, "signed", ["rollback"]),
        (STRICT, change(SIGNED, release=3, files={"w": FileFact(B, 1, True)}), LOCK, "signed", []),
        (STRICT, change(SIGNED, files={"w": FileFact(B, 1, True)}), LOCK, "signed", ["rollback"]),
    ],
)  # fmt: skip
def test_decision_table(
    policy: Policy, evidence: Evidence, lock: LockEntry | None, level: str, against: list[str]
) -> None:
    decision = decide(policy, evidence, lock)
    assert (decision.level, codes(decision)) == (level, against)
    assert decision.verdict == ("refuse" if against else "allow")
    assert decision.exit_code == bool(against)
    assert decision == decide(policy, evidence, lock), "not a pure function"
    assert decision.files == {name: fact.sha256 for name, fact in evidence.files.items()}
    assert (decision.lock is None) == bool(
        against
        or (lock and not against and LOCK.files == {})
        or (lock is not None and lock == decision_entry(decision, evidence))
    )
    shown = json.loads(decision.to_json())
    assert shown["schema"] == "safeweights-decision/1"
    assert decision.explain().startswith(decision.verdict)
    for code in against:
        assert f"[{code}]" in decision.explain()


def decision_entry(decision: policies.Decision, evidence: Evidence) -> LockEntry:
    signer = evidence.signed_by.fingerprint() if evidence.signed_by else None
    return LockEntry(decision.level, signer, evidence.release, decision.files)


def test_modes() -> None:
    for mode, verdict in (("off", "allow"), ("warn", "warn"), ("enforce", "refuse")):
        decision = decide(dataclasses.replace(STRICT, mode=mode), PLAIN)
        assert decision.verdict == verdict
        assert decision.lock is None, "what was not admitted must not be remembered"
    with pytest.raises(PolicyViolationError) as caught:
        decide(STRICT, PLAIN).require()
    assert caught.value.reason == "signature-missing"
    assert caught.value.decision.subject == "org/m"


@pytest.mark.parametrize("kind", policies.DENIABLE)
def test_what_runs_code_is_denied_unless_allowed_or_pinned(kind: str) -> None:
    evidence = change(
        SIGNED,
        files={"w": FileFact(A, 1, True), "x": FileFact(B, 1, True)},
        findings=(Finding(kind, "x", "why"),),
    )
    assert codes(decide(STRICT, evidence)) == [f"deny-{kind}"]
    lenient = dataclasses.replace(STRICT, deny=STRICT.deny - {kind})
    assert not codes(decide(lenient, evidence))
    pinned = Policy((Rule("*", ("us",), digests={"x": B}),))
    assert not codes(decide(pinned, evidence))


def test_templates_are_compared_with_their_pins() -> None:
    evidence = change(SIGNED, findings=(Finding("template", "w", "the template", B),))
    assert not codes(decide(STRICT, evidence))
    assert codes(decide(Policy((Rule("*", ("us",), templates=(A,)),)), evidence)) == [
        "deny-template"
    ]
    assert not codes(decide(Policy((Rule("*", ("us",), templates=(A, B)),)), evidence))


def test_the_first_matching_rule_decides() -> None:
    policy = Policy((Rule("org/*", ("us",)), Rule("*", level="none")))
    assert decide(policy, PLAIN).verdict == "refuse"
    assert decide(policy, change(PLAIN, subject="x")).verdict == "allow"


class TestFile:
    def test_everything_that_can_be_written(
        self, tmp_path: Path, signer: FileSigner, pki: Any
    ) -> None:
        (tmp_path / "key.pub").write_bytes(signer.public_key.pem)
        (tmp_path / "ca.pem").write_bytes(pki.root.pem)
        path = tmp_path / "policy.toml"
        path.write_text(f'''
mode = "warn"
minimum_level = "known"
lock = "models.lock.json"

[signers.file]
public_key = "key.pub"
key_hint = "{signer.public_key.hint}"

[signers.inline]
public_key = """{signer.public_key.pem.decode()}"""

[signers.ca]
roots = ["ca.pem"]
certificate_subject = "CN=x"
signed_at = 2026-01-31T12:00:00Z

[signers.ci]
identity = "me@example.org"
issuer = "https://example.org"

[[rules]]
pattern = "org/*"
signers = ["file", "ca", "ci"]
templates = ["sha256:{A}"]

[rules.digests]
"model.safetensors" = "{B}"

[[rules]]
pattern = "*"
level = "known"
first_use = true

[deny]
python = false
''')
        policy = policy_file.load_policy(str(path))
        assert policy.mode == "warn"
        assert policy.lock == str(tmp_path / "models.lock.json")
        assert policy.signers["file"] == policy.signers["inline"] == signer.public_key
        assert isinstance(policy.signers["ca"], CertificateTrust)
        assert policy.signers["ca"].at
        assert policy.signers["ci"] == KeylessTrust("me@example.org", "https://example.org")
        assert policy.rules[0].digests == {"model.safetensors": B}
        assert policy.rules[0].templates == (A,)
        assert (policy.rules[0].level, policy.rules[1].level) == ("known", "known")
        assert policy.deny == frozenset(policies.DENIABLE) - {"python"}

    @pytest.mark.parametrize(
        ("text", "field"),
        [
            ("", ""),
            ("mode = 'strict'\n[[rules]]\npattern='*'\nlevel='none'", "mode"),
            ("mode = 'enforce'\nmod = 'off'", "mod"),
            ("[rules]\npattern = '*'", "rules"),
            ("[[rules]]\nlevel = 'none'", "rules[0].pattern"),
            ("[[rules]]\npattern = '*'", "rules[0]"),
            ("[[rules]]\npattern = '*'\nlevel = 'high'", "rules[0].level"),
            ("[[rules]]\npattern = 5\nlevel = 'none'", "rules[0].pattern"),
            ("[[rules]]\npattern = '*'\nsigners = ['x']", "rules[0].signers"),
            ("[[rules]]\npattern = '*'\nsigner = ['x']", "rules[0].signer"),
            ("[[rules]]\npattern = '*'\nlevel = 'none'\nfirst_use = 'yes'", "rules[0].first_use"),
            ("[[rules]]\npattern='*'\nlevel='pinned'\ndigests.a = 'md5:1'", "rules[0].digests.a"),
            ("[[rules]]\npattern='*'\nlevel='none'\ntemplates=['1']", "rules[0].templates[0]"),
            ("minimum_level='pinned'\n[[rules]]\npattern='*'\nlevel='none'", "rules[0].level"),
            ("[deny]\npythno = true\n[[rules]]\npattern='*'\nlevel='none'", "deny.pythno"),
            ("[deny]\npython = 'no'\n[[rules]]\npattern='*'\nlevel='none'", "deny.python"),
            ("[signers.a]\n[[rules]]\npattern='*'\nlevel='none'", "signers.a"),
            ("[signers.a]\nidentity='x'\n[[rules]]\npattern='*'\nlevel='none'",
             "signers.a.issuer"),
            ("[signers.a]\nidentity='x'\npublic_key='y'\n", "signers.a"),
            ("[signers.a]\nroots='ca.pem'\n", "signers.a"),
            ("[signers.a]\nroots='ca.pem'\nsubject='x'", "signers.a.subject"),
            ("[signers.a]\npublic_keys='x.pub'", "signers.a.public_keys"),
            ("[signers.a]\nissuer='x'", "signers.a"),
            ("[[rules]]\npattern='*'\nlevel='known'\nfirst_use=true", ""),
            ("lock = 5\n[[rules]]\npattern='*'\nlevel='none'", "lock"),
            ("a = [", ""),
            ("mode = 'off'\nmode = 'warn'", ""),
        ],
    )  # fmt: skip
    def test_malformed_policies_name_their_field(self, text: str, field: str) -> None:
        with pytest.raises(DocumentError) as caught:
            policy_file.parse_policy(text.encode(), path="policy.toml")
        assert (caught.value.field, caught.value.path) == (field, "policy.toml")
        assert caught.value.exit_code == 3

    def test_a_misspelt_field_of_a_signer_is_named(self) -> None:
        with pytest.raises(DocumentError, match="unknown field; did you mean `public_key`"):
            policy_file.parse_policy(b"[signers.a]\npublic_keys = 'x.pub'")

    def test_keys_that_cannot_be_read(self, tmp_path: Path, signer: FileSigner) -> None:
        rule = "\n[[rules]]\npattern = '*'\nsigners = ['a']\n"
        path = tmp_path / "policy.toml"
        path.write_text("[signers.a]\npublic_key = 'missing.pub'" + rule)
        fields = {"public_key = 'missing.pub'": "public_key", "roots = ['missing.pub']": "roots[0]"}
        for text, field in fields.items():
            subject = "\ncertificate_subject = 'x'" if "roots" in text else ""
            path.write_text(f"[signers.a]\n{text}{subject}{rule}")
            with pytest.raises(FileNotFoundError) as missing:
                policy_file.load_policy(str(path))
            assert missing.value.filename == str(tmp_path / "missing.pub")
            named = f"; signers.a.{field} of the policy `{path}` names this file"
            assert missing.value.strerror == os.strerror(errno.ENOENT) + named
        (tmp_path / "bad.pub").write_text("nothing")
        path.write_text("[signers.a]\npublic_key = 'bad.pub'" + rule)
        with pytest.raises(DocumentError, match=r"bad\.pub"):
            policy_file.load_policy(str(path))
        (tmp_path / "good.pub").write_bytes(signer.public_key.pem)
        path.write_text(f"[signers.a]\npublic_key = 'good.pub'\nkey_hint = '{A}'" + rule)
        with pytest.raises(DocumentError) as caught:
            policy_file.load_policy(str(path))
        assert caught.value.field == "signers.a.key_hint"

    def test_off_needs_no_rules(self) -> None:
        assert policy_file.parse_policy(b"mode = 'off'").rules == ()

    @given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
    def test_any_bytes(self, data: bytes) -> None:
        with contextlib.suppress(DocumentError):
            policy_file.parse_policy(data)

    @given(st.integers(0, 2), st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def test_any_bytes_as_other_documents(self, kind: int, data: bytes) -> None:
        """Lock files, warrants and audit logs are read as strictly as policies."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "document")
            with open(path, "wb") as file:
                file.write(data)
            with contextlib.suppress(TrustError):
                if kind == 0:
                    LockFile(path).entries()
                elif kind == 1:
                    Warrant.from_json(data)
                else:
                    assert verify_log(path) == 0

    def test_a_key_is_told_from_a_policy(self, signer: FileSigner) -> None:
        with pytest.raises(DocumentError, match="this is PEM; a policy is TOML"):
            policy_file.parse_policy(signer.public_key.pem)
