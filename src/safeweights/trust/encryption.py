"""Encrypting models, decrypting them, and deciding anew who may read them.

Every file of a model is encrypted for one identity that is made for this model. That identity stands, for
the recipients, in a key file (``model.key.age``), the only file that changes when recipients do. In it, as
comments, are the recipients, so that they can be kept when one is added: an age file does not name them.

All files are written, or none. No plaintext is written to a disk but by `decrypt`, where it was asked for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import UnsupportedError, quote
from ..storage import BytesSource, LocalStore, Source, Store
from ..storage.encrypted import Secret, encrypted_size, encrypting, new_file_key
from .access.armor import armored
from .access.header import build_header
from .access.identities import NativeIdentity, generate_identity, parse_identities
from .access.keyring import HEAD, as_keyring, is_encrypted
from .access.passwords import KIND as PASSPHRASE
from .access.recipients import as_recipients, check_together, parse_recipient
from .access.stores import key_files, plain_name
from .errors import AccessError
from .files import ENCRYPTED, KEY_FILE, is_bookkeeping
from .signatures.linked import is_blob_link

if TYPE_CHECKING:
    from ..storage import Buffer, Commit
    from .access.rules import AccessRules
    from .access.wrapping import Recipient
    from .policies.policy import Policy

    Progress = Callable[[int, int], object]

__all__ = ["Decrypted", "Encrypted", "Rekeyed", "decrypt", "encrypt", "rekey"]

_LISTED: Final = "# recipient: "
_MAX_KEY_FILE: Final = 1 << 20
_SKIPPED: Final = ".git/"


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


class Rekeyed(NamedTuple):
    """What `rekey` wrote.

    Attributes:
        path: The key file.
        recipients: Who can read the model now.
        added: Those who could not before.
        removed: Those who could before. Who kept a copy of the old key file still can.
    """

    path: str
    recipients: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]


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
        path: A file or a folder. Links are refused, but for those of the Hub's cache into its blobs.
        recipients: See `access.recipients.as_recipients`. Post-quantum ones and others are not mixed; a
            `Passphrase` is alone.
        out: The file or folder to write; by default `path` with ``.age`` added. No file is replaced.
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
    rules = _rules(policy)
    if rules is not None:
        rules.check_recipients(chosen)
    path = os.path.abspath(os.fspath(path))
    if not os.path.isdir(path):
        return _encrypt_file(
            path, chosen, out, armor=armor, replace=replace, durable=durable, progress=progress
        )
    if armor:
        raise UnsupportedError("ASCII armor is for single small files, not for folders")
    if replace and out is not None:
        raise UnsupportedError("replace writes into the folder itself: leave out the other place")
    if not key_file.endswith(KEY_FILE) or "/" in key_file:
        raise UnsupportedError(
            f"the name of a key file must end in {KEY_FILE}, not {quote(key_file)}"
        )
    source = LocalStore(path)
    names = _plain_files(source, tuple(only))
    target = LocalStore(path if replace else os.path.abspath(out or f"{path}{ENCRYPTED}"))
    identity = generate_identity(post_quantum=any(each.kind == "mlkem768x25519" for each in chosen))
    job = _Job(target, durable, progress)
    with target.commit(durable=durable) as commit:
        versions = job.encrypt(commit, source, names, [identity.recipient])
        job.write(commit, key_file, _key_text(identity, chosen), chosen)
        if replace:
            for name in names:
                source.open(name, backend="pread", version=versions[name])
                commit.delete(name)
    files = tuple(name + ENCRYPTED for name in names)
    labels = tuple(each.label for each in chosen)
    return Encrypted(
        target.location, files, job.written, key_file, labels, tuple(names) if replace else ()
    )


def _encrypt_file(
    path: str,
    recipients: list[Recipient],
    out: str | os.PathLike[str] | None,
    *,
    armor: bool,
    replace: bool,
    durable: bool,
    progress: Progress | None,
) -> Encrypted:
    folder, name = os.path.split(path)
    result = os.path.abspath(os.fspath(out) if out is not None else f"{path}{ENCRYPTED}")
    source = LocalStore(folder)
    _check_plain(source, name)
    target = LocalStore(os.path.dirname(result))
    new = os.path.basename(result)
    job = _Job(target, durable, progress)
    with target.commit(durable=durable) as commit:
        versions = job.encrypt(commit, source, [name], recipients, {name: new}, armor=armor)
        if replace:
            source.open(name, backend="pread", version=versions[name])
    if replace:
        source.delete(name)
    labels = tuple(each.label for each in recipients)
    return Encrypted(result, (new,), job.written, None, labels, (name,) if replace else ())


class _Job:
    """Writing the files of one commit, with progress over all of them."""

    def __init__(self, store: Store, durable: bool, progress: Progress | None) -> None:
        self._store = store
        self._durable = durable
        self._progress = progress
        self._done = self._total = 0
        self.written = 0

    def encrypt(
        self,
        commit: Commit,
        store: Store,
        names: list[str],
        recipients: list[Recipient],
        renamed: dict[str, str] | None = None,
        *,
        armor: bool = False,
    ) -> dict[str, str | None]:
        """Encrypt files of a store; the version of each as it was read."""
        sources = {name: store.open(name, backend="pread") for name in names}
        self._total = sum(source.size for source in sources.values())
        for name, source in sources.items():
            head = source.read(0, min(HEAD, source.size))
            if is_encrypted(head):
                raise AccessError(
                    "the file is encrypted already", reason="recipient", path=source.name
                )
            target = (renamed or {}).get(name, name + ENCRYPTED)
            self.write(commit, target, source, recipients, armor=armor)
            self._done += source.size
        return {name: source.version for name, source in sources.items()}

    def write(
        self,
        commit: Commit,
        name: str,
        source: Source,
        recipients: list[Recipient],
        *,
        armor: bool = False,
    ) -> None:
        """Encrypt one file."""
        file_key = new_file_key()
        header = build_header([each.wrap(file_key) for each in recipients], file_key)
        pieces: Iterable[Buffer] = chain([header], encrypting(source, file_key, self._report))
        size = len(header) + encrypted_size(source.size)
        if armor:
            text = armored(b"".join(pieces))
            pieces, size = [text], len(text)
        commit.write(name, pieces, size=size, create_only=True)
        self.written += size

    def _report(self, done: int) -> None:
        if self._progress is not None and self._total:
            self._progress(min(self._done + done, self._total), self._total)


def _key_text(identity: NativeIdentity, recipients: list[Recipient]) -> BytesSource:
    """The contents of a key file."""
    lines = [f"{_LISTED}{each.label}" for each in recipients]
    return BytesSource("\n".join([*lines, identity.text(), ""]).encode(), "a key file")


def _plain_files(store: LocalStore, only: tuple[str, ...]) -> list[str]:
    """The names of the files of a model that are to be encrypted."""
    names = []
    for name, _ in store.list():
        if is_bookkeeping(name) or name.startswith(_SKIPPED):
            continue
        if only and not any(fnmatchcase(name, pattern) for pattern in only):
            continue
        _check_plain(store, name)
        names.append(name)
    if not names:
        raise AccessError("there is no file to encrypt", reason="recipient", path=store.location)
    return names


def _check_plain(store: LocalStore, name: str) -> None:
    """Refuse links, special files, and names that encrypted files have."""
    kind = store.kind(name)
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
        path: The encrypted file or folder.
        identity: See `access.identities.as_identities`.
        out: The file or folder to write; by default `path` without ``.age``. No file is replaced.
        trust: What the encrypted files must fulfil before they are decrypted; see `safeweights.open`.
        durable: Return only when the files would survive a loss of power.
        progress: Called with the bytes done so far and in total.

    Raises:
        AccessError: The identity does not open it, or it is not encrypted.
        FormatError: A file was changed or cut off.
        TrustError: A file is not what `trust` asks for.
        FileExistsError: A file that would be written exists.
        OSError: A file cannot be read or written. Nothing was written.
    """
    from .verifier import decrypting

    path = os.path.abspath(os.fspath(path))
    alone = not os.path.isdir(path)
    folder = os.path.dirname(path) if alone else path
    store = decrypting(LocalStore(folder), identity, trust)
    result = os.path.abspath(os.fspath(out)) if out is not None else _without_suffix(path)
    if alone:
        named = os.path.basename(path)
        names = {named: os.path.basename(result)}
        sources = {named: store.open(plain_name(named) or named)}
        target = LocalStore(os.path.dirname(result))
    else:
        sources = {
            entry.name: store.open(entry.name) for entry in store.list() if entry.kind == "file"
        }
        names = {name: name for name in sources}
        target = LocalStore(result)
    if not sources:
        raise AccessError("there is no encrypted file in it", reason="not-encrypted", path=path)
    total = sum(source.size for source in sources.values())
    done = 0
    with target.commit(durable=durable) as commit:
        for name, source in sources.items():
            before = done

            def report(written: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + written, total)

            commit.write(
                names[name], _pieces(source), size=source.size, create_only=True, progress=report
            )
            done += source.size
    return Decrypted(result, tuple(names.values()), total)


