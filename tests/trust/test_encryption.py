"""Encrypting, decrypting and rekeying models: all or nothing, and who may read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from encrypted_files import (
    QUICK,
    encrypt_bytes,
    public,
)

import safeweights
import safeweights.numpy
from safeweights.errors import ChangedError, UnsupportedError
from safeweights.trust import (
    AccessError,
    Passphrase,
    generate_identity,
    write_identity,
)
from safeweights.trust.access import recipients

# ---- writing


def test_encrypting_is_all_or_nothing(
    sharded: tuple[Path, dict[str, Any]], ann: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = sharded
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    real, calls = os.fsync, [0]

    def failing(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == failing_call:
            raise OSError(28, "No space left on device")
        real(descriptor)

    for failing_call in (1, 4, 7):
        calls[0] = 0
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(os, "fsync", failing)
            safeweights.encrypt(folder, public(ann), replace=True)
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert after == before


def test_no_plaintext_is_written_while_encrypting(
    sharded: tuple[Path, dict[str, Any]], ann: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tensors = sharded
    secret = tensors["w3"].tobytes()[:64]
    written: list[bytes] = []
    real = os.writev

    def recording(descriptor: int, buffers: Any) -> int:
        written.extend(bytes(each) for each in buffers)
        return real(descriptor, buffers)

    monkeypatch.setattr(os, "writev", recording)
    path = safeweights.encrypt(folder, public(ann)).path
    assert written
    assert not any(secret in each for each in written)
    written.clear()
    safeweights.numpy.load_file(path, identity=ann)
    assert not written


def test_replacing_keeps_a_file_that_changed_meanwhile(
    sharded: tuple[Path, dict[str, Any]], ann: Path
) -> None:
    folder, _ = sharded

    def change(done: int, total: int) -> None:
        (folder / "config.json").write_text('{"changed": 1}')

    with pytest.raises(ChangedError):
        safeweights.encrypt(folder, public(ann), replace=True, progress=change)
    assert (folder / "config.json").read_text() == '{"changed": 1}'
    assert not list(folder.rglob("*.age"))


def test_replacing_removes_the_plaintext(sharded: tuple[Path, dict[str, Any]], ann: Path) -> None:
    folder, tensors = sharded
    done = safeweights.encrypt(folder, public(ann), replace=True)
    assert "config.json" in done.removed
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".age"}
    assert safeweights.numpy.load_file(folder, identity=ann).keys() == tensors.keys()


def test_nothing_is_replaced(sharded: tuple[Path, dict[str, Any]], ann: Path) -> None:
    folder, _ = sharded
    safeweights.encrypt(folder, public(ann))
    for _ in range(2):
        with pytest.raises(FileExistsError):
            safeweights.encrypt(folder, public(ann))
    with pytest.raises(FileExistsError):
        safeweights.decrypt(f"{folder}.age", ann)
    with pytest.raises(FileExistsError):
        write_identity(ann, generate_identity())


def test_links_and_encrypted_files_are_refused(tmp_path: Path, ann: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(AccessError, match="no file to encrypt"):
        safeweights.encrypt(folder, public(ann))
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(AccessError, match="symbolic link"):
        safeweights.encrypt(folder, public(ann))
    (folder / "link").unlink()
    (folder / "a.age").write_bytes(b"")
    with pytest.raises(AccessError, match=r"called \.age"):
        safeweights.encrypt(folder, public(ann))
    (folder / "a.age").rename(folder / "a")
    (folder / "a").write_bytes(encrypt_bytes(b"", public(ann)))
    with pytest.raises(AccessError, match="encrypted already"):
        safeweights.encrypt(folder, public(ann))
    with pytest.raises(FileNotFoundError):
        safeweights.encrypt(tmp_path / "nothing", public(ann))
    assert not (tmp_path / "model.age").exists()


def test_wrong_uses_of_encrypt(sharded: tuple[Path, dict[str, Any]], ann: Path) -> None:
    folder, _ = sharded
    for wrong in (
        {"armor": True},
        {"out": "x", "replace": True},
        {"key_file": "key"},
        {"key_file": "a/b.key.age"},
    ):
        with pytest.raises(UnsupportedError):
            safeweights.encrypt(folder, public(ann), **wrong)  # type: ignore[arg-type]
    with pytest.raises(AccessError, match="there must be a recipient"):
        safeweights.encrypt(folder, [])


def test_progress_counts_every_byte_once(sharded: tuple[Path, dict[str, Any]], ann: Path) -> None:
    folder, _ = sharded
    told: list[tuple[int, int]] = []
    safeweights.encrypt(folder, public(ann), progress=lambda *each: told.append(each))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert told == sorted(told)
    assert told[-1] == (size, size)
    told.clear()
    safeweights.decrypt(
        f"{folder}.age", ann, f"{folder}.out", progress=lambda *each: told.append(each)
    )
    files = [path for path in Path(f"{folder}.age").rglob("*.age") if path.name != "model.key.age"]
    sealed = sum(path.stat().st_size for path in files)
    assert told == sorted(told)
    assert told[-1] == (sealed, sealed)


def test_decrypting_gives_the_same_files(
    sharded: tuple[Path, dict[str, Any]], ann: Path, bob: Path, tmp_path: Path
) -> None:
    folder, _ = sharded
    path = safeweights.encrypt(folder, public(ann)).path
    done = safeweights.decrypt(path, ann, tmp_path / "out")
    for file in folder.rglob("*.*"):
        assert (tmp_path / "out" / file.relative_to(folder)).read_bytes() == file.read_bytes()
    assert len(done.files) == 6
    alone = safeweights.decrypt(f"{path}/config.json.age", ann, tmp_path / "config")
    assert Path(alone.path).read_text() == '{"model_type": "bert"}'
    safeweights.decrypt(f"{path}/config.json.age", ann)
    assert Path(path, "config.json").read_text() == '{"model_type": "bert"}'
    with pytest.raises(AccessError, match="no identity"):
        safeweights.decrypt(path, bob, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(AccessError, match="no encrypted file"):
        safeweights.decrypt(tmp_path / "empty", ann, tmp_path / "other")
    with pytest.raises(AccessError, match="say where to write"):
        safeweights.decrypt(f"{path}/model.key.age", ann)


# ---- who may read


def test_links_to_encrypted_files_are_decrypted_too(
    sharded: tuple[Path, dict[str, Any]], ann: Path, tmp_path: Path
) -> None:
    """The Hub's cache has links into its blobs."""
    path = Path(safeweights.encrypt(sharded[0], public(ann)).path)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(path.rglob("*.age"))):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    done = safeweights.decrypt(path, ann, tmp_path / "back")
    assert len(done.files) == len([file for file in sharded[0].rglob("*") if file.is_file()])


