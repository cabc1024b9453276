"""Keys: made, read, used through a callable, and never shown."""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils
from hypothesis import given
from hypothesis import strategies as st

from safeweights.errors import MissingDependencyError
from safeweights.trust.errors import (
    DocumentError,
    PolicyViolationError,
    TrustError,
    VerificationError,
)
from safeweights.trust.policies import deciding
from safeweights.trust.policies import policy as policies
from safeweights.trust.signatures import keys, signing, verifying

if TYPE_CHECKING:
    from safeweights.trust.signatures.keys import FileSigner

SECRET = "correct horse battery staple"


@pytest.mark.parametrize("curve", keys.CURVES)
@pytest.mark.parametrize("password", [None, SECRET, SECRET.encode()])
def test_keygen(tmp_path: Path, curve: str, password: str | bytes | None) -> None:
    path = str(tmp_path / "key")
    public = keys.generate_key(path, curve=curve, password=password)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert (b"ENCRYPTED" in Path(path).read_bytes()) == bool(password)
    signer = keys.load_private_key(path, password)
    assert signer.public_key == public == keys.load_public_key(path + ".pub")
    public.verify(signer.sign(b"message"), b"message")
    with pytest.raises(VerificationError) as caught:
        public.verify(signer.sign(b"message"), b"massage")
    assert caught.value.reason == "bad-signature"


def test_no_key_is_ever_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    keys.generate_key(str(path))
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        keys.generate_key(str(path))
    path.rename(tmp_path / "moved")
    with pytest.raises(FileExistsError):
        keys.generate_key(str(path))
    assert (tmp_path / "moved").read_bytes() == before
    assert not path.exists()
    for bad in ({"curve": "p192"}, {"password": ""}):
        with pytest.raises(ValueError, match=r"curve|empty"):
            keys.generate_key(str(tmp_path / "other"), **bad)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("prehashed", [True, False])
@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP521R1()])
def test_a_key_that_stays_elsewhere(model: Path, prehashed: bool, curve: Any) -> None:
    key = ec.generate_private_key(curve)
    algorithm = hashes.SHA256() if curve.key_size == 256 else hashes.SHA512()
    given_to: list[bytes] = []

    def service(data: bytes) -> bytes:
        given_to.append(data)
        return key.sign(data, ec.ECDSA(utils.Prehashed(algorithm) if prehashed else algorithm))

    public = keys.wrap_public_key(key.public_key())
    signer = keys.CallableSigner(public, service, prehashed=prehashed)
    signing.sign(str(model), signer)
    verifying.verify(str(model), public)
    assert len(given_to[0]) == algorithm.digest_size if prehashed else len(given_to[0]) > 500


@pytest.mark.parametrize("form", ["der", "numbers", "base64 of der", "base64 of numbers"])
@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_a_command_that_signs(model: Path, tmp_path: Path, form: str, curve: Any) -> None:
    """What PKCS#11 tools and cloud command lines print."""
    key = ec.generate_private_key(curve)
    (tmp_path / "key").write_bytes(pem(key))
    script = tmp_path / "sign.py"
    script.write_text(
        textwrap.dedent(f"""
        import base64, sys
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, utils
        data = sys.stdin.buffer.read()
        kind = {{32: hashes.SHA256, 48: hashes.SHA384, 64: hashes.SHA512}}[len(data)]()
        key = serialization.load_pem_private_key(open(sys.argv[1], "rb").read(), None)
        made = key.sign(data, ec.ECDSA(utils.Prehashed(kind)))
        if "numbers" in {form!r}:
            width = (key.curve.key_size + 7) // 8
            made = b"".join(n.to_bytes(width, "big") for n in utils.decode_dss_signature(made))
        sys.stdout.buffer.write(base64.encodebytes(made) if "base64" in {form!r} else made)
    """)
    )
    public = keys.wrap_public_key(key.public_key())
    command = [sys.executable, str(script), str(tmp_path / "key")]
    signing.sign(model, keys.command_signer(command, public))
    verifying.verify(model, public)


