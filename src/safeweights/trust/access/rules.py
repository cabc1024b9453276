"""The ``[access]`` of a policy: which files must be encrypted, and who may be given a key.

    [access]
    encrypted = ["*.safetensors", "tokenizer*"]       # patterns of names, as of the plaintext
    recipients = ["age1...", "ssh-ed25519 AAAA..."]

An age file does not name its recipients: of an existing one only their types and their number can be
checked, and the tags of SSH keys. Who is given a key is checked where keys are given: in `encrypt` and
`rekey`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ...errors import quote
from ..errors import AccessError
from ..files import KEY_FILE
from .header import encode64
from .keyring import HEAD, is_encrypted, stanzas_of
from .ssh import SshRecipient
from .stores import plain_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...storage import Source
    from .wrapping import Recipient

__all__ = ["AccessRules"]


@dataclass(frozen=True)
class AccessRules:
    """What a policy requires of encryption.

    Attributes:
        encrypted: Shell patterns of the names of files that must be encrypted, without ``.age``.
        recipients: Who may be given a key; empty to allow any.
    """

    encrypted: tuple[str, ...] = ()
    recipients: tuple[Recipient, ...] = ()

    def check_recipients(self, recipients: Iterable[Recipient]) -> None:
        """Refuse recipients that may not be given a key.

        Raises:
            AccessError: ``recipient``.
        """
        allowed = {each.label for each in self.recipients}
        for each in recipients if allowed else ():
            if each.label not in allowed:
                raise AccessError(
                    f"the policy does not allow the recipient {quote(each.label, 100)}",
                    reason="recipient",
                )

    def requires(self, name: str) -> bool:
        """Whether the file called `name`, with or without ``.age``, must be encrypted."""
        plain = plain_name(name) or name
        base = plain.rpartition("/")[2]
        return any(fnmatchcase(plain, each) or fnmatchcase(base, each) for each in self.encrypted)

    def problem(self, name: str, source: Source) -> tuple[str, str] | None:
        """Why a file is refused, as a code and a sentence; None if it is not.

        Args:
            name: Its name.
            source: Its bytes. At most a header is read.

        Raises:
            FormatError: It is an age file, and malformed.
        """
        encrypted = is_encrypted(source.read(0, min(HEAD, source.size)))
        if not encrypted:
            if not self.requires(name):
                return None
            return "not-encrypted", f"{quote(name, 300)} is not encrypted, but must be"
        if not name.endswith(KEY_FILE) or not self.recipients:
            return None
        return self._wrong_recipients(name, source)

    def _wrong_recipients(self, name: str, source: Source) -> tuple[str, str] | None:
        """Whether a key file has a recipient that is certainly none of those allowed."""
        stanzas = stanzas_of(source)
        known = {
            (each.kind, encode64(each.tag))
            for each in self.recipients
            if isinstance(each, SshRecipient)
        }
        allowed = Counter(each.kind for each in self.recipients)
        kinds = Counter(stanza.type for stanza in stanzas)
        ssh = {(each.type, *each.arguments[:1]) for each in stanzas if each.type.startswith("ssh-")}
        extra = [f"{count} of type {kind}" for kind, count in (kinds - allowed).items()]
        if not extra and ssh <= known:
            return None
        what = ", ".join(extra) or "another SSH key"
        return (
            "recipient",
            f"{quote(name, 300)} is encrypted for recipients that the policy does not allow ({what})",
        )
