"""`admit`: a policy's verdict on a model, of whose files every one is examined for what it can do.

The decision is that of `trust.policies.admission`; what a file is and can do comes from
`conversion.kinds`. A file of a kind that is not known, or that could not be read, is a finding as well: it
is denied as ``unknown`` unless the policy allows that.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Final

from ..conversion.kinds.examining import examine
from ..errors import SafetensorError, quote
from ..format.kinds import KIND_HEAD
from ..storage.places import folder_of, is_folder, parent
from ..text import printable
from ..trust.access.keyring import as_keyring, is_encrypted
from ..trust.access.stores import EncryptedStore, plain_name
from ..trust.files import KEY_FILE
from ..trust.policies.admission import Admission
from ..trust.policies.admission import admit as decide
from ..trust.policies.policy import Finding, Policy
from ..trust.policies.policy_file import load_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..storage import Source
    from ..trust.policies.audit import AuditLog
    from ..trust.policies.lockfile import LockFile

__all__ = ["admit", "findings_of"]

_KINDS: Final = {
    "acts-call": "pickle", "unknown-call": "pickle", "text-pickle": "pickle",
    "name-python": "python", "kind-python": "python", "kind-notebook": "python",
    "kind-python-bytecode": "python", "name-python-bytecode": "python", "name-notebook": "python",
    "name-program": "native", "kind-program": "native", "kind-script": "native",
    "polyglot": "polyglot", "trust-remote-code": "trust_remote_code",
    "auto-map": "auto_map", "custom-code": "auto_map",
    "remote-kernel": "remote_kernel", "use-kernels": "remote_kernel",
    "json": "unreadable", "text-size": "unreadable", "template-size": "unreadable",
}  # fmt: skip
"""Rule of a concern -> the kind of finding that a policy denies; others are ``code`` or ``unknown``."""

_PICKLED: Final = frozenset(
    {
        "pickle",
        "torch-zip",
        "torchscript",
        "torch-package",
        "torch-export",
        "paddle",
        "nemo",
        "torch7",
    }
)
"""Kinds whose own loaders unpickle: denied as such, since a policy need not follow what each one does."""


def admit(
    path: str | os.PathLike[str],
    policy: Policy | str | os.PathLike[str],
    *,
    name: str | None = None,
    signature: str | os.PathLike[str] | None = None,
    lock: LockFile | None = None,
    log: AuditLog | None = None,
    beneath: str | None = None,
    identity: Any = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Admission:
    """Decide about the file or folder at `path`, reading all of it; nothing is executed.

    Args:
        path: A model.
        policy: A policy, or the path of one.
        name: What the policy's rules call the model, in place of its path below the policy's root.
        signature: The signature file; by default the rule's, or found by convention.
        lock: What was accepted before, updated where the model is admitted; by default the policy's
            own.
        log: Where the decision is recorded, before it is returned.
        beneath: A folder that every file must be in, links included.
        identity: Who opens encrypted files: what is in them is then examined too. Without it an encrypted
            file can hold anything, and is refused unless the policy's ``[access]`` requires encryption.
        workers: Files read at a time; by default the number of cores.
        progress: Called with the bytes read so far, from the calling thread.

    Raises:
        DocumentError: The policy or the lock file is malformed, or the log cannot be appended to.
        VerificationError: A file changed while it was read, or is outside ``beneath``.
        OSError: As the operating system has it.
    """
    policy = load_policy(policy) if isinstance(policy, str | os.PathLike) else policy
    return decide(
        path, policy, name=name, signature=signature, lock=lock, log=log, beneath=beneath,
        examine=_Examiner(os.fspath(path), policy, identity, log), workers=workers, progress=progress,
    )  # fmt: skip


class _Examiner:
    """Examines the files of a model, and the plaintext of those that are encrypted."""

    def __init__(self, path: str, policy: Policy, identity: Any, log: AuditLog | None) -> None:
        self._access = policy.access
        folder = path if is_folder(path) else parent(path)
        self._store: EncryptedStore | None = None
        if identity is not None:
            self._store = EncryptedStore(folder_of(folder), as_keyring(identity, log=log))

    def __call__(self, source: Source, name: str) -> Iterator[Finding]:
        if not is_encrypted(source.read(0, min(KIND_HEAD, source.size))):
            return findings_of(source, name)
        if name.endswith(KEY_FILE):
            return iter(())
        if self._store is not None:
            try:
                plain = self._store.decrypted(source)
            except SafetensorError as error:
                return iter([Finding("unknown", name, printable(str(error)))])
            return findings_of(plain, plain_name(name) or name)
        if self._access is not None and self._access.requires(name):
            return iter(())
        return iter([Finding("unknown", name, f"{quote(name)} is encrypted, and was not examined")])


def findings_of(source: Source, name: str) -> Iterator[Finding]:
    """What a policy decides about in a file called `name`, whose bytes are `source`.

    A file of a kind that holds a pickle is one finding, whatever the pickle does.

    Raises:
        VerificationError: `source` is a verified one, and the file was changed.
        OSError: Reading failed.
    """
    examination = examine(source, name)
    kind = examination.kind
    if kind is not None and kind.id in _PICKLED:
        yield Finding("pickle", name, f"this is {kind.name}")
    for concern in examination.concerns:
        found = _KINDS.get(concern.rule) or ("code" if concern.power == "acts" else "unknown")
        yield Finding(found, name, concern.message)
    for template in examination.templates:
        digest = hashlib.sha256(template.data).hexdigest()
        yield Finding("template", name, f"the template {quote(template.place)}", digest)
