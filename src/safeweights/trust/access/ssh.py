"""The ssh-ed25519 and ssh-rsa recipient types: SSH keys that people already have.

Not part of the specification; as age and rage write them (filippo.io/age/agessh). Unlike the native types
they name their recipient, by the first four bytes of the key's SHA-256.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Final

from ...errors import MissingDependencyError
from ...storage.encrypted import FILE_KEY, Secret, derive_key, need_cryptography
from ..errors import AccessError, DocumentError
from .header import Stanza, encode64
from .hiding import without_frames
from .wrapping import check_arguments, malformed, unwrap_key, wrap_key
from .x25519 import exchange, public_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["SshIdentity", "SshRecipient", "load_ssh_identity"]

_ED25519: Final = "ssh-ed25519"
_RSA: Final = "ssh-rsa"
_ED25519_LABEL: Final = b"age-encryption.org/v1/ssh-ed25519"
_RSA_LABEL: Final = b"age-encryption.org/v1/ssh-rsa"
_LEAST_RSA_BITS: Final = 2048
_MOST_RSA_BITS: Final = 16384
_PRIME: Final = 2**255 - 19


class SshRecipient:
    """An SSH public key of type ssh-ed25519 or ssh-rsa.

    Args:
        key: A public key object of `cryptography`.

    Attributes:
        tag: How its stanzas name it: four bytes.

    Raises:
        ValueError: A key of another type, too short, or of low order.
    """

    post_quantum = False

    def __init__(self, key: Any) -> None:
        coding = need_cryptography("hazmat.primitives.serialization")
        ed25519 = need_cryptography("hazmat.primitives.asymmetric.ed25519")
        rsa = need_cryptography("hazmat.primitives.asymmetric.rsa")
        self._key = key
        if isinstance(key, rsa.RSAPublicKey):
            self.kind = _RSA
            if not _LEAST_RSA_BITS <= key.key_size <= _MOST_RSA_BITS:
                raise ValueError(f"an RSA key of {key.key_size} bits")
        elif isinstance(key, ed25519.Ed25519PublicKey):
            self.kind = _ED25519
            self.montgomery = _montgomery(key.public_bytes_raw())
            if exchange(bytes(31) + b"\x40", self.montgomery) is None:
                raise ValueError("a public key of low order")
        else:
            raise ValueError("an SSH key of another type than ssh-ed25519 and ssh-rsa")  # noqa: TRY004
        line = key.public_bytes(coding.Encoding.OpenSSH, coding.PublicFormat.OpenSSH)
        self.label: str = line.decode()
        self.wire = _wire(line)
        self.tag = hashlib.sha256(self.wire).digest()[:4]

    def __repr__(self) -> str:
        return f"SshRecipient({self.label})"

    def wrap(self, file_key: bytes) -> Stanza:
        """The file key, wrapped for this key."""
        if self.kind == _RSA:
            return Stanza(_RSA, (encode64(self.tag),), self._key.encrypt(file_key, _oaep()))
        secret = Secret(os.urandom(32))
        share, shared = public_of(secret), exchange(secret, self.montgomery)
        assert shared is not None  # the key is not of low order
        key = self.wrapping_key(shared, share)
        assert key is not None  # nor is a multiple of it
        return Stanza(_ED25519, (encode64(self.tag), encode64(share)), wrap_key(key, file_key))

    def is_among(self, stanzas: Iterable[Stanza]) -> bool:
        """Whether one of the stanzas names this recipient."""
        named = (self.kind, encode64(self.tag))
        return any((stanza.type, *stanza.arguments[:1]) == named for stanza in stanzas)

    def wrapping_key(self, shared: bytes, share: bytes) -> bytes | None:
        """The key around a file key of ssh-ed25519, bound to the SSH key itself."""
        tweak = derive_key(b"", self.wire, _ED25519_LABEL)
        tweaked = exchange(tweak, shared)
        if tweaked is None:
            return None
        return derive_key(tweaked, share + self.montgomery, _ED25519_LABEL)


class SshIdentity:
    """An SSH private key.

    Args:
        key: A private key object of `cryptography`.

    Raises:
        ValueError: See `SshRecipient`.
    """

    def __init__(self, key: Any) -> None:
        self.recipient = SshRecipient(key.public_key())
        self._key = key

    def __repr__(self) -> str:
        return f"SshIdentity of {self.recipient.label}"

    def unwrap(self, stanzas: Sequence[Stanza], path: str) -> tuple[bytes, str] | None:
        """See `wrapping.Identity`."""
        open_one = self._open_rsa if self.recipient.kind == _RSA else self._open_ed25519
        for stanza in stanzas:
            if stanza.type == self.recipient.kind and (key := open_one(stanza, path)) is not None:
                return key, self.recipient.label
        return None

    def content_key(self, algorithm: str, wrapped: bytes) -> bytes | None:
        """The content key of a JWE file that was encrypted for this RSA key; else None."""
        from .jwe import unwrap_rsa

        return unwrap_rsa(self._key, algorithm, wrapped) if self.recipient.kind == _RSA else None

    def _open_rsa(self, stanza: Stanza, path: str) -> bytes | None:
        (tag,) = check_arguments(stanza, [4], path, body=len(stanza.body))
        if tag != self.recipient.tag:
            return None
        try:
            key = Secret(self._key.decrypt(stanza.body, _oaep()))
        except ValueError:
            return None
        if len(key) != FILE_KEY:
            raise malformed(stanza, f"the file key does not have {FILE_KEY} bytes", path)
        return key

    def _open_ed25519(self, stanza: Stanza, path: str) -> bytes | None:
        tag, share = check_arguments(stanza, [4, 32], path)
        if tag != self.recipient.tag:
            return None
        secret = Secret(hashlib.sha512(self._key.private_bytes_raw()).digest()[:32])
        shared = exchange(secret, share)
        key = None if shared is None else self.recipient.wrapping_key(shared, share)
        if key is None:
            raise malformed(stanza, "its share is a point of low order", path)
        return unwrap_key(key, stanza)


@without_frames
def load_ssh_identity(
    pem: bytes, passphrase: Callable[[], str] | None, *, path: str | None = None
) -> SshIdentity:
    """The identity in an SSH private key, in OpenSSH's own format or in PEM.

    Args:
        pem: The file.
        passphrase: Called if the key is encrypted.
        path: For messages.

    Raises:
        AccessError: ``passphrase``: it is needed, or wrong.
        DocumentError: It is no private key, or one of another type. The message has nothing of it.
    """
    coding = need_cryptography("hazmat.primitives.serialization")
    load = coding.load_ssh_private_key if b"OPENSSH" in pem[:64] else coding.load_pem_private_key
    unsupported = need_cryptography("exceptions").UnsupportedAlgorithm
    key = secret = None
    for _ in range(2):
        try:
            key = load(pem, secret)
            break
        except TypeError:  # it is encrypted
            if secret is not None or passphrase is None:
                raise AccessError(
                    "the SSH key is encrypted and needs a passphrase",
                    reason="passphrase",
                    path=path,
                ) from None
            secret = passphrase().encode()
        except Exception as error:  # noqa: BLE001 - the message must not carry anything of the key
            if isinstance(error, unsupported) and "bcrypt" in str(error):
                raise MissingDependencyError(
                    "encrypted SSH keys need the `bcrypt` package: pip install 'safeweights[encryption]'"
                ) from None
            if secret is not None:
                raise AccessError(
                    "the passphrase of the SSH key is wrong", reason="passphrase", path=path
                ) from None
            raise DocumentError("not an SSH private key that can be read", path=path) from None
    try:
        return SshIdentity(key)
    except (ValueError, AttributeError):
        raise DocumentError(
            "this key decrypts nothing: an SSH key must be of type ssh-ed25519, or ssh-rsa with 2048 to "
            "16384 bits; `safeweights keygen --age` makes an identity",
            reason="unsupported-key", path=path,
        ) from None  # fmt: skip


def _oaep() -> Any:
    padding = need_cryptography("hazmat.primitives.asymmetric.padding")
    hashes = need_cryptography("hazmat.primitives.hashes")
    return padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), _RSA_LABEL)


def _wire(line: bytes) -> bytes:
    """The key as SSH sends it, from its line of text."""
    import base64

    return base64.b64decode(line.split(b" ")[1])


def _montgomery(edwards: bytes) -> bytes:
    """The X25519 public key of an Ed25519 one: u = (1 + y) / (1 - y) (RFC 7748, section 4.1)."""
    y = int.from_bytes(edwards, "little") & (1 << 255) - 1
    u = (1 + y) * pow(1 - y, _PRIME - 2, _PRIME) % _PRIME
    return u.to_bytes(32, "little")
