"""RFC 3161 timestamps, by a local authority that `openssl ts` plays."""

from __future__ import annotations

import base64
import datetime as dt
import json
import shutil
import subprocess
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose
from hypothesis import given
from hypothesis import strategies as st

from safeweights.errors import MissingDependencyError
from safeweights.trust.errors import DocumentError, TrustError, VerificationError
from safeweights.trust.signatures import bundle as bundles
from safeweights.trust.signatures import signing, verifying
from safeweights.trust.signatures.certificates import CertificateTrust
from safeweights.trust.signatures.timestamps import (
    MAX_RESPONSE,
    KeyTrust,
    TimestampTrust,
    parse_timestamp,
    request_timestamp,
    verify_timestamps,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safeweights.trust.signatures.keys import FileSigner

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl plays the timestamp authority"
)

NOW = dt.datetime.now(dt.timezone.utc)
YEAR = dt.timedelta(days=365)
CONFIG = """
[tsa]
serial = {folder}/serial
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256, sha384, sha512
ess_cert_id_chain = no
"""


@dataclass
class TimestampAuthority:
    """A certificate, and `openssl ts -reply` with it."""

    owner: Any
    roots: tuple[bytes, ...]
    folder: Path
    chain: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "config").write_text(CONFIG.format(folder=self.folder))
        (self.folder / "serial").write_text("01")
        (self.folder / "signer.pem").write_bytes(self.owner.pem)
        (self.folder / "chain.pem").write_bytes(b"".join(each.pem for each in self.chain))
        (self.folder / "key.pem").write_bytes(
            self.owner.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )  # fmt: skip

    @property
    def trust(self) -> TimestampTrust:
        return TimestampTrust(self.roots)

    def reply(self, query: bytes) -> bytes:
        (self.folder / "query").write_bytes(query)
        chain = ["-chain", self.folder / "chain.pem"] if self.chain else []
        subprocess.run(
            ["openssl", "ts", "-reply", "-config", self.folder / "config", "-section", "tsa",
             "-queryfile", self.folder / "query", "-signer", self.folder / "signer.pem",
             "-inkey", self.folder / "key.pem", *chain, "-out", self.folder / "reply"],
            check=True, capture_output=True,
        )  # fmt: skip
        return (self.folder / "reply").read_bytes()

    def stamp(
        self, signature: bytes, *, digest: str = "sha256", certificates: bool = True
    ) -> bytes:
        (self.folder / "data").write_bytes(signature)
        options = ["-cert"] if certificates else []
        query = subprocess.run(
            ["openssl", "ts", "-query", "-data", self.folder / "data", f"-{digest}", *options],
            check=True, capture_output=True,
        ).stdout  # fmt: skip
        return self.reply(query)


@pytest.fixture(scope="module")
def make_authority(tmp_path_factory: pytest.TempPathFactory, make_certificate: Any) -> Any:
    """Make a timestamp authority of its own root."""

    def make(**changes: Any) -> TimestampAuthority:
        root = make_certificate("time root", authority=True, begin=NOW - YEAR, end=NOW + YEAR)
        between = make_certificate("time", root, authority=True, begin=NOW - YEAR, end=NOW + YEAR)
        given = {"purposes": [Purpose.TIME_STAMPING], "critical_purposes": True, **changes}
        owner = make_certificate("clock", between, **given)
        return TimestampAuthority(
            owner, (root.der,), tmp_path_factory.mktemp("authority"), (between,)
        )

    return make


@pytest.fixture(scope="module")
def authority(make_authority: Any) -> TimestampAuthority:
    made: TimestampAuthority = make_authority()
    return made


def roots_pem(authority: TimestampAuthority) -> bytes:
    from cryptography import x509

    return b"".join(
        x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)
        for der in authority.roots
    )


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_the_time_of_a_signature(authority: TimestampAuthority, digest: str) -> None:
    stamp = authority.stamp(b"signature", digest=digest)
    (found,) = verify_timestamps([stamp], b"signature", authority.trust)
    assert abs(found - dt.datetime.now(dt.timezone.utc)) < dt.timedelta(minutes=5)
    assert found.tzinfo is not None


