"""The hybrid post-quantum recipient type (c2sp.org/age, MLKEM768-X25519, which is X-Wing).

Recipients are ``age1pq1...``, identities ``AGE-SECRET-KEY-PQ-1...``. HPKE (RFC 9180) with this key
encapsulation is that of `cryptography`; where it is too old to have it, the error says so.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from ...errors import MissingDependencyError
from ...storage.encrypted import Secret, need_cryptography
from . import bech32
from .header import Stanza, encode64
from .wrapping import check_arguments, malformed
from .x25519 import exchange, public_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "IDENTITY_PREFIX",
    "PUBLIC_SIZE",
    "RECIPIENT_PREFIX",
    "HybridIdentity",
    "HybridRecipient",
]

RECIPIENT_PREFIX: Final = "age1pq"
IDENTITY_PREFIX: Final = "AGE-SECRET-KEY-PQ-"
PUBLIC_SIZE: Final = 1184 + 32
_ENCAPSULATED: Final = 1088 + 32
_INFO: Final = b"age-encryption.org/mlkem768x25519"
_KIND: Final = "mlkem768x25519"


def _modules() -> tuple[Any, Any, Any]:
    """(hpke, mlkem, x25519)."""
    names = "hpke", "asymmetric.mlkem", "asymmetric.x25519"
    need_cryptography("hazmat.primitives")  # if all of it is missing, the error says that
    try:
        hpke, mlkem, x25519 = (need_cryptography(f"hazmat.primitives.{name}") for name in names)
        hpke.KEM.MLKEM768_X25519  # noqa: B018 - asks for the name
    except (MissingDependencyError, AttributeError):
        raise MissingDependencyError(
            "post-quantum recipients need a newer `cryptography` package: pip install 'cryptography>=50'"
        ) from None
    return hpke, mlkem, x25519


def _suite(hpke: Any) -> Any:
    return hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)


class HybridRecipient:
    """A hybrid public key.

    Args:
        key: 1,216 bytes: those of ML-KEM-768, then those of X25519.

    Raises:
        ValueError: It is not a key.
    """

    kind = _KIND
    post_quantum = True

    def __init__(self, key: bytes) -> None:
        hpke, mlkem, x25519 = _modules()
        self._key = hpke.MLKEM768X25519PublicKey(
            mlkem.MLKEM768PublicKey.from_public_bytes(key[:1184]),
            x25519.X25519PublicKey.from_public_bytes(key[1184:]),
        )
        if exchange(bytes(31) + b"\x40", key[1184:]) is None:
            raise ValueError("a public key of low order")
        self.label = bech32.encode(RECIPIENT_PREFIX, key)

    def __repr__(self) -> str:
        return f"HybridRecipient({self.label[:24]}...)"

    def wrap(self, file_key: bytes) -> Stanza:
        """The file key, sealed with HPKE."""
        sealed = _suite(_modules()[0]).encrypt(file_key, self._key, _INFO)
        return Stanza(_KIND, (encode64(sealed[:_ENCAPSULATED]),), sealed[_ENCAPSULATED:])


class HybridIdentity:
    """A hybrid private key.

    Args:
        seed: 32 bytes, from which both keys are made.
    """

    post_quantum = True

    def __init__(self, seed: bytes) -> None:
        hpke, mlkem, x25519 = _modules()
        self._seed = Secret(seed)
        expanded = hashlib.shake_256(seed).digest(96)
        self._x25519 = Secret(expanded[64:])
        self._mlkem = mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        self._key = hpke.MLKEM768X25519PrivateKey(
            self._mlkem, x25519.X25519PrivateKey.from_private_bytes(self._x25519)
        )

    def __repr__(self) -> str:
        return f"HybridIdentity of {self.recipient.label[:24]}..."

    @cached_property
    def recipient(self) -> HybridRecipient:
        """Its public half."""
        return HybridRecipient(
            self._mlkem.public_key().public_bytes_raw() + public_of(self._x25519)
        )

    def text(self) -> str:
        """The identity as age writes it. It is secret."""
        return bech32.encode(IDENTITY_PREFIX, self._seed)

    def unwrap(self, stanzas: Sequence[Stanza], path: str) -> tuple[bytes, str] | None:
        """See `wrapping.Identity`."""
        for stanza in stanzas:
            if stanza.type != _KIND:
                continue
            (sealed,) = check_arguments(stanza, [_ENCAPSULATED], path)
            # X-Wing itself does not look: its other half would still protect the file key.
            if exchange(self._x25519, sealed[-32:]) is None:
                raise malformed(stanza, "its X25519 share is a point of low order", path)
            try:
                key = _suite(_modules()[0]).decrypt(sealed + stanza.body, self._key, _INFO)
            except need_cryptography("exceptions").InvalidTag:
                continue
            return Secret(key), self.recipient.label
        return None
