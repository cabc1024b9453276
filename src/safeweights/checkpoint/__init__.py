"""The mapping from a name to a tensor that has not been read yet: opened, and saved.

A file, a folder of shards and an index all become one `Checkpoint`. Nothing here knows of frameworks,
other formats or trust: verification is handed in, as a function from a source to the source to read
instead.

>>> import safeweights.numpy, numpy
>>> open(safeweights.numpy.save({"a": numpy.zeros(3, "f4")}))["a"]
<FileTensor `a` F32 [3]>
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from .file import SafetensorsFile, not_found
from .mapping import Checkpoint
from .opening import open
from .shardindex import INDEX_SUFFIX, SUFFIX, read_index
from .tensor import FileTensor, MemoryTensor, Tensor, UnreadableTensor

if TYPE_CHECKING:
    from .saving import save, to_bytes
    from .writer import Writer

__all__ = [
    "INDEX_SUFFIX", "SUFFIX", "Checkpoint", "FileTensor", "MemoryTensor", "SafetensorsFile", "Tensor",
    "UnreadableTensor", "Writer", "not_found", "open", "read_index", "save", "to_bytes",
]  # fmt: skip

# What only opens files, as most commands do, does not import what saves them.
__getattr__, __dir__ = lazy_names(
    __name__, {"save": "saving", "to_bytes": "saving", "Writer": "writer"}
)