class TestRefused:
    """Timestamps that say nothing about the signature, or are not believed."""

    def times(self, stamp: bytes, trust: TimestampTrust, signature: bytes = b"signature") -> Any:
        return verify_timestamps([stamp], signature, trust)

    def test_of_another_signature(self, authority: TimestampAuthority) -> None:
        assert self.times(authority.stamp(b"other"), authority.trust) == ()

    def test_by_a_foreign_authority(
        self, authority: TimestampAuthority, make_authority: Any
    ) -> None:
        other = make_authority()
        assert self.times(other.stamp(b"signature"), authority.trust) == ()
        both = TimestampTrust((*authority.roots, *other.roots))
        assert len(self.times(other.stamp(b"signature"), both)) == 1

    def test_subject(self, authority: TimestampAuthority) -> None:
        stamp = authority.stamp(b"signature")
        subject = "O=Example,CN=clock"
        assert len(self.times(stamp, TimestampTrust(authority.roots, subject))) == 1
        assert self.times(stamp, TimestampTrust(authority.roots, "O=Example,CN=other")) == ()

    def test_by_an_expired_authority(self, make_authority: Any) -> None:
        old = make_authority(begin=NOW - YEAR, end=NOW - YEAR / 2)
        assert self.times(old.stamp(b"signature"), old.trust) == ()

    def test_without_the_authoritys_certificate(self, authority: TimestampAuthority) -> None:
        stamp = authority.stamp(b"signature", certificates=False)
        assert self.times(stamp, authority.trust) == ()

    def test_changed(self, authority: TimestampAuthority) -> None:
        """Any byte flipped gives no time, or the same one; and never another exception."""
        stamp = authority.stamp(b"signature")
        expected = self.times(stamp, authority.trust)
        for position in range(0, len(stamp), 3):
            data = bytearray(stamp)
            data[position] ^= 1
            try:
                assert self.times(bytes(data), authority.trust) in {(), expected}, position
            except DocumentError:
                continue

    def test_by_a_certificate_for_signing_code(self, pki: Any, tmp_path: Path) -> None:
        with pytest.raises(subprocess.CalledProcessError):  # openssl refuses to play that
            TimestampAuthority(pki.leaf, (pki.root.der,), tmp_path).stamp(b"signature")


@pytest.mark.parametrize("data", [b"", b"0", b"\x30\x03\x02\x01\x01", b"x" * 200])
def test_what_is_no_timestamp(authority: TimestampAuthority, data: bytes) -> None:
    with pytest.raises(DocumentError) as caught:
        verify_timestamps([authority.stamp(b"s"), data], b"s", authority.trust, path="model.sig")
    assert (caught.value.field, caught.value.path) == ("rfc3161Timestamps[1]", "model.sig")


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(DocumentError):
        parse_timestamp(data)


def test_roots_are_required() -> None:
    with pytest.raises(DocumentError) as caught:
        TimestampTrust(())
    assert caught.value.field == "roots"
    with pytest.raises(DocumentError) as caught:
        verify_timestamps([], b"s", TimestampTrust((b"junk",)))
    assert caught.value.field == "roots"


