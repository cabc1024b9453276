"""Recipients and identities as people write them, and bounds on what a file may ask for."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from encrypted_files import (
    DATA,
    QUICK,
    decrypt_bytes,
    encrypt_bytes,
    needs_ssh,
    public,
    run,
)

from safeweights.errors import FormatError, MissingDependencyError
from safeweights.storage import BytesSource
from safeweights.trust import (
    AccessError,
    DocumentError,
    Keyring,
    Passphrase,
    Stanza,
    parse_recipient,
    read_recipients,
)
from safeweights.trust.access import bech32, recipients, ssh, tagged
from safeweights.trust.access.armor import armored
from safeweights.trust.access.header import (
    MAX_HEADER,
    MAX_STANZAS,
    build_header,
    decode64,
    parse_header,
    read_header,
)
from safeweights.trust.access.identities import as_identities, read_identities
from safeweights.trust.access.keyring import as_keyring
from safeweights.trust.access.tagged import TaggedRecipient

# ---- recipients and identities as people write them


def test_a_file_of_recipients_has_comments_and_any_line_ending(ann: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipients"
    path.write_bytes(f"\ufeff# people\r\n\r\n{public(ann)}\r\n  {public(ann)}  \n#end".encode())
    assert [each.label for each in read_recipients(path)] == [public(ann)] * 2
    assert [each.label for each in recipients.as_recipients(path)] == [public(ann)] * 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "there is no recipient"), (b"# only a comment", "there is no recipient"),
        (b"age1xyz", "line 1: `age1xyz` is no recipient"), (b"\xff\xfe", "UTF-8"),
        (b"#\nage1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwq", "line 2: .* no recipient"),
        (b"AGE1ZVKYG2LQZRAA2LNJVQEJ32NKUU0UES2S82HZRYE869XEEXVN73EQUNUJWJ", "is no recipient"),
        (b"ssh-ed25519 AAAA", "no SSH public key"), (b"ssh-dss AAAA", "no SSH public key"),
    ],
)  # fmt: skip
def test_a_malformed_file_of_recipients_names_the_line(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "recipients").write_bytes(content)
    with pytest.raises(DocumentError, match=words):
        read_recipients(tmp_path / "recipients")


@pytest.mark.parametrize(
    "point", ["00" * 32, "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"]
)
def test_a_recipient_of_low_order_is_refused(point: str) -> None:
    with pytest.raises(DocumentError, match="low order"):
        parse_recipient(bech32.encode("age", bytes.fromhex(point)))
    with pytest.raises(DocumentError, match="low order"):
        parse_recipient(bech32.encode("age1pq", bytes(1184) + bytes.fromhex(point)))


def test_bech32_is_strict() -> None:
    good = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
    found = bech32.decode(good)
    assert found is not None
    assert bech32.encode(*found) == good
    for wrong in (
        good[:-1], good + "q", good.replace("1", "2", 1), good[:10] + good[10:].upper(), "", "1", "1qqqqqq",
        good[:5] + "b" + good[6:], "\u00e9" + good, " " + good, good[:4],
    ):  # fmt: skip
        assert bech32.decode(wrong) is None, wrong
    for size in range(70):
        data = os.urandom(size)
        assert bech32.decode(bech32.encode("x", data)) == ("x", data)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "there is no identity"), (b"# a comment\r\n", "there is no identity"),
        (b"nonsense", "line 1: this is no identity"), (b"\xff\xfe\xfd", "not a file of identities"),
        (b"age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj", "this is a recipient"),
        (b"ssh-ed25519 AAAA", "this is a recipient"),
        (b"AGE-PLUGIN-YUBIKEY-1QQQ", "the plugin age-plugin-yubikey, and plugins are not run"),
        (b"age-plugin-\xc3\xa9", "of age, and plugins are not run"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "not an SSH private key"),
        (b'{"kty": "RSA", "d": "topsecret"}', "symmetric"),
        (b'{"kty": "oct", "k": "dG9vIHNob3J0"}', "32 bytes"),
        (b'{"k": "dG9wc2VjcmV0"}', "symmetric"), (b'{"kty": "oct", "k": 5}', "symmetric"),
        (b"{", "symmetric"),
    ],
)  # fmt: skip
def test_a_malformed_file_of_identities_says_what_it_is(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "identities").write_bytes(content)
    with pytest.raises(DocumentError, match=words):
        read_identities(tmp_path / "identities")


def test_a_damaged_identity_is_not_quoted(ann: Path, tmp_path: Path) -> None:
    text = ann.read_text().split()[-1]
    damaged = text[:30] + ("Q" if text[30] != "Q" else "P") + text[31:]
    (tmp_path / "damaged").write_text(damaged)
    for wrong in (damaged, tmp_path / "damaged", text[:40], f" {damaged.lower()} "):
        with pytest.raises(DocumentError, match="damaged") as caught:
            as_identities(wrong)
        assert text[20:30] not in str(caught.value).upper()


def test_a_private_key_is_no_recipient_and_is_not_quoted(ann: Path, tmp_path: Path) -> None:
    secret = ann.read_text().split()[-1]
    for wrong in (secret, ann, f"  {secret.lower()}", "-----BEGIN OPENSSH PRIVATE KEY-----"):
        with pytest.raises(DocumentError, match=r"private key.*kept secret") as caught:
            recipients.as_recipients(wrong)
        assert secret[20:30] not in str(caught.value).upper()


def test_a_path_given_as_recipient_is_hinted_at(ann: Path) -> None:
    with pytest.raises(DocumentError, match="give a file of recipients with -R"):
        parse_recipient(str(ann))


@pytest.mark.parametrize("wrong", [5, b"bytes", None])
def test_other_objects_are_no_identities_or_recipients(wrong: Any) -> None:
    with pytest.raises(TypeError, match="identity= takes"):
        as_identities(wrong)
    if not isinstance(wrong, bytes):
        with pytest.raises(TypeError, match="a recipient is"):
            recipients.as_recipients(wrong)


def test_a_file_of_identities_can_have_a_passphrase(ann: Path, bob: Path, tmp_path: Path) -> None:
    data = encrypt_bytes(ann.read_bytes(), Passphrase("pass", work_factor=QUICK))
    sealed = encrypt_bytes(b"x", public(ann))
    for content in (data, armored(data)):
        (tmp_path / "locked").write_bytes(content)
        keyring = as_keyring(tmp_path / "locked", passphrase=lambda: "pass")
        assert keyring.open(BytesSource(sealed)).read(0, 1) == b"x"
        with pytest.raises(AccessError, match="wrong"):
            read_identities(tmp_path / "locked", lambda: "other")
        with pytest.raises(AccessError, match="needs a passphrase"):
            read_identities(tmp_path / "locked")


@needs_ssh
def test_ssh_keys_with_a_passphrase(ssh_keys: Path) -> None:
    pytest.importorskip("bcrypt")
    for kind in ("ed25519", "rsa"):
        path = ssh_keys / f"{kind}-locked"
        sealed = encrypt_bytes(DATA, Path(f"{path}.pub"))
        keyring = as_keyring(path, passphrase=lambda: "secret")
        assert keyring.open(BytesSource(sealed)).read(0, 10) == DATA[:10]
        with pytest.raises(AccessError, match="wrong"):
            read_identities(path, lambda: "other")
        with pytest.raises(AccessError, match="needs a passphrase"):
            read_identities(path)


@needs_ssh
def test_ssh_keys_of_other_types_are_refused(tmp_path: Path) -> None:
    run("ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", tmp_path / "ecdsa")
    run("ssh-keygen", "-q", "-t", "rsa", "-b", "1024", "-N", "", "-f", tmp_path / "short")
    for name in ("ecdsa", "short"):
        with pytest.raises(DocumentError, match="ssh-ed25519, or ssh-rsa"):
            read_identities(tmp_path / name)
        with pytest.raises(DocumentError, match="cannot be a recipient"):
            read_recipients(tmp_path / f"{name}.pub")


@needs_ssh
@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_malformed_ssh_stanzas_are_refused(ssh_keys: Path, kind: str) -> None:
    (identity,) = read_identities(ssh_keys / kind)
    assert isinstance(identity, ssh.SshIdentity)
    stanza = identity.recipient.wrap(bytes(16))
    tag = stanza.arguments[0]
    assert identity.unwrap([stanza], "file") == (bytes(16), identity.recipient.label)
    wrong = [
        stanza._replace(arguments=(tag, *stanza.arguments[1:], "AAAA")),
        stanza._replace(arguments=()),
    ]
    if kind == "ed25519":
        wrong += [stanza._replace(body=bytes(31)), stanza._replace(arguments=(tag, "A" * 43))]
    for each in wrong:
        with pytest.raises(FormatError, match="malformed"):
            identity.unwrap([each], "file")
    assert (
        identity.unwrap([stanza._replace(arguments=("AAAAAA", *stanza.arguments[1:]))], "file")
        is None
    )
    assert identity.unwrap([stanza._replace(body=bytes(len(stanza.body)))], "file") is None
    long = identity.recipient.wrap(bytes(17))
    with pytest.raises(FormatError, match=r"16 bytes|32 bytes"):
        identity.unwrap([long], "file")


# ---- keys in hardware, and plugins


def hardware_key() -> tuple[Any, str]:
    """A P-256 key, in software for the test, and the recipient that its plugin would print."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = ec.generate_private_key(ec.SECP256R1())
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    return key, bech32.encode("age1tag", point)


