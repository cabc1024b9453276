"""`safeweights encrypt`, `decrypt`, `rekey`, `keygen --age`, and `-i` on commands that read."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from pathlib import Path

import click
import numpy as np
import pytest

pytest.importorskip("cryptography")

import safeweights.numpy
from safeweights.cli.app import cli
from safeweights.trust.access import passwords


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Passphrases that take no second."""
    monkeypatch.setattr(
        passwords.Passphrase.__init__, "__kwdefaults__", {"work_factor": 8, "max_work_factor": 20}
    )


@pytest.fixture
def me(tmp_path, run, monkeypatch):
    """A recipient, whose identity is in the file `me` of the current folder."""
    monkeypatch.chdir(tmp_path)
    result = run("keygen", "me", "--age")
    assert result.exit_code == 0
    return dict(result.rows)["recipient"]


@pytest.fixture
def encrypted(sharded, me, run):
    Path(sharded, "config.json").write_text(
        '{"model_type": "bert", "architectures": ["BertModel"]}'
    )
    assert run("encrypt", sharded, "-r", me, "-o", "model.age").exit_code == 0
    return "model.age"


@pytest.mark.parametrize("more", [[], ["--pq"]])
def test_keygen_makes_an_identity(tmp_path, run, more):
    path = str(tmp_path / "me")
    document = run("keygen", path, "--age", *more, "--json").document
    assert document["post_quantum"] == bool(more)
    assert document["recipient"].startswith("age1pq1" if more else "age1")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert f"# public key: {document['recipient']}\n" in Path(path).read_text()
    assert Path(document["recipient_file"]).read_text() == f"{document['recipient']}\n"
    assert stat.S_IMODE(os.stat(f"{path}.pub").st_mode) & 0o444
    assert run("keygen", path, "--age").exit_code == 3
    os.unlink(path)
    result = run("keygen", path, "--age")  # keeps the recipient of another identity
    assert result.exit_code == 3
    assert f"{path}.pub" in result.stderr
    assert not os.path.exists(path)
    Path(tmp_path, "a").write_bytes(b"text")
    assert run("encrypt", str(tmp_path / "a"), "-R", f"{path}.pub").exit_code == 0
    assert run("keygen", path, "--pq").exit_code == 2
    assert run("keygen", path, "--age", "--encrypt").exit_code == 2


def test_a_key_for_signatures_is_called_one(sharded, encrypted, run):
    assert run("keygen", "signer").exit_code == 0
    result = run("encrypt", sharded, "-R", "signer.pub", "-o", "sealed")
    assert result.exit_code == 3
    assert "this is a public key for signatures" in result.stderr
    assert "private" not in result.stderr
    result = run("ls", encrypted, "-i", "signer")
    assert result.exit_code == 3
    assert "this key decrypts nothing" in result.stderr


def test_a_model_is_encrypted_and_read(sharded, encrypted, me, run):
    assert sorted(os.listdir(encrypted)) == [
        "config.json.age",
        *(f"model-0000{n}-of-00003.safetensors.age" for n in (1, 2, 3)),
        "model.key.age", "model.safetensors.index.json.age",
    ]  # fmt: skip
    for command in (["ls"], ["show"], ["hash", "--tensors"], ["check"], ["stats"]):
        plain, sealed = run(*command, sharded), run(*command, encrypted, "-i", "me")
        assert (plain.exit_code, sealed.exit_code) == (0, 0), sealed.stderr
        shown = sealed.stdout.replace(encrypted, sharded).replace(
            ".safetensors.age", ".safetensors"
        )
        assert shown == plain.stdout
    assert run("get", encrypted, "norm.weight", "-i", "me", "--stats").exit_code == 0
    assert run("ls", sharded).exit_code == 0, "the identity of one command is not that of the next"


def test_without_a_key_only_the_kinds_of_recipients_are_shown(encrypted, run, terminal, plain):
    shown = run("show", encrypted)
    assert shown.exit_code == 0
    assert shown.rows == [
        ["path", encrypted], ["kind", "folder"], ["encrypted", f"{encrypted}/model.key.age", "X25519", "1"],
    ]  # fmt: skip
    document = run("show", f"{encrypted}/config.json.age", "--json").document
    assert document["encrypted"] == [{"path": f"{encrypted}/config.json.age", "types": ["X25519"]}]
    text, status = terminal("show", encrypted)
    assert status == 0
    assert "1 of type X25519" in plain(text)
    for command in (["ls"], ["get"], ["stats"], ["convert"], ["hash", "--tensors"]):
        result = run(*command, encrypted, *(["x"] if command[0] in {"get", "convert"} else []))
        assert result.exit_code == 3
        assert "encrypted (age)" in result.stderr
    result = run("check", encrypted)
    assert result.exit_code == 3
    assert "this is an encrypted file (age)" in result.stdout


