"""Saving a checkpoint as several files and an index.

Rules:
- Shards are named and filled as by `huggingface_hub` and `transformers`, and the index is theirs.
- All files are one commit of a store (`safeweights.storage.Commit`): a reader finds the old checkpoint,
  the new one, or shards missing, never shards of both. The index leaves first and arrives last.
- An earlier save with the same stem is replaced as a whole: its index, the files that its index names,
  and every file that is named like its shards, whatever their number.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ..errors import FormatError, UnsupportedError, quote
from ..lazy import matcher
from ..storage import LocalStore, Store
from . import Checkpoint
from .saving import serialized
from .shardindex import (
    INDEX_SUFFIX,
    SUFFIX,
    VALUES_SUFFIX,
    index_text,
    is_safe_shard,
    parse_index,
    shard_name,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Mapping

    from ..storage import Commit
    from . import Tensor

__all__ = [
    "EarlierSave", "ShardedCommit", "check_stem", "files_in_index", "parse_size", "save_sharded", "shifted",
    "split", "split_into_shards", "stem_of",
]  # fmt: skip

_SIZE = matcher(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) *([KMGT]?)(I?)B?\Z")
_EXPONENT: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(size: int | str) -> int:
    """A number of bytes, from a number or a text such as ``"5GB"`` (10^9 each) or ``"2GiB"`` (2^30).

    Raises:
        UnsupportedError: It is none of these, or not positive.

    >>> parse_size("5GB"), parse_size("1.5 KiB"), parse_size(100)
    (5000000000, 1536, 100)
    """
    match = _SIZE(str(size).strip().upper())
    number = 0
    if match:
        unit = (1024 if match[3] else 1000) ** _EXPONENT[match[2]]
        number = int(match[1]) * unit if match[1].isdecimal() else int(float(match[1]) * unit)
    if number < 1:
        raise UnsupportedError(f"{quote(str(size))} is no size: give bytes, or a text like `5GB`")
    return number


def split(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    """Group names, in order, so that the tensors of each group have at most `limit` bytes.

    A tensor larger than `limit` is a group by itself. The groups are those of
    `huggingface_hub.split_torch_state_dict_into_shards`: such a tensor does not end the group that is
    being filled.
    """
    groups: list[list[str]] = []
    filling: list[str] = []
    room = limit
    for name, tensor in tensors.items():
        nbytes = tensor.nbytes
        if nbytes > limit:
            groups.append([name])
            continue
        if nbytes > room:
            groups.append(filling)
            filling, room = [], limit
        filling.append(name)
        room -= nbytes
    if filling or not groups:
        groups.append(filling)
    return groups


def split_into_shards(
    tensors: Mapping[str, Tensor], stem: str, max_shard_size: int | str
) -> dict[str, dict[str, Tensor]]:
    """File name -> its tensors: one file ``stem.safetensors``, or numbered shards.

    Raises:
        UnsupportedError: `max_shard_size` is not a size.
    """
    groups = split(tensors, parse_size(max_shard_size))
    return {
        shard_name(stem, number, len(groups)): {name: tensors[name] for name in group}
        for number, group in enumerate(groups, 1)
    }


class EarlierSave:
    """The files of an earlier save that must not stay beside the files of a new one.

    They are the indexes of the stems, the files that these indexes name, the values beside them
    (`VALUES_SUFFIX`), and files named like shards of a stem: other shards than those of a series that the
    new save writes.

    Args:
        store: Where the files are.
        stems: Beginnings of the names, such as ``model``.
        new: The names of the files of the new save.

    Attributes:
        indexes: The names of the indexes, whether they exist or not.
    """

    def __init__(self, store: Store, stems: Iterable[str], new: Iterable[str]) -> None:
        stems = dict.fromkeys(stems)
        self._store = store
        self._new = {*new}
        begin = "|".join(map(re.escape, stems))
        shard = rf"({begin})(?:-[0-9]{{5,}}-of-([0-9]{{5,}}))?{re.escape(SUFFIX)}"
        self._match = re.compile(shard, re.DOTALL).fullmatch
        self._series = {match.groups() for name in self._new if (match := self._match(name))}
        self.indexes = [f"{stem}{INDEX_SUFFIX}" for stem in stems]
        listed = {name for index in self.indexes for name in files_in_index(store, index)}
        values = {f"{stem}{VALUES_SUFFIX}" for stem in stems}
        self._listed = sorted((listed | values) - self._new)

    def _is_other_shard(self, name: str) -> bool:
        match = self._match(name)
        return match is not None and match.groups() not in self._series

    def files(self) -> list[str]:
        """The names of those that exist, without the new save's own names."""
        found = {
            name
            for name, kind in _entries(self._store)
            if kind != "folder" and (self._is_other_shard(name) or name in self.indexes)
        }
        found |= {name for name in self._listed if self._store.kind(name) is not None}
        return sorted(found - self._new)

    def begin(self, commit: Commit, *, force: bool = True) -> None:
        """Before `commit` writes the first file of the new save: delete all but the indexes.

        Args:
            commit: Of the new save. A reader finds an index only beside all the files that it names:
                the old one leaves before them, and the new one arrives after them.
            force: Whether anything may be deleted or replaced.
        """
        if force:
            for name in self._listed:
                commit.delete(name)
            commit.delete_where(self._is_other_shard)

    def finish(self, commit: Commit, index: str | None, text: bytes, *, force: bool = True) -> None:
        """After its last file: delete the indexes, and write the new one.

        Args:
            commit: As for `begin`.
            index: The name of the new index; None if the save has none.
            text: What it contains.
            force: As for `begin`.
        """
        if force:
            for name in self.indexes:
                if name != index:
                    commit.delete(name)
        if index is not None:
            commit.write(index, [text], create_only=not force)


