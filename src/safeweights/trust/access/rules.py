"""The ``[access]`` of a policy: which files must be encrypted, and who may be given a key.

    [access]
    encrypted = ["*.safetensors", "tokenizer*"]       # patterns of names, as of the plaintext
    recipients = ["age1...", "ssh-ed25519 AAAA..."]

An age file does not name its recipients: of an existing one only their types and their number can be
checked, and which SSH keys and keys in hardware they are. Who is given a key is checked where keys are
given: in `encrypt` and `rekey`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from ...errors import quote
from ..errors import AccessError
from ..files import KEY_FILE
from .keyring import HEAD, is_encrypted, is_sealed, stanzas_of
from .ssh import SshRecipient
from .stores import plain_name
from .tagged import TaggedRecipient

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ...storage import Source
    from .header import Stanza
    from .wrapping import Recipient

__all__ = ["AccessRules"]

_OF_MODELS: Final = frozenset({"X25519", "mlkem768x25519"})
"""Types of the identities that are made for models."""

_NAMING: Final = frozenset({"ssh-ed25519", "ssh-rsa", "p256tag"})
"""Types whose stanzas name their recipient."""


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
        # Case does not count: on some file systems, one name opens the file of another.
        plain = (plain_name(name) or name).casefold()
        names = plain, plain.rpartition("/")[2]
        patterns = [each.casefold() for each in self.encrypted]
        return any(fnmatchcase(name, each) for name in names for each in patterns)

    def problem(self, name: str, source: Source) -> tuple[str, str] | None:
        """Why a file is refused, as a code and a sentence; None if it is not.

        Args:
            name: Its name.
            source: Its bytes. At most a header is read.

        Raises:
            FormatError: It is an age file, and malformed.
        """
        head = source.read(0, min(HEAD, source.size))
        if not is_sealed(head):
            if not self.requires(name):
                return None
            return "not-encrypted", f"{quote(name, 300)} is not encrypted, but must be"
        if not self.recipients:
            return None
        if not is_encrypted(head):
            what = "by a key that is not known (JWE)"
        else:
            what = self._wrong_recipients(stanzas_of(source), alone=not name.endswith(KEY_FILE))
        if not what:
            return None
        return (
            "recipient",
            f"{quote(name, 300)} is encrypted for recipients that the policy does not allow ({what})",
        )

    def _wrong_recipients(self, stanzas: Sequence[Stanza], *, alone: bool) -> str:
        """The recipients of a file that are certainly none of those allowed; empty if there is none.

        Args:
            stanzas: The recipients.
            alone: Whether the identity of a model may be the only recipient. It is not among those allowed.
        """
        kinds = Counter(stanza.type for stanza in stanzas)
        if alone and len(stanzas) == 1 and kinds.keys() <= _OF_MODELS:
            return ""
        extra = kinds - Counter(each.kind for each in self.recipients)
        naming = [
            each for each in self.recipients if isinstance(each, SshRecipient | TaggedRecipient)
        ]
        named = [stanza for stanza in stanzas if stanza.type in _NAMING]
        unknown = [each for each in named if not any(one.is_among([each]) for one in naming)]
        extra = extra or Counter(stanza.type for stanza in unknown)
        return ", ".join(f"{count} of type {kind}" for kind, count in extra.items())
