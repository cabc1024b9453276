"""Recipients as people write them: one a line, in a file or as an option.

A line is ``age1...``, ``age1pq1...``, ``age1tag1...`` (a key in hardware), or an SSH public key
(``ssh-ed25519 AAAA...``, ``ssh-rsa AAAA...``). Empty lines and lines that begin with ``#`` are skipped. A
private key is refused, and never quoted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from ...errors import quote
from ...storage.encrypted import need_cryptography
from ..errors import AccessError, DocumentError
from ..files import read_document
from . import bech32, hybrid, passwords, tagged, x25519
from .header import Stanza
from .hybrid import HybridRecipient
from .passwords import Passphrase
from .ssh import SshRecipient
from .tagged import TaggedRecipient
from .x25519 import X25519Recipient

if TYPE_CHECKING:
    from .wrapping import Recipient

__all__ = [
    "CallableRecipient",
    "as_recipients",
    "check_together",
    "parse_recipient",
    "read_recipients",
]

_MAX_FILE: Final = 1 << 22
_SSH: Final = ("ssh-", "ecdsa-", "sk-")
_PRIVATE: Final = ("AGE-SECRET-KEY-", "AGE-PLUGIN-", "-----BEGIN")


class CallableRecipient:
    """A recipient whose file keys another program wraps: a key service, an HSM.

    Args:
        wrap: Given a file key of 16 bytes, returns the `Stanza` that its identity will understand.
        label: How it is called in logs and policies.
        post_quantum: See `wrapping.Recipient`.
    """

    kind = "callable"

    def __init__(
        self, wrap: Callable[[bytes], Stanza], label: str, *, post_quantum: bool = False
    ) -> None:
        self._wrap = wrap
        self.label = label
        self.post_quantum = post_quantum

    def __repr__(self) -> str:
        return f"CallableRecipient({self.label!r})"

    def wrap(self, file_key: bytes) -> Stanza:
        """What the function returns."""
        stanza = Stanza(*self._wrap(file_key))
        if stanza.type == passwords.KIND:
            raise AccessError("only a passphrase makes a stanza of type scrypt", reason="recipient")
        return stanza


def parse_recipient(text: str, *, path: str | None = None, field: str = "") -> Recipient:
    """The recipient that one line names.

    Raises:
        DocumentError: It is none; if it is a private key, the message does not quote it.

    >>> parse_recipient("age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj").kind
    'X25519'
    """
    text = text.strip()
    where: dict[str, Any] = {"path": path, "field": field}
    if text.startswith("-----BEGIN PUBLIC KEY"):
        raise DocumentError(
            "this is a public key for signatures, for which nothing can be encrypted; a recipient is "
            "age1... (`safeweights keygen --age`), or the .pub file of an SSH key", **where,
        )  # fmt: skip
    if text.upper().startswith(_PRIVATE):
        raise DocumentError(
            "this is a private key, which must be kept secret; a recipient is its public half "
            "(age1..., or the .pub file of an SSH key)", reason="private-key", **where,
        )  # fmt: skip
    if text.startswith(_SSH):
        return _ssh_recipient(text, where)
    found = bech32.decode(text)
    if found is None or text != text.lower():
        hint = "; give a file of recipients with -R" if os.path.exists(text) else ""
        raise DocumentError(
            f"{quote(text, 80)} is no recipient: age1..., age1pq1..., or an SSH public key{hint}",
            **where,
        )
    prefix, data = found
    try:
        if prefix == x25519.RECIPIENT_PREFIX and len(data) == 32:
            return X25519Recipient(data)
        if prefix == hybrid.RECIPIENT_PREFIX and len(data) == hybrid.PUBLIC_SIZE:
            return HybridRecipient(data)
        if prefix == tagged.RECIPIENT_PREFIX:
            return TaggedRecipient(data)
    except ValueError as error:
        raise DocumentError(f"{quote(text, 80)} is no recipient: {error}", **where) from None
    raise DocumentError(f"{quote(text, 80)} {_unsupported(prefix)}", **where)


def _unsupported(prefix: str) -> str:
    """Why a recipient with this prefix cannot be used, and what to do."""
    if prefix == tagged.HYBRID_PREFIX:
        return (
            "cannot be a recipient: its key encapsulation (ML-KEM-768 with P-256) is none that the package "
            "`cryptography` has; use the age1tag or age1pq recipient"
        )
    plugin = prefix.removeprefix("age1")
    if plugin in {prefix, "", "pq"}:
        return "is no recipient: its key has the wrong length, or is of another kind"
    return (
        f"is a recipient of the plugin age-plugin-{quote(plugin, 40)[1:-1]}, and plugins are not run here: "
        "give its age1tag recipient if it has one, or add it to the key file with the program age"
    )


def _ssh_recipient(text: str, where: dict[str, Any]) -> SshRecipient:
    coding = need_cryptography("hazmat.primitives.serialization")
    try:
        key = coding.load_ssh_public_key(text.encode())
    except Exception:  # noqa: BLE001 - what it raises is not documented
        raise DocumentError(f"{quote(text, 80)} is no SSH public key", **where) from None
    try:
        return SshRecipient(key)
    except ValueError as error:
        raise DocumentError(f"{quote(text, 80)} cannot be a recipient: {error}", **where) from None


def read_recipients(path: str | os.PathLike[str]) -> list[Recipient]:
    """The recipients in a file, in any line ending.

    Raises:
        DocumentError: A line is no recipient, or there is none; names the line.
        OSError: The file cannot be read.
    """
    path = os.fspath(path)
    try:
        text = read_document(path, limit=_MAX_FILE).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DocumentError("a file of recipients is text in UTF-8", path=path) from None
    found = [
        parse_recipient(line, path=path, field=f"line {number}")
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not found:
        raise DocumentError("there is no recipient in it", path=path)
    return found


def as_recipients(given: Any) -> list[Recipient]:
    """Recipients from what a caller gives: one or several texts, files or objects.

    Args:
        given: A recipient, as text or as an object with ``wrap``; a file of recipients as a path object
            (`pathlib.Path`); an iterable of these.

    Raises:
        TypeError: Something else.
        DocumentError: A text is no recipient.
    """
    if isinstance(given, str):
        return [parse_recipient(given)]
    if isinstance(given, os.PathLike):
        return read_recipients(given)
    if hasattr(given, "wrap"):
        return [given]
    if isinstance(given, Iterable):
        return [recipient for each in given for recipient in as_recipients(each)]
    raise TypeError(
        "a recipient is text (age1..., ssh-ed25519 ...), a path object of a file of them, a Passphrase "
        f"or an object with wrap(), not {type(given).__name__}"
    )


def check_together(recipients: list[Recipient]) -> list[Recipient]:
    """The recipients without repetition, once one file may have them all.

    Raises:
        AccessError: There is none; a passphrase is not alone; post-quantum and other ones are mixed,
            which would make the file as weak as the weaker ones.
    """
    found = list({each.label: each for each in recipients}.values())
    if not found:
        raise AccessError("there must be a recipient", reason="recipient")
    if any(isinstance(each, Passphrase) for each in found) and len(recipients) > 1:
        raise AccessError(
            "a passphrase must be the only recipient of a file", reason="mixed-recipients"
        )
    if len({each.post_quantum for each in found}) > 1:
        raise AccessError(
            "post-quantum recipients (age1pq1...) and others cannot be mixed: the file would be only as "
            "secure as the others", reason="mixed-recipients",
        )  # fmt: skip
    return found
