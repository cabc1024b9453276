"""Which certificates sign, and who they belong to (RFC 5280, OMS section 4.1)."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose

from safeweights.trust.errors import DocumentError, TrustError
from safeweights.trust.signatures import signing, verifying

if TYPE_CHECKING:
    from pathlib import Path

    from safeweights.trust.signatures.certificates import CertificateTrust


def reason(model: Path, signer: Any, authorities: list[Any], trust: CertificateTrust) -> str:
    """Why a signature made with `signer`'s certificate is refused; empty where it is not."""
    chain = [signer.der, *(authority.der for authority in authorities)]
    signing.sign(model, signer.signer, certificates=chain)
    try:
        verifying.verify(model, trust)
    except TrustError as error:
        return error.reason
    return ""


class TestPurposes:
    """What an authority may issue is restricted by its own extended key usage."""

    @pytest.mark.parametrize(
        ("purposes", "expected"),
        [
            (None, ""),
            ([Purpose.CODE_SIGNING], ""),
            ([Purpose.SERVER_AUTH, Purpose.CODE_SIGNING], ""),
            ([Purpose.ANY_EXTENDED_KEY_USAGE], ""),
            ([Purpose.SERVER_AUTH], "certificate-untrusted"),
            ([Purpose.SERVER_AUTH, Purpose.CLIENT_AUTH], "certificate-untrusted"),
            ([Purpose.TIME_STAMPING], "certificate-untrusted"),
        ],
    )
    @pytest.mark.parametrize("critical", [True, False])
    def test_of_an_authority(
        self,
        model: Path,
        pki: Any,
        make_certificate: Any,
        purposes: Any,
        critical: bool,
        expected: str,
    ) -> None:
        authority = make_certificate(
            "authority", pki.root, authority=True, purposes=purposes, critical_purposes=critical
        )
        leaf = make_certificate("releases", authority)
        assert reason(model, leaf, [authority], pki.trust()) == expected
        # ... and further up the chain, the root included.
        below = make_certificate("below", authority, authority=True)
        leaf = make_certificate("releases", below)
        assert reason(model, leaf, [below, authority], pki.trust()) == expected
        assert reason(model, leaf, [below], pki.trust(roots=(authority.der,))) == expected

    def test_another_path_is_found(self, model: Path, pki: Any, make_certificate: Any) -> None:
        """The same authority, certified twice: once for web servers, once without restriction."""
        free = make_certificate("authority", pki.root, authority=True)
        builder = x509.CertificateBuilder(
            free.certificate.issuer, free.certificate.subject, free.certificate.public_key(),
            x509.random_serial_number(), free.certificate.not_valid_before_utc,
            free.certificate.not_valid_after_utc, list(free.certificate.extensions),
        ).add_extension(x509.ExtendedKeyUsage([Purpose.SERVER_AUTH]), critical=False)  # fmt: skip
        from cryptography.hazmat.primitives import hashes, serialization

        web = builder.sign(pki.root.key, hashes.SHA256())
        leaf = make_certificate("releases", free)
        chain = [leaf.der, web.public_bytes(serialization.Encoding.DER)]
        signing.sign(model, leaf.signer, certificates=chain)
        with pytest.raises(TrustError):
            verifying.verify(model, pki.trust())
        signing.sign(model, leaf.signer, certificates=[*chain, free.der])
        verifying.verify(model, pki.trust())

    @pytest.mark.parametrize(
        "purposes", [[Purpose.SERVER_AUTH], [Purpose.ANY_EXTENDED_KEY_USAGE], []], ids=str
    )
    def test_of_the_leaf(self, model: Path, pki: Any, make_certificate: Any, purposes: Any) -> None:
        leaf = make_certificate("releases", pki.intermediate, purposes=purposes)
        assert reason(model, leaf, [pki.intermediate], pki.trust()) == "certificate-usage"
        assert reason(model, leaf, [], pki.trust(roots=(leaf.der,))) == "certificate-usage"