def ask_hardware(key: Any, stanza: Stanza) -> bytes | None:
    """What a callable identity does for such a key."""
    from cryptography.hazmat.primitives import hpke

    if stanza.type != "p256tag":
        return None
    share = decode64(stanza.arguments[1])
    assert share is not None
    suite = hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
    found: bytes = suite.decrypt(share + stanza.body, key, b"age-encryption.org/p256tag")
    return found


def test_a_file_is_encrypted_for_a_key_in_hardware(ann: Path) -> None:
    key, recipient = hardware_key()
    data = encrypt_bytes(DATA, recipient, public(ann))
    assert decrypt_bytes(data, partial(ask_hardware, key)) == DATA
    assert decrypt_bytes(data, ann) == DATA
    stanzas = parse_header(data, "file").stanzas
    mine, other = parse_recipient(recipient), parse_recipient(hardware_key()[1])
    assert isinstance(mine, TaggedRecipient)
    assert isinstance(other, TaggedRecipient)
    assert mine.is_among(stanzas)
    assert not other.is_among(stanzas)
    assert recipient in repr(mine)


def test_files_for_keys_in_hardware_are_those_of_pyrage() -> None:
    pyrage = pytest.importorskip("pyrage")
    key, recipient = hardware_key()
    theirs = pyrage.encrypt(DATA, [pyrage.tag.Recipient.from_str(recipient)])
    assert decrypt_bytes(theirs, partial(ask_hardware, key)) == DATA
    mine = parse_recipient(recipient)
    assert isinstance(mine, TaggedRecipient)
    assert mine.is_among(parse_header(theirs, "file").stanzas)


