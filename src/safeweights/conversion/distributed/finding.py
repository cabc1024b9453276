"""Which kind of distributed checkpoint a folder is, by the names of its files.

Imports no reader: every folder that is opened goes through here.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from ...checkpoint import SUFFIX
from ...checkpoint.opening import kind_of
from ...storage import LocalStore, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ..foreign import ForeignCheckpoint, OpenOptions

__all__ = ["find_distributed"]

_DCP_TABLES = re.compile(r"(?:__\d+)?\.metadata").fullmatch

FolderReader = "Callable[[OpenOptions], ForeignCheckpoint]"


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
    names = [entry.name for entry in store.list(recursive=False)]
    if any(name.endswith(SUFFIX) for name in names):
        return None
    if _is_dcp(names):
        return lambda options: _read_dcp(store, options)
    return None


def _is_dcp(names: Collection[str]) -> bool:
    return any(_DCP_TABLES(name) for name in names)


def _read_dcp(store: Store, options: OpenOptions) -> ForeignCheckpoint:
    from .assembling import Folder
    from .dcp import read_dcp

    return read_dcp(Folder(store, options), options)
