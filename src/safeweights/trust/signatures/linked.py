"""Which symbolic links of a model's folder may stand for a file.

None, by default: a link can lead anywhere. The exception is the layout of the Hugging Face Hub's
cache, where every file of a snapshot is a link into the ``blobs`` folder of the same repository:

    models--org--name/blobs/<sha256>
    models--org--name/snapshots/<commit>/model.safetensors -> ../../blobs/<sha256>
"""

from __future__ import annotations

import os
import re

__all__ = ["is_blob_link"]

_REPOSITORY = re.compile(r"(?:models|datasets|spaces)--.+")


def is_blob_link(path: str) -> bool:
    """Whether the link at `path`, in a snapshot of the Hub's cache, leads to a blob beside it."""
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    folder, repository = os.path.split(os.path.dirname(os.path.dirname(target)))
    blobs = os.path.dirname(target)
    if os.path.basename(blobs) != "blobs" or not _REPOSITORY.fullmatch(repository):
        return False
    snapshots = os.path.join(folder, repository, "snapshots", "")
    inside = os.path.realpath(os.path.dirname(path))
    return inside.startswith(snapshots) and os.path.isfile(target)
