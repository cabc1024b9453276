"""The operating system: where bytes come from (`source`) and go to (`sink`).

Scattered ones are brought together by `gathering`. Nothing here knows of tensors, headers or frameworks.
"""

from __future__ import annotations

from .ahead import made_ahead
from .arenas import release_idle
from .gathering import gather, gather_mapped
from .memory import allocate, joined
from .sink import (
    Buffer,
    PartialOverwriteError,
    copy_over,
    rename,
    staging_name,
    sync_directory,
    write_file,
    write_stream,
)
from .source import (
    ENGINES,
    BytesSource,
    DescriptorSource,
    FileObjectSource,
    Reading,
    Source,
    TruncatedError,
    Verify,
    flat,
    open_source,
)

__all__ = [
    "ENGINES",
    "Buffer",
    "BytesSource",
    "DescriptorSource",
    "FileObjectSource",
    "PartialOverwriteError",
    "Reading",
    "Source",
    "TruncatedError",
    "Verify",
    "allocate",
    "copy_over",
    "flat",
    "gather",
    "gather_mapped",
    "joined",
    "made_ahead",
    "open_source",
    "release_idle",
    "rename",
    "staging_name",
    "sync_directory",
    "write_file",
    "write_stream",
]
