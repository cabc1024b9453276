"""Admission of whole folders, warrants, gates, the lock file and the audit log."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import safeweights.numpy
from safeweights import trust as api
from safeweights.checkpoint import SafetensorsFile
from safeweights.reports.admission import admit, findings_of
from safeweights.reports.bom import bill_of_materials
from safeweights.storage.opening import open_source
from safeweights.trust.errors import (
    DocumentError,
    PolicyViolationError,
    TrustError,
    VerificationError,
)
from safeweights.trust.policies.admission import Warrant
from safeweights.trust.policies.audit import AuditLog, verify_log
from safeweights.trust.policies.enforcing import PolicyVerifier, UnverifiedWarning, as_verifier
from safeweights.trust.policies.evidence import gather
from safeweights.trust.policies.lockfile import LockFile
from safeweights.trust.policies.policy import LockEntry, Policy, Rule
from safeweights.trust.signatures import signing
from safeweights.trust.signatures.keyless import KeylessTrust

if TYPE_CHECKING:
    from collections.abc import Callable

    from safeweights.storage.source import Source
    from safeweights.trust.signatures.keys import FileSigner

WEIGHTS = "model.safetensors"
FIRST = Policy((Rule("*", level="known", first_use=True),))


@pytest.fixture
def policy(signer: FileSigner) -> Policy:
    return Policy((Rule("*", ("us",)),), {"us": signer.public_key})


@pytest.fixture
def signed(model: Path, signer: FileSigner) -> Path:
    signing.sign(str(model), signer, release=1)
    return model


def read_all(gate: Callable[[Source, str], Source], path: Path) -> dict[str, bytes]:
    """What a loader does: open, hand over, parse, read."""
    file = SafetensorsFile(gate(open_source(path), str(path)))
    return {name: bytes(file.tensor(name).view()) for name in file.header.tensors}


def codes(admission: Any) -> set[str]:
    return {reason.code for reason in admission.decision.reasons if reason.against}


class TestAdmission:
    def test_a_signed_folder(self, signed: Path, policy: Policy) -> None:
        admission = admit(str(signed), policy, name="org/m")
        assert admission.exit_code == 0
        assert admission.decision.level == "signed"
        warrant = admission.require()
        assert set(warrant.files) == {
            WEIGHTS, "config.json", "vae.txt", "vae/weights.safetensors",
            f"{WEIGHTS}.swtree", "vae/weights.safetensors.swtree",
        }  # fmt: skip
        assert read_all(warrant, signed / WEIGHTS) == read_all(lambda s, _: s, signed / WEIGHTS)

    def test_a_warrant_survives_what_happens_to_the_folder(
        self, signed: Path, policy: Policy
    ) -> None:
        warrant = admit(str(signed), policy).require()
        data = bytearray((signed / WEIGHTS).read_bytes())
        data[-1] ^= 1
        (signed / WEIGHTS).write_bytes(data)
        with pytest.raises(VerificationError) as caught:
            read_all(warrant, signed / WEIGHTS)
        assert caught.value.reason == "block-mismatch"
        (signed / "new.safetensors").write_bytes(data)
        with pytest.raises(VerificationError) as caught:
            read_all(warrant, signed / "new.safetensors")
        assert caught.value.reason == "not-admitted"

    def test_a_folder_reached_through_a_link(self, signed: Path, policy: Policy) -> None:
        (signed.parent / "link").symlink_to(signed)
        warrant = admit(str(signed.parent / "link"), policy).require()
        for root in (signed, signed.parent / "link"):
            read_all(warrant, root / "vae" / "weights.safetensors")
            read_all(warrant, root / WEIGHTS)

    def test_a_cache_of_links(self, signed: Path, policy: Policy) -> None:
        """As the hub's cache keeps snapshots: names are links to files called by their digest."""
        blobs, snapshot = signed.parent / "blobs", signed.parent / "snapshot"
        blobs.mkdir()
        for number, path in enumerate(sorted(p for p in signed.rglob("*") if p.is_file())):
            target = snapshot / path.relative_to(signed)
            target.parent.mkdir(parents=True, exist_ok=True)
            (blobs / str(number)).write_bytes(path.read_bytes())
            target.symlink_to(blobs / str(number))
        warrant = admit(str(snapshot), policy).require()
        assert read_all(warrant, snapshot / WEIGHTS) == read_all(
            PolicyVerifier(policy), signed / WEIGHTS
        )
        assert read_all(PolicyVerifier(policy), snapshot / "vae/weights.safetensors")

    def test_a_warrant_travels_as_json(self, signed: Path, policy: Policy, tmp_path: Path) -> None:
        warrant = admit(str(signed), policy).require()
        again = Warrant.from_json(warrant.to_json().encode())
        assert (again, again.id) == (warrant, warrant.id)
        moved = tmp_path / "moved"
        signed.rename(moved)
        again = Warrant.from_json(warrant.to_json().encode(), root=str(moved))
        expected = read_all(lambda s, _: s, moved / WEIGHTS)
        assert read_all(again, moved / WEIGHTS) == expected
        (moved / f"{WEIGHTS}.swtree").unlink()  # without its sidecar the file is read whole
        assert read_all(again, moved / WEIGHTS) == expected
        (moved / f"{WEIGHTS}.swtree").write_bytes(
            (moved / "vae/weights.safetensors.swtree").read_bytes()
        )
        with pytest.raises(VerificationError) as caught:
            read_all(again, moved / WEIGHTS)
        assert caught.value.reason == "stale-sidecar"

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"schema": "x"}, "schema"),
            ({"files": {"../x": {"sha256": "0" * 64, "size": 1}}}, "files.`../x`"),
            ({"files": {"x": {"sha256": "0", "size": 1}}}, "files.x.sha256"),
            ({"files": {"x": {"sha256": "0" * 64, "size": -1}}}, "files.x.size"),
            ({"files": {"x": {"sha256": "0" * 64}}}, "files.x.size"),
            ({"extra": 1}, "extra"),
        ],
    )
    def test_malformed_warrants(self, change: dict[str, Any], field: str) -> None:
        document = {"schema": "safeweights-warrant/1", "subject": "m", "root": "/", "files": {}}
        with pytest.raises(DocumentError) as caught:
            Warrant.from_json(json.dumps({**document, **change}).encode())
        assert caught.value.field == field

    @pytest.mark.parametrize(
        ("attack", "code"),
        [
            (lambda root: (root / "modeling.py").write_text("import os"), "deny-python"),
            (lambda root: (root / "x.pth").write_text("import os"), "deny-python"),
            (lambda root: (root / "pytorch_model.bin").write_bytes(pickle.dumps({})),
             "deny-pickle"),
            (lambda root: (root / "innocent.txt").write_bytes(pickle.dumps({1: 2})),
             "deny-pickle"),
            (lambda root: (root / "old.txt").write_bytes(pickle.dumps(Exception("x"), 0)),
             "deny-pickle"),
            (lambda root: (root / "slow.txt").write_bytes(b"N" * 5000 + b"cos\nsystem\n."),
             "deny-pickle"),
            (lambda root: (root / "kernel.so").touch(), "deny-native"),
            (lambda root: (root / "setup").write_text("#!/bin/sh\n"), "deny-native"),
            (lambda root: (root / "config.json").write_text('{"auto_map": {"AutoModel": "m.M"}}'),
             "deny-auto_map"),
            (lambda root: (root / "config.json").write_text('{"a": [{"\\u0061uto_map": "m.M"}]}'),
             "deny-auto_map"),
            (lambda root: (root / "config.json").write_text('{"trust_remote_code": true}'),
             "deny-trust_remote_code"),
            (lambda root: (root / "config.json").write_text(
                '{"_attn_implementation_internal": "evil/kernel"}'), "deny-remote_kernel"),
            (lambda root: (root / "modules.json").write_text('[{"idx": 0, "type": "evil.Module"}]'),
             "deny-auto_map"),
            (lambda root: (root / "MODULES.J\u017fON").write_text('[{"type": "evil.Module"}]'),
             "deny-auto_map"),
            (lambda root: (root / "config.json").write_text("{"), "deny-unreadable"),
            (lambda root: (root / "config.json").write_text("[" + "{}," * 2_100_000 + "{}]"),
             "deny-unreadable"),
            (lambda root: os.mkfifo(root / "pipe"), "deny-special"),
            (lambda root: (root / "loop").symlink_to("."), "deny-special"),
        ],
    )  # fmt: skip
    def test_what_runs_code_is_refused_even_when_signed(
        self, model: Path, signer: FileSigner, policy: Policy, attack: Callable[[Path], None],
        code: str,
    ) -> None:  # fmt: skip
        attack(model)
        names = [n for n in ("pipe", "loop") if os.path.lexists(model / n)]
        signing.sign(str(model), signer, ignore=names)
        assert codes(admit(str(model), policy)) == {code}

    def test_a_polyglot(self, model: Path, signer: FileSigner, policy: Policy) -> None:
        # Valid safetensors with the zip inside the data of the last tensor: `python FILE` runs it.
        import io

        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("__main__.py", "print('executed')")
        header = b'{"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}'
        header %= (len(archive.getvalue()), len(archive.getvalue()))
        (model / WEIGHTS).write_bytes(
            len(header).to_bytes(8, "little") + header + archive.getvalue()
        )
        signing.sign(str(model), signer)
        SafetensorsFile.open(str(model / WEIGHTS))
        assert codes(admit(str(model), policy)) == {"deny-polyglot", "deny-unknown"}

    @pytest.mark.parametrize("length", [640, 896, 1408, 23117, 8483, 19280])
    def test_a_header_whose_length_spells_a_magic_number(
        self, model: Path, policy: Policy, signer: FileSigner, length: int
    ) -> None:
        header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(length)
        (model / WEIGHTS).write_bytes(length.to_bytes(8, "little") + header + b".")
        SafetensorsFile.open(str(model / WEIGHTS))
        signing.sign(str(model), signer)
        assert not codes(admit(str(model), policy))

    def test_what_is_usual_is_not_refused(
        self, model: Path, policy: Policy, signer: FileSigner
    ) -> None:
        module = '[{"idx": 0, "type": "sentence_transformers.models.Transformer"}]'
        (model / "modules.json").write_text(module)
        (model / "vocab.txt").write_text("[PAD]\ncat\ndog\nimport\nos\n.\n")
        (model / "tokenizer_config.json").write_text(
            '{"chat_template": "{{ x }}", "auto_map": null}'
        )
        (model / "README.md").write_text("# Title\n\nconfig\nfiles\nend in a full stop.")
        signing.sign(str(model), signer)
        assert not codes(admit(str(model), policy))

    def test_an_end_record_by_chance(
        self, model: Path, policy: Policy, signer: FileSigner, make_safetensors: Any
    ) -> None:
        for record in (b"PK\x05\x06", b"PK\x05\x06" + bytes(18), b"PK\x05\x06" + b"\x01" * 30):
            (model / WEIGHTS).write_bytes(make_safetensors({"a": bytes(99) + record}))
            signing.sign(str(model), signer)
            assert not codes(admit(str(model), policy))

    def test_templates(self, model: Path, signer: FileSigner) -> None:
        (model / "chat_template.jinja").write_text("{{ messages }}")
        (model / "tokenizer_config.json").write_text('{"chat_template": "{{ evil }}"}')
        signing.sign(str(model), signer)
        seen = gather(str(model), Policy(()), examine=findings_of).evidence.findings
        found = {each.sha256 for each in seen if each.kind == "template"}
        assert len(found) == 2
        rule = Rule("*", ("us",), templates=tuple(map(str, found)))
        policy = Policy((rule,), {"us": signer.public_key})
        assert not codes(admit(str(model), policy))
        (model / "chat_template.jinja").write_text("{{ changed }}")
        signing.sign(str(model), signer)
        assert codes(admit(str(model), policy)) == {"deny-template"}

    def test_the_signature_is_required(self, signed: Path, policy: Policy) -> None:
        (signed / "model.sig").unlink()
        assert codes(admit(str(signed), policy)) == {"signature-missing", "level"}
        (signed / "model.sig").write_text("{}")
        assert codes(admit(str(signed), policy)) == {"signature-refused", "level"}

    def test_content_that_is_not_what_was_signed(self, signed: Path, policy: Policy) -> None:
        (signed / "config.json").write_text("{}")
        admission = admit(str(signed), policy)
        assert admission.warrant is None
        with pytest.raises(PolicyViolationError, match="was changed"):
            admission.require()

    def test_what_the_signer_left_out_is_not_admitted(
        self, model: Path, signer: FileSigner, policy: Policy
    ) -> None:
        signing.sign(str(model), signer, ignore=["notes"])
        (model / "notes").mkdir()
        (model / "notes" / "x.safetensors").write_bytes((model / WEIGHTS).read_bytes())
        assert codes(admit(str(model), policy)) == {"unsigned-file"}

    def test_the_next_best_signer(self, signed: Path, signer: FileSigner, pki: Any) -> None:
        signers = {"ca": pki.trust(), "ci": KeylessTrust("a", "b"), "us": signer.public_key}
        policy = Policy((Rule("*", ("ca", "ci", "us")),), signers)
        assert admit(str(signed), policy).decision.signer == "us"


