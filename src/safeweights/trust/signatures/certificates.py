"""Certificate chains of the ``certificate`` method, checked as those of signers, not of web sites.

A chain must lead to one of the roots that the caller trusts for this purpose (never the system's web
roots), and every certificate must be valid at the time of the signature: now, or at the time of a
trusted timestamp over it. The leaf must be for signing code, and so must every authority above it
that is restricted to purposes: an authority for web servers issues no signers. An authority itself
does not sign. A chain that ends at the right root is not an identity, so at least one of subject,
alternative name or fingerprint is required.

Building the path and checking it (signatures, names, constraints, path lengths, unknown critical
extensions; RFC 5280 section 6) is the work of `cryptography`. Its profile for web servers is replaced
where it concerns host names and extended key usage.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from ...errors import quote
from ..errors import DocumentError, VerificationError
from ..files import read_document
from .keys import MAX_KEY_FILE, PublicKey, need_cryptography, wrap_public_key
from .patterns import check_pattern, matches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cryptography.x509 import Certificate, ExtendedKeyUsage

    from .timestamps import TimestampTrust

__all__ = ["CertificateFacts", "CertificateTrust", "load_certificates", "verify_chain"]


@dataclass(frozen=True)
class CertificateTrust:
    """The owner that a certificate must have, and the authorities that may have issued it.

    Attributes:
        roots: Trust anchors, each a certificate in DER.
        subject: The leaf's subject, RFC 4514 (``CN=Releases,O=Example``).
        issuer: The leaf's issuer, RFC 4514.
        name: One of the leaf's alternative names: an e-mail address, URI or host name; or a pattern
            of one (see `patterns`).
        sha256: The leaf's fingerprint, hexadecimal.
        at: The time at which the chain must have been valid; by default, now. Give one only where
            something else tells when the signature was made.
        timestamps: Timestamp authorities: the chain may then also have been valid at the time of one of
            their timestamps over the signature.
    """

    roots: tuple[bytes, ...]
    subject: str | None = None
    issuer: str | None = None
    name: str | None = None
    sha256: str | None = None
    at: datetime | None = None
    timestamps: TimestampTrust | None = None

    def __post_init__(self) -> None:
        if not self.roots:
            raise DocumentError("no root certificate to trust", field="roots")
        if not (self.subject or self.name or self.sha256):
            raise DocumentError(
                "a root alone is no identity: give the certificate's subject, alternative name or "
                "fingerprint", field="subject",
            )  # fmt: skip
        if self.name is not None:
            check_pattern(self.name, field="name")


@dataclass(frozen=True)
class CertificateFacts:
    """The owner of a verified certificate.

    Attributes:
        subject: RFC 4514.
        issuer: RFC 4514.
        names: Alternative names.
        sha256: The fingerprint.
        fingerprints: By which it can be revoked: of all certificates from the leaf to the root, each in
            both forms that its signature can have (see `_forms`).
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    sha256: str
    fingerprints: frozenset[str] = frozenset()


def load_certificates(
    source: str | os.PathLike[str] | bytes, *, path: str | None = None
) -> tuple[bytes, ...]:
    """Read the certificates of a PEM file (str: its path) or of PEM bytes, as DER.

    Raises:
        DocumentError: There is none, or one that cannot be read.
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
            "expected certificates in PEM, and found none that can be read", path=path
        ) from None
    return tuple(certificate.public_bytes(coding.Encoding.DER) for certificate in found)


def verify_chain(
    chain: Sequence[bytes],
    trust: CertificateTrust,
    *,
    times: Sequence[datetime] = (),
    path: str | None = None,
) -> tuple[PublicKey, CertificateFacts]:
    """Verify a chain: the leaf's key and identity.

    Args:
        chain: Certificates in DER, leaf first.
        trust: The owner and roots required.
        times: When the signature is known to have existed; the chain must have been valid at one of
            them, or at `trust.at`.
        path: The signature file, for errors.

    Raises:
        DocumentError: A certificate that cannot be read, or with a key that OMS does not take.
        VerificationError: ``certificate-expired``, ``certificate-untrusted``,
            ``certificate-usage`` or ``certificate-identity``.
    """
    loaded = [_load(der, f"certificates[{index}]", path) for index, der in enumerate(chain)]
    now = trust.at or datetime.now(timezone.utc)
    for at in (*times, now):
        try:
            _check_dates(loaded[0], at, path)
            found = _check_path(loaded, trust, at, path)
            break
        except VerificationError:
            if at is now:
                raise
    _check_usage(loaded[0], path)
    facts = _facts(loaded[0], chain[0], found)
    _check_identity(facts, trust, path)
    return wrap_public_key(loaded[0].public_key(), path=path), facts


def certified_key(der: bytes, *, path: str | None = None) -> PublicKey:
    """The key of a certificate; nothing is verified.

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
) -> list[Certificate]:
    """The certificates from the leaf to one of the roots."""
    x509 = need_cryptography("x509")
    verification = need_cryptography("x509.verification")
    roots = [_load(der, f"roots[{index}]", None) for index, der in enumerate(trust.roots)]
    if chain[0] in roots:
        return chain[:1]  # the caller trusts this very certificate
    authorities = verification.ExtensionPolicy.webpki_defaults_ca().may_be_present(
        x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, _check_purposes
    )
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(roots))
        .time(at)
        .extension_policies(
            ca_policy=authorities, ee_policy=verification.ExtensionPolicy.permit_all()
        )
        .build_client_verifier()
    )
    try:
        return list(verifier.verify(chain[0], chain[1:]).chain)
    except (verification.VerificationError, x509.UnsupportedGeneralNameType) as error:
        raise VerificationError(
            "the signing certificate does not lead to a trusted root: "
            f"{quote(str(error).splitlines()[0], 200)}", reason="certificate-untrusted", path=path,
        ) from None  # fmt: skip


