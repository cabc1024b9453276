"""Opening safetensors files, indexes and folders as one mapping."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import FormatError, quote
from .file import SafetensorsFile
from .mapping import Checkpoint
from .shardindex import INDEX_SUFFIX, SUFFIX, check_complete, read_index

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
        return _open_index(path, read, verify)
    return Checkpoint.from_files([read(path)], path)


def _open_folder(
    path: str, read: Callable[[str], SafetensorsFile], verify: Verifier | None
) -> Checkpoint:
    # Hidden ones are an editor's, a file manager's ("._model.safetensors") or a save's under way.
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if len(indexes) == 1:
        return _open_index(os.path.join(path, indexes[0]), read, verify, name=path)
    if indexes:
        listed = ", ".join(map(quote, indexes))
        raise FormatError(f"the folder has several indexes, name one of them: {listed}", path=path)
    shards = [name for name in names if name.endswith(SUFFIX)]
    if not shards:
        raise FormatError(f"the folder has no {SUFFIX} file and no index", path=path)
    check_complete(shards, path)
    files = [read(os.path.join(path, name)) for name in shards]
    return Checkpoint.from_files(files, path)


def _open_index(
    path: str,
    read: Callable[[str], SafetensorsFile],
    verify: Verifier | None,
    *,
    name: str | None = None,
) -> Checkpoint:
    weight_map = read_index(path, verify=verify)
    folder = os.path.dirname(path)
    shards = sorted(set(weight_map.values()))
    _check_present(shards, folder, path)
    files = {shard: read(os.path.join(folder, shard)) for shard in shards}
    for tensor, shard in weight_map.items():
        if tensor not in files[shard].header.tensors:
            raise FormatError(
                f"the index places tensor {quote(tensor)} in {quote(shard)}, which does not have it",
                rule="index", path=path, tensor=tensor,
            )  # fmt: skip
    for shard, file in files.items():
        for tensor in file.header.tensors:
            if weight_map.get(tensor) != shard:
                raise FormatError(
                    f"{quote(shard)} has tensor {quote(tensor)}, which the index does not place there",
                    rule="index", path=path, tensor=tensor,
                )  # fmt: skip
    return Checkpoint.from_files(files.values(), name or path)


def _check_present(shards: list[str], folder: str, path: str) -> None:
    missing = [shard for shard in shards if not os.path.lexists(os.path.join(folder, shard))]
    if missing:
        raise FormatError(
            f"{len(missing)} of {len(shards)} shards that the index names are missing, the first is "
            f"{quote(missing[0])}",
            rule="index", path=path,
        )  # fmt: skip
