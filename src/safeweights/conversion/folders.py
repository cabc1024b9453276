"""Folders and files that are converted: which of them are sources, and what their outputs are called.

``pytorch_model-00001-of-00002.bin`` and their ``pytorch_model.bin.index.json`` become
``model-00001-of-00002.safetensors`` and ``model.safetensors.index.json``; everything else in the
folder is left alone.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from ..checkpoint import SUFFIX
from ..checkpoint.opening import find_files
from .opening import WEIGHT_SUFFIXES

if TYPE_CHECKING:
    from ..checkpoint.opening import Files
    from ..storage import Verifier

__all__ = ["find_checkpoints", "left_out", "output_name"]


def output_name(name: str) -> str:
    """The name of the safetensors file that a file called `name` is converted to.

    >>> output_name("pytorch_model-00001-of-00002.bin"), output_name("vae.ckpt")
    ('model-00001-of-00002.safetensors', 'vae.safetensors')
    """
    stem = os.path.splitext(name)[0]
    return re.sub(r"^pytorch_model(?=-\d|$)", "model", stem) + ".safetensors"


def find_checkpoints(target: Any, verify: Verifier | None = None) -> Files:
    """The files to convert in a folder, or those that an index lists.

    Safetensors files count if there are no checkpoints of other formats.

    Without an index, every file with the suffix of a checkpoint counts, but for what training
    frameworks keep beside the weights (optimizer states, arguments).

    Args:
        target: A path, a place, or a store.
        verify: See `safeweights.checkpoint.open`; for the index.

    Raises:
        FormatError: There is none, there are several indexes, or shards are missing.
    """
    missing = (
        "the folder holds no checkpoint to convert: no file that ends in "
        f"{', '.join((*WEIGHT_SUFFIXES, SUFFIX))}, and no index of such files"
    )
    suffixes = (WEIGHT_SUFFIXES, (SUFFIX,))
    files = find_files(target, suffixes=suffixes, shard_suffix="", verify=verify, missing=missing)
    assert files is not None
    return files


def left_out(found: Files) -> list[str]:
    """The paths of the files beside those of a checkpoint that have the suffix of one but are not of it.

    Examples are the state of an optimizer, and a copy of the model in another format.
    """
    return [
        found.store.locate(entry.name)
        for entry in found.store.list(recursive=False)
        if entry.kind in {"file", "link"}
        and entry.name.endswith((SUFFIX, *WEIGHT_SUFFIXES))
        and not entry.name.startswith(".")
        and entry.name not in found.names
    ]
