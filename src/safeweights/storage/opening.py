"""Open a path, a URL, a file object or memory as a source."""

from __future__ import annotations

import mmap
import os
from typing import Any

from ..errors import UnsupportedError
from .file_objects import _open_object
from .files import check_backend, open_file
from .places import Place, open_url
from .source import BytesSource, Source, Verifier
from .urls import is_url

__all__ = ["open_source"]


def open_source(target: Any, *, backend: str = "mmap", verify: Verifier | None = None) -> Source:
    """Open a file by name, or wrap an open file object or memory.

    Args:
        target: A path (str or PathLike), a URL (see `safeweights.storage.places`), a `Place`, an object
            with `read`, or bytes-like memory. An object that cannot seek is read to its end at once. A
            source is returned as it is.
        backend: For paths; a URL is read as bytes are asked for. ``"mmap"`` serves views from a private
            mapping; ``"pread"`` reads every view into memory of its own; ``"direct"`` does the same, but
            bypasses the page cache. ``"read"`` chooses between these two: it bypasses the page cache when
            all of a local file is wanted and little of it is there. ``"auto"`` also maps local files of
            which most is in the page cache.
        verify: Called with the source and its path; the source that it returns is read instead.

    Raises:
        OSError: Opening failed, with the system's class and errno; a directory is an
            IsADirectoryError, a device, FIFO or socket an OSError with ENODEV or ENXIO.
        UnsupportedError: `target` is none of these, or a file object in text mode; there is no such
            backend; `verify` is given, and `target` is not a path.
    """
    check_backend(backend)
    if isinstance(target, Place):
        source = target.store.open(target.name, backend=backend)
        return source if verify is None else verify(source, source.name)
    if isinstance(target, Source) and verify is None:
        return target
    if isinstance(target, str | os.PathLike):
        source = open_url(target) if is_url(target) else open_file(target, backend)
        return source if verify is None else verify(source, source.name)
    if verify is not None:
        kind = type(target).__name__
        raise UnsupportedError(f"only what is opened by its path can be verified, not {kind}")
    if hasattr(target, "read") and not isinstance(target, mmap.mmap):
        return _open_object(target)
    try:
        memoryview(target).release()
    except TypeError:
        kind = type(target).__name__
        raise UnsupportedError(
            f"expected a path, a readable file object or bytes, found {kind}"
        ) from None
    return BytesSource(target)
