"""The statement inside an encrypted model: what was signed about its plaintext, before it was encrypted.

A model that is signed, then encrypted, has its signature and block trees among the encrypted files
(``model.sig.age``): digests of plaintext in clear would confirm guesses of it. The outer signature, over
the ciphertexts, needs no key. Where there are both, both must be of the rule's signers, and a byte is
handed out only when it is what both say.
"""

from __future__ import annotations

import warnings
from threading import Lock
from typing import TYPE_CHECKING, Final

from ...errors import quote
from ...storage import LocalStore
from ..access.stores import EncryptedStore
from ..content.blocktree import BlockTree
from ..content.reading import VerifiedCopy, VerifiedSource
from ..content.sidecars import SIDECAR
from ..errors import TrustError, VerificationError
from ..files import MAX_DOCUMENT
from ..signatures.bundle import MAX_BUNDLE, SINGLE_FILE, parse_bundle, parse_statement
from ..signatures.signing import SIGNATURE
from .claims import who_signed
from .enforcing import PolicyVerifier, UnverifiedWarning
from .policy import Policy, Rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...storage import Source
    from ..signatures.bundle import Statement
    from ..signatures.verifying import Trust

__all__ = ["SealedStatement", "verify_inside"]

_PIECE: Final = 1 << 26
_OWN: Final = (SIGNATURE, "model.oms.sig")


class SealedStatement:
    """Checks the plaintext of encrypted files against the statement that is encrypted beside them.

    Args:
        verifier: What the outer signature is checked with.
    """

    def __init__(self, verifier: PolicyVerifier) -> None:
        self._verifier = verifier
        self._lock = Lock()
        self._known: dict[str, Statement | None] = {}

    def __call__(self, store: EncryptedStore, name: str, source: Source) -> Source:
        """The source to read instead of the plaintext of the file called `name`.

        Raises:
            VerificationError: It is not what was signed; also from reads.
        """
        if name in _OWN or name.endswith(SIDECAR) or self._verifier.policy.mode == "off":
            return source
        try:
            return self._checked(store, name, source)
        except TrustError as error:
            if self._verifier.policy.mode == "enforce":
                raise
            warnings.warn(str(error), UnverifiedWarning, stacklevel=2)
            return source

    def _checked(self, store: EncryptedStore, name: str, source: Source) -> Source:
        root, prefix = store.root()
        statement = self._statement(root, store.locate(name))
        if statement is None:
            return source
        resource = statement.resources.get(prefix + name)
        if resource is None:
            raise VerificationError(
                f"the statement inside the encrypted model does not list {quote(name, 300)}",
                reason="not-listed", path=source.name,
            )  # fmt: skip
        sidecar = f"{name}{SIDECAR}"
        if resource.tree and resource.sha256 and store.has(sidecar):
            found = store.open(sidecar)
            data = found.read(0, min(found.size, MAX_DOCUMENT + 1))
            tree = BlockTree.decode(data, resource.tree.root, path=found.name)
            return VerifiedSource(source, tree)
        return VerifiedCopy(source, resource)

    def statement(self, store: EncryptedStore) -> Statement | None:
        """The statement inside a store, verified; None if there is none.

        Raises:
            VerificationError: It is not by a signer of the rule.
        """
        return self._statement(store, store.locate(SIGNATURE))

    def _statement(self, store: EncryptedStore, path: str) -> Statement | None:
        """The statement inside, verified; None if there is none, or the rule for `path` names no signer."""
        rule = self._verifier.rule_of(path)
        if rule is None or not rule.signers:
            return None
        with self._lock:
            if store.location not in self._known:
                self._known[store.location] = self._read(store, rule)
            return self._known[store.location]

    def _read(self, store: EncryptedStore, rule: Rule) -> Statement | None:
        name = next(filter(store.has, _OWN), None)
        if name is None:
            return None
        source = store.open(name)
        data = source.read(0, min(source.size, MAX_BUNDLE + 1))
        bundle = parse_bundle(data, path=source.name)
        who_signed(bundle, self._verifier.policy, rule)
        statement = parse_statement(bundle.payload, path=source.name)
        if SINGLE_FILE in statement.resources:
            raise VerificationError(
                "this is the statement about one file, not about a folder", reason="wrong-model",
                path=source.name,
            )  # fmt: skip
        return statement


def verify_inside(
    path: str, trust: Trust, identity: object, *, progress: Callable[[int], object] | None = None
) -> tuple[str, ...]:
    """Verify the plaintext of an encrypted folder against the statement inside it; the names of its files.

    Every listed file is decrypted and hashed; nothing is written. No other file may be encrypted beside
    them.

    Args:
        path: The folder.
        trust: The signer that is required.
        identity: Who opens it; see `safeweights.trust.access.identities.as_identities`.
        progress: Called with the number of bytes that were verified.

    Raises:
        VerificationError: A file is not what was signed, missing, or not listed; or there is no statement.
        AccessError: The identity does not open the model.
        FormatError: A file was changed.
    """
    verifier = PolicyVerifier(Policy((Rule("*", signers=("trusted",)),), {"trusted": trust}))
    check = SealedStatement(verifier)
    store = EncryptedStore(LocalStore(path), identity, check=check)
    statement = check.statement(store)
    if statement is None:
        raise VerificationError(
            "there is no signature inside the encrypted model",
            reason="signature-missing",
            path=path,
        )
    names = [entry.name for entry in store.list() if entry.name not in _OWN]
    missing = sorted(statement.resources.keys() - set(names))
    if missing:
        raise VerificationError(f"{quote(missing[0])} is missing", reason="missing-file", path=path)
    done = 0
    for name in names:
        source = store.open(name)
        for begin in range(0, source.size, _PIECE):
            length = min(_PIECE, source.size - begin)
            source.view(begin, length)
            done += length
            if progress is not None:
                progress(done)
    return tuple(names)
