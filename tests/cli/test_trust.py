"""`safeweights hash`, `keygen`, `sign`, `verify`, `admit` and `bom`."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import safeweights.numpy
from safeweights.trust import VerificationError, Warrant, verify_log

SECRET = "correct horse"

posix = pytest.mark.skipif(os.name != "posix", reason="modes and terminals of POSIX")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model in the current folder, called `model`."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "model"
    root.mkdir()
    safeweights.numpy.save_file(
        {"a": np.arange(100_000.0), "b": np.ones(3)}, root / "w.safetensors"
    )
    (root / "config.json").write_text('{"model_type": "bert"}')
    return root


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    from safeweights.trust import generate_key

    path = tmp_path_factory.mktemp("keys") / "key"
    generate_key(str(path))
    return str(path)


@pytest.fixture
def signed(folder, pair, run):
    assert run("sign", "model", "--key", pair).exit_code == 0
    return folder


@pytest.fixture
def policy(tmp_path, pair):
    path = tmp_path / "policy.toml"
    rule = '[[rules]]\npattern = "*"\nsigners = ["us"]\n'
    path.write_text(f"[signers.us]\npublic_key = {json.dumps(pair + '.pub')}\n{rule}")
    return str(path)


def spoil(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def printable(result):
    return all(c.isprintable() or c in "\t\n" for c in result.stdout + result.stderr)


# --- hash


def test_hash_is_what_sha256sum_prints(run, folder):
    lines = run("hash", "model").stdout
    if tool := shutil.which("sha256sum"):
        names = ["model/config.json", "model/w.safetensors"]
        theirs = subprocess.run([tool, *names], capture_output=True, text=True, check=True).stdout
        assert lines == theirs
    document = run("hash", "model", "--json").document
    assert [f"{each['sha256']}  {each['path']}" for each in document["files"]] == lines.splitlines()


def test_a_check_file_goes_there_and_back(run, folder):
    assert run("hash", "model", "-o", "SUMS").stdout == ""
    good = run("hash", "--check", "SUMS")
    assert (good.exit_code, good.rows[0]) == (0, ["ok", "model/config.json"])
    spoil(folder / "w.safetensors")
    os.unlink(folder / "config.json")
    bad = run("hash", "--check", "SUMS", "--json")
    assert (bad.exit_code, bad.document["ok"]) == (1, False)
    assert [each["status"] for each in bad.document["checked"]] == ["missing", "mismatch"]


def test_what_cannot_be_read_does_not_hide_the_rest(run, folder):
    run("hash", "model", "-o", "SUMS")
    with open("SUMS", "a") as sums:
        sums.write(f"{'0' * 64}  model\n")  # a folder
    result = run("hash", "--check", "SUMS")
    assert [row[0] for row in result.rows] == ["ok", "ok", "unreadable"]
    assert result.exit_code == 3
    spoil(folder / "w.safetensors")
    document = run("hash", "--check", "SUMS", "--json").document
    assert [each["status"] for each in document["checked"]] == ["ok", "mismatch", "unreadable"]
    assert run("hash", "--check", "SUMS").exit_code == 1


@pytest.mark.parametrize("options", [[], ["--tensors"], ["-o", "SUMS"]])
def test_nothing_to_hash_is_a_no(run, folder, options):
    os.mkdir("empty")
    result = run("hash", "empty", *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("safeweights: there is no ")
    assert not os.path.exists("SUMS")
    assert run("hash", "empty", *options, "--json").document["ok"] is False


def test_a_check_file_leaves_itself_out(run, folder):
    for _ in range(2):
        assert run("hash", ".", "-o", "SUMS").exit_code == 0
        assert "SUMS" not in Path("SUMS").read_text()
        assert run("hash", "--check", "SUMS").exit_code == 0
    assert run("hash", "model", "SUMS", "-o", "./SUMS").exit_code == 0
    assert "SUMS" not in Path("SUMS").read_text()


@posix
def test_what_cannot_be_hashed_does_not_hide_the_rest(run, folder):
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo("fifo")
    good = run("hash", "model/config.json", "model/w.safetensors").stdout
    result = run("hash", "missing", "model", "fifo", "/dev/zero")
    assert (result.exit_code, result.stdout) == (3, good)
    for name in ("missing: No such file", "model/dangling: No such file", "`fifo`", "`/dev/zero`"):
        assert name in result.stderr
    document = run("hash", "missing", "model", "--json").document
    assert document["ok"] is False
    assert len(document["files"]) == 2
    assert [each["path"] for each in document["failed"]] == ["missing", "model/dangling"]
    assert run("hash", "model", "-o", "SUMS").exit_code == 3
    assert Path("SUMS").read_text() == good


@posix
def test_a_folder_that_cannot_be_listed_does_not_hide_the_rest(run, folder):
    os.mkdir("bad")
    with open(b"bad/\xff", "w"):
        pass
    result = run("hash", "bad", "model/config.json")
    assert (result.exit_code, len(result.rows)) == (3, 1)
    assert "is not valid UTF-8" in result.stderr
    result = run("hash", "--tensors", "bad", "model")
    assert (result.exit_code, len(result.rows)) == (1, 2)


@posix
def test_tensors_that_cannot_be_hashed_do_not_hide_the_rest(run, folder):
    os.mkfifo("fifo")
    good = run("hash", "--tensors", "model")
    for path, status in {"missing": 3, "fifo": 3, "model/config.json": 1}.items():
        result = run("hash", "--tensors", path, "model")
        assert (result.exit_code, result.stdout) == (status, good.stdout)
        document = run("hash", "--tensors", path, "model", "--json").document
        assert (document["ok"], [each["path"] for each in document["failed"]]) == (False, [path])
    assert run("hash", "--tensors", "model/config.json", "missing").exit_code == 1


def test_tensors_of_other_formats_have_the_digests_of_what_they_become(run, folder):
    np.savez("old.npz", w=np.arange(6.0), o=np.array([object()]))
    run("convert", "old.npz", "new.safetensors")
    result = run("hash", "--tensors", "old.npz", "new.safetensors")
    old, new = result.rows
    assert (old[0], old[2:]) == (new[0], new[2:])


def test_a_tensor_that_cannot_be_given_is_named(run, folder):
    np.savez("old.npz", w=np.arange(6.0), other=np.zeros(2, "c16"))
    result = run("hash", "--tensors", "old.npz")
    assert (result.exit_code, len(result.rows)) == (3, 1)
    assert "tensor `other` cannot be read: its type is complex128" in result.stderr


def test_the_tensors_of_an_index_and_of_standard_input(run, folder):
    index = {"weight_map": {"a": "w.safetensors", "b": "w.safetensors"}}
    Path("model/model.safetensors.index.json").write_text(json.dumps(index))
    whole = run("hash", "--tensors", "model").rows
    assert run("hash", "--tensors", "model/model.safetensors.index.json").rows == whole
    data = Path("model/w.safetensors").read_bytes()
    piped = run("hash", "--tensors", "-", stdin=data)
    assert (piped.exit_code, [row[0] for row in piped.rows]) == (0, [row[0] for row in whole])


# --- what is written


@pytest.mark.parametrize(
    "arguments", [["hash", "model"], ["bom", "model"]], ids=lambda each: each[0]
)
def test_nothing_but_a_document_of_its_kind_is_replaced(run, folder, arguments):
    weights = Path("other.safetensors")
    weights.write_bytes((folder / "w.safetensors").read_bytes())
    Path("link.json").symlink_to(weights)
    Path("notes.json").write_text('{"bomFormat": "notes"}')
    Path("arrays.json").write_bytes(b"PK\x03\x04")  # also what is damaged
    Path("x.safetensors.index.json").write_text("{}")
    names = ["notes.json", str(weights), "link.json", "arrays.json", "x.safetensors.index.json"]
    for path in map(Path, names):
        before = path.read_bytes()
        for options in ([], ["--force"][: path.name != "notes.json"]):
            result = run(*arguments, "-o", str(path), *options)
            assert (result.exit_code, result.stdout, path.read_bytes()) == (3, "", before)
            advice = "--force replaces it" if path.name == "notes.json" else "choose another name"
            assert advice in result.stderr
    assert run(*arguments, "-o", "notes.json", "--force").exit_code == 0
    Path("empty").write_text("")
    for path in ("empty", "empty", "notes.json"):
        assert run(*arguments, "-o", path).exit_code == 0, path


def test_no_signature_is_replaced_but_the_keys_own(run, signed, pair, certificate):
    path = signed / "model.sig"
    run("keygen", "other")
    ours = path.read_bytes()
    for options in (["--key", "other"], ["--key", certificate[0], "--certificate", certificate[1]]):
        refused = run("sign", "model", *options, "--json")
        assert (refused.exit_code, path.read_bytes()) == (3, ours)
        assert refused.document["error"]["path"] == "model/model.sig"
        for _ in range(2):  # its own, the second time
            assert run("sign", "model", *options, "--force").exit_code == 0
        assert run("sign", "model", *options).exit_code == 0
        path.write_bytes(ours)
    weights = signed / "w.safetensors"
    before = weights.read_bytes()
    options = ["--key", pair, "--signature", "model/w.safetensors"]
    assert run("sign", "model/config.json", *options).exit_code == 3
    assert weights.read_bytes() == before


def test_no_block_tree_replaces_other_files(run, folder, pair):
    sidecar = folder / "w.safetensors.swtree"
    sidecar.write_text("notes")
    refused = run("sign", "model/w.safetensors", "--key", pair)
    assert (refused.exit_code, sidecar.read_text()) == (3, "notes")
    assert "not a block tree" in refused.stderr
    assert not (folder / "w.safetensors.sig").exists()
    assert run("sign", "model/w.safetensors", "--key", pair, "--force").exit_code == 0


def test_a_warrant_replaces_warrants_only(run, signed, policy):
    options = ["--policy", policy, "--warrant"]
    weights = (signed / "w.safetensors").read_bytes()
    assert run("admit", "model", *options, "model/w.safetensors").exit_code == 3
    assert (signed / "w.safetensors").read_bytes() == weights
    for _ in range(2):
        assert run("admit", "model", *options, "w.json").exit_code == 0


def test_a_dash_is_standard_output(run, process, signed, pair, policy):
    lines = run("hash", "model").stdout
    assert run("hash", "model", "-o", "-").stdout == lines
    out, error = process("hash", "model", "-o", "-").communicate(timeout=60)
    assert (out.decode(), error) == (lines, b"")
    bill = json.loads(run("bom", "model", "-o", "-").stdout)
    assert bill["components"] == json.loads(run("bom", "model").stdout)["components"]
    for arguments in (
        ["hash", "model", "-o", "-", "--json"], ["keygen", "-"],
        ["sign", "model", "--key", pair, "--signature", "-"],
        *(["admit", "model", "--policy", policy, f"--{each}", "-"] for each in ("warrant", "log", "lock")),
    ):  # fmt: skip
        assert run(*arguments).exit_code == 2
    assert not os.path.exists("-")


@pytest.mark.parametrize(
    "arguments",
    [
        ["hash", "model", "-o", "nowhere/x"],
        ["bom", "model", "-o", "nowhere/x"],
        ["sign", "model", "--key", "KEY", "--signature", "nowhere/x"],
        ["admit", "model", "--policy", "POLICY", "--warrant", "nowhere/x"],
        ["admit", "model", "--policy", "POLICY", "--log", "nowhere/x"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_written_is_found_before_anything_is_read(
    run, folder, pair, policy, monkeypatch, arguments
):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr("safeweights.trust.content.digests.hash_file", never)
    names = {"KEY": pair, "POLICY": policy}
    result = run(*(names.get(each, each) for each in arguments))
    assert (result.exit_code, result.stdout) == (3, "")
    assert "nowhere/x: " in result.stderr
    assert "No such file" in result.stderr
    monkeypatch.setattr("os.access", lambda *_: False)
    os.mkdir("nowhere")
    result = run(*(names.get(each, each) for each in arguments))
    assert result.exit_code == 3
    assert "Permission denied" in result.stderr


def test_tensors_have_the_same_digest_wherever_they_are(run, folder):
    values = safeweights.numpy.load_file(folder / "w.safetensors")
    safeweights.numpy.save_file({"x": values["b"], "a": values["a"]}, "other.safetensors")
    rows = run("hash", "--tensors", "model", "other.safetensors").rows
    digests = {(row[1], row[2]): row[0] for row in rows}
    assert digests["model/w.safetensors", "b"] == digests["other.safetensors", "x"]
    assert digests["model/w.safetensors", "a"] == digests["other.safetensors", "a"]
    assert len(set(digests.values())) == 2
    assert rows[0][3:] == ["F64", "[100000]"]
    document = run("hash", "--tensors", "other.safetensors", "--json").document
    assert [each["name"] for each in document["tensors"]] == ["a", "x"]


def test_names_of_files_are_escaped_and_written_as_they_are(run, folder):
    (folder / "x\x1b[2J\n").write_text("")
    Path("back\\slash").write_text("")
    result = run("hash", "model", "back\\slash")
    assert printable(result)
    *_, hostile, slash = result.stdout.splitlines()
    assert hostile.endswith(r"  model/x\x1b[2J\n")
    assert slash.endswith(r"  back\\slash")
    assert hostile[0] == slash[0] == "\\"
    run("hash", "model", "back\\slash", "-o", "SUMS")
    checked = run("hash", "--check", "SUMS")
    assert checked.exit_code == 0
    assert printable(checked)


def test_hashing_what_is_not_there(run, folder):
    (folder / "bad").write_text("no digests")
    assert run("hash", "missing").exit_code == 3
    assert run("hash", "--check", "missing").exit_code == 3
    assert run("hash", "--check", "model/bad").exit_code == 3
    assert run("hash", "--tensors", "model/config.json").exit_code == 1


@pytest.mark.parametrize(
    "options",
    [[], ["x", "--check", "y"], ["--check", "y", "--tensors"], ["x", "--tensors", "-o", "y"]],
    ids=" ".join,
)
def test_wrong_usage_of_hash(run, options):
    assert run("hash", *options).exit_code == 2


# --- keys


@posix
def test_a_new_key_is_its_owners_alone(run, folder):
    document = run("keygen", "key", "--curve", "p256", "--json").document
    assert stat.S_IMODE(os.stat("key").st_mode) == 0o600
    key = serialization.load_pem_public_key(Path("key.pub").read_bytes())
    assert (key.curve.name, document["encrypted"]) == ("secp256r1", False)


def test_keys_are_never_replaced(run, folder):
    for there in ("one", "two.pub"):
        Path(there).write_text("precious")
        result = run("keygen", there.removesuffix(".pub"), "--json")
        assert (result.exit_code, result.document["error"]["path"]) == (3, there)
        assert Path(there).read_text() == "precious"


def test_an_encrypted_key(run, folder):
    Path("secret").write_text(SECRET + "\r\nsecond line\n")
    Path("wrong").write_text("wrong horse")
    made = run("keygen", "key", "--passphrase-file", "secret", "--json")
    assert made.document["encrypted"]
    assert b"ENCRYPTED" in Path("key").read_bytes()
    refused = run("sign", "model", "--key", "key", "--passphrase-file", "wrong", "--json")
    assert (refused.exit_code, refused.document["error"]["path"]) == (3, "key")
    assert "horse" not in refused.stdout + refused.stderr
    assert run("sign", "model", "--key", "key", "--passphrase-file", "secret").exit_code == 0
    assert run("verify", "model", "--key", "key.pub").exit_code == 0
    piped = run("sign", "model", "--key", "key", "--passphrase-file", "-", stdin=SECRET)
    assert piped.exit_code == 0
    asked = run("sign", "model", "--key", "key", "--json")
    assert (asked.exit_code, asked.document["error"]["kind"]) == (2, "usage")
    assert "--passphrase-file" in asked.stderr


@pytest.mark.parametrize("data", [b"", b"\n", b"x" * 5000, b"\xff\xfe"])
def test_what_is_no_passphrase(run, folder, data):
    Path("secret").write_bytes(data)
    assert run("keygen", "key", "--passphrase-file", "secret").exit_code == 2
    assert not os.path.exists("key")


def test_a_passphrase_cannot_be_given_on_the_command_line(run):
    for command in ("keygen", "sign"):
        assert "--passphrase " not in run(command, "--help").stdout
        assert run(command, "x", "--passphrase", SECRET).exit_code == 2


def type_at(arguments, *lines):
    """Run a command on a terminal, typing a line at each prompt, or sending it a signal.

    Returns:
        The output, and the exit status.
    """
    import pty

    outer, inner = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "safeweights", *arguments],
        stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
    )  # fmt: skip
    os.close(inner)
    shown, asked = b"", 0
    while select.select([outer], [], [], 60)[0]:
        try:
            part = os.read(outer, 65536)
        except OSError:  # Linux says EIO when the other end is closed
            part = b""
        if not part:
            break
        shown += part
        while asked < len(lines) and shown.count(b": ") > asked:
            if isinstance(lines[asked], bytes):
                os.write(outer, lines[asked])
            else:
                child.send_signal(lines[asked])
            asked += 1
    else:
        child.kill()
    os.close(outer)
    return shown.decode(), child.wait(timeout=60)


@posix
def test_a_passphrase_is_typed_unseen(folder):
    line = f"{SECRET}\n".encode()
    shown, status = type_at(["keygen", "key", "--encrypt"], line, line)
    assert status == 0
    assert SECRET not in shown
    assert b"ENCRYPTED" in Path("key").read_bytes()
    shown, status = type_at(["sign", "model", "--key", "key"], line)
    assert status == 0
    assert SECRET not in shown
    assert os.path.exists("model/model.sig")


@posix
def test_ctrl_c_at_the_prompt(folder):
    shown, status = type_at(["keygen", "key", "--encrypt"], signal.SIGINT)
    assert status == 130
    assert "interrupted" in shown
    assert not os.path.exists("key")


# --- sign and verify


def test_the_root_digest(run, folder, pair):
    found = run("digest", "model").rows[0]
    assert found[1:] == ["model"]
    document = run("digest", "model", "--json").document
    assert (document["root"], document["subject"]) == (found[0], "model")
    assert [file["path"] for file in document["files"]][:1] == ["config.json"]
    signed = run("sign", "model", "--key", pair, "--json").document
    assert (signed["root"], run("digest", "model").rows[0][0]) == (found[0], found[0])
    plain = run("digest", "model", "--no-trees", "--ignore", "config.json").rows[0][0]
    assert plain != found[0]
    assert run("digest", "missing").exit_code == 3
    (folder / "link").symlink_to("config.json")
    assert run("digest", "model").exit_code == 1
    assert run("digest", "model", "--allow-symlinks").exit_code == 0


def test_an_id_and_links(run, folder, pair):
    (folder / "link").symlink_to("config.json")
    options = ["--key", pair, "--id", "org/name", "--release", "2"]
    assert run("sign", "model", *options).exit_code == 1
    assert run("sign", "model", *options, "--allow-symlinks").exit_code == 0
    assert run("verify", "model", "--key", f"{pair}.pub").exit_code == 0
    payload = json.loads((folder / "model.sig").read_text())["dsseEnvelope"]["payload"]
    assert '"id":"org/name"' in base64.b64decode(payload).decode()


def test_one_file_whose_signature_is_elsewhere(run, folder, pair):
    assert run("sign", "model", "--key", pair, "--signature", "out.sig").exit_code == 0
    options = ["--key", f"{pair}.pub", "--signature", "out.sig"]
    assert run("verify", "model/w.safetensors", *options).exit_code == 1
    assert run("verify", "model/w.safetensors", *options, "--base", "model").exit_code == 0
    assert run("verify", "model", "--policy", "p", "--base", "model").exit_code == 2


class TestKeyCommand:
    """A program that has the key: openssl, in place of a hardware module."""

    @pytest.mark.parametrize("output", ["", " | base64"])
    def test_the_digest_is_signed(self, run, folder, pair, output):
        command = f"sh -c 'openssl pkeyutl -sign -inkey {pair}{output}'"
        options = ["--key-command", command, "--public-key", f"{pair}.pub"]
        assert run("sign", "model", *options, "--json").document["method"] == "key"
        assert run("verify", "model", "--key", f"{pair}.pub").exit_code == 0
        assert run("sign", "model", *options).exit_code == 0

    def test_the_message_is_signed(self, run, folder, pair):
        command = f"openssl dgst -sha384 -sign {pair}"
        options = ["--key-command", command, "--public-key", f"{pair}.pub", "--whole-message"]
        assert run("sign", "model", *options).exit_code == 0
        assert run("verify", "model", "--key", f"{pair}.pub").exit_code == 0
        assert run("sign", "model", *options[:-1], "--force").exit_code == 1  # not the digest

    @pytest.mark.parametrize(
        ("command", "status"),
        [("false", 3), ("true", 1), ("echo hello", 1), ("no-such-program", 3)],
    )
    def test_a_program_that_fails(self, run, folder, pair, command, status):
        options = ["--key-command", command, "--public-key", f"{pair}.pub"]
        assert run("sign", "model", *options).exit_code == status
        assert not (folder / "model.sig").exists()

    @pytest.mark.parametrize(
        "options",
        [
            [], ["--keyless", "--key", "k"], ["--key-command", "true"], ["--key-command", "'"],
            ["--key-command", " ", "--public-key", "PUBLIC"], ["--key", "k", "--public-key", "p"],
            ["--keyless", "--passphrase-file", "p"], ["--keyless", "--certificate", "c"],
            ["--key", "KEY", "--timestamp-url", "file:///x"], ["--key", "k", "--trust-config", "t"],
        ],
    )  # fmt: skip
    def test_wrong_usage(self, run, folder, pair, options):
        known = {"KEY": pair, "PUBLIC": f"{pair}.pub"}
        assert run("sign", "model", *(known.get(o, o) for o in options)).exit_code == 2


def test_timestamps_at_the_command_line(run, signed, pair, certificate):
    options = ["--key", f"{pair}.pub", "--timestamp-roots", certificate[1]]
    refused = run("verify", "model", *options)
    assert (refused.exit_code, "no trusted timestamp" in refused.stderr) == (1, True)
    for until in ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00+01:00"):
        refused = run("verify", "model", *options, "--until", until)
        assert (refused.exit_code, "of 2026-01-31" in refused.stderr) == (1, True)
    for until in ("2026-01-31", "yesterday"):
        assert run("verify", "model", *options, "--until", until).exit_code == 2
    assert run("verify", "model", *options[:2], "--until", "2026-01-31T12:00:00Z").exit_code == 2


def test_a_folder_is_signed_and_verified(run, signed, pair):
    names = {"config.json", "w.safetensors", "w.safetensors.swtree"}
    document = run("sign", "model", "--key", pair, "--json").document
    assert {each["path"] for each in document["files"]} == names
    assert document["signature"] == str(signed / "model.sig")
    assert document["sidecars"] == ["w.safetensors.swtree"]
    good = run("verify", "model", "--key", f"{pair}.pub")
    assert (good.exit_code, good.rows) == (0, [["ok", "model", "key", document["key_hint"]]])
    found = run("verify", "model", "--key", f"{pair}.pub", "--json").document
    assert found["signed_by"]["key_hint"] == document["key_hint"]
    assert {each["path"] for each in found["files"]} == names


def test_a_file_and_a_signature_elsewhere(run, folder, pair):
    path = "model/w.safetensors"
    assert run("sign", path, "--key", pair, "--no-trees").exit_code == 0
    assert os.path.exists(f"{path}.sig")
    assert not os.path.exists(f"{path}.swtree")
    assert run("verify", path, "--key", f"{pair}.pub").exit_code == 0
    assert run("sign", "model", "--key", pair, "--signature", "out.sig").exit_code == 0
    options = ["--key", f"{pair}.pub", "--signature", "out.sig"]
    assert run("verify", "model", *options).exit_code == 0


def test_what_is_left_out_is_named(run, folder, pair):
    (folder / "notes.txt").write_text("x\x1b")
    assert run("sign", "model", "--key", pair, "--ignore", "notes.txt").exit_code == 0
    (folder / "notes.txt").write_text("changed")
    result = run("verify", "model", "--key", f"{pair}.pub")
    assert (result.exit_code, result.rows[1:]) == (0, [["unsigned", "notes.txt"]])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda root: spoil(root / "w.safetensors"), "digest-mismatch"),
        (lambda root: spoil(root / "w.safetensors.swtree"), "digest-mismatch"),
        (lambda root: (root / "evil\x1b.py").write_text(""), "extra-file"),
        (lambda root: (root / "config.json").unlink(), "missing-file"),
        (lambda root: (root / "model.sig").unlink(), "signature-missing"),
    ],
    ids=["weights", "sidecar", "extra", "missing", "unsigned"],
)
def test_tampering(run, signed, pair, change, rule):
    change(signed)
    result = run("verify", "model", "--key", f"{pair}.pub", "--json")
    assert (result.exit_code, result.document["error"]["rule"]) == (1, rule)
    assert printable(run("verify", "model", "--key", f"{pair}.pub"))


def test_an_unsigned_file_can_be_allowed(run, signed, pair):
    (signed / "extra").write_text("")
    result = run("verify", "model", "--key", f"{pair}.pub", "--ignore-unsigned")
    assert (result.exit_code, result.rows[1]) == (0, ["unsigned", "extra"])


def test_another_key(run, signed):
    run("keygen", "other")
    result = run("verify", "model", "--key", "other.pub", "--json")
    assert (result.exit_code, result.document["error"]["rule"]) == (1, "wrong-key")


def test_what_could_not_be_looked_at(run, signed, pair):
    public = f"{pair}.pub"
    for arguments in (
        ["missing", "--key", public], ["model", "--key", "missing"], ["model", "--key", pair],
        ["model", "--key", "model/config.json"], ["model", "--certificate", pair, "--subject", "x"],
        ["model", "--policy", "model/config.json"], ["model", "--policy", "missing"],
    ):  # fmt: skip
        assert run("verify", *arguments).exit_code == 3, arguments
    assert run("sign", "missing", "--key", pair).exit_code == 3
    assert run("sign", "model", "--key", "missing").exit_code == 3
    assert run("sign", "model", "--key", public).exit_code == 3


@pytest.mark.parametrize(
    "change",
    [lambda _: b"", lambda data: data[:-9], lambda _: b"{}", lambda _: b"\xff" * 9],
    ids=["empty", "cut", "other", "binary"],
)
def test_a_malformed_signature_is_a_refusal(run, signed, pair, change):
    path = signed / "model.sig"
    path.write_bytes(change(path.read_bytes()))
    result = run("verify", "model", "--key", f"{pair}.pub", "--json")
    assert result.exit_code == 1
    assert result.document["error"]["path"] == str(path)


@posix
@pytest.mark.parametrize("make", ["mkdir", "mkfifo"])
def test_what_is_no_file_is_no_signature(run, signed, pair, policy, make):
    os.unlink("model/model.sig")
    getattr(os, make)("model/model.sig")
    result = run("verify", "model", "--key", f"{pair}.pub", "--json")
    assert (result.exit_code, result.document["error"]["rule"]) == (1, "not-a-file")
    assert run("admit", "model", "--policy", policy).exit_code == 1


@posix
def test_special_files_cannot_be_looked_at(run, signed, pair, policy):
    os.mkfifo("fifo")
    signed_by_us = ["--key", f"{pair}.pub"]
    for special in ("fifo", "/dev/zero"):
        for arguments in (
            ["sign", special, "--key", pair], ["sign", "model", "--key", special],
            ["verify", special, *signed_by_us], ["verify", "model", "--key", special],
            ["verify", "model", "--policy", special], ["admit", special, "--policy", policy],
            ["admit", "model", "--policy", special],
            ["admit", "model", "--policy", policy, "--lock", special],
            ["admit", "model", "--policy", policy, "--warrant", special],
            ["hash", "--check", special],
        ):  # fmt: skip
            result = run(*arguments)
            assert (result.exit_code, result.stdout) == (3, ""), arguments
            assert special in result.stderr


@posix
@pytest.mark.parametrize("content", [None, b"nonsense\n", b'{"seq": 1}\n', b"{}"])
def test_without_a_log_nothing_is_admitted(run, signed, policy, monkeypatch, content):
    if content is None:
        os.mkfifo("log")
    else:
        Path("log").write_bytes(content)
    monkeypatch.setattr(
        "safeweights.trust.policies.admission.gather", None
    )  # found before it is read
    Path("p.toml").write_text(f'lock = "l.json"\n{Path(policy).read_text()}')
    result = run("admit", "model", "--policy", "p.toml", "--log", "log", "--warrant", "w.json")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "the audit log cannot be appended to" in result.stderr
    assert not os.path.exists("l.json")
    assert not os.path.exists("w.json")


@pytest.mark.parametrize(
    "options",
    [
        [], ["--key", "k", "--policy", "p"], ["--key", "k", "--subject", "s"],
        ["--certificate", "c"], ["--certificate", "c", "--issuer", "i"], ["--identity", "i"],
        ["--key", "k", "--issuer", "i"], ["--policy", "p", "--ignore-unsigned"],
        ["--key", "k", "--explain"], ["--identity", "i", "--issuer", "i", "--name", "n"],
        ["--log", "--key", "k"], ["--key", "k", "--head", "h"], ["--log", "--signature", "s"],
        ["--log", "--explain"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_of_verify(run, signed, options):
    result = run("verify", "model", *options, "--json")
    assert (result.exit_code, result.document["error"]["kind"]) == (2, "usage")


@pytest.fixture
def certificate(folder):
    """A certificate for signing that is its own root: (key file, certificate file)."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "models")])
    now = dt.datetime.now(dt.timezone.utc)
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .sign(key, hashes.SHA256())
    )
    coding = serialization.Encoding.PEM
    pem = key.private_bytes(coding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    Path("leaf.key").write_bytes(pem)
    Path("leaf.pem").write_bytes(made.public_bytes(coding))
    return "leaf.key", "leaf.pem"


def test_a_certificate(run, folder, pair, certificate):
    key, leaf = certificate
    assert run("sign", "model", "--key", pair, "--certificate", leaf).exit_code == 3
    made = run("sign", "model", "--key", key, "--certificate", leaf, "--json").document
    assert made["method"] == "certificate"
    good = run("verify", "model", "--certificate", leaf, "--subject", "CN=models")
    assert (good.exit_code, good.rows[0]) == (
        0,
        ["ok", "model", "certificate", "CN=models/CN=models"],
    )
    bad = run("verify", "model", "--certificate", leaf, "--subject", "CN=x", "--json")
    assert (bad.exit_code, bad.document["error"]["rule"]) == (1, "certificate-identity")
    bad = run("verify", "model", "--key", f"{pair}.pub", "--json")
    assert (bad.exit_code, bad.document["error"]["rule"]) == (1, "wrong-method")


def test_an_identity(run, signed):
    options = ["--identity", "me@example.org", "--issuer", "https://example.org"]
    result = run("verify", "model", *options, "--json")
    assert (result.exit_code, result.document["error"]["rule"]) == (1, "wrong-method")


# --- policies


def test_verify_by_policy_leaves_no_trace(run, signed, policy, tmp_path):
    good = run("verify", "model", "--policy", policy, "--name", "m\x1b", "--explain", "--json")
    assert (good.exit_code, good.document["ok"]) == (0, True)
    assert good.document["decision"]["subject"] == "m\x1b"
    assert good.document["signed_by"]["method"] == "key"
    spoil(signed / "w.safetensors")
    bad = run("verify", "model", "--policy", policy, "--json")
    assert (bad.exit_code, bad.document["ok"]) == (1, False)
    assert bad.document["decision"]["reasons"][0]["code"] == "signature-refused"
    Path("lock.toml").write_text(
        'lock = "lock.json"\n[[rules]]\npattern = "*"\nlevel = "known"\nfirst_use = true\n'
    )
    assert run("verify", "model", "--policy", "lock.toml").exit_code == 0
    assert not os.path.exists("lock.json")
    assert run("admit", "model", "--policy", "lock.toml").exit_code == 0
    assert os.path.exists("lock.json")


def test_admit(run, signed, policy):
    plain = run("admit", "model", "--policy", policy, "--name", "x/y")
    assert plain.exit_code == 0
    assert plain.rows[0] == ["allow", "x/y", "signed", "*", "us"]
    assert [row[0] for row in plain.rows] == ["allow", "warrant"]
    explained = run("admit", "model", "--policy", policy, "--explain").rows
    assert explained[1][:2] == ["for", "signed"]
    document = run("admit", "model", "--policy", policy, "--json").document
    assert document["decision"]["verdict"] == "allow"
    assert set(document["decision"]["files"]) == {
        "config.json", "w.safetensors", "w.safetensors.swtree",
    }  # fmt: skip


def test_a_refusal(run, signed, policy):
    (signed / "run\x1b[2J.py").write_text("")
    result = run("admit", "model", "--policy", policy, "--warrant", "w.json")
    assert result.exit_code == 1
    assert result.rows[0][0] == "refuse"
    assert {tuple(row[:2]) for row in result.rows[1:]} == {
        ("against", "deny-python"), ("against", "unsigned-file"),
    }  # fmt: skip
    assert printable(result)
    assert not os.path.exists("w.json")
    document = run("admit", "model", "--policy", policy, "--json").document
    assert document["warrant"] is None


def test_a_mode_that_only_warns(run, signed, policy):
    text = Path(policy).read_text()
    Path(policy).write_text(f'mode = "warn"\n{text}')
    (signed / "run.py").write_text("")
    result = run("admit", "model", "--policy", policy)
    assert (result.exit_code, result.rows[0][0]) == (0, "warn")


def test_the_log(run, signed, policy):
    run("admit", "model", "--policy", policy, "--log", "log.jsonl")
    spoil(signed / "config.json")
    last = run("admit", "model", "--policy", policy, "--log", "log.jsonl", "--json")
    assert last.exit_code == 1
    assert verify_log("log.jsonl", head=last.document["log_head"]) == 2
    text = Path("log.jsonl").read_text()
    Path("log.jsonl").write_text(text.replace("allow", "refus"))
    with pytest.raises(VerificationError):
        verify_log("log.jsonl")


@pytest.fixture
def log(run, signed, policy):
    """A log of three decisions; its head."""
    for _ in range(3):
        last = run("admit", "model", "--policy", policy, "--log", "log.jsonl", "--json")
    return last.document["log_head"]


def test_a_log_as_it_was_written(run, log):
    assert run("verify", "--log", "log.jsonl").rows == [["ok", "log.jsonl", "3", log]]
    found = run("verify", "log.jsonl", "--log", "--head", log.upper(), "--json")
    assert (found.exit_code, found.document["lines"], found.document["head"]) == (0, 3, log)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda a, b, c: [a.replace("allow", "refus"), b, c], "audit-broken"),
        (lambda a, b, c: [a, c], "audit-broken"), (lambda a, b, c: [b, c], "audit-broken"),
        (lambda a, b, c: [a, b, c[:-1]], "audit-broken"), (lambda a, b, c: ["{\n", b, c], "malformed"),
        (lambda a, b, c: [a, b], "audit-head"), (lambda a, b, c: [], "audit-head"),
    ],
    ids=["changed", "removed", "first", "incomplete", "nonsense", "cut", "empty"],
)  # fmt: skip
def test_a_log_that_was_tampered_with(run, log, change, rule):
    lines = Path("log.jsonl").read_text().splitlines(keepends=True)
    Path("log.jsonl").write_text("".join(change(*lines)))
    result = run("verify", "--log", "log.jsonl", "--head", log, "--json")
    assert (result.exit_code, result.document["error"]["rule"]) == (1, rule)


