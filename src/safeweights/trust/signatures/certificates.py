"""Certificate chains of the ``certificate`` method, checked as a signer's and not as a web site's.

A chain must lead to one of the roots the caller trusts for this purpose (never to the system's web
roots), every certificate must be valid at the time asked for (now, unless told), the leaf must be
allowed to sign code, and it must be *somebody*: a chain that ends at the right root is not an
identity, so at least one of subject, alternative name or fingerprint is required.

Path building and its checks (signatures, constraints, path lengths, unknown critical extensions)
are those of `cryptography`, whose web profile is replaced for the leaf alone: signing certificates
need no host name.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ...errors import quote
from ..errors import DocumentError, VerificationError
from ..files import read_document
from .keys import MAX_KEY_FILE, PublicKey, need_cryptography, wrap_public_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.x509 import Certificate

__all__ = ["CertificateFacts", "CertificateTrust", "load_certificates", "verify_chain"]


@dataclass(frozen=True)
class CertificateTrust:
    """Who a certificate must belong to, and who may vouch for it.

    Attributes:
        roots: Trust anchors, each a certificate in DER.
        subject: The leaf's subject, RFC 4514 (``CN=Releases,O=Example``).
        issuer: The leaf's issuer, RFC 4514.
        name: One of the leaf's alternative names: an e-mail address, URI or host name.
        sha256: The leaf's fingerprint, hexadecimal.
        at: The moment at which the chain must have been valid; now unless given. A bundle of this
            method proves no time: give one only where something else tells when it was signed.
    """

    roots: tuple[bytes, ...]
    subject: str | None = None
    issuer: str | None = None
    name: str | None = None
    sha256: str | None = None
    at: datetime | None = None

    def __post_init__(self) -> None:
        if not self.roots:
            raise DocumentError("no root certificate to trust", field="roots")
        if not (self.subject or self.name or self.sha256):
            raise DocumentError(
                "a root alone is no identity: give the certificate's subject, alternative name or "
                "fingerprint", field="subject",
            )  # fmt: skip


@dataclass(frozen=True)
class CertificateFacts:
    """Who a verified certificate belongs to."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    sha256: str


def load_certificates(
    source: str | os.PathLike[str] | bytes, *, path: str | None = None
) -> tuple[bytes, ...]:
    """The certificates of a PEM file (str: its path) or of PEM bytes, in DER.

    Raises:
        DocumentError: Holds none, or one that cannot be read.
    """
    x509 = need_cryptography("x509")
    coding = need_cryptography("hazmat.primitives.serialization")
    if not isinstance(source, bytes):
        path = os.fspath(source)
        source = read_document(path, limit=MAX_KEY_FILE)
    try:
        found = x509.load_pem_x509_certificates(source)
    except ValueError:
        raise DocumentError(
            "there is no certificate in PEM here that can be read", path=path
        ) from None
    return tuple(certificate.public_bytes(coding.Encoding.DER) for certificate in found)


def verify_chain(
    chain: Sequence[bytes], trust: CertificateTrust, *, path: str | None = None
) -> tuple[PublicKey, CertificateFacts]:
    """The leaf's key and identity, once the chain is known to be good.

    Raises:
        DocumentError: A certificate that cannot be read, or with a key that OMS does not take.
        VerificationError: ``certificate-expired``, ``certificate-untrusted``,
            ``certificate-usage`` or ``certificate-identity``.
    """
    loaded = [_load(der, f"certificates[{index}]", path) for index, der in enumerate(chain)]
    at = trust.at or datetime.now(timezone.utc)
    _check_dates(loaded[0], at, path)
    _check_path(loaded, trust, at, path)
    _check_usage(loaded[0], path)
    facts = _facts(loaded[0], chain[0])
    _check_identity(facts, trust, path)
    return wrap_public_key(loaded[0].public_key(), path=path), facts


def certified_key(der: bytes, *, path: str | None = None) -> PublicKey:
    """The key of a certificate, of which nothing is verified.

    Raises:
        DocumentError: It cannot be read, or has a key that OMS does not take.
    """
    return wrap_public_key(_load(der, "certificates[0]", path).public_key(), path=path)


