"""Which kind of distributed checkpoint a folder is, by the names of its files.

Imports no reader: every folder that is opened goes through here.
"""

from __future__ import annotations

import os
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ...checkpoint import SUFFIX
from ...errors import FormatError
from ...storage import Store
from ...storage.places import Place, place_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..foreign import ForeignCheckpoint, OpenOptions

__all__ = ["ITEM_SUFFIX", "find_distributed", "part_of", "rank_note"]

_DCP_TABLES = re.compile(r"(?:__\d+)?\.metadata").fullmatch
_ZERO_PARTITION = re.compile(r"(?:.*_)?zero_pp_rank_(\d+)_mp_rank_\d+_optim_states\.pt").fullmatch
_ZERO_MODEL = re.compile(r"zero_pp_rank_(\d+)_mp_rank_\d+_model_states\.pt").fullmatch
_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors").fullmatch
_MEGATRON: Final = ("model_optim_rng.pt", "model_rng.pt", "model_weights.ckpt")
_ORBAX: Final = frozenset({"manifest.ocdbt", "_CHECKPOINT_METADATA", "ocdbt.process_0"})
ITEM_SUFFIX: Final = ".distcp"
_LATEST: Final = "latest"
_TAG_MAX: Final = 256


def find_distributed(target: Any) -> Callable[[OpenOptions], ForeignCheckpoint] | None:
    """What reads `target` if it is a folder that many processes wrote; None if it is anything else.

    A folder that has safetensors files too is read as those.

    Raises:
        FormatError: It is one that cannot be read; the message says what to do.
        OSError: The folder cannot be read.
    """
    if isinstance(target, Store):
        store: Store = target
    elif isinstance(target, str | os.PathLike | Place):
        place = target if isinstance(target, Place) else place_of(target)
        if place.kind() != "folder":
            return None
        store = place.folder()
    else:
        return None
    entries = list(store.list(recursive=False))
    names = [entry.name for entry in entries]
    if parts := [name for name in names if _SHARD(name)]:
        whole = [name for name in names if name.endswith(SUFFIX) and not _SHARD(name)]
        return None if whole else partial(_read_shards, store, parts)
    if any(name.endswith(SUFFIX) for name in names):
        return None
    if any(map(_DCP_TABLES, names)):
        return partial(_read_dcp, store)
    if any(map(_ZERO_PARTITION, names)):
        return partial(_read_zero, store, "")
    if _LATEST in names and (tag := _tag(store)) in {e.name for e in entries if e.kind == "folder"}:
        inner = [entry.name.rpartition("/")[2] for entry in store.list(tag, recursive=False)]
        if any(map(_ZERO_PARTITION, inner)):
            return partial(_read_zero, store, tag)
    _refuse_others(names, store.location)
    return None


def _refuse_others(names: list[str], path: str) -> None:
    """Raise an error for a folder of which it is known what it is, and that it cannot be read.

    Raises:
        FormatError: It is one.
    """
    if any(name.endswith(ITEM_SUFFIX) for name in names):
        raise FormatError(
            "the folder has parts of a distributed checkpoint, but no `.metadata`, which has their tables",
            rule="missing-shard", path=path,
        )  # fmt: skip
    if not _ORBAX.isdisjoint(names):
        raise FormatError(
            "this is a checkpoint of Orbax (TensorStore), which is not read here: restore it with Orbax, "
            "and save it with safeweights.flax.save_file",
            rule="orbax", path=path,
        )  # fmt: skip


def part_of(path: str) -> str | None:
    """What a file is a part of, and what to give instead, by its name; None if it is no part.

    >>> part_of("ckpt/__3_0.distcp")
    'this is what rank 3 wrote of a distributed checkpoint; give the folder that it is in'
    """
    name = re.split(r"[/\\]", path)[-1]
    if name.endswith(ITEM_SUFFIX):
        match = re.match(r"__(\d+)_", name)
        who = f"rank {match[1]}" if match else "one rank"
        return (
            f"this is what {who} wrote of a distributed checkpoint; give the folder that it is in"
        )
    if _DCP_TABLES(name):
        return "these are the tables of a distributed checkpoint; give the folder that they are in"
    match = _ZERO_PARTITION(name) or _ZERO_MODEL(name)
    if match is not None:
        return (
            f"this is what rank {match[1]} wrote of a DeepSpeed ZeRO checkpoint; give the folder that it "
            "is in, with the files of all ranks"
        )
    return None


def rank_note(path: str) -> str:
    """What has to be said of a file that is read as it is, and is one rank's part; else empty."""
    parts = re.split(r"[/\\]", path)
    match = re.fullmatch(r"mp_rank_(\d+)(?:_\d+)*", parts[-2]) if len(parts) > 1 else None
    if match is None or parts[-1] not in _MEGATRON:
        return ""
    return (
        f"the weights that Megatron gave to rank {int(match[1])}, as they are; only Megatron's own code "
        "knows how the ranks of a model are merged"
    )


def _tag(store: Store) -> str:
    """The folder that a run of DeepSpeed saved to last, as it notes it."""
    source = store.open(_LATEST, backend="pread")
    return source.read(0, min(source.size, _TAG_MAX)).decode("utf-8", "replace").strip()


def _read_dcp(store: Store, options: OpenOptions) -> ForeignCheckpoint:
    from .assembling import Folder
    from .dcp import read_dcp

    return read_dcp(Folder(store, options), options)


def _read_shards(store: Store, names: list[str], options: OpenOptions) -> ForeignCheckpoint:
    from .assembling import Folder
    from .shards import read_shards

    return read_shards(Folder(store, options), names, options)


def _read_zero(store: Store, inner: str, options: OpenOptions) -> ForeignCheckpoint:
    from .assembling import Folder
    from .zero import read_zero

    return read_zero(Folder(store, options, inner), options)
