"""What all recipient types share: who wraps a file key, who unwraps it, and the cipher around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from ...errors import FormatError
from ...storage.encrypted import FILE_KEY, Secret, need_cryptography
from .header import decode64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .header import Stanza

__all__ = ["Identity", "Recipient", "check_arguments", "malformed", "unwrap_key", "wrap_key"]

_WRAPPED: Final = FILE_KEY + 16
_ZERO_NONCE: Final = bytes(12)


class Recipient(Protocol):
    """Who a file is encrypted for.

    Attributes:
        label: How recipients are written and named in logs. It is not secret.
        kind: The type of its stanzas.
        post_quantum: Whether it is secure against quantum computers. A file is encrypted only for such
            recipients, or for none.
    """

    @property
    def label(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def post_quantum(self) -> bool: ...

    def wrap(self, file_key: bytes) -> Stanza:
        """The file key, wrapped for this recipient."""


class Identity(Protocol):
    """Who can open a file: the private half of a recipient."""

    def unwrap(self, stanzas: Sequence[Stanza], path: str) -> tuple[bytes, str] | None:
        """The file key and the label of the recipient, if one of the stanzas is for this identity.

        Raises:
            FormatError: A stanza of this identity's type is malformed.
            AccessError: A passphrase is needed and cannot be had.
        """


def wrap_key(key: bytes, file_key: bytes) -> bytes:
    """Encrypt a file key; `key` must be used once."""
    aead = need_cryptography("hazmat.primitives.ciphers.aead")
    body: bytes = aead.ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, file_key, None)
    return body


def unwrap_key(key: bytes, stanza: Stanza) -> bytes | None:
    """Decrypt a file key; None if it was not encrypted with `key`."""
    aead = need_cryptography("hazmat.primitives.ciphers.aead")
    try:
        return Secret(aead.ChaCha20Poly1305(key).decrypt(_ZERO_NONCE, stanza.body, None))
    except need_cryptography("exceptions").InvalidTag:
        return None


def check_arguments(
    stanza: Stanza, sizes: Sequence[int], path: str, *, body: int = _WRAPPED
) -> list[bytes]:
    """The arguments of a stanza, decoded, once their number and sizes and the size of the body are right.

    The size of the body is checked before anything is decrypted: a body of another size could be made to
    open with several keys (partitioning oracle attacks).

    Args:
        stanza: The stanza.
        sizes: Of each argument in bytes.
        path: The file, for messages.
        body: Size of the body in bytes.

    Raises:
        FormatError: ``age-header``.
    """
    found = [decode64(argument) for argument in stanza.arguments]
    if [None if data is None else len(data) for data in found] != list(sizes):
        expected = " and ".join(map(str, sizes)) or "no"
        problem = f"its arguments must be {expected} bytes in canonical base64"
        raise malformed(stanza, problem, path)
    if len(stanza.body) != body:
        raise malformed(stanza, f"its body must have {body} bytes", path)
    return [data for data in found if data is not None]


def malformed(stanza: Stanza, problem: str, path: str) -> FormatError:
    """The error for a stanza; it quotes only the type, which the caller compared with a known one."""
    return FormatError(
        f"the header of the encrypted file is malformed: {stanza.type} recipient: {problem}",
        rule="age-header", path=path,
    )  # fmt: skip