def test_a_log_without_lines_and_what_is_none(run, signed):
    Path("empty").write_text("")
    result = run("verify", "--log", "empty", "--json")
    assert (result.exit_code, result.document["ok"]) == (1, False)
    assert run("verify", "--log", "empty").stderr.startswith("safeweights: empty is empty: ")
    for path, status in {"missing": 3, "model": 3, "model/w.safetensors": 1}.items():
        assert run("verify", "--log", path).exit_code == status


def test_appending_sees_the_last_line_and_verifying_all(run, log, policy):
    first, *rest = Path("log.jsonl").read_text().splitlines(keepends=True)
    Path("log.jsonl").write_text("".join([first.replace("allow", "refus"), *rest]))
    assert run("admit", "model", "--policy", policy, "--log", "log.jsonl").exit_code == 0
    assert run("verify", "--log", "log.jsonl").exit_code == 1


def test_a_warrant_is_for_a_later_load(run, signed, policy):
    document = run("admit", "model", "--policy", policy, "--warrant", "w.json", "--json").document
    warrant = Warrant.from_json(Path("w.json").read_bytes())
    assert document["warrant"] == warrant.id
    safeweights.numpy.load_file("model/w.safetensors", trust=warrant)
    spoil(signed / "w.safetensors")
    with pytest.raises(VerificationError):
        safeweights.numpy.load_file("model/w.safetensors", trust=warrant)


