"""`edit`: open a checkpoint, decide all that changes, write it."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..checkpoint import SUFFIX, Checkpoint, FileTensor, SafetensorsFile
from ..checkpoint.mapping import matches
from ..checkpoint.saving import Contents, decided
from ..checkpoint.shardindex import ANY_INDEX, INDEX_SUFFIX, find_shards, index_text
from ..checkpoint.sharding import stem_of
from ..conversion.destination import Destination, OutputFile
from ..conversion.opening import open as open_any
from ..derived.casting import CastTensor, cast, parse_casts
from ..derived.quantised.schemes import names_of, refuse_casts
from ..errors import ChangedError, FormatError, UnsupportedError, quote
from ..format.header import PREFIX
from ..storage import DescriptorSource, Run, is_copyable, is_url, place_of
from ..storage.places import Place as OpenedPlace
from ..storage.places import parent
from ..trust.verifier import identified, identity_in_use, plain_store, resolve
from .inplace import Patch, can_patch, new_header, patch_of, write_patch
from .layout import DATA_HASHES, LEGACY_HASH, Output, Place, outputs_of
from .model import Model, below, model_of, refuse_unreadable
from .naming import check_patterns, named
from .plan import EditedFile, EditPlan
from .request import Edits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ..checkpoint import Tensor
    from ..storage import Buffer
    from .plan import How

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
    job = _Job(source, wanted, dry_run=dry_run)
    with ExitStack() as stack, identified(identity):
        if in_place and identity_in_use() is not None:
            raise UnsupportedError(
                "an encrypted model is not changed in place: give a target, and encrypt that", path=source
            )  # fmt: skip
        job.read(stack, trust)
        destination = job.place(None if target is None else os.fspath(target))
        files = job.decide(destination)
        job.describe(destination, files, force=force or in_place)
        if not dry_run:
            job.check_casts()
            job.write(
                destination, files, force=force or in_place, durable=durable, progress=progress
            )
    return job.plan


@dataclass
class _File:
    """An output, decided."""

    output: Output
    contents: Contents
    how: How = "written"
    head: bytes = b""
    patch: Patch | None = None
    original: SafetensorsFile | None = None

    @property
    def size(self) -> int:
        return self.contents.size if self.how == "written" else self.kept().size

    @property
    def moved(self) -> int:
        """Bytes that are not read."""
        if self.how == "header":
            return self.kept().size - len(self.head)
        if self.how != "written":
            return self.kept().size
        return sum(run.length for run in self.contents.runs() if isinstance(run, Run))

    def pieces(self) -> Iterator[Buffer | Run]:
        if self.how == "written":
            return self.contents.pieces()
        source = self.kept()
        data = Run(source, len(self.head), source.size - len(self.head))
        return iter((self.head, data) if data.length else (self.head,))

    def kept(self) -> DescriptorSource:
        """The file of which something stays."""
        assert self.original is not None
        assert isinstance(self.original.source, DescriptorSource)
        return self.original.source


class _Job:
    """One call of `edit`."""

    def __init__(self, source: str, edits: Edits, *, dry_run: bool) -> None:
        self.plan = EditPlan(dry_run=dry_run)
        self._edits = edits
        self._source = source
        self._in_place = False
        self._casts = parse_casts(edits.dtype) if edits.dtype else {}
        self._files: dict[str, SafetensorsFile] = {}  # by path
        self._model = Model("", {})
        self._opened: list[Checkpoint] = []

    # -- reading

    def read(self, stack: ExitStack, trust: object) -> None:
        """Open all sources, and apply the edits of tensors to the model."""
        edits = self._edits
        self._root, self._index, stem = _parts(self._source)
        checkpoint = stack.enter_context(self._open(self._source, trust))
        self._stem = stem
        model = model_of(checkpoint, self._root, several=self._index is not None)
        done = named(model, edits)
        self._model = done.model
        self.plan.renamed, self.plan.dropped = done.renamed, done.dropped
        self.plan.untied = done.untied
        if done.note:
            self.plan.notes.append(done.note)
        kept = checkpoint.keys() - {*done.dropped}
        refuse_unreadable(checkpoint, kept)
        for each in edits.add:
            self._add(stack, each, trust)
        self._cast()
        self._tie()
        self.plan.ties = self._model.ties

    def _open(self, path: str, trust: object) -> Checkpoint:
        found = open_any(path, backend="pread", trust=trust)
        if self._casts and found.format != "safetensors":
            # Types that the format lacks are readable only with their conversion.
            found = open_any(path, backend="pread", trust=trust, casts=self._casts)
        self._opened.append(found)
        for file in found.files:
            self._files[file.name] = file
            self.plan.sources.append(
                EditedFile(file.name, "safetensors", len(file.header.tensors), file.source.size)
            )
        if not found.files:
            size = sum(source.size for source in getattr(found, "sources", ()))
            size = size or sum(tensor.nbytes for tensor in found.values())
            self.plan.sources.append(EditedFile(path, found.format, len(found), size))
        return found

    def _add(self, stack: ExitStack, given: str | tuple[str, str], trust: object) -> None:
        path, pattern = _path_and_pattern(given)
        checkpoint = stack.enter_context(self._open(path, trust))
        patterns = (pattern,) if pattern else ()
        other = model_of(checkpoint)
        check_patterns("add", patterns, other.tensors)
        wanted = {
            name: tensor
            for name, tensor in other.tensors.items()
            if not patterns or matches(name, patterns)
        }
        refuse_unreadable(checkpoint, wanted)
        for name, tensor in wanted.items():
            self._require_new(name)
            self._model.tensors[name] = tensor
            self.plan.added[name] = path
        for alias, kept in other.ties.items():
            if kept in wanted and (not patterns or matches(alias, patterns)):
                self._require_new(alias)
                self._model.ties[alias] = kept

    def _require_new(self, name: str) -> None:
        if name in self._model.tensors or name in self._model.ties:
            raise FormatError(
                f"add: there is a tensor {quote(name)} already; leave it out first (drop, --drop)",
                rule="name-collision", path=self._source, tensor=name,
            )  # fmt: skip

    def _cast(self) -> None:
        for name, tensor in self._model.tensors.items():
            new = cast(tensor, self._casts, self._source)
            original = getattr(new, "original", new).dtype
            if original != new.dtype:
                self.plan.cast[name] = original, new.dtype
            self._model.tensors[name] = new
        if self._casts:
            self._require_whole_casts()

    def _require_whole_casts(self) -> None:
        """Refuse to cast a part of a quantised weight alone; parts are told by the names in the files."""
        cast_by_name = {
            tensor.name: tensor
            for tensor in self._model.tensors.values()
            if isinstance(tensor, CastTensor)
        }
        for checkpoint in self._opened:
            names = names_of(checkpoint, {**checkpoint, **cast_by_name})
            refuse_casts(names, cast_by_name)

    def _tie(self) -> None:
        tensors = self._model.tensors
        for alias, kept in self._edits.tie.items():
            check_patterns("tie", (alias, kept), tensors)
            _require_equal(alias, tensors[alias], kept, tensors[kept])
            self._model.ties = {
                name: kept if target == alias else target
                for name, target in self._model.ties.items()
            }
            self._model.ties[alias] = kept
            del tensors[alias]

    # -- deciding

    def place(self, target: str | None) -> Destination:
        """Where outputs go."""
        model, edits = self._model, self._edits
        if target is None:
            self._in_place = self.plan.in_place = True
            if self._kind() != "safetensors":
                raise UnsupportedError(
                    "only safetensors files are changed in place; give a target", path=self._source
                )
            source = place_of(self._source)
            store = source.folder() if source.kind() == "folder" else source.store
            if model.homes or edits.split is not None:
                return Destination(store, None)
            return Destination(store, below(self.plan.sources[0].path, self._root))
        place = place_of(target)
        as_file = target.endswith(SUFFIX) and place.kind() != "folder"
        folderish = model.homes or target.endswith("/") or place.kind() == "folder"
        if as_file or not folderish:
            self._stem = place.name.removesuffix(SUFFIX)
            return Destination(place.store, None if edits.split is not None else place.name)
        folder = target if is_url(target) else target.rstrip("/") or "/"
        if not is_url(target) and os.path.lexists(folder) and not os.path.isdir(folder):
            message = "is a file, where a folder is needed to write into"
            raise NotADirectoryError(errno.ENOTDIR, message, folder)
        one = not model.homes and edits.split is None
        return Destination(place_of(folder).folder(), f"{self._stem}{SUFFIX}" if one else None)

    def _kind(self) -> str:
        return self.plan.sources[0].format

    def decide(self, destination: Destination) -> list[_File]:
        """The outputs, and how each comes to be."""
        place = Place(destination.name, self._stem, self._index)
        outputs, self._new_index = outputs_of(self._model, self._edits, place, self.plan)
        by_name = {below(path, self._root): file for path, file in self._files.items()}
        files = []
        for output in outputs:
            contents = self._contents(output)
            file = _File(output, contents)
            original = by_name.get(output.name) if self._in_place else None
            if original is not None:
                self._keep(file, original)
            if file.how == "written" and not _has_all_data_of_a_file(contents):
                self._refresh_hashes(file)
            files.append(file)
        self._choose_patch(files, destination)
        return files

    def _contents(self, output: Output) -> Contents:
        edits = self._edits
        return decided(output.tensors, output.metadata, in_order=edits.sort, align=edits.align or 8)

    def _keep(self, file: _File, original: SafetensorsFile) -> None:
        """Find out how little has to be written of a file that is changed in place."""
        names = _same_data(original, file.output.tensors)
        metadata = file.output.metadata
        why = None
        if names is None:
            why = "its data changes"
        elif self._edits.sort or original.header.data_start % (self._edits.align or 1):
            why = "its data moves"
        elif not is_copyable(original.source):
            why = "what is read of it has to be verified"
        elif all(old == new for old, new in names.items()) and metadata == original.header.metadata:
            file.how, file.original = "kept", original
        elif (head := new_header(original, names, metadata)) is None:
            why = "its header has no room for what is added"
        else:
            file.how, file.original, file.head = "header", original, head
        if why is not None:
            self.plan.notes.append(f"{quote(file.output.name)} is written anew: {why}")

    def _choose_patch(self, files: list[_File], destination: Destination) -> None:
        """A single file whose header changes in one block only is overwritten there."""
        changed = [file for file in files if file.how != "kept"]
        if len(changed) != 1 or changed[0].how != "header" or self._new_index is not None:
            return
        (file,) = changed
        patch = patch_of(file.kept(), file.head)
        if patch is not None and can_patch(destination.store.locate(file.output.name)):
            file.how, file.patch = "patched", patch

    def _refresh_hashes(self, file: _File) -> None:
        """Metadata that is a hash of the data is computed anew, or left out."""
        metadata = file.output.metadata or {}
        asked = self._edits.metadata
        if LEGACY_HASH in metadata and LEGACY_HASH not in asked:
            del metadata[LEGACY_HASH]
            self.plan.metadata_removed[LEGACY_HASH] = (
                "it is a hash of a part of the file, which changed"
            )
        stale = [key for key in DATA_HASHES if key in metadata and key not in asked]
        if stale:
            self.plan.metadata_set |= dict.fromkeys(stale, "")
            for key in stale:  # as long as the digest that will be known when the data was read
                metadata[key] = DATA_HASHES[key] + "0" * 64
        file.contents = self._contents(file.output)

    # -- describing

    def describe(self, destination: Destination, files: list[_File], *, force: bool) -> None:
        """Fill in the plan, and check that the outputs can be written."""
        plan, store = self.plan, destination.store
        plan.tensors = sum(len(file.output.tensors) for file in files)
        plan.nbytes = sum(file.contents.header.data_size for file in files)
        for file in files:
            count = len(file.output.tensors)
            path = store.locate(file.output.name)
            plan.outputs.append(
                EditedFile(path, "safetensors", count, file.size, file.how, file.moved)
            )
        names = [file.output.name for file in files]
        self._text = b""
        if self._new_index is not None:
            weight_map = {name: file.output.name for file in files for name in file.output.tensors}
            self._text = index_text(weight_map, plan.nbytes).encode()
            path = store.locate(self._new_index)
            plan.outputs.append(EditedFile(path, "index", 0, len(self._text), "written"))
            names.append(self._new_index)
        self._earlier = destination.earlier_save(_as_outputs(files), self._new_index)
        destination.check(names, self._earlier, force=force)
        gone = [name for name in self._earlier.files() if name not in names]
        plan.removed = [store.locate(name) for name in gone]

    # -- writing

    def check_casts(self) -> None:
        """Find a value that a cast would lose, before anything is written."""
        for tensor in self._model.tensors.values():
            if isinstance(tensor, CastTensor) and tensor.may_lose:
                for _ in tensor.chunks():
                    pass

    def write(
        self,
        destination: Destination,
        files: list[_File],
        *,
        force: bool,
        durable: bool,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        """Write all files, or none."""
        changed = [file for file in files if file.how != "kept"]
        if self._in_place and not changed and not self.plan.removed:
            return
        if changed and changed[0].patch is not None:
            (file,) = changed
            assert file.patch is not None
            path = destination.store.locate(file.output.name)
            write_patch(path, file.kept(), file.patch, durable=durable)
            return
        total = sum(file.size for file in changed)
        done = 0
        with destination.store.commit(durable=durable) as commit:
            if force:
                self._earlier.delete_shards(commit)
            for file in changed:
                self._compute_hashes(file)
                report = None if progress is None else _shifted(progress, done, total)
                # Space is reserved for what is read; what the system moves may share blocks.
                size = file.size if file.moved < file.size // 2 else 0
                commit.write(
                    file.output.name,
                    file.pieces(),
                    size=size,
                    create_only=not force,
                    progress=report,
                )
                done += file.size
            if force:
                self._earlier.delete_indexes(commit, keep=self._new_index)
            if self._new_index is not None:
                commit.write(self._new_index, [self._text], create_only=not force)
            if self._in_place:
                self._require_unchanged()

    def _compute_hashes(self, file: _File) -> None:
        metadata = file.output.metadata or {}
        stale = [key for key in self.plan.metadata_set if key in DATA_HASHES and key in metadata]
        stale = [key for key in stale if key not in self._edits.metadata]
        if not stale:
            return
        state = hashlib.sha256()
        for name in file.contents.header.tensors:
            for chunk in file.output.tensors[name].chunks():
                state.update(chunk)
        for key in stale:
            metadata[key] = self.plan.metadata_set[key] = DATA_HASHES[key] + state.hexdigest()
        file.contents = self._contents(file.output)

    def _require_unchanged(self) -> None:
        """Refuse to replace a file that another process has replaced since it was opened.

        Raises:
            ChangedError: It has.
        """
        for path, file in self._files.items():
            if not isinstance(file.source, DescriptorSource):
                continue
            try:
                same = os.path.samestat(os.stat(path), os.fstat(file.source.fileno()))
            except FileNotFoundError:
                same = False
            if not same:
                raise ChangedError("the file was replaced meanwhile; edit it again", path=path)


def _has_all_data_of_a_file(contents: Contents) -> bool:
    """Whether the new file has the data of an old one, byte for byte."""
    runs = list(contents.runs())
    run = runs[0] if len(runs) == 1 else None
    if not isinstance(run, Run):
        return False
    start = PREFIX + int.from_bytes(run.source.read(0, PREFIX), "little")
    return (run.offset, run.length) == (start, run.source.size - start)


def _same_data(file: SafetensorsFile, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Old name -> new name, if `tensors` are all those of the file, unchanged; else None."""
    at: dict[tuple[int, int], list[str]] = {}
    for name, tensor in tensors.items():
        if type(tensor) is not FileTensor or tensor.source is not file.source:
            return None
        at.setdefault((tensor.info.begin, tensor.info.end), []).append(name)
    if len(tensors) != len(file.header.tensors):
        return None
    names: dict[str, str] = {}
    for old, info in file.header.tensors.items():
        place = at.get((info.begin, info.end), [])
        same = [name for name in place if tensors[name].info == info]
        # Empty tensors share a place: the one that kept its name is the same.
        new = old if old in same else next(iter(same), None)
        if new is None:
            return None
        place.remove(new)
        names[old] = new
    return names


