"""Changing who may read an encrypted model: its key file, and nothing else, is written."""

from __future__ import annotations

import os
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UnsupportedError, quote
from ..storage.encrypted import Secret, encrypting, new_file_key
from ..storage.places import absolute_place
from .access.header import build_header
from .access.keyfile import MAX_KEY_FILE, identity_of_model, key_text, listed_recipients
from .access.keyring import as_keyring
from .access.passwords import KIND as PASSPHRASE
from .access.recipients import as_recipients, check_together, parse_recipient
from .access.stores import key_files
from .encryption import rules_of
from .errors import AccessError
from .files import KEY_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..storage import Buffer, Store
    from .access.wrapping import Recipient
    from .policies.policy import Policy

__all__ = ["Rekeyed", "rekey"]


class Rekeyed(NamedTuple):
    """What `rekey` wrote.

    Attributes:
        path: The key file.
        recipients: Who can read the model now.
        added: Those who could not before.
        removed: Those who could before. With a copy of the old key file, they still can.
    """

    path: str
    recipients: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]


def rekey(
    path: str | os.PathLike[str],
    identity: Any,
    *,
    add: Any = (),
    remove: Any = (),
    recipients: Any = None,
    key_file: str | None = None,
    policy: Policy | str | os.PathLike[str] | None = None,
    durable: bool = True,
) -> Rekeyed:
    """Change who may read an encrypted model: only its key file is written.

    Without changes the key file is written for the same recipients, with new keys. Removed recipients with
    a copy of the old key file, or of the identity in it, can still read the files that exist now: to
    exclude them, decrypt the model and `encrypt` it again. A signature of the key file must be made again,
    too.

    Args:
        path: The encrypted folder, or a key file, or the URL of one.
        identity: Of a recipient; see `access.identities.as_identities`.
        add: Recipients to add.
        remove: Recipients to remove.
        recipients: The new recipients, all of them.
        key_file: The name of the key file, where a folder has several.
        policy: A policy, or the path of one, whose ``[access]`` must allow every recipient.
        durable: Return only when the file would survive a loss of power.

    Raises:
        AccessError: The identity does not open it; no recipient would be left, or one that the policy does
            not allow; ``key-file``: there is none, or there are several; a recipient to remove is none.
        ChangedError: Another writer replaced the key file meanwhile (in buckets).
        OSError: The key file cannot be read or written; it stays as it was.
    """
    store, name = _find_key_file(path, key_file)
    store.check_writable()
    source = store.open(name, backend="pread")
    plain = as_keyring(identity).open(source)
    if plain.size > MAX_KEY_FILE:
        raise AccessError("too long for a key file", reason="key-file", path=source.name)
    text = Secret(plain.read(0, plain.size))
    model = identity_of_model(text, source.name)
    before = listed_recipients(text)
    chosen = _changed(before, as_recipients(add), as_recipients(remove), recipients, source.name)
    if rules := rules_of(policy):
        rules.check_recipients(chosen)
    file_key = new_file_key()
    header = build_header([each.wrap(file_key) for each in chosen], file_key)
    pieces = chain([header], encrypting(key_text(model, chosen), file_key))
    _replace(store, name, pieces, source.version, durable=durable)
    after = [each.label for each in chosen]
    return Rekeyed(
        source.name,
        tuple(after),
        tuple(label for label in after if label not in before),
        tuple(label for label in before if label not in after),
    )


def _find_key_file(path: str | os.PathLike[str], name: str | None) -> tuple[Store, str]:
    place = absolute_place(path)
    if place.kind() != "folder":
        if not place.name.endswith(KEY_FILE):
            raise AccessError(
                f"this is no key file: its name does not end in {KEY_FILE}",
                reason="key-file",
                path=place.path,
            )
        return place.store, place.name
    folder = place.folder()
    if name is not None:
        return folder, name
    found = [each for store, each in key_files(folder) if store is folder]
    if len(found) != 1:
        problem = (
            "there are several key files; name one of them" if found else "there is no key file"
        )
        raise AccessError(problem, reason="key-file", path=place.path)
    return folder, found[0]


def _replace(
    store: Store, name: str, pieces: Iterable[Buffer], version: str | None, *, durable: bool
) -> None:
    """Write a key file; where the store can compare, only in the place of the version that was read."""
    if store.is_remote and version is not None:
        whole = memoryview(b"".join(pieces))  # a view: tracebacks do not show what is in it
        try:
            store.replace(name, whole, version=version)
        except UnsupportedError:  # a registry
            pieces = [whole]
        else:
            return
    store.write(name, pieces, durable=durable)


def _changed(
    before: list[str], add: list[Recipient], remove: list[Recipient], all_of_them: Any, path: str
) -> list[Recipient]:
    """The recipients after a change."""
    if all_of_them is not None:
        return check_together(as_recipients(all_of_them))
    kept = list(before)
    for each in remove:
        if each.label not in kept:
            raise AccessError(
                f"{quote(each.label, 80)} is no recipient of this key file",
                reason="recipient",
                path=path,
            )
        kept.remove(each.label)
    given = {each.label: each for each in add}
    lost = [label for label in kept if label not in given and not _is_text(label)]
    if lost or not before:
        shown = ", ".join(quote(label, 60) for label in lost) or "those of a file that names none"
        raise AccessError(
            f"recipients that are not keys cannot be kept by their names ({shown}): give all of the new "
            "recipients", reason="recipient", path=path,
        )  # fmt: skip
    return check_together([*(parse_recipient(label) for label in kept if label not in given), *add])


def _is_text(label: str) -> bool:
    return label != PASSPHRASE and label.startswith(("age1", "ssh-"))
