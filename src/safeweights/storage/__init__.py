"""Bytes in places: sources to read from, sinks to write to, stores of named files.

    source  opening                    what a `Source` is; a path, URL, file object or memory as one
    files  file_objects                regular files: mapped, read, read past the page cache; file objects
    windows  blocks  inflating         parts of a source; bytes in blocks; compressed bytes
    encrypted                          blocks that are decrypted as they are read; encrypting writes
    pipes  limits                      standard input that cannot seek; what a foreign file may cost
    sink  appending  runs              files replaced as a whole, durably; bytes the system moves itself
    store  local_store  remote/        named files: list, open, write, commit several at once
    urls  places                       a path or a URL -> a store and a name in it
    handles  leases                    more files than a process may have open; files that stay as they are
    gathering  hashing                 scattered bytes into one buffer; SHA-256 beside other work
    memory  buffer_pool                memory to read into, used again
    parallel  readahead  computing     the one place that starts threads; bytes computed while written
    syscalls                           system calls that Python lacks

Nothing here knows of tensors, headers or frameworks (but for `pipes`, which reads in a header how long a
file is).
"""

from __future__ import annotations

from .buffer_pool import release_idle
from .computing import Computed
from .file_objects import FileObjectSource
from .files import BACKENDS, DescriptorSource
from .gathering import gather, gather_mapped
from .handles import Handles, too_many
from .local_store import LocalStore
from .memory import allocate, joined
from .opening import open_source
from .places import Place, is_url, place_of
from .readahead import InMemory, read_ahead
from .runs import Run, is_copyable
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
from .store import Commit, Entry, MemoryStore, Store, check_name

__all__ = [
    "BACKENDS",
    "Buffer",
    "BytesSource",
    "Commit",
    "Computed",
    "DescriptorSource",
    "Entry",
    "FileObjectSource",
    "Handles",
    "InMemory",
    "LocalStore",
    "MemoryStore",
    "PartialOverwriteError",
    "Place",
    "Reading",
    "Run",
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
    "is_copyable",
    "is_url",
    "joined",
    "open_source",
    "place_of",
    "read_ahead",
    "release_idle",
    "rename",
    "staging_name",
    "sync_directory",
    "too_many",
    "write_file",
    "write_stream",
]