def test_the_recipient_of_the_specification_is_read() -> None:
    text = "age1tag1qt8lw0ual6avlwmwatk888yqnmdamm7xfd0wak53ut6elz5c4swx2yqdj4e"
    assert parse_recipient(text).kind == "p256tag"
    assert parse_recipient(text).label == text


@pytest.mark.parametrize(
    ("prefix", "size", "words"),
    [
        ("age1tag", 32, "a public key of 32 bytes"), ("age1tag", 33, "is no recipient"),
        ("age1tagpq", 1249, "none that the package `cryptography` has"), ("age1", 32, "wrong length"),
        ("age1yubikey", 33, "the plugin age-plugin-yubikey, and plugins are not run"),
        ("age", 31, "wrong length"), ("age1pq", 31, "wrong length"), ("other", 32, "of another kind"),
    ],
)  # fmt: skip
def test_recipients_that_cannot_be_used_say_why(prefix: str, size: int, words: str) -> None:
    with pytest.raises(DocumentError, match=words):
        parse_recipient(bech32.encode(prefix, bytes(size)))


def test_hardware_keys_need_a_new_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    recipient = parse_recipient(hardware_key()[1])
    real = tagged.need_cryptography

    def older(module: str) -> Any:
        if module.endswith("hpke"):
            raise MissingDependencyError("not there")
        return real(module)

    monkeypatch.setattr(tagged, "need_cryptography", older)
    with pytest.raises(MissingDependencyError, match="cryptography>=50"):
        recipient.wrap(bytes(16))


# ---- bounds


def test_headers_are_bounded_before_they_are_parsed(ann: Path) -> None:
    start = b"age-encryption.org/v1\n"
    key = bytes(16)
    for data in (
        start + b"-> a\n\n" * (MAX_STANZAS + 1) + b"--- ",
        start + b"-> a " + b"b" * (1 << 15) + b"\n\n" + b"--- ",
        start + b"-> a\n" + (b"A" * 64 + b"\n") * 300 + b"\n--- ",
        start + b"-> a\n\n" * (MAX_HEADER // 4),
        start + b"A" * (2 * MAX_HEADER),
    ):
        whole = data + b"A" * 43 + b"\n" + bytes(100)
        with pytest.raises(FormatError) as caught:
            read_header(BytesSource(whole, "file"))
        assert caught.value.rule == "age-header"
    many = [Stanza("a", (), b"")] * MAX_STANZAS
    assert len(read_header(BytesSource(build_header(many, key))).stanzas) == MAX_STANZAS


def test_only_the_beginning_of_a_large_file_is_read_for_its_header(ann: Path) -> None:
    reads: list[int] = []

    class Counting(BytesSource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            reads.append(len(buffer))
            super().read_into(offset, buffer)

    read_header(Counting(encrypt_bytes(DATA, public(ann))))
    assert reads == [4096]
    reads.clear()
    with pytest.raises(FormatError, match="not an age file"):
        read_header(Counting(bytes(1 << 22)))
    assert reads == [4096]


def test_every_cut_of_a_header_is_refused(ann: Path) -> None:
    whole = encrypt_bytes(b"", public(ann))
    size = parse_header(whole, "file").size
    for length in range(size):
        with pytest.raises(FormatError) as caught:
            parse_header(whole[:length], "file")
        assert caught.value.rule == "age-header"


def test_a_work_factor_above_the_maximum_costs_nothing() -> None:
    data = encrypt_bytes(b"", Passphrase("pass", work_factor=QUICK))
    asked: list[int] = []

    def ask() -> str:
        asked.append(1)
        return "pass"

    with pytest.raises(FormatError, match=f"work factor `{QUICK}` is more than {QUICK - 1}"):
        decrypt_bytes(data, Passphrase(ask, max_work_factor=QUICK - 1))
    assert not asked
    with pytest.raises(AccessError, match="empty or not text"):
        decrypt_bytes(data, Passphrase(""))


def test_an_empty_keyring_opens_nothing(ann: Path) -> None:
    with pytest.raises(AccessError, match="no identity opens"):
        Keyring([]).open(BytesSource(encrypt_bytes(b"", public(ann))))
