"""Folders of sharded checkpoints, as Hugging Face lays them out.

``pytorch_model-00001-of-00002.bin`` and their ``pytorch_model.bin.index.json`` become
``model-00001-of-00002.safetensors`` and ``model.safetensors.index.json``; everything else in the
folder is left alone. The index and the shards must agree on every tensor.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from .. import checkpoint
from ..checkpoint import SUFFIX, Checkpoint
from ..errors import FormatError, quote
from ..format.strictjson import JSONError, Reader
from ..storage import Source, Verifier, open_source
from ..storage.windows import read_bytes
from .foreign import OpenOptions
from .formats import read
from .grading import Grade
from .scanning import scan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..checkpoint import Tensor
    from .foreign import ForeignCheckpoint

__all__ = [
    "INDEX_SUFFIX",
    "Foreign",
    "check_index",
    "find_checkpoints",
    "open_folder",
    "open_foreign",
    "open_index",
    "output_name",
    "read_weight_map",
]

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


def find_checkpoints(folder: str, verify: Verifier | None = None) -> tuple[list[str], str | None]:
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


def read_weight_map(path: str, verify: Verifier | None = None) -> dict[str, str]:
    """Tensor -> file, from an index of shards of any suffix.

    Args:
        path: The index.
        verify: See `safeweights.storage.open_source`.

    Raises:
        FormatError: It is not JSON, has no ``weight_map``, or names a file outside its folder.
    """
    source = open_source(path, backend="pread", verify=verify)
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


_PICKLES: Final = frozenset({"torch-zip", "torch-legacy", "torch-tar", "pickle", "paddle"})
"""Formats that are pickles, or hold some."""


_CALLS_MAX: Final = 1000


class Foreign(Checkpoint):
    """Files of other formats, together.

    Attributes:
        format: What they are, e.g. ``"torch-zip"``.
        calls: What loading them with their own library calls, other than to build tensors; the first
            1,000.
    """

    def __init__(self, name: str, parts: Iterable[tuple[Source, ForeignCheckpoint]]) -> None:
        self._parts: list[ForeignCheckpoint] = []
        calls: dict[str, None] = {}
        tensors: dict[str, Tensor] = {}
        for source, part in parts:
            for twice in tensors.keys() & part:
                raise FormatError(
                    f"tensor {quote(twice)} is in two files, one of them {quote(part.name)}; if they "
                    "are two models, open one of them by its name",
                    rule="duplicate-key", path=name, tensor=twice,
                )  # fmt: skip
            self._parts.append(part)
            tensors.update(part)
            calls |= dict.fromkeys(_calls(source, part))
        metadata = self._parts[0].metadata if len(self._parts) == 1 else None
        super().__init__(tensors, metadata, name=name)
        self.calls = list(calls)[:_CALLS_MAX]
        self.format = ", ".join(sorted({part.format for part in self._parts}))

    def __getitem__(self, name: str) -> Tensor:
        for part in self._parts:
            if name in part.refused:
                return part[name]  # raises, and says why
        return super().__getitem__(name)

    def names(self) -> dict[str, set[str]]:
        """File -> its tensors, those that cannot be given too."""
        return {os.path.basename(part.name): {*part, *part.refused} for part in self._parts}


def _calls(source: Source, part: ForeignCheckpoint) -> Iterable[str]:
    # Scanning reads more than opening did; formats without code are not worth it.
    if part.format not in _PICKLES and not part.calls:
        return []
    found = scan(source).findings
    return (each.target for each in found if each.grade > Grade.TENSORS)


def open_foreign(source: Source, format_name: str) -> Foreign:
    """One file.

    Raises:
        FormatError: It breaks a rule of its format.
    """
    return Foreign(source.name, [(source, read(source, OpenOptions(), format_name))])


def open_folder(path: str) -> Checkpoint:
    """The checkpoints in a folder, as `safeweights convert` finds them.

    Raises:
        FormatError: There is none; they break a rule, or disagree with their index.
        OSError: Something cannot be read.
    """
    try:
        names, index = find_checkpoints(path)
    except FormatError as error:
        if error.rule == "folder":
            error.message = (
                f"the folder has no {SUFFIX} file, no index and no file of another format"
            )
        raise
    return open_index(os.path.join(path, index), path) if index else _open_files(path, path, names)


def open_index(path: str, name: str | None = None) -> Checkpoint:
    """The shards that an index names, whatever their format.

    Args:
        path: The index.
        name: What to call the checkpoint; the index, if it is not given.

    Raises:
        FormatError: The index or a shard is damaged, or they disagree.
        OSError: Something cannot be read.
    """
    weight_map = read_weight_map(path)
    shards = sorted(set(weight_map.values()))
    if all(shard.endswith(SUFFIX) for shard in shards):
        return checkpoint.open(path, backend="pread")
    found = _open_files(name or path, os.path.dirname(path), shards)
    check_index(weight_map, found.names(), path)
    return found


def _open_files(name: str, folder: str, names: Iterable[str]) -> Foreign:
    sources = [open_source(os.path.join(folder, file), backend="pread") for file in names]
    return Foreign(name, ((source, read(source, OpenOptions())) for source in sources))
