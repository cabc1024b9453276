"""Keyless signatures: a short-lived certificate of an identity, recorded in a transparency log.

Both ways are the work of the `sigstore` package. Verification is offline: against the trusted root
that the package ships, or one that the caller gives, never against the network. An identity without
the issuer that vouched for it is no identity. Signing takes an OpenID Connect token, usually the one
of the job of a build service, and talks to the certificate authority, the transparency log and the
timestamp authority of the Sigstore instance.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import import_module, resources
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote as url_quote

from ...errors import MissingDependencyError, quote
from ..documents import parse_json
from ..errors import DocumentError, VerificationError
from ..files import read_document
from .patterns import check_pattern, is_pattern, matches

if TYPE_CHECKING:
    from .bundle import Bundle

__all__ = [
    "TRUSTED_ROOT_VARIABLE",
    "KeylessFacts",
    "KeylessSigner",
    "KeylessTrust",
    "verify_keyless",
]

TRUSTED_ROOT_VARIABLE: Final = "SAFEWEIGHTS_TRUSTED_ROOT"
"""Environment variable with the file that replaces the trusted root which `sigstore` ships."""

MAX_ROOT: Final = 4 << 20
_PRODUCTION: Final = "https://tuf-repo-cdn.sigstore.dev"
_CLIENT_CONFIG: Final = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
_FULCIO_NAME: Final = "1.3.6.1.4.1.57264.1.7"
"""OtherName of identities that are neither an address nor a URI (Fulcio's oid-info)."""


@dataclass(frozen=True)
class KeylessTrust:
    """The identity that must have signed, and the issuer that vouches for it.

    Attributes:
        identity: E-mail address or workflow URI in the certificate, or a pattern (see `patterns`):
            ``https://github.com/org/repo/.github/workflows/*@refs/tags/*``.
        issuer: URL of the OpenID Connect provider; never a pattern.
        trusted_root: File with the keys of a Sigstore instance: a trusted root, or a client trust
            configuration that has one. By default, the file named by the environment variable
            ``SAFEWEIGHTS_TRUSTED_ROOT``, else the public instance's as `sigstore` ships it.
    """

    identity: str
    issuer: str
    trusted_root: str | None = None

    def __post_init__(self) -> None:
        check_pattern(self.identity, field="identity")
        if not self.issuer or is_pattern(self.issuer):
            raise DocumentError("must be the URL of one provider", field="issuer")


@dataclass(frozen=True)
class KeylessFacts:
    """What a verified keyless signature says.

    Attributes:
        identity: The identity in the certificate.
        recorded: When the transparency log recorded the signature (RFC 3339).
    """

    identity: str
    recorded: str


def verify_keyless(bundle: Bundle, trust: KeylessTrust) -> KeylessFacts:
    """Verify a keyless signature: certificate, identity, log entry, and the payload's signature.

    Cost: about 20 ms; no network.

    Raises:
        VerificationError: ``keyless``: not signed by that identity, not recorded, or altered.
        DocumentError: The trusted root is malformed.
        MissingDependencyError: Without the extra ``keyless``.
    """
    verify = _sigstore("verify")
    errors = _sigstore("errors")
    root = _trusted_root(trust.trusted_root)
    policy = _IdentityPolicy(trust)
    try:
        parsed = _sigstore("models").Bundle.from_json(bundle.source)
        kind, payload = verify.Verifier(trusted_root=root).verify_dsse(parsed, policy)
    except errors.Error as error:
        raise _refusal(str(error), bundle) from None
    except Exception as error:  # noqa: BLE001 - its parser raises many kinds for hostile input
        raise _refusal(type(error).__name__, bundle) from None
    if payload != bundle.payload or policy.found is None:
        raise _refusal(f"verified another payload ({quote(str(kind), 60)})", bundle)
    return KeylessFacts(policy.found, _recorded_at(parsed))


class _IdentityPolicy:
    """A verification policy of `sigstore`: one issuer, and an identity or a pattern of one.

    Attributes:
        found: The identity that was accepted.
    """

    def __init__(self, trust: KeylessTrust) -> None:
        policies = _sigstore("verify").policy
        self.found: str | None = None
        self._trust = trust
        # Two spellings of the issuer, of which the second is the current one (Fulcio's oid-info).
        self._issuer = policies.AnyOf(
            [policies.OIDCIssuer(trust.issuer), policies.OIDCIssuerV2(trust.issuer)]
        )

    def verify(self, certificate: Any) -> None:
        """Called by `sigstore`, which raises a `VerificationError` of its own."""
        refused = _sigstore("errors").VerificationError
        try:
            self._issuer.verify(certificate)
        except refused:
            raise refused(f"the identity was not issued by {self._trust.issuer}") from None
        names = _identities(certificate)
        for name in names:
            if matches(self._trust.identity, name):
                self.found = name
                return
        shown = ", ".join(quote(name, 300) for name in names) or "none"
        raise refused(
            f"the identity is {shown}, but {quote(self._trust.identity, 300)} is required"
        )


def _identities(certificate: Any) -> list[str]:
    x509 = import_module("cryptography.x509")
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    names: list[str] = list(found.get_values_for_type(x509.RFC822Name))
    names += found.get_values_for_type(x509.UniformResourceIdentifier)
    return names + [
        other.value.decode()
        for other in found.get_values_for_type(x509.OtherName)
        if other.type_id.dotted_string == _FULCIO_NAME
    ]


def _refusal(text: str, bundle: Bundle) -> VerificationError:
    return VerificationError(
        f"the keyless signature was refused: {quote(text, 600)}", reason="keyless",
        path=bundle.path,
    )  # fmt: skip


def _recorded_at(parsed: Any) -> str:
    seconds = int(parsed.log_entry._inner.integrated_time or 0)  # noqa: SLF001 - no public name
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat() if seconds else "unknown"


def _trusted_root(path: str | None) -> Any:
    models = _sigstore("models")
    path = path or os.environ.get(TRUSTED_ROOT_VARIABLE) or None
    try:
        if path is None:
            folder = resources.files(_sigstore("_store")) / url_quote(_PRODUCTION, safe="")
            with resources.as_file(folder / "trusted_root.json") as shipped:
                return models.TrustedRoot.from_file(str(shipped))
        data = read_document(path, limit=MAX_ROOT)
        kind = parse_json(data, path=path).get("mediaType")
        if kind and kind.text() == _CLIENT_CONFIG:
            return models.ClientTrustConfig.from_json(data.decode()).trusted_root
        return models.TrustedRoot.from_file(path)
    except (OSError, DocumentError):
        raise
    except Exception as error:  # noqa: BLE001 - its parser raises many kinds
        raise DocumentError(
            f"not a Sigstore trusted root: {type(error).__name__}", path=path
        ) from None


@dataclass(frozen=True)
class KeylessSigner:
    """Signs with an identity instead of a key.

    The key is made for one signature and thrown away. The identity, the model's name and the digests
    become public with the transparency log of the public instance.

    Attributes:
        token: An OpenID Connect token; by default, that of the job which runs this (GitHub Actions,
            GitLab, Google Cloud and others that `sigstore` finds).
        trust_config: File with the client trust configuration of another Sigstore instance; by default,
            that of the public one, updated over the network.
        login: How a person logs in, instead of a token: ``"browser"`` opens a web browser on this machine
            (where there is none, it goes on as ``"code"``); ``"code"`` prints a link, and reads from
            standard input the code that the page at the link shows. It waits until it is interrupted.
    """

    token: str | None = field(default=None, repr=False)
    trust_config: str | None = None
    login: Literal["browser", "code"] | None = None

    def sign_bundle(self, payload: bytes) -> bytes:
        """Sign an in-toto statement: the signature file.

        Cost: some seconds, and requests to the services of the instance.

        Raises:
            VerificationError: ``keyless``: there is no identity, the login failed, or a service refused.
            DocumentError: The trust configuration is malformed.
            OSError: A service cannot be reached.
            MissingDependencyError: Without the extra ``keyless``.
        """
        signing = _sigstore("sign")
        config = self._config()
        try:
            context = signing.SigningContext.from_trust_config(config)
            with context.signer(self._identity(config)) as signer:
                made = signer.sign_dsse(_sigstore("dsse").Statement(payload))
            bundle: str = made.to_json()
        except (OSError, VerificationError):
            raise
        except Exception as error:  # noqa: BLE001 - each service has its own kinds
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise VerificationError(
                f"Sigstore did not sign: {quote(text, 300)}", reason="keyless"
            ) from None
        return bundle.encode() + b"\n"

    def _config(self) -> Any:
        models = _sigstore("models")
        if self.trust_config is None:
            return models.ClientTrustConfig.production()
        data = read_document(self.trust_config, limit=MAX_ROOT)
        try:
            return models.ClientTrustConfig.from_json(data.decode())
        except Exception as error:  # noqa: BLE001 - its parser raises many kinds
            raise DocumentError(
                f"not a Sigstore client trust configuration: {type(error).__name__}",
                path=self.trust_config,
            ) from None

    def _identity(self, config: Any) -> Any:
        oidc = _sigstore("oidc")
        if self.login is not None:
            issuer = oidc.Issuer(config.signing_config.get_oidc_url())
            # It prompts on standard output, which is for results.
            with redirect_stdout(sys.stderr):
                return issuer.identity_token(force_oob=self.login == "code")
        raw = self.token or oidc.detect_credential()
        if not raw:
            raise VerificationError(
                "there is no identity to sign with: this is not a job of a known build service; "
                "log in, or give an OpenID Connect token", reason="keyless",
            )  # fmt: skip
        return oidc.IdentityToken(raw)


def _sigstore(module: str) -> Any:
    try:
        return import_module(f"sigstore.{module}")
    except ImportError as error:
        raise MissingDependencyError(
            "keyless signatures need the `sigstore` package: pip install 'safeweights[keyless]'"
        ) from error
