"""Files of other formats as a checkpoint: one, or the shards of a folder or an index.

Imported only where there are some.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from .. import checkpoint
from ..checkpoint import SUFFIX, Checkpoint
from ..convert.folders import check_index, find_checkpoints, read_weight_map
from ..convert.formats import open as open_converted
from ..convert.grading import Grade
from ..convert.scanning import scan
from ..errors import FormatError, quote
from ..storage import open_source

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..checkpoint import Tensor
    from ..convert import ForeignCheckpoint
    from ..storage import Source

__all__ = ["Foreign", "open_folder", "open_foreign", "open_index"]

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
    return Foreign(source.name, [(source, open_converted(source, format=format_name))])


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
    sources = [open_source(os.path.join(folder, file), engine="pread") for file in names]
    return Foreign(name, ((source, open_converted(source)) for source in sources))
