"""The block tree of a file on disk, in a sidecar file beside it."""

from __future__ import annotations

import os
from typing import Final

from ...storage import is_url
from ...storage.places import continued
from ..files import read_document
from .blocktree import DIGEST, BlockTree

__all__ = ["SIDECAR", "read_sidecar"]

_HEAD: Final = 64
_SMALLEST_BLOCK: Final = 1 << 12


def read_sidecar(path: str, root: bytes, size: int) -> BlockTree | None:
    """The block tree beside the file at `path`, which must have the given `root`.

    Args:
        path: The file the tree belongs to.
        root: From a signed statement or a warrant.
        size: Of that file; no more of the sidecar is read than such a file's tree can have.

    Returns:
        None where there is no sidecar: the file can still be verified whole.

    Raises:
        VerificationError: ``stale-sidecar``.
        DocumentError: It is not a sidecar.
    """
    sidecar = continued(path, SIDECAR)
    limit = _HEAD + 2 * DIGEST * (size // _SMALLEST_BLOCK + 1)
    try:
        data = read_document(sidecar, limit=limit, elsewhere=True)
    except FileNotFoundError:
        if not is_url(sidecar) and os.path.lexists(sidecar):  # a link to nothing
            raise
        return None
    return BlockTree.decode(data, root, path=sidecar)


SIDECAR: Final = ".swtree"