def files_in_index(store: Store, index: str) -> list[str]:
    """The files that an index names; none if it does not exist or cannot be understood."""
    if store.kind(index) not in {"file", "link"}:
        return []
    try:
        source = store.open(index, backend="pread")
        return parse_index(source, source.name).shards
    except (FormatError, OSError):
        return []  # a save that replaces it need not understand it


def stem_of(name: str) -> str:
    """The stem of a file, or of the series of shards that it belongs to.

    >>> stem_of("model-00001-of-00002.safetensors"), stem_of("model.safetensors")
    ('model', 'model')
    """
    return re.sub(r"-[0-9]{5,}-of-[0-9]{5,}\Z", "", name.removesuffix(SUFFIX))


def _entries(store: Store) -> Iterable[tuple[str, str]]:
    try:
        return list(store.list(recursive=False))
    except (FileNotFoundError, NotADirectoryError):
        return ()


class ShardedCommit:
    """The files of one save, as one commit: they take the place of an earlier save with the same stem.

    Args:
        store: Where they go.
        stem: Beginning of the names.
        shards: The names of all safetensors files.
        others: The names of other files that the save writes, such as its values.
        durable: See `safeweights.storage.Store.commit`.

    Attributes:
        commit: Takes the files, shards first; a context manager, which publishes them.
    """

    def __init__(
        self,
        store: Store,
        stem: str,
        shards: Collection[str],
        *,
        others: Iterable[str] = (),
        durable: bool = False,
    ) -> None:
        self.commit = store.commit(durable=durable)
        self._earlier = EarlierSave(store, [stem], [*shards, *others])
        self._earlier.begin(self.commit)
        self._index = f"{stem}{INDEX_SUFFIX}" if len(shards) > 1 else None

    def add_index(self, weight_map: Mapping[str, str], total_size: int) -> None:
        """Write the index, if there are several shards: as the last file.

        Args:
            weight_map: Tensor -> shard.
            total_size: Bytes of all tensors.
        """
        text = "" if self._index is None else index_text(weight_map, total_size)
        self._earlier.finish(self.commit, self._index, text.encode())


def check_stem(stem: str) -> None:
    """Raise an UnsupportedError unless `stem` can begin the name of a file."""
    if not stem or stem[0] == "." or {"/", "\\"} & {*stem} or not is_safe_shard(stem + SUFFIX):
        raise UnsupportedError(f"{quote(stem)} cannot begin the name of a file")


def save_sharded(
    tensors: Mapping[str, Tensor],
    folder: str | os.PathLike[str] | Store,
    *,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
    durable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> list[str]:
    """Write a mapping of tensors into a folder, as one file or as shards and their index.

    Cost: as `safeweights.checkpoint.save`; until it is done, old and new files take up space.

    Args:
        tensors: What to write, in this order.
        folder: Its path, or another store. A missing folder is made. Files that do not belong to an
            earlier save with this `stem` are left alone.
        max_shard_size: Most bytes of tensors in one file, which a single larger tensor exceeds: a
            number, or a text as for `parse_size`.
        metadata: For every file. None takes the metadata of a `Checkpoint`.
        stem: Beginning of the names, ``model-00001-of-00002.safetensors``.
        durable: Return only when all of it would survive a loss of power.
        progress: Called with the number of bytes written so far.

    Returns:
        The names of the safetensors files in `folder`.

    Raises:
        FormatError: What the format cannot hold.
        UnsupportedError: A `max_shard_size` that is no size, or a `stem` that is no file name.
        OSError: Writing failed. The folder has what it had before.
        PartialOverwriteError: The filesystem cannot rename, and copying failed half-way; or what had
            been moved could not be moved back. The files that are not in place are kept in a hidden
            folder, which the error names.
    """
    check_stem(stem)
    if metadata is None and isinstance(tensors, Checkpoint):
        metadata = tensors.metadata
    found = dict(tensors.items())
    shards = split_into_shards(found, stem, max_shard_size)
    store = folder if isinstance(folder, Store) else LocalStore(folder)
    save = ShardedCommit(store, stem, shards, durable=durable)
    done = 0
    with save.commit as commit:
        for shard, part in shards.items():
            size, buffers = serialized(part, metadata)
            report = None if progress is None else shifted(progress, done)
            commit.write(shard, buffers, size=size, progress=report)
            done += size
        weight_map = {tensor: shard for shard, part in shards.items() for tensor in part}
        save.add_index(weight_map, sum(tensor.nbytes for tensor in found.values()))
    return list(shards)


def shifted(progress: Callable[[int], object], done: int) -> Callable[[int], object]:
    """What counts on after `done` bytes: the progress of one file among others."""
    return lambda written: progress(done + written)