def test_a_model_is_converted_and_decrypted(sharded, encrypted, run):
    assert run("convert", encrypted, "out/", "-i", "me").exit_code == 0
    assert run("convert", sharded, "plain/").exit_code == 0
    for name in os.listdir("plain"):
        if name.endswith(".safetensors"):
            assert Path("out", name).read_bytes() == Path("plain", name).read_bytes()
    one = f"{encrypted}/model-00001-of-00003.safetensors.age"
    assert run("convert", one, "one/", "-i", "me").exit_code == 0
    assert os.path.exists("one/model-00001-of-00003.safetensors")
    document = run("decrypt", encrypted, "-i", "me", "-o", "back", "--json").document
    assert len(document["files"]) == 5
    for name in document["files"]:
        assert Path("back", name).read_bytes() == Path(sharded, name).read_bytes()
    assert run("decrypt", encrypted).exit_code == 2
    assert run("decrypt", encrypted, "-i", "me", "-o", "back").exit_code == 3


def test_recipients_are_added_and_removed(encrypted, me, run):
    other = dict(run("keygen", "other", "--age").rows)["recipient"]
    Path("team").write_text(f"# the team\r\n{other}\r\n")
    assert run("ls", encrypted, "-i", "other").exit_code == 3
    result = run("rekey", encrypted, "-i", "me", "--add", "team")
    assert ["added", other] in result.rows
    assert run("ls", encrypted, "-i", "other").exit_code == 0
    result = run("rekey", encrypted, "-i", "other", "--remove", me)
    assert ["removed", me] in result.rows
    assert "copy of the old key file, removed recipients can still read" in result.stderr
    assert run("ls", encrypted, "-i", "me").exit_code == 3
    document = run("rekey", encrypted, "-i", "other", "--rotate", "--json").document
    assert document["recipients"] == [other]
    assert run("rekey", encrypted, "-i", "other").exit_code == 2
    assert run("rekey", encrypted, "--rotate").exit_code == 2
    assert run("rekey", encrypted, "-i", "other", "--new-passphrase", "--rotate").exit_code == 2
    assert run("rekey", encrypted, "-i", "other", "--remove", me).exit_code == 3


