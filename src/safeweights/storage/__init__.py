"""The operating system: where bytes come from (`source`) and go to (`sink`).

Nothing here knows of tensors, headers or frameworks.
"""

from __future__ import annotations

from .sink import Buffer, PartialOverwriteError, write_file, write_stream
from .source import (
    ENGINES,
    BytesSource,
    DescriptorSource,
    FileObjectSource,
    Source,
    TruncatedError,
    open_source,
)

__all__ = [
    "ENGINES",
    "Buffer",
    "BytesSource",
    "DescriptorSource",
    "FileObjectSource",
    "PartialOverwriteError",
    "Source",
    "TruncatedError",
    "open_source",
    "write_file",
    "write_stream",
]
