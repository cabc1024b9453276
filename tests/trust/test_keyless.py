"""Keyless signing against a local stand-in for Sigstore's services: Fulcio, its CT log, and Rekor.

The stand-in answers what the services answer, with keys of its own; the `sigstore` package cannot tell
the difference, and checks every certificate, log entry and proof as it does those of the public instance.
"""

from __future__ import annotations

import base64
import datetime as dt
import gc
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import urlopen

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from safeweights.errors import MissingDependencyError
from safeweights.trust.errors import DocumentError, TrustError, VerificationError
from safeweights.trust.signatures import keyless, signing, verifying
from safeweights.trust.signatures.keyless import KeylessSigner, KeylessTrust

if TYPE_CHECKING:
    from collections.abc import Iterator

ISSUER = "https://issuer.example.org"
WORKFLOW = "https://github.com/org/repo/.github/workflows/release.yml@refs/tags/v1.0"
PATTERN = "https://github.com/org/repo/.github/workflows/*@refs/tags/*"
DER, RAW = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
NOW = dt.datetime.now(dt.timezone.utc)
DAY = dt.timedelta(days=1)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Log:
    """The key of a transparency log."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.public = self.key.public_key().public_bytes(DER, RAW)
        self.id = hashlib.sha256(self.public).digest()

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))

    def described(self, url: str) -> dict[str, Any]:
        return {
            "baseUrl": url, "hashAlgorithm": "SHA2_256", "logId": {"keyId": text(self.id)},
            "publicKey": {
                "rawBytes": text(self.public), "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": {"start": "2020-01-01T00:00:00Z"},
            },
        }  # fmt: skip


class Sigstore:
    """Fulcio, a CT log and Rekor v1.

    Attributes:
        down: Services that answer 500.
        issuers: The extensions in which certificates name the issuer.
        seen: What was asked of each service.
        login: What the provider's answer to a login says instead.
        challenge: The hash of what the client that logs in must know.
    """

    def __init__(self) -> None:
        self.authority = ec.generate_private_key(ec.SECP384R1())
        self.ct, self.rekor = Log(), Log()
        self.root = self._root()
        self.url = ""
        self.down: set[str] = set()
        self.issuers = ["1", "8"]
        self.seen: list[str] = []
        self.login: dict[str, str] = {}
        self.challenge = ""

    def _root(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stand-in")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        return (
            x509.CertificateBuilder(
                name, name, self.authority.public_key(), 1, NOW - DAY, NOW + DAY
            )
            .add_extension(x509.BasicConstraints(True, 0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self.authority.public_key()), False
            )
            .sign(self.authority, hashes.SHA384())
        )

    def certificate(self, request: bytes, token: str) -> dict[str, Any]:
        """Fulcio's answer: a certificate of the token's subject, with an SCT of the CT log in it."""
        claims = jwt.decode(token, options={"verify_signature": False})
        asked = x509.load_pem_x509_csr(request)
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        subject = claims["sub"]
        name = (x509.UniformResourceIdentifier if "://" in subject else x509.RFC822Name)(subject)
        issuer = claims["iss"].encode()
        builder = (
            x509.CertificateBuilder(
                self.root.subject, x509.Name([]), asked.public_key(), x509.random_serial_number(),
                NOW - DAY / 24, NOW + DAY / 24,
            )
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()), False
            )
        )  # fmt: skip
        # Both spellings of the issuer: as it is, and as a DER string.
        spellings = {"1": issuer, "8": b"\x0c" + bytes([len(issuer)]) + issuer}
        for number in self.issuers:
            known = x509.ObjectIdentifier(f"1.3.6.1.4.1.57264.1.{number}")
            builder = builder.add_extension(
                x509.UnrecognizedExtension(known, spellings[number]), critical=False
            )
        before = builder.sign(self.authority, hashes.SHA384())
        scts = self._sct(before.tbs_certificate_bytes)
        value = b"\x04" + (b"\x81" if len(scts) > 127 else b"") + bytes([len(scts)]) + scts
        known = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
        made = builder.add_extension(x509.UnrecognizedExtension(known, value), critical=False).sign(
            self.authority, hashes.SHA384()
        )
        chain = [c.public_bytes(serialization.Encoding.PEM).decode() for c in (made, self.root)]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

    def _sct(self, tbs: bytes) -> bytes:
        """A list of one signed certificate timestamp (RFC 6962 section 3.3)."""
        when = int(NOW.timestamp() * 1000)
        issuer = hashlib.sha256(self.authority.public_key().public_bytes(DER, RAW)).digest()
        entry = issuer + len(tbs).to_bytes(3, "big") + tbs
        signed = self.ct.sign(struct.pack("!BBQH", 0, 0, when, 1) + entry + b"\0\0")
        sct = struct.pack("!B32sQHBBH", 0, self.ct.id, when, 0, 4, 3, len(signed)) + signed
        return struct.pack("!HH", len(sct) + 2, len(sct)) + sct

    def entry(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """Rekor's answer: the entry, in a log that has no other one."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        payload = base64.b64decode(envelope["payload"])
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": sha256(content["envelope"].encode())},
            "payloadHash": {"algorithm": "sha256", "value": sha256(payload)},
            "signatures": [
                {"signature": envelope["signatures"][0]["sig"], "verifier": content["verifiers"][0]}
            ],
        }
        body = json.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}).encode()
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"stand-in\n1\n{text(root)}\n"
        mark = text(self.rekor.id[:4] + self.rekor.sign(note.encode()))
        when = int(NOW.timestamp())
        promised = json.dumps(
            {"body": text(body), "integratedTime": when, "logID": self.rekor.id.hex(), "logIndex": 0},
            separators=(",", ":"), sort_keys=True,
        )  # fmt: skip
        return {
            "0" * 64: {
                "body": text(body), "integratedTime": when, "logID": self.rekor.id.hex(),
                "logIndex": 0,
                "verification": {
                    "signedEntryTimestamp": text(self.rekor.sign(promised.encode())),
                    "inclusionProof": {
                        "checkpoint": f"{note}\n\u2014 stand-in {mark}\n", "hashes": [], "logIndex": 0,
                        "rootHash": root.hex(), "treeSize": 1,
                    },
                },
            }
        }  # fmt: skip

    def trusted_root(self) -> dict[str, Any]:
        always = {"start": "2020-01-01T00:00:00Z"}
        chain = {"certificates": [{"rawBytes": text(self.root.public_bytes(DER))}]}
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self.rekor.described(self.url)], "ctlogs": [self.ct.described(self.url)],
            "certificateAuthorities": [
                {"subject": {"organization": "stand-in", "commonName": "stand-in"}, "uri": self.url,
                 "certChain": chain, "validFor": always}
            ],
            "timestampAuthorities": [],
        }  # fmt: skip

    def client_config(self) -> dict[str, Any]:
        service = {
            "url": self.url, "majorApiVersion": 1, "operator": "stand-in",
            "validFor": {"start": "2020-01-01T00:00:00Z"},
        }  # fmt: skip
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": self.trusted_root(),
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [service], "oidcUrls": [service], "rekorTlogUrls": [service], "tsaUrls": [],
                "rekorTlogConfig": {"selector": "ANY"}, "tsaConfig": {"selector": "ANY"},
            },
        }  # fmt: skip

    def provider(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """What the OpenID Connect provider answers: (status, headers, body) (RFC 6749, RFC 7636)."""
        url = urlsplit(path)
        asked = {name: values[0] for name, values in parse_qs(url.query or body.decode()).items()}
        self.seen.append(url.path)
        if url.path == "/.well-known/openid-configuration":
            places = {
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
            }
            return 200, {}, json.dumps(places).encode()
        if url.path == "/authorize":
            self.challenge = asked["code_challenge"]
            if asked["redirect_uri"].startswith("urn:"):
                return 200, {}, b"the-code"
            answer = {"state": asked["state"], "code": "the-code", **self.login}
            return 302, {"Location": f"{asked['redirect_uri']}?{urlencode(answer)}"}, b""
        assert url.path == "/token"
        proof = hashlib.sha256(asked["code_verifier"].encode()).digest()
        if asked["code"] != "the-code" or urlsafe(proof) != self.challenge:
            return 400, {}, b"{}"
        return 200, {}, json.dumps({"access_token": identity_token("ann@example.org")}).encode()

    def answer(self, path: str, body: bytes, token: str) -> tuple[int, bytes]:
        service = "fulcio" if path == "/api/v2/signingCert" else "rekor"
        self.seen.append(service)
        if service in self.down:
            return 500, b"{}"
        asked = json.loads(body)
        if service == "fulcio":
            request = base64.b64decode(asked["certificateSigningRequest"])
            return 201, json.dumps(self.certificate(request, token)).encode()
        assert path == "/api/v1/log/entries"
        return 201, json.dumps(self.entry(asked)).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def instance() -> Iterator[Sigstore]:
    sigstore = Sigstore()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            self.send(*sigstore.provider(self.path, b""))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
            if self.path == "/token":
                self.send(*sigstore.provider(self.path, body))
            else:
                status, answer = sigstore.answer(self.path, body, token)
                self.send(status, {}, answer)

        def send(self, status: int, headers: dict[str, str], answer: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        sigstore.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield sigstore
        server.shutdown()
        thread.join()


@pytest.fixture
def config(instance: Sigstore, tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(instance.client_config()))
    return str(path)


@pytest.fixture
def root(instance: Sigstore, tmp_path: Path) -> str:
    path = tmp_path / "root.json"
    path.write_text(json.dumps(instance.trusted_root()))
    return str(path)


def identity_token(subject: str = WORKFLOW, **changes: Any) -> str:
    claims = {
        "sub": subject, "iss": ISSUER, "aud": "sigstore",
        "iat": NOW, "exp": NOW + DAY, **changes,
    }  # fmt: skip
    return jwt.encode(claims, "a secret of some length for the mark", algorithm="HS256")


@pytest.fixture
def signed(model: Path, config: str) -> Path:
    done = signing.sign(model, KeylessSigner(identity_token(), config), release=2)
    assert (done.method, done.key_hint) == ("keyless", None)
    return model


def refused(model: Path, trust: KeylessTrust) -> str:
    with pytest.raises(VerificationError) as caught:
        verifying.verify(model, trust)
    assert caught.value.reason == "keyless"
    return str(caught.value)


class TestSigning:
    def test_what_is_signed_is_verified(self, signed: Path, root: str, config: str) -> None:
        for given in (root, config):
            found = verifying.verify(signed, KeylessTrust(WORKFLOW, ISSUER, given))
            assert (found.signed_by.method, found.signed_by.identity) == ("keyless", WORKFLOW)
            assert found.signed_by.recorded
            assert found.statement.release == 2
        (signed / "config.json").write_text("{}")
        with pytest.raises(VerificationError) as caught:
            verifying.verify(signed, KeylessTrust(WORKFLOW, ISSUER, root))
        assert caught.value.reason == "digest-mismatch"

    def test_the_reference_accepts_it(self, signed: Path, config: str) -> None:
        import model_signing

        model_signing.verifying.Config().use_sigstore_verifier(
            identity=WORKFLOW, oidc_issuer=ISSUER, trust_config=Path(config)
        ).verify(signed, signed / "model.sig")

    def test_an_address(self, model: Path, config: str, root: str) -> None:
        signing.sign(model, KeylessSigner(identity_token("ann@example.org"), config))
        verifying.verify(model, KeylessTrust("*@example.org", ISSUER, root))
        refused(model, KeylessTrust("*@example.com", ISSUER, root))

    def test_ambient_identity(
        self, model: Path, config: str, root: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sigstore import oidc

        monkeypatch.setattr(oidc, "detect_credential", identity_token)
        signing.sign(model, KeylessSigner(trust_config=config))
        verifying.verify(model, KeylessTrust(WORKFLOW, ISSUER, root))
        monkeypatch.setattr(oidc, "detect_credential", lambda: None)
        with pytest.raises(VerificationError, match="no identity"):
            signing.sign(model, KeylessSigner(trust_config=config))

    @pytest.mark.parametrize("service", ["fulcio", "rekor"])
    def test_a_service_that_fails(
        self, model: Path, instance: Sigstore, config: str, service: str
    ) -> None:
        before = sorted(model.rglob("*"))
        instance.down.add(service)
        try:
            with pytest.raises(VerificationError, match="did not sign"):
                signing.sign(model, KeylessSigner(identity_token(), config))
        finally:
            instance.down.clear()
        assert sorted(model.rglob("*")) == before

    def test_a_service_that_is_not_there(
        self, model: Path, instance: Sigstore, tmp_path: Path
    ) -> None:
        document = json.dumps(instance.client_config()).replace(instance.url, "http://127.0.0.1:1")
        (tmp_path / "config").write_text(document)
        with pytest.raises(OSError):  # of the http client
            signing.sign(model, KeylessSigner(identity_token(), str(tmp_path / "config")))

    @pytest.mark.parametrize(
        "token", ["", "x", "a.b.c", identity_token(exp=NOW - DAY), identity_token(aud="other")]
    )
    def test_tokens_that_are_none(
        self, model: Path, config: str, token: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sigstore import oidc

        monkeypatch.setattr(oidc, "detect_credential", lambda: None)
        with pytest.raises(VerificationError) as caught:
            signing.sign(model, KeylessSigner(token, config))
        assert not token or token not in str(caught.value)
        assert not (model / "model.sig").exists()

    def test_no_token_is_shown(self) -> None:
        assert "secret-token" not in repr(KeylessSigner("secret-token"))

    @pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[]"])
    def test_configurations_that_are_none(
        self, model: Path, tmp_path: Path, content: bytes
    ) -> None:
        (tmp_path / "config").write_bytes(content)
        with pytest.raises(DocumentError) as caught:
            signing.sign(model, KeylessSigner(identity_token(), str(tmp_path / "config")))
        assert caught.value.path == str(tmp_path / "config")

    def test_what_does_not_go_with_it(self, model: Path, config: str, pki: Any) -> None:
        signer = KeylessSigner(identity_token(), config)
        with pytest.raises(DocumentError) as caught:
            signing.sign(model, signer, certificates=pki.chain)
        assert caught.value.field == "certificates"
        with pytest.raises(DocumentError) as caught:
            signing.sign(model, signer, timestamp=lambda data: data)
        assert caught.value.field == "timestamp"


# The socket on which `sigstore` waits for the browser is left to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestLogin:
    """In a web browser, played by a thread that follows redirections; and with a link and a code."""

    @pytest.fixture(autouse=True)
    def reset(self, instance: Sigstore) -> Iterator[None]:
        instance.seen.clear()
        yield
        instance.login.clear()
        gc.collect()  # now, while its warning is ignored

    @pytest.fixture
    def browser(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        """The links that were opened."""
        opened: list[str] = []
        visits: list[threading.Thread] = []

        def visit(url: str) -> bool:
            opened.append(url)
            visits.append(threading.Thread(target=lambda: urlopen(url).read()))
            visits[-1].start()
            return True

        monkeypatch.setattr("webbrowser.open", visit)
        yield opened
        for each in visits:
            each.join()

    def test_in_a_browser(
        self, model: Path, instance: Sigstore, config: str, root: str, browser: list[str]
    ) -> None:
        signing.sign(model, KeylessSigner(trust_config=config, login="browser"))
        assert len(browser) == 1
        assert instance.seen[:3] == ["/.well-known/openid-configuration", "/authorize", "/token"]
        verifying.verify(model, KeylessTrust("ann@example.org", ISSUER, root))

    @pytest.mark.parametrize(
        "answer", [{"error": "access_denied"}, {"state": "another"}, {"code": "x"}]
    )
    def test_a_login_that_fails(
        self,
        model: Path,
        instance: Sigstore,
        config: str,
        browser: list[str],
        answer: dict[str, str],
    ) -> None:
        before = sorted(model.rglob("*"))
        instance.login = answer
        with pytest.raises(VerificationError) as caught:
            signing.sign(model, KeylessSigner(trust_config=config, login="browser"))
        assert caught.value.reason == "keyless"
        assert "fulcio" not in instance.seen
        assert sorted(model.rglob("*")) == before

    @pytest.mark.parametrize("way", ["code", "browser"])
    def test_with_a_code(
        self, model: Path, config: str, root: str, tmp_path: Path, way: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """Also where there is no browser; standard output has results only."""
        process = subprocess.Popen(
            [sys.executable, "-m", "safeweights", "sign", str(model), "--keyless", "--json",
             "--login", way, "--trust-config", config],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "BROWSER": "false", "PATH": str(tmp_path)},
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stderr is not None
        link = next(line.strip() for line in process.stderr if "/authorize?" in line)
        with urlopen(link) as page:
            out, errors = process.communicate(page.read().decode() + "\n", timeout=300)
        assert process.returncode == 0, errors
        assert json.loads(out)["method"] == "keyless"
        verifying.verify(model, KeylessTrust("ann@example.org", ISSUER, root))

    def test_no_code(self, model: Path, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO())
        with pytest.raises(VerificationError, match="did not sign"):
            signing.sign(model, KeylessSigner(trust_config=config, login="code"))

    def test_options(self, model: Path, config: str, tmp_path: Path) -> None:
        from click.testing import CliRunner

        from safeweights.cli.app import cli

        (tmp_path / "token").write_text(identity_token())
        for options in (
            ["--keyless", "--login", "code", "--identity-token-file", str(tmp_path / "token")],
            ["--key", "k", "--login", "code"],
            ["--keyless", "--login", "other"],
        ):
            assert CliRunner().invoke(cli, ["sign", str(model), *options]).exit_code == 2


class TestIdentities:
    def test_a_pattern(self, signed: Path, root: str) -> None:
        found = verifying.verify(signed, KeylessTrust(PATTERN, ISSUER, root)).signed_by
        assert (found.identity, found.pattern) == (WORKFLOW, PATTERN)
        # The next release has another tag, and is by the same signer.
        assert found.fingerprint() == f"keyless:{ISSUER}/{PATTERN}"
        exact = verifying.verify(signed, KeylessTrust(WORKFLOW, ISSUER, root)).signed_by
        assert exact.fingerprint() == f"keyless:{ISSUER}/{WORKFLOW}"

    @pytest.mark.parametrize(
        "identity",
        [
            WORKFLOW[:-1], WORKFLOW + "0", WORKFLOW.upper(), WORKFLOW.replace("github.com", "github*"),
            "https://github.com/org/*", "https://github.com/*@refs/tags/*",
            "https://github.com/org/repo/.github/workflows/*@refs/heads/*", "release*", ".*",
        ],
    )  # fmt: skip
    def test_others(self, signed: Path, root: str, identity: str) -> None:
        if identity == ".*":
            with pytest.raises(DocumentError):
                KeylessTrust(identity, ISSUER, root)
        elif identity.endswith("github*/org/repo/.github/workflows/release.yml@refs/tags/v1.0"):
            verifying.verify(signed, KeylessTrust(identity, ISSUER, root))
        else:
            assert WORKFLOW in refused(signed, KeylessTrust(identity, ISSUER, root))

    @pytest.mark.parametrize("number", ["1", "8"])
    def test_both_spellings_of_the_issuer(
        self,
        model: Path,
        instance: Sigstore,
        config: str,
        number: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(instance, "issuers", [number])
        signing.sign(model, KeylessSigner(identity_token(), config))
        verifying.verify(model, KeylessTrust(WORKFLOW, ISSUER, config))
        refused(model, KeylessTrust(WORKFLOW, "https://issuer.example.com", config))
        monkeypatch.setattr(instance, "issuers", [])
        signing.sign(model, KeylessSigner(identity_token(), config))
        refused(model, KeylessTrust(WORKFLOW, ISSUER, config))

    def test_another_issuer(self, signed: Path, root: str) -> None:
        assert "not issued by" in refused(signed, KeylessTrust(WORKFLOW, ISSUER + "/", root))
        for issuer in ("", "https://*"):
            with pytest.raises(DocumentError) as caught:
                KeylessTrust(WORKFLOW, issuer)
            assert caught.value.field == "issuer"


class TestRoots:
    def test_another_instance(self, signed: Path, tmp_path: Path) -> None:
        other = Sigstore()
        other.url = "http://127.0.0.1:1"
        (tmp_path / "other").write_text(json.dumps(other.trusted_root()))
        refused(signed, KeylessTrust(WORKFLOW, ISSUER, str(tmp_path / "other")))
        refused(signed, KeylessTrust(WORKFLOW, ISSUER))  # the public instance

    def test_updated_from_a_file(
        self, signed: Path, root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv(keyless.TRUSTED_ROOT_VARIABLE, root)
        verifying.verify(signed, KeylessTrust(WORKFLOW, ISSUER))
        (tmp_path / "empty").write_text("{}")
        monkeypatch.setenv(keyless.TRUSTED_ROOT_VARIABLE, str(tmp_path / "empty"))
        with pytest.raises(DocumentError) as caught:
            verifying.verify(signed, KeylessTrust(WORKFLOW, ISSUER))
        assert caught.value.path == str(tmp_path / "empty")
        verifying.verify(signed, KeylessTrust(WORKFLOW, ISSUER, root))
        monkeypatch.setenv(keyless.TRUSTED_ROOT_VARIABLE, str(tmp_path / "missing"))
        with pytest.raises(FileNotFoundError):
            verifying.verify(signed, KeylessTrust(WORKFLOW, ISSUER))

    def test_a_root_that_is_no_regular_or_small_file(
        self, signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keyless, "MAX_ROOT", 1000)
        (tmp_path / "large").write_bytes(b" " * 1001)
        for path in (tmp_path / "large", tmp_path):
            with pytest.raises(TrustError):
                verifying.verify(signed, KeylessTrust(WORKFLOW, ISSUER, str(path)))


class TestAltered:
    @pytest.mark.parametrize(
        "place",
        [
            ("dsseEnvelope", "payload"), ("dsseEnvelope", "signatures", 0, "sig"),
            ("verificationMaterial", "certificate", "rawBytes"),
            ("verificationMaterial", "tlogEntries", 0, "canonicalizedBody"),
            ("verificationMaterial", "tlogEntries", 0, "inclusionPromise", "signedEntryTimestamp"),
            ("verificationMaterial", "tlogEntries", 0, "inclusionProof", "rootHash"),
            ("verificationMaterial", "tlogEntries", 0, "integratedTime"),
        ],
        ids=lambda place: str(place[-1]),
    )  # fmt: skip
    def test_every_part(self, signed: Path, root: str, place: tuple[Any, ...]) -> None:
        document = json.loads((signed / "model.sig").read_bytes())
        inner = document
        for key in place[:-1]:
            inner = inner[key]
        value = inner[place[-1]]
        if place[-1] == "integratedTime":
            inner[place[-1]] = str(int(value) + 1)
        else:
            data = bytearray(base64.b64decode(value))
            data[len(data) // 2] ^= 1
            inner[place[-1]] = text(bytes(data))
        (signed / "model.sig").write_text(json.dumps(document))
        with pytest.raises(TrustError):
            verifying.verify(signed, KeylessTrust(WORKFLOW, ISSUER, root))


def test_the_command_line(model: Path, config: str, root: str, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from safeweights.cli.app import cli

    (tmp_path / "token").write_text(identity_token() + "\n")
    run = CliRunner()
    options = ["--keyless", "--trust-config", config, "--identity-token-file"]
    done = run.invoke(cli, ["sign", str(model), *options, str(tmp_path / "token")])
    assert done.exit_code == 0, done.output
    assert "signer\tkeyless\t\n" in done.stdout
    options = ["--identity", PATTERN, "--issuer", ISSUER, "--trusted-root", root]
    assert run.invoke(cli, ["verify", str(model), *options]).exit_code == 0
    options[1] = "https://github.com/org/*"
    # Another identity may have made the one that is there.
    again = ["sign", str(model), "--keyless", "--trust-config", config, "--identity-token-file"]
    again.append(str(tmp_path / "token"))
    assert run.invoke(cli, again).exit_code == 3
    assert run.invoke(cli, [*again, "--force"]).exit_code == 0
    assert run.invoke(cli, ["verify", str(model), *options]).exit_code == 1


def test_a_missing_package_is_named(
    model: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sigstore.sign", None)
    with pytest.raises(MissingDependencyError, match=r"safeweights\[keyless\]"):
        signing.sign(model, KeylessSigner("x", config))
