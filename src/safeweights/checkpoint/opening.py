"""Opening safetensors files, indexes and folders as one mapping.

`find_files` says which files a path leads to, also for readers of other formats.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from ..errors import ChangedError, FormatError, UnsupportedError, quote
from ..storage import Handles, Store, place_of, too_many
from ..storage.parallel import in_threads
from ..storage.places import Place, is_local_file
from .file import SafetensorsFile
from .mapping import Checkpoint
from .shardindex import (
    SUFFIX,
    check_complete,
    check_present,
    check_twin,
    disagreements,
    find_shards,
    parse_index,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from ..storage import Source, Verifier
    from ..storage.places import PlaceKind

__all__ = ["Files", "beside", "find_files", "kind_of", "open"]

R = TypeVar("R")

_REQUESTS: Final = 16
"""Requests to one remote store at a time."""


def open(target: Any, *, backend: str = "mmap", verify: Verifier | None = None) -> Checkpoint:
    """Open a checkpoint of safetensors: a file, an ``index.json``, a folder, a file object, or bytes.

    Reads and checks headers only. A folder is read through its index if it has one; otherwise all its
    ``.safetensors`` files are taken together.

    Args:
        target: Path, URL, store, readable file object, or bytes-like object that holds a file.
        backend: ``"mmap"`` maps the file, ``"pread"`` reads what is asked for. A mapping is fastest,
            but if another process truncates the file, touching it kills the process. ``"direct"``,
            ``"auto"``: see `safeweights.storage.open_source`.
        verify: Called with every source that is opened, the index's too, and its path; what it
            returns is read instead. `safeweights.open` makes one of a policy or a key.

    Raises:
        FormatError: A file breaks the format; an index disagrees with its shards; shards are missing.
        ChangedError: The checkpoint was replaced while it was being opened.
        UnsupportedError: `target` is none of these, or there is no such backend.
        OSError: Something cannot be opened or read.

    >>> import safeweights.numpy, numpy
    >>> data = safeweights.numpy.save({"a": numpy.zeros(3, "f4")})
    >>> open(data)["a"]
    <FileTensor `a` F32 [3]>
    """
    files = find_files(target, verify=verify)
    if files is None:
        target = os.fsdecode(target) if isinstance(target, os.PathLike) else target
        file = SafetensorsFile.open(target, backend=backend, verify=verify)
        found = Checkpoint.from_files([file], file.name)
        found.beside = beside(target, verify)
        return found
    opened = {name: SafetensorsFile(source) for name, source in files.open(backend, verify)}
    files.check({name: file.header.tensors for name, file in opened.items()})
    found = Checkpoint.from_files(opened.values(), files.name)
    found.beside = beside(files.store, verify)
    return found


def beside(place: Any, verify: Verifier | None = None) -> Callable[[str, int], bytes | None] | None:
    """A function that reads a small file beside weights; see `Checkpoint.beside`.

    Args:
        place: The store of the weights, or the path or URL of their only file; None for anything else.
        verify: See `open`.
    """
    if not isinstance(place, str | os.PathLike | Store):
        return None

    def read(name: str, most: int) -> bytes | None:
        store, folder = place, ""
        if not isinstance(store, Store):
            named = place_of(store)
            store, folder = named.store, named.name.rpartition("/")[0]
        name = f"{folder}/{name}" if folder else name
        try:
            source = store.open(name, backend="pread")
        except FileNotFoundError:
            return None
        source = source if verify is None else verify(source, source.name)
        if source.size > most:
            raise FormatError(
                f"it has {source.size:,} bytes; at most {most:,} are read",
                rule="settings-size", path=store.locate(name),
            )  # fmt: skip
        return bytes(source.read(0, source.size))

    return read


def kind_of(path: str) -> PlaceKind:
    """What a path or URL is taken for: a folder if there is one, an index by its name, or else a file."""
    return place_of(path).kind()


class Files(NamedTuple):
    """The files of a checkpoint that has several.

    Attributes:
        name: What to call the checkpoint.
        store: Where the files are.
        names: Their names there, in order.
        index_name: The name of the index, if there is one.
        weight_map: Tensor -> name, as the index has it.
        index_version: The `Source.version` of the index.
        index_metadata: The texts in the index's ``metadata``.
    """

    name: str
    store: Store
    names: list[str]
    index_name: str | None = None
    weight_map: Mapping[str, str] | None = None
    index_version: str | None = None
    index_metadata: Mapping[str, str] = MappingProxyType({})

    def open(
        self, backend: str, verify: Verifier | None, handles: Handles | None = None
    ) -> Iterator[tuple[str, Source]]:
        """Name and source of each file, opened one after another.

        Args:
            backend: See `open`.
            verify: See `open`.
            handles: What keeps few of them open; by default, all stay open unless they are too many.

        Raises:
            ChangedError: After the last file: the checkpoint was replaced in the meantime.
        """
        versions = {}
        for name, source in self._sources(backend, handles):
            versions[name] = source.version
            yield name, source if verify is None else verify(source, source.name)
        # A commit removes the index first and adds the new one last: if the same index is still there,
        # no file was replaced before this moment. Without an index, each file has to be the same.
        if self.index_name is not None:
            versions = {self.index_name: self.index_version}
        elif len(versions) == 1:
            return
        self._require_versions(versions)

    def _sources(self, backend: str, handles: Handles | None) -> Iterator[tuple[str, Source]]:
        if not self.store.is_remote:
            if handles is None and not too_many(len(self.names)):
                return ((name, self.store.open(name, backend=backend)) for name in self.names)
            few = handles or Handles()
            open_it = partial(self.store.open, backend="pread")
            return ((name, few.source(partial(open_it, name))) for name in self.names)
        # A request takes a long time, in which nothing else happens: all of them together. Headers are
        # among the first bytes, which remote stores fetch when they open a file.
        return iter(zip(self.names, _each_of(self.names, self._open_or_missing), strict=True))

    def _open_or_missing(self, name: str) -> Source:
        try:
            return self.store.open(name)
        except FileNotFoundError:
            if self.index_name is not None:
                check_present(self.names, [name], self.store.locate(self.index_name))
            raise

    def _require_versions(self, versions: Mapping[str, str | None]) -> None:
        try:
            if self.store.is_remote:
                _each_of(versions, lambda name: self.store.check_version(name, versions[name]))
                return
            for name, version in versions.items():
                self.store.check_version(name, version)
        except (ChangedError, FileNotFoundError):
            message = "the checkpoint was replaced while it was being opened; open it again"
            raise ChangedError(message, path=self.name) from None

    def check(self, tensors: Mapping[str, Collection[str]]) -> None:
        """Compare the files with their index, if they have one.

        Args:
            tensors: Name of a file -> the names of its tensors.

        Raises:
            FormatError: The index and the files do not have the same tensors in the same places.
        """
        if self.index_name is not None and self.weight_map is not None:
            path = self.store.locate(self.index_name)
            for error in disagreements(self.weight_map, tensors, path):
                raise error


_SAFETENSORS_ONLY: Final = ((SUFFIX,),)


def find_files(
    target: Any,
    *,
    suffixes: tuple[tuple[str, ...], ...] = _SAFETENSORS_ONLY,
    shard_suffix: str = SUFFIX,
    verify: Verifier | None = None,
    missing: str = f"the folder has no {SUFFIX} file and no index",
) -> Files | None:
    """The files that a folder, a store, or an index consists of; None for anything else.

    Args:
        target: A path, a URL, a `Place`, a store, or anything else.
        suffixes: How names of weight files end. The first group counts of which a folder has a file or
            an index; the others are tried in turn.
        shard_suffix: How the names end that an index may list; ``""`` allows any.
        verify: See `open`; for the index.
        missing: What is to be said of a folder without weights.

    Raises:
        FormatError: A folder without weights (rule ``folder``) or with several indexes; an index that
            cannot be read or lists files that are missing.
        OSError: Something cannot be opened or read.
    """
    wanted = _Wanted(suffixes, shard_suffix, missing)
    if isinstance(target, Store):
        return _find_in_folder(target, target.location, wanted, verify)
    if isinstance(target, Place):
        place = target
    elif not isinstance(target, str | os.PathLike) or is_local_file(target):
        return None
    else:
        place = place_of(target)
    kind = place.kind()
    if kind == "folder":
        return _find_in_folder(place.folder(), place.path, wanted, verify)
    if kind == "index":
        return _read_index(place.store, place.name, place.path, shard_suffix, verify)
    return None


class _Wanted(NamedTuple):
    """Arguments of `find_files`."""

    suffixes: tuple[tuple[str, ...], ...]
    shard_suffix: str
    missing: str


def _find_in_folder(store: Store, path: str, wanted: _Wanted, verify: Verifier | None) -> Files:
    if not store.can_list:
        return _find_by_name(store, path, wanted.shard_suffix, verify)
    names = [entry.name for entry in store.list(recursive=False)]
    for group in wanted.suffixes:
        index, files = find_shards(names, path, group)
        if index is not None:
            found = _read_index(store, index, path, wanted.shard_suffix, verify)
            check_twin(index, found.names, names, path)
            return found
        if SUFFIX in group:
            _refuse_interrupted(store, path)
        if files:
            check_complete(files, path)
            return Files(path, store, files)
    if any(name.endswith(_ENCRYPTED) for name in names):
        raise FormatError(
            "the folder is encrypted (age): say who opens it, with identity= or the option -i",
            rule="encrypted", path=path,
        )  # fmt: skip
    more = ""
    if below := _folders_with_weights(store, wanted.suffixes):
        listed = ", ".join(map(quote, below[:3])) + (" ..." if len(below) > 3 else "")
        more = f"; there are weights in its folders {listed}: name one of them"
    raise FormatError(wanted.missing + more, rule="folder", path=path)


_FOLDERS_MAX: Final = 100


def _folders_with_weights(store: Store, suffixes: tuple[tuple[str, ...], ...]) -> list[str]:
    """The folders directly in a store that have weights, as those of a pipeline of several models do."""
    folders = [entry.name for entry in store.list(recursive=False) if entry.kind == "folder"]
    endings = tuple(suffix for group in suffixes for suffix in group)
    found = []
    for name in folders[:_FOLDERS_MAX]:
        with suppress(OSError, UnsupportedError):  # this only adds to a message
            if any(entry.name.endswith(endings) for entry in store.list(name, recursive=False)):
                found.append(name)
    return found


_ENCRYPTED: Final = (f"{SUFFIX}.age", f"{SUFFIX}.index.json.age", ".key.age")
"""How names in a folder end whose weights are encrypted."""

_USUAL_NAMES: Final = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "adapter_model.safetensors",
)
"""Names that checkpoints have, in the order in which they are looked for where no folder can be listed."""


def _find_by_name(store: Store, path: str, shard_suffix: str, verify: Verifier | None) -> Files:
    for name in _USUAL_NAMES:
        if store.kind(name) is None:
            continue
        if name.endswith(SUFFIX):
            return Files(path, store, [name])
        return _read_index(store, name, path, shard_suffix, verify)
    raise FormatError(
        f"this server does not list folders, and has none of {', '.join(_USUAL_NAMES)} here; name a file "
        "or an index",
        rule="no-listing", path=path,
    )  # fmt: skip


def _each_of(names: Iterable[str], call: Callable[[str], R]) -> list[R]:
    """The result of `call` for each name of a remote store, in order; many at a time."""
    return in_threads(lambda name, _: call(name), names, workers=_REQUESTS)


def _refuse_interrupted(store: Store, path: str) -> None:
    # Files without an index do not tell whether they are all of one save.
    if (kept := store.interrupted()) is not None:
        raise FormatError(
            "a save into this folder was interrupted, or is going on; its files are in "
            f"{quote(kept, 400)}: move the old ones back or save again, and delete that folder",
            rule="interrupted-save", path=path,
        )  # fmt: skip


def _read_index(
    store: Store, name: str, path: str, shard_suffix: str, verify: Verifier | None
) -> Files:
    source = store.open(name, backend="pread")
    version = source.version
    source = source if verify is None else verify(source, source.name)
    index = parse_index(source, store.locate(name), suffix=shard_suffix)
    shards = index.shards
    if not store.is_remote:  # there, opening them tells
        missing = [shard for shard in shards if store.kind(shard) is None]
        check_present(shards, missing, store.locate(name))
    return Files(path, store, shards, name, index.weight_map, version, index.metadata)
