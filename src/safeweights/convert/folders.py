"""Folders of sharded checkpoints, as Hugging Face lays them out.

``pytorch_model-00001-of-00002.bin`` and their ``pytorch_model.bin.index.json`` become
``model-00001-of-00002.safetensors`` and ``model.safetensors.index.json``; everything else in the
folder is left alone. The index and the shards must agree on every tensor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from safeweights.convert.source import read_bytes
from safeweights.errors import FormatError, quote
from safeweights.storage import Verify, open_source
from safeweights.strictjson import JSONError, Reader

__all__ = ["INDEX_SUFFIX", "check_index", "find_checkpoints", "output_name", "read_weight_map"]

INDEX_SUFFIX: Final = ".index.json"
_INDEX_MAX: Final = 1 << 28
_SUFFIXES: Final = (
    ".bin", ".pt", ".pth", ".ckpt", ".npz", ".npy", ".pdparams", ".msgpack", ".h5", ".keras",
)  # fmt: skip
_NOT_WEIGHTS: Final = re.compile(
    r"(training_args|optimizer|scheduler|rng_state.*|scaler|random_states.*)\.(bin|pt|pth)"
)


def output_name(name: str) -> str:
    """What the converted twin of a file called `name` is called.

    >>> output_name("pytorch_model-00001-of-00002.bin"), output_name("vae.ckpt")
    ('model-00001-of-00002.safetensors', 'vae.safetensors')
    """
    stem = os.path.splitext(name)[0]
    return re.sub(r"^pytorch_model(?=-\d|$)", "model", stem) + ".safetensors"


def find_checkpoints(folder: str, verify: Verify | None = None) -> tuple[list[str], str | None]:
    """The names of the checkpoints in `folder`, and of the index that lists them, if any.

    Without an index, every file with the suffix of a checkpoint counts, but for what training
    frameworks keep beside the weights (optimizer states, arguments).

    Raises:
        FormatError: There is none, or there are several indexes.
    """
    names = sorted(os.listdir(folder))
    indexes = [name for name in names if name.endswith(tuple(s + INDEX_SUFFIX for s in _SUFFIXES))]
    if len(indexes) > 1:
        raise FormatError(
            f"the folder has several indexes: {', '.join(map(quote, indexes))}; convert one at a time",
            rule="index",
            path=folder,
        )
    if indexes:
        weight_map = read_weight_map(os.path.join(folder, indexes[0]), verify)
        return sorted(set(weight_map.values())), indexes[0]
    found = [n for n in names if n.endswith(_SUFFIXES) and not _NOT_WEIGHTS.fullmatch(n)]
    if not found:
        raise FormatError(
            f"the folder holds no checkpoint to convert: no file that ends in {', '.join(_SUFFIXES)}, "
            "and no index of such files", rule="folder", path=folder,
        )  # fmt: skip
    return found, None


def read_weight_map(path: str, verify: Verify | None = None) -> dict[str, str]:
    """Tensor -> file, from an index of shards of any suffix.

    Args:
        path: The index.
        verify: See `safeweights.storage.open_source`.

    Raises:
        FormatError: It is not JSON, has no ``weight_map``, or names a file outside its folder.
    """
    source = open_source(path, engine="pread", verify=verify)
    if source.size > _INDEX_MAX:
        raise FormatError(f"an index of {source.size} bytes is too large", rule="index", path=path)
    reader = Reader(read_bytes(source, 0, source.size))
    weight_map: dict[str, str] = {}
    seen: set[str] = set()
    try:
        for key, at in reader.members("an object"):
            if key in seen:
                raise JSONError(f"duplicate key {quote(key)}", at)
            seen.add(key)
            if key == "weight_map":
                weight_map = _members(reader)
            else:
                reader.skip(1)
        reader.end()
    except JSONError as error:
        message = f"invalid index: {error}"
        raise FormatError(message, rule="json", path=path, offset=error.position) from error
    if not weight_map:
        raise FormatError("the index has no `weight_map`", rule="index", path=path)
    return weight_map


def _members(reader: Reader) -> dict[str, str]:
    weight_map: dict[str, str] = {}
    for tensor, at in reader.members("an object as `weight_map`"):
        if tensor in weight_map:
            raise JSONError(f"duplicate key {quote(tensor)} in `weight_map`", at)
        shard = reader.string("a file name")
        plain = shard.isprintable() and shard not in ("", ".", "..")
        if not plain or any(character in shard for character in "/\\:"):
            raise JSONError(f"{quote(shard)} is not the name of a file beside the index", at)
        weight_map[tensor] = shard
    return weight_map


def check_index(weight_map: Mapping[str, str], shards: Mapping[str, set[str]], path: str) -> None:
    """Refuse an index that disagrees with its shards.

    Args:
        weight_map: Tensor -> shard.
        shards: Shard -> the names of the tensors it holds.
        path: The index, for messages.

    Raises:
        FormatError: Naming the first tensor on which they disagree.
    """
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard]:
            raise FormatError(
                f"the index places tensor {quote(tensor)} in {quote(shard)}, which does not have it",
                rule="index",
                path=path,
                tensor=tensor,
            )
    for shard, names in shards.items():
        for tensor in names:
            if weight_map.get(tensor) != shard:
                raise FormatError(
                    f"{quote(shard)} has tensor {quote(tensor)}, which the index does not place there",
                    rule="index",
                    path=path,
                    tensor=tensor,
                )
