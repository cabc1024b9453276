"""Collecting what a policy needs to know about a model: the only part of deciding that does I/O.

A folder is listed once, and each file is read once: from the same bytes come its digest, its block
tree and what is found in it, so that nothing can be exchanged between two looks. What has to be read
again of a large file, its end for example, is verified against the block tree made before.

A signature that fails is evidence too; it is not an exception here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ...errors import SafetensorError, quote
from ...storage import BytesSource, DescriptorSource, open_source
from ...storage.parallel import in_threads
from ...storage.places import basename, exists, folder_of, is_url, join, parent
from ..content.digests import FileDigest, file_cost, hash_file
from ..content.reading import VerifiedSource
from ..content.resources import PartHasher, changed
from ..content.sidecars import SIDECAR
from ..errors import TrustError, VerificationError
from ..files import (
    ENCRYPTED,
    KEY_FILE,
    KEY_SIGNATURE,
    is_bookkeeping,
    list_folder,
    open_regular,
)
from ..signatures.signing import WEIGHTS
from .claims import Claims, digests_of, key_signature, locate_for, real
from .policy import Evidence, FileFact, Finding, Role
from .subjects import canonical, relative, repository

if TYPE_CHECKING:
    from ...storage import Store
    from ...storage.source import Source
    from ..content.blocktree import BlockTree
    from ..content.resources import Resource
    from ..signatures.discovery import Located
    from .claims import Claim
    from .policy import Policy, Rule
    from .subjects import Place

__all__ = ["Examine", "Gathered", "Model", "aliases_of", "gather", "model_of"]

Examine = Callable[["Source", str], Iterable[Finding]]
"""Given a file's bytes and name, what in it runs code."""

_SMALL: Final = 1 << 20
"""Files up to this size are kept in memory while they are hashed, and examined there."""

_UNSIGNED: Final = frozenset({".git", ".github"})
"""Folders whose files no statement lists (OMS section 6.2). A model's settings can name files in them as
weights or modules: they are searched for code like all others."""

_GIT_DATA: Final = re.compile(
    r"\.git/(index|objects/[0-9a-f]{2}/[0-9a-f]{38}"
    r"|objects/pack/pack-[0-9a-f]{40}\.(pack|idx|rev|bitmap|mtimes))"
)
"""Files that git writes in formats of its own."""

_GIT_SAMPLE: Final = re.compile(r"\.git/hooks/[^/]+\.sample")
"""Samples of scripts, which git does not run."""


@dataclass(frozen=True)
class Model:
    """Which model a path belongs to.

    Attributes:
        subject: What the policy calls it.
        folder: The folder that names of its files are relative to.
        rule: The rule that applies to the path.
        located: Its signature.
        alone: Whether the model is one file.
    """

    subject: str
    folder: str
    rule: Rule | None
    located: Located
    alone: bool = False


def model_of(
    place: Place,
    policy: Policy,
    *,
    name: str | None = None,
    signature: str | None = None,
    base: str | None = None,
) -> Model:
    """The model that what is at `place` belongs to.

    A folder is a model. The model of a file is what the rule's pattern names, where it has no
    wildcard; the folder that its signature covers; the file itself, where it is signed alone; else
    the folder it is in. The rule follows from the path alone.

    Raises:
        VerificationError: `name` is not the name of a subject.
        DocumentError: The policy has a pattern that matches no absolute path, and no root.
    """
    if name is None:
        policy.check_rootless()
    rule = None
    if name is not None:
        rule = policy.rule_for(canonical(name))
    elif place.problem is None:
        rule = policy.rule_for(place.name)
    located = locate_for(place, policy, rule, signature, base)
    if place.folder:
        return Model(name or repository(place.name), place.path, rule, located)
    folder, alone = parent(place.path), False
    if name is None and rule is not None and rule.names_one_model and not place.problem:
        named = rule.pattern.rstrip("/")
        if not is_url(named):
            root = os.path.realpath(policy.base) if policy.base else os.sep
            named = os.path.normpath(os.path.join(root, rule.pattern))
        alone = named == place.path
        folder = folder if alone else named
    elif (
        rule is not None
        and rule.signers
        and located.exists()
        and relative(place.path, located.base) is not None
    ):
        alone, folder = located.alone, located.base
    subject = name
    if subject is None:
        inside = "" if alone else (relative(place.path, folder) or "")
        subject = place.name if alone else repository(_above(place.name, inside))
    return Model(subject, folder, rule, located, alone)