def _load(der: bytes, field: str, path: str | None) -> Certificate:
    x509 = need_cryptography("x509")
    try:
        certificate: Certificate = x509.load_der_x509_certificate(der)
        certificate.public_key()
        list(certificate.extensions)
        certificate.subject.rfc4514_string()
    except Exception:  # noqa: BLE001 - parsing is lazy and raises many kinds
        raise DocumentError("not a certificate that can be read", field=field, path=path) from None
    return certificate


def _check_dates(leaf: Certificate, at: datetime, path: str | None) -> None:
    begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if not begin <= at <= end:
        raise VerificationError(
            f"the signing certificate is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}, not at "
            f"{at:%Y-%m-%d %H:%M} UTC", reason="certificate-expired", path=path,
        )  # fmt: skip


def _check_path(
    chain: list[Certificate], trust: CertificateTrust, at: datetime, path: str | None
) -> None:
    x509 = need_cryptography("x509")
    verification = need_cryptography("x509.verification")
    roots = [_load(der, f"roots[{index}]", None) for index, der in enumerate(trust.roots)]
    if chain[0] in roots:
        return  # the caller trusts this very certificate
    leaf_policy = verification.ExtensionPolicy.permit_all()
    authority_policy = verification.ExtensionPolicy.webpki_defaults_ca().may_be_present(
        x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, None
    )
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(roots))
        .time(at)
        .extension_policies(ca_policy=authority_policy, ee_policy=leaf_policy)
        .build_client_verifier()
    )
    try:
        verifier.verify(chain[0], chain[1:])
    except (verification.VerificationError, x509.UnsupportedGeneralNameType) as error:
        raise VerificationError(
            "the signing certificate does not lead to a trusted root: "
            f"{quote(str(error).splitlines()[0], 200)}", reason="certificate-untrusted", path=path,
        ) from None  # fmt: skip


def _check_usage(leaf: Certificate, path: str | None) -> None:
    x509 = need_cryptography("x509")
    usage = _extension(leaf, x509.KeyUsage)
    purposes = _extension(leaf, x509.ExtendedKeyUsage)
    signs = usage is None or usage.digital_signature
    code = x509.oid.ExtendedKeyUsageOID.CODE_SIGNING
    # A leaf that names neither says nothing about signing; one for web servers says no.
    if not signs or (purposes is None and usage is None) or (purposes and code not in purposes):
        raise VerificationError(
            "the certificate is not one for signing (its key usage must allow digital signatures, "
            "its extended key usage, where present, code signing)", reason="certificate-usage",
            path=path,
        )  # fmt: skip


def _extension(certificate: Certificate, kind: Any) -> Any:
    missing = need_cryptography("x509").ExtensionNotFound
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except missing:
        return None


def _facts(leaf: Certificate, der: bytes) -> CertificateFacts:
    x509 = need_cryptography("x509")
    names: list[str] = []
    if alternatives := _extension(leaf, x509.SubjectAlternativeName):
        for kind in (x509.RFC822Name, x509.UniformResourceIdentifier, x509.DNSName):
            names += alternatives.get_values_for_type(kind)
    return CertificateFacts(
        leaf.subject.rfc4514_string(), leaf.issuer.rfc4514_string(), tuple(names),
        hashlib.sha256(der).hexdigest(),
    )  # fmt: skip


def _check_identity(facts: CertificateFacts, trust: CertificateTrust, path: str | None) -> None:
    wanted = {
        "subject": (trust.subject, (facts.subject,)),
        "issuer": (trust.issuer, (facts.issuer,)),
        "alternative name": (trust.name, facts.names),
        "fingerprint": (trust.sha256 and trust.sha256.lower(), (facts.sha256,)),
    }
    for what, (expected, found) in wanted.items():
        if expected is not None and expected not in found:
            shown = ", ".join(quote(text) for text in found) or "none"
            raise VerificationError(
                f"the certificate's {what} is {shown}; expected {quote(expected)}",
                reason="certificate-identity", path=path,
            )  # fmt: skip
