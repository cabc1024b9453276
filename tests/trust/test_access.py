"""Encrypted models: who can read them, with which tools, and what is refused."""

from __future__ import annotations

import base64
import inspect
import io
import json
import os
import re
import shutil
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encrypted_files import (
    AGE,
    DATA,
    QUICK,
    decrypt_bytes,
    encrypt_bytes,
    needs_age,
    needs_ssh,
    public,
    run,
)

import safeweights
import safeweights.conversion
import safeweights.editing
import safeweights.numpy
import safeweights.transfer
from safeweights import trust
from safeweights.errors import ChangedError, FormatError, SafetensorError, UnsupportedError
from safeweights.storage import LocalStore, MemoryStore
from safeweights.trust import (
    AccessError,
    CallableRecipient,
    EncryptedStore,
    Passphrase,
    Stanza,
    generate_identity,
    write_identity,
)
from safeweights.trust.access import recipients
from safeweights.trust.access.armor import armored
from safeweights.trust.access.identities import as_identities, parse_identities
from safeweights.trust.access.keyring import as_keyring, encrypted_for
from safeweights.trust.access.stores import key_files

pyrage = pytest.importorskip("pyrage")

# ---- the same files as other tools


@needs_age
@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 200_000])
def test_files_are_those_of_age(ann: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "ours").write_bytes(encrypt_bytes(DATA[:size], public(ann)))
    assert run(AGE, "-d", "-i", ann, tmp_path / "ours") == DATA[:size]
    theirs = run(AGE, "-r", public(ann), data=DATA[:size])
    assert decrypt_bytes(theirs, ann) == DATA[:size]
    as_text = run(AGE, "-a", "-r", public(ann), data=DATA[:size])
    assert decrypt_bytes(as_text, ann) == DATA[:size]
    (tmp_path / "text").write_bytes(armored(encrypt_bytes(DATA[:size], public(ann))))
    assert run(AGE, "-d", "-i", ann, tmp_path / "text") == DATA[:size]


@needs_age
def test_an_identity_of_age_keygen_is_read_and_ours_by_it(ann: Path, tmp_path: Path) -> None:
    run("age-keygen", "-o", tmp_path / "theirs")
    assert run("age-keygen", "-y", tmp_path / "theirs").decode().strip() == public(
        tmp_path / "theirs"
    )
    assert run("age-keygen", "-y", ann).decode().strip() == public(ann)
    assert stat.S_IMODE(os.stat(ann).st_mode) == 0o600


@needs_age
@needs_ssh
@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_ssh_keys_are_those_of_age(ssh_keys: Path, tmp_path: Path, kind: str) -> None:
    key, pub = ssh_keys / kind, ssh_keys / f"{kind}.pub"
    (tmp_path / "ours").write_bytes(encrypt_bytes(DATA, pub))
    assert run(AGE, "-d", "-i", key, tmp_path / "ours") == DATA
    assert decrypt_bytes(run(AGE, "-R", pub, data=DATA), key) == DATA
    other = "rsa" if kind == "ed25519" else "ed25519"
    with pytest.raises(AccessError, match="no identity"):
        decrypt_bytes((tmp_path / "ours").read_bytes(), ssh_keys / other)


def test_files_are_those_of_pyrage(ann: Path) -> None:
    text = ann.read_text().split()[-1]
    ours = encrypt_bytes(DATA, public(ann))
    assert pyrage.decrypt(ours, [pyrage.x25519.Identity.from_str(text)]) == DATA
    theirs = pyrage.encrypt(DATA, [pyrage.x25519.Recipient.from_str(public(ann))])
    assert decrypt_bytes(theirs, ann) == DATA


@pytest.mark.slow
def test_passphrases_are_those_of_pyrage() -> None:
    ours = encrypt_bytes(DATA, Passphrase("pass", work_factor=QUICK))
    assert pyrage.passphrase.decrypt(ours, "pass") == DATA
    assert (
        decrypt_bytes(
            pyrage.passphrase.encrypt(DATA, "pass"), Passphrase("pass", max_work_factor=24)
        )
        == DATA
    )


