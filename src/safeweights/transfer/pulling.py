"""Pulling a model: from any store into a local folder, which gets its name when the model is admitted.

Everything happens in a hidden folder beside the one that is asked for, ``.DIR.safeweights-pull``. A pull
that was killed is continued there by the next one. Each file is compared with what is known of it while it
is fetched: with what the policy's signature says (block by block, if the file has a block tree), or else
with the digest that the store has. When all is there, `admit` reads it once more and decides; then the
folder is renamed. A model that is refused is deleted.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ..errors import FormatError
from ..storage import LocalStore
from ..storage.parallel import CHUNK, in_threads
from ..storage.places import shown
from .cache import Cache, copy_verified
from .listing import files_at
from .partial import fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..storage import Source, Store
    from ..trust.content.resources import Resource
    from ..trust.policies.admission import Admission
    from ..trust.policies.policy import Policy

__all__ = ["Pulled", "pull"]

_SUFFIX: Final = ".safeweights-pull"
_SIDECAR: Final = ".swtree"


@dataclass
class Pulled:
    """What a pull did.

    Attributes:
        folder: Where the model is.
        files: Name -> bytes.
        fetched: Bytes that came from the store, those of opening included.
        reused: Bytes that were there already: in the folder, the cache, or of an earlier attempt.
        admission: The decision; None without a policy.
        not_cached: Why the cache does not have all of the files: it cannot be written.
    """

    folder: str
    files: dict[str, int] = field(default_factory=dict)
    fetched: int = 0
    reused: int = 0
    admission: Admission | None = None
    not_cached: OSError | None = None

    @property
    def admitted(self) -> bool:
        """Whether the folder is there."""
        return self.admission is None or self.admission.warrant is not None


def pull(
    url: str,
    folder: str | os.PathLike[str],
    *,
    policy: Policy | str | None = None,
    name: str | None = None,
    files: Sequence[str] = (),
    identity: Any = None,
    force: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Pulled:
    """Fetch a model, and let the folder have its name when the policy admits it.

    Args:
        url: A folder or a file, at any URL or path.
        folder: The folder to make, or to replace: files that it has already with the same content are
            not fetched. Nothing else may be in it without `force`.
        policy: A policy, or the path of one; None for no check but that of the transfer.
        name: What the policy calls the model; by default the place of `folder` below its root.
        files: Only these files.
        identity: Who opens encrypted files, so that `policy` decides about what is in them, too; see
            `safeweights.admit`. They are written as they are.
        force: Delete files of the folder that the model does not have.
        progress: Called with the bytes that are there so far, and those of all files.

    Raises:
        FileExistsError: Without `force`: the folder has files that the model does not have.
        FormatError: There is no model, or a file's content is not what its store says.
        VerificationError: A file is not what was signed.
        ChangedError: A file was replaced meanwhile.
        OSError: Something cannot be read or written. What was fetched is kept for the next attempt.
    """
    folder = os.path.abspath(os.fspath(folder))
    if os.path.islink(folder) or (os.path.lexists(folder) and not os.path.isdir(folder)):
        raise NotADirectoryError(
            errno.ENOTDIR, "is a file or a link: give a new name, or a folder", folder
        )
    if isinstance(policy, str):
        from ..trust.policies.policy_file import load_policy

        policy = load_policy(policy)
    store, names = files_at(url, files)
    if not force:
        _require_expendable(folder, names)
    above, base = os.path.split(folder)
    os.makedirs(above, exist_ok=True)
    called = "" if policy is None else _name_of(policy, name, folder)
    with _staging(os.path.join(above, f".{base}{_SUFFIX}")) as staging:
        done = Pulled(folder)
        job = _Pull(store, staging, folder, done, progress)
        job.run(names, _Expected(policy, called))
        job.remove_others(names)
        if policy is not None:
            from ..reports.admission import admit

            new = os.path.join(staging, "new")
            done.admission = admit(new, policy, name=called, identity=identity)
        if done.admitted:
            if not force:
                _require_expendable(folder, names)  # others may have come meanwhile
            _publish(staging, folder)
        shutil.rmtree(staging, ignore_errors=True)
    return done


def _require_expendable(folder: str, names: list[str]) -> None:
    """Refuse a folder that has other files, which would be lost with it."""
    if not os.path.isdir(folder):
        return
    wanted, present = set(names), LocalStore(folder)
    other = next((entry.name for entry in present.list() if entry.name not in wanted), None)
    if other is not None:
        message = "the model has no such file; --force (force=True) deletes it"
        raise FileExistsError(errno.EEXIST, message, present.locate(other))


@contextmanager
def _staging(path: str) -> Iterator[str]:
    """The hidden folder; one process at a time uses it.

    Raises:
        FileExistsError: It is another user's, who may have put links into it, or it is no folder.
        BlockingIOError: Another process uses it.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not _is_ours(path):
            message = "is no folder of an earlier pull by this user; remove it"
            raise FileExistsError(errno.EEXIST, message, path) from None
    with open(os.path.join(path, "lock"), "ab") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EACCES}:
                message = "another process is pulling into this folder"
                raise BlockingIOError(errno.EAGAIN, message, path) from None
        os.makedirs(os.path.join(path, "new"), exist_ok=True)
        yield path