def aliases_of(place: Place, model: Model) -> tuple[str, ...]:
    """The subjects under which the links on the way to `place` name the model."""
    if place.folder:
        names = list(place.links)
    else:
        inside = "" if model.alone else relative(place.path, model.folder) or ""
        names = [_above(each, inside) for each in place.links if each.endswith(f"/{inside}")]
    found = dict.fromkeys(map(repository, names))
    return tuple(each for each in found if each != model.subject)


def _above(name: str, inside: str) -> str:
    """The subject of a folder, given the name of a file in it and its name relative to the folder."""
    folder = name[: len(name) - len(inside)]
    return folder if folder == "/" else folder.rstrip("/") or "."


@dataclass(frozen=True)
class Gathered:
    """Evidence, and what was made on the way that is worth keeping.

    Attributes:
        evidence: For `deciding.decide`.
        signed: Names of the files that the signed statement lists.
        folder: The folder that names are relative to.
        signature: The signature file.
        trees: Block trees of the weights, by file name.
    """

    evidence: Evidence
    signed: frozenset[str]
    folder: str
    signature: str
    trees: dict[str, BlockTree] = field(repr=False)

    def present(self, name: str) -> bool:
        """Whether the model has a file of this name: in the one listing, where there was one."""
        if self.evidence.scope == "whole":
            return name in self.evidence.files
        return exists(join(self.folder, name))


@dataclass(frozen=True)
class _File:
    """A file to read."""

    name: str
    path: str
    resource: Resource | None
    store: Store | None = (
        None  # of a file elsewhere: one, so that all are of one manifest or commit
    )

    def open(self) -> Source:
        """Its bytes; of a local file with the pread backend."""
        if self.store is not None:
            return self.store.open(self.name)
        return open_source(self.path, backend="pread")


@dataclass(frozen=True)
class _Read:
    """What one reading of a file gave."""

    digest: FileDigest
    findings: tuple[Finding, ...]
    problem: VerificationError | None


