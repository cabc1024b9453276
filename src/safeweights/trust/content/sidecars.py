"""Finding the block tree of a file on disk."""

from __future__ import annotations

import os
from typing import Final

from ..files import read_document
from .blocktree import BlockTree

__all__ = ["SIDECAR", "read_sidecar"]

_MAX: Final = 1 << 34


def read_sidecar(path: str, root: bytes) -> BlockTree | None:
    """The block tree beside the file at `path`, which must have the given `root`.

    Args:
        path: The file the tree belongs to.
        root: From a signed statement or a warrant.

    Returns:
        None where there is no sidecar: the file can still be verified whole.

    Raises:
        VerificationError: ``stale-sidecar``.
        DocumentError: It is not a sidecar.
    """
    sidecar = f"{path}{SIDECAR}"
    if not os.path.lexists(sidecar):
        return None
    return BlockTree.decode(read_document(sidecar, limit=_MAX), root, path=sidecar)


SIDECAR: Final = ".swtree"
