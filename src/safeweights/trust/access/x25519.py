"""The X25519 recipient type (c2sp.org/age): ``age1...`` and ``AGE-SECRET-KEY-1...``."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from ...storage.encrypted import Secret, derive_key, need_cryptography
from . import bech32
from .header import Stanza, encode64
from .wrapping import check_arguments, malformed, unwrap_key, wrap_key

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "IDENTITY_PREFIX",
    "RECIPIENT_PREFIX",
    "X25519Identity",
    "X25519Recipient",
    "exchange",
    "public_of",
]

RECIPIENT_PREFIX: Final = "age"
IDENTITY_PREFIX: Final = "AGE-SECRET-KEY-"
_INFO: Final = b"age-encryption.org/v1/X25519"
_KIND: Final = "X25519"


def _x25519() -> Any:
    return need_cryptography("hazmat.primitives.asymmetric.x25519")


def public_of(secret: bytes) -> bytes:
    """The public key of an X25519 private key; both are 32 bytes."""
    public: bytes = (
        _x25519().X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    )
    return public


def exchange(secret: bytes, public: bytes) -> bytes | None:
    """The shared secret (RFC 7748); None if it is all zeros, because `public` is a point of low order."""
    module = _x25519()
    key = module.X25519PrivateKey.from_private_bytes(secret)
    try:
        shared = Secret(key.exchange(module.X25519PublicKey.from_public_bytes(public)))
    except ValueError:
        return None
    return shared if any(shared) else None


class X25519Recipient:
    """An X25519 public key.

    Args:
        key: 32 bytes.

    Raises:
        ValueError: The key is a point of low order: anybody could open what is encrypted for it.
    """

    kind = _KIND
    post_quantum = False

    def __init__(self, key: bytes) -> None:
        if exchange(bytes(31) + b"\x40", key) is None:
            raise ValueError("a public key of low order")
        self._key = key
        self.label = bech32.encode(RECIPIENT_PREFIX, key)

    def __repr__(self) -> str:
        return f"X25519Recipient({self.label})"

    def wrap(self, file_key: bytes) -> Stanza:
        """The file key, wrapped with a key of its own for every stanza."""
        secret = Secret(os.urandom(32))
        share, shared = public_of(secret), exchange(secret, self._key)
        assert shared is not None  # the key is not of low order
        body = wrap_key(derive_key(shared, share + self._key, _INFO), file_key)
        return Stanza(_KIND, (encode64(share),), body)


class X25519Identity:
    """An X25519 private key.

    Args:
        secret: 32 bytes.
    """

    post_quantum = False

    def __init__(self, secret: bytes) -> None:
        self._secret = Secret(secret)
        self._public = public_of(secret)

    def __repr__(self) -> str:
        return f"X25519Identity of {self.recipient.label}"

    @cached_property
    def recipient(self) -> X25519Recipient:
        """Its public half."""
        return X25519Recipient(self._public)

    def text(self) -> str:
        """The identity as age writes it. It is secret."""
        return bech32.encode(IDENTITY_PREFIX, self._secret)

    def unwrap(self, stanzas: Sequence[Stanza], path: str) -> tuple[bytes, str] | None:
        """See `wrapping.Identity`."""
        for stanza in stanzas:
            if stanza.type != _KIND:
                continue
            (share,) = check_arguments(stanza, [32], path)
            shared = exchange(self._secret, share)
            if shared is None:
                raise malformed(stanza, "its share is a point of low order", path)
            key = unwrap_key(derive_key(shared, share + self._public, _INFO), stanza)
            if key is not None:
                return key, self.recipient.label
        return None
