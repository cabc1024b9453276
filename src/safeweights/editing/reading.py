"""The sources of an edit: opened, and everything done to tensors that is not writing them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..checkpoint.mapping import matches
from ..checkpoint.shardindex import ANY_INDEX, INDEX_SUFFIX, find_shards
from ..checkpoint.sharding import stem_of
from ..conversion.opening import open as open_any
from ..derived.casting import CastTensor, cast, parse_casts
from ..derived.quantised.schemes import names_of, refuse_casts
from ..errors import FormatError, UnsupportedError, quote
from ..storage import place_of
from ..storage.places import Place, parent
from ..trust.verifier import plain_store, resolve
from .model import model_of, refuse_unreadable
from .naming import check_patterns, named
from .plan import EditedFile

if TYPE_CHECKING:
    from contextlib import ExitStack

    from ..checkpoint import Checkpoint, SafetensorsFile, Tensor
    from .plan import EditPlan
    from .request import Edits

__all__ = ["Sources"]


class Sources:
    """What an edit reads.

    Args:
        source: The checkpoint to be edited.
        edits: What to do; names, types and ties are changed here.
        plan: Where what was found is noted.
        stack: Closes what is opened.
        trust: See `safeweights.open`.

    Attributes:
        model: The model as it will be, to be cut into files.
        files: The safetensors files that were opened, by path.
        own: The paths of those that are the source, without what is added to it.
        root: The folder that the source's files are in.
        index: The name of their index, if they have one.
        stem: What names of shards begin with.

    Raises:
        FormatError, UnsupportedError, OSError: See `edit`.
    """

    def __init__(
        self, source: str, edits: Edits, plan: EditPlan, stack: ExitStack, trust: object
    ) -> None:
        self._path, self._edits, self._plan, self._trust = source, edits, plan, trust
        self._stack = stack
        self._casts = parse_casts(edits.dtype) if edits.dtype else {}
        self._opened: list[Checkpoint] = []
        self.files: dict[str, SafetensorsFile] = {}
        self.root, self.index, self.stem = _parts(source)
        checkpoint = self._open(source)
        self.own = tuple(self.files)
        done = named(model_of(checkpoint, self.root, several=self.index is not None), edits)
        self.model = done.model
        plan.renamed, plan.dropped, plan.untied = done.renamed, done.dropped, done.untied
        if done.note:
            plan.notes.append(done.note)
        refuse_unreadable(checkpoint, checkpoint.keys() - {*done.dropped})
        for each in edits.add:
            self._add(each)
        self._cast()
        self._tie()
        plan.ties = self.model.ties

    def _open(self, path: str) -> Checkpoint:
        found = open_any(path, backend="pread", trust=self._trust)
        if self._casts and found.format != "safetensors":
            # Types that the format lacks are readable only with their conversion.
            found = open_any(path, backend="pread", trust=self._trust, casts=self._casts)
        self._stack.enter_context(found)
        self._opened.append(found)
        for file in found.files:
            self.files[file.name] = file
            self._plan.sources.append(
                EditedFile(file.name, "safetensors", len(file.header.tensors), file.source.size)
            )
        if not found.files:
            size = sum(source.size for source in getattr(found, "sources", ()))
            size = size or sum(tensor.nbytes for tensor in found.values())
            self._plan.sources.append(EditedFile(path, found.format, len(found), size))
        return found

    def _add(self, given: str | tuple[str, str]) -> None:
        path, pattern = _path_and_pattern(given)
        checkpoint = self._open(path)
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
            self.model.tensors[name] = tensor
            self._plan.added[name] = path
        for alias, kept in other.ties.items():
            if kept in wanted and (not patterns or matches(alias, patterns)):
                self._require_new(alias)
                self.model.ties[alias] = kept

    def _require_new(self, name: str) -> None:
        if name in self.model.tensors or name in self.model.ties:
            raise FormatError(
                f"add: there is a tensor {quote(name)} already; leave it out first (drop, --drop)",
                rule="name-collision", path=self._path, tensor=name,
            )  # fmt: skip

    def _cast(self) -> None:
        for name, tensor in self.model.tensors.items():
            new = cast(tensor, self._casts, self._path)
            original = getattr(new, "original", new).dtype
            if original != new.dtype:
                self._plan.cast[name] = original, new.dtype
            self.model.tensors[name] = new
        if self._casts:
            self._require_whole_casts()

    def _require_whole_casts(self) -> None:
        """Refuse to cast a part of a quantised weight alone; parts are told by the names in the files."""
        cast_by_name = {
            tensor.name: tensor
            for tensor in self.model.tensors.values()
            if isinstance(tensor, CastTensor)
        }
        for checkpoint in self._opened:
            names = names_of(checkpoint, {**checkpoint, **cast_by_name})
            refuse_casts(names, cast_by_name)

    def _tie(self) -> None:
        tensors = self.model.tensors
        for alias, kept in self._edits.tie.items():
            check_patterns("tie", (alias, kept), tensors)
            _require_equal(alias, tensors[alias], kept, tensors[kept])
            self.model.ties = {
                name: kept if target == alias else target
                for name, target in self.model.ties.items()
            }
            self.model.ties[alias] = kept
            del tensors[alias]


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
    place = target if isinstance(target, Place) else place_of(source)
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