def _require_equal(alias: str, first: Tensor, kept: str, second: Tensor) -> None:
    same = (first.dtype, first.shape) == (second.dtype, second.shape) and alias != kept
    if not same or not _equal_bytes(first, second):
        raise UnsupportedError(
            f"tie: {quote(alias)} and {quote(kept)} are not the same: a tie would change values",
            tensor=alias,
        )


def _equal_bytes(first: Tensor, second: Tensor) -> bool:
    size = 1 << 20
    for begin in range(0, first.nbytes, size):
        one, two = (bytearray(min(size, first.nbytes - begin)) for _ in range(2))
        first.read_into(memoryview(one), begin)
        second.read_into(memoryview(two), begin)
        if one != two:
            return False
    return True


def _path_and_pattern(given: str | tuple[str, str]) -> tuple[str, str]:
    if isinstance(given, tuple):
        return os.fspath(given[0]), given[1]
    if os.path.lexists(given) or ":" not in given:
        return given, ""
    path, _, pattern = given.rpartition(":")
    return path, pattern


def _parts(source: str) -> tuple[str, str | None, str]:
    """The folder that a source's files are in, the name of its index, and the stem of its names."""
    target, _ = resolve(source, None, None)
    place = target if isinstance(target, OpenedPlace) else place_of(source)
    kind = place.kind()
    if kind == "file":
        return parent(source), None, os.path.splitext(place.name)[0]
    if kind == "index":
        index = place.name if place.name.endswith(INDEX_SUFFIX) else None
        return parent(source), index, _stem(place.name)
    store, _ = plain_store(place.folder())
    names = [entry.name for entry in store.list(recursive=False)]
    index, files = find_shards(names, source)
    if index is not None:
        return source, index, _stem(index)
    stems = {stem_of(name) for name in files}
    return source, None, stems.pop() if len(stems) == 1 else "model"


def _stem(index: str) -> str:
    return os.path.splitext(index.removesuffix(ANY_INDEX))[0]


def _as_outputs(files: Iterable[_File]) -> list[OutputFile]:
    return [OutputFile(file.output.name, "", file.output.tensors, {}) for file in files]


def _shifted(
    progress: Callable[[int, int], object], done: int, total: int
) -> Callable[[int], object]:
    return lambda written: progress(done + written, total)
