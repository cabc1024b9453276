"""The identities of a caller: from an encrypted file to its plaintext, whatever the file's kind."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from ...errors import FormatError, quote
from ...storage import BytesSource
from ...storage.encrypted import DecryptingSource
from ..errors import AccessError
from . import passwords
from .armor import MAX_ARMORED, dearmored, is_armored
from .header import MAGIC, Header, Stanza, read_header
from .hiding import Secret
from .identities import as_identities, parse_identities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ...storage import Source
    from .wrapping import Identity

__all__ = [
    "HEAD",
    "Keyring",
    "as_keyring",
    "describe",
    "encrypted_for",
    "is_encrypted",
    "is_sealed",
    "stanzas_of",
]

HEAD: Final = 2048
"""Bytes that `is_encrypted` wants: white space may come before ASCII armor."""

_MAX_KEY_FILE: Final = 1 << 20
_LOCKED_MAX: Final = 8


def is_encrypted(head: bytes) -> bool:
    r"""Whether a file that begins with `head` is an age file, in ASCII armor too.

    >>> is_encrypted(b"age-encryption.org/v1\n")
    True
    """
    return head.startswith(MAGIC) or is_armored(head)


def is_sealed(head: bytes) -> bool:
    """Whether a file that begins with `head` is one that a `Keyring` may open: age, or JWE."""
    from . import jwe

    return is_encrypted(head) or jwe.is_jwe(head)


def stanzas_of(source: Source) -> tuple[Stanza, ...]:
    """The recipients of an age file.

    Raises:
        FormatError: It is malformed.
    """
    return _read(source, source.read(0, min(HEAD, source.size)))[1].stanzas


def encrypted_for(source: Source) -> list[str] | None:
    """The types of the recipients of an encrypted file, sorted; None if it is not one.

    It is all that can be known without a key. Cost: the header is read; of an armored file, all of it.

    Raises:
        FormatError: The header is malformed.
    """
    head = source.read(0, min(HEAD, source.size))
    if is_encrypted(head):
        return sorted(stanza.type for stanza in _read(source, head)[1].stanzas)
    from . import jwe

    return [jwe.describe(source)] if jwe.is_jwe(head) else None


def describe(types: Iterable[str]) -> str:
    """Types of recipients in words, for messages.

    >>> describe(["X25519", "X25519", "ssh-rsa"])
    '2 of type `X25519`, 1 of type `ssh-rsa`'
    """
    return ", ".join(f"{count} of type {quote(kind, 60)}" for kind, count in Counter(types).items())


class _Opened(NamedTuple):
    """The plaintext of a file, and the label of the recipient that opened it."""

    source: Source
    opened_by: str


class Log(Protocol):
    """Where it is recorded who opened what: `safeweights.trust.AuditLog`."""

    def append(self, event: str, details: dict[str, Any]) -> object:
        """Record an event."""


class _Both:
    """Two logs."""

    def __init__(self, one: Log, other: Log) -> None:
        self._logs = one, other

    def append(self, event: str, details: dict[str, Any]) -> None:
        """Record an event in both."""
        for log in self._logs:
            log.append(event, details)


class Keyring:
    """Identities, tried in order on every file.

    Args:
        identities: The caller's own.
        log: Where each file that is opened is recorded, with the recipient, never with a key.
    """

    def __init__(self, identities: Iterable[Identity], *, log: Log | None = None) -> None:
        self._identities = list(identities)
        self._log = log
        self._closed: list[str] = []
        self._known: dict[tuple[str, str, int], list[Identity]] = {}

    def __repr__(self) -> str:
        return f"Keyring({self._identities!r})"

    def logging(self, log: Log | None) -> Keyring:
        """A keyring with the same identities that also records what it opens; with None, this one."""
        if log is None or log is self._log:
            return self
        result = Keyring(self._identities, log=log if self._log is None else _Both(self._log, log))
        result._known = self._known
        return result

    def adding(self, key_files: Iterable[Source]) -> Keyring:
        """A keyring that also has the identities in those of the key files that these ones open.

        Raises:
            FormatError: A key file is malformed or was changed.
            DocumentError: What is in one is no identity.
            AccessError: ``key-file``: there are too many to try a passphrase on.
        """
        found: list[Identity] = []
        closed: list[str] = []
        locked = 0
        for source in key_files:
            # A passphrase takes a second each time, so what was in a key file is remembered.
            name = source.name, source.version or "", source.size
            inside = self._known.get(name) if source.version else None
            if inside is None:
                inside = self._known[name] = self._inside(source)
            found += inside
            if not inside:
                closed.append(source.name)
                locked += encrypted_for(source) == [passwords.KIND]
            if locked > _LOCKED_MAX:
                raise AccessError(
                    f"more than {_LOCKED_MAX} key files have other passphrases, and each takes a second",
                    reason="key-file", path=source.name,
                )  # fmt: skip
        result = Keyring([*found, *self._identities], log=self._log)
        result._closed = closed
        return result

    def _inside(self, source: Source) -> list[Identity]:
        """The identities in a key file; none if it is not for an identity of this keyring."""
        opened = self._try(source)
        if opened is None:
            return []
        if opened.source.size > _MAX_KEY_FILE:
            raise FormatError("too long for a key file", rule="age-header", path=source.name)
        data = Secret(opened.source.read(0, opened.source.size))
        return [
            _Named(identity, opened.opened_by)
            for identity in parse_identities(data, path=source.name)
        ]

    def open(self, source: Source) -> Source:
        """The plaintext of an encrypted file, as a source that decrypts what is read.

        Cost: the header and the last chunk are read. A file in ASCII armor, or one that KServe's tools
        encrypted (JWE), is decrypted as a whole.

        Raises:
            AccessError: ``not-encrypted``; ``no-match``: no identity opens it; ``passphrase``.
            FormatError: It is malformed or was changed.
        """
        opened = self._try(source)
        if opened is None:
            types = describe(encrypted_for(source) or ())
            mine = "no identity that was given" if self._identities else "no identity"
            raise AccessError(
                f"{mine} opens this encrypted file{self._hint()}; its recipients are {types}",
                reason="no-match", path=source.name,
            )  # fmt: skip
        if self._log is not None:
            self._log.append("opened", {"path": source.name, "recipient": opened.opened_by})
        return opened.source

    def _hint(self) -> str:
        """Key files that were not opened, for messages."""
        shown = ", ".join(quote(name, 200) for name in self._closed[:3])
        return f", or the key file {shown}" if shown else ""

    def _try(self, source: Source) -> _Opened | None:
        head = source.read(0, min(HEAD, source.size))
        if not is_encrypted(head):
            from . import jwe

            if jwe.is_jwe(head):
                return _opened(jwe.unwrap(source, self._identities))
            raise AccessError(
                "the file is not encrypted, but an identity was given; leave it out to read plaintext",
                reason="not-encrypted", path=source.name,
            )  # fmt: skip
        source, header = _read(source, head)
        for identity in self._identities:
            found = identity.unwrap(header.stanzas, source.name)
            if found is not None:
                file_key, opened_by = Secret(found[0]), found[1]
                header.check(file_key)
                plain = DecryptingSource(source, header.size, file_key)
                plain.opened_by = opened_by
                return _Opened(plain, opened_by)
        return None


def _opened(found: tuple[Source, str] | None) -> _Opened | None:
    return None if found is None else _Opened(*found)


class _Named:
    """The identity of a model, which names the recipient that opened the key file as its own."""

    def __init__(self, identity: Identity, label: str) -> None:
        self._identity = identity
        self._label = label

    def __repr__(self) -> str:
        return f"{self._identity!r}, opened by {self._label}"

    def unwrap(self, stanzas: Any, path: str) -> tuple[bytes, str] | None:
        """See `wrapping.Identity`."""
        found = self._identity.unwrap(stanzas, path)
        return None if found is None else (found[0], self._label)


def _read(source: Source, head: bytes) -> tuple[Source, Header]:
    """The file without armor, and its header.

    Raises:
        FormatError: The header is malformed; a passphrase is not the only recipient.
    """
    if is_armored(head):
        size = source.size
        data = dearmored(source.read(0, min(size, MAX_ARMORED + 1)), source.name)
        version = source.version
        source = BytesSource(data, source.name)
        source.version = version
    header = read_header(source)
    types = [stanza.type for stanza in header.stanzas]
    if passwords.KIND in types and len(types) > 1:
        raise FormatError(
            "the header of the encrypted file is malformed: a passphrase must be its only recipient",
            rule="age-header", path=source.name,
        )  # fmt: skip
    return source, header


def as_keyring(
    identity: Any,
    *,
    passphrase: Callable[[], str] | None = None,
    log: Log | None = None,
) -> Keyring:
    """A keyring from what a caller gives as ``identity=``.

    Args:
        identity: A `Keyring`, or what `as_identities` takes.
        passphrase: Called if a file of identities or an SSH key is encrypted.
        log: Where each file that is opened is recorded, such as an `AuditLog`.
    """
    if isinstance(identity, Keyring):
        return identity.logging(log)
    return Keyring(as_identities(identity, passphrase), log=log)