class TestHistory:
    def test_replay_of_an_older_release(
        self, model: Path, signer: FileSigner, policy: Policy, tmp_path: Path
    ) -> None:
        lock = LockFile(str(tmp_path / "lock.json"))
        old = {}
        for release in (1, 2):
            (model / "config.json").write_text(f'{{"release": {release}}}')
            signing.sign(str(model), signer, release=release)
            assert not codes(admit(str(model), policy, name="m", lock=lock))
            if release == 1:
                old = {p: p.read_bytes() for p in model.rglob("*") if p.is_file()}
        for path, data in old.items():
            path.write_bytes(data)
        assert not codes(admit(str(model), policy, name="m"))
        assert codes(admit(str(model), policy, name="m", lock=lock)) == {"rollback"}

    def test_first_use(self, model: Path, tmp_path: Path) -> None:
        lock = LockFile(str(tmp_path / "lock.json"))
        assert not codes(admit(str(model), FIRST, name="m", lock=lock))
        assert not codes(admit(str(model), FIRST, name="m", lock=lock))
        (model / "config.json").write_text("{}")
        assert codes(admit(str(model), FIRST, name="m", lock=lock)) == {
            "changed-since-first-use", "level",
        }  # fmt: skip
        assert LockFile(lock.path).get("m") == lock.get("m")

    def test_first_use_without_a_memory_is_refused(self, model: Path, tmp_path: Path) -> None:
        for use in (lambda: admit(str(model), FIRST), lambda: PolicyVerifier(FIRST)):
            with pytest.raises(DocumentError, match="needs a lock file"):
                use()
        own = dataclasses.replace(FIRST, lock=str(tmp_path / "own.json"))
        assert not codes(admit(str(model), own, name="m"))
        (model / "config.json").write_text("{}")
        assert "changed-since-first-use" in codes(admit(str(model), own, name="m"))

    def test_no_downgrade_to_first_use(
        self, signed: Path, signer: FileSigner, tmp_path: Path
    ) -> None:
        lock = LockFile(str(tmp_path / "lock.json"))
        rule = Rule("*", ("us",), level="known", first_use=True)
        policy = Policy((rule,), {"us": signer.public_key})
        assert admit(str(signed), policy, name="m", lock=lock).decision.level == "signed"
        (signed / "model.sig").unlink()
        assert "downgrade" in codes(admit(str(signed), policy, name="m", lock=lock))

    @pytest.mark.parametrize(
        ("text", "field"),
        [
            ("[]", ""),
            ('{"schema": "safeweights-lock/2", "models": {}}', "schema"),
            ('{"schema": "safeweights-lock/1"}', "models"),
            ('{"schema": "safeweights-lock/1", "models": {"m": {"level": "top", "files": {}}}}',
             "models.m.level"),
            ('{"schema": "safeweights-lock/1", "models": {"m": {"level": "none", "files": 1}}}',
             "models.m.files"),
            ('{"schema": "safeweights-lock/1", "models": {"m": {"level":"none"}, "m": {}}}', ""),
        ],
    )  # fmt: skip
    def test_malformed_lock_files(self, tmp_path: Path, text: str, field: str) -> None:
        path = tmp_path / "lock.json"
        path.write_text(text)
        for use in (
            lambda: LockFile(str(path)).get("m"),
            lambda: LockFile(str(path)).remember("m", LockEntry("known", None, None, {})),
        ):
            with pytest.raises(DocumentError) as caught:
                use()
            assert (caught.value.field, caught.value.path) == (field, str(path))
        assert path.read_text() == text


