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
from ..checkpoint.shardindex import (
    check_complete,
    check_twin,
    disagreements,
    find_shards,
    read_index,
)
from ..errors import FormatError, quote
from ..storage import Source, Verifier, open_source
from .foreign import OpenOptions
from .formats import read
from .grading import Grade
from .scanning import scan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..checkpoint import Tensor
    from .foreign import ForeignCheckpoint

__all__ = [
    "Foreign",
    "find_checkpoints",
    "open_folder",
    "open_foreign",
    "open_index",
    "output_name",
]

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
        FormatError: There is none, there are several indexes, or shards are missing.
    """
    names = os.listdir(folder)
    index, files = find_shards(names, folder, _SUFFIXES)
    if index is not None:
        shards = read_index(os.path.join(folder, index), suffix="", verify=verify).shards
        check_twin(index, shards, names, folder)
        return shards, index
    found = [name for name in files if not _NOT_WEIGHTS.fullmatch(name)]
    if not found:
        raise FormatError(
            f"the folder holds no checkpoint to convert: no file that ends in {', '.join(_SUFFIXES)}, "
            "and no index of such files", rule="folder", path=folder,
        )  # fmt: skip
    check_complete(found, folder)
    return found, None


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

    def names(self) -> list[set[str]]:
        """The tensors of each file."""
        return [set(part) for part in self._parts]


def _calls(source: Source, part: ForeignCheckpoint) -> Iterable[str]:
    # Scanning reads more than opening did; formats without code are not worth it.
    if part.format not in _PICKLES and not part.calls:
        return []
    found = scan(source).findings
    return (each.target for each in found if each.grade > Grade.DATA)


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
    index = read_index(path, suffix="")
    shards = index.shards
    if all(shard.endswith(SUFFIX) for shard in shards):
        return checkpoint.open(path, backend="pread")
    found = _open_files(name or path, os.path.dirname(path), shards)
    tensors = dict(zip(shards, found.names(), strict=True))
    for error in disagreements(index.weight_map, tensors, path):
        raise error
    return found


def _open_files(name: str, folder: str, names: Iterable[str]) -> Foreign:
    sources = [open_source(os.path.join(folder, file), backend="pread") for file in names]
    return Foreign(name, ((source, read(source, OpenOptions())) for source in sources))
