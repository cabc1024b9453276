"""Opening safetensors files, indexes and folders as one mapping."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import FormatError
from .file import SafetensorsFile
from .mapping import Checkpoint
from .shardindex import (
    SUFFIX,
    ShardIndex,
    check_complete,
    check_present,
    check_twin,
    disagreements,
    find_shards,
    read_index,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..storage import Verifier

__all__ = ["open"]


def open(target: Any, *, backend: str = "mmap", verify: Verifier | None = None) -> Checkpoint:
    """Open a checkpoint: a file, an ``index.json``, a folder, a file object, or bytes.

    Reads and checks headers only. A folder is read through its index where it has one; without one
    all its ``.safetensors`` files are taken together.

    Args:
        target: Path, readable file object, or bytes-like object that holds a file.
        backend: ``"mmap"`` maps the file, ``"pread"`` reads what is asked for. A mapping is fastest,
            but if another process truncates the file, touching it kills the process. ``"direct"``,
            ``"auto"``: see `safeweights.storage.open_source`.
        verify: Called with every source that is opened, the index's too, and its path; what it
            returns is read instead. `safeweights.open` makes one of a policy or a key.

    Raises:
        FormatError: A file breaks the format; an index disagrees with its shards; shards are missing.
        UnsupportedError: `target` is none of these, or there is no such backend.
        OSError: Something cannot be opened or read.

    >>> import safeweights.numpy, numpy
    >>> data = safeweights.numpy.save({"a": numpy.zeros(3, "f4")})
    >>> open(data)["a"]
    <FileTensor `a` F32 [3]>
    """
    if not isinstance(target, str | os.PathLike):
        file = SafetensorsFile.open(target, backend=backend, verify=verify)
        return Checkpoint.from_files([file], file.name)
    path = os.fsdecode(target)
    read = partial(SafetensorsFile.open, backend=backend, verify=verify)
    if os.path.isdir(path):
        return _open_folder(path, read, verify)
    if path.endswith(".json"):
        return _open_shards(path, read_index(path, verify=verify), read, name=path)
    return Checkpoint.from_files([read(path)], path)


def _open_folder(
    path: str, read: Callable[[str], SafetensorsFile], verify: Verifier | None
) -> Checkpoint:
    names = os.listdir(path)
    index, files = find_shards(names, path)
    if index is not None:
        found = read_index(os.path.join(path, index), verify=verify)
        check_twin(index, found.shards, names, path)
        return _open_shards(os.path.join(path, index), found, read, name=path)
    if not files:
        raise FormatError(f"the folder has no {SUFFIX} file and no index", rule="folder", path=path)
    check_complete(files, path)
    return Checkpoint.from_files([read(os.path.join(path, file)) for file in files], path)


def _open_shards(
    path: str, index: ShardIndex, read: Callable[[str], SafetensorsFile], *, name: str
) -> Checkpoint:
    """The shards of the index at `path`."""
    folder, shards = os.path.dirname(path), index.shards
    missing = [shard for shard in shards if not os.path.lexists(os.path.join(folder, shard))]
    check_present(shards, missing, path)
    files = {shard: read(os.path.join(folder, shard)) for shard in shards}
    tensors = {shard: file.header.tensors for shard, file in files.items()}
    for error in disagreements(index.weight_map, tensors, path):
        raise error
    return Checkpoint.from_files(files.values(), name)
