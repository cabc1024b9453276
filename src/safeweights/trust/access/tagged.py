"""The tagged recipient type for hardware keys (c2sp.org/age, p256tag): ``age1tag1...``.

A file can be encrypted for such a key, and the key is named by a tag. The private half is in hardware, and
its identity belongs to a plugin of age, which is not run here: a function from a stanza to a file key asks
the hardware. The hybrid variant (``age1tagpq1...``) needs a key encapsulation that `cryptography` lacks.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Any, Final

from ...errors import MissingDependencyError
from ...storage.encrypted import need_cryptography
from . import bech32
from .header import Stanza, decode64, encode64

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["HYBRID_PREFIX", "RECIPIENT_PREFIX", "TaggedRecipient"]

RECIPIENT_PREFIX: Final = "age1tag"
HYBRID_PREFIX: Final = "age1tagpq"
_KIND: Final = "p256tag"
_INFO: Final = b"age-encryption.org/p256tag"
_ENCAPSULATED: Final = 65
_COMPRESSED: Final = 33


def _hpke() -> Any:
    need_cryptography("hazmat.primitives")  # if all of it is missing, the error says that
    try:
        module = need_cryptography("hazmat.primitives.hpke")
        module.KEM.P256  # noqa: B018 - asks for the name
    except (MissingDependencyError, AttributeError):
        raise MissingDependencyError(
            "recipients with hardware keys need a newer `cryptography` package: "
            "pip install 'cryptography>=50'"
        ) from None
    return module


class TaggedRecipient:
    """The public half of a P-256 key in hardware.

    Args:
        key: The point in compressed form; 33 bytes.

    Raises:
        ValueError: It is no point of the curve.
    """

    kind = _KIND
    post_quantum = False

    def __init__(self, key: bytes) -> None:
        ec = need_cryptography("hazmat.primitives.asymmetric.ec")
        if len(key) != _COMPRESSED:
            raise ValueError(f"a public key of {len(key)} bytes")
        self._key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key)
        self._hash = hashlib.sha256(key).digest()[:4]
        self.label = bech32.encode(RECIPIENT_PREFIX, key)

    def __repr__(self) -> str:
        return f"TaggedRecipient({self.label})"

    def wrap(self, file_key: bytes) -> Stanza:
        """The file key, sealed with HPKE (RFC 9180)."""
        hpke = _hpke()
        suite = hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
        sealed = suite.encrypt(file_key, self._key, _INFO)
        share, body = sealed[:_ENCAPSULATED], sealed[_ENCAPSULATED:]
        return Stanza(_KIND, (encode64(self._tag(share)), encode64(share)), body)

    def is_among(self, stanzas: Iterable[Stanza]) -> bool:
        """Whether one of the stanzas names this recipient."""
        for stanza in stanzas:
            if stanza.type == _KIND and len(stanza.arguments) == 2:
                tag, share = map(decode64, stanza.arguments)
                if share is not None and tag == self._tag(share):
                    return True
        return False

    def _tag(self, share: bytes) -> bytes:
        # HKDF-Extract (RFC 5869) is HMAC with the salt as key.
        return hmac.new(_INFO, share + self._hash, hashlib.sha256).digest()[:4]