def test_a_model_of_many_files_needs_few_descriptors(tmp_path: Path, ann: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits are a thing of POSIX")
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number}.txt").write_text(str(number))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
    try:
        path = safeweights.encrypt(folder, public(ann), durable=False).path
        safeweights.decrypt(path, ann, tmp_path / "back")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (tmp_path / "back" / "199.txt").read_text() == "199"


def test_a_large_file_is_no_armored_one(
    tmp_path: Path, ann: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be read back is not written."""
    (tmp_path / "a").write_bytes(bytes(3000))
    monkeypatch.setattr("safeweights.trust.encryption.MAX_ARMORED", 4000)
    with pytest.raises(UnsupportedError, match="small files"):
        safeweights.encrypt(tmp_path / "a", public(ann), armor=True)
    assert not (tmp_path / "a.age").exists()


def test_removing_and_adding_a_recipient_rewrites_only_the_key_file(
    sharded: tuple[Path, dict[str, Any]], ann: Path, bob: Path, tmp_path: Path
) -> None:
    path = Path(safeweights.encrypt(sharded[0], [public(ann), public(bob)]).path)
    before = {file: file.read_bytes() for file in path.rglob("*.age")}
    old_key = before.pop(path / "model.key.age")
    done = safeweights.rekey(path, ann, remove=public(bob))
    assert (done.recipients, done.removed) == ((public(ann),), (public(bob),))
    with pytest.raises(AccessError, match="no identity"):
        safeweights.open(path, identity=bob)
    assert safeweights.open(path, identity=ann)
    assert safeweights.rekey(path / "model.key.age", ann, add=public(bob)).added == (public(bob),)
    assert safeweights.open(path, identity=bob)
    done = safeweights.rekey(path, bob)
    assert (done.added, done.removed, len(done.recipients)) == ((), (), 2)
    assert {file: file.read_bytes() for file in before} == before
    # What removal does not do: an old key file still opens the files.
    safeweights.rekey(path, ann, remove=public(bob))
    (path / "model.key.age").write_bytes(old_key)
    assert safeweights.open(path, identity=bob)


def test_all_recipients_can_be_replaced_by_a_passphrase(
    sharded: tuple[Path, dict[str, Any]], ann: Path
) -> None:
    path = safeweights.encrypt(sharded[0], public(ann)).path
    safeweights.rekey(path, ann, recipients=Passphrase("open", work_factor=QUICK))
    assert safeweights.open(path, identity=Passphrase("open"))
    with pytest.raises(AccessError, match="cannot be kept"):
        safeweights.rekey(path, Passphrase("open"), add=public(ann))
    safeweights.rekey(path, Passphrase("open"), recipients=public(ann))
    assert safeweights.open(path, identity=ann)


def test_wrong_changes_of_recipients_are_refused(
    sharded: tuple[Path, dict[str, Any]], ann: Path, bob: Path
) -> None:
    path = Path(safeweights.encrypt(sharded[0], public(ann)).path)
    key = (path / "model.key.age").read_bytes()
    for change, words in (
        ({"remove": public(bob)}, "is no recipient of this key file"),
        ({"remove": public(ann)}, "there must be a recipient"),
        ({"add": Passphrase("x", work_factor=QUICK)}, "only recipient"),
        ({"recipients": []}, "there must be a recipient"),
    ):
        with pytest.raises(AccessError, match=words):
            safeweights.rekey(path, ann, **change)  # type: ignore[arg-type]
    with pytest.raises(AccessError, match="no identity"):
        safeweights.rekey(path, bob)
    with pytest.raises(AccessError, match="no key file"):
        safeweights.rekey(sharded[0], ann)
    with pytest.raises(AccessError, match="this is no key file"):
        safeweights.rekey(path / "config.json.age", ann)
    assert (path / "model.key.age").read_bytes() == key


def test_a_passphrase_is_alone_and_kinds_are_not_mixed(ann: Path, tmp_path: Path) -> None:
    hybrid = generate_identity(post_quantum=True).recipient
    for given in (
        [Passphrase("a"), public(ann)],
        [Passphrase("a"), Passphrase("b")],
        [hybrid, public(ann)],
    ):
        with pytest.raises(AccessError) as caught:
            recipients.check_together(recipients.as_recipients(given))
        assert caught.value.reason == "mixed-recipients"
    assert len(recipients.check_together(recipients.as_recipients([public(ann)] * 2))) == 1