def test_passphrases_come_from_a_file(sharded, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("secret").write_text("correct horse\nbattery")
    result = run("encrypt", sharded, "--passphrase-file", "secret", "-o", "model.age")
    assert ["recipient", "passphrase"] in result.rows
    assert run("ls", "model.age", "--passphrase-file", "secret").exit_code == 0
    assert run("ls", "model.age", "--passphrase-file", "-", stdin="correct horse\n").exit_code == 0
    wrong = run("ls", "model.age", "--passphrase-file", "-", stdin="wrong horse\n")
    assert wrong.exit_code == 3
    assert "horse" not in wrong.stderr + wrong.stdout
    asked = run("ls", "model.age", "-p")
    assert asked.exit_code == 2
    assert "give --passphrase-file" in asked.stderr
    assert run("encrypt", sharded, "-p").exit_code == 2
    assert run("encrypt", sharded, "-p", "-r", "age1x").exit_code == 2


def test_a_single_file_is_encrypted_as_text(model, me, run):
    assert run("encrypt", model, "-r", me, "-o", "a.age", "--armor").exit_code == 0
    assert Path("a.age").read_text().startswith("-----BEGIN AGE ENCRYPTED FILE-----")
    assert run("ls", "a.age", "-i", "me").stdout == run("ls", model).stdout
    document = run("encrypt", model, "-r", me, "-o", "b.age", "--json").document
    assert (document["key_file"], document["recipients"]) == (None, [me])


def test_replacing_removes_the_plaintext(sharded, me, run):
    listed = run("ls", sharded).stdout
    result = run("encrypt", sharded, "-r", me, "--replace")
    assert ["removed", "model.safetensors.index.json"] in result.rows
    assert {os.path.splitext(name)[1] for name in os.listdir(sharded)} == {".age"}
    assert run("ls", sharded, "-i", "me").stdout == listed


def test_wrong_recipients_are_refused(sharded, me, run):
    assert run("encrypt", sharded).exit_code == 2
    secret = Path("me").read_text().split()[-1]
    for wrong in (["-r", secret], ["-R", "me"], ["-r", "me"], ["-r", "age1nonsense"]):
        result = run("encrypt", sharded, *wrong)
        assert result.exit_code == 3
        assert secret[20:40] not in result.stdout + result.stderr
    assert not os.path.exists(f"{sharded}.age")


def test_nothing_secret_is_printed_or_in_the_list_of_processes(sharded, me, run, process, tmp_path):
    """Everything that the commands print, and the arguments that others see."""
    Path("secret").write_text("correct horse battery")
    secret = Path("me").read_text().split()[-1]
    shown = []
    for arguments in (
        ["encrypt", sharded, "-r", me, "-o", "m"],
        ["encrypt", sharded, "--passphrase-file", "secret", "-o", "p"],
        ["rekey", "m", "-i", "me", "--rotate"],
        ["rekey", "m", "-i", "me", "--rotate", "--json"],
        ["show", "m", "-i", "me"], ["ls", "p", "--passphrase-file", "secret"],
        ["ls", "m", "-i", "secret"], ["decrypt", "m", "-i", "me", "-o", "d", "--json"],
        ["show", "m/model.key.age", "-i", "me"], ["decrypt", "m/model.key.age", "-i", "me", "-o", "k"],
    ):  # fmt: skip
        with process(*arguments) as child:
            arguments_of_all = subprocess.run(
                ["ps", "-eo", "args"], capture_output=True, check=False
            )
            out, err = child.communicate()
        shown += [out, err, arguments_of_all.stdout]
    text = b"".join(shown).decode(errors="replace")
    assert "AGE-SECRET-KEY-1" not in text.replace("AGE-SECRET-KEY-1...", "")
    assert secret[20:40] not in text
    assert "correct horse" not in text


WITHOUT_IDENTITY = {
    "encrypt": "it reads plaintext",
    "keygen": "it reads no model",
    "sign": "it signs files as they are",
    "push": "it writes files as they are",
    "policy": "it reads no weights",
    "repair": "it mends files in their place, and encrypted ones are only read",
}
"""Command -> why it cannot be given an identity."""


def commands(group, *names):
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield (*names, name), command


def test_every_command_takes_an_identity_or_has_a_reason_not_to():
    taking = set()
    for names, command in commands(cli):
        options = {option for each in command.params for option in each.opts}
        if "-i" in options:
            wanted = {"--identity-file", "-p", "--passphrase-file"}
            # The processes of a batch have no terminal on which to ask for a passphrase.
            assert wanted - ({"-p"} if names[0] == "batch" else set()) <= options, names
            taking.add(names[0])
        else:
            name = names[names[0] == "batch"]  # a batch does what the command of that name does
            assert name in WITHOUT_IDENTITY, f"{names} takes no identity, and has no reason"
    assert not taking & WITHOUT_IDENTITY.keys()
    assert taking | WITHOUT_IDENTITY.keys() == set(cli.list_commands(None))


@pytest.mark.parametrize(
    "command",
    [
        "ls M", "show M", "check M", "stats M", "get M norm.weight", "hash --tensors M",
        "hash --data-only M", "digest M", "diff M M", "convert M out/", "edit M out.safetensors",
        "edit M out/ --sort", "delta make M M out",
    ],
)  # fmt: skip
def test_a_command_does_with_an_encrypted_model_what_it_does_with_the_plain_one(
    sharded, encrypted, tmp_path, run, command, monkeypatch
):
    """The same lines and the same files; without the identity it says that the model is encrypted."""
    if command.startswith("delta"):
        pytest.importorskip("zstandard", reason="needs the package zstandard")
    sealed = str(tmp_path / encrypted)

    def result(model, *more):
        folder = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        done = run(*[model if word == "M" else word for word in command.split()], *more)
        shown = done.stdout.replace(model, "M").replace(".safetensors.age", ".safetensors")
        written = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*.safetensors")
        }
        return done, shown, written

    plain, *expected = result(sharded)
    read, *found = result(sealed, "-i", str(tmp_path / "me"))
    assert (plain.exit_code, read.exit_code) == (0, 0), read.stderr
    assert found == expected
    refused, _, written = result(sealed)
    # Without it, `digest` is that of the encrypted files, and `show` says for whom they are.
    if command not in {"digest M", "show M"}:
        assert refused.exit_code == 3
        assert "encrypted" in refused.stderr + refused.stdout
        assert not written


@pytest.mark.parametrize("command", ["ls -", "show -", "check -", "stats -", "hash --tensors -"])
@pytest.mark.parametrize("how", ["pipe", "file"])
def test_encrypted_standard_input_is_read(model, me, run, process, command, how):
    def result(path, *more):
        with Path(path).open("rb") as file:
            given = file.read() if how == "pipe" else None
            stdin = subprocess.PIPE if how == "pipe" else file
            with process(*command.split(), *more, stdin=stdin) as child:
                out, err = child.communicate(given)
        return child.returncode, out, err

    assert run("encrypt", model, "-r", me, "-o", "a.age").exit_code == 0
    expected = result(model)
    assert expected[0] == 0
    assert result("a.age", "-i", "me") == expected
    status, out, err = result("a.age")
    assert status == 3
    assert b"encrypted file (age)" in out + err
    status, out, err = result(model, "-i", "me")
    assert status == (1 if command == "check -" else 3)  # for check, it is a finding
    assert b"not encrypted" in out + err