class TestCertificates:
    """A signature made while the certificate was valid stays good."""

    @pytest.fixture
    def expired(self, make_certificate: Any) -> Any:
        """A signer whose certificate ends soon, and the moment after."""
        root = make_certificate("root", authority=True, begin=NOW - YEAR, end=NOW + 9 * YEAR)
        return root, make_certificate("releases", root, begin=NOW - YEAR, end=NOW + YEAR / 12)

    def sign(self, model: Path, leaf: Any, authority: TimestampAuthority) -> None:
        signing.sign(model, leaf.signer, certificates=[leaf.der], timestamp=authority.stamp)

    def test_after_the_certificate_has_expired(
        self,
        model: Path,
        pki: Any,
        expired: Any,
        authority: TimestampAuthority,
        make_authority: Any,
    ) -> None:
        root, leaf = expired
        self.sign(model, leaf, authority)
        later = {"roots": (root.der,), "at": NOW + YEAR}
        with pytest.raises(VerificationError) as caught:
            verifying.verify(model, pki.trust(**later))
        assert caught.value.reason == "certificate-expired"
        found = verifying.verify(model, pki.trust(**later, timestamps=authority.trust))
        assert found.signed_by.timestamp is not None
        assert found.signed_by.timestamp.startswith(f"{NOW:%Y-%m-%d}")
        with pytest.raises(VerificationError) as caught:
            verifying.verify(model, pki.trust(**later, timestamps=make_authority().trust))
        assert caught.value.reason == "certificate-expired"

    def test_made_after_the_certificate_had_expired(
        self, model: Path, pki: Any, make_certificate: Any, authority: TimestampAuthority
    ) -> None:
        root = make_certificate("root", authority=True, begin=NOW - YEAR, end=NOW + YEAR)
        leaf = make_certificate("releases", root, begin=NOW - YEAR, end=NOW - YEAR / 2)
        self.sign(model, leaf, authority)
        with pytest.raises(VerificationError) as caught:
            verifying.verify(model, pki.trust(roots=(root.der,), timestamps=authority.trust))
        assert caught.value.reason == "certificate-expired"

    def test_a_timestamp_of_another_signature(
        self, model: Path, pki: Any, expired: Any, authority: TimestampAuthority
    ) -> None:
        root, leaf = expired
        self.sign(model, leaf, authority)
        kept = json.loads((model / "model.sig").read_bytes())["verificationMaterial"]
        (model / "config.json").write_text("{}")
        signing.sign(model, leaf.signer, certificates=[leaf.der])  # later, with a stolen key
        document = json.loads((model / "model.sig").read_bytes())
        document["verificationMaterial"] = kept
        (model / "model.sig").write_text(json.dumps(document))
        trust = pki.trust(roots=(root.der,), at=NOW + YEAR, timestamps=authority.trust)
        with pytest.raises(VerificationError) as caught:
            verifying.verify(model, trust)
        assert caught.value.reason == "certificate-expired"

    def test_valid_certificates_need_none(
        self, model: Path, pki: Any, authority: TimestampAuthority
    ) -> None:
        signing.sign(model, pki.leaf.signer, certificates=pki.chain)
        found = verifying.verify(model, pki.trust(timestamps=authority.trust))
        assert found.signed_by.timestamp is None


class TestKeys:
    def test_a_key_that_was_retired(
        self, model: Path, signer: FileSigner, authority: TimestampAuthority, make_authority: Any
    ) -> None:
        signing.sign(model, signer, timestamp=authority.stamp)
        key = signer.public_key
        assert verifying.verify(model, key).signed_by.timestamp is None
        hour = dt.timedelta(hours=1)
        for trust in (
            KeyTrust(key, authority.trust),
            KeyTrust(key, authority.trust, NOW + hour),
        ):
            assert verifying.verify(model, trust).signed_by.timestamp
        for trust in (
            KeyTrust(key, authority.trust, NOW - hour),
            KeyTrust(key, make_authority().trust, NOW + hour),
        ):
            with pytest.raises(VerificationError) as caught:
                verifying.verify(model, trust)
            assert caught.value.reason == "timestamp"
        signing.sign(model, signer)
        with pytest.raises(VerificationError) as caught:
            verifying.verify(model, KeyTrust(key, authority.trust))
        assert caught.value.reason == "timestamp"

    def test_the_key_still_counts(
        self, model: Path, signer: FileSigner, stranger: FileSigner, authority: TimestampAuthority
    ) -> None:
        signing.sign(model, stranger, timestamp=authority.stamp)
        with pytest.raises(VerificationError) as caught:
            verifying.verify(model, KeyTrust(signer.public_key, authority.trust))
        assert caught.value.reason == "wrong-key"

    def test_moments_need_a_time_zone(
        self, signer: FileSigner, authority: TimestampAuthority
    ) -> None:
        with pytest.raises(DocumentError) as caught:
            KeyTrust(signer.public_key, authority.trust, dt.datetime(2026, 1, 1))  # noqa: DTZ001
        assert caught.value.field == "until"

    def test_loading(self, model: Path, signer: FileSigner, authority: TimestampAuthority) -> None:
        import safeweights

        trust = KeyTrust(signer.public_key, authority.trust)
        signing.sign(model, signer, timestamp=authority.stamp)
        assert safeweights.open(model, trust=trust)["a"].nbytes == 700_000
        signing.sign(model, signer)
        with pytest.raises(TrustError):
            safeweights.open(model, trust=trust)


