"""What can be known of an encrypted model without a key: for what kinds of recipients it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..storage.places import place_of
from ..trust.access.keyring import encrypted_for
from ..trust.access.stores import plain_name
from ..trust.files import KEY_FILE

if TYPE_CHECKING:
    from ..storage import Source
    from .documents import RecipientsRecord, ShowEncryptedDocument

__all__ = ["encrypted_document"]

_LISTED: Final = 20
"""Files of a folder without a key file whose recipients are read."""


def encrypted_document(path: str) -> ShowEncryptedDocument | None:
    """Who an encrypted file or folder is encrypted for; None if it is not encrypted.

    Of a folder the recipients are those of its key files: all else is for the identity in them.

    Raises:
        FormatError: A header is malformed.
        OSError: Something cannot be read.
    """
    place = place_of(path)
    kind = place.kind()
    if kind == "folder":
        store = place.folder()
        names = [entry.name for entry in store.list(recursive=False) if entry.kind != "folder"]
        chosen = [name for name in names if name.endswith(KEY_FILE)]
        chosen = chosen or [name for name in names if plain_name(name)][:_LISTED]
        sources = [store.open(name, backend="pread") for name in chosen]
    else:
        sources = [place.store.open(place.name, backend="pread")]
    found = [record for source in sources if (record := _record(source)) is not None]
    if not found:
        return None
    return {
        "schema": "safeweights.show-encrypted/1", "path": path, "kind": kind, "encrypted": found,
    }  # fmt: skip


def _record(source: Source) -> RecipientsRecord | None:
    types = encrypted_for(source)
    return None if types is None else {"path": source.name, "types": types}
