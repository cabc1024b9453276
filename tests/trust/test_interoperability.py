"""Ours verifies what others sign, others verify what ours signs.

The yardsticks are `model_signing` 1.1.1 (the reference implementation), the Sigstore verifier, and
signatures that earlier versions and the Go implementation published.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import model_signing
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing

from safeweights.errors import MissingDependencyError
from safeweights.trust.errors import DocumentError, TrustError, VerificationError
from safeweights.trust.signatures import bundle as bundles
from safeweights.trust.signatures import keys, signing, verifying
from safeweights.trust.signatures.certificates import CertificateTrust
from safeweights.trust.signatures.keyless import KeylessTrust

if TYPE_CHECKING:
    from safeweights.trust.signatures.keys import FileSigner, PublicKey

CURVES = {"p256": ec.SECP256R1, "p384": ec.SECP384R1, "p521": ec.SECP521R1}


@pytest.fixture(params=sorted(CURVES))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, FileSigner]:
    path = str(tmp_path / "key")
    keys.generate_key(path, curve=request.param)
    return path, keys.load_private_key(path)


def test_the_reference_accepts_a_folder_signed_with_a_key(
    model: Path, pair: tuple[str, FileSigner]
) -> None:
    path, signer = pair
    signed = signing.sign(str(model), signer, release=7)
    assert set(signed.sidecars) == {
        "model.safetensors.swtree", "vae/weights.safetensors.swtree",
    }  # fmt: skip
    verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=path + ".pub")
    verifier.verify(model, signed.signature)
    (model / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="Hash mismatch"):
        model_signing.verifying.Config().use_elliptic_key_verifier(public_key=path + ".pub").verify(
            model, signed.signature
        )


def test_the_reference_accepts_a_file_signed_with_a_key(
    model: Path, pair: tuple[str, FileSigner]
) -> None:
    path, signer = pair
    weights = model / "model.safetensors"
    signed = signing.sign(str(weights), signer)
    assert signed.signature == f"{weights}.sig"
    model_signing.verifying.Config().use_elliptic_key_verifier(public_key=path + ".pub").verify(
        weights, Path(signed.signature)
    )
    assert verifying.verify(str(weights), signer.public_key).signed_by.method == "key"


def test_the_reference_accepts_a_certificate(model: Path, pki: Any, tmp_path: Path) -> None:
    signed = signing.sign(str(model), pki.leaf.signer, certificates=pki.chain)
    (tmp_path / "root.pem").write_bytes(pki.root.pem)
    model_signing.verifying.Config().use_certificate_verifier(
        certificate_chain=[tmp_path / "root.pem"]
    ).verify(model, Path(signed.signature))
    found = verifying.verify(str(model), pki.trust())
    assert found.signed_by.subject == "O=Example,CN=releases"


@pytest.mark.parametrize("method", ["files", "shards"])
def test_what_the_reference_signs_with_a_key(
    model: Path, pair: tuple[str, FileSigner], method: str
) -> None:
    path, signer = pair
    (model / "empty").touch()
    config = hashing.Config().set_ignored_paths(paths=["vae.txt"])
    if method == "shards":
        config = config.use_shard_serialization(shard_size=300_000)
    model_signing.signing.Config().use_elliptic_key_signer(private_key=path).set_hashing_config(
        config
    ).sign(model, model / "model.sig")
    # The reference does not ignore a signature inside the folder on its own.
    found = verifying.verify(str(model), signer.public_key)
    assert found.statement.sharded == (method == "shards")
    assert set(found.unsigned) == {"vae.txt"} | ({"empty"} if method == "shards" else set())
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[650_000] ^= 1
    weights.write_bytes(data)
    with pytest.raises(VerificationError) as caught:
        verifying.verify(str(model), signer.public_key)
    assert caught.value.reason == "digest-mismatch"
    assert caught.value.offset == (600_000 if method == "shards" else None)


@pytest.mark.parametrize("algorithm", ["blake2", "blake3"])
@pytest.mark.parametrize("method", ["files", "shards"])
def test_other_digests(
    model: Path, pair: tuple[str, FileSigner], method: str, algorithm: Any
) -> None:
    path, signer = pair
    config = hashing.Config()
    if method == "files":
        config = config.use_file_serialization(hashing_algorithm=algorithm)
    else:
        config = config.use_shard_serialization(hashing_algorithm=algorithm, shard_size=99_999)
    model_signing.signing.Config().use_elliptic_key_signer(private_key=path).set_hashing_config(
        config
    ).sign(model, model / "model.sig")
    # The reference implementation hashes files whole with BLAKE3, whatever it is asked for.
    sharded = verifying.verify(str(model), signer.public_key).statement.sharded
    assert sharded == (method == "shards" and algorithm == "blake2")
    (model / "config.json").write_text("{}")
    with pytest.raises(VerificationError) as caught:
        verifying.verify(str(model), signer.public_key)
    assert caught.value.reason == ("size-mismatch" if sharded else "digest-mismatch")


def test_blake3_without_its_package(
    model: Path, pair: tuple[str, FileSigner], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, signer = pair
    config = hashing.Config().use_file_serialization(hashing_algorithm="blake3")
    model_signing.signing.Config().use_elliptic_key_signer(private_key=path).set_hashing_config(
        config
    ).sign(model, model / "model.sig")
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(MissingDependencyError, match=r"safeweights\[blake3\]"):
        verifying.verify(str(model), signer.public_key)


def test_the_reference_accepts_links_and_ids(model: Path, pair: tuple[str, FileSigner]) -> None:
    path, signer = pair
    (model / "link").symlink_to("config.json")
    signed = signing.sign(model, signer, allow_symlinks=True, model_id="org/name")
    verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=path + ".pub")
    verifier.set_hashing_config(
        hashing.Config().set_allow_symlinks(True).set_ignored_paths(paths=["model.sig"])
    ).verify(model, Path(signed.signature))


def test_the_reference_orders_by_the_parts_of_a_path(
    model: Path, pair: tuple[str, FileSigner]
) -> None:
    path, signer = pair
    model_signing.signing.Config().use_elliptic_key_signer(private_key=path).sign(
        model, model / "model.sig"
    )
    found = verifying.verify(str(model), signer.public_key)
    names = list(found.statement.resources)
    assert names.index("vae/weights.safetensors") < names.index("vae.txt")


def test_links_that_the_signer_followed(model: Path, pair: tuple[str, FileSigner]) -> None:
    path, signer = pair
    (model / "link").symlink_to("config.json")
    model_signing.signing.Config().use_elliptic_key_signer(private_key=path).set_hashing_config(
        hashing.Config().set_allow_symlinks(True)
    ).sign(model, model / "model.sig")
    assert verifying.verify(str(model), signer.public_key).statement.allow_symlinks
    (model / "link").unlink()
    (model / "link").symlink_to("vae.txt")
    with pytest.raises(VerificationError) as caught:
        verifying.verify(str(model), signer.public_key)
    assert caught.value.reason == "digest-mismatch"


def test_what_the_reference_signs_with_a_certificate(model: Path, pki: Any, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(
        pki.leaf.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (tmp_path / "leaf.pem").write_bytes(pki.leaf.pem)
    (tmp_path / "chain.pem").write_bytes(pki.intermediate.pem)
    model_signing.signing.Config().use_certificate_signer(
        private_key=tmp_path / "key",
        signing_certificate=tmp_path / "leaf.pem",
        certificate_chain=[tmp_path / "chain.pem"],
    ).sign(model, tmp_path / "model.sig")
    found = verifying.verify(str(model), pki.trust(), signature=str(tmp_path / "model.sig"))
    assert found.signed_by.issuer == "O=Example,CN=intermediate"


def test_what_the_reference_signs_for_one_file(model: Path, pair: tuple[str, FileSigner]) -> None:
    path, signer = pair
    weights = model / "model.safetensors"
    model_signing.signing.Config().use_elliptic_key_signer(private_key=path).sign(
        weights, Path(f"{weights}.sig")
    )
    verifying.verify(str(weights), signer.public_key)
    with pytest.raises(VerificationError) as caught:
        verifying.verify(str(model), signer.public_key, signature=f"{weights}.sig")
    assert caught.value.reason == "wrong-model"


class TestPublished:
    """Signatures that other tools published."""

    @pytest.fixture
    def simple(self, tmp_path: Path) -> Path:
        root = tmp_path / "published"
        root.mkdir()
        (root / "signme-1").write_bytes(b"signme-1\n")
        (root / "signme-2").write_bytes(b"signme-2")
        return root

    @pytest.fixture
    def published_key(self, vectors: Path) -> PublicKey:
        parsed = bundles.parse_bundle((vectors / "key-v1.0.0.sig").read_bytes())
        assert parsed.raw_key is not None
        return keys.load_public_key(parsed.raw_key)

    def test_key_with_a_hint(self, simple: Path, published_key: PublicKey, vectors: Path) -> None:
        (simple / "ignore-me").touch()
        found = verifying.verify(
            str(simple), published_key, signature=str(vectors / "key-simple.sig")
        )
        assert found.unsigned == ("ignore-me",)

    def test_key_of_version_1_0(
        self, simple: Path, published_key: PublicKey, vectors: Path
    ) -> None:
        found = verifying.verify(
            str(simple / "signme-1"), published_key, signature=str(vectors / "key-v1.0.0.sig")
        )
        assert list(found.files) == ["signme-1"]

    def test_certificate_of_the_go_implementation(self, simple: Path, vectors: Path) -> None:
        signature = str(vectors / "certificate-go.sig")
        anchor = bundles.parse_bundle(Path(signature).read_bytes()).certificates[1]
        trust = CertificateTrust((anchor,), subject="CN=intermediate-ca")
        found = verifying.verify(str(simple), trust, signature=signature)
        assert found.signed_by.certificate_sha256
        with pytest.raises(VerificationError) as caught:
            verifying.verify(
                str(simple), dataclasses.replace(trust, subject="CN=other"), signature=signature
            )
        assert caught.value.reason == "certificate-identity"

    @pytest.mark.parametrize("change", [{}, {"identity": "eve@example.org"},
                                        {"issuer": "https://example.org"}])  # fmt: skip
    def test_keyless_without_a_network(
        self, simple: Path, vectors: Path, change: dict[str, str], no_network: None
    ) -> None:
        (simple / "signme-1").write_bytes(b"signme-1")
        trust = KeylessTrust("stefanb@us.ibm.com", "https://sigstore.verify.ibm.com/oauth2")
        signature = str(vectors / "keyless-v1.1.0.sig")
        if change:
            with pytest.raises(VerificationError) as caught:
                verifying.verify(
                    str(simple), dataclasses.replace(trust, **change), signature=signature
                )
            assert caught.value.reason == "keyless"
        else:
            found = verifying.verify(str(simple), trust, signature=signature)
            assert found.signed_by.recorded == "2025-10-10T02:12:20+00:00"

    def test_keyless_that_was_tampered_with(
        self, simple: Path, vectors: Path, tmp_path: Path
    ) -> None:
        (simple / "signme-1").write_bytes(b"signme-1")
        trust = KeylessTrust("stefanb@us.ibm.com", "https://sigstore.verify.ibm.com/oauth2")
        text = (vectors / "keyless-v1.1.0.sig").read_text()
        changes = [
            ('"integratedTime":"1760062340"', '"integratedTime":"1760062341"'),
            ("MEUCIBjOA8VWIbY", "MEUCIBjOA8VWIbZ"),
            ("MIIC4TCCAmegAwIBAgIUa3", "MIIC4TCCAmegAwIBAgIUa4"),
            ("ewogICJfdHlwZSI6ICJodHRw", "ewogICJfdHlwZSI6ICJodHRx"),
            ('"rootHash":"V0NA', '"rootHash":"V0NB'),
        ]
        for old, new in changes:
            assert old in text
            (tmp_path / "bad.sig").write_text(text.replace(old, new))
            with pytest.raises(TrustError):
                verifying.verify(str(simple), trust, signature=str(tmp_path / "bad.sig"))

    def test_trusted_roots_of_the_callers(
        self, simple: Path, vectors: Path, tmp_path: Path
    ) -> None:
        signature = str(vectors / "keyless-v1.1.0.sig")
        trust = KeylessTrust("a", "b", str(tmp_path / "root.json"))
        with pytest.raises(FileNotFoundError):
            verifying.verify(str(simple), trust, signature=signature)
        for text in ("", "{}", '{"mediaType": "x"}'):
            (tmp_path / "root.json").write_text(text)
            with pytest.raises(DocumentError) as caught:
                verifying.verify(str(simple), trust, signature=signature)
            assert caught.value.path == str(tmp_path / "root.json")
        with pytest.raises(DocumentError):
            KeylessTrust("", "b")

    @pytest.mark.parametrize(
        ("vector", "method"),
        [("key-simple", "key"), ("certificate-go", "certificate"), ("keyless-v1.1.0", "keyless")],
    )
    def test_a_method_is_not_taken_for_another(
        self, simple: Path, published_key: PublicKey, vectors: Path, pki: Any, vector: str,
        method: str,
    ) -> None:  # fmt: skip
        others = {
            "key": published_key,
            "certificate": pki.trust(),
            "keyless": KeylessTrust("a", "b"),
        }
        for name, trust in others.items():
            if name != method:
                with pytest.raises(VerificationError) as caught:
                    verifying.verify(str(simple), trust, signature=str(vectors / f"{vector}.sig"))
                assert caught.value.reason == "wrong-method"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("verification touched the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
