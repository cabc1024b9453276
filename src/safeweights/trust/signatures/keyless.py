"""Keyless signatures: a short-lived certificate of an identity, recorded in a transparency log.

Verification is that of the `sigstore` package, offline: against the trusted root that the package
ships (or one the caller gives), never against the network. An identity without the issuer that
vouched for it, or the other way round, is no identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module, resources
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote as url_quote

from ...errors import MissingDependencyError, quote
from ..errors import DocumentError, VerificationError

if TYPE_CHECKING:
    from .bundle import Bundle

__all__ = ["KeylessTrust", "verify_keyless"]

_PRODUCTION: Final = "https://tuf-repo-cdn.sigstore.dev"


@dataclass(frozen=True)
class KeylessTrust:
    """Whose identity signed, and who vouches for that identity.

    Attributes:
        identity: E-mail address or workflow URI in the certificate.
        issuer: URL of the OpenID Connect provider.
        trusted_root: File with the keys of another Sigstore instance than the public one.
    """

    identity: str
    issuer: str
    trusted_root: str | None = None

    def __post_init__(self) -> None:
        for name in ("identity", "issuer"):
            if not getattr(self, name):
                raise DocumentError("must not be empty", field=name)


def verify_keyless(bundle: Bundle, trust: KeylessTrust) -> str:
    """The time at which `bundle` was recorded (RFC 3339), once it is known to be good.

    Cost: about 20 ms; no network.

    Raises:
        VerificationError: ``keyless``: not signed by that identity, not recorded, or altered.
        MissingDependencyError: Without the extra ``keyless``.
    """
    verify = _sigstore("verify")
    errors = _sigstore("errors")
    root = _trusted_root(trust.trusted_root)
    try:
        parsed = _sigstore("models").Bundle.from_json(bundle.source)
        policy = verify.policy.Identity(identity=trust.identity, issuer=trust.issuer)
        kind, payload = verify.Verifier(trusted_root=root).verify_dsse(parsed, policy)
    except errors.Error as error:
        raise _refusal(str(error), bundle) from None
    except Exception as error:  # noqa: BLE001 - its parser raises many kinds for hostile input
        raise _refusal(type(error).__name__, bundle) from None
    if payload != bundle.payload:
        raise _refusal(f"verified another payload ({quote(str(kind), 60)})", bundle)
    return _recorded_at(parsed)


def _refusal(text: str, bundle: Bundle) -> VerificationError:
    return VerificationError(
        f"the keyless signature was refused: {quote(text, 300)}", reason="keyless",
        path=bundle.path,
    )  # fmt: skip


def _recorded_at(parsed: Any) -> str:
    seconds = int(parsed.log_entry._inner.integrated_time or 0)  # noqa: SLF001 - no public name
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat() if seconds else "unknown"


def _trusted_root(path: str | None) -> Any:
    models = _sigstore("models")
    try:
        if path is not None:
            return models.TrustedRoot.from_file(path)
        folder = resources.files(_sigstore("_store")) / url_quote(_PRODUCTION, safe="")
        with resources.as_file(folder / "trusted_root.json") as shipped:
            return models.TrustedRoot.from_file(str(shipped))
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - its parser raises many kinds
        raise DocumentError(
            f"not a Sigstore trusted root: {type(error).__name__}", path=path
        ) from None


def _sigstore(module: str) -> Any:
    try:
        return import_module(f"sigstore.{module}")
    except ImportError as error:
        raise MissingDependencyError(
            "keyless signatures need the `sigstore` package: pip install 'safeweights[keyless]'"
        ) from error