def test_the_published_hybrid_pair_belongs_together() -> None:
    secret = "AGE-SECRET-KEY-PQ-1XX76JRALNLXDMEW0CRK45QMCCH4X06SE84UN3VPM33W6HWDX0H3SK3ZQFR"
    (identity,) = as_identities(secret)
    label: str = identity.recipient.label  # type: ignore[attr-defined]
    assert label.startswith(
        "age1pq1x34nzsvr0rxjsgdn8zgyhfe8j7ceq5r9rdelkjuh3y235jzxshfg87pzf5zrqtzdxz95paef"
    )
    assert label.endswith("m9efhxpfqdkmhh6gjtqmwze9pyyzk3tlhl53k2ykx3qheyty7saeq0d3fzv49zc0k")
    assert decrypt_bytes(encrypt_bytes(DATA, label), secret) == DATA


# ---- models


@pytest.mark.parametrize(
    "target",
    ["", "model.safetensors.index.json", "model.safetensors.index.json.age"],
)
def test_every_recipient_reads_the_model_like_the_plain_folder(
    sharded: tuple[Path, dict[str, Any]], ann: Path, bob: Path, target: str
) -> None:
    folder, tensors = sharded
    done = safeweights.encrypt(folder, [public(ann), public(bob)])
    assert done.path == f"{folder}.age"
    for identity in (ann, bob, str(bob), [ann, bob]):
        found = safeweights.numpy.load_file(os.path.join(done.path, target), identity=identity)
        assert all((found[name] == value).all() for name, value in tensors.items())


def test_every_way_of_loading_takes_an_identity(
    sharded: tuple[Path, dict[str, Any]], ann: Path, tmp_path: Path
) -> None:
    folder, tensors = sharded
    path = safeweights.encrypt(folder, public(ann)).path
    with safeweights.safe_open(path, "np", identity=ann) as file:
        assert (file.get_slice("w3")[10:20, ::7] == tensors["w3"][10:20, ::7]).all()
    assert dict(safeweights.stream(path, "np", identity=ann)).keys() == tensors.keys()
    assert set(safeweights.open(path, identity=ann)) == set(tensors)
    shard = os.path.join(path, "model-00001-of-00003.safetensors")
    for named in (shard, f"{shard}.age", Path(f"{shard}.age")):
        assert set(safeweights.open(named, identity=ann)) == {"w0", "w1"}
    assert set(safeweights.open(LocalStore(path), identity=ann)) == set(tensors)
    data = Path(f"{shard}.age").read_bytes()
    run_key = decrypt_bytes(Path(path, "model.key.age").read_bytes(), ann)
    model = parse_identities(run_key)
    assert set(safeweights.open(data, identity=model)) == {"w0", "w1"}
    assert set(safeweights.open(io.BytesIO(data), identity=model)) == {"w0", "w1"}


WITHOUT_IDENTITY = {
    "batch": "it is among the options of its commands",
    "convert": "it is among its options",
    "encrypt": "it reads plaintext",
    "repair": "it mends files in their place, and encrypted ones are only read",
    "push": "it writes files as they are",
    "sign": "it signs files as they are",
    "hash_file": "files are hashed as they are",
    "hash_paths": "files are hashed as they are",
    "check": "the digests of a check file are those of files as they are",
    "verify": "it verifies files as they are; `verify_inside` verifies what is in them",
    "signature_path": "it reads nothing",
    "read_index": "it is a part of `open`, which decrypts",
    "SafetensorsFile": "it is a part of `open`, which decrypts",
}
"""Public function that takes a path -> why it takes no identity."""


def test_every_function_that_reads_a_model_takes_an_identity_or_has_a_reason_not_to() -> None:
    modules = [safeweights, safeweights.numpy, safeweights.editing, safeweights.conversion]
    modules += [trust, safeweights.transfer]
    read = {"path", "paths", "target", "source", "sources", "filename", "base", "url"}
    written = re.compile(r"save|serialize|Writer|load_|parse_|read_recipients|generate|request_")
    without, taking = set(), set()
    for module in modules:
        for name in module.__all__:
            function = getattr(module, name)
            if not inspect.isfunction(function) or written.match(name):
                continue
            parameters = inspect.signature(function).parameters
            if "identity" in parameters:
                taking.add(name)
            elif parameters.keys() & read:
                without.add(name)
    assert without <= WITHOUT_IDENTITY.keys() | {"verify_log"}
    assert {"edit", "describe", "scan", "make_delta", "digest", "admit", "pull"} <= taking