def test_a_model_is_not_edited_in_place_where_that_would_write_plaintext(encrypted, run):
    before = {path.name: path.read_bytes() for path in Path(encrypted).iterdir()}
    result = run("edit", encrypted, "--in-place", "--sort", "-i", "me")
    assert result.exit_code == 1
    assert "not changed in place" in result.stderr
    assert {path.name: path.read_bytes() for path in Path(encrypted).iterdir()} == before


def test_a_key_in_the_place_of_its_file_is_refused_and_not_printed(encrypted, run):
    secret = Path("me").read_text().split()[-1]
    for wrong in (secret, secret.lower(), f" {secret}"):
        for command in (["ls", encrypted], ["rekey", encrypted, "--rotate"]):
            result = run(*command, "-i", wrong)
            assert result.exit_code == 2
            assert "seen in the list of processes" in result.stderr
            assert secret[20:40] not in (result.stdout + result.stderr).upper()


def test_a_file_of_keys_that_others_can_read_is_noted(encrypted, run):
    assert run("ls", encrypted, "-i", "me").stderr == ""
    os.chmod("me", 0o644)
    result = run("ls", encrypted, "-i", "me")
    assert result.exit_code == 0
    assert "others can read me (mode 644)" in result.stderr


def test_files_are_hashed_as_they_are(encrypted, run):
    result = run("hash", encrypted, "-i", "me")
    assert result.exit_code == 2
    assert "hashed as they are" in result.stderr


def test_a_bill_of_materials_says_what_is_in_encrypted_files(sharded, encrypted, run):
    plain, sealed, unread = (
        json.loads(run("bom", *words).stdout)
        for words in ([sharded], [encrypted, "-i", "me"], [encrypted])
    )

    def facts(document):
        component = document["metadata"]["component"]
        return component["properties"], component.get("modelCard")

    assert facts(sealed) == facts(plain)
    assert facts(unread)[0][0]["value"] == "0"
    name = "model-00001-of-00003.safetensors"
    (one,) = (each for each in sealed["components"] if each["name"] == f"{name}.age")
    digest = hashlib.sha256(Path(encrypted, f"{name}.age").read_bytes()).hexdigest()
    assert one["hashes"][0]["content"] == digest
    assert {"name": "safeweights:encrypted", "value": "1 of type `X25519`"} in one["properties"]
    assert "safeweights:tensors" in {each["name"] for each in one["properties"]}


def test_a_pulled_model_is_judged_by_what_is_in_it(sharded, encrypted, run, tmp_path):
    """Without the identity nothing is known of encrypted files, so that a policy refuses them."""
    assert run("keygen", "signer").exit_code == 0
    assert run("sign", encrypted, "--key", "signer").exit_code == 0
    Path("policy.toml").write_text(
        '[signers.us]\npublic_key = "signer.pub"\n[[rules]]\npattern = "*"\nsigners = ["us"]\n'
    )
    given = ["pull", encrypted, "pulled", "--policy", "policy.toml", "--name", "model"]
    assert run(*given).exit_code == 1
    assert not os.path.exists("pulled")
    result = run(*given, "-i", "me")
    assert result.exit_code == 0, result.stdout
    assert sorted(os.listdir("pulled")) == sorted(os.listdir(encrypted))
    Path(sharded, "modeling.py").write_text("import os")
    recipient = dict(run("keygen", "you", "--age").rows)["recipient"]
    assert run("encrypt", sharded, "-r", recipient, "-o", "evil.age").exit_code == 0
    assert run("sign", "evil.age", "--key", "signer").exit_code == 0
    given = ["pull", "evil.age", "evil", "--policy", "policy.toml", "--name", "model", "-i", "you"]
    result = run(*given, "--explain")
    assert result.exit_code == 1
    assert "modeling.py" in result.stdout


@pytest.mark.parametrize("suffix", [".age", ".jwe"])
def test_a_named_file_is_not_replaced_by_another_form_of_it(me, run, tmp_path, suffix):
    safeweights.numpy.save_file({"plain": np.zeros(1)}, "plain")
    safeweights.numpy.save_file({"secret": np.zeros(2)}, "a")
    name = f"a{suffix}"
    for command in ("ls", "decrypt", "digest"):
        result = run(command, name, "-i", "me")
        assert result.exit_code == 3, command
        assert f"{name}: No such file or directory" in result.stderr
    other = ".jwe" if suffix == ".age" else ".age"
    assert run("encrypt", "a", "-r", me, "-o", f"a{other}").exit_code == 0
    assert "No such file" in run("ls", name, "-i", "me").stderr
    assert run("encrypt", "plain", "-r", me, "-o", name).exit_code == 0
    assert run("ls", name, "-i", "me").rows[0][0] == "plain"
    assert run("ls", f"a{other}", "-i", "me").rows[0][0] == "secret"