class TestPolicies:
    """The settings of a policy's signers."""

    def policy(self, tmp_path: Path, signer: str, authority: TimestampAuthority) -> Any:
        from safeweights.trust import parse_policy

        (tmp_path / "tsa.pem").write_bytes(roots_pem(authority))
        text = f"[signers.us]\n{signer}\n[[rules]]\npattern = '*'\nsigners = ['us']\n"
        return parse_policy(text.encode(), path=str(tmp_path / "policy.toml")).signers["us"]

    def test_of_a_key(
        self, tmp_path: Path, signer: FileSigner, authority: TimestampAuthority
    ) -> None:
        key = f"public_key = '''{signer.public_key.pem.decode()}'''\n"
        found = self.policy(tmp_path, key + "timestamp_roots = 'tsa.pem'", authority)
        assert found == KeyTrust(signer.public_key, authority.trust)
        until = "timestamp_roots = ['tsa.pem']\nuntil = 2026-06-30T00:00:00Z"
        found = self.policy(tmp_path, key + until, authority)
        assert found.until == dt.datetime(2026, 6, 30, tzinfo=dt.timezone.utc)
        with pytest.raises(DocumentError, match="until"):
            self.policy(tmp_path, key + "until = 2026-06-30T00:00:00Z", authority)

    def test_of_a_certificate(
        self, tmp_path: Path, pki: Any, authority: TimestampAuthority
    ) -> None:
        (tmp_path / "root.pem").write_bytes(pki.root.pem)
        text = "roots = 'root.pem'\ncertificate_subject = 'CN=a'\ntimestamp_roots = 'tsa.pem'"
        found = self.policy(tmp_path, text, authority)
        expected = CertificateTrust((pki.root.der,), subject="CN=a", timestamps=authority.trust)
        assert found == expected


def test_where_bundles_keep_it(
    model: Path, signer: FileSigner, authority: TimestampAuthority
) -> None:
    """The Sigstore bundle's own field; its library parses the response that is there."""
    from sigstore.models import TimestampVerificationData

    signed = signing.sign(model, signer, timestamp=authority.stamp)
    material = json.loads(Path(signed.signature).read_bytes())["verificationMaterial"]
    (entry,) = material["timestampVerificationData"]["rfc3161Timestamps"]
    parsed = bundles.parse_bundle(Path(signed.signature).read_bytes())
    assert parsed.timestamps == (base64.b64decode(entry["signedTimestamp"]),)
    data = json.dumps(material["timestampVerificationData"])
    assert len(TimestampVerificationData.from_json(data).rfc3161_timestamps) == 1


def test_the_reference_accepts_it(
    model: Path, pki: Any, authority: TimestampAuthority, tmp_path: Path
) -> None:
    import model_signing

    signed = signing.sign(model, pki.leaf.signer, certificates=pki.chain, timestamp=authority.stamp)
    (tmp_path / "root.pem").write_bytes(pki.root.pem)
    model_signing.verifying.Config().use_certificate_verifier(
        certificate_chain=[tmp_path / "root.pem"]
    ).verify(model, Path(signed.signature))
    signed = signing.sign(model, pki.leaf.signer, timestamp=authority.stamp)
    (tmp_path / "key.pub").write_bytes(pki.leaf.signer.public_key.pem)
    model_signing.verifying.Config().use_elliptic_key_verifier(
        public_key=tmp_path / "key.pub"
    ).verify(model, Path(signed.signature))