def test_a_command_with_another_key(model: Path, tmp_path: Path, signer: FileSigner) -> None:
    (tmp_path / "key").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    command = ["openssl", "pkeyutl", "-sign", "-inkey", str(tmp_path / "key")]
    with pytest.raises(VerificationError) as caught:
        signing.sign(model, keys.command_signer(command, signer.public_key))
    assert caught.value.reason == "bad-signature"
    assert not (model / "model.sig").exists()


def test_a_callable_that_signs_wrongly(
    model: Path, signer: FileSigner, stranger: FileSigner
) -> None:
    for call in (stranger.sign, lambda _: b"", lambda _: b"junk"):
        with pytest.raises(VerificationError) as caught:
            signing.sign(str(model), keys.CallableSigner(signer.public_key, call))
        assert caught.value.reason == "bad-signature"
    assert not (model / "model.sig").exists()


def pem(key: Any) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_kinds_of_keys_that_are_not_taken() -> None:
    for key in (
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256K1()),
    ):
        with pytest.raises(DocumentError) as caught:
            keys.load_private_key(pem(key))
        assert caught.value.reason == "unsupported-key"
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        with pytest.raises(DocumentError) as caught:
            keys.load_public_key(public)
        assert caught.value.reason == "unsupported-key"


def test_a_private_key_is_not_taken_for_a_public_one() -> None:
    with pytest.raises(DocumentError) as caught:
        keys.load_public_key(pem(ec.generate_private_key(ec.SECP256R1())))
    assert caught.value.reason == "private-key"


@given(st.binary(max_size=200))
def test_any_bytes_as_a_key(data: bytes) -> None:
    for wrapped in (data, b"-----BEGIN PUBLIC KEY-----\n" + data,
                    b"-----BEGIN PRIVATE KEY-----\n" + data):  # fmt: skip
        with pytest.raises(DocumentError):
            keys.load_public_key(wrapped)
        with pytest.raises(DocumentError):
            keys.load_private_key(wrapped, SECRET)


def test_no_secret_is_ever_shown(tmp_path: Path, model: Path) -> None:
    path = str(tmp_path / "key")
    keys.generate_key(path, password=SECRET)
    plain = keys.load_private_key(path, SECRET)
    text = Path(path).read_text()
    half = tmp_path / "half"
    half.write_text(text[: len(text) // 2])
    shown = [repr(plain), str(plain), repr(keys.CallableSigner(plain.public_key, plain.sign))]
    for call in (
        lambda: keys.load_private_key(path),
        lambda: keys.load_private_key(path, "wrong " + SECRET[::-1]),
        lambda: keys.load_private_key(str(half), SECRET),
        lambda: keys.load_private_key(pem(ec.generate_private_key(ec.SECP256R1())), SECRET),
        lambda: keys.load_public_key(path),
    ):
        with pytest.raises(DocumentError) as caught:
            call()
        shown += [repr(caught.value), "".join(traceback.format_exception(caught.value))]
        assert str(caught.value.path) in str(caught.value) or caught.value.path is None
    body = text.splitlines()[1:-1]
    for line in shown:
        assert SECRET not in line
        assert SECRET[::-1] not in line
        assert not any(part in line for part in body)


def test_errors_cross_processes() -> None:
    decision = deciding.decide(policies.Policy(()), policies.Evidence("m", {}))
    for error in (
        DocumentError("m", field="a.b", reason="r", path="p", offset=3),
        VerificationError("m", reason="r", path="p"),
        PolicyViolationError("m", reason="r", decision=decision),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    code = """
    import sys
    sys.modules["cryptography"] = None
    from safeweights.errors import MissingDependencyError
    from safeweights.trust.content import digests; from safeweights.trust.signatures import keys
    open("f", "w").write("x")
    assert digests.hash_file("f").size == 1
    try:
        keys.load_public_key(b"x")
    except MissingDependencyError as error:
        print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(keys.__file__).parents[3])}, check=False,
    )  # fmt: skip
    assert "safeweights[trust]" in done.stdout, done.stderr
    assert issubclass(MissingDependencyError, ImportError)


def test_hints_are_those_of_the_reference(signer: FileSigner) -> None:
    assert signer.public_key.hint == hashlib.sha256(signer.public_key.pem).hexdigest()
    assert signer.public_key.pem.startswith(b"-----BEGIN PUBLIC KEY-----\n")
    assert issubclass(DocumentError, TrustError)
