"""Which kind of distributed checkpoint a folder is, by the names of its files.

Imports no reader: every folder that is opened goes through here.
"""

from __future__ import annotations

import os
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ...checkpoint import SUFFIX
from ...checkpoint.opening import kind_of
from ...storage import LocalStore, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..foreign import ForeignCheckpoint, OpenOptions

__all__ = ["find_distributed"]

_DCP_TABLES = re.compile(r"(?:__\d+)?\.metadata").fullmatch
_ZERO_PARTITION = re.compile(r"(?:.*_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt").fullmatch
_LATEST: Final = "latest"
_TAG_MAX: Final = 256


def find_distributed(target: Any) -> Callable[[OpenOptions], ForeignCheckpoint] | None:
    """What reads `target` if it is a folder that many processes wrote; None if it is anything else.

    A folder that has safetensors files too is read as those.

    Raises:
        OSError: The folder cannot be read.
    """
    if isinstance(target, Store):
        store: Store = target
    elif (
        isinstance(target, (str, os.PathLike)) and kind_of(path := os.fsdecode(target)) == "folder"
    ):
        store = LocalStore(path)
    else:
        return None
    entries = list(store.list(recursive=False))
    names = [entry.name for entry in entries]
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
    return None


def _tag(store: Store) -> str:
    """The folder that a run of DeepSpeed saved to last, as it notes it."""
    source = store.open(_LATEST, backend="pread")
    return source.read(0, min(source.size, _TAG_MAX)).decode("utf-8", "replace").strip()


def _read_dcp(store: Store, options: OpenOptions) -> ForeignCheckpoint:
    from .assembling import Folder
    from .dcp import read_dcp

    return read_dcp(Folder(store, options), options)


def _read_zero(store: Store, inner: str, options: OpenOptions) -> ForeignCheckpoint:
    from .assembling import Folder
    from .zero import read_zero

    return read_zero(Folder(store, options, inner), options)