def test_another_lock(run, signed):
    Path("p.toml").write_text('[[rules]]\npattern = "*"\nlevel = "known"\nfirst_use = true\n')
    assert run("admit", "model", "--policy", "p.toml").exit_code == 3
    Path("p.toml").write_text(f'lock = "a.json"\n{Path("p.toml").read_text()}')
    assert run("admit", "model", "--policy", "p.toml", "--lock", "b.json").exit_code == 0
    assert (os.path.exists("a.json"), os.path.exists("b.json")) == (False, True)
    spoil(signed / "config.json")
    result = run("admit", "model", "--policy", "p.toml", "--lock", "b.json")
    assert (result.exit_code, result.rows[1][1]) == (1, "changed-since-first-use")


def test_what_cannot_be_admitted(run, signed, policy):
    assert run("admit", "missing", "--policy", policy).exit_code == 3
    assert run("admit", "model", "--policy", "missing").exit_code == 3
    assert run("admit", "model").exit_code == 2
    Path(policy).write_text('[[rules]]\npatern = "*"\n')
    result = run("admit", "model", "--policy", policy, "--json")
    assert result.exit_code == 3
    assert "rules[0]" in result.document["error"]["message"]


# --- bill of materials


def test_bom(run, signed):
    result = run("bom", "model", "--version", "2", "--name", "m")
    document = json.loads(result.stdout)
    assert (document["bomFormat"], document["metadata"]["component"]["version"]) == (
        "CycloneDX",
        "2",
    )
    assert {each["name"] for each in document["components"]} >= {"config.json", "w.safetensors"}
    assert run("bom", "model", "-o", "bom.json").stdout == ""
    assert json.loads(Path("bom.json").read_text())["components"] == document["components"]
    assert run("bom", "missing").exit_code == 3
    os.mkdir("empty")
    assert run("bom", "empty").exit_code == 1