def gather(
    path: str,
    policy: Policy,
    *,
    examine: Examine,
    name: str | None = None,
    signature: str | None = None,
    beneath: str | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Gathered:
    """Everything `policy` asks to know about the file or folder at `path`.

    Args:
        path: A file or a folder.
        policy: Whose rules and signers to look for.
        examine: What finds code in a file (`safeweights.reports.admission.findings_of`).
        name: What the rules call the model, in place of its path below the policy's root.
        signature: The signature file; by default the rule's, or found by convention.
        beneath: A folder that every file must be in, links included.
        workers: Files read at a time; by default the number of cores.
        progress: Called with the bytes read so far, from the calling thread.

    Raises:
        OSError: As the operating system has it.
        VerificationError: A file name that cannot be dealt with, or a file outside `beneath`.
    """
    place = policy.place_of(path)
    model = model_of(place, policy, name=name, signature=signature)
    status, claim, signed = _claim(place, Claims(policy, beneath=beneath), model)
    files, findings = _list(place, model, claim, signed)

    def read(file: _File, tell: Callable[[int], object]) -> _Read:
        return _read(file, beneath=beneath, examine=examine, progress=tell)

    found = in_threads(
        read, files, cost=lambda file: file_cost(file.path), workers=workers, progress=progress
    )
    problems = [each.problem for each in found if each.problem]
    if problems:
        # Files that are not what was signed: then nothing here is signed.
        status, claim, signed = str(problems[0]), None, {}
    digests = {each.digest.name: each.digest for each in found}
    sidecars = _sidecars(digests)
    facts = _facts(digests, sidecars, signed, model, place)
    for result in found:
        if result.digest.name not in sidecars:
            findings += result.findings
    evidence = Evidence(
        subject=model.subject,
        files=facts,
        signer=claim.signer if claim else None,
        signed_by=claim.signed_by if claim else None,
        signature=status,
        release=claim.statement.release if claim else None,
        findings=tuple(findings),
        model=claim.model if claim else None,
        root_digest=claim.statement.root if claim else None,
        statement_files=digests_of(signed),
        scope="whole" if place.folder else "file" if model.alone else "part",
        path=None if name is not None else place.name,
        problem=_access_problem(policy, files) or (None if name is not None else place.problem),
        policy_root=policy.base,
        aliases=() if name is not None else aliases_of(place, model),
    )
    kept = (*WEIGHTS, ENCRYPTED)
    trees = {each: d.tree for each, d in digests.items() if d.tree and each.endswith(kept)}
    return Gathered(
        evidence, frozenset(signed), model.folder, model.located.signature, trees
    )  # fmt: skip


def _access_problem(policy: Policy, files: list[_File]) -> tuple[str, str] | None:
    """Why the policy's ``[access]`` refuses a file; None if it refuses none."""
    if policy.access is None:
        return None
    for file in files:
        source = file.open()
        try:
            problem = policy.access.problem(file.name, source)
        except SafetensorError as error:
            problem = "not-encrypted", str(error)
        if problem is not None:
            return problem
    return None


def _facts(
    digests: dict[str, FileDigest],
    sidecars: set[str],
    signed: dict[str, Resource],
    model: Model,
    place: Place,
) -> dict[str, FileFact]:
    """What is known of each file, by name in order."""
    signature = relative(real(model.located.signature), place.path)
    facts = {}
    for name, digest in sorted(digests.items()):
        role: Role = "content"
        if name in sidecars:
            role = "sidecar"
        elif (
            is_bookkeeping(name)
            or name == signature
            or name.partition("/")[0] in _UNSIGNED
            or (name.endswith(KEY_SIGNATURE) and name.removesuffix(".sig") in signed)
        ):
            role = "bookkeeping"
        facts[name] = FileFact(digest.sha256, digest.size, name in signed, role)
    return facts


def _claim(
    place: Place, claims: Claims, model: Model
) -> tuple[str, Claim | None, dict[str, Resource]]:
    """(status, the verified signature, what it says about each file of the model)."""
    rule = model.rule
    if rule is None or not rule.signers:
        return "unchecked", None, {}
    try:
        claim = claims.read(model.located, rule, place.path)
        if place.folder:
            signed = claim.resources_in(place.path)
            if any(name.endswith(ENCRYPTED) for name in signed):
                signed = {**_key_files(place, claims, rule), **signed}
            return "valid", claim, signed
        resource = claim.resource(place.path)
        if model.located.alone or "." in claim.statement.resources:
            signed = {}
        else:
            signed = claim.resources_in(model.folder)
        return "valid", claim, {**signed, _name_in(model, place.path): resource}
    except TrustError as error:
        return ("missing" if error.reason == "signature-missing" else str(error)), None, {}


def _key_files(place: Place, claims: Claims, rule: Rule) -> dict[str, Resource]:
    """What was signed about the key files of an encrypted model, each by a signature of its own.

    Raises:
        TrustError: One has none, or another signer's.
    """
    found = {}
    for entry in list_folder(place.path):
        if entry.name.endswith(KEY_FILE):
            path = join(place.path, entry.name)
            found[entry.name] = claims.read(key_signature(path), rule, path).resource(path)
    return found


def _name_in(model: Model, path: str) -> str:
    inside = None if model.alone else relative(path, model.folder)
    return inside or basename(path)


def _list(
    place: Place, model: Model, claim: Claim | None, signed: dict[str, Resource]
) -> tuple[list[_File], list[Finding]]:
    """Every file to read, and what can be no file of a model; not a signature that was verified."""
    if not place.folder:
        name = _name_in(model, place.path)
        store = folder_of(place.path.removesuffix(name)) if is_url(place.path) else None
        return [_File(name, place.path, signed.get(name), store)], []
    used = real(model.located.signature) if claim else None
    files: list[_File] = []
    findings: list[Finding] = []
    store = folder_of(place.path) if is_url(place.path) else None
    for entry in list_folder(place.path, store):
        path = join(place.path, entry.name)
        if used and real(path) == used:
            continue
        if store is not None or os.path.isfile(path):
            files.append(_File(entry.name, path, signed.get(entry.name), store))
        else:
            what = "a link to something that is not a file"
            detail = what if entry.kind == "link" else "not a regular file"
            findings.append(Finding("special", entry.name, detail))
    return files, findings


def _read(
    file: _File, *, beneath: str | None, examine: Examine, progress: Callable[[int], object]
) -> _Read:
    """The digest of a file, what is found in it, and why it is not what was signed: one reading."""
    resource = file.resource
    parts = PartHasher(resource) if resource and not resource.sha256 else None
    kept = bytearray()
    opened = file.open() if file.store is not None else None
    size = os.path.getsize(file.path) if opened is None else opened.size
    small = size <= _SMALL

    def also(data: memoryview) -> None:
        if small and len(kept) + len(data) > _SMALL:
            raise VerificationError(
                "the file was exchanged while it was read", reason="changed", path=file.path
            )
        if small:
            kept.extend(data)
        if parts:
            parts.update(data)

    digest = hash_file(
        file.path, name=file.name, tree=not small or file.name.endswith(WEIGHTS), beneath=beneath,
        also=also if small or parts else None, progress=progress, opened=opened,
    )  # fmt: skip
    source: Source = BytesSource(bytes(kept), file.path)
    if digest.tree is not None and not small:
        again = opened
        if again is None:
            with open_regular(file.path, beneath=beneath) as (descriptor, _):
                again = DescriptorSource(os.dup(descriptor), file.path, mapped=False)
        source = VerifiedSource(again, digest.tree)
    waived = "unknown" if _GIT_DATA.fullmatch(file.name) else None
    waived = "native" if _GIT_SAMPLE.fullmatch(file.name) else waived
    findings = tuple(each for each in examine(source, file.name) if each.kind != waived)
    return _Read(digest, findings, _difference(file, digest, parts))


def _difference(
    file: _File, digest: FileDigest, parts: PartHasher | None
) -> VerificationError | None:
    """Why a file is not what was signed; None where it is, or was not signed."""
    resource = file.resource
    if resource is None:
        return None
    if parts:
        try:
            parts.finish(digest.size, file.path)
        except VerificationError as error:
            return error
    elif digest.sha256 != resource.sha256:
        return changed(file.path, digest.sha256, resource)
    if resource.tree and digest.tree and digest.tree.root != resource.tree.root:
        return VerificationError(
            f"the signed block tree of {quote(file.name)} is not that of its signed content",
            reason="tree-mismatch", path=file.path,
        )  # fmt: skip
    return None


def _sidecars(digests: dict[str, FileDigest]) -> set[str]:
    """Names of block trees that are those of the files beside them, byte for byte."""
    found = set()
    for name, digest in digests.items():
        weights = digests.get(name.removesuffix(SIDECAR)) if name.endswith(SIDECAR) else None
        if weights and weights.tree:
            encoded = weights.tree.encode()
            if hashlib.sha256(encoded).hexdigest() == digest.sha256:
                found.add(name)
    return found
