"""The contents of a key file: the identity of a model, and for whom it is.

    # recipient: age1...
    AGE-SECRET-KEY-1...

Recipients are listed as comments, so that they can be kept when one is added: an age file does not name
them. For the program age it is a file of identities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...storage import BytesSource
from ..errors import AccessError
from .hiding import Secret
from .identities import NativeIdentity, parse_identities

if TYPE_CHECKING:
    from ...storage import Source
    from .wrapping import Recipient

__all__ = ["MAX_KEY_FILE", "identity_of_model", "key_text", "listed_recipients"]

MAX_KEY_FILE: Final = 1 << 20
"""Bytes of plaintext."""

_LISTED: Final = "# recipient: "


def key_text(identity: NativeIdentity, recipients: list[Recipient]) -> Source:
    """The plaintext of a key file."""
    lines = [f"{_LISTED}{each.label}" for each in recipients]
    return BytesSource(Secret("\n".join([*lines, identity.text(), ""]).encode()), "a key file")


def identity_of_model(text: bytes, path: str) -> NativeIdentity:
    """The identity in a key file.

    Raises:
        AccessError: ``key-file``: there are several, and writing one would lose the others.
    """
    found = parse_identities(text, path=path)
    if len(found) > 1 or not isinstance(found[0], NativeIdentity):
        raise AccessError(
            f"the key file has {len(found)} identities, where a model has one",
            reason="key-file",
            path=path,
        )
    return found[0]


def listed_recipients(text: bytes) -> list[str]:
    """The recipients that it names."""
    lines = text.decode("utf-8", "replace").splitlines()
    return [line[len(_LISTED) :] for line in lines if line.startswith(_LISTED)]
