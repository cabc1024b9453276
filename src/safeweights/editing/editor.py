"""`edit`: read, decide all that changes, write it."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ..checkpoint import SUFFIX
from ..checkpoint.shardindex import index_text
from ..conversion.destination import Destination, OutputFile, require_whole
from ..derived.casting import CastTensor
from ..errors import ChangedError, UnsupportedError
from ..storage import DescriptorSource, is_url, place_of
from ..trust.verifier import identified, identity_in_use
from .inplace import header_of, locked, write_patch
from .layout import Place, outputs_of
from .model import below
from .outputs import File, choose_patch, compute_hashes, decide
from .plan import EditedFile, EditPlan
from .reading import Sources
from .request import Edits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ..checkpoint import SafetensorsFile
    from ..checkpoint.sharding import EarlierSave
    from ..storage import Commit

__all__ = ["edit"]


def edit(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    edits: Edits | None = None,
    *,
    in_place: bool = False,
    force: bool = False,
    dry_run: bool = False,
    durable: bool = False,
    trust: object = None,
    identity: Any = None,
    progress: Callable[[int, int], object] | None = None,
    **changes: Any,
) -> EditPlan:
    """Change a checkpoint without loading it: names, types, metadata, and how it is cut into files.

    All is decided and checked before a byte is written, and all files are written or none. Memory:
    headers, and some chunks of 16 MiB. What stays as it is the system copies from file to file,
    sharing it where the filesystem can.

    Args:
        source: A file, a folder or an index, in any format that `safeweights.open` reads.
        target: The file to write; or a folder, for several files, if it exists or ends in a slash, or if
            the source has several files and the name does not end in ``.safetensors``.
        edits: What to change; single fields can also be given as keyword arguments.
        in_place: Change the source instead. If names and metadata fit into the space of the header, only
            the header is written: its bytes are overwritten if they lie in one block, else a new file
            takes the place of the old one. Otherwise the files are written anew, and a note says so.
        force: Replace files that exist, and an earlier checkpoint of the same name as a whole.
        dry_run: Decide and check, and write nothing.
        durable: Return only when all of it would survive a loss of power.
        trust: See `safeweights.open`.
        identity: Who opens encrypted sources; see `safeweights.open`. What is written is not encrypted,
            so that a target is needed.
        progress: Called with the number of bytes done so far and in total.
        changes: Fields of `Edits`.

    Returns:
        What was changed.

    Raises:
        FormatError: The source is damaged; two names would become one; a tie would break; the format
            cannot hold what would be written.
        UnsupportedError: A name, pattern or key matches nothing; a cast would lose values; tensors
            said to be tied differ.
        ChangedError: The source was replaced meanwhile.
        FileExistsError: An output exists, without `force`.
        OSError: Reading or writing failed; what was there stays.

    >>> import tempfile, numpy, safeweights.numpy
    >>> path = tempfile.mkdtemp() + "/a.safetensors"
    >>> safeweights.numpy.save_file({"module.w": numpy.zeros(3, "f4")}, path)
    >>> edit(path, in_place=True, strip_prefix="module.").renamed
    {'module.w': 'w'}
    """
    wanted = replace(edits or Edits(), **changes)
    if in_place == (target is not None):
        raise UnsupportedError("give a target, or in_place=True (--in-place), and not both")
    source = os.fspath(source)
    plan = EditPlan(dry_run=dry_run, in_place=in_place)
    with ExitStack() as stack, identified(identity):
        if in_place and identity_in_use() is not None:
            raise UnsupportedError(
                "an encrypted model is not changed in place: give a target, and encrypt that",
                path=source,
            )
        sources = Sources(source, wanted, plan, stack, trust)
        stem = sources.stem
        if target is None:
            where = _in_place(source, sources, wanted, plan)
        else:
            where, stem = _place(os.fspath(target), sources, wanted)
        found = _decide(sources, wanted, plan, where, stem)
        earlier = _describe(found, plan, where, force=force or in_place)
        if not in_place:
            require_whole(sources.own, (each.path for each in plan.outputs), plan.removed)
        if not dry_run:
            _check_casts(sources)
            writing = _Writing(wanted, plan, found, where, earlier, durable, progress)
            writing.write(sources.files if in_place else {}, force=force or in_place)
    return plan


# ---- where to


def _in_place(source: str, sources: Sources, edits: Edits, plan: EditPlan) -> Destination:
    """Where the outputs of an edit in place go: where the source is."""
    if plan.sources[0].format != "safetensors":
        raise UnsupportedError(
            "only safetensors files are changed in place; give a target", path=source
        )
    place = place_of(source)
    store = place.folder() if place.kind() == "folder" else place.store
    if sources.model.homes or edits.split is not None:
        return Destination(store, None)
    return Destination(store, below(plan.sources[0].path, sources.root))


def _place(target: str, sources: Sources, edits: Edits) -> tuple[Destination, str]:
    """Where outputs go that do not replace the source, and what names of shards begin with."""
    homes, several = sources.model.homes, edits.split is not None
    place = place_of(target)
    folder_there = place.kind() == "folder"
    as_file = target.endswith(SUFFIX) and not folder_there
    if as_file or not (homes or several or target.endswith("/") or folder_there):
        stem = place.name.removesuffix(SUFFIX)
        return Destination(place.store, None if several else place.name), stem
    folder = target if is_url(target) else target.rstrip("/") or "/"
    if not is_url(target) and os.path.lexists(folder) and not os.path.isdir(folder):
        message = "is a file, where a folder is needed to write into"
        raise NotADirectoryError(errno.ENOTDIR, message, folder)
    name = None if homes or several else f"{sources.stem}{SUFFIX}"
    return Destination(place_of(folder).folder(), name), sources.stem


# ---- deciding and describing


@dataclass
class _Found:
    """What is to be written.

    Attributes:
        files: All outputs, those too that stay as they are.
        index: The name of their index, if they have one.
        text: What is in it.
    """

    files: list[File]
    index: str | None
    text: bytes = b""


def _decide(
    sources: Sources, edits: Edits, plan: EditPlan, where: Destination, stem: str
) -> _Found:
    """The outputs, and how each comes to be."""
    place = Place(where.name, stem, sources.index)
    outputs, index = outputs_of(sources.model, edits, place, plan)
    originals: dict[str, SafetensorsFile] = {}
    if plan.in_place:
        originals = {below(path, sources.root): file for path, file in sources.files.items()}
    files = [decide(each, edits, plan, originals.get(each.name)) for each in outputs]
    if index is None:
        choose_patch(files, where.store.locate)
    return _Found(files, index)


def _describe(found: _Found, plan: EditPlan, where: Destination, *, force: bool) -> EarlierSave:
    """Fill in the plan, and check that the outputs can be written; what is there of an earlier save."""
    files, store = found.files, where.store
    plan.tensors = sum(len(file.output.tensors) for file in files)
    plan.nbytes = sum(file.contents.header.data_size for file in files)
    for file in files:
        count = len(file.output.tensors)
        path = store.locate(file.output.name)
        plan.outputs.append(EditedFile(path, "safetensors", count, file.size, file.how, file.moved))
    names = [file.output.name for file in files]
    if found.index is not None:
        weight_map = {name: file.output.name for file in files for name in file.output.tensors}
        found.text = index_text(weight_map, plan.nbytes).encode()
        path = store.locate(found.index)
        plan.outputs.append(EditedFile(path, "index", 0, len(found.text), "written"))
        names.append(found.index)
    earlier = where.earlier_save(_as_outputs(files), found.index)
    where.check(names, earlier, force=force)
    plan.removed = [store.locate(name) for name in earlier.files() if name not in names]
    return earlier


def _as_outputs(files: Iterable[File]) -> list[OutputFile]:
    return [OutputFile(file.output.name, "", file.output.tensors, {}) for file in files]


# ---- writing


def _check_casts(sources: Sources) -> None:
    """Find a value that a cast would lose, before anything is written."""
    for tensor in sources.model.tensors.values():
        if isinstance(tensor, CastTensor) and tensor.may_lose:
            for _ in tensor.chunks():
                pass


@dataclass
class _Writing:
    """Writes what was decided: all files, or none."""

    edits: Edits
    plan: EditPlan
    found: _Found
    where: Destination
    earlier: EarlierSave
    durable: bool
    progress: Callable[[int, int], object] | None

    def write(self, replaced: Mapping[str, SafetensorsFile], *, force: bool) -> None:
        """Write.

        Args:
            replaced: The files that are changed in place, by path.
            force: Replace what is there.
        """
        changed = [file for file in self.found.files if file.how != "kept"]
        if self.plan.in_place and not changed and not self.plan.removed:
            return
        if changed and changed[0].patch is not None:
            (file,) = changed
            path = self.where.store.locate(file.output.name)
            write_patch(path, file.kept(), changed[0].patch, durable=self.durable)
            return
        # The locks are returned when the new files have their names.
        with ExitStack() as locks, self.where.store.commit(durable=self.durable) as commit:
            self.earlier.begin(commit, force=force)
            self._write_files(commit, changed, create_only=not force)
            self.earlier.finish(commit, self.found.index, self.found.text, force=force)
            _require_unchanged(replaced, locks)

    def _write_files(self, commit: Commit, files: list[File], *, create_only: bool) -> None:
        total, done = sum(file.size for file in files), 0
        for file in files:
            compute_hashes(file, self.edits, self.plan)
            report = None if self.progress is None else _shifted(self.progress, done, total)
            # Space is reserved for what is read; what the system moves may share blocks.
            size = file.size if file.moved < file.size // 2 else 0
            commit.write(
                file.output.name, file.pieces(), size=size, create_only=create_only, progress=report
            )
            done += file.size


def _require_unchanged(files: Mapping[str, SafetensorsFile], locks: ExitStack) -> None:
    """Refuse to replace a file that another process has replaced or edited since it was opened.

    Args:
        files: The files, by path.
        locks: Gets what keeps other processes from editing them.

    Raises:
        ChangedError: It has.
    """
    held: set[tuple[int, int]] = set()
    for path, file in sorted(files.items(), key=itemgetter(0)):  # all processes in one order
        if not isinstance(file.source, DescriptorSource):
            continue
        opened = os.fstat(file.source.fileno())
        if (opened.st_dev, opened.st_ino) not in held:  # it may have two names
            held.add((opened.st_dev, opened.st_ino))
            locks.enter_context(locked(file.source.fileno()))
        try:
            same = os.path.samestat(os.stat(path), opened)
        except FileNotFoundError:
            same = False
        if not same:
            raise ChangedError("the file was replaced meanwhile; edit it again", path=path)
        header_of(file)


def _shifted(
    progress: Callable[[int, int], object], done: int, total: int
) -> Callable[[int], object]:
    return lambda written: progress(done + written, total)
