"""Saving a checkpoint as several files and an index, so that nobody meets half of it.

Rules:
- Shards are called and filled as by `huggingface_hub` and `transformers`, and the index is theirs.
- Everything is written to a hidden folder first: until all of it is there, the checkpoint that may be
  in the folder is untouched.
- Then the old files leave, the index first, and the new ones come, the index last. Whoever looks in
  between finds shards missing, never shards of two checkpoints together. If a rename fails, those
  already done are undone.
- The files of an earlier save of the same name go, also where it had more shards or only one.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ..errors import UnsupportedError, quote
from ..storage import (
    PartialOverwriteError,
    copy_over,
    rename,
    staging_name,
    sync_directory,
    write_file,
)
from . import Checkpoint, Tensor, save
from .shardindex import INDEX_SUFFIX, SUFFIX, index_text, is_safe_shard, shard_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["parse_size", "save_sharded", "split"]

_OLD: Final = ".old"
"""Ends the names of old files while they are set aside."""

_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) *([KMGT]?)(I?)B?").fullmatch
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
    """Names, in order, in groups of at most `limit` bytes; what is larger is a group by itself.

    The groups are those of `huggingface_hub.split_torch_state_dict_into_shards`: a tensor larger than
    `limit` does not end the group that is being filled.
    """
    groups: list[list[str]] = []
    filling: list[str] = []
    room = limit
    for name, tensor in tensors.items():
        if tensor.nbytes > limit:
            groups.append([name])
            continue
        if tensor.nbytes > room:
            groups.append(filling)
            filling, room = [], limit
        filling.append(name)
        room -= tensor.nbytes
    if filling or not groups:
        groups.append(filling)
    return groups


def save_sharded(
    tensors: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
    durable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> list[str]:
    """Write a mapping of tensors into a folder, as one file or as shards and their index.

    Cost: as `safeweights.checkpoint.save`; old and new files take up space until it is done.

    Args:
        tensors: What to write, in this order.
        folder: Created if need be. Other files in it are left alone.
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
    if not stem or stem[0] == "." or {"/", "\\"} & {*stem} or not is_safe_shard(stem + SUFFIX):
        raise UnsupportedError(f"{quote(stem)} cannot begin the name of a file")
    if metadata is None and isinstance(tensors, Checkpoint):
        metadata = tensors.metadata
    found = dict(tensors.items())
    groups = split(found, parse_size(max_shard_size))
    names = [shard_name(stem, number, len(groups)) for number in range(1, len(groups) + 1)]
    shards = dict(zip(names, groups, strict=True))
    folder = os.fsdecode(folder)
    os.makedirs(folder, exist_ok=True)
    staging = os.path.join(folder, staging_name())
    with sync_directory(folder, durable=durable):
        try:
            _stage(staging, shards, found, metadata, durable=durable, progress=progress)
            index = _stage_index(staging, stem, shards, found, durable=durable)
            leaving, coming = _moves(staging, folder, stem, [*shards, *index])
            renamed = _exchange(leaving + coming)
        except BaseException as error:
            _discard(staging, folder, error)
            raise
        if not renamed:
            _overwrite(leaving, coming, durable=durable)
        shutil.rmtree(staging, ignore_errors=True)
    return names


def _stage(
    staging: str,
    shards: Mapping[str, list[str]],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None,
    *,
    durable: bool,
    progress: Callable[[int], object] | None,
) -> None:
    os.mkdir(staging)
    done = 0
    for shard, names in shards.items():
        path = os.path.join(staging, shard)
        report = None if progress is None else _shifted(progress, done)
        part = {name: tensors[name] for name in names}
        save(part, path, metadata, durable=durable, progress=report)
        done += os.path.getsize(path)


def _shifted(progress: Callable[[int], object], done: int) -> Callable[[int], object]:
    return lambda written: progress(done + written)


def _stage_index(
    staging: str,
    stem: str,
    shards: Mapping[str, list[str]],
    tensors: Mapping[str, Tensor],
    *,
    durable: bool,
) -> list[str]:
    """Write the index, if there is more than one shard: its name."""
    if len(shards) == 1:
        return []
    name = f"{stem}{INDEX_SUFFIX}"
    weight_map = {tensor: shard for shard, names in shards.items() for tensor in names}
    text = index_text(weight_map, sum(tensor.nbytes for tensor in tensors.values()))
    write_file(os.path.join(staging, name), [text.encode()], durable=durable)
    return [name]


def _moves(
    staging: str, folder: str, stem: str, new: list[str]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(from, to) of the old files that leave, the index first, and of those that come, it last."""
    pattern = re.compile(rf"{re.escape(stem)}(-[0-9]{{5,}}-of-[0-9]{{5,}})?{re.escape(SUFFIX)}")
    index = f"{stem}{INDEX_SUFFIX}"
    present = sorted(os.listdir(folder))
    old = [name for name in present if name == index]
    old += [name for name in present if pattern.fullmatch(name)]
    leaving = [(os.path.join(folder, name), os.path.join(staging, name + _OLD)) for name in old]
    return leaving, [(os.path.join(staging, name), os.path.join(folder, name)) for name in new]


def _exchange(moves: list[tuple[str, str]]) -> bool:
    """Make all the moves, or none: False where the filesystem cannot rename."""
    begun: list[tuple[str, str]] = []
    try:
        for source, target in moves:
            begun.append((source, target))  # before: an interrupt may come when it is done already
            if not rename(source, target):
                begun.pop()
                break
        else:
            return True
    except BaseException:
        _undo(begun)
        raise
    _undo(begun)
    return False


def _undo(begun: list[tuple[str, str]]) -> None:
    for source, target in reversed(begun):
        with suppress(FileNotFoundError):  # the last one may not have been made
            os.replace(target, source)


def _discard(staging: str, folder: str, error: BaseException) -> None:
    """Remove what was staged; not where old files are there that could not be brought back."""
    try:
        kept = any(name.endswith(_OLD) for name in os.listdir(staging))
    except OSError:  # it was not even made
        return
    if not kept:
        shutil.rmtree(staging, ignore_errors=True)
    elif isinstance(error, OSError):
        raise PartialOverwriteError(folder, staging, error) from error


def _overwrite(
    leaving: list[tuple[str, str]], coming: list[tuple[str, str]], *, durable: bool
) -> None:
    """The same by copying. The staged files are all there is until it has succeeded."""
    for source, _ in leaving:
        os.unlink(source)
    for source, target in coming:
        copy_over(source, target, durable=durable)
