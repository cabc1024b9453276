"""One verdict for a whole model, and the warrant that a later load uses.

`admit` reads weights, configuration, templates and code together, under one policy, and names every
file by its digest. Its warrant says what was admitted, not where: a load under it is verified
against those digests block by block, so that later changes to the folder do not matter. A file that
the warrant does not name cannot be loaded under it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ...display import Displayed
from ...errors import UnsupportedError, quote
from ...storage.places import folder_of, is_folder, is_url, shown
from ..content.reading import VerifiedCopy, VerifiedSource
from ..content.resources import Part, Resource
from ..content.sidecars import read_sidecar
from ..documents import canonical_json, parse_json
from ..errors import VerificationError
from ..files import check_name
from .evidence import gather
from .lockfile import lock_of, settle
from .policy_file import load_policy
from .subjects import place_of, relative

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ...storage.source import Source
    from ..content.blocktree import BlockTree
    from .audit import AuditLog
    from .evidence import Examine, Gathered
    from .lockfile import LockFile
    from .policy import Decision, Policy

__all__ = ["Admission", "Warrant", "WarrantedFile", "admit"]

_SCHEMA: Final = "safeweights-warrant/1"


@dataclass(frozen=True)
class WarrantedFile:
    """One admitted file."""

    sha256: str
    size: int
    tree_root: str | None = None


@dataclass(frozen=True)
class Warrant:
    """What was admitted: the files of a model by their digests.

    A warrant must not be changed by others: keep it in memory, or where only the policy's owner
    can write.

    Attributes:
        subject: The model's name.
        root: The folder, or the folder of the file.
        files: By name, relative to `root`.
    """

    subject: str
    root: str
    files: dict[str, WarrantedFile]
    _trees: dict[str, BlockTree] = field(default_factory=dict, repr=False, compare=False)

    @property
    def id(self) -> str:
        """SHA-256 over names, sizes and digests: equal for equal contents, wherever they are."""
        return hashlib.sha256(canonical_json(self._files())).hexdigest()

    def __call__(self, source: Source, path: str) -> Source:
        """A source that reads only admitted bytes of `source`, which was opened from `path`.

        Cost: none until it is read, where there is a block tree; otherwise the file is read whole.

        Raises:
            VerificationError: ``not-admitted``; ``size-mismatch``, ``digest-mismatch``.
        """
        # Folders may be reached through links; the last part is the name that was admitted.
        inside = relative(shown(path), self.root) if is_url(path) else None
        name = inside or place_of(path, self.root).name
        admitted = self.files.get(name)
        if admitted is None:
            raise VerificationError(
                f"the warrant for {quote(self.subject, 300)} does not name this file",
                reason="not-admitted", path=path,
            )  # fmt: skip
        if source.size != admitted.size:
            raise VerificationError(
                f"file size is {source.size} bytes, but {admitted.size} bytes were admitted",
                reason="size-mismatch", path=path,
            )  # fmt: skip
        if admitted.tree_root is not None:
            tree = self._trees.get(name)
            if tree is None:
                tree = read_sidecar(path, bytes.fromhex(admitted.tree_root), source.size)
            if tree is not None:
                return VerifiedSource(source, tree)
        part = Part(0, None, bytes.fromhex(admitted.sha256))
        return VerifiedCopy(source, Resource(name, "sha256", (part,)))

    def to_json(self) -> str:
        """The warrant as JSON, for another process, which needs sidecars for partial reads."""
        document = {
            "schema": _SCHEMA, "subject": self.subject, "root": self.root, "files": self._files(),
        }  # fmt: skip
        return json.dumps(document, indent=2)

    def _files(self) -> dict[str, Any]:
        return {
            name: {"sha256": file.sha256, "size": file.size, "tree_root": file.tree_root}
            for name, file in sorted(self.files.items())
        }

    @classmethod
    def from_json(cls, data: bytes, *, root: str | None = None, path: str | None = None) -> Warrant:
        """The warrant in `data`; for a copy of the model elsewhere, give its `root`.

        Raises:
            DocumentError: Malformed; names the field.
        """
        document = parse_json(data, path=path).only("schema", "subject", "root", "files")
        document.member("schema").equals(_SCHEMA)
        files = {}
        for name, entry in document.member("files").members():
            if problem := check_name(name):
                raise entry.error(f"the name {problem}")
            entry.only("sha256", "size", "tree_root")
            tree = entry.get("tree_root")
            files[name] = WarrantedFile(
                entry.member("sha256").hex(32).hex(),
                entry.member("size").integer(),
                tree.hex(32).hex() if tree else None,
            )
        return cls(document.member("subject").text(), root or document.member("root").text(), files)


@dataclass(frozen=True, repr=False)
class Admission(Displayed):
    """A decision and, unless it is a refusal, the warrant.

    Attributes:
        decision: Verdict, reasons, digests.
        warrant: For loads; None where the model was refused.
        log_head: The head of the audit log after this admission, where there is a log.
    """

    decision: Decision
    warrant: Warrant | None
    log_head: str | None = None

    def _summary(self) -> str:
        return self.decision._summary()  # noqa: SLF001 - of the same family

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
        return self.decision._table()  # noqa: SLF001 - of the same family

    @property
    def exit_code(self) -> int:
        """0 if the model was admitted, 1 if not."""
        return self.decision.exit_code

    def require(self) -> Warrant:
        """The warrant.

        Raises:
            PolicyViolationError: The model was refused.
        """
        self.decision.require()
        assert self.warrant is not None
        return self.warrant


def admit(
    path: str | os.PathLike[str],
    policy: Policy | str | os.PathLike[str],
    *,
    examine: Examine,
    name: str | None = None,
    signature: str | os.PathLike[str] | None = None,
    lock: LockFile | None = None,
    log: AuditLog | None = None,
    beneath: str | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Admission:
    """Decide about the file or folder at `path`, reading all of it.

    Args:
        path: A model.
        policy: A policy, or the path of one.
        examine: Given a file's bytes and name, finds code in it (`safeweights.reports.admission` hands
            in its own, and is what callers use).
        name: What the policy's rules call the model, in place of its path below the policy's root.
        signature: The signature file; by default the rule's, or found by convention
            (`safeweights.trust.signatures.discovery`).
        lock: What was accepted before, updated where the model is admitted; by default the policy's
            own.
        log: Where the decision is recorded, before it is returned.
        beneath: A folder that every file must be in, links included.
        workers: Files read at a time; by default the number of cores.
        progress: Called with the bytes read so far, from the calling thread.

    Raises:
        DocumentError: The policy or the lock file is malformed, or the log cannot be appended to.
        VerificationError: A file changed while it was read, or is outside `beneath`.
        OSError: As the operating system has it.
    """
    policy = load_policy(policy) if isinstance(policy, str | os.PathLike) else policy
    if is_url(path) and is_folder(path) and not folder_of(path).can_list:
        raise UnsupportedError(
            "this kind of store does not list what is in a model: `safeweights pull URL DIR --policy FILE` "
            "fetches and admits it", path=path,
        )  # fmt: skip
    signature = None if signature is None else os.fspath(signature)
    lock = lock_of(policy, lock)
    if log:
        log.check()
    gathered = gather(
        os.fspath(path), policy, name=name, signature=signature, beneath=beneath, examine=examine,
        workers=workers, progress=progress,
    )  # fmt: skip
    warrants: list[Warrant] = []
    heads: list[str] = []

    def record(decision: Decision) -> None:
        if decision.verdict != "refuse":
            warrants.append(_warrant(gathered))
        if log:
            heads.append(log.append("admit", _summary(decision, warrants)))

    decision = settle(
        policy, gathered.evidence, lock, signed=gathered.signed,
        present=gathered.present, record=record,
    )  # fmt: skip
    return Admission(
        decision, warrants[0] if warrants else None, heads[0] if heads else None
    )  # fmt: skip


def _warrant(gathered: Gathered) -> Warrant:
    files = {
        name: WarrantedFile(fact.sha256, fact.size or 0, _root(gathered.trees.get(name)))
        for name, fact in gathered.evidence.files.items()
        if fact.role != "bookkeeping"
    }
    return Warrant(gathered.evidence.subject, gathered.folder, files, gathered.trees)


def _summary(decision: Decision, warrants: list[Warrant]) -> dict[str, Any]:
    return {**decision.to_dict(), "warrant": warrants[0].id if warrants else None}


def _root(tree: BlockTree | None) -> str | None:
    return tree.root.hex() if tree else None
