"""The operating system: where bytes come from (`source`) and go to (`sink`).

Scattered ones are brought together by `gathering`. Nothing here knows of tensors, headers or frameworks.
"""

from __future__ import annotations

from .buffer_pool import release_idle
from .file_objects import FileObjectSource
from .files import DescriptorSource
from .gathering import gather, gather_mapped
from .local_store import LocalStore
from .memory import allocate, joined
from .opening import BACKENDS, open_source
from .readahead import read_ahead
from .sink import (
    PartialOverwriteError,
    copy_over,
    rename,
    staging_name,
    sync_directory,
    write_file,
    write_stream,
)
from .source import Buffer, BytesSource, Reading, Source, TruncatedError, Verifier, flat
from .store import ChangedError, Commit, Entry, MemoryStore, Store, check_name

__all__ = [
    "BACKENDS",
    "Buffer",
    "BytesSource",
    "ChangedError",
    "Commit",
    "DescriptorSource",
    "Entry",
    "FileObjectSource",
    "LocalStore",
    "MemoryStore",
    "PartialOverwriteError",
    "Reading",
    "Source",
    "Store",
    "TruncatedError",
    "Verifier",
    "allocate",
    "check_name",
    "copy_over",
    "flat",
    "gather",
    "gather_mapped",
    "joined",
    "open_source",
    "read_ahead",
    "release_idle",
    "rename",
    "staging_name",
    "sync_directory",
    "write_file",
    "write_stream",
]
