"""Encrypted models with signatures and policies: outside, inside, on key files; no downgrade."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from encrypted_files import encrypt_bytes, public

import safeweights
import safeweights.numpy
from safeweights import trust
from safeweights.errors import SafetensorError
from safeweights.storage import BytesSource, DescriptorSource
from safeweights.trust import (
    AccessError,
    AccessRules,
    AuditLog,
    DocumentError,
    Policy,
    PolicyVerifier,
    PolicyViolationError,
    PublicKey,
    Rule,
    UnverifiedWarning,
    VerificationError,
    generate_key,
    load_private_key,
    parse_recipient,
    sign,
    verify,
)
from safeweights.trust.access import bech32
from safeweights.trust.policies.policy_file import parse_policy
from safeweights.trust.policies.sealed import verify_inside

if TYPE_CHECKING:
    from safeweights.trust.signatures.keys import FileSigner

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def signer(tmp_path: Path) -> FileSigner:
    generate_key(tmp_path / "key")
    return load_private_key(tmp_path / "key")


@pytest.fixture
def sealed(
    sharded: tuple[Path, dict[str, object]], ann: Path, bob: Path, signer: FileSigner
) -> Path:
    """A model that was signed, then encrypted for Ann and Bob, then signed again."""
    folder, _ = sharded
    sign(folder, signer)
    path = Path(safeweights.encrypt(folder, [public(ann), public(bob)]).path)
    done = sign(path, signer)
    assert done.key_signatures == ("model.key.age.sig",)
    return path


def load(path: Path, identity: object, trusted: object) -> None:
    safeweights.numpy.load_file(path, identity=identity, trust=trusted)


def refused(path: Path, identity: object, trusted: object) -> str:
    with pytest.raises(SafetensorError) as caught:
        load(path, identity, trusted)
    return str(getattr(caught.value, "reason", None) or getattr(caught.value, "rule", None))


def test_both_statements_are_checked_before_anything_is_handed_out(
    sealed: Path, sharded: tuple[Path, dict[str, object]], ann: Path, signer: FileSigner
) -> None:
    found = safeweights.numpy.load_file(sealed, identity=ann, trust=signer.public_key)
    assert all((found[name] == value).all() for name, value in sharded[1].items())  # type: ignore[attr-defined]
    with safeweights.safe_open(sealed, "np", identity=ann, trust=signer.public_key) as file:
        assert file.get_slice("w3")[5, 7] == sharded[1]["w3"][5, 7]  # type: ignore[index]
    assert verify_inside(str(sealed), signer.public_key, ann)


@pytest.mark.parametrize("name", ["weights.age", "weights.bin.age", "weights"])
def test_a_large_encrypted_file_of_any_name_is_verified_block_by_block(
    tmp_path: Path, ann: Path, signer: FileSigner, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tensors = {"w": np.arange(1 << 19, dtype=np.float64)}
    safeweights.numpy.save_file(tensors, tmp_path / "a.safetensors")
    path = tmp_path / "model" / name
    path.parent.mkdir()
    safeweights.encrypt(tmp_path / "a.safetensors", public(ann), path)
    tree = Path(f"{path}.swtree")
    (described,) = trust.digest(path).files
    sign(path, signer)
    assert tree.exists()
    (again,) = trust.digest(path).files
    assert described.tree is not None
    assert again.tree is not None
    assert described.tree.root == again.tree.root

    def refuse(*_: object) -> None:
        raise AssertionError("the whole file is hashed")

    monkeypatch.setattr("safeweights.trust.policies.enforcing.VerifiedCopy", refuse)
    found = safeweights.numpy.load_file(path, identity=ann, trust=signer.public_key)
    assert (found["w"] == tensors["w"]).all()
    data = bytearray(path.read_bytes())
    data[3 << 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError) as caught:
        safeweights.numpy.load_file(path, identity=ann, trust=signer.public_key)
    assert caught.value.reason == "block-mismatch"
    # Of a folder, too; the trees of the last time are replaced, not signed as files.
    sign(path.parent, signer)
    assert {each.name for each in trust.digest(path.parent).files} == {
        name,
        f"{name}.sig",
        f"{name}.swtree",
    }
    assert sign(path.parent, signer).sidecars == (f"{name}.swtree",)


def test_other_files_get_no_block_tree(tmp_path: Path, ann: Path, signer: FileSigner) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "plain.bin").write_bytes(bytes(5 << 20))
    (tmp_path / "small").write_bytes(bytes(100))
    safeweights.encrypt(tmp_path / "small", public(ann), folder / "small.age")
    (folder / "plain.bin.swtree").write_bytes(b"somebody's")
    assert sign(folder, signer).sidecars == ()
    assert {each.name for each in trust.digest(folder).files} == {
        "plain.bin",
        "plain.bin.swtree",
        "small.age",
    }


def test_a_verified_tensor_costs_its_blocks_of_ciphertext(
    tmp_path: Path, ann: Path, signer: FileSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {f"w{n}": np.full(500_000, n, np.float64) for n in range(8)}
    safeweights.numpy.save_file(tensors, tmp_path / "a.safetensors")
    path = Path(safeweights.encrypt(tmp_path / "a.safetensors", public(ann)).path)
    sign(path, signer)
    assert (tmp_path / "a.safetensors.age.swtree").exists()
    reads: list[int] = []
    real = DescriptorSource.read_into

    def counting(self: DescriptorSource, offset: int, buffer: memoryview) -> None:
        reads.append(len(buffer))
        real(self, offset, buffer)

    monkeypatch.setattr(DescriptorSource, "read_into", counting)
    with safeweights.safe_open(path, "np", identity=ann, trust=signer.public_key) as file:
        assert file.get_slice("w5")[7] == 5
    assert sum(reads) < 6 << 20 < path.stat().st_size / 5


def test_the_outer_statement_needs_no_key_and_outlives_the_recipients(
    sealed: Path, ann: Path, bob: Path, signer: FileSigner
) -> None:
    assert "model.key.age" in verify(sealed, signer.public_key).files
    safeweights.rekey(sealed, ann, remove=public(bob))
    with pytest.raises(VerificationError) as caught:
        verify(sealed, signer.public_key)  # the key file was exchanged, for all that is known
    assert caught.value.path == str(sealed / "model.key.age")
    assert refused(sealed, ann, signer.public_key) in {"digest-mismatch", "size-mismatch"}
    outer = (sealed / "model.sig").read_bytes()
    sign(sealed / "model.key.age", signer)
    assert verify(sealed, signer.public_key).unsigned == ()
    load(sealed, ann, signer.public_key)
    assert (sealed / "model.sig").read_bytes() == outer


def test_a_changed_shard_is_refused(sealed: Path, ann: Path, signer: FileSigner) -> None:
    data = bytearray((sealed / f"{SHARD}.age").read_bytes())
    data[-100] ^= 1
    (sealed / f"{SHARD}.age").write_bytes(data)
    assert refused(sealed, ann, signer.public_key) == "block-mismatch"


def test_a_file_that_was_encrypted_again_by_another_is_refused(
    sealed: Path,
    sharded: tuple[Path, dict[str, object]],
    ann: Path,
    tmp_path: Path,
    signer: FileSigner,
) -> None:
    """Anyone who has the recipients can encrypt: only the signatures say whose it is."""
    forged = sharded[0] / SHARD
    forged.write_bytes(
        safeweights.numpy.save({"w2": np.zeros((200, 200)), "w3": np.zeros((200, 200))})
    )
    other = Path(safeweights.encrypt(sharded[0], public(ann), tmp_path / "other").path)
    load(other, ann, None)
    assert refused(other, ann, signer.public_key) == "signature-missing"
    for name in ("model.key.age", *(path.name for path in other.glob("*.safetensors*.age"))):
        shutil.copy(other / name, sealed / name)
    assert refused(sealed, ann, signer.public_key) in {"digest-mismatch", "size-mismatch"}
    # Signed outside by the right signer, the plaintext is still not what was signed inside.
    sign(other, signer)
    assert verify(other, signer.public_key)
    with pytest.raises(VerificationError):
        verify_inside(str(other), signer.public_key, ann)
    assert refused(other, ann, signer.public_key) in {
        "block-mismatch",
        "size-mismatch",
        "stale-sidecar",
    }


def test_an_exchanged_or_unsigned_key_file_is_refused(
    sealed: Path,
    sharded: tuple[Path, dict[str, object]],
    ann: Path,
    tmp_path: Path,
    signer: FileSigner,
) -> None:
    other = Path(safeweights.encrypt(sharded[0], public(ann), tmp_path / "other").path)
    key = (sealed / "model.key.age").read_bytes()
    shutil.copy(other / "model.key.age", sealed / "model.key.age")
    assert refused(sealed, ann, signer.public_key) in {"digest-mismatch", "size-mismatch"}
    (sealed / "model.key.age").write_bytes(key)
    (sealed / "model.key.age.sig").unlink()
    assert refused(sealed, ann, signer.public_key) == "signature-missing"
    with pytest.raises(VerificationError) as caught:
        verify(sealed, signer.public_key)
    assert caught.value.reason == "signature-missing"


def test_the_inner_statement_cannot_be_removed(sealed: Path, ann: Path, signer: FileSigner) -> None:
    (sealed / "model.sig.age").unlink()
    with pytest.raises(VerificationError, match="is missing"):
        verify(sealed, signer.public_key)
    assert refused(sealed, ann, signer.public_key) != "None"
    with pytest.raises(VerificationError, match="no signature inside"):
        verify_inside(str(sealed), signer.public_key, ann)


def test_the_inner_statement_must_be_by_a_signer_of_the_rule(
    sharded: tuple[Path, dict[str, object]], ann: Path, tmp_path: Path, signer: FileSigner
) -> None:
    generate_key(tmp_path / "stranger")
    sign(sharded[0], load_private_key(tmp_path / "stranger"))
    path = Path(safeweights.encrypt(sharded[0], public(ann)).path)
    sign(path, signer)
    assert refused(path, ann, signer.public_key) == "wrong-key"
    with pytest.raises(VerificationError):
        verify_inside(str(path), signer.public_key, ann)
    warned = Policy((Rule("*", signers=("us",)),), {"us": signer.public_key}, mode="warn")
    with pytest.warns(UnverifiedWarning):
        load(path, ann, warned)


def test_an_extra_or_missing_file_inside_is_refused(
    sealed: Path, sharded: tuple[Path, dict[str, object]], ann: Path, signer: FileSigner
) -> None:
    os.rename(sealed / "config.json.age", sealed / "other.json.age")
    with pytest.raises(VerificationError, match=r"config\.json` is missing"):
        verify_inside(str(sealed), signer.public_key, ann)
    shutil.copy(sealed / "other.json.age", sealed / "config.json.age")
    with pytest.raises(VerificationError, match=r"does not list `other\.json`"):
        verify_inside(str(sealed), signer.public_key, ann)


def test_who_opened_what_is_recorded(
    sealed: Path, ann: Path, tmp_path: Path, signer: FileSigner
) -> None:
    policy = Policy((Rule("*", signers=("us",)),), {"us": signer.public_key})
    log = AuditLog(tmp_path / "log")
    load(sealed, ann, PolicyVerifier(policy, log=log))
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    opened = [each["details"] for each in lines if each["event"] == "opened"]
    assert {each["recipient"] for each in opened} == {public(ann)}
    assert f"{sealed}/{SHARD}.age" in {each["path"] for each in opened}
    assert trust.verify_log(tmp_path / "log") == len(lines)
    assert "AGE-SECRET-KEY" not in (tmp_path / "log").read_text()


# ---- [access]


def policy_of(key: PublicKey, access: str) -> Policy:
    text = f"""
        [signers.us]
        public_key = '''{key.pem.decode()}'''
        [[rules]]
        pattern = "*"
        signers = ["us"]
        [access]
        {access}
    """
    return parse_policy("\n".join(line.strip() for line in text.splitlines()).encode())


def test_a_policy_requires_encryption_and_names_the_recipients(
    sealed: Path, sharded: tuple[Path, dict[str, object]], ann: Path, bob: Path, signer: FileSigner
) -> None:
    folder, _ = sharded
    both = (
        f'encrypted = ["*.safetensors", "*.json"]\nrecipients = ["{public(ann)}", "{public(bob)}"]'
    )
    policy = policy_of(signer.public_key, both)
    load(sealed, ann, policy)
    with pytest.raises(PolicyViolationError) as caught:
        safeweights.numpy.load_file(folder, trust=policy)
    assert caught.value.reason == "not-encrypted"
    assert safeweights.trust.admit(folder, policy).decision.verdict == "refuse"
    assert safeweights.trust.admit(folder, policy).decision.reasons[0].code == "not-encrypted"
    done = safeweights.trust.admit(sealed, policy, identity=ann)
    assert done.decision.verdict == "allow", done.decision.explain()
    load(sealed, ann, done.require())


def test_plaintext_under_the_name_of_ciphertext_is_refused(
    sealed: Path, sharded: tuple[Path, dict[str, object]], ann: Path, signer: FileSigner
) -> None:
    policy = policy_of(signer.public_key, 'encrypted = ["*.safetensors"]')
    shutil.copy(sharded[0] / SHARD, sealed / f"{SHARD}.age")
    sign(sealed, signer)
    assert refused(sealed, ann, policy) == "not-encrypted"
    assert safeweights.trust.admit(sealed, policy).decision.reasons[0].code == "not-encrypted"


def test_a_policy_bounds_who_is_given_a_key(
    sealed: Path,
    sharded: tuple[Path, dict[str, object]],
    ann: Path,
    bob: Path,
    tmp_path: Path,
    signer: FileSigner,
) -> None:
    only_ann = policy_of(signer.public_key, f'recipients = ["{public(ann)}"]')
    with pytest.raises(AccessError, match="the policy does not allow the recipient"):
        safeweights.encrypt(sharded[0], public(bob), tmp_path / "x", policy=only_ann)
    with pytest.raises(AccessError, match="the policy does not allow the recipient"):
        safeweights.rekey(sealed, ann, policy=only_ann)
    safeweights.rekey(sealed, ann, remove=public(bob), policy=only_ann)
    sign(sealed, signer)
    load(sealed, ann, only_ann)
    # An age file does not name its recipients, but it tells how many there are, and of what type.
    safeweights.rekey(sealed, ann, add=public(bob))
    sign(sealed, signer)
    assert refused(sealed, ann, only_ann) == "recipient"
    assert safeweights.trust.admit(sealed, only_ann).decision.reasons[0].code == "recipient"


@pytest.mark.parametrize("name", ["a.safetensors", "A.SAFETENSORS", "sub/A.SafeTensors"])
def test_the_case_of_a_name_is_no_way_around_encryption(name: str, ann: Path) -> None:
    rules = AccessRules(encrypted=("*.safetensors",))
    found = rules.problem(name, BytesSource(b"plain"))
    assert found is not None
    assert found[0] == "not-encrypted"
    assert rules.problem(f"{name}.age", BytesSource(encrypt_bytes(b"", public(ann)))) is None
    assert rules.problem("a.json", BytesSource(b"plain")) is None


def test_files_for_other_recipients_are_found_by_number_and_type(ann: Path, bob: Path) -> None:
    """A file of weights is for the identity of its model alone, or for those that are allowed."""
    rules = AccessRules(recipients=(parse_recipient(public(ann)),))
    ed25519, another, rsa = ssh_line("ed25519"), ssh_line("ed25519"), ssh_line("rsa")

    def problem(name: str, data: bytes, rules: AccessRules = rules) -> str | None:
        found = rules.problem(name, BytesSource(data, name))
        return None if found is None else found[1]

    assert problem("model.key.age", encrypt_bytes(b"", public(ann))) is None
    assert problem("a.age", encrypt_bytes(b"", public(bob))) is None  # it may be that of a model
    for name in ("a.age", "model.key.age"):
        wrong = problem(name, encrypt_bytes(b"", public(ann), public(bob)))
        assert "1 of type X25519" in str(wrong)
        assert "ssh-ed25519" in str(problem(name, encrypt_bytes(b"", ed25519)))
    ssh = AccessRules(recipients=(parse_recipient(ed25519),))
    assert problem("model.key.age", encrypt_bytes(b"", ed25519), ssh) is None
    for wrong in (another, rsa):
        found = problem("model.key.age", encrypt_bytes(b"", wrong), ssh)
        assert f"1 of type {wrong.split()[0]}" in str(found)
    sealed = b"eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0.." + b"A" * 16 + b".." + b"A" * 22
    assert "JWE" in str(problem("a", sealed))
    assert problem("a", sealed, AccessRules(encrypted=("*",))) is None


def test_a_policy_knows_which_keys_in_hardware_a_file_is_for() -> None:
    keys = [age1tag() for _ in range(2)]
    rules = AccessRules(recipients=(parse_recipient(keys[0]),))
    assert rules.problem("model.key.age", BytesSource(encrypt_bytes(b"", keys[0]))) is None
    found = rules.problem("model.key.age", BytesSource(encrypt_bytes(b"", keys[1])))
    assert found is not None
    assert "1 of type p256tag" in found[1]


def ssh_line(kind: str) -> str:
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = (
        rsa.generate_private_key(65537, 2048)
        if kind == "rsa"
        else ed25519.Ed25519PrivateKey.generate()
    )
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def age1tag() -> str:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return bech32.encode("age1tag", key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint))


def test_an_encrypted_file_that_nobody_examined_is_refused(
    sealed: Path, ann: Path, bob: Path, tmp_path: Path, signer: FileSigner
) -> None:
    policy = Policy((Rule("*", signers=("us",)),), {"us": signer.public_key})
    decision = safeweights.trust.admit(sealed, policy).decision
    assert decision.verdict == "refuse"
    assert any("was not examined" in reason.text for reason in decision.reasons)
    assert safeweights.trust.admit(sealed, policy, identity=ann).decision.verdict == "allow"
    stranger = trust.generate_identity()
    assert safeweights.trust.admit(sealed, policy, identity=stranger).decision.verdict == "refuse"


def test_code_in_an_encrypted_file_is_found(
    sharded: tuple[Path, dict[str, object]], ann: Path, signer: FileSigner
) -> None:
    (sharded[0] / "modeling.py").write_text("import os")
    path = Path(safeweights.encrypt(sharded[0], public(ann)).path)
    sign(path, signer)
    policy = Policy((Rule("*", signers=("us",)),), {"us": signer.public_key})
    decision = safeweights.trust.admit(path, policy, identity=ann).decision
    assert decision.verdict == "refuse"
    assert any(
        reason.code == "python" or "modeling.py" in reason.text for reason in decision.reasons
    )


@pytest.mark.parametrize(
    ("access", "words"),
    [
        ('encrypted = "*.bin"', "expected an array"), ('recipient = ["age1"]', "did you mean `recipients`"),
        ('recipients = ["age1nonsense"]', "is no recipient"),
        ('recipients = ["AGE-SECRET-KEY-1QQQ"]', "this is a private key"),
    ],
)  # fmt: skip
def test_a_malformed_section_names_the_field(signer: FileSigner, access: str, words: str) -> None:
    with pytest.raises(DocumentError, match=words) as caught:
        policy_of(signer.public_key, access)
    assert caught.value.field.startswith("access")


def test_without_an_inner_statement_the_outer_one_is_enough(
    sharded: tuple[Path, dict[str, object]], ann: Path, signer: FileSigner
) -> None:
    path = Path(safeweights.encrypt(sharded[0], public(ann)).path)
    sign(path, signer)
    load(path, ann, signer.public_key)


def test_a_folder_inside_is_held_to_the_statement_of_the_model(
    tmp_path: Path, ann: Path, signer: FileSigner
) -> None:
    folder = tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    safeweights.numpy.save_file({"a": np.zeros(3)}, folder / "unet" / "a.safetensors")
    sign(folder, signer)
    path = Path(safeweights.encrypt(folder, public(ann)).path)
    sign(path, signer)
    load(path / "unet", ann, signer.public_key)
    load(path / "unet" / "a.safetensors.age", ann, signer.public_key)
    # Another plaintext under a right signature outside is not what was signed inside.
    safeweights.numpy.save_file({"a": np.ones(3)}, folder / "unet" / "a.safetensors")
    other = Path(safeweights.encrypt(folder, public(ann), tmp_path / "other").path)
    sign(other, signer)
    for target in (other / "unet", other / "unet" / "a.safetensors.age"):
        assert refused(target, ann, signer.public_key) in {"block-mismatch", "stale-sidecar"}
