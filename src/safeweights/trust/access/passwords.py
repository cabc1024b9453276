"""The scrypt recipient type (c2sp.org/age): a file that a passphrase opens.

A file with a passphrase has no other recipient. So a reader who opens it knows that its author knew the
passphrase, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ...errors import quote
from ...storage.encrypted import need_cryptography
from ..errors import AccessError
from .header import Stanza, decode64, encode64
from .hiding import Secret, SecretText
from .wrapping import check_arguments, malformed, unwrap_key, wrap_key

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["KIND", "MAX_WORK_FACTOR", "Passphrase"]

KIND: Final = "scrypt"
WORK_FACTOR: Final = 18
"""Base-2 logarithm of scrypt's N for files that are written: 256 MiB and about a second."""

MAX_WORK_FACTOR: Final = 20
"""The same for files that are read: 1 GiB of memory, four seconds. A file could ask for any amount."""

_SALT: Final = 16
_LABEL: Final = b"age-encryption.org/v1/scrypt"
_NUMBER: Final = re.compile(r"[1-9][0-9]*")


class Passphrase:
    """A passphrase, as recipient and as identity.

    Args:
        secret: The passphrase, or a function that gives it. It is called at most once, and only for a file
            that a passphrase opens.
        work_factor: Base-2 logarithm of the work for files that are written.
        max_work_factor: The most that a file that is read may ask for.

    >>> Passphrase("correct horse")
    Passphrase(...)
    """

    kind = KIND
    label = "passphrase"
    post_quantum = True

    def __init__(
        self,
        secret: str | Callable[[], str],
        *,
        work_factor: int = WORK_FACTOR,
        max_work_factor: int = MAX_WORK_FACTOR,
    ) -> None:
        self._secret = secret if callable(secret) else SecretText(secret)
        self._work_factor = work_factor
        self._max = max_work_factor

    def __repr__(self) -> str:
        return "Passphrase(...)"

    def _bytes(self) -> Secret:
        if callable(self._secret):
            given = self._secret()
            self._secret = SecretText(given if isinstance(given, str) else "")
        if not self._secret:
            raise AccessError("the passphrase is empty or not text", reason="passphrase")
        return Secret(self._secret.encode())

    def wrap(self, file_key: bytes) -> Stanza:
        """The file key, encrypted with a key made of the passphrase and a new salt."""
        salt = os.urandom(_SALT)
        key = _scrypt(self._bytes(), salt, self._work_factor)
        arguments = encode64(salt), str(self._work_factor)
        return Stanza(KIND, arguments, wrap_key(key, file_key))

    def unwrap(self, stanzas: Sequence[Stanza], path: str) -> tuple[bytes, str] | None:
        """See `wrapping.Identity`. Cost: what the file asks for, up to the maximum."""
        if [stanza.type for stanza in stanzas] != [KIND]:
            return None
        (stanza,) = stanzas
        if len(stanza.arguments) != 2:
            raise malformed(stanza, "it must have a salt and a work factor", path)
        text = stanza.arguments[1]
        check_arguments(stanza._replace(arguments=stanza.arguments[:1]), [_SALT], path)
        if not _NUMBER.fullmatch(text):
            problem = (
                f"its work factor {quote(text, 20)} is not a decimal number without leading zeros"
            )
            raise malformed(stanza, problem, path)
        if len(text) > 3 or int(text) > self._max:
            raise malformed(
                stanza, f"its work factor {quote(text, 20)} is more than {self._max}: it would take too "
                "much memory and time", path,
            )  # fmt: skip
        salt = decode64(stanza.arguments[0])
        assert salt is not None
        key = unwrap_key(_scrypt(self._bytes(), salt, int(text)), stanza)
        return None if key is None else (key, self.label)


def _scrypt(secret: bytes, salt: bytes, work_factor: int) -> Secret:
    """RFC 7914 with r = 8 and p = 1."""
    module = need_cryptography("hazmat.primitives.kdf.scrypt")
    kdf = module.Scrypt(salt=_LABEL + salt, length=32, n=1 << work_factor, r=8, p=1)
    return Secret(kdf.derive(secret))