def _is_ours(path: str) -> bool:
    """Whether there is a folder that belongs to whom a new one beside it would belong to.

    Not compared with geteuid(2): some mounts have owners of their own (NFS with root_squash, CIFS, FUSE).
    """
    probe = tempfile.mkdtemp(prefix=f"{os.path.basename(path)}-", dir=os.path.dirname(path))
    try:
        found, own = os.lstat(path), os.lstat(probe)
    finally:
        os.rmdir(probe)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == own.st_uid


def _name_of(policy: Policy, name: str | None, folder: str) -> str:
    """What the policy calls the model that will be in `folder`.

    Raises:
        VerificationError: No rule can apply to it: the folder is outside the policy's root.
    """
    from ..trust.errors import VerificationError
    from ..trust.policies.subjects import canonical

    if name is not None:
        return canonical(name)
    place = policy.place_of(folder)
    problem = place.problem
    if problem is None and place.name.startswith("/"):
        problem = ("no-root", "the policy has no root that the folder could be below")
    if problem is not None:
        text = f"{problem[1]}; say what the policy calls the model (--name)"
        raise VerificationError(text, reason=problem[0], path=folder)
    return place.name


class _Expected:
    """What a verified signature says about the files, before they are fetched.

    Args:
        policy: Whose signers must have signed.
        name: What it calls the model.
    """

    def __init__(self, policy: Policy | None, name: str) -> None:
        self._policy = policy
        self._name = name
        self.resources: dict[str, Resource] = {}

    def read(self, new: str) -> None:
        """Verify the signature that was fetched.

        What is wrong with it is said at the end, by the decision about the whole model.
        """
        from ..trust.errors import TrustError
        from ..trust.policies.claims import Claims
        from ..trust.signatures.discovery import locate

        rule = self._policy.rule_for(self._name) if self._policy is not None else None
        if self._policy is None or rule is None or not rule.signers or rule.signature is not None:
            return
        located = locate(new, top=new, above=0)
        try:
            claim = Claims(self._policy).read(located, rule, new)
            self.resources = claim.resources_in(new)
        except TrustError:
            return

    def check(self, name: str, size: int, new: str) -> Callable[[int, memoryview], object] | None:
        """What to call with each block of a file; None where the signature has no block tree of it.

        Raises:
            VerificationError: The signature says another size.
        """
        from ..trust.content.sidecars import read_sidecar
        from ..trust.errors import TrustError, VerificationError

        resource = self.resources.get(name)
        if resource is None:
            return None
        path = os.path.join(new, *name.split("/"))
        if resource.size not in (None, size):
            raise VerificationError(
                f"file size is {size} bytes, but {resource.size} bytes were signed",
                reason="size-mismatch", path=path,
            )  # fmt: skip
        try:
            tree = resource.tree and read_sidecar(path, resource.tree.root, size)
        except TrustError:
            return None
        if not tree or tree.size != size or CHUNK % tree.block_size:
            return None
        step = tree.block_size

        def check(offset: int, block: memoryview) -> None:
            for begin in range(0, len(block), step):
                tree.check((offset + begin) // step, block[begin : begin + step], path=path)

        return check


class _Pull:
    """One call of `pull`."""

    def __init__(
        self,
        store: Store,
        staging: str,
        folder: str,
        done: Pulled,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self._store = store
        self._new = os.path.join(staging, "new")
        self._journals = os.path.join(staging, "journals")
        os.makedirs(self._journals, exist_ok=True)
        self._folder = folder
        self._done = done
        self._progress = progress
        self._cache = Cache.of_environment()
        self._total = 0
        self._ready = 0

    def run(self, names: list[str], expected: _Expected) -> None:
        """Fetch all files: small ones together, with the signature and the block trees; then the others."""
        sources = dict(zip(names, in_threads(self._open, names, workers=16), strict=True))
        self._done.files = {name: source.size for name, source in sources.items()}
        self._total = sum(self._done.files.values())
        first = [name for name in names if name.endswith((".sig", _SIDECAR))]
        for name in first:
            self._one(name, sources[name], expected)
        expected.read(self._new)
        for name in names:
            if name not in first:
                self._one(name, sources[name], expected)

    def _open(self, name: str, _: object) -> Source:
        return self._store.open(name, backend="pread")

    def _path(self, name: str) -> str:
        return os.path.join(self._new, *name.split("/"))

    def _one(self, name: str, source: Source, expected: _Expected) -> None:
        path = self._path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        resource = expected.resources.get(name)
        check = expected.check(name, source.size, self._new)
        digest = (resource and resource.sha256) or getattr(source, "sha256", None)
        if not self._is_here(name, path, source.size, digest):
            journal = os.path.join(self._journals, hashlib.sha256(name.encode()).hexdigest())
            hashed = digest is not None
            found = fetch(source, path, journal, check=check, hashed=hashed, progress=self._advance)
            self._done.fetched += found.nbytes
            self._done.reused += source.size - found.nbytes
            if digest is not None:
                _require(path, source.name, digest, found.sha256)
                self._keep(path, digest)
        self._ready += source.size
        self._advance(0)

    def _keep(self, path: str, digest: str) -> None:
        """Add a file to the cache. Where that cannot be written, the pull goes on without it."""
        if self._cache is None or self._done.not_cached is not None:
            return
        try:
            self._cache.add(path, digest)
        except OSError as error:
            self._done.not_cached = error

    def _advance(self, done: int) -> None:
        if self._progress is not None:
            self._progress(self._ready + done, self._total)

    def _is_here(self, name: str, path: str, size: int, digest: str | None) -> bool:
        """Whether the file is there already: of an earlier attempt, in the old folder, or in the cache."""
        if digest is None or os.path.isfile(
            path
        ):  # the journal knows which of its blocks are there
            return False
        old = os.path.join(self._folder, *name.split("/"))
        if os.path.isfile(old) and os.path.getsize(old) == size:
            found = copy_verified(old, path, digest, self._advance)
        else:
            found = self._cache is not None and self._cache.get(digest, path, self._advance)
        if found:
            self._done.reused += size
        return found

    def remove_others(self, names: list[str]) -> None:
        """Delete what an earlier attempt left that is no file of the model."""
        wanted = set(names)
        for folder, _, found in os.walk(self._new):
            for each in found:
                path = os.path.join(folder, each)
                if os.path.relpath(path, self._new).replace(os.sep, "/") not in wanted:
                    os.unlink(path)


def _require(path: str, where: str, digest: str, found: str | None) -> None:
    """Delete the file at `path` if it has another digest than was announced.

    Raises:
        FormatError: It has (rule ``digest``).
    """
    if found != digest:
        os.unlink(path)
        raise FormatError(
            f"the content has the SHA-256 {found}, but {digest} was announced",
            rule="digest", path=shown(where),
        )  # fmt: skip


def _publish(staging: str, folder: str) -> None:
    """Let the new folder have the name; an old one is moved aside first, and put back on failure."""
    new, old = os.path.join(staging, "new"), os.path.join(staging, "old")
    shutil.rmtree(old, ignore_errors=True)
    replaced = os.path.lexists(folder)
    if replaced:
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        if replaced:
            with suppress(OSError):
                os.rename(old, folder)
        raise