def test_functions_that_report_give_what_they_give_of_the_plain_model(
    sharded: tuple[Path, dict[str, Any]], ann: Path, tmp_path: Path
) -> None:
    folder, _ = sharded
    path = safeweights.encrypt(folder, public(ann)).path
    name = "model-00001-of-00003.safetensors"
    plain, sealed = safeweights.check(folder), safeweights.check(path, identity=ann)
    assert sealed["ok"]
    assert sealed["results"][0]["total"] == plain["results"][0]["total"]
    assert not safeweights.check(path)["ok"]  # the identity of one call is not that of the next
    described = safeweights.describe(path, identity=ann)
    assert described["model"]["summary"] == safeweights.describe(folder)["model"]["summary"]
    assert trust.digest(path, identity=ann).root == trust.digest(folder).root
    one = os.path.join(path, f"{name}.age")
    alone = trust.digest(one, identity=ann)
    assert (alone.root, alone.subject) == (trust.digest(folder / name).root, name)
    tensors = trust.hash_tensors(one, identity=ann)
    assert [each.sha256 for each in tensors] == [
        each.sha256 for each in trust.hash_tensors(str(folder / name))
    ]
    assert safeweights.scan(one, identity=ann).clean
    with pytest.raises(AccessError):
        safeweights.scan(folder / name, identity=trust.generate_identity())
    done = safeweights.edit(path, tmp_path / "one.safetensors", identity=ann)
    assert done.tensors == 6
    assert (tmp_path / "one.safetensors").exists()


def test_a_delta_is_made_and_applied_with_an_identity(
    sharded: tuple[Path, dict[str, Any]], ann: Path, tmp_path: Path
) -> None:
    pytest.importorskip("zstandard", reason="needs the package zstandard")
    folder, tensors = sharded
    base = safeweights.encrypt(folder, public(ann), tmp_path / "base.age").path
    new = tmp_path / "new"
    safeweights.numpy.save_file({**tensors, "w0": tensors["w0"] + 1}, new, max_shard_size=10**9)
    sealed = safeweights.encrypt(new, public(ann)).path
    delta = tmp_path / "weight_v000001"
    assert safeweights.editing.make_delta(base, sealed, delta, identity=ann).changed == 1
    with pytest.raises(AccessError):
        safeweights.editing.make_delta(base, sealed, tmp_path / "x", identity=generate_identity())
    with pytest.raises(FormatError, match="encrypted"):
        safeweights.editing.make_delta(base, sealed, tmp_path / "x")
    safeweights.encrypt(delta, public(ann), replace=True)
    out = tmp_path / "out.safetensors"
    safeweights.editing.apply_delta(delta, out, base, identity=ann)
    assert (safeweights.numpy.load_file(out)["w0"] == tensors["w0"] + 1).all()
    compacted = tmp_path / "weight_v000009"
    assert safeweights.editing.compact_deltas(delta, compacted, base, identity=ann).changed == 1


def test_a_model_loads_through_the_torch_face(
    sharded: tuple[Path, dict[str, Any]], ann: Path
) -> None:
    torch = pytest.importorskip("torch")
    import safeweights.torch

    folder, tensors = sharded
    path = safeweights.encrypt(folder, public(ann)).path
    for backend in ("mmap", "pread", "direct", "auto"):
        found = safeweights.torch.load_file(path, identity=ann, backend=backend)
        assert (found["w5"].numpy() == tensors["w5"]).all()
    target = {name: torch.empty(200, 200, dtype=torch.float64) for name in tensors}
    safeweights.torch.load_into(target, path, identity=ann)
    assert (target["w0"].numpy() == tensors["w0"]).all()


@needs_age
def test_a_stock_tool_opens_a_model(
    sharded: tuple[Path, dict[str, Any]], ann: Path, tmp_path: Path
) -> None:
    folder, _ = sharded
    path = safeweights.encrypt(folder, public(ann)).path
    (tmp_path / "key").write_bytes(run(AGE, "-d", "-i", ann, Path(path, "model.key.age")))
    for file in folder.rglob("*.*"):
        inside = file.relative_to(folder)
        assert (
            run(AGE, "-d", "-i", tmp_path / "key", f"{Path(path, inside)}.age") == file.read_bytes()
        )