def _pieces(source: Source) -> Iterable[Buffer]:
    step = 1 << 23
    for begin in range(0, source.size, step):
        piece = memoryview(bytearray(min(step, source.size - begin)))
        source.read_into(begin, piece)
        yield piece


def _without_suffix(path: str) -> str:
    plain = plain_name(os.path.basename(path))
    if plain is None:
        raise AccessError(
            f"the name does not end in {ENCRYPTED}: say where to write the plaintext", reason="key-file",
            path=path,
        )  # fmt: skip
    return os.path.join(os.path.dirname(path), plain)


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
    """Decide anew who may read an encrypted model: only its key file is written.

    Without changes the key file is written for the same recipients, with new keys. Who was removed and kept
    the old key file, or the identity in it, can still read the files that exist now: to exclude them from
    those, decrypt the model and `encrypt` it again. A signature of the key file must be made again, too.

    Args:
        path: The encrypted folder, or a key file.
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
        OSError: The key file cannot be read or written; it stays as it was.
    """
    folder, name = _find_key_file(os.path.abspath(os.fspath(path)), key_file)
    store = LocalStore(folder)
    source = store.open(name, backend="pread")
    plain = as_keyring(identity).open(source)
    if plain.size > _MAX_KEY_FILE:
        raise AccessError("too long for a key file", reason="key-file", path=source.name)
    text = Secret(plain.read(0, plain.size))
    model = _identity_of_model(text, source.name)
    before = _listed_recipients(text)
    chosen = _changed(before, as_recipients(add), as_recipients(remove), recipients, source.name)
    if rules := _rules(policy):
        rules.check_recipients(chosen)
    file_key = new_file_key()
    header = build_header([each.wrap(file_key) for each in chosen], file_key)
    store.write(
        name, chain([header], encrypting(_key_text(model, chosen), file_key)), durable=durable
    )
    after = [each.label for each in chosen]
    return Rekeyed(
        source.name,
        tuple(after),
        tuple(label for label in after if label not in before),
        tuple(label for label in before if label not in after),
    )


def _identity_of_model(text: bytes, path: str) -> NativeIdentity:
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


def _find_key_file(path: str, name: str | None) -> tuple[str, str]:
    if not os.path.isdir(path):
        if not path.endswith(KEY_FILE):
            raise AccessError(
                f"this is no key file: its name does not end in {KEY_FILE}",
                reason="key-file",
                path=path,
            )
        return os.path.split(path)
    found = [each for store, each in key_files(LocalStore(path)) if store.location == path]
    if name is not None:
        return path, name
    if len(found) != 1:
        problem = (
            "there are several key files; name one of them" if found else "there is no key file"
        )
        raise AccessError(problem, reason="key-file", path=path)
    return path, found[0]


def _listed_recipients(text: bytes) -> list[str]:
    lines = text.decode("utf-8", "replace").splitlines()
    return [line[len(_LISTED) :] for line in lines if line.startswith(_LISTED)]


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


def _rules(policy: Policy | str | os.PathLike[str] | None) -> AccessRules | None:
    """The ``[access]`` of a policy, or of the one at a path."""
    if policy is None:
        return None
    if isinstance(policy, str | os.PathLike):
        from .policies.policy_file import load_policy

        policy = load_policy(policy)
    return policy.access
