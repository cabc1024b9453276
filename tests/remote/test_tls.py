"""Web servers over https: certificates, proxies, redirects, and processes that fork."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import ssl
from typing import TYPE_CHECKING

import pytest
from bad_server import BadServer
from waiting_server import Waiting

from interrupts import posix
from safeweights.numpy import load_file
from safeweights.storage import open_source
from safeweights.storage.remote import connections

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("cryptography", reason="needs the package cryptography")


def certificate(folder: Path) -> tuple[str, str]:
    """Paths of a certificate for this machine, which is its own authority, and of its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.timezone.utc)
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - dt.timedelta(1))
        .not_valid_after(now + dt.timedelta(1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    paths[1].write_bytes(private)
    return str(paths[0]), str(paths[1])


class SecureServer(BadServer):
    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SecureServer]:
    cert, key = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", cert)
    connections._context.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with SecureServer() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.files["a"] = bytes(range(256)) * 80_000
        yield server
    connections._context.cache_clear()


def test_a_file_over_https(secure: SecureServer) -> None:
    source = open_source(f"{secure.url}/a")
    assert bytes(source.view(0, source.size)) == secure.files["a"]


@posix
@pytest.mark.parametrize("how", ["before the answer", "in the body", "in the last body"])
def test_an_interrupt_ends_a_read(
    secure: SecureServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    waiting = Waiting(secure, how, monkeypatch)
    try:
        with waiting.interrupted():
            load_file(waiting.url)
    finally:
        waiting.over.set()


def test_a_certificate_of_an_unknown_authority_is_refused_at_once(
    secure: SecureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    connections._context.cache_clear()
    with pytest.raises(OSError, match="certificate is not valid"):
        open_source(f"{secure.url}/a")
    assert secure.requests == []


def test_no_redirect_leaves_https(secure: SecureServer, server: BadServer) -> None:
    server.files["a"] = b"123"
    secure.fault = lambda handler, _: handler.reply(302, Location=f"{server.url}/a") or True
    with pytest.raises(OSError, match="from https to http"):
        open_source(f"{secure.url}/a")
    assert server.requests == []


def test_http_may_lead_to_https(secure: SecureServer, server: BadServer) -> None:
    server.fault = lambda handler, _: handler.reply(301, Location=f"{secure.url}/a") or True
    source = open_source(f"{server.url}/a")
    assert source.read(1_000_000, 4) == secure.files["a"][1_000_000:1_000_004]
    assert len(server.requests) == 1


def test_a_proxy_is_asked_for_a_tunnel(
    secure: SecureServer, server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", server.url.replace("//", "//me:secret@"))
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(OSError) as caught:  # this proxy has no tunnels
        open_source("https://models.invalid/a")
    assert "secret" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:This process")  # Python 3.12: threads and fork
def test_a_child_process_uses_no_connection_of_its_parent(server: BadServer) -> None:
    server.files["a"] = bytes(300_000)
    source = open_source(f"{server.url}/a")
    source.read(200_000, 10)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if source.read(250_000, 10) == bytes(10) else 1
        finally:
            os._exit(status)
    assert source.read(200_010, 10) == bytes(10)
    assert os.waitpid(child, 0)[1] == 0


def test_idle_connections_are_bounded(server: BadServer) -> None:
    origin = connections.Origin.of(server.url)
    made = [connections.connections.take(origin, 5)[0] for _ in range(20)]
    for each in made:
        each.connect()
        connections.connections.give(origin, each)
    assert sum(each.sock is not None for each in made) == 16
    with pytest.raises(ValueError, match="web address"):
        connections.Origin.of("ftp://x")