class TestGate:
    def test_reads_are_verified(self, signed: Path, policy: Policy) -> None:
        gate = PolicyVerifier(policy)
        expected = read_all(lambda s, _: s, signed / WEIGHTS)
        assert read_all(gate, signed / WEIGHTS) == expected
        assert read_all(gate, signed / "vae/weights.safetensors")
        assert len(gate._claims._checked) == 1, "one signature, one check"
        data = bytearray((signed / WEIGHTS).read_bytes())
        data[-5] ^= 1
        (signed / WEIGHTS).write_bytes(data)
        file = SafetensorsFile(gate(open_source(signed / WEIGHTS), str(signed / WEIGHTS)))
        assert file.tensor("a").view() == expected["a"]
        with pytest.raises(VerificationError):
            file.tensor("b").view()

    @pytest.mark.parametrize("trees", [True, False])
    def test_everything_a_caller_may_give(
        self, model: Path, signer: FileSigner, policy: Policy, tmp_path: Path, trees: bool
    ) -> None:
        signing.sign(str(model), signer, trees=trees)
        (tmp_path / "k.pub").write_bytes(signer.public_key.pem)
        (tmp_path / "p.toml").write_text(
            "[signers.us]\npublic_key='k.pub'\n[[rules]]\npattern='*'\nsigners=['us']"
        )
        warrant = admit(str(model), policy).require()
        for trust in (policy, str(tmp_path / "p.toml"), tmp_path / "p.toml", signer.public_key,
                      PolicyVerifier(policy), warrant):  # fmt: skip
            assert len(read_all(as_verifier(trust), model / WEIGHTS)) == 2
        with pytest.raises(TypeError, match="takes a policy"):
            as_verifier(5)

    def test_a_path_is_what_its_content_says(
        self, model: Path, signer: FileSigner, stranger: FileSigner, policy: Policy, tmp_path: Path
    ) -> None:
        signing.sign(str(model), signer)
        files = {
            "key.toml": signer.public_key.pem,  # names say nothing
            "key": b"\xef\xbb\xbf\n\n" + signer.public_key.pem,
            "warrant.pub": admit(str(model), policy).require().to_json().encode(),
            "policy.json": b'mode = "enforce"\n[signers.us]\npublic_key = """\n%s"""\n'
            b'[[rules]]\npattern = "*"\nsigners = ["us"]' % signer.public_key.pem,
        }
        for name, data in files.items():
            path = tmp_path / name
            path.write_bytes(data)
            assert len(read_all(as_verifier(path), model / WEIGHTS)) == 2
            assert len(read_all(as_verifier(str(path)), model / WEIGHTS)) == 2
        (tmp_path / "stranger.pub").write_bytes(stranger.public_key.pem)
        with pytest.raises(PolicyViolationError):
            read_all(as_verifier(tmp_path / "stranger.pub"), model / WEIGHTS)
        (model / "other.safetensors").write_bytes((model / WEIGHTS).read_bytes())
        with pytest.raises(VerificationError, match="does not name this file"):
            read_all(as_verifier(tmp_path / "warrant.pub"), model / "other.safetensors")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"-----BEGIN CERTIFICATE-----\nMII", "a certificate alone does not say who"),
            (b"-----BEGIN EC PRIVATE KEY-----\nMII", "this is a private key; give the public"),
            (b"-----BEGIN PUBLIC KEY-----\nMII", "not a public key in PEM"),
            (b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}', "a warrant (JSON"),
            (b'{"schema": "safeweights-lock/1"}', "a warrant (JSON"),
            (b"{", "a warrant (JSON"),
            (b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce", "a public key (PEM)"),  # DER
            (b"", "no [[rules]]"),
            (b"<html>", "a policy (TOML)"),
            (b"# long\n" * 200_000, "longer than 1048576"),
        ],
    )
    def test_a_file_that_is_nothing_of_it(
        self, content: bytes, message: str, tmp_path: Path
    ) -> None:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(DocumentError) as caught:
            as_verifier(tmp_path / "x")
        assert message in str(caught.value)
        assert str(tmp_path / "x") in str(caught.value)

    def test_a_fault_within_a_policy_is_told_as_such(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text('[[rules]]\npattern = "*"\nlevle = "none"\n')
        with pytest.raises(DocumentError, match=r"levle: unknown field") as caught:
            as_verifier(tmp_path / "x")
        assert "trust=" not in str(caught.value)

    @pytest.mark.parametrize("trees", [True, False])
    def test_refusals(
        self, model: Path, signer: FileSigner, stranger: FileSigner, trees: bool
    ) -> None:
        signing.sign(str(model), signer, trees=trees)
        with pytest.raises(PolicyViolationError) as caught:
            read_all(as_verifier(stranger.public_key), model / WEIGHTS)
        assert caught.value.reason == "signature-refused"
        (model / "extra.safetensors").write_bytes((model / WEIGHTS).read_bytes())
        with pytest.raises(PolicyViolationError):
            read_all(as_verifier(signer.public_key), model / "extra.safetensors")
        data = (model / WEIGHTS).read_bytes()
        (model / WEIGHTS).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(VerificationError):
            read_all(as_verifier(signer.public_key), model / WEIGHTS)
        (model / WEIGHTS).write_bytes(data + b"!")
        with pytest.raises(VerificationError):
            read_all(as_verifier(signer.public_key), model / WEIGHTS)
        (model / "model.sig").unlink()
        with pytest.raises(PolicyViolationError) as caught:
            read_all(as_verifier(signer.public_key), model / WEIGHTS)
        assert caught.value.reason == "signature-missing"

    def test_warn(self, signed: Path, signer: FileSigner) -> None:
        policy = Policy((Rule("*", ("us",)),), {"us": signer.public_key}, mode="warn")
        read_all(PolicyVerifier(policy), signed / WEIGHTS)
        data = bytearray((signed / WEIGHTS).read_bytes())
        data[-1] ^= 1
        (signed / WEIGHTS).write_bytes(data)
        with pytest.warns(UnverifiedWarning, match="not what was signed"):
            assert read_all(PolicyVerifier(policy), signed / WEIGHTS)["b"][-1] == data[-1]
        (signed / "model.sig").unlink()
        with pytest.warns(UnverifiedWarning, match="there is none"):
            read_all(PolicyVerifier(policy), signed / WEIGHTS)

    def test_off(self, model: Path) -> None:
        source = open_source(model / WEIGHTS)
        assert PolicyVerifier(Policy((), mode="off"))(source, "x") is source

    def test_first_use_and_log(self, model: Path, tmp_path: Path) -> None:
        lock, log = LockFile(str(tmp_path / "lock")), AuditLog(str(tmp_path / "log"))
        gate = PolicyVerifier(FIRST, name="m", lock=lock, log=log)
        read_all(gate, model / WEIGHTS)
        read_all(gate, model / "vae/weights.safetensors")
        (model / WEIGHTS).write_bytes((model / "vae/weights.safetensors").read_bytes())
        with pytest.raises(PolicyViolationError) as caught:
            read_all(gate, model / WEIGHTS)
        assert caught.value.reason == "changed-since-first-use"
        assert verify_log(log.path) == 3


class TestAudit:
    def test_every_change_is_seen(self, signed: Path, policy: Policy, tmp_path: Path) -> None:
        log = AuditLog(str(tmp_path / "audit.jsonl"))
        head = None
        for _ in range(3):
            head = admit(str(signed), policy, log=log).log_head
        assert verify_log(log.path, head=head) == 3
        lines = Path(log.path).read_bytes().splitlines(keepends=True)
        assert json.loads(lines[0])["details"]["verdict"] == "allow"
        cases = {
            "changed": [lines[0].replace(b'"allow"', b'"refus"'), *lines[1:]],
            "removed": [lines[0], lines[2]],
            "first removed": lines[1:],
            "swapped": [lines[1], lines[0], lines[2]],
            "repeated": [*lines, lines[2]],
            "incomplete": [*lines[:2], lines[2][:-1]],
            "cut": lines[:2],
            "empty": [],
        }
        for name, changed in cases.items():
            Path(log.path).write_bytes(b"".join(changed))
            with pytest.raises(TrustError) as caught:
                verify_log(log.path, head=head)
            assert caught.value.reason in {"audit-broken", "audit-head"}, name
        Path(log.path).write_bytes(b"".join(cases["cut"]))
        assert verify_log(log.path) == 2, "without a head, a cut end cannot be seen"

    def test_nothing_is_appended_to_a_broken_log(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        for text in (b"nonsense\n", b'{"seq": 1}\n', b"{}"):
            path.write_bytes(text)
            with pytest.raises(TrustError):
                AuditLog(str(path)).append("x", {})
            assert path.read_bytes() == text

    def test_what_could_not_be_logged_is_not_remembered(
        self, signed: Path, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        log, lock = AuditLog(str(tmp_path / "log")), LockFile(str(tmp_path / "lock"))
        with monkeypatch.context() as patch:
            patch.setattr("safeweights.trust.policies.audit.os.write", full)
            with pytest.raises(OSError, match="the audit log cannot be written") as caught:
                admit(str(signed), policy, log=log, lock=lock)
        assert caught.value.filename == log.path
        assert not os.path.exists(lock.path)
        admit(str(signed), policy, log=log, lock=lock)
        assert os.path.exists(lock.path)

    def test_writers_side_by_side(self, tmp_path: Path) -> None:
        log = AuditLog(str(tmp_path / "log"))
        threads = [
            threading.Thread(
                target=lambda: [log.append("x", {"pad": "y" * 70_000}) for _ in range(10)]
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert verify_log(log.path) == 40


def test_a_path_may_be_any_kind_of_path(tmp_path: Path) -> None:
    model, key, policy = tmp_path / "model", tmp_path / "me", tmp_path / "policy.toml"
    model.mkdir()
    safeweights.numpy.save_file({"a": np.zeros(3)}, model / WEIGHTS)
    api.generate_key(key)
    api.sign(model, api.load_private_key(key), signature=model / "model.sig")
    public = api.load_public_key(tmp_path / "me.pub")
    assert api.verify(model, public, signature=model / "model.sig").signed_by.method == "key"
    policy.write_text(
        "[signers.me]\npublic_key = 'me.pub'\n[[rules]]\npattern = '*'\nsigners = ['me']\n"
    )
    assert api.load_policy(policy) == api.load_policy(str(policy))
    log = AuditLog(tmp_path / "log")
    assert admit(model, policy, log=log, lock=LockFile(tmp_path / "lock")).warrant
    assert verify_log(tmp_path / "log") == 1
    assert api.hash_file(model / WEIGHTS) == api.hash_file(str(model / WEIGHTS))
    assert bill_of_materials(model)["metadata"]["component"]["name"] == "model"
    (tmp_path / "broken").write_text("{")
    for load in (
        api.load_policy,
        api.load_public_key,
        api.load_private_key,
        api.load_certificates,
    ):
        with pytest.raises(DocumentError) as caught:
            load(tmp_path / "broken")
        assert caught.value.path == str(tmp_path / "broken")


def test_a_path_is_no_trust(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    api.generate_key(tmp_path / "me")
    api.sign(tmp_path / "a", api.load_private_key(tmp_path / "me"))
    with pytest.raises(TypeError, match="load_public_key"):
        api.verify(tmp_path / "a", str(tmp_path / "me.pub"))  # type: ignore[arg-type]