class TestAuthorities:
    """An authority does not sign content, whatever else its certificate says."""

    @pytest.mark.parametrize("usage", [True, False])
    def test_below_the_root(
        self, model: Path, pki: Any, make_certificate: Any, usage: bool
    ) -> None:
        authority = make_certificate(
            "releases", pki.intermediate, authority=True, signs=True, usage=usage,
            purposes=[Purpose.CODE_SIGNING],
        )  # fmt: skip
        assert reason(model, authority, [pki.intermediate], pki.trust()) == "certificate-usage"

    def test_the_root_itself(self, model: Path, pki: Any, make_certificate: Any) -> None:
        root = make_certificate(
            "releases", authority=True, signs=True, purposes=[Purpose.CODE_SIGNING]
        )
        assert reason(model, root, [], pki.trust(roots=(root.der,))) == "certificate-usage"

    def test_a_signer_that_may_issue(self, model: Path, pki: Any, make_certificate: Any) -> None:
        leaf = make_certificate("releases", pki.intermediate, issues=True)
        assert reason(model, leaf, [pki.intermediate], pki.trust()) == "certificate-usage"

    def test_a_signer_that_may_not_sign(self, model: Path, pki: Any, make_certificate: Any) -> None:
        leaf = make_certificate("releases", pki.intermediate, signs=False)
        assert reason(model, leaf, [pki.intermediate], pki.trust()) == "certificate-usage"

    def test_marked_as_authority_without_the_right_to_issue(
        self, model: Path, pki: Any, make_certificate: Any
    ) -> None:
        """As certtool makes them, and the vectors of OMS have them: no certificate below is valid."""
        leaf = make_certificate(
            "releases", pki.intermediate, authority=True, signs=True, issues=False,
            purposes=[Purpose.CODE_SIGNING],
        )  # fmt: skip
        assert reason(model, leaf, [pki.intermediate], pki.trust()) == ""
        below = make_certificate("releases", leaf)
        chain = [leaf, pki.intermediate]
        assert reason(model, below, chain, pki.trust()) == "certificate-untrusted"

    def test_a_certificate_that_is_its_own_root(
        self, model: Path, pki: Any, make_certificate: Any
    ) -> None:
        """Trusted by itself, as the conformance suite of OMS has one: it may sign, and issue nothing."""
        own = make_certificate(
            "releases", authority=True, signs=True, issues=False, purposes=[Purpose.CODE_SIGNING]
        )
        assert reason(model, own, [], pki.trust(roots=(own.der,))) == ""
        assert reason(model, own, [], pki.trust()) == "certificate-untrusted"
        below = make_certificate("releases", own)
        trust = pki.trust(roots=(own.der,))
        assert reason(model, below, [own], trust) == "certificate-untrusted"

    def test_path_length(self, model: Path, pki: Any, make_certificate: Any) -> None:
        above = make_certificate("above", pki.root, authority=True, path_length=0)
        below = make_certificate("below", above, authority=True)
        leaf = make_certificate("releases", below)
        assert reason(model, leaf, [below, above], pki.trust()) == "certificate-untrusted"

    def test_expired_root(self, model: Path, pki: Any, make_certificate: Any) -> None:
        now = dt.datetime.now(dt.timezone.utc)
        root = make_certificate(
            "old", authority=True, begin=now - dt.timedelta(9), end=now - dt.timedelta(1)
        )
        leaf = make_certificate("releases", root)
        assert reason(model, leaf, [], pki.trust(roots=(root.der,))) == "certificate-untrusted"


class TestNames:
    @pytest.fixture
    def leaf(self, pki: Any, make_certificate: Any) -> Any:
        return make_certificate(
            "releases", pki.intermediate,
            names=[
                x509.RFC822Name("ann@models.example.org"),
                x509.UniformResourceIdentifier("https://example.org/teams/models"),
                x509.DNSName("host.example.org"),
            ],
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("ann@models.example.org", ""),
            ("*@models.example.org", ""),
            ("https://example.org/teams/*", ""),
            ("*.example.org", ""),
            ("*@example.org", "certificate-identity"),
            ("https://example.org/*", "certificate-identity"),
            ("ann@models.exampleXorg", "certificate-identity"),
            ("https://example.org/teams/", "certificate-identity"),
        ],
    )
    def test_patterns(self, model: Path, pki: Any, leaf: Any, name: str, expected: str) -> None:
        trust = pki.trust(subject=None, name=name)
        assert reason(model, leaf, [pki.intermediate], trust) == expected

    @pytest.mark.parametrize("name", ["*", "**", "*@*", "a***"])
    def test_patterns_that_name_no_one(self, pki: Any, name: str) -> None:
        with pytest.raises(DocumentError) as caught:
            pki.trust(subject=None, name=name)
        assert caught.value.field == "name"