class TestRequests:
    """Asking an authority over http."""

    @pytest.fixture
    def server(self, authority: TimestampAuthority) -> Iterator[Any]:
        state: dict[str, Any] = {"reply": authority.reply, "status": 200}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.headers["Content-Type"] == "application/timestamp-query"
                reply = state["reply"](self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(state["status"])
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: Any) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as listening:
            thread = threading.Thread(
                target=listening.serve_forever, kwargs={"poll_interval": 0.01}
            )
            thread.start()
            state["url"] = f"http://127.0.0.1:{listening.server_port}/tsa"
            yield state
            listening.shutdown()
            thread.join()

    def test_granted(self, server: Any, authority: TimestampAuthority) -> None:
        stamp = request_timestamp(b"signature", server["url"])
        assert len(verify_timestamps([stamp], b"signature", authority.trust)) == 1

    def test_the_command_line(
        self,
        server: Any,
        authority: TimestampAuthority,
        model: Path,
        signer: FileSigner,
        tmp_path: Path,
    ) -> None:
        from click.testing import CliRunner

        from safeweights.cli.app import cli

        (tmp_path / "key").write_bytes(
            signer._key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )  # fmt: skip
        (tmp_path / "key.pub").write_bytes(signer.public_key.pem)
        (tmp_path / "roots").write_bytes(roots_pem(authority))
        run = CliRunner()
        options = ["--key", str(tmp_path / "key"), "--timestamp-url", server["url"]]
        assert run.invoke(cli, ["sign", str(model), *options]).exit_code == 0
        verify = ["verify", str(model), "--key", str(tmp_path / "key.pub")]
        verify += ["--timestamp-roots", str(tmp_path / "roots")]
        done = run.invoke(cli, [*verify, "--json"])
        assert json.loads(done.stdout)["signed_by"]["timestamp"].startswith("20")
        hour = dt.timedelta(hours=1)
        for until, status in ((NOW + hour, 0), (NOW - hour, 1)):
            assert run.invoke(cli, [*verify, "--until", until.isoformat()]).exit_code == status

    def test_another_answer(self, server: Any, authority: TimestampAuthority) -> None:
        old = request_timestamp(b"signature", server["url"])
        server["reply"] = lambda _: old  # right data, another nonce
        with pytest.raises(VerificationError) as caught:
            request_timestamp(b"signature", server["url"])
        assert caught.value.reason == "timestamp"
        server["reply"] = lambda _: authority.stamp(b"other")
        with pytest.raises(VerificationError):
            request_timestamp(b"signature", server["url"])

    @pytest.mark.parametrize("reply", [b"", b"<html>", b"0" * (MAX_RESPONSE + 1)])
    def test_no_answer(self, server: Any, reply: bytes) -> None:
        server["reply"] = lambda _: reply
        with pytest.raises(DocumentError):
            request_timestamp(b"signature", server["url"])
        server["status"] = 500
        with pytest.raises(OSError, match="500"):
            request_timestamp(b"signature", server["url"])

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org", "example.org", ""])
    def test_other_urls(self, url: str) -> None:
        with pytest.raises(ValueError, match="http"):
            request_timestamp(b"signature", url)

    def test_nothing_is_written_without_it(
        self, server: Any, model: Path, signer: FileSigner
    ) -> None:
        server["reply"] = lambda _: b""
        before = sorted(model.rglob("*"))
        with pytest.raises(DocumentError):
            signing.sign(
                model, signer, timestamp=lambda value: request_timestamp(value, server["url"])
            )
        assert sorted(model.rglob("*")) == before


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rfc3161_client", None)
    with pytest.raises(MissingDependencyError, match=r"safeweights\[timestamps\]"):
        parse_timestamp(b"")