def test_other_formats_are_read_too(tmp_path: Path, ann: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    np.savez(folder / "weights.npz", a=np.arange(5.0))
    path = safeweights.encrypt(folder, public(ann)).path
    assert list(safeweights.open(path, identity=ann)) == ["a"]
    assert list(safeweights.open(f"{path}/weights.npz.age", identity=ann)) == ["a"]


def test_a_single_file_is_encrypted_for_the_recipients_themselves(
    tmp_path: Path, ann: Path
) -> None:
    path = tmp_path / "a.safetensors"
    safeweights.numpy.save_file({"a": np.zeros(3)}, path)
    done = safeweights.encrypt(path, public(ann))
    assert (done.path, done.key_file) == (f"{path}.age", None)
    assert path.exists()
    assert list(safeweights.open(done.path, identity=ann)) == ["a"]
    again = safeweights.encrypt(path, public(ann), tmp_path / "text.age", armor=True)
    assert Path(again.path).read_bytes().startswith(b"-----BEGIN AGE ENCRYPTED FILE-----\n")
    assert list(safeweights.open(again.path, identity=ann)) == ["a"]
    safeweights.encrypt(path, public(ann), tmp_path / "moved.age", replace=True)
    assert not path.exists()


def test_a_passphrase_opens_a_model_and_is_asked_for_once(
    sharded: tuple[Path, dict[str, Any]],
) -> None:
    folder, tensors = sharded
    path = safeweights.encrypt(folder, Passphrase("open sesame", work_factor=QUICK)).path
    asked: list[str] = []

    def ask() -> str:
        asked.append("asked")
        return "open sesame"

    found = safeweights.numpy.load_file(path, identity=Passphrase(ask))
    assert found.keys() == tensors.keys()
    assert asked == ["asked"]
    with pytest.raises(AccessError, match="no identity"):
        safeweights.open(path, identity=Passphrase("open simsim"))


def test_a_key_service_wraps_and_unwraps_file_keys(
    sharded: tuple[Path, dict[str, Any]], ann: Path
) -> None:
    folder, tensors = sharded
    vault: dict[str, bytes] = {}

    def wrap(key: bytes) -> Stanza:
        vault[name := f"key-{len(vault)}"] = key
        return Stanza("example.org/kms", (name,), b"")

    def unwrap(stanza: Stanza) -> bytes | None:
        return vault.get(stanza.arguments[0]) if stanza.type == "example.org/kms" else None

    service = CallableRecipient(wrap, "kms://models")
    path = safeweights.encrypt(folder, [service, public(ann)]).path
    for identity in (unwrap, ann):
        assert safeweights.numpy.load_file(path, identity=identity).keys() == tensors.keys()
    with pytest.raises(AccessError, match=r"cannot be kept by their names .*kms://models"):
        safeweights.rekey(path, ann)
    safeweights.rekey(path, ann, add=service)
    assert safeweights.numpy.load_file(path, identity=unwrap).keys() == tensors.keys()

    def broken(stanza: Stanza) -> bytes:
        raise ConnectionError("the service does not answer")

    with pytest.raises(ConnectionError, match="does not answer"):
        safeweights.open(path, identity=broken)
    with pytest.raises(FormatError, match="does not have 16 bytes"):
        safeweights.open(path, identity=lambda stanza: b"short")


def test_groups_of_files_have_their_own_recipients(
    sharded: tuple[Path, dict[str, Any]], ann: Path, bob: Path
) -> None:
    folder, _ = sharded
    out = f"{folder}.age"
    safeweights.encrypt(folder, public(ann), out, only=["*00001*"], key_file="first.key.age")
    safeweights.encrypt(folder, public(bob), out, only=["*00002*"], key_file="second.key.age")
    first, second = (f"{out}/model-0000{n}-of-00003.safetensors" for n in (1, 2))
    for identity, mine, other in ((ann, first, second), (bob, second, first)):
        assert safeweights.open(mine, identity=identity)
        with pytest.raises(AccessError, match="no identity"):
            safeweights.open(other, identity=identity)
    with pytest.raises(AccessError, match="several key files"):
        safeweights.rekey(out, ann)
    assert safeweights.rekey(out, ann, key_file="first.key.age", add=public(bob)).added == (
        public(bob),
    )
    assert safeweights.open(first, identity=bob)


def test_the_key_file_is_found_from_a_folder_inside(tmp_path: Path, ann: Path) -> None:
    folder = tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    safeweights.numpy.save_file({"a": np.zeros(3)}, folder / "unet" / "diffusion.safetensors")
    path = Path(safeweights.encrypt(folder, public(ann)).path)
    assert list(safeweights.open(path / "unet", identity=ann)) == ["a"]
    assert list(safeweights.open(path / "unet" / "diffusion.safetensors.age", identity=ann)) == [
        "a"
    ]


def test_a_post_quantum_model(
    sharded: tuple[Path, dict[str, Any]], tmp_path: Path, ann: Path
) -> None:
    folder, tensors = sharded
    write_identity(tmp_path / "pq", generate_identity(post_quantum=True))
    path = safeweights.encrypt(folder, public(tmp_path / "pq")).path
    found = encrypted_for(LocalStore(path).open("config.json.age"))
    assert found == ["mlkem768x25519"]
    assert safeweights.numpy.load_file(path, identity=tmp_path / "pq").keys() == tensors.keys()
    with pytest.raises(AccessError) as caught:
        safeweights.rekey(path, tmp_path / "pq", add=public(ann))
    assert caught.value.reason == "mixed-recipients"


# ---- a store that decrypts


def test_the_store_lists_what_is_encrypted_under_its_name(ann: Path) -> None:
    plain = MemoryStore()
    for name in ("b.txt", "a.txt", "a-b.txt", "sub/c.txt"):
        plain.write(f"{name}.age", [encrypt_bytes(name.encode(), public(ann))])
    plain.write("plain.txt", [b"plain"])
    plain.write("model.key.age", [encrypt_bytes(b"# nothing\n" + ann.read_bytes(), public(ann))])
    store = EncryptedStore(plain, ann)
    assert [entry.name for entry in store.list()] == ["a-b.txt", "a.txt", "b.txt", "sub/c.txt"]
    assert [(e.name, e.kind) for e in store.list(recursive=False)][-1] == ("sub", "folder")
    for name in ("b.txt", "sub/c.txt"):
        assert store.open(name).read(0, len(name)) == name.encode()
    assert (store.kind("b.txt"), store.kind("sub"), store.kind("nothing")) == (
        "file",
        "folder",
        None,
    )
    assert store.locate("b.txt").endswith("b.txt.age")
    version = store.open("b.txt").version
    assert store.open("b.txt", version=version).size == 5
    plain.write("b.txt.age", [encrypt_bytes(b"other", public(ann))])
    with pytest.raises(ChangedError):
        store.open("b.txt", version=version)
    with pytest.raises(AccessError, match="not encrypted"):
        store.open("plain.txt")
    with pytest.raises(FileNotFoundError):
        store.open("nothing")


def test_the_store_is_read_only(ann: Path) -> None:
    store = EncryptedStore(MemoryStore(), ann)
    for change in (lambda: store.write("a", []), lambda: store.delete("a"), store.commit):
        with pytest.raises(UnsupportedError, match="read-only"):
            change()
    assert store.interrupted() is None


# ---- no downgrade, and files that were exchanged


def test_plaintext_is_refused_where_an_identity_is_given(
    sharded: tuple[Path, dict[str, Any]], ann: Path
) -> None:
    folder, _ = sharded
    for target in (
        folder,
        folder / "model-00001-of-00003.safetensors",
        folder / "model.safetensors.index.json",
    ):
        with pytest.raises(AccessError) as caught:
            safeweights.open(target, identity=ann)
        assert caught.value.reason == "not-encrypted"


def test_a_plaintext_shard_does_not_take_the_place_of_an_encrypted_one(
    sharded: tuple[Path, dict[str, Any]], ann: Path
) -> None:
    folder, _ = sharded
    path = Path(safeweights.encrypt(folder, public(ann)).path)
    name = "model-00002-of-00003.safetensors"
    shutil.copy(folder / name, path / name)
    safeweights.open(path, identity=ann)  # it is not even looked at
    (path / f"{name}.age").unlink()
    with pytest.raises(AccessError, match="not encrypted"):
        safeweights.open(path, identity=ann)
    os.rename(path / name, path / f"{name}.age")
    with pytest.raises(AccessError, match="not encrypted"):
        safeweights.open(path, identity=ann)


def test_a_missing_or_wrong_key_never_gives_ciphertext(
    sharded: tuple[Path, dict[str, Any]], ann: Path, bob: Path
) -> None:
    folder, _ = sharded
    path = Path(safeweights.encrypt(folder, public(ann)).path)
    shard = path / "model-00001-of-00003.safetensors.age"
    for load in (
        lambda: safeweights.open(path),
        lambda: safeweights.open(shard),
        lambda: safeweights.numpy.load_file(path),
        lambda: safeweights.numpy.load_file(shard),
        lambda: safeweights.open(shard.read_bytes()),
    ):
        with pytest.raises(SafetensorError, match="encrypted"):
            load()
    with pytest.raises(AccessError) as caught:
        safeweights.open(path, identity=bob)
    assert caught.value.reason == "no-match"
    assert "1 of type `X25519`" in str(caught.value)


def test_files_of_two_models_cannot_be_exchanged(
    sharded: tuple[Path, dict[str, Any]], ann: Path, tmp_path: Path
) -> None:
    folder, _ = sharded
    one = Path(safeweights.encrypt(folder, public(ann), tmp_path / "one").path)
    two = Path(safeweights.encrypt(folder, public(ann), tmp_path / "two").path)
    name = "model-00003-of-00003.safetensors.age"
    shutil.copy(two / name, one / name)
    with pytest.raises(AccessError, match="no identity"):
        safeweights.open(one, identity=ann)
    shutil.copy(two / "model.key.age", one / "model.key.age")
    with pytest.raises(AccessError, match="no identity"):
        safeweights.open(one, identity=ann)


def test_a_key_file_is_no_model(sharded: tuple[Path, dict[str, Any]], ann: Path) -> None:
    path = safeweights.encrypt(sharded[0], public(ann)).path
    with pytest.raises(AccessError) as caught:
        safeweights.open(f"{path}/model.key.age", identity=ann)
    assert caught.value.reason == "key-file"


# ---- secrets stay where they are


def test_no_secret_is_in_a_repr_an_error_or_a_log(
    sharded: tuple[Path, dict[str, Any]], ann: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = ann.read_text().split()[-1]
    log = trust.AuditLog(tmp_path / "log")
    path = safeweights.encrypt(sharded[0], public(ann)).path
    keyring = as_keyring(ann, log=log)
    hybrid = generate_identity(post_quantum=True)
    model_key = decrypt_bytes(Path(path, "model.key.age").read_bytes(), ann).split()[-1].decode()
    store = EncryptedStore(LocalStore(path), keyring)
    source = store.open("config.json")
    service = CallableRecipient(lambda key: Stanza("a", (), key), "service")
    shown = [
        repr(each)
        for each in (
            keyring, store, store._keyring(), source, hybrid, hybrid.recipient, service,
            Passphrase("hunter2"), as_keyring(lambda stanza: None), *as_identities(ann),
            *recipients.as_recipients(public(ann)),
        )
    ]  # fmt: skip
    for wrong in (lambda: safeweights.open(path, identity=hybrid), lambda: safeweights.open(path)):
        with pytest.raises(SafetensorError) as caught:
            wrong()
        shown += [str(caught.value), repr(caught.value)]
    shown.append((tmp_path / "log").read_text())
    text = "\n".join(shown)
    for hidden in (secret, model_key, hybrid.text(), "hunter2"):
        assert hidden not in text
        assert hidden[15:35] not in text.upper() or hidden == "hunter2"
    assert trust.verify_log(tmp_path / "log") == 1
    entry = json.loads((tmp_path / "log").read_text())
    assert entry["event"] == "opened"
    assert entry["details"] == {"path": f"{path}/config.json.age", "recipient": public(ann)}
    assert source.opened_by == public(ann)  # type: ignore[attr-defined]


# ---- the default of a process


def test_a_process_can_have_an_identity(sharded: tuple[Path, dict[str, Any]], ann: Path) -> None:
    from safeweights.trust.verifier import set_identity

    folder, tensors = sharded
    path = safeweights.encrypt(folder, public(ann)).path
    set_identity(ann)
    try:
        assert safeweights.numpy.load_file(path).keys() == tensors.keys()
        with pytest.raises(AccessError, match="not encrypted"):
            safeweights.numpy.load_file(folder)
    finally:
        set_identity(None)
    assert safeweights.numpy.load_file(folder).keys() == tensors.keys()
    with pytest.raises(UnsupportedError, match="identity= is for files"):
        safeweights.safe_open(safeweights.open(folder), "np", identity=ann)


def _documented(name: str) -> str:
    """An example of docs/encryption-platforms.md."""
    page = (Path(__file__).parents[2] / "docs" / "encryption-platforms.md").read_text()
    begin, end = f"<!-- {name} -->\n```python\n", f"```\n<!-- end of {name} -->"
    return page.split(begin)[1].split(end)[0]


def test_the_documented_evidence_is_read_as_linux_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is made has the report of what is written to it (Linux, ABI/testing/configfs-tsm)."""
    found: dict[str, Any] = {}
    exec(_documented("tee"), found)
    made = []

    class Report(type(tmp_path)):  # type: ignore[misc]  # the class of paths on this system
        def read_bytes(self) -> bytes:
            assert self.name == "outblob"
            return b"signed " + Path(self.parent, "inblob").read_bytes()

        def rmdir(self) -> None:
            made.append(self)
            shutil.rmtree(self)  # configfs removes the files of a folder with it

    monkeypatch.setitem(found, "Path", Report)
    monkeypatch.setitem(found, "REPORTS", tmp_path)
    assert found["evidence"](b"challenge") == b"signed challenge"
    assert len(made) == 1
    assert not list(tmp_path.iterdir())


def test_the_documented_key_service_works(
    sharded: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of docs/encryption-platforms.md, against a service on this machine."""
    code = _documented("kms")
    secret, asked = os.urandom(32), []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body["key"]))
            data = base64.b64decode(body["data"])
            mixed = bytes(a ^ b for a, b in zip(data, secret, strict=False))
            answer = json.dumps({"data": base64.b64encode(mixed).decode()}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.chdir(sharded[0].parent)
        found: dict[str, Any] = {}
        try:
            exec(code.replace("127.0.0.1:8200", f"127.0.0.1:{server.server_port}"), found)
        finally:
            server.shutdown()
            thread.join()
    assert set(found["tensors"]) == set(sharded[1])
    assert asked == [("/wrap", "models-2026"), ("/unwrap", "models-2026")]


def test_key_files_are_those_of_the_nearest_folder_that_has_any(tmp_path: Path) -> None:
    deep = tmp_path / "1" / "2" / "3" / "4"
    deep.mkdir(parents=True)
    for name in ("far.key.age", "1/b.key.age", "1/a.key.age", "1/note", "1/2/x.age"):
        (tmp_path / name).write_bytes(b"")
    (deep / "c.key.age").mkdir()  # a folder is none

    def found(folder: Path, inside: str = "") -> list[str]:
        return [store.locate(name) for store, name in key_files(LocalStore(folder), inside)]

    near = [f"{tmp_path}/1/a.key.age", f"{tmp_path}/1/b.key.age"]
    assert found(deep) == found(tmp_path / "1", "2/3/4") == near
    assert found(tmp_path, "1/2/no/such/other/folder") == []  # more than four folders above it
    assert found(tmp_path / "1", "2/x.age/is/file") == near
    (tmp_path / "1" / "2" / "d.key.age").symlink_to("x.age")
    assert found(deep) == [f"{tmp_path}/1/2/d.key.age"]
    assert found(deep.parent, "4") == [f"{tmp_path}/1/2/d.key.age"]
    with pytest.raises(FileNotFoundError):
        found(tmp_path / "nothing")
