"""A model folder, keys and a small certificate authority, made once."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import safeweights.numpy

sys.path.insert(0, str(Path(__file__).parent))

from encrypted_files import run

from safeweights.trust.access.identities import generate_identity, write_identity
from safeweights.trust.signatures.certificates import CertificateTrust
from safeweights.trust.signatures.keys import FileSigner, load_private_key

NOW = dt.datetime.now(dt.timezone.utc)
DAY = dt.timedelta(days=1)


def safetensors(tensors: dict[str, bytes]) -> bytes:
    """A file of U8 vectors."""
    offset, header = 0, {}
    for name, data in tensors.items():
        span = [offset, offset + len(data)]
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": span}
        offset = span[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(tensors.values())


def noise(seed: str, size: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as published: weights of several blocks, config, tokenizer, a nested part."""
    root = tmp_path / "model"
    (root / "vae").mkdir(parents=True)
    (root / "model.safetensors").write_bytes(
        safetensors({"a": noise("a", 700_000), "b": noise("b", 700_000)})
    )
    (root / "vae" / "weights.safetensors").write_bytes(safetensors({"c": noise("c", 1000)}))
    (root / "config.json").write_text('{"model_type": "bert"}')
    (root / "vae.txt").write_text("sorts between vae and vae/ only by code point")
    return root


@dataclass
class Authority:
    """One certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def signer(self) -> FileSigner:
        return load_private_key(private_pem(self.key))


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def certify(
    name: str,
    issuer: Authority | None = None,
    *,
    authority: bool = False,
    begin: dt.datetime = NOW - DAY,
    end: dt.datetime = NOW + DAY,
    purposes: list[Any] | None = None,
    usage: bool = True,
    path_length: int | None = None,
    signs: bool | None = None,
    issues: bool | None = None,
    names: list[x509.GeneralName] | None = None,
    critical_purposes: bool = False,
) -> Authority:
    """Make a certificate; without an issuer, a root.

    The key usage is that of an authority or of a signer, unless `signs` or `issues` say otherwise.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
        ]
    )
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(authority, path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if issuer:
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    if usage:
        builder = builder.add_extension(
            x509.KeyUsage(
                digital_signature=not authority if signs is None else signs,
                key_cert_sign=authority if issues is None else issues,
                content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False,
            ), critical=True,
        )  # fmt: skip
    if not authority:
        builder = builder.add_extension(
            x509.SubjectAlternativeName(names or [x509.RFC822Name(f"{name}@example.org")]),
            critical=False,
        )
    if purposes is None and not authority:
        purposes = [ExtendedKeyUsageOID.CODE_SIGNING]
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=critical_purposes)
    return Authority(builder.sign(signer, hashes.SHA256()), key)


@dataclass
class PKI:
    root: Authority
    intermediate: Authority
    leaf: Authority

    @property
    def chain(self) -> list[bytes]:
        return [self.leaf.der, self.intermediate.der]

    def trust(self, **changes: Any) -> CertificateTrust:
        return CertificateTrust(
            **{"roots": (self.root.der,), "subject": "O=Example,CN=releases", **changes}
        )


@pytest.fixture(scope="session")
def pki() -> PKI:
    root = certify("root", authority=True)
    intermediate = certify("intermediate", root, authority=True)
    return PKI(root, intermediate, certify("releases", intermediate))


@pytest.fixture(scope="session")
def make_certificate() -> Any:
    return certify


@pytest.fixture(scope="session")
def signer() -> FileSigner:
    return load_private_key(private_pem(ec.generate_private_key(ec.SECP256R1())))


@pytest.fixture(scope="session")
def stranger() -> FileSigner:
    return load_private_key(private_pem(ec.generate_private_key(ec.SECP256R1())))


@pytest.fixture(scope="session")
def vectors() -> Path:
    return Path(__file__).parent / "vectors"


@pytest.fixture(scope="session")
def make_safetensors() -> Any:
    return safetensors


@pytest.fixture
def ann(tmp_path: Path) -> Path:
    """A file with Ann's identity."""
    write_identity(tmp_path / "ann", generate_identity())
    return tmp_path / "ann"


@pytest.fixture
def bob(tmp_path: Path) -> Path:
    write_identity(tmp_path / "bob", generate_identity())
    return tmp_path / "bob"


@pytest.fixture
def sharded(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A folder of shards with an index and a configuration."""
    tensors = {f"w{n}": np.random.default_rng(n).random((200, 200)) for n in range(6)}
    folder = tmp_path / "model"
    safeweights.numpy.save_file(tensors, folder, max_shard_size=700_000)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "sub").mkdir()
    (folder / "sub" / "note.txt").write_text("note")
    return folder, tensors


@pytest.fixture(scope="module")
def ssh_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SSH keys of both types, plain and with the passphrase `secret`."""
    folder = tmp_path_factory.mktemp("ssh")
    for kind in ("ed25519", "rsa"):
        bits = ("-b", "2048") if kind == "rsa" else ()
        run("ssh-keygen", "-q", "-t", kind, *bits, "-N", "", "-C", "", "-f", folder / kind)
        for suffix in ("", ".pub"):
            shutil.copy(folder / f"{kind}{suffix}", folder / f"{kind}-locked{suffix}")
        run("ssh-keygen", "-q", "-p", "-N", "secret", "-f", folder / f"{kind}-locked")
    return folder
