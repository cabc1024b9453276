"""Files that KServe encrypts: read whole, or refused."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encrypted_files import (
    DATA,
    decrypt_bytes,
    needs_ssh,
)

import safeweights
import safeweights.numpy
from safeweights import trust
from safeweights.errors import FormatError, SafetensorError
from safeweights.storage import BytesSource
from safeweights.trust import (
    AccessError,
    Stanza,
    generate_identity,
)
from safeweights.trust.access.identities import read_identities
from safeweights.trust.access.keyring import encrypted_for

# ---- JWE, as KServe's tools write it


def jwe(
    data: bytes, key: bytes, algorithm: str = "dir", wrapped: bytes = b"", **more: Any
) -> bytes:
    """A compact JWE (RFC 7516), made with the primitives alone."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    def url(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    header = url(json.dumps({"alg": algorithm, "enc": "A256GCM", **more}).encode())
    nonce = os.urandom(12)
    sealed = AESGCM(key).encrypt(nonce, data, header)
    return b".".join([header, url(wrapped), url(nonce), url(sealed[:-16]), url(sealed[-16:])])


KEY = bytes(range(32))


@pytest.fixture(params=["jwk", "k", "raw"])
def jwe_key(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file with a symmetric key, in each of the forms that KServe reads."""
    encoded = base64.urlsafe_b64encode(KEY).rstrip(b"=").decode()
    jwk = json.dumps({"kty": "oct", "k": encoded, "alg": "A256GCM", "key_ops": ["decrypt"]})
    content = {"jwk": jwk.encode(), "k": f"{encoded}\n".encode(), "raw": KEY}[request.param]
    (tmp_path / "jwe-key").write_bytes(content)
    return tmp_path / "jwe-key"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 3 << 20])
@pytest.mark.parametrize("wrapping", ["dir", "A256KW"])
def test_a_jwe_is_read(jwe_key: Path, size: int, wrapping: str) -> None:
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap

    data = os.urandom(size)
    content = KEY if wrapping == "dir" else os.urandom(32)
    wrapped = b"" if wrapping == "dir" else aes_key_wrap(KEY, content)
    sealed = jwe(data, content, wrapping, wrapped)
    assert decrypt_bytes(sealed, jwe_key) == data
    assert decrypt_bytes(sealed + b"\n", jwe_key) == data
    assert encrypted_for(BytesSource(sealed)) == [f"JWE {wrapping}"]
    with pytest.raises(AccessError, match=f"JWE {wrapping}"):
        decrypt_bytes(sealed, generate_identity())


@needs_ssh
@pytest.mark.parametrize("algorithm", ["RSA-OAEP", "RSA-OAEP-256"])
def test_a_jwe_for_an_rsa_key_is_read(ssh_keys: Path, algorithm: str) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    (identity,) = read_identities(ssh_keys / "rsa")
    digest = hashes.SHA1() if algorithm == "RSA-OAEP" else hashes.SHA256()
    oaep = padding.OAEP(padding.MGF1(digest), digest, None)
    wrapped = identity._key.public_key().encrypt(KEY, oaep)  # type: ignore[attr-defined]
    assert decrypt_bytes(jwe(DATA, KEY, algorithm, wrapped), ssh_keys / "rsa") == DATA
    for wrong in (ssh_keys / "ed25519", ssh_keys / "rsa-locked"):
        with pytest.raises(AccessError):
            decrypt_bytes(jwe(DATA, KEY, algorithm, wrapped), wrong)
    with pytest.raises(AccessError):
        decrypt_bytes(jwe(DATA, KEY, algorithm, bytes(256)), ssh_keys / "rsa")


@pytest.mark.parametrize("algorithm", ["dir", "A256KW", "RSA-OAEP", "RSA-OAEP-256"])
@pytest.mark.parametrize("size", [0, 5000])
def test_files_are_those_of_another_library(tmp_path: Path, algorithm: str, size: int) -> None:
    jwcrypto = pytest.importorskip("jwcrypto.jwk", reason="needs the package jwcrypto")
    from jwcrypto.jwe import JWE

    if algorithm.startswith("RSA"):
        key = jwcrypto.JWK.generate(kty="RSA", size=2048)
        (tmp_path / "key").write_bytes(key.export_to_pem(private_key=True, password=None))
    else:
        key = jwcrypto.JWK.generate(kty="oct", size=256, kid="model")
        (tmp_path / "key").write_text(key.export())
    header = {"alg": algorithm, "enc": "A256GCM", "kid": "model"}
    theirs = JWE(DATA[:size], protected=json.dumps(header))
    theirs.add_recipient(key)
    sealed = theirs.serialize(compact=True).encode()
    assert decrypt_bytes(sealed, tmp_path / "key") == DATA[:size]
    with pytest.raises(AccessError, match=f"JWE {algorithm}"):
        decrypt_bytes(sealed, generate_identity())


def test_a_key_broker_gives_the_key_of_a_jwe(tmp_path: Path) -> None:
    """A folder as KServe serves it: each file is encrypted, in its place or with `.jwe`."""
    folder = tmp_path / "model"
    folder.mkdir()
    content = safeweights.numpy.save({"a": np.arange(4.0)})
    (folder / "model.safetensors").write_bytes(jwe(content, KEY, kid="kbs:///default/key/1"))
    asked: list[Stanza] = []

    def broker(stanza: Stanza) -> bytes | None:
        asked.append(stanza)
        return KEY

    assert list(safeweights.numpy.load_file(folder, identity=broker)["a"]) == [0, 1, 2, 3]
    assert asked[0] == Stanza("jwe", ("dir", "kbs:///default/key/1"), b"")
    (folder / "model.safetensors").rename(folder / "model.safetensors.jwe")
    for target in (folder, folder / "model.safetensors.jwe", folder / "model.safetensors"):
        assert list(safeweights.open(target, identity=broker)) == ["a"]
    with pytest.raises(SafetensorError, match=r"encrypted|folder has no"):
        safeweights.open(folder)
    with pytest.raises(AccessError):
        safeweights.open(folder, identity=lambda stanza: b"short")


@pytest.mark.parametrize(
    "change",
    ["bit", "tag", "header", "cut", "parts", "letters", "padding", "canonical", "length"],
)
def test_a_jwe_that_was_changed_is_refused(change: str) -> None:
    sealed = jwe(DATA[:1000], KEY)
    header, wrapped, nonce, text, tag = sealed.split(b".")
    changed = {
        "bit": sealed.replace(text[100:110], text[110:120]),
        "tag": sealed[:-22] + b"A" * 22,
        "header": jwe(b"", KEY, kid="other").split(b".")[0] + sealed[len(header) :],
        "cut": b".".join([header, wrapped, nonce, text[:-4], tag]),
        "parts": b".".join([header, wrapped, nonce, text]),
        "letters": b".".join([header, wrapped, nonce, b"*" + text[1:], tag]),
        "padding": b".".join([header, wrapped, nonce, text + b"=", tag]),
        "canonical": b".".join(
            [header, wrapped, nonce, text, tag[:-1] + (b"B" if tag[-1:] != b"B" else b"C")]
        ),
        "length": b".".join([header, wrapped, nonce, text + b"AAA", tag]),
    }[change]
    with pytest.raises(FormatError) as caught:
        decrypt_bytes(changed, trust.access.jwe.JweIdentity(KEY))  # type: ignore[attr-defined]
    assert caught.value.rule == "jwe"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"zip": "DEF"}, "`zip` is not supported"), ({"crit": ["x"]}, "`crit` is not supported"),
        ({"enc": "A128CBC-HS256"}, "must be A256GCM"), ({"alg": "PBES2-HS256+A128KW"}, "not supported"),
        ({"enc": None}, "missing"), ({"alg": 5}, "expected a string"), ({"kid": "x" * 1000}, "longer than"),
    ],
)  # fmt: skip
def test_jwe_headers_are_strict(fields: dict[str, Any], words: str) -> None:
    algorithm = fields.pop("alg", "dir")
    with pytest.raises(FormatError, match=words):
        decrypt_bytes(jwe(DATA, KEY, algorithm, **fields), trust.access.jwe.JweIdentity(KEY))  # type: ignore[attr-defined]
