"""Checkpoints that many ranks save and load together: for ``torch.distributed.checkpoint``.

    import torch.distributed.checkpoint as dcp
    from safeweights.distributed import StorageReader, StorageWriter

    dcp.save(state, storage_writer=StorageWriter("step-100"))
    dcp.load(state, storage_reader=StorageReader("step-100"))

The files are ordinary safetensors, in the layout of Hugging Face; each rank writes and reads its own bytes.
"""

from __future__ import annotations

from .frameworks.torch.distributed.reading import StorageReader
from .frameworks.torch.distributed.writing import StorageWriter

__all__ = ["StorageReader", "StorageWriter"]
