"""Encrypted models changed by an attacker without a key, and key files that hold no key."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from encrypted_files import QUICK, decrypt_bytes, encrypt_bytes, public

import safeweights
import safeweights.numpy
from safeweights import trust
from safeweights.trust import (
    AccessError,
    AuditLog,
    LockFile,
    Passphrase,
    Policy,
    PolicyVerifier,
    PolicyViolationError,
    Rule,
    as_keyring,
)
from safeweights.trust.access.identities import parse_identities

if TYPE_CHECKING:
    from collections.abc import Callable

INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture
def model(sharded: tuple[Path, dict[str, Any]], ann: Path, bob: Path) -> Path:
    """A model that is encrypted for Ann and Bob; the plain one is beside it."""
    return Path(safeweights.encrypt(sharded[0], [public(ann), public(bob)]).path)


def seal(model: Path, name: str, data: bytes, ann: Path) -> None:
    """Encrypt a file as one who has read the model can: for its own identity."""
    key = decrypt_bytes((model / "model.key.age").read_bytes(), ann)
    (identity,) = parse_identities(key)
    (model / f"{name}.age").write_bytes(encrypt_bytes(data, identity.recipient.label))  # type: ignore[attr-defined]


def index_to(shard: str) -> bytes:
    return json.dumps({"weight_map": {"w0": shard, "w1": shard}}).encode()


def index_of_plaintext(model: Path, ann: Path) -> None:
    shutil.copy(model.with_suffix("") / SHARD, model / "plain.safetensors")
    for path in model.glob("*.safetensors.age"):
        path.unlink()
    seal(model, INDEX, index_to("plain.safetensors"), ann)


def index_that_leads_out(model: Path, ann: Path) -> None:
    seal(model, INDEX, index_to(f"../{model.stem}/{SHARD}"), ann)


def other_case(model: Path, ann: Path) -> None:
    (model / f"{SHARD}.age").rename(model / f"{SHARD}.AGE")


def link_to_plaintext(model: Path, ann: Path) -> None:
    (model / f"{SHARD}.age").unlink()
    (model / f"{SHARD}.age").symlink_to(model.with_suffix("") / SHARD)


def exchanged_shards(model: Path, ann: Path) -> None:
    one, two = (model / f"model-0000{number}-of-00003.safetensors.age" for number in (1, 2))
    one.rename(model / "aside")
    two.rename(one)
    (model / "aside").rename(two)


def no_key_file(model: Path, ann: Path) -> None:
    (model / "model.key.age").unlink()
    (model / "model.key.age").mkdir()


def key_file_with_more(model: Path, ann: Path) -> None:
    with (model / "model.key.age").open("ab") as file:
        file.write(b"x")


def key_file_of_nothing(model: Path, ann: Path) -> None:
    (model / "model.key.age").write_bytes(encrypt_bytes(b"# none\n", public(ann)))


def key_file_of_an_ssh_key(model: Path, ann: Path) -> None:
    text = b"-----BEGIN OPENSSH PRIVATE KEY-----\n"
    (model / "model.key.age").write_bytes(encrypt_bytes(text, public(ann)))


def long_key_file(model: Path, ann: Path) -> None:
    data = ann.read_bytes() + b"#" * (1 << 20)
    (model / "model.key.age").write_bytes(encrypt_bytes(data, public(ann)))


def fifo(model: Path, ann: Path) -> None:
    (model / f"{SHARD}.age").unlink()
    os.mkfifo(model / f"{SHARD}.age")


@pytest.mark.parametrize(
    "change",
    [
        index_of_plaintext, index_that_leads_out, other_case, link_to_plaintext, exchanged_shards,
        no_key_file, key_file_with_more, key_file_of_nothing, key_file_of_an_ssh_key, long_key_file, fifo,
    ],
)  # fmt: skip
def test_a_model_that_was_tampered_with_is_refused(
    model: Path, ann: Path, change: Callable[[Path, Path], None]
) -> None:
    assert safeweights.numpy.load_file(model, identity=ann)
    change(model, ann)
    with pytest.raises((safeweights.SafetensorError, OSError)):
        safeweights.numpy.load_file(model, identity=ann)


def test_plaintext_beside_ciphertext_is_not_looked_at(
    model: Path, ann: Path, sharded: tuple[Path, dict[str, Any]]
) -> None:
    evil = safeweights.numpy.save({f"w{n}": np.full((200, 200), 9.0) for n in range(2)})
    for name in (SHARD, f"{SHARD}.jwe", f"{SHARD.upper()}.AGE"):
        (model / name).write_bytes(evil)
    (model / INDEX).write_bytes(index_to("evil.safetensors"))
    for _ in range(2):
        found = safeweights.numpy.load_file(model, identity=ann)
        assert (found["w0"] == sharded[1]["w0"]).all()
        (model / f"{INDEX}.age").unlink(missing_ok=True)  # then all shards are one model


def test_many_locked_key_files_do_not_cost_a_second_each(model: Path) -> None:
    data = encrypt_bytes(b"x", Passphrase("other", work_factor=QUICK))
    for number in range(20):
        (model / f"{number}.key.age").write_bytes(data)
    asked: list[int] = []

    def ask() -> str:
        asked.append(1)
        return "mine"

    with pytest.raises(AccessError, match="more than 8 key files have other passphrases") as caught:
        safeweights.open(model, identity=Passphrase(ask))
    assert caught.value.reason == "key-file"
    assert asked == [1]
    for number in range(20, 1001):
        (model / f"{number}.key.age").touch()
    with pytest.raises(AccessError, match="more than 1000 key files"):
        safeweights.open(model, identity=Passphrase(ask))


def test_a_key_file_with_several_identities_opens_and_is_not_rewritten(
    model: Path, ann: Path, bob: Path
) -> None:
    key = decrypt_bytes((model / "model.key.age").read_bytes(), ann)
    (model / "model.key.age").write_bytes(encrypt_bytes(key + bob.read_bytes(), public(ann)))
    assert safeweights.numpy.load_file(model, identity=ann)
    with pytest.raises(AccessError, match="2 identities, where a model has one"):
        safeweights.rekey(model, ann, add=public(bob))


@pytest.mark.parametrize("wrong", [5, "key", ["k"]])
def test_a_function_that_returns_no_key_is_named(model: Path, wrong: object) -> None:
    def unwrap(stanza: object) -> Any:
        return wrong

    with pytest.raises(TypeError, match=r"unwrap\) must return the bytes of a file key"):
        safeweights.open(model, identity=unwrap)


def test_an_identity_may_come_from_a_pipe_and_is_bounded(model: Path, ann: Path) -> None:
    """As `-i <(pass show key)` gives it."""
    for data, words in ((ann.read_bytes(), None), (b"#" * 65_000, "no identity in it")):
        reading, writing = os.pipe()
        os.write(writing, data)
        os.close(writing)
        try:
            if words is None:
                assert safeweights.numpy.load_file(model, identity=f"/dev/fd/{reading}")
            else:
                with pytest.raises(trust.DocumentError, match=words):
                    safeweights.open(model, identity=f"/dev/fd/{reading}")
        finally:
            os.close(reading)


# ---- the audit log, and old versions


@pytest.fixture
def signer(tmp_path: Path) -> Any:
    trust.generate_key(tmp_path / "key")
    return trust.load_private_key(tmp_path / "key")


def test_every_way_of_opening_is_recorded(
    model: Path, ann: Path, tmp_path: Path, signer: Any
) -> None:
    """Also with an identity that was read before, as the command line and `set_identity` have it."""
    trust.sign(model, signer)
    policy = Policy((Rule("*", signers=("us",)),), {"us": signer.public_key})
    counts = []
    own = AuditLog(tmp_path / "own")
    for number, identity in enumerate((ann, as_keyring(ann), as_keyring(ann, log=own))):
        log = AuditLog(tmp_path / f"log{number}")
        safeweights.numpy.load_file(model, identity=identity, trust=PolicyVerifier(policy, log=log))
        counts.append((tmp_path / f"log{number}").read_text().count('"opened"'))
    assert counts[0] >= 4  # the index and the shards
    assert len(set(counts)) == 1
    assert (tmp_path / "own").read_text().count('"opened"') == counts[0]
    log = AuditLog(tmp_path / "admitted")
    assert trust.admit(model, policy, identity=ann, log=log).warrant is not None
    assert (tmp_path / "admitted").read_text().count(public(ann)) >= 4


def test_an_old_key_file_is_refused_where_a_policy_remembers(
    model: Path, ann: Path, bob: Path, tmp_path: Path, signer: Any
) -> None:
    names = ("model.key.age", "model.key.age.sig")
    trust.sign(model, signer, release=1)
    old = [(model / name).read_bytes() for name in names]
    safeweights.rekey(model, ann, remove=public(bob))
    trust.sign(model, signer, release=2)
    signers = {"us": signer.public_key}
    least = Policy((Rule("*", signers=("us",), minimum_release=2),), signers)
    any_release = Policy((Rule("*", signers=("us",)),), signers)

    def remembering() -> PolicyVerifier:
        return PolicyVerifier(any_release, lock=LockFile(tmp_path / "lock"))

    safeweights.numpy.load_file(model, identity=ann, trust=least)
    safeweights.numpy.load_file(model, identity=ann, trust=remembering())
    for name, data in zip(names, old, strict=True):
        (model / name).write_bytes(data)
    assert safeweights.numpy.load_file(model, identity=bob, trust=any_release)  # as documented
    for trusted in (least, remembering()):
        with pytest.raises(PolicyViolationError, match="release 1 is"):
            safeweights.numpy.load_file(model, identity=bob, trust=trusted)
