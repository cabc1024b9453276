"""Safetensors files that have a part of each tensor, as torch's HuggingFaceStorageWriter leaves them.

With ``save_distributed`` and without consolidation, rank n writes ``shard-0000n-model-0000k-of-0000m``.
The metadata of each file say where its tensors begin in the whole ones. Nothing says how large those are,
nor how many ranks there were: a tensor is as large as its last part ends. Gaps are found; a missing last
part is not, which is said among what is not a tensor.

Source of the layout: torch/distributed/checkpoint/{hf_storage,_hf_utils}.py of torch 2.7 to 2.13.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from ...checkpoint import SafetensorsFile
from ...derived.boxes import Box
from ...derived.pieces import Piece, as_strided
from ...errors import FormatError, quote
from .assembling import Assembly, Folder
from .dcp import saved_offsets

if TYPE_CHECKING:
    from ...derived.layout import Strided
    from ..foreign import ForeignCheckpoint, OpenOptions

__all__ = ["read_shards"]

_NUMBER = re.compile(r"shard-(\d+)-").match


def read_shards(folder: Folder, names: list[str], options: OpenOptions) -> ForeignCheckpoint:
    """The checkpoint whose parts are the files called `names`.

    Raises:
        FormatError: A file does not say where its tensors belong; parts overlap, or leave a gap.
        OSError: One cannot be opened or read.
    """
    found = Assembly(folder.name, options)
    pieces: dict[str, list[Piece]] = {}
    types: dict[str, str] = {}
    for name in names:
        file = SafetensorsFile(folder.open(name))
        offsets = saved_offsets(file)
        for tensor_name, tensor in file.tensors().items():
            array = as_strided(tensor)
            place = offsets.get(tensor_name, (0,) * len(array.shape))
            if types.setdefault(tensor_name, array.dtype) != array.dtype or len(place) != len(
                array.shape
            ):
                raise FormatError(
                    f"tensor {quote(tensor_name)} has another type here than in another file, or an offset "
                    "that does not fit its shape",
                    rule="dcp-sharding", path=file.name, tensor=tensor_name,
                )  # fmt: skip
            piece = Piece(
                Box(place, array.shape), partial(_given, array), f"what {quote(name)} has"
            )
            pieces.setdefault(tensor_name, []).append(piece)
    numbers = sorted({int(match[1]) for name in names if (match := _NUMBER(name))})
    missing = sorted(set(range(1, numbers[-1])) - set(numbers))
    for tensor_name, parts in pieces.items():
        ends = [piece.box.ends for piece in parts]
        shape = tuple(max(axis) for axis in zip(*ends, strict=True))
        try:
            found.add(tensor_name, types[tensor_name], shape, parts)
        except FormatError as error:
            if error.rule == "pieces-gap" and missing:
                error.message += f"; there is no file of shard {', '.join(map(str, missing[:10]))}"
                error.rule = "missing-shard"
            raise
    found.add_other(
        "shards", len(numbers),
        "how many there were is not in the files: a missing last one would not be noticed",
    )  # fmt: skip
    return found.checkpoint("torch-hf-shards", folder.sources.values())


def _given(array: Strided) -> Strided:
    return array