def _check_purposes(_policy: Any, _certificate: Any, purposes: ExtendedKeyUsage | None) -> None:
    """Refuse an authority that is restricted to other purposes; called by `cryptography`.

    RFC 5280 leaves open whether the extension of an authority restricts what it issues; every verifier
    in wide use nests it so.
    """
    known = need_cryptography("x509.oid").ExtendedKeyUsageOID
    if purposes is not None and not {known.CODE_SIGNING, known.ANY_EXTENDED_KEY_USAGE} & set(
        purposes
    ):
        raise ValueError("an authority in the chain is not for certificates that sign code")


def _check_usage(leaf: Certificate, path: str | None) -> None:
    """The leaf must be a signer's: for signing code, and no authority (RFC 5280 section 4.2.1)."""
    x509 = need_cryptography("x509")
    usage = _extension(leaf, x509.KeyUsage)
    purposes = _extension(leaf, x509.ExtendedKeyUsage)
    basic = _extension(leaf, x509.BasicConstraints)
    code = x509.oid.ExtendedKeyUsageOID.CODE_SIGNING
    if purposes is None or code not in purposes:
        problem = "its extended key usage does not include code signing"
    elif usage is not None and not usage.digital_signature:
        problem = "its key usage does not include digital signatures"
    elif usage.key_cert_sign if usage is not None else basic is not None and basic.ca:
        problem = "it may issue certificates, and authorities do not sign content"
    else:
        return
    raise VerificationError(
        f"the certificate is not one for signing: {problem}", reason="certificate-usage", path=path
    )


def _extension(certificate: Certificate, kind: Any) -> Any:
    missing = need_cryptography("x509").ExtensionNotFound
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except missing:
        return None


def _facts(leaf: Certificate, der: bytes, chain: list[Certificate]) -> CertificateFacts:
    x509 = need_cryptography("x509")
    names: list[str] = []
    if alternatives := _extension(leaf, x509.SubjectAlternativeName):
        for kind in (x509.RFC822Name, x509.UniformResourceIdentifier, x509.DNSName):
            names += alternatives.get_values_for_type(kind)
    return CertificateFacts(
        leaf.subject.rfc4514_string(), leaf.issuer.rfc4514_string(), tuple(names),
        hashlib.sha256(der).hexdigest(),
        frozenset(hashlib.sha256(form).hexdigest() for each in chain for form in _forms(each)),
    )  # fmt: skip


_ORDERS: Final = (
    0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    0x01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409,
)
"""Orders of P-256, P-384 and P-521 (SP 800-186), the curves that authorities in a chain may have."""


def _forms(certificate: Certificate) -> Iterator[bytes]:
    """A certificate, and the others that differ in its signature only and are as valid.

    With (r, s), (r, order - s) is an ECDSA signature too: without it, the holder of a revoked certificate
    could change its fingerprint.
    """
    coding = need_cryptography("hazmat.primitives.serialization")
    utils = need_cryptography("hazmat.primitives.asymmetric.utils")
    der = certificate.public_bytes(coding.Encoding.DER)
    yield der
    try:
        r, s = utils.decode_dss_signature(certificate.signature)
    except ValueError:  # not ECDSA
        return
    body = certificate.tbs_certificate_bytes
    begin = der.index(body) + len(body)
    algorithm = der[begin : begin + 2 + der[begin + 1]]
    for order in _ORDERS:
        if 0 < s < order:
            signature = b"\0" + utils.encode_dss_signature(r, order - s)
            yield _element(0x30, body + algorithm + _element(0x03, signature))


def _element(tag: int, content: bytes) -> bytes:
    """A DER element."""
    size = len(content)
    length = size.to_bytes((size.bit_length() + 7) // 8 or 1, "big")
    return bytes([tag, *([0x80 | len(length)] if size > 0x7F else []), *length]) + content


def _check_identity(facts: CertificateFacts, trust: CertificateTrust, path: str | None) -> None:
    wanted = {
        "subject": (trust.subject, (facts.subject,)),
        "issuer": (trust.issuer, (facts.issuer,)),
        "fingerprint": (trust.sha256 and trust.sha256.lower(), (facts.sha256,)),
        "alternative name": (trust.name, facts.names),
    }
    for what, (expected, found) in wanted.items():
        if expected is None or expected in found:
            continue
        if what == "alternative name" and any(matches(expected, name) for name in found):
            continue
        shown = ", ".join(quote(text) for text in found) or "none"
        raise VerificationError(
            f"the certificate's {what} is {shown}, but {quote(expected)} is required",
            reason="certificate-identity", path=path,
        )  # fmt: skip
