"""Encrypting models, and decrypting them.

Every file of a model is encrypted for one identity that is made for this model. The key file
(``model.key.age``) has that identity, encrypted for the recipients; it is the only file that changes when
recipients do (`rekeying`).

All files are written, or none. No plaintext is written to a disk but by `decrypt`, where it was asked for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import UnsupportedError, quote
from ..storage import allocate, place_of
from ..storage.encrypted import encrypted_size, encrypting, new_file_key
from ..storage.parallel import in_order, in_threads, thread_count
from ..storage.places import (
    Place,
    absolute,
    absolute_place,
    basename,
    continued,
    folder_of,
    join,
    parent,
    shown,
)  # fmt: skip
from .access.armor import MAX_ARMORED, armored
from .access.header import build_header
from .access.identities import generate_identity
from .access.keyfile import key_text
from .access.keyring import HEAD, is_encrypted
from .access.recipients import as_recipients, check_together
from .access.stores import plain_name
from .errors import AccessError
from .files import ENCRYPTED, KEY_FILE, is_bookkeeping
from .signatures.linked import is_blob_link

if TYPE_CHECKING:
    from ..storage import Buffer, Commit, Source, Store
    from ..storage.store import EntryKind
    from .access.rules import AccessRules
    from .access.wrapping import Recipient
    from .policies.policy import Policy

    Progress = Callable[[int, int], object]

__all__ = ["Decrypted", "Encrypted", "decrypt", "encrypt", "rules_of"]

_SKIPPED: Final = ".git/"
_PIECE: Final = 1 << 22
"""Plaintext that a thread decrypts at a time."""

_READERS: Final = 4
"""Threads that decrypt, at most: the one that writes cannot keep pace with more."""


class Encrypted(NamedTuple):
    """What `encrypt` wrote.

    Attributes:
        path: The file or folder with the result.
        files: Names of the encrypted files, without the key file.
        size: Their bytes.
        key_file: The name of the key file; None for a single file, which has no other key.
        recipients: Who can read it.
        removed: Names of the plaintext files that were removed.
    """

    path: str
    files: tuple[str, ...]
    size: int
    key_file: str | None
    recipients: tuple[str, ...]
    removed: tuple[str, ...] = ()


class Decrypted(NamedTuple):
    """What `decrypt` wrote: the file or folder, and the names and bytes of its files."""

    path: str
    files: tuple[str, ...]
    size: int


def encrypt(
    path: str | os.PathLike[str],
    recipients: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    key_file: str = "model" + KEY_FILE,
    only: Iterable[str] = (),
    armor: bool = False,
    replace: bool = False,
    durable: bool = True,
    policy: Policy | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Encrypted:
    """Encrypt a model, so that only its recipients can read it: age v1 files, which `age` opens too.

    Of a folder every file becomes ``NAME.age``, for an identity that is made for this model, and the key
    file has that identity for the recipients. A single file is encrypted for the recipients themselves.
    Sizes and names of files are not hidden. The result does not show who wrote it: `safeweights.trust.sign`
    it.

    Cost: each file is read once and written once. Memory: 64 MiB.

    Args:
        path: A file or a folder, or the URL of one. Links are refused, but for those of the Hub's cache
            into its blobs.
        recipients: See `access.recipients.as_recipients`. Post-quantum ones and others are not mixed; a
            `Passphrase` is alone.
        out: The file or folder to write, or its URL; by default `path` with ``.age`` added. No file is
            replaced.
        key_file: The name of the key file. With `only`, several key files can share a folder: each group
            of files has its own recipients.
        only: Shell patterns of the names to encrypt; all by default.
        armor: Write a single file as ASCII text. Only for small files.
        replace: Write into the folder itself, and remove the plaintext in the same commit.
        durable: Return only when the files would survive a loss of power.
        policy: A policy, or the path of one, whose ``[access]`` must allow every recipient.
        progress: Called with the bytes done so far and in total.

    Raises:
        AccessError: Recipients that cannot be together or that the policy does not allow; a file that is
            encrypted already; a link.
        DocumentError: A recipient that cannot be read.
        FileExistsError: A file that would be written exists.
        ChangedError: With `replace`, a file changed meanwhile. Nothing was written or removed.
        OSError: A file cannot be read or written. Nothing was written or removed.
    """
    chosen = check_together(as_recipients(recipients))
    if rules := rules_of(policy):
        rules.check_recipients(chosen)
    place = absolute_place(path)
    result = absolute(
        os.fspath(out if out is not None else continued(absolute(place.path), ENCRYPTED))
    )
    if place.kind() != "folder":
        return _encrypt_file(
            place, chosen, result, armor=armor, replace=replace, durable=durable, progress=progress
        )
    if armor:
        raise UnsupportedError("ASCII armor is for single small files, not for folders")
    if replace and out is not None:
        raise UnsupportedError("replace writes into the folder itself: leave out the other place")
    if not key_file.endswith(KEY_FILE) or "/" in key_file:
        raise UnsupportedError(
            f"the name of a key file must end in {KEY_FILE}, not {quote(key_file)}"
        )
    source = place.folder()
    target = source if replace else folder_of(result)
    target.check_writable()
    names = _plain_files(source, tuple(only))
    identity = generate_identity(post_quantum=any(each.kind == "mlkem768x25519" for each in chosen))
    with target.commit(durable=durable) as commit:
        job = _Writing(commit, _sizes(source, names) if progress else (), progress)
        versions = {
            name: job.encrypt(name + ENCRYPTED, source, name, [identity.recipient])
            for name in names
        }
        job.write(key_file, key_text(identity, chosen), chosen)
        if replace:
            for name in names:
                source.check_version(name, versions[name])
                commit.delete(name)
    files = tuple(name + ENCRYPTED for name in names)
    labels = tuple(each.label for each in chosen)
    return Encrypted(
        target.location, files, job.written, key_file, labels, tuple(names) if replace else ()
    )


def _encrypt_file(
    place: Place,
    recipients: list[Recipient],
    result: str,
    *,
    armor: bool,
    replace: bool,
    durable: bool,
    progress: Progress | None,
) -> Encrypted:
    source, name = place.store, place.name
    target = place_of(result)
    target.store.check_writable()
    # Elsewhere there are no links, and opening it tells whether it is there.
    _check_plain(source, name, "file" if source.is_remote else source.kind(name))
    sizes = _sizes(source, [name]) if armor or progress else [0]
    if armor and sizes[0] > MAX_ARMORED // 2:
        raise UnsupportedError("ASCII armor is for small files; leave it out", path=place.path)
    with target.store.commit(durable=durable) as commit:
        job = _Writing(commit, sizes, progress)
        version = job.encrypt(target.name, source, name, recipients, armor=armor)
        if replace:
            source.check_version(name, version)
    if replace:
        source.delete(name)
    labels = tuple(each.label for each in recipients)
    removed = (basename(place.path),) if replace else ()
    return Encrypted(target.path, (basename(target.path),), job.written, None, labels, removed)


def _sizes(store: Store, names: Iterable[str]) -> list[int]:
    """The sizes of files. Cost: of a store elsewhere, a request each, several at a time."""
    if store.is_remote:
        return in_threads(lambda name, _: store.open(name).size, names)
    return [os.stat(store.locate(name)).st_size for name in names]


class _Writing:
    """Files that one commit writes, and the progress over all of them.

    Args:
        commit: What writes them.
        sizes: Of the files that are read.
        progress: See `encrypt`.

    Attributes:
        written: Bytes.
    """

    def __init__(self, commit: Commit, sizes: Iterable[int], progress: Progress | None) -> None:
        self._commit = commit
        self._progress = progress
        self._total = sum(sizes)
        self._done = 0
        self.written = 0

    def encrypt(
        self,
        target: str,
        store: Store,
        name: str,
        recipients: list[Recipient],
        *,
        armor: bool = False,
    ) -> str | None:
        """Encrypt a file of a store; its version as it was read."""
        source = store.open(name, backend="pread")
        if is_encrypted(source.read(0, min(HEAD, source.size))):
            raise AccessError("the file is encrypted already", reason="recipient", path=source.name)
        self.write(target, source, recipients, armor=armor)
        self._done += source.size
        return source.version

    def write(
        self, name: str, source: Source, recipients: list[Recipient], *, armor: bool = False
    ) -> None:
        """Write the bytes of a source, encrypted with a key of their own."""
        file_key = new_file_key()
        header = build_header([each.wrap(file_key) for each in recipients], file_key)
        pieces: Iterable[Buffer] = chain([header], encrypting(source, file_key, self._report))
        size = len(header) + encrypted_size(source.size)
        if armor:
            text = armored(b"".join(pieces))
            pieces, size = [text], len(text)
        self._commit.write(name, pieces, size=size, create_only=True)
        self.written += size

    def decrypt(self, name: str, source: Source, cost: int) -> None:
        """Write the plaintext of a file that has `cost` bytes of ciphertext."""
        begins = range(0, source.size, _PIECE)
        pieces = in_order(
            partial(_read_piece, source), begins, workers=min(_READERS, thread_count())
        )
        self._commit.write(name, pieces, size=source.size, create_only=True, progress=self._report)
        self._done += cost
        self._report(0)
        self.written += source.size

    def _report(self, done: int) -> None:
        if self._progress is not None and self._total:
            self._progress(min(self._done + done, self._total), self._total)


def _read_piece(source: Source, begin: int) -> memoryview:
    piece = allocate(min(_PIECE, source.size - begin))
    source.read_into(begin, piece)
    return piece


def _plain_files(store: Store, only: tuple[str, ...]) -> list[str]:
    """The names of the files of a model that are to be encrypted."""
    names = []
    for name, kind in store.list():
        if is_bookkeeping(name) or name.startswith(_SKIPPED):
            continue
        if only and not any(fnmatchcase(name, pattern) for pattern in only):
            continue
        _check_plain(store, name, kind)
        names.append(name)
    if not names:
        raise AccessError("there is no file to encrypt", reason="recipient", path=store.location)
    return names


def _check_plain(store: Store, name: str, kind: EntryKind | None) -> None:
    """Refuse links, special files, and names that encrypted files have."""
    path = store.locate(name)
    if kind is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if kind == "link" and not is_blob_link(path):
        problem = "a symbolic link, which is not followed: replace it by the file"
    elif kind == "special":
        problem = "no regular file"
    elif name.endswith(ENCRYPTED):
        problem = (
            f"called {ENCRYPTED}, as encrypted files are; encrypt another folder, or rename it"
        )
    else:
        return
    raise AccessError(f"this is {problem}", reason="recipient", path=path)


def decrypt(
    path: str | os.PathLike[str],
    identity: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    trust: object = None,
    durable: bool = False,
    progress: Progress | None = None,
) -> Decrypted:
    """Write the plaintext of an encrypted file or folder to a disk.

    To load a model this is not needed: every function that loads takes ``identity=``.

    Args:
        path: The encrypted file or folder, or the URL of one.
        identity: See `access.identities.as_identities`.
        out: The file or folder to write, or its URL; by default `path` without ``.age``. No file is
            replaced.
        trust: What the encrypted files must fulfil before they are decrypted; see `safeweights.open`.
        durable: Return only when the files would survive a loss of power.
        progress: Called with the bytes done so far and in total, of the encrypted files.

    Raises:
        AccessError: The identity does not open it, or it is not encrypted.
        FormatError: A file was changed or cut off.
        TrustError: A file is not what `trust` asks for.
        FileExistsError: A file that would be written exists.
        OSError: A file cannot be read or written. Nothing was written.
    """
    from .verifier import decrypted_place

    place = absolute_place(path)
    result = absolute(os.fspath(out if out is not None else _without_suffix(absolute(place.path))))
    found = decrypted_place(place, identity, trust)
    if isinstance(found, Place):
        written = place_of(result)
        store, target = found.store, written.store
        names = {found.name: written.name}
        files: tuple[str, ...] = (basename(written.path),)
    else:
        store, target = found, folder_of(result)
        names = {entry.name: entry.name for entry in store.list() if entry.kind != "folder"}
        files = (*names,)
    target.check_writable()
    if not names:
        raise AccessError(
            "there is no encrypted file in it", reason="not-encrypted", path=place.path
        )
    with target.commit(durable=durable) as commit:
        sizes = _sizes(store, names) if progress else [0] * len(names)
        job = _Writing(commit, sizes, progress)
        for (name, new), size in zip(names.items(), sizes, strict=True):
            job.decrypt(new, store.open(name), size)
    return Decrypted(shown(result), files, job.written)


def _without_suffix(path: str) -> str:
    plain = plain_name(basename(path))
    if plain is None:
        raise AccessError(
            f"the name does not end in {ENCRYPTED}: say where to write the plaintext", reason="key-file",
            path=shown(path),
        )  # fmt: skip
    return join(parent(path), plain)


def rules_of(policy: Policy | str | os.PathLike[str] | None) -> AccessRules | None:
    """The ``[access]`` of a policy, or of the one at a path."""
    if policy is None:
        return None
    if isinstance(policy, str | os.PathLike):
        from .policies.policy_file import load_policy

        policy = load_policy(policy)
    return policy.access