def test_a_bill_counts_and_marks_what_other_formats_hold(run, folder):
    def bill(name):
        document = json.loads(run("bom", name).stdout)
        both = (document["metadata"]["component"], document["components"][0])
        return [{p["name"][12:]: p["value"] for p in each["properties"]} for each in both]

    np.savez("a.npz", w=np.arange(6.0), v=np.arange(5, dtype="f4"))
    model, file = bill("a.npz")
    assert (model["parameters:F64"], model["parameters:F32"]) == ("6", "5")
    assert (file["format"], file["tensors"]) == ("npz", "2")
    evil = b"cposix\nsystem\n(S'id'\ntR."
    Path("evil.pkl").write_bytes(evil)
    assert bill("evil.pkl")[1]["loading-calls"] == "`posix.system` (can act)"
    Path("cut.pkl").write_bytes(evil[:-1])
    assert bill("cut.pkl")[1]["loading-calls"] == "`posix.system` (can act)"
    assert bill("cut.pkl")[1]["unread"]
    Path("notes.md").write_text("Notes\non cats\n")
    assert set(bill("notes.md")[1]) == {"size"}


def test_a_bill_is_written_and_printed_where_both_are_asked_for(process, signed):
    out, error = process("bom", "model", "-o", "bom.json", "--json").communicate(timeout=60)
    assert error == b""
    assert json.loads(out) == json.loads(Path("bom.json").read_text())


