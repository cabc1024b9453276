"""``trust=`` and ``identity=``: what a loader opens its files through, and the process-wide defaults.

Every loader takes both and calls `resolve`. Without them, and without defaults, nothing else of `trust` is
imported. Ciphertext is verified before it is decrypted, then what is signed inside.

Reports read many files of one model. They open them with `plain_store`, `plain_source` and `plain_stdin`,
which decrypt for the identity of the call (`identified`) or of the process (`set_identity`).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..errors import UnsupportedError
from ..storage import Store, open_source, place_of
from ..storage.places import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..storage import Source, Verifier
    from .access.stores import EncryptedStore

__all__ = [
    "check_unnamed", "decrypted_place", "decrypting", "identified", "identity_in_use", "plain_source",
    "plain_stdin", "plain_store", "resolve", "set_default", "set_identity", "verifier",
]  # fmt: skip


class _Process:
    """What loaders of this process use that are not given ``trust=`` or ``identity=``."""

    default: Verifier | None = None
    identity: Any = None


_identity_of_call: Final[ContextVar[Any]] = ContextVar("identity", default=None)


def verifier(trust: object) -> Verifier | None:
    """The function that a loader calls with every source it opens and its path.

    Args:
        trust: As for `safeweights.trust.as_verifier`; None for the process-wide default.

    Returns:
        None where there is neither.

    Raises:
        TypeError, TrustError, OSError: See `safeweights.trust.as_verifier`.
    """
    trust = _Process.default if trust is None else trust
    if trust is None:
        return None
    from .policies.enforcing import as_verifier

    return as_verifier(trust)


def resolve(target: Any, trust: object, identity: Any) -> tuple[Any, Verifier | None]:
    """What a loader opens in place of what its caller named, and what it opens files through.

    Args:
        target: A path, a URL, a store, an open file object, or bytes.
        trust: As for `verifier`.
        identity: Who opens encrypted files; see `safeweights.trust.access.identities.as_identities`. None
            for the process-wide default.

    Returns:
        `target` and its verifier, where nothing is to be decrypted. Else a store or a place whose files are
        decrypted as they are read and were verified before, and None.

    Raises:
        TypeError, TrustError, OSError: What is given as `trust` or `identity` cannot be used.
        UnsupportedError: Bytes that no path names are to be verified.
    """
    identity = identity_in_use() if identity is None else identity
    if identity is None:
        return target, verifier(trust)
    if isinstance(target, Store):
        return decrypting(target, identity, trust), None
    if isinstance(target, str | os.PathLike):
        return decrypted_place(place_of(target), identity, trust), None
    if verifier(trust) is not None:
        kind = type(target).__name__
        raise UnsupportedError(f"only what is opened by its path can be verified, not {kind}")
    from .access.keyring import as_keyring

    return as_keyring(identity).open(open_source(target)), None


def decrypted_place(place: Place, identity: Any, trust: object) -> EncryptedStore | Place:
    """What is at a place, decrypted: the store of a folder, or the place of a file in such a store."""
    if place.kind() == "folder":
        return decrypting(place.folder(), identity, trust)
    from .access.stores import plain_name

    folder = place.name.rpartition("/")[0]
    store = decrypting(place.store, identity, trust, folder=folder, named=place.name)
    return Place(place.path, store, plain_name(place.name) or place.name)


def plain_store(
    store: Store, trust: object = None, *, folder: str = ""
) -> tuple[Store, Verifier | None]:
    """The files of a store, decrypted if there is an identity in use.

    Args:
        store: Where the files are.
        trust: What they must fulfil.
        folder: See `decrypting`.

    Returns:
        The store to read from, and what its sources must still be verified with.
    """
    identity = identity_in_use()
    if identity is None:
        return store, verifier(trust)
    return decrypting(store, identity, trust, folder=folder), None


def plain_source(path: str, trust: object = None) -> Source:
    """The file at `path`, decrypted if there is an identity in use; only what is asked for is read.

    Args:
        path: Its path; of an encrypted file with or without the suffix that it has on the disk.
        trust: What the file must fulfil.
    """
    target, verify = resolve(path, trust, None)
    return open_source(target, backend="pread", verify=verify)


def plain_stdin(is_known: Callable[[bytes], bool], *, headers_only: bool = False) -> Source:
    """Standard input, decrypted if there is an identity in use.

    What is kept of a pipe on a disk is the ciphertext.

    Args:
        is_known: See `safeweights.storage.pipes.piped`.
        headers_only: See `safeweights.storage.pipes.piped`.

    Raises:
        AccessError: It is not encrypted, or not for this identity.
    """
    from ..storage.pipes import stdin_source

    identity = identity_in_use()
    if identity is None:
        return stdin_source(is_known, headers_only=headers_only)
    from .access.keyring import as_keyring, is_sealed

    return as_keyring(identity).open(stdin_source(is_sealed))


def decrypting(
    store: Store, identity: Any, trust: object = None, *, folder: str = "", named: str = ""
) -> EncryptedStore:
    """The plaintext of the encrypted files of a store.

    Args:
        store: Where the encrypted files are.
        identity: Who opens them; see `safeweights.trust.access.identities.as_identities`.
        trust: What the encrypted files must fulfil first, and what is signed inside them.
        folder: The folder in the store beside and above whose files key files are looked for.
        named: The file that the caller named, if it named one; see `EncryptedStore`.
    """
    from .access.stores import EncryptedStore

    plain = partial(EncryptedStore, store, folder=folder, named=named)
    verify = verifier(trust)
    if verify is None:
        return plain(identity)
    from .access.keyring import as_keyring
    from .policies.enforcing import PolicyVerifier
    from .policies.sealed import SealedStatement

    if not isinstance(verify, PolicyVerifier):
        return plain(identity, verify=verify)
    keyring, check = as_keyring(identity, log=verify.log), SealedStatement(verify)
    return plain(keyring, verify=verify, check=check)


def identity_in_use() -> Any:
    """What opens encrypted files where nothing is given: that of the call, or of the process, or None."""
    found = _identity_of_call.get()
    return _Process.identity if found is None else found


@contextmanager
def identified(identity: Any) -> Iterator[None]:
    """Have what this thread opens in the block be decrypted for `identity`; None changes nothing.

    Raises:
        TypeError, TrustError, OSError: See `safeweights.trust.access.identities.as_identities`.
    """
    if identity is None:
        yield
        return
    from .access.keyring import as_keyring

    token = _identity_of_call.set(as_keyring(identity))
    try:
        yield
    finally:
        _identity_of_call.reset(token)


def set_identity(identity: Any) -> None:
    """Have every loader of this process that is not given ``identity=`` use `identity`; None to undo that.

    Every file that is loaded must then be encrypted.

    Raises:
        TypeError, TrustError, OSError: See `safeweights.trust.access.identities.as_identities`.
    """
    if identity is not None:
        from .access.keyring import as_keyring

        identity = as_keyring(identity)
    _Process.identity = identity


def set_default(trust: object) -> None:
    """Have every loader of this process that is not given ``trust=`` use `trust`; None to undo that.

    A path is read now, and signatures that were checked are remembered for the whole process.

    Raises:
        TypeError, TrustError, OSError: See `safeweights.trust.as_verifier`; the default stays.
    """
    if trust is None:
        _Process.default = None
        return
    from .policies.enforcing import PolicyVerifier, shared_verifier

    shared = shared_verifier(trust)
    off = isinstance(shared, PolicyVerifier) and shared.policy.mode == "off"
    _Process.default = None if off else shared


def check_unnamed() -> None:
    """Refuse bytes that were opened by no path, where the process-wide default must verify them.

    Raises:
        UnsupportedError: There is a default: nothing says which model the bytes are of.
    """
    if _Process.default is not None:
        raise UnsupportedError(
            "this process loads models under a policy, which decides by path: load the file by its "
            "path, not from bytes"
        )