# --- terminals


@posix
def test_everything_fits_a_terminal(terminal, plain, run, signed, pair, policy):
    (signed / ("long-\x1b-name" * 12 + ".py")).write_text("")
    for arguments in (
        ["keygen", "new"], ["hash", "model/w.safetensors"],
        ["sign", "model", "--key", pair], ["verify", "model", "--key", f"{pair}.pub"],
        ["admit", "model", "--policy", policy, "--explain", "--log", "log"],
        ["verify", "model", "--policy", policy], ["bom", "model", "-o", "bom.json"],
        ["verify", "--log", "log"],
    ):  # fmt: skip
        shown, _ = terminal(*arguments)
        assert all(c.isprintable() or c == "\n" for c in plain(shown)), arguments
        if arguments[0] != "hash":  # a line of sha256sum is as long as it is
            assert max(map(len, plain(shown).splitlines())) <= 80, arguments
        shown, _ = terminal(*arguments, NO_COLOR="1")
        assert "\x1b[3" not in shown


def test_one_file_of_a_signed_folder(run, signed, pair, policy):
    weights = "model/w.safetensors"
    assert run("verify", weights, "--key", f"{pair}.pub").rows[0][:2] == ["ok", weights]
    document = run("verify", weights, "--policy", policy, "--json").document
    assert (document["ok"], Path(document["signature"])) == (True, signed / "model.sig")
    assert run("admit", weights, "--policy", policy).exit_code == 0
    Path("model/other").write_text("x")
    for arguments in (["--key", f"{pair}.pub"], ["--policy", policy]):
        result = run("verify", "model/other", *arguments)
        assert result.exit_code == 1
        assert "does not list the file `other`" in result.stdout + result.stderr
    spoil(signed / "w.safetensors")
    assert run("verify", weights, "--key", f"{pair}.pub").exit_code == 1
    assert run("admit", weights, "--policy", policy).exit_code == 1


@posix
def test_a_hundred_thousand_reasons_are_not_all_drawn(terminal, plain, run, signed, policy):
    for number in range(60):
        (signed / f"more{number}").write_text("")
    shown, status = terminal("admit", "model", "--policy", policy)
    assert status == 1
    assert plain(shown).count("unsigned-file") == 50
    assert "and 10 reasons more: see --json" in plain(shown)
    assert len(run("admit", "model", "--policy", policy).rows) == 61


@posix
def test_a_path_that_is_hostile(run, folder, pair):
    name = "m\x1b[2J\u202e\n"
    os.rename("model", name)
    for arguments in (
        ["sign", name, "--key", pair], ["verify", name, "--key", f"{pair}.pub"], ["hash", name],
        ["keygen", "k\x1b[2J"], ["verify", "\x1b[2J", "--key", f"{pair}.pub"],
        ["hash", "\x1b[2J"], ["sign", name, "--key", "\x1b[2J"],
    ):  # fmt: skip
        assert printable(run(*arguments)), arguments
